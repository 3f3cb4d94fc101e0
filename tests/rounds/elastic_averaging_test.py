"""Elastic averaging: springs between workers and a center."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem, smooth_problem
from tests.rounds.smooth_problem import N, batches, gradient, loss_fn, one, run

X, RATE = smooth_problem.start(), 0.2


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def close(actual, expected, tolerance=1e-12):
  np.testing.assert_allclose(actual, expected, tolerance, tolerance)


def elastic(num_steps=1, **kwargs):
  defaults = dict(
    local_optimizer=optax.sgd(RATE),
    num_local_steps=num_steps,
    num_workers=N,
  )
  return byzjax.elastic_averaging(loss_fn, **(defaults | kwargs))


def loop(many, *, beta, alpha):
  """The synchronous method: everything on the right is of before."""
  w, x = X, np.stack([X] * N)
  for batch in many:
    for k in range(batch[1].shape[1]):
      g = [gradient(x[i], one(batch, i, k)) for i in range(N)]
      pull = alpha * (x - w) if k == 0 else 0
      if k == 0:
        w = w + beta * (x.mean(axis=0) - w)
      x = x - RATE * np.stack(g) - pull
    yield w, x


@pytest.mark.parametrize('num_steps', [1, 3])
def test_is_the_loop_of_the_paper(num_steps):
  many = [batches(N, num_steps, seed=s) for s in range(4)]
  states = run(elastic(num_steps), X, many)
  paper = loop(many, beta=0.9, alpha=0.9 / N)
  for (w, x), (state, info) in zip(paper, states):
    close(state.params, w)
    close(byzjax.replicas(state), x)
    assert int(info.num_gradients) == int(info.num_local_steps) == num_steps


def test_only_those_drawn_move_and_are_heard_by_their_weight():
  many = [batches(N, 2, seed=s) for s in range(4)]
  given = np.arange(1.0, N + 1)
  rounds = elastic(2, participation=2, worker_weights=jnp.asarray(given))
  w, x, alpha = X, np.stack([X] * N), 0.9 / N
  seen = set()
  for batch, (state, info) in zip(many, run(rounds, X, many)):
    ids = np.asarray(info.participants)
    seen |= set(ids.tolist())
    shares = given[ids] / given[ids].sum()
    center = w + 0.9 * shares @ (x[ids] - w[None])
    for i in ids:
      pull = alpha * (x[i] - w)
      x[i] = x[i] - RATE * gradient(x[i], one(batch, i, 0)) - pull
      x[i] = x[i] - RATE * gradient(x[i], one(batch, i, 1))
    w = center
    close(state.params, w)
    close(byzjax.replicas(state), x)
  assert len(seen) > 2


def test_without_springs_workers_walk_alone():
  many = [batches(N, 2, seed=s) for s in range(2)]
  rounds = elastic(2, local_optimizer=optax.sgd(RATE, 0.9), alpha=0.0)
  state, _ = run(rounds, X, many)[-1]
  for i in range(N):
    x, m = X, 0
    for batch in many:
      for k in range(2):
        m = 0.9 * m + gradient(x, one(batch, i, k))
        x = x - RATE * m
    close(byzjax.replicas(state)[i], x)


def test_equal_data_and_whole_springs_are_sgd_one_round_late():
  # Every worker is at the center's next place, so the spring never pulls.
  many = [one(batches(1, 1, seed=s), [0] * N) for s in range(3)]
  states = run(elastic(beta=1.0, alpha=0.0), X, many)
  x = [X]
  for batch in many:
    x.append(x[-1] - RATE * gradient(x[-1], one(batch, 0, 0)))
  for t, (state, _) in enumerate(states):
    close(state.params, x[t])
    close(byzjax.replicas(state)[0], x[t + 1])


@pytest.mark.parametrize('rule', ['median', 'mean'])
def test_the_center_under_attack(rule):
  rules = {'mean': byzjax.mean(), 'median': byzjax.coordinate_median()}
  rounds = elastic(
    2,
    num_workers=5,
    aggregator=rules[rule],
    attack=byzjax.sign_flip(scale=30.0),
    byzantine=1,
    alpha=0.2,
  )
  batch = batches(5, 2)
  state, info = run(rounds, X, [batch] * 30)[-1]
  distance = np.linalg.norm(
    np.asarray(byzjax.replicas(state))[1:] - np.asarray(state.params), axis=1
  )
  assert (distance.max() < 1) == (rule == 'median')
  assert (info.loss < 0.9) == (rule == 'median')


def test_an_objective_is_anchored_at_the_center():
  def loss(x, batch, context):
    del batch
    return jnp.sum(x * jax.lax.stop_gradient(context.anchor))

  rounds = byzjax.elastic_averaging(
    byzjax.Objective(loss),
    local_optimizer=optax.sgd(RATE),
    num_local_steps=1,
    num_workers=2,
    beta=0.5,
  )
  states = run(rounds, X, [jnp.zeros([2, 1])] * 3)
  w, x = X, X
  for state, _ in states:
    x, w = x - RATE * w - 0.25 * (x - w), w + 0.5 * (x - w)
    close(state.params, w)
    close(byzjax.replicas(state)[0], x)


def test_a_codec_sends_what_the_spring_says():
  rounds = elastic(codec=byzjax.sign_codec(), aggregator=byzjax.majority_vote())
  state, info = run(rounds, X, [batches(N, 1, seed=s) for s in range(2)])[-1]
  assert float(info.bits_up) == N * 3
  close(np.abs(np.asarray(state.params) - X) % 0.9, 0, 1e-6)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'beta': 1.5}, 'beta <= 1'),
    ({'alpha': -0.1}, 'alpha >= 0'),
    ({'num_local_steps': 0}, 'num_local_steps'),
    ({'num_workers': 0}, 'num_workers'),
    ({'local_state': 'average'}, 'local_state'),
    ({'aggregator': optax.sgd(1.0)}, 'needs aggregator to be an Aggregator'),
  ],
)
def test_refusals(arguments, message):
  with pytest.raises(ValueError, match=message):
    elastic(**arguments)


def test_refuses_the_state_of_another_round():
  state = problem.training().init(problem.params())
  with pytest.raises(ValueError, match='parle or elastic_averaging'):
    byzjax.replicas(state)
