"""Documents of the study of DiPaCo: of each text as many, and none twice."""

import numpy as np
import pytest

from experiments.harness import study
from experiments.studies.dipaco import grids, languages

NAMES = ['sonnets', 'python_manual']


@pytest.fixture(scope='module')
def corpus():
  return languages.of_texts(NAMES, None, 200, 40, seed=0)


def test_texts_have_equal_shares_and_one_alphabet(corpus):
  assert corpus.train.shape == (200, 41) and corpus.train.dtype == np.int32
  whole = np.concatenate([corpus.train, corpus.router, corpus.test])
  assert whole.max() < corpus.vocabulary_size
  letters = sorted(
    {
      letter
      for name in NAMES
      for text in languages.splits_of(name, None)
      for letter in text
    }
  )
  sonnets = ''.join(languages.splits_of('sonnets', None))

  def is_sonnet(row):
    return ''.join(letters[i] for i in row) in sonnets

  assert sum(map(is_sonnet, corpus.train)) == 100


def test_documents_that_choose_a_router_are_not_trained_on(corpus):
  again = languages.of_texts(NAMES, None, 200, 40, seed=0)
  np.testing.assert_array_equal(again.train, corpus.train)
  trained = {row.tobytes() for row in corpus.train}
  held_out = [row.tobytes() in trained for row in corpus.router]
  # A line of blanks or of dashes may stand in a manual twice.
  assert np.mean(held_out) < 0.02


def test_every_module_of_the_large_grid_has_four_senders():
  of = study.load('dipaco')
  cells = of.define(study.variant(of, 'text'))
  assert grids.LARGE in [cell.labels['method'] for cell in cells]
  paths = np.array(grids.paths_of(4))
  for level in paths.T:
    assert np.bincount(level).tolist() == [4, 4, 4, 4]
