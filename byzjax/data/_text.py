"""Text as character-level tokens, and its division into documents."""

import importlib.resources
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from byzjax._src import checks
from byzjax.data import _sources

# By name, how many of the last sonnets or chapters are for testing.
_INCLUDED = {'sonnets': 2, 'genesis': 5}
_ASKED = (
  'load_text',
  f'{", ".join(_INCLUDED)} (need no folder), tiny_shakespeare and other sets '
  'of TFDS with the feature text',
)


class Text(NamedTuple):
  """A text in host memory, as indices of characters, or words, in a vocabulary.

  Attributes:
    name: of the text.
    train: int32 `[N]`, in `[0, V)`.
    test: int32 `[M]`.
    vocabulary: a string of V characters in the order of their code points, or a
      tuple of V words (see `words`).
  """

  name: str
  train: np.ndarray
  test: np.ndarray
  vocabulary: Sequence[str]


def load_text(
  name: str, data_dir: str | os.PathLike[str] | None = None
) -> Text:
  """Loads a text by name, one token per character.

  `'sonnets'` is fourteen sonnets by William Shakespeare in modern spelling,
  included in the library; the last two are for testing. `'genesis'` is the
  first book of the King James Bible in the spelling of 1769, a line for each
  verse, included as well; the last five of its fifty chapters are for testing.
  Both are in the public domain. Every other name is a TFDS data set prepared on
  disk as for `load`, with the feature `text` and the splits `train` and `test`,
  such as `'tiny_shakespeare'`; the texts of a split are concatenated in order.
  The vocabulary is that of both splits.

  Args:
    name: `'sonnets'`, `'genesis'`, or a TFDS name, optionally with a
      configuration and a version.
    data_dir: the folder of TFDS data sets, as for `load`.

  Returns:
    A `Text`.

  Raises:
    ValueError: if the data set is not in the folder, or not a text data set as
      described.

  Example:
    >>> from byzjax import data
    >>> text = data.load_text('sonnets')
    >>> ''.join(text.vocabulary[i] for i in text.train[:23])
    'From fairest creatures '
  """
  if name in _INCLUDED:
    package = importlib.resources.files('byzjax.data')
    whole = package.joinpath(f'{name}.txt').read_text(encoding='utf-8')
    parts, count = whole.split('\n\n'), _INCLUDED[name]
    return _encoded(
      name, '\n\n'.join(parts[:-count]), '\n\n'.join(parts[-count:])
    )
  return _encoded(name, *_read_splits(name, data_dir))


def documents(tokens: np.ndarray, length: int) -> np.ndarray:
  """Cuts a text into consecutive documents of T inputs and T targets.

  Document i is `tokens[i T : i T + T + 1]`: every token after the first is the
  target of exactly one document. The remainder at the end is dropped.

  Args:
    tokens: integers `[N]`.
    length: T, a Python int from 1 to N - 1.

  Returns:
    int32 `[(N - 1) // T, T + 1]`.

  Raises:
    ValueError: if the tokens are not a vector of integers, or there are too few
      for one document.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> data.documents(np.arange(8), 3)
    array([[0, 1, 2, 3], [3, 4, 5, 6]], dtype=int32)
  """
  checks.check_count('documents', 'length', length, 1)
  tokens = np.asarray(tokens)
  if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(
      'documents: tokens must be a vector of integers, got shape '
      f'{tokens.shape} and dtype {tokens.dtype}.'
    )
  count = (tokens.size - 1) // length
  if count < 1:
    raise ValueError(
      'documents: tokens must have at least length + 1 entries, got '
      f'{tokens.size} for length={length}.'
    )
  starts = np.arange(count)[:, None] * length
  return tokens[starts + np.arange(length + 1)[None]].astype(np.int32)


def _encoded(name: str, train: str, test: str) -> Text:
  points = [_code_points(part) for part in (train, test)]
  vocabulary = np.unique(np.concatenate(points))
  codes = [np.searchsorted(vocabulary, part) for part in points]
  return Text(
    name,
    codes[0].astype(np.int32),
    codes[1].astype(np.int32),
    ''.join(map(chr, vocabulary)),
  )


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode('utf-32-le'), np.uint32)


def _read_splits(
  name: str, data_dir: str | os.PathLike[str] | None
) -> tuple[str, str]:
  folder = _sources._folder(data_dir)
  builder = _sources._builder(name, folder, _ASKED)
  import tensorflow_datasets as tfds

  features = dict(builder.info.features.items())
  if not isinstance(features.get('text'), tfds.features.Text):
    kinds = ', '.join(f'{k}: {type(v).__name__}' for k, v in features.items())
    raise ValueError(
      f'load_text: name={name!r} must have the feature text: Text, got {kinds}.'
    )
  if not {'train', 'test'} <= set(builder.info.splits):
    raise ValueError(
      f'load_text: name={name!r} must have the splits train and test, got '
      f'{", ".join(builder.info.splits) or "none"}.'
    )

  def joined(split: str) -> str:
    source: Any = _sources._data_source(
      builder, name, split, folder, asked=_ASKED
    )
    return ''.join(source[i]['text'].decode() for i in range(len(source)))

  return joined('train'), joined('test')
