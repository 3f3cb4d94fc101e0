"""What rules write besides their result: read from compiled programs."""

import jax
import jax.numpy as jnp
import pytest

import byzjax
from byzjax._src import base

NUM_COORDINATES = 200_000


def _temporary(rule, n, common=False):
  """Temporary memory as a share of the messages."""
  x = jax.ShapeDtypeStruct((n, NUM_COORDINATES), jnp.float32)
  row, mask = jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jnp.zeros(n, bool)

  def aggregate(x, row):
    extra = {'common': base.CommonRow(row, mask)} if common else {}
    return rule.update(x, rule.init(row), **extra)[0]

  memory = jax.jit(aggregate).lower(x, row).compile().memory_analysis()
  return memory.temp_size_in_bytes / (4 * n * NUM_COORDINATES)


def _mixed(rule):
  return byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=4), rule
  )


def _clipped(rule):
  return byzjax.pre_aggregate(byzjax.adaptive_clipping(num_byzantine=4), rule)


@pytest.mark.parametrize(
  'rule, n, share',
  [
    (_mixed(byzjax.coordinate_median()), 20, 0.05),
    # A part of its columns at a time, in a core's cache.
    (_mixed(byzjax.coordinate_median()), 40, 0.05),
    (byzjax.clustering(), 20, 0.05),
    (byzjax.clipped_clustering(), 20, 0.05),
    (_clipped(byzjax.krum(num_byzantine=4)), 20, 0.05),
    (_clipped(byzjax.centered_clipping(radius=1.0)), 20, 0.05),
    # One row, which is kept until it is known to be finite.
    (_clipped(byzjax.mean()), 24, 0.05),
  ],
  ids=str,
)
def test_messages_are_not_copied(rule, n, share):
  assert _temporary(rule, n) < share


@pytest.mark.parametrize(
  'rule',
  [byzjax.krum(num_byzantine=4), byzjax.trimmed_mean(num_byzantine=4)],
  ids=str,
)
def test_a_common_row_is_not_copied_to_all_of_its_rows(rule):
  assert _temporary(rule, 20, common=True) < 0.1
