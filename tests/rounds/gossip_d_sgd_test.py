"""D-SGD: schedules, conditions, consensus, and leaving a saddle point."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import topology
from tests.rounds import gossip_problem as problem

RING = topology.ring(6)


def _d_sgd(loss_fn=problem.loss_fn, **kwargs):
  defaults = dict(topology=RING, learning_rate=0.5, consensus=0.2)
  return byzjax.d_sgd(loss_fn, **(defaults | kwargs))


def test_the_recursion_of_the_paper():
  # Every edge weighs the same, whatever the mixing weights of the graph.
  graph = topology.star(6, weights='uniform')
  rounds = _d_sgd(topology=graph, learning_rate_decay=0.8, consensus_decay=0.3)
  batch = problem.targets(6)
  state = problem.starts(rounds.init(problem.params()))
  x = np.float64(state.params['w'])
  _, _, models = problem.scan(rounds, batch, 10, state)
  for k in range(10):
    alpha, beta = 0.5 * (k + 1) ** -0.8, 0.2 * (k + 1) ** -0.3
    pulls = [
      sum(x[j] - x[i] for j in range(6) if graph.adjacency[i, j])
      for i in range(6)
    ]
    x = x + beta * np.stack(pulls) - alpha * (x - np.asarray(batch))
    np.testing.assert_allclose(models[k], x, 1e-4, 1e-5)


def test_consensus_errors_fall_as_alpha_over_beta():
  rounds = _d_sgd(
    learning_rate=1.0,
    learning_rate_decay=1.0,
    consensus=0.3,
    consensus_decay=0.4,
  )
  _, infos, models = problem.scan(rounds, problem.targets(6), 4000)
  k = np.arange(1, 4001)
  ratio = np.asarray(infos.aggregation_error) / (k**-1.0 / (0.3 * k**-0.4))
  # It would fall or rise by a factor of 4 or more, were the rate another one.
  late = ratio[400:]
  assert late.max() / late.min() < 1.6
  wanted = np.asarray(problem.targets(6)).mean(axis=0)
  np.testing.assert_allclose(models[-1].mean(axis=0), wanted, atol=1e-3)


# f_i = (x1^2 - x2^2) / 2 + x2^4 / 4 + o_i . x, with offsets that sum to zero:
# a saddle at 0, and minima at (0, 1) and (0, -1).
OFFSETS = jnp.array([[0.5, 0.0], [-0.5, 0.0], [0.3, 0.0]] * 2)
OFFSETS = OFFSETS - OFFSETS.mean(axis=0, keepdims=True)


def _saddle(x, offset):
  return (x[0] ** 2 - x[1] ** 2) / 2 + x[1] ** 4 / 4 + offset @ x


def _saddle_round(**kwargs):
  return _d_sgd(_saddle, learning_rate=0.5, learning_rate_decay=0.6, **kwargs)


def _leave(rounds, key):
  """All models after 1500 steps from the stable manifold: [6, 2]."""

  def step(state, _):
    return rounds.step(state, OFFSETS, key)[0], None

  state = rounds.init(jnp.array([1.0, 0.0]))
  return jax.lax.scan(step, state, length=1500)[0].params


def test_without_noise_all_nodes_stay_on_the_way_to_the_saddle():
  x = np.asarray(jax.jit(lambda key: _leave(_saddle_round(), key))(problem.KEY))
  np.testing.assert_array_equal(x[:, 1], 0)
  np.testing.assert_allclose(x[:, 0], 0, atol=0.05)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
def _leave_with_noise(key, gradient_noise, annealing):
  noise = dict(gradient_noise=gradient_noise, annealing=annealing)
  return _leave(_saddle_round(**noise), key)


@pytest.mark.parametrize('noise', [(0.2, 0.0), (0.0, 0.02)], ids=str)
def test_noise_takes_all_nodes_to_the_same_minimum(noise):
  x = np.asarray(_leave_with_noise(jax.random.split(problem.KEY, 8), *noise))
  assert (np.abs(np.abs(x[..., 1]) - 1) < 0.15).all()
  signs = np.sign(x[..., 1])
  np.testing.assert_array_equal(signs, np.tile(signs[:, :1], (1, 6)))
  assert len(np.unique(signs[:, 0])) == 2  # of two minima, by chance


def test_noise_has_the_standard_deviations_of_the_formula():
  def flat(x, batch):
    return 0.0 * (jnp.sum(x) + jnp.sum(batch))

  rounds = byzjax.d_sgd(
    flat,
    topology=RING,
    learning_rate=2.0,
    learning_rate_decay=1.0,
    consensus=0.0,
    gradient_noise=0.5,
    annealing=0.1,
  )
  state = rounds.init(jnp.zeros(2000))
  before, step = np.asarray(state.params), jax.jit(rounds.step)
  for k in range(1, 6):
    state, _ = step(state, jnp.zeros(6), problem.KEY)
    drawn = np.asarray(state.params) - before
    slow = np.sqrt(k * np.log(np.log(max(k, 3))))
    expected = np.sqrt((0.5 * 2 / k) ** 2 + (0.1 / slow) ** 2)
    np.testing.assert_allclose(drawn.std(axis=1), expected, rtol=0.08)
    assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.1
    before = np.asarray(state.params)


@pytest.mark.parametrize(
  'kwargs, words',
  [
    (dict(learning_rate_decay=0.5), 'learning_rate_decay > 0.5'),
    (dict(learning_rate_decay=1.1), 'learning_rate_decay'),
    (dict(consensus_decay=1.0), 'consensus_decay < learning_rate_decay'),
    (dict(consensus_decay=-0.1), 'consensus_decay >= 0'),
    (dict(consensus=0.5), r'2 / lambda_max\(L\) = 0.5'),
    (dict(learning_rate=-1.0), 'learning_rate >= 0'),
    (dict(gradient_noise=-1.0), 'gradient_noise >= 0'),
    (dict(annealing=-1.0), 'annealing >= 0'),
    (dict(topology=None), 'to be a Topology'),
  ],
)
def test_errors_say_what_is_wrong(kwargs, words):
  with pytest.raises(ValueError, match=words):
    _d_sgd(**kwargs)


def test_rates_may_be_traced():
  batch = problem.targets(6)

  def run(rate):
    rounds = _d_sgd(learning_rate=rate, consensus=rate / 4)
    state = rounds.init(problem.params())
    return rounds.step(state, batch, problem.KEY)[0].params['w']

  models = jax.jit(jax.vmap(run))(jnp.array([0.1, 0.4]))
  np.testing.assert_allclose(models[1], 0.4 * batch, 1e-5, 1e-6)
