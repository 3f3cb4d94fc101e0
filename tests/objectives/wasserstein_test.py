import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax._src import local
from byzjax.objectives import proximal, wasserstein, wasserstein_inputs
from tests.rounds import problem

GAMMAS = np.array([0.5, 1.0, 2.0, 8.0, 64.0])


def _linear(w, batch):
  inputs, labels = batch
  return jnp.mean(labels * (inputs @ w))


def _linear_batch():
  random = np.random.default_rng(0)
  inputs = jnp.asarray(random.normal(size=(6, 3)))
  return inputs, jnp.asarray(random.normal(size=6))


def _batch(worker=0):
  inputs, labels = jax.tree.map(lambda x: x[worker], problem.batch())
  return inputs.astype(float), labels


def _params():
  return problem.params(dtype=jnp.result_type(float))


def _assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('alpha_gamma', [0.1, 1.0, 1.9])
@pytest.mark.parametrize('steps', [1, 3, 10])
def test_where_the_loss_is_linear_the_inputs_have_a_closed_form(
  alpha_gamma, steps
):
  with jax.enable_x64(True):
    w, (inputs, labels) = jnp.array([1.0, -2.0, 0.5]), _linear_batch()
    gamma = 0.4
    moved = wasserstein_inputs(
      _linear,
      w,
      (inputs, labels),
      gamma=gamma,
      step_size=alpha_gamma / gamma,
      num_ascent_steps=steps,
    )
    slope = labels[:, None] * w[None]
    share = 1 - (1 - alpha_gamma) ** steps
    np.testing.assert_allclose(
      moved, inputs + share * slope / gamma, rtol=1e-12
    )


def test_where_the_loss_is_linear_the_surrogate_has_a_closed_form():
  with jax.enable_x64(True):
    w, batch = jnp.array([1.0, -2.0, 0.5]), _linear_batch()

    def phi(gamma, inputs):
      loss_fn = wasserstein(_linear, gamma=gamma, surrogate=True)
      return loss_fn(w, (inputs, batch[1]))

    value, (in_gamma, in_inputs) = jax.value_and_grad(phi, (0, 1))(
      0.4, batch[0]
    )
    slopes = batch[1][:, None] * w[None]
    bonus = jnp.mean(jnp.sum(slopes**2, axis=1)) / (2 * 0.4)
    np.testing.assert_allclose(value, _linear(w, batch) + bonus, rtol=1e-12)
    np.testing.assert_allclose(in_gamma, -bonus / 0.4, rtol=1e-12)
    np.testing.assert_allclose(in_inputs, slopes / len(slopes), rtol=1e-12)


def test_the_fixed_point_is_a_gradient_away():
  with jax.enable_x64(True):
    params, (inputs, labels) = _params(), _batch()
    moved = wasserstein_inputs(
      problem.loss_fn,
      params,
      (inputs, labels),
      gamma=20.0,
      num_ascent_steps=60,
    )
    # One row at a time: no assumption on the mean.
    slopes = jnp.stack(
      [
        jax.grad(lambda x, y=y: problem.loss_fn(params, (x[None], y[None])))(x)
        for x, y in zip(moved, labels)
      ]
    )
    assert jnp.abs(slopes).max() > 0.05
    np.testing.assert_allclose(moved - inputs, slopes / 20.0, rtol=1e-9)


def _phi(gamma, steps, params, batch):
  loss_fn = wasserstein(
    problem.loss_fn, gamma=gamma, num_ascent_steps=steps, surrogate=True
  )
  return loss_fn(params, batch)


def test_the_surrogate_is_above_the_loss_and_falls_with_gamma():
  with jax.enable_x64(True):
    gammas = jnp.asarray(4 * GAMMAS)
    phi = jax.jit(jax.vmap(lambda gamma: _phi(gamma, 50, _params(), _batch())))(
      gammas
    )
    plain = problem.loss_fn(_params(), _batch())
    assert (np.diff(phi) < 0).all()
    assert (phi > plain).all()
    assert phi[-1] - plain < 0.01 * (phi[0] - plain)


def test_the_gradient_is_that_of_the_surrogate():
  with jax.enable_x64(True):
    params, batch = _params(), _batch()
    phi = jax.jit(lambda params: _phi(10.0, 80, params, batch))
    gradient = jax.grad(phi)(params)
    for name in params:
      index = (0,) * params[name].ndim
      moved = [
        phi(params | {name: params[name].at[index].add(h)})
        for h in (1e-5, -1e-5)
      ]
      np.testing.assert_allclose(
        (moved[0] - moved[1]) / 2e-5, gradient[name][index], rtol=1e-5
      )


def test_the_gradient_is_taken_at_the_last_inputs_held_fixed():
  params, batch = problem.params(), _batch()
  settings = dict(gamma=0.5, step_size=0.3, num_ascent_steps=4)
  moved = wasserstein_inputs(problem.loss_fn, params, batch, **settings)
  expected = jax.value_and_grad(problem.loss_fn)(params, (moved, batch[1]))
  values = []
  for surrogate in (False, True):
    loss_fn = wasserstein(problem.loss_fn, surrogate=surrogate, **settings)
    value, gradient = jax.value_and_grad(loss_fn)(params, batch)
    _assert_same(gradient, expected[1])
    values.append(value)
  assert values[0] == expected[0]
  price = 0.25 * jnp.sum((moved - batch[0]) ** 2) / len(moved)
  np.testing.assert_allclose(values[0] - values[1], price, rtol=1e-4)


