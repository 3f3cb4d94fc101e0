"""The mean loss over a worker's own examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data
from tests.data import local_sampler_test as samplers

IMAGES, LABELS = samplers.IMAGES, samplers.LABELS


def loss_per_example(params, images, labels):
  return params * images.mean(axis=(1, 2, 3)) + labels


@pytest.mark.parametrize('pieces', [1, 5, 256])
def test_mean_over_the_examples_without_the_padding(pieces):
  score = data.worker_loss(
    IMAGES,
    LABELS,
    loss_per_example=loss_per_example,
    scale=4.0,
    score_batch_size=pieces,
  )
  partition = data.Partition(*map(jnp.asarray, samplers.PARTITION))
  found = jax.jit(jax.vmap(score, (None, 0)))(jnp.array(2.0), partition)
  shards = zip(samplers.PARTITION.indices, samplers.PARTITION.sizes)
  expected = [np.mean(1.5 * row[:size]) for row, size in shards]
  np.testing.assert_allclose(found, expected, 1e-6)


def test_a_broken_example_shows_and_a_broken_padding_does_not():
  def loss(params, images, labels):
    return jnp.where(labels == 0, jnp.nan, 1.0)

  score = data.worker_loss(IMAGES, LABELS, loss_per_example=loss)
  own = data.Partition(jnp.array([3, 0, 4]), jnp.array(2))
  padding = data.Partition(jnp.array([3, 4, 0]), jnp.array(2))
  assert np.isnan(score(0.0, own)) and score(0.0, padding) == 1


def test_refusals():
  with pytest.raises(ValueError, match='worker_loss needs scale > 0, got -1'):
    data.worker_loss(
      IMAGES, LABELS, loss_per_example=loss_per_example, scale=-1
    )
