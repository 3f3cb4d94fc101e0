"""Running any rule of the table, compiled once for all tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tables

N, SIZE = tables.NUM_WORKERS, tables.SIZE
KEY = jax.random.key(7)
V0 = np.linspace(-0.5, 0.5, SIZE)

all_rules = pytest.mark.parametrize(
  'rule', tables.RULES, ids=[rule.name for rule in tables.RULES]
)

# What takes a program more of every rule; the others are slow tests.
_KINDS = (
  'mean',
  'coordinate_median',
  'krum',
  'geometric_median',
  'centered_clipping',
  'nnm_coordinate_median',
  'covariance_filter',
  'clipped_clustering',
)
one_of_each_kind = pytest.mark.parametrize(
  'rule',
  [
    pytest.param(
      rule,
      id=rule.name,
      marks=() if rule.name in _KINDS else pytest.mark.slow,
    )
    for rule in tables.RULES
  ],
)


@functools.cache
def _compiled(name):
  """One program per rule, on trees, for all tests of messages [N, SIZE]."""
  rule = tables.RULE[name]

  # The oracle is for what users run, whatever the suite compiles with.
  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 3}
  )
  def aggregate(x, v0, unit):
    aggregator = rule.make(rule.num_byzantine, unit)
    v0 = tables.to_tree(v0)
    state = rule.start(aggregator.init(v0), v0)
    aggregate, _, info = aggregator.inspect(tables.to_tree(x), state, key=KEY)
    return aggregate, info

  return aggregate


def inspect(rule, x, v0=V0, unit=1.0):
  """The aggregate [SIZE], and what the rule tells of it."""
  x, v0 = jnp.asarray(x, jnp.float32), jnp.asarray(v0, jnp.float32)
  aggregate, info = _compiled(rule.name)(x, v0, unit)
  return tables.to_matrix(aggregate), info


def aggregated(rule, x, v0=V0, unit=1.0):
  return inspect(rule, x, v0, unit)[0]


def make(rule):
  return rule.make(rule.num_byzantine, 1.0)