def test_without_ascent_it_is_the_loss_bit_for_bit():
  loss_fn = wasserstein(problem.loss_fn, gamma=0.5, num_ascent_steps=0)
  arguments = problem.params(), _batch()
  _assert_same(
    jax.jit(jax.value_and_grad(loss_fn))(*arguments),
    jax.jit(jax.value_and_grad(problem.loss_fn))(*arguments),
  )


def test_a_large_gamma_is_the_plain_loss():
  with jax.enable_x64(True):
    params, batch = _params(), _batch()
    plain = problem.flat(jax.grad(problem.loss_fn)(params, batch))
    errors = []
    for gamma in (1e3, 1e6):
      loss_fn = wasserstein(problem.loss_fn, gamma=gamma)
      gradient = problem.flat(jax.grad(loss_fn)(params, batch))
      errors.append(np.linalg.norm(gradient - plain))
    assert 0 < errors[1] < 1e-5
    np.testing.assert_allclose(errors[0] / errors[1], 1000, rtol=0.05)


def test_every_row_moves_by_itself():
  params, (inputs, labels) = problem.params(), _batch()
  move = functools.partial(
    wasserstein_inputs, problem.loss_fn, params, gamma=1.0, step_size=0.5
  )
  alone = [move((x[None], y[None]))[0] for x, y in zip(inputs, labels)]
  moved = move((inputs, labels))
  assert jnp.abs(moved - inputs).max() > 0.1
  np.testing.assert_allclose(moved, jnp.stack(alone), rtol=1e-5, atol=1e-6)


def test_labels_are_passed_on_as_they_are():
  seen = []

  def spy(params, batch):
    seen.append(batch[1])
    return problem.loss_fn(params, batch)

  batch = _batch()
  wasserstein(spy, gamma=1.0)(problem.params(), batch)
  assert len(seen) >= 2 and all(labels is batch[1] for labels in seen)


def _round(loss_fn, **settings):
  return byzjax.robust_round(
    loss_fn,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(0.5),
    num_workers=problem.N,
    **settings,
  )


def _step(training):
  state = training.init(problem.params())
  return jax.jit(training.step)(state, problem.batch(), problem.KEY)[0].params


def test_a_round_steps_along_the_mean_of_the_gradients_at_the_moved_inputs():
  settings = dict(gamma=0.5, step_size=1.0, num_ascent_steps=5)
  loss_fn = wasserstein(problem.loss_fn, **settings)
  stepped = _step(_round(loss_fn))
  sharded = _step(_round(loss_fn, mesh=problem.mesh(2, names=('workers',))))
  params, (inputs, labels) = problem.params(), problem.batch()

  @jax.vmap
  def gradient(inputs, labels):
    moved = inputs
    for _ in range(5):
      slope = 4 * jax.grad(lambda x: problem.loss_fn(params, (x, labels)))(
        moved
      )
      moved = moved + slope - 0.5 * (moved - inputs)
    return jax.grad(problem.loss_fn)(params, (moved, labels))

  mean = jax.tree.map(lambda g: g.mean(axis=0), gradient(inputs, labels))
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, mean)
  for found in (stepped, sharded):
    np.testing.assert_allclose(
      problem.flat(found), problem.flat(expected), rtol=1e-4, atol=1e-6
    )
  plain = _step(_round(problem.loss_fn))
  assert np.abs(problem.flat(plain) - problem.flat(stepped)).max() > 1e-3


def test_half_precision_inputs_keep_their_dtype():
  inputs, labels = _batch()
  batch = inputs.astype(jnp.bfloat16), labels
  loss_fn = jax.vmap(
    lambda gamma: wasserstein_inputs(
      problem.loss_fn, problem.params(), batch, gamma=gamma
    )
  )
  assert loss_fn(jnp.ones(2)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'gamma': 0.0}, 'wasserstein needs gamma > 0, got 0.0'),
    ({'gamma': -1.0}, 'gamma > 0'),
    ({'step_size': 0.0}, 'step_size > 0'),
    ({'step_size': 4.0}, r'step_size \* gamma < 2, .* got 4.0 and 0.5'),
    ({'num_ascent_steps': -1}, 'num_ascent_steps to be a Python int'),
    ({'num_ascent_steps': 2.0}, 'num_ascent_steps to be a Python int'),
  ],
)
def test_refusals(arguments, message):
  with pytest.raises(ValueError, match=message):
    wasserstein(problem.loss_fn, **({'gamma': 0.5} | arguments))


def test_refusals_of_what_it_cannot_move():
  objective = proximal(problem.loss_fn, mu=1.0)
  assert isinstance(objective, local.Objective)
  with pytest.raises(ValueError, match='got the Objective proximal'):
    wasserstein(objective, gamma=1.0)
  with pytest.raises(ValueError, match='inputs to be floats.* got int32'):
    wasserstein(problem.loss_fn, gamma=1.0)(
      problem.params(), (jnp.zeros((4, 5), jnp.int32), jnp.zeros(4, jnp.int32))
    )
