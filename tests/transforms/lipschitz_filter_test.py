"""The filter of single messages, against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.transforms import arrivals


def _filter_reference(gradients, worker, points, k, f, reference):
  """By the definition; inner is SGD with momentum."""
  w, u = np.zeros(gradients.shape[1]), np.zeros(gradients.shape[1])
  last, coefficients, recent = {}, np.full(k, np.inf), []
  taken, path = [], []
  for who, x, g in zip(worker, points, gradients):
    finite, row = np.isfinite(g).all(), who if reference == 'sender' else 0
    known = row in last and np.any(x != last[row][1])
    if finite and known:
      change, move = g - last[row][0], x - last[row][1]
      coefficients[who] = _norm(change) / _norm(move)
    tested = coefficients[who]
    if reference == 'accepted' and not known:
      tested = np.inf
    passes = tested <= sorted(coefficients)[k - f - 1]
    passes = bool(finite and passes and who not in recent)
    if finite if reference == 'sender' else passes:
      last[row] = g, x
    if passes:
      recent = (recent + [who])[-2 * f :] if f else []
      u = 0.7 * u + g
      w = w - 0.1 * u
    taken.append(passes)
    path.append(w)
  return np.array(taken), np.array(path)


def _norm(x):
  return np.linalg.norm(x)


@pytest.mark.parametrize(
  ('reference', 'f'), [('accepted', 2), ('accepted', 0), ('sender', 1)]
)
def test_lipschitz_filter_is_the_loop(reference, f):
  k, n = 7, 140
  rng = np.random.default_rng(f)
  worker = np.concatenate([rng.permutation(k) for _ in range(n // k)])
  points = np.cumsum(rng.normal(size=(n, 3)), 0)
  # Gradients of a quadratic of every worker's own, with noise; some lie.
  gradients = points * (1 + worker[:, None]) + 0.5 * rng.normal(size=(n, 3))
  gradients[rng.random(n) < 0.1] *= 50
  gradients[rng.random(n) < 0.05, 0] = np.nan
  gradients[rng.random(n) < 0.05, 1] = np.inf
  expected, path = _filter_reference(gradients, worker, points, k, f, reference)
  assert 0.2 < expected.mean() < 0.95
  with jax.enable_x64(True):
    tx = byzjax.lipschitz_filter(
      optax.sgd(0.1, momentum=0.7),
      num_workers=k,
      num_byzantine=f,
      reference=reference,
    )
    tree = {'a': gradients[:, :1], 'b': gradients[:, 1:]}
    stale = {'a': points[:, :1], 'b': points[:, 1:]}
    w, state = arrivals.run(tx, tree, stale_params=stale, worker=worker)
  np.testing.assert_array_equal(state.num_rejected, np.cumsum(~expected))
  w = np.concatenate([w['a'], w['b']], 1)
  np.testing.assert_allclose(w, path, 1e-12, 1e-12)
  # Of any 2 f + 1 that are taken in a row, no two are of one worker.
  senders = worker[expected]
  for i in range(len(senders) - 2 * f):
    assert len(set(senders[i : i + 2 * f + 1])) == 2 * f + 1


@pytest.mark.parametrize('reference', ['accepted', 'sender'])
def test_one_vector_over_and_over(reference):
  """Fools the coefficient of the sender, and not the one against others."""
  k, n = 4, 200
  tx = byzjax.lipschitz_filter(
    optax.sgd(0.2), num_workers=k, num_byzantine=1, reference=reference
  )

  def step(carry, t):
    w, state, num_lies = carry
    lie = (t % k == 0) & (t > 8)
    g = jnp.where(lie, jnp.full(2, 1e4), w * jnp.array([1.0, 0.5]))
    updates, state = tx.update(g, state, w, worker=t % k, stale_params=w)
    num_lies += lie & jnp.any(updates != 0)
    return (w + updates, state, num_lies), None

  @jax.jit
  def end(w):
    start = (w, tx.init(w), jnp.zeros([], jnp.int32))
    return jax.lax.scan(step, start, jnp.arange(n))[0]

  w, state, num_lies = end(jnp.ones(2))
  if reference == 'accepted':
    assert num_lies == 0
    assert np.abs(w).max() < 1e-3
    assert state.num_rejected < n / 2
  else:
    assert num_lies > 20
    assert np.abs(w).max() > 1e3


def test_messages_from_one_point_are_not_compared():
  """Once coefficients are known, a place to compare with is needed."""
  tx = byzjax.lipschitz_filter(optax.sgd(1.0), num_workers=4, num_byzantine=0)
  update = jax.jit(tx.update)
  w = jnp.zeros(1)
  state = tx.init(w)
  # Unknown: everything finite passes, the last at a point of its own.
  at = [(0.0, 1.0), (0.0, 7.0), (0.0, np.nan), (1.0, 3.0)]
  # (3, 1) changes by 2 from there; its coefficient is 1.
  at += [(2.0, 4.0), (3.0, 5.0), (4.0, 6.0), (5.0, 7.0), (5.0, 7.5), (5.0, 7.0)]
  found = []
  for t, (x, g) in enumerate(at):
    step, state = update(
      jnp.array([g]), state, w, worker=t % 4, stale_params=jnp.array([x])
    )
    found.append(float(-step[0]))
  assert found == [1.0, 7.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0, 7.0]
