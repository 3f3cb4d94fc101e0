"""A small draw of what `hostile.py` draws thousands of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import tables
from tests.aggregators import hostile, running


@running.all_rules
def test_no_rule_leaks(rule):
  hostile.worst_ratio(rule, draws=hostile.BATCH, seed=1)


def test_the_draws_find_a_leak():
  leaky = tables.RULE['coordinate_median']._replace(
    make=lambda f, unit: byzjax.trimmed_mean(num_byzantine=3)
  )
  with pytest.raises(AssertionError, match='coordinate_median, seed 0, draw'):
    hostile.worst_ratio(leaky, draws=hostile.BATCH)


def test_the_draws_are_hostile():
  random = np.random.default_rng(0)
  drawn = [hostile.draw(random, 3) for _ in range(100)]
  values = np.concatenate([x[bad].ravel() for x, bad in drawn])
  assert np.isnan(values).any() and np.isinf(values).any()
  assert (np.abs(values[np.isfinite(values)]) > 1e30).any()
  assert all(np.isfinite(np.delete(x, bad, 0)).all() for x, bad in drawn)
  copies = [
    any((x[i] == x[j]).all() for j in range(hostile.N) if j not in bad)
    for x, bad in drawn
    for i in bad
  ]
  assert any(copies)


@pytest.mark.parametrize('name', ['sequential_centered_clipping', 'fl_trust'])
def test_a_bad_message_spoils_no_derivative_of_others(name):
  aggregator = running.make(tables.RULE[name])
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  state = aggregator.init(x[0])

  def loss(x):
    aggregate, _ = aggregator.update(x, state, key=running.KEY)
    return jnp.sum(aggregate**2)

  slopes = jax.jit(jax.grad(loss))(x.at[2].set(jnp.nan))
  assert np.isfinite(np.delete(slopes, 2, axis=0)).all()
