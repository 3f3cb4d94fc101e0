"""Parle: Entropy-SGD on every worker, and a spring between them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem, smooth_problem
from tests.rounds.smooth_problem import N, batches, gradient, loss_fn, one, run

X, RATE = smooth_problem.start(), 0.1


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def close(actual, expected, tolerance=1e-12):
  np.testing.assert_allclose(actual, expected, tolerance, tolerance)


def parle(num_steps=3, **kwargs):
  defaults = dict(
    learning_rate=RATE,
    num_local_steps=num_steps,
    num_workers=N,
    gamma=0.5,
    rho=0.7,
  )
  return byzjax.parle(loss_fn, **(defaults | kwargs))


class Nesterov:
  def __init__(self):
    self.m = 0.0

  def __call__(self, g):
    self.m = 0.9 * self.m + g
    return g + 0.9 * self.m


def loop(many, *, gamma, rho, keeps=False, rate=lambda t: RATE):
  """The paper's form, its outer step put where a round begins."""
  x = np.stack([X] * N)
  z, w = x.copy(), X
  outer, inner = Nesterov(), [Nesterov() for _ in range(N)]
  for t, batch in enumerate(many):
    x = x - rate(t) * outer((x - z) + rho(t) * (x - w))
    for i in range(N):
      y = x[i]
      if not keeps:
        inner[i] = Nesterov()
      for k in range(batch[1].shape[1]):
        g = gradient(y, one(batch, i, k)) + gamma(t) * (y - x[i])
        y = y - rate(t) * inner[i](g)
        z[i] = 0.75 * z[i] + 0.25 * y
    w = z.mean(axis=0)
    yield w, x, z.copy()


def released_loop(many, *, gamma=0.5, rho=0.7, rate=RATE):
  """The order of the released code: inner steps, then the outer step.

  What it gives is of just before the outer step, with which byzjax begins the
  next round.
  """
  x = np.stack([X] * N)
  y, z, inner, outer = x.copy(), x.copy(), np.zeros_like(x), np.zeros_like(x)
  for batch in many:
    before = x.copy()
    for i in range(N):
      for k in range(batch[1].shape[1]):
        g = gradient(y[i], one(batch, i, k)) + gamma * (y[i] - x[i])
        inner[i] = 0.9 * inner[i] + g
        y[i] = y[i] - rate * (g + inner[i])
        z[i] = 0.75 * z[i] + 0.25 * y[i]
    w = z.mean(axis=0)
    g = (x - z) + rho * (x - w)
    outer = 0.9 * outer + g
    y = y - rate * (g + outer)
    x = y.copy()
    yield w, before, z.copy()


def agree(states, expected, tolerance=1e-12):
  for (state, info), (w, x, z) in zip(states, expected):
    close(state.params, w, tolerance)
    close(byzjax.replicas(state), x, tolerance)
    close(state.workers.average, z, tolerance)
    assert int(info.num_gradients) == int(info.num_local_steps)


@pytest.mark.parametrize('state', ['reset', 'keep'])
def test_is_the_loop_of_the_paper(state):
  many = [batches(N, 3, seed=s) for s in range(4)]
  states = run(
    parle(
      local_state=state,
      learning_rate=optax.piecewise_constant_schedule(RATE, {2: 0.1}),
    ),
    X,
    many,
  )
  expected = loop(
    many,
    gamma=lambda t: 0.5,
    rho=lambda t: 0.7,
    keeps=state == 'keep',
    rate=lambda t: RATE if t < 2 else RATE / 10,
  )
  agree(states, expected)


def test_the_released_form_is_the_loop_of_the_released_code():
  many = [batches(N, 3, seed=s) for s in range(5)]
  states = run(parle(form='released'), X, many)
  agree(states, released_loop(many))


def test_the_forms_are_two_methods():
  """A change of form alone moves what is learned, from the first round on."""
  many = [batches(N, 3, seed=s) for s in range(2)]
  paper, released = (
    run(parle(form=form, local_state='keep'), X, many)
    for form in ('paper', 'released')
  )
  for (a, _), (b, _) in zip(paper, released):
    assert np.abs(a.params - b.params).max() > 1e-3


def test_springs_grow_by_the_round_up_to_their_caps():
  # One batch an epoch, so that caps are met within a few rounds.
  many = [batches(N, 2, seed=s) for s in range(15)]
  states = run(parle(2, gamma=None, rho=None, batches_per_epoch=1), X, many)
  growth = [1.5**t for t in range(15)]
  gamma = [min(0.01 * g, 1) for g in growth]
  rho = [min(0.01 * 2 * N * g, 10) for g in growth]
  assert gamma[-1] == 1
  assert rho[-1] == 10
  # Schedules of optax are float32.
  expected = loop(many, gamma=gamma.__getitem__, rho=rho.__getitem__)
  agree(states, expected, 1e-6)


