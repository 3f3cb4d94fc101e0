"""SAGA: against a loop in NumPy, and that its noise vanishes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

N, M, D, RATE, ROUNDS = 6, 4, 3, 0.1, 12
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(N, M, D)).astype(np.float32)
OUTPUTS = RNG.normal(size=(N, M)).astype(np.float32)
START = np.linspace(1, 2, D).astype(np.float32)
KEY = jax.random.key(0)


def loss_fn(w, batch):
  x, y = batch
  return jnp.mean((x @ w - y) ** 2) / 2


def run(num_rounds=ROUNDS, batch=(INPUTS, OUTPUTS), **options):
  arguments = {
    'num_workers': N,
    'aggregator': byzjax.coordinate_median(),
    'optimizer': optax.sgd(RATE),
    'value_and_grad': byzjax.saga(loss_fn, num_examples=M),
    **options,
  }
  round = byzjax.robust_round(loss_fn, **arguments)
  state, step = round.init(jnp.asarray(START)), jax.jit(round.step)
  path = [START]
  for _ in range(num_rounds):
    state, _ = step(state, batch, KEY)
    path.append(np.asarray(state.params))
  return np.stack(path)


def drawn(t, i):
  """The example of worker i in round t, from the keys of a round."""
  work = jax.random.split(jax.random.fold_in(KEY, t), 5)[2]
  return int(jax.random.randint(jax.random.fold_in(work, i), [], 0, M))


def gradient(w, i, j):
  x = INPUTS[i, j].astype(np.float64)
  return x * (x @ w - OUTPUTS[i, j])


def loop(liars=0, fill=True):
  w, path = START.astype(np.float64), [START]
  table = fill * np.array(
    [[gradient(w, i, j) for j in range(M)] for i in range(N)]
  )
  for t in range(ROUNDS):
    sent = np.zeros((N, D))
    for i in range(N):
      j = drawn(t, i)
      new = gradient(w, i, j)
      sent[i] = new - table[i, j] + table[i].mean(axis=0)
      table[i, j] = new
    sent[:liars] = -sent[liars:].mean(axis=0)
    w = w - RATE * np.median(sent, axis=0)
    path.append(w)
  return np.stack(path)


@pytest.mark.parametrize('fill', [True, False])
def test_equals_a_loop(fill):
  estimator = byzjax.saga(loss_fn, num_examples=M, fill=fill)
  path = run(value_and_grad=estimator)
  np.testing.assert_allclose(path, loop(fill=fill), 1e-4, 1e-5)


def test_equals_a_loop_under_attack_and_on_a_mesh():
  options = {'attack': byzjax.sign_flip(), 'byzantine': 2}
  alone = run(**options)
  np.testing.assert_allclose(alone, loop(liars=2), 1e-4, 1e-5)
  mesh = jax.make_mesh((2,), ('workers',))
  np.testing.assert_allclose(run(mesh=mesh, **options), alone, 1e-5, 1e-6)


def test_its_noise_goes_to_zero_where_that_of_sgd_stays():
  whole = INPUTS.reshape(-1, D).astype(np.float64)
  best = np.linalg.lstsq(whole, OUTPUTS.reshape(-1), rcond=None)[0]
  rule = byzjax.mean()

  def one_example(params, batch, key):
    j = jax.random.randint(key, [], 0, M)
    one = jax.tree.map(lambda x: x[j][None], batch)
    return jax.value_and_grad(loss_fn)(params, one)

  by_saga = run(400, aggregator=rule)[-1]
  by_sgd = run(400, aggregator=rule, value_and_grad=one_example)[-1]
  np.testing.assert_allclose(by_saga, best, 1e-4, 1e-4)
  assert np.linalg.norm(by_sgd - best) > 0.01


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_bad_examples_of_one_worker_do_not_reach_the_parameters(bad):
  inputs = INPUTS.copy()
  inputs[0] = bad
  path = run(batch=(inputs, OUTPUTS))
  assert np.isfinite(path).all()
  # As near to the others' minimum as without that worker's data.
  whole = INPUTS[1:].reshape(-1, D).astype(np.float64)
  best = np.linalg.lstsq(whole, OUTPUTS[1:].reshape(-1), rcond=None)[0]
  gaps = np.linalg.norm(path - best, axis=1)
  assert gaps[-1] < gaps[0] / 2


def test_one_example_is_gradient_descent():
  batch = (INPUTS[:, :1], OUTPUTS[:, :1])
  got = run(batch=batch, value_and_grad=byzjax.saga(loss_fn, num_examples=1))
  want = run(batch=batch, value_and_grad=None)
  np.testing.assert_allclose(got, want, 1e-5, 1e-6)


def test_refuses_another_number_of_examples():
  with pytest.raises(ValueError, match=r'num_examples=4 .* batch of 3'):
    run(1, (INPUTS[:, :3], OUTPUTS[:, :3]))
  with pytest.raises(ValueError, match='num_examples'):
    byzjax.saga(loss_fn, num_examples=0)
