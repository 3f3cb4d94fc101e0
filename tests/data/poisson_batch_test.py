"""Batches of independent coins."""

import jax
import numpy as np
import pytest
from scipy import stats

from byzjax import data

IMAGES = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
LABELS = np.arange(60)
# Worker 0 holds 10 examples, worker 1 holds 50.
PARTITION = data.Partition(
  np.stack([np.resize(np.arange(10), 50), np.arange(10, 60)]).astype(np.int32),
  np.array([10, 50], np.int32),
)


@pytest.fixture(scope='module')
def drawn():
  """Who is in 2000 batches: bool[2000, 2, 60]."""

  def one(key):
    return data.poisson_batch(IMAGES, LABELS, PARTITION, key, 5)

  (_, labels), present = jax.jit(jax.vmap(one))(
    jax.random.split(jax.random.key(0), 2000)
  )
  here = np.zeros((2000, 2, 60), int)
  t, i, b = np.nonzero(present)
  np.add.at(here, (t, i, np.asarray(labels)[t, i, b]), 1)
  return here


def test_an_example_is_there_once_at_most_and_only_at_its_worker(drawn):
  assert drawn.max() == 1
  assert not drawn[:, 0, 10:].any() and not drawn[:, 1, :10].any()


def test_examples_are_independent_coins_of_the_right_probability(drawn):
  for worker, own, q in [(0, slice(0, 10), 0.5), (1, slice(10, 60), 0.1)]:
    x = drawn[:, worker, own]
    np.testing.assert_allclose(x.mean(axis=0), q, atol=5 * np.sqrt(q / 2000))
    # Numbers of a batch are binomial: a fixed size would have no variance.
    counts = x.sum(axis=1)
    width = x.shape[1]
    want = 2000 * stats.binom.pmf(np.arange(width + 1), width, q)
    got = np.bincount(counts, minlength=width + 1)
    many = want > 20
    statistic = ((got - want)[many] ** 2 / want[many]).sum()
    assert stats.chi2.sf(statistic, many.sum()) > 1e-4


def test_the_rows_that_are_there_are_the_examples(drawn):
  (x, y), present = data.poisson_batch(
    IMAGES, LABELS, PARTITION, jax.random.key(1), 5, scale=2.0
  )
  np.testing.assert_array_equal(x[..., 0, 0, 0], np.asarray(y) / 2)
  assert present.sum() > 0 and x.dtype == np.float32 and y.dtype == np.int32


@pytest.mark.parametrize('batch_size', [1, 8, 300])
def test_the_number_of_rows_is_hardly_ever_exceeded(batch_size):
  labels = np.zeros(10_000, int)
  images = np.zeros((10_000, 1, 1, 1), np.uint8)
  _, present = jax.eval_shape(
    lambda key: data.poisson_batch(
      images, labels, data.iid(labels, 1), key, batch_size
    ),
    jax.random.key(0),
  )
  rows = present.shape[1]
  assert stats.binom.sf(rows, 10_000, batch_size / 10_000) < 1e-18
  assert stats.poisson.sf(rows - 5, batch_size) > 1e-22  # Nor much too many.


def test_what_does_not_fit_is_left_out_and_small_workers_send_all():
  _, present = data.poisson_batch(
    IMAGES, LABELS, PARTITION, jax.random.key(0), 20, max_size=20
  )
  assert present.shape == (2, 20)
  assert present[0].sum() == 10  # 10 examples, with probability 1 each.
  assert present[1].sum() <= 20


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'batch_size': 0}, 'batch_size'),
    ({'max_size': 4}, 'max_size'),
    ({'scale': 0.0}, 'scale'),
  ],
)
def test_refuses(changed, message):
  given = {'batch_size': 5, **changed}
  with pytest.raises(ValueError, match=message):
    data.poisson_batch(IMAGES, LABELS, PARTITION, jax.random.key(0), **given)