def test_one_worker_without_its_spring_is_entropy_sgd():
  shared = dict(momentum=0.0, averaging=1.0)
  alone = parle(4, num_workers=1, rho=0.0, **shared)
  many = [batches(1, 4, seed=s) for s in range(3)]
  replicas = [byzjax.replicas(s)[0] for s, _ in run(alone, X, many)]
  estimator = byzjax.entropy_gradient(
    loss_fn, num_steps=4, gamma=0.5, step_size=RATE, noise=0.0, **shared
  )
  estimate = jax.jit(lambda *args: estimator(*args))
  x = jnp.asarray(X)
  for i, batch in enumerate(many):
    close(replicas[i], x)  # A round begins with the step of the last one.
    _, moved = estimate(x, one(batch, 0), smooth_problem.KEY)
    x = x - RATE * moved


def test_one_worker_one_step_and_no_springs_are_sgd():
  rounds = parle(
    1, num_workers=1, gamma=0.0, rho=0.0, momentum=0.0, averaging=1.0
  )
  many = [batches(1, 1, seed=s) for s in range(4)]
  x = X
  for batch, (state, _) in zip(many, run(rounds, X, many)):
    close(byzjax.replicas(state)[0], x)
    x = x - RATE**2 * gradient(x, one(batch, 0, 0))


def test_one_step_without_entropy_is_elastic_sgd():
  rounds = parle(1, gamma=0.0, momentum=0.0, averaging=1.0)
  many = [batches(N, 1, seed=s) for s in range(4)]
  x = np.stack([X] * N)
  for batch, (state, _) in zip(many, run(rounds, X, many)):
    close(byzjax.replicas(state), x)
    g = np.stack([gradient(x[i], one(batch, i, 0)) for i in range(N)])
    center = (x - RATE * g).mean(axis=0)
    close(state.params, center)
    x = x - RATE * (RATE * g + 0.7 * (x - center))


def test_replicas_that_are_not_drawn_stay_where_they_are():
  many = [batches(N, 3, seed=s) for s in range(3)]
  rounds = parle(participation=2)
  everybody = run(parle(), X, many[:1])[0][0].workers
  before = rounds.init(jnp.asarray(X)).workers
  for t, (state, info) in enumerate(run(rounds, X, many)):
    here = np.isin(np.arange(N), info.participants)
    assert here.sum() == 2
    for new, old in zip(
      jax.tree.leaves(state.workers), jax.tree.leaves(before)
    ):
      np.testing.assert_array_equal(new[~here], old[~here])
    if t == 0:
      close(state.workers.average[here], everybody.average[here])
      ends = np.asarray(state.workers.average[here]) - X
      close(state.params, X + ends.mean(axis=0))
    before = state.workers


@pytest.mark.parametrize('rule', ['median', 'mean'])
def test_a_median_holds_under_sign_flips(rule):
  rules = {'mean': byzjax.mean(), 'median': byzjax.coordinate_median()}
  rounds = parle(
    3,
    num_workers=5,
    aggregator=rules[rule],
    attack=byzjax.sign_flip(scale=30.0),
    byzantine=1,
    rho=2.0,
  )
  batch = batches(5, 3)
  states = run(rounds, X, [batch] * 40)
  learns = states[-1][1].loss < 0.6 * states[0][1].loss
  assert learns == (rule == 'median')


def test_one_device_and_two_agree():
  many = [batches(N, 2, seed=s) for s in range(2)]
  one_device, two = (
    run(parle(2, form='released', mesh=mesh), X, many)[-1][0]
    for mesh in (None, problem.mesh(2))
  )
  close(two.params, one_device.params)
  close(two.workers.params, one_device.workers.params)
  close(two.workers.average, one_device.workers.average)
  close(two.workers.end, one_device.workers.end)


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_half_precision_keeps_its_type(form):
  with jax.enable_x64(False):
    start = {'a': jnp.asarray(X, jnp.bfloat16)}
    rounds = byzjax.parle(
      lambda w, batch: loss_fn(w['a'].astype(jnp.float32), batch),
      learning_rate=RATE,
      num_local_steps=2,
      num_workers=2,
      batches_per_epoch=5,
      form=form,
      worker_map='map',
    )
    many = [jax.tree.map(jnp.float32, batches(2, 2))] * 2
    state, _ = run(rounds, start, many)[-1]
  assert state.params['a'].dtype == jnp.bfloat16
  assert state.workers.average.dtype == jnp.float32
  assert np.isfinite(state.workers.average).all()


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'gamma': None}, 'batches_per_epoch'),
    ({'gamma': -1.0}, 'gamma >= 0'),
    ({'rho': -1.0}, 'rho >= 0'),
    ({'learning_rate': -1.0}, 'learning_rate >= 0'),
    ({'momentum': 2.0}, 'momentum <= 1'),
    ({'averaging': 2.0}, 'averaging <= 1'),
    ({'num_steps': 0}, 'num_local_steps'),
    ({'batches_per_epoch': 5}, 'batches_per_epoch to be None'),
    ({'form': 'code'}, 'form to be one of paper, released'),
    ({'local_state': 'average'}, 'local_state'),
  ],
)
def test_refusals(arguments, message):
  with pytest.raises(ValueError, match=message):
    parle(**arguments)
