import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import convex
from byzjax.convex import _consensus
from tests.convex import programs

RULE = byzjax.geometric_median()
MEAN = byzjax.mean()
FLIP = byzjax.sign_flip(scale=3.0)


def flip_and_nan():
  """The first attacker is `FLIP`, worker 1 sends NaN."""

  def apply(messages, state, *, is_byzantine, **knowledge):
    messages, state = FLIP.apply(
      messages, state, is_byzantine=is_byzantine, **knowledge
    )
    is_nan = is_byzantine & (jnp.arange(len(messages)) == 1)
    return jnp.where(is_nan[:, None, None, None], jnp.nan, messages), state

  return byzjax.Attack(FLIP.init, apply)


ATTACK = flip_and_nan()


def problem(num_workers=7, num_examples=30):
  """Targets of a network with two of the sampled units, and a little noise."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (num_workers, num_examples, 2))
  x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
  vectors = jax.random.normal(keys[1], (5, 3))
  y = jax.nn.relu(x @ vectors[0]) - jax.nn.relu(x @ vectors[1])
  y += 0.02 * jax.random.normal(keys[2], y.shape)
  patterns = jax.vmap(convex.arrangements, (0, None))(x, vectors)
  return x, y, patterns, convex.arrangements(x.reshape(-1, 3), vectors)


def train(x, y, patterns, *, aggregator, **options):
  return convex.consensus_admm(
    x, y, patterns, aggregator=aggregator, num_iterations=3000,
    record_every=500, **{'beta': 2.0, 'rho': 1.0, 'dual_ratio': 1.6} | options,
  )  # fmt: skip


def test_a_robust_rule_stays_near_the_optimum_of_all_and_the_mean_does_not():
  with jax.enable_x64(True):
    x, y, patterns, of_all = problem()
    optimum = programs.solve(
      x.reshape(-1, 3), y.reshape(-1), of_all, beta=2.0, loss='squared'
    )
    # Nobody and two, in one program.
    nobody, two = jnp.zeros(7, bool), jnp.arange(7) < 2
    state, history = train(
      x, y, patterns, aggregator=MEAN, attack=ATTACK, byzantine=nobody
    )
    np.testing.assert_allclose(history.objective[-1], optimum, 1e-4)
    assert history.violation[-1] < 1e-3
    assert history.primal_residual[-1] < 1e-2 * history.primal_residual[0]
    np.testing.assert_allclose(
      state.workers.copies,
      jnp.broadcast_to(state.blocks, state.workers.copies.shape),
      atol=1e-3,
    )
    count = _consensus._run._cache_size()
    _, attacked = train(
      x, y, patterns, aggregator=MEAN, attack=ATTACK, byzantine=two
    )
    assert _consensus._run._cache_size() == count
    assert not attacked.objective[-1] < 1.3 * optimum

    state, robust = train(
      x, y, patterns, aggregator=RULE, attack=ATTACK, byzantine=two
    )
    np.testing.assert_allclose(robust.objective[-1], optimum, 2e-2)
    network = convex.recover_network(state.blocks)
    np.testing.assert_allclose(
      convex.network_objective(
        network, x.reshape(-1, 3), y.reshape(-1), beta=2.0
      ),
      optimum,
      5e-2,
    )


@pytest.mark.slow
def test_one_worker_that_has_everything_takes_the_steps_of_admm():
  x, y, patterns, _ = problem(num_workers=1, num_examples=12)
  y = jnp.where(y > 0, 1.0, -1.0)
  options = {
    'beta': 0.1, 'rho': 0.1, 'loss': 'logistic', 'num_iterations': 20,
    'dual_ratio': 1.3,
  }  # fmt: skip
  state, history = convex.consensus_admm(
    x, y, patterns, aggregator=MEAN, **options
  )
  alone, expected = convex.admm(x[0], y[0], patterns[0], **options)
  np.testing.assert_allclose(state.blocks, alone.blocks, 1e-4, 1e-6)
  np.testing.assert_allclose(history.objective, expected.objective, 1e-4)
  assert int(state.step) == 20


@pytest.mark.parametrize(
  'change, message',
  [
    ({'aggregator': byzjax.alie()}, 'needs aggregator to be an Aggregator'),
    ({'byzantine': 4}, '2 \\* num_byzantine|num_workers'),
    ({'y': jnp.ones((7, 3))}, r'needs x \[n, m, d\]'),
    ({'rho': -1.0}, 'needs rho > 0'),
  ],
)
def test_it_refuses(change, message):
  arguments = {
    'x': jnp.zeros((7, 4, 2)), 'y': jnp.zeros((7, 4)),
    'arrangements': jnp.zeros((7, 3, 4), bool), 'aggregator': MEAN, 'beta': 0.1,
    'rho': 0.1, 'num_iterations': 1,
  }  # fmt: skip
  with pytest.raises(ValueError, match=message):
    convex.consensus_admm(**(arguments | change))
