"""Documents: of languages, each a Markov chain over the same letters; of texts.

A text is known by its name in `byzjax.data`, or is `python_manual`: the topics
that the help of Python knows, of which versions of Python have different ones.
"""

import pydoc_data.topics
from collections.abc import Sequence
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


def of_texts(
  names: Sequence[str],
  data_dir: str | None,
  num_documents: int,
  length: int,
  seed: int,
) -> Corpus:
  """A corpus of pieces of texts, drawn without replacement, of each as many."""
  rng = np.random.default_rng(seed)
  splits = [splits_of(name, data_dir) for name in names]
  vocabulary = sorted({letter for parts in splits for letter in ''.join(parts)})
  number = {letter: i for i, letter in enumerate(vocabulary)}

  def pieces(text):
    tokens = np.array([number[letter] for letter in text], np.int32)
    return rng.permutation(data.documents(tokens, length))

  few, many = 512 // len(names), num_documents // len(names)
  train, router, test = [], [], []
  for for_training, for_testing in splits:
    every = pieces(for_training)
    count = min(few, len(every) // 4)
    router.append(every[:count])
    train.append(every[count:][:many])
    test.append(pieces(for_testing)[:few])

  def mixed(parts):
    return rng.permutation(np.concatenate(parts))

  return Corpus(
    mixed(train), mixed(router), mixed(test), len(vocabulary), float('nan')
  )


def splits_of(name: str, data_dir: str | None) -> tuple[str, str]:
  """A text, for training and for testing."""
  if name == 'python_manual':
    topics = [topic for _, topic in sorted(pydoc_data.topics.topics.items())]
    # Every tenth topic is for testing.
    rest = [topic for i, topic in enumerate(topics) if i % 10]
    return '\n'.join(rest), '\n'.join(topics[::10])
  text = data.load_text(name, data_dir)
  for_training, for_testing = (
    ''.join(text.vocabulary[i] for i in tokens)
    for tokens in (text.train, text.test)
  )
  return for_training, for_testing
