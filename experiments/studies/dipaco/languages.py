"""Documents in several languages, each a Markov chain over the same letters."""

from typing import NamedTuple

import numpy as np

from byzjax import data


class Corpus(NamedTuple):
  """Documents, int32 `[N, T + 1]`: of a language each, or of a text."""

  train: np.ndarray
  router: np.ndarray  # for the discriminative router, and for choices
  test: np.ndarray
  vocabulary_size: int
  # Of the next letter in the test documents, after the prefix, for one who
  # knows the languages; NaN for a text.
  entropy: float


def tables(
  num_families: int,
  num_languages: int,
  vocabulary_size: int,
  concentration: float,
  seed: int,
) -> np.ndarray:
  """The probabilities of the next letter, `[families * languages, V, V]`.

  A family has its own frequent letters; a language of it, after each letter,
  its own favourites among them.
  """
  rng = np.random.default_rng(seed)
  frequencies = rng.dirichlet(np.full(vocabulary_size, 0.5), num_families)
  frequencies = np.repeat(frequencies, num_languages, axis=0)
  shape = concentration * vocabulary_size * frequencies[:, None]
  draws = rng.gamma(
    np.broadcast_to(shape, (len(shape), vocabulary_size, vocabulary_size))
  )
  return draws / draws.sum(axis=-1, keepdims=True)


def speak(
  chances: np.ndarray, count: int, length: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """`count` documents of `length` targets in random languages, and which."""
  rng = np.random.default_rng(seed)
  num_languages, vocabulary_size, _ = chances.shape
  language = rng.integers(num_languages, size=count)
  letters = [rng.integers(vocabulary_size, size=count)]
  cumulative = chances.cumsum(axis=-1)
  for _ in range(length):
    draws = rng.random((count, 1))
    below = cumulative[language, letters[-1]] < draws
    letters.append(np.minimum(below.sum(axis=1), vocabulary_size - 1))
  return np.stack(letters, axis=1).astype(np.int32), language


def entropy(
  chances: np.ndarray, documents: np.ndarray, language: np.ndarray, prefix: int
) -> float:
  """The loss of the true languages on the documents, in nats per letter."""
  chance = chances[language[:, None], documents[:, :-1], documents[:, 1:]]
  return float(-np.log(chance[:, prefix:]).mean())


def of_languages(
  num_families: int,
  num_languages: int,
  num_documents: int,
  length: int,
  prefix: int,
  seed: int,
  *,
  vocabulary_size: int = 24,
  concentration: float = 0.1,
  num_router: int = 512,
  num_test: int = 512,
) -> Corpus:
  """A corpus of Markov chains, a function of the seed alone."""
  chances = tables(
    num_families, num_languages, vocabulary_size, concentration, seed
  )
  train, _ = speak(chances, num_documents, length, 10 * seed + 1)
  router, _ = speak(chances, num_router, length, 10 * seed + 2)
  test, language = speak(chances, num_test, length, 10 * seed + 3)
  lowest = entropy(chances, test, language, prefix)
  return Corpus(train, router, test, vocabulary_size, lowest)


def of_text(
  text: data.Text, num_documents: int, length: int, seed: int
) -> Corpus:
  """A corpus of consecutive pieces, drawn from a text without replacement."""
  rng = np.random.default_rng(seed)
  pieces = rng.permutation(data.documents(text.train, length))
  num_router = min(512, len(pieces) // 4)
  train = pieces[num_router:][:num_documents]
  test = rng.permutation(data.documents(text.test, length))[:512]
  return Corpus(
    train, pieces[:num_router], test, len(text.vocabulary), float('nan')
  )
