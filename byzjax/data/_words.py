"""Text as words."""

import collections
import re

import numpy as np

from byzjax._src import checks
from byzjax.data._text import Text

_UNKNOWN = '<unknown>'
_PATTERN = re.compile(r'\w+|\n|[^\w\s]')


def words(text: Text, vocabulary_size: int) -> Text:
  r"""Turns a text of characters into one of words.

  A word is a longest run of letters, digits and underscores; every line break
  and every other character that is no space is a word of its own. Spaces are
  dropped. The vocabulary is the `V - 1` most frequent words of the training
  part, the most frequent first and of equals the one that comes first, and
  `'<unknown>'`, which stands for all others. So no word of the test part
  decides what is known. Letters keep their case.

  Frequencies of words are far more uneven than those of characters: most rows
  of an embedding are rarely seen.

  Args:
    text: of characters, as from `load_text`.
    vocabulary_size: V, a Python int of at least 2.

  Returns:
    A `Text` of words: its vocabulary is a tuple of V strings, and the tokens
    are indices into it.

  Raises:
    TypeError: if the text is no `Text`.
    ValueError: if it is one of words already, or its training part has fewer
      than V - 1 different words.

  Example:
    >>> from byzjax import data
    >>> text = data.words(data.load_text('sonnets'), 500)
    >>> text.vocabulary[:5]
    ('\n', ',', 'the', "'", 's')
    >>> ' '.join(text.vocabulary[i] for i in text.train[:7])
    'From fairest creatures we desire increase ,'
  """
  checks.check_kind('words', 'text', text, Text)
  checks.check_count('words', 'vocabulary_size', vocabulary_size, 2)
  if not isinstance(text.vocabulary, str):
    raise ValueError(
      f'words: text must be one of characters, got {text.name!r} of'
      f' {len(text.vocabulary)} words.'
    )
  train, test = (
    _PATTERN.findall(''.join(text.vocabulary[i] for i in part))
    for part in (text.train, text.test)
  )
  # Of equal counts the word that was met first comes first.
  common = collections.Counter(train).most_common(vocabulary_size - 1)
  if len(common) < vocabulary_size - 1:
    raise ValueError(
      f'words: vocabulary_size must be at most {len(common) + 1}, one more than'
      f' the different words of {text.name!r}, got {vocabulary_size}.'
    )
  known = {word: i for i, (word, _) in enumerate(common)}

  def encoded(found: list[str]) -> np.ndarray:
    return np.array([known.get(w, len(known)) for w in found], np.int32)

  return Text(text.name, encoded(train), encoded(test), (*known, _UNKNOWN))
