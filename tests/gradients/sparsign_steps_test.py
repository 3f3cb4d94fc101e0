"""Local steps along sparse signs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem

KEY = jax.random.key(2)


def _batch(num_steps, worker=0):
  return jax.tree.map(lambda x: x[:, worker], problem.batches(num_steps))


def test_a_large_budget_gives_local_sign_descent():
  steps = byzjax.sparsign_local_steps(
    problem.loss_fn, budget=1e30, learning_rate=0.05
  )
  loss, gradient = jax.jit(steps)(problem.params(), _batch(4), KEY)
  w, losses, total = problem.params(), [], 0
  for c in range(4):
    batch = jax.tree.map(lambda x, c=c: x[c], _batch(4))
    value, g = jax.value_and_grad(problem.loss_fn)(w, batch)
    signs = jax.tree.map(jnp.sign, g)
    losses.append(value)
    total += problem.flat(signs)
    w = jax.tree.map(lambda p, s: p - 0.05 * s, w, signs)
  np.testing.assert_allclose(loss, np.mean(losses), 1e-5)
  np.testing.assert_array_equal(problem.flat(gradient), total)
  shapes = jax.tree.map(jnp.shape, (gradient, problem.params()))
  assert shapes[0] == shapes[1]


def test_the_mean_of_one_step_is_the_budget_times_the_gradient():
  steps = byzjax.sparsign_local_steps(
    problem.loss_fn, budget=0.5, learning_rate=0.1
  )
  params, batch = problem.params(), _batch(1)
  keys = jax.random.split(KEY, 2000)
  many = jax.jit(jax.vmap(steps, (None, None, 0)))(params, batch, keys)[1]
  mean = problem.flat(jax.tree.map(lambda x: x.mean(axis=0), many))
  one = jax.tree.map(lambda x: x[0], batch)
  expected = 0.5 * problem.flat(jax.grad(problem.loss_fn)(params, one))
  assert np.abs(expected).max() < 1
  np.testing.assert_allclose(mean, expected, atol=5 * 0.5 / np.sqrt(2000))


def test_a_round_of_local_steps_with_error_feedback_learns():
  rounds = problem.training(
    value_and_grad=byzjax.sparsign_local_steps(
      problem.loss_fn, budget=3.0, learning_rate=0.01
    ),
    codec=byzjax.sparsign_codec(budget=1.0),
    server_codec=byzjax.error_feedback(byzjax.scaled_sign_codec()),
    worker_weights=byzjax.random_participation(problem.N, 8, KEY),
    optimizer=optax.sgd(0.05),
  )
  batches = jax.tree.map(
    lambda x: x.reshape(60, 3, *x.shape[1:]).swapaxes(1, 2),
    problem.batches(180),
  )
  _, infos = problem.scan(rounds, batches)
  loss = np.asarray(infos.loss)
  assert loss[-10:].mean() < 0.8 * loss[:5].mean()
  assert (np.asarray(infos.bits_up) < 8 * 32 * 150).all()


def test_refusals():
  with pytest.raises(ValueError, match='budget >= 0'):
    byzjax.sparsign_local_steps(problem.loss_fn, budget=-1.0, learning_rate=0.1)
