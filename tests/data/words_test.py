"""A text as words: what a word is, and which are known."""

import collections
import re

import numpy as np
import pytest

from byzjax import data
from tests.data.sources_test import TFDS_DIR, needs


def text_of(train, test=''):
  """As `load_text` makes it."""
  vocabulary = ''.join(sorted(set(train + test)))
  tokens = [
    np.array([vocabulary.index(c) for c in part], np.int32)
    for part in (train, test)
  ]
  return data.Text('a text', *tokens, vocabulary)


def spelled(text, tokens):
  return [text.vocabulary[i] for i in tokens]


def test_words_lines_and_signs():
  text = text_of("It's a fair, fair day.\n\nA day!", 'A  fair\tnight?')
  found = data.words(text, 12)
  assert found.name == 'a text'
  assert found.train.dtype == found.test.dtype == np.int32
  # By frequency, then by where they are met first; the last is for the others.
  assert found.vocabulary == (
    *('fair', 'day', '\n', 'It', "'", 's', 'a', ',', '.', 'A', '!'),
    '<unknown>',
  )
  line = ['It', "'", 's', 'a', 'fair', ',', 'fair', 'day', '.']
  assert spelled(found, found.train) == [*line, '\n', '\n', 'A', 'day', '!']
  assert spelled(found, found.test) == ['A', 'fair'] + 2 * ['<unknown>']


def test_rare_words_are_unknown():
  found = data.words(text_of('a b a c a b d', 'd a'), 3)
  assert found.vocabulary == ('a', 'b', '<unknown>')
  np.testing.assert_array_equal(found.train, [0, 1, 0, 2, 0, 1, 2])
  np.testing.assert_array_equal(found.test, [2, 0])


def test_sonnets_by_a_plain_count():
  text = data.load_text('sonnets')
  found = data.words(text, 100)
  plain = ''.join(text.vocabulary[i] for i in text.train)
  counts = collections.Counter(re.findall(r'\w+|[^\w ]', plain))
  shown = collections.Counter(spelled(found, found.train))
  unknown = shown.pop('<unknown>')
  assert len(shown) == 99
  assert all(counts[word] == count for word, count in shown.items())
  assert unknown == counts.total() - shown.total()
  assert unknown / counts.total() < 0.5
  assert sorted(shown.values()) == sorted(sorted(counts.values())[-99:])


@needs('tiny_shakespeare')
def test_tiny_shakespeare():
  found = data.words(data.load_text('tiny_shakespeare', TFDS_DIR), 4000)
  assert len(found.vocabulary) == 4000
  assert spelled(found, found.train[:4]) == ['First', 'Citizen', ':', '\n']
  assert found.train.size == 271_608
  assert np.mean(found.train == 3999) < 0.1


def test_documents_of_words():
  found = data.words(data.load_text('sonnets'), 50)
  cut = data.documents(found.train, 8)
  assert cut.shape[1] == 9 and 0 <= cut.min() and cut.max() < 50


def test_refuses_what_is_no_text_of_characters():
  text = text_of('a b c')
  with pytest.raises(TypeError, match="words needs text .* Text, got .*'a b"):
    data.words('a b c', 2)
  with pytest.raises(ValueError, match='one of characters, .* of 3 words'):
    data.words(data.words(text, 3), 2)


@pytest.mark.parametrize('size', [1, 0, -3, 2.5, True])
def test_refuses_a_size(size):
  with pytest.raises(ValueError, match='words needs vocabulary_size'):
    data.words(text_of('a b c'), size)


def test_refuses_more_words_than_there_are():
  with pytest.raises(ValueError, match='must be at most 4, one more .* got 5'):
    data.words(text_of('a b c a'), 5)
