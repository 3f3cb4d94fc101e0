"""The gradient of DP-SGD, against a NumPy loop, and what privacy rests on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

D, B = 5, 6
RNG = np.random.default_rng(0)
PARAMS = {'w': np.float32(RNG.normal(size=D)), 'b': np.float32(0.3)}


def loss_fn(params, batch):
  """A mean over examples, as the losses of networks are."""
  x, y = batch
  return jnp.mean((x @ params['w'] + params['b'] - y) ** 2) / 2


def make_batch(seed=1, rows=B, scale=1.0):
  rng = np.random.default_rng(seed)
  x = scale * rng.normal(size=(rows, D))
  return np.float32(x), np.float32(rng.normal(size=rows))


def expected(batch, present, clip_norm, divisor):
  """The mean of clipped gradients, example by example: `[D + 1]`, b first."""
  total = np.zeros(D + 1)
  for x, y, here in zip(*batch, present):
    error = float(x @ PARAMS['w'] + PARAMS['b'] - y)
    gradient = np.append(error, error * np.float64(x))
    if here:
      total += gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
  return total / divisor


def flat(gradient):
  return np.append(gradient['b'], gradient['w'])


def make(**options):
  given = {'clip_norm': 1.5, 'noise_multiplier': 0.0, **options}
  return byzjax.differentially_private_gradient(
    given.pop('loss_fn', loss_fn), **given
  )


def test_without_noise_it_is_the_mean_of_clipped_gradients():
  batch = make_batch()
  loss, gradient = make()(PARAMS, batch, jax.random.key(0))
  want = expected(batch, np.ones(B, bool), 1.5, B)
  np.testing.assert_allclose(flat(gradient), want, 1e-5, 1e-6)
  np.testing.assert_allclose(loss, loss_fn(PARAMS, batch), 1e-6)
  # Some were clipped and some were not, or this shows little.
  whole = expected(batch, np.ones(B, bool), 1e9, B)
  assert np.abs(want - whole).max() > 0.1


def test_absent_examples_do_not_count_and_the_divisor_is_fixed():
  batch, present = make_batch(), np.arange(B) % 3 > 0
  loss, gradient = make(batch_size=3)(
    PARAMS, (batch, present), jax.random.key(0)
  )
  want = expected(batch, present, 1.5, 3)
  np.testing.assert_allclose(flat(gradient), want, 1e-5, 1e-6)
  some = tuple(x[present] for x in batch)
  np.testing.assert_allclose(loss, loss_fn(PARAMS, some), 1e-6)
  loss, gradient = make(batch_size=3)(
    PARAMS, (batch, np.zeros(B, bool)), jax.random.key(0)
  )
  assert loss == 0 and not flat(gradient).any()


@pytest.mark.parametrize('bad', [1e18, 1e30, np.inf, np.nan])
def test_one_example_moves_the_sum_by_no_more_than_the_clip_norm(bad):
  # The sensitivity that the noise is measured by, for the worst example.
  x, y = make_batch()
  estimator, key = make(clip_norm=0.7, batch_size=4), jax.random.key(0)
  for row in range(B):
    hostile = x.copy()
    hostile[row] = bad
    with_it = estimator(PARAMS, ((hostile, y), np.ones(B, bool)), key)[1]
    without = estimator(PARAMS, ((hostile, y), np.arange(B) != row), key)[1]
    moved = np.linalg.norm(flat(with_it) - flat(without))
    assert moved <= 0.7 / 4 * (1 + 1e-5)


def test_the_noise_has_the_deviation_that_it_says():
  # Gradients of zero: what is left is the noise.
  w = jnp.zeros(20_000)
  estimator = byzjax.differentially_private_gradient(
    lambda w, x: jnp.mean(x) * jnp.sum(w), clip_norm=2.0, noise_multiplier=3.0
  )
  gradient = estimator(w, jnp.zeros([4, 1]), jax.random.key(0))[1]
  assert abs(np.std(gradient) / (2.0 * 3.0 / 4) - 1) < 0.02
  assert abs(np.mean(gradient)) < 0.05
  masked = byzjax.differentially_private_gradient(
    lambda w, x: jnp.mean(x) * jnp.sum(w),
    clip_norm=2.0,
    noise_multiplier=3.0,
    batch_size=8,
  )
  batch = (jnp.zeros([4, 1]), jnp.zeros(4, bool))
  gradient = masked(w, batch, jax.random.key(0))[1]
  assert abs(np.std(gradient) / (2.0 * 3.0 / 8) - 1) < 0.02


def rounds(num_rounds, mesh=None, **options):
  """What 8 workers with zero gradients send: `[T, 8, d]`, noise alone."""
  training = byzjax.robust_round(
    lambda w, x: 0.0 * jnp.sum(w) * jnp.mean(x),
    num_workers=8,
    aggregator=byzjax.coordinate_median(),
    worker=byzjax.worker_momentum(0.0),  # So that the state has the message.
    optimizer=optax.sgd(0.1),
    value_and_grad=byzjax.differentially_private_gradient(
      lambda w, x: 0.0 * jnp.sum(w) * jnp.mean(x),
      clip_norm=1.0,
      noise_multiplier=1.0,
    ),
    mesh=mesh,
    **options,
  )
  state, step = training.init(jnp.zeros(64)), jax.jit(training.step)
  sent = []
  for _ in range(num_rounds):
    state, _ = step(state, jnp.zeros([8, 2, 1]), jax.random.key(3))
    sent.append(np.asarray(state.workers.momentum))
  return np.stack(sent)


def test_noise_is_each_workers_own_and_the_same_bits_on_a_mesh():
  alone = rounds(2)
  rows = alone.reshape(16, -1)[:, :64]
  correlation = np.corrcoef(rows) - np.eye(16)
  assert np.abs(correlation).max() < 0.6
  assert len({row.tobytes() for row in rows}) == 16
  for p in (2, 8):
    mesh = jax.make_mesh((p,), ('workers',))
    np.testing.assert_array_equal(rounds(2, mesh), alone)


def test_half_precision_is_clipped_and_noised_in_float32():
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
  _, gradient = make(noise_multiplier=1.0)(
    params, make_batch(), jax.random.key(0)
  )
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(gradient))
  _, wide = make(noise_multiplier=1.0)(PARAMS, make_batch(), jax.random.key(0))
  np.testing.assert_allclose(
    np.float32(flat(gradient)), flat(wide), rtol=0.05, atol=0.05
  )


def test_every_example_has_a_key_of_its_own_and_aux_is_their_mean():
  def noisy(w, x, key):
    value = jax.random.normal(key) * jnp.sum(w) + 0 * jnp.mean(x)
    return value, {'x': jnp.mean(x)}

  estimator = byzjax.differentially_private_gradient(
    noisy,
    clip_norm=1e6,
    noise_multiplier=0.0,
    batch_size=4,
    needs_key=True,
    has_aux=True,
  )
  batch = (jnp.arange(4.0), jnp.array([True, False, True, True]))
  (_, aux), _ = estimator(jnp.ones(2), batch, jax.random.key(0))
  np.testing.assert_allclose(aux['x'], 5 / 3, 1e-6)
  alone = [
    float(
      estimator(
        jnp.ones(2), (jnp.arange(4.0), jnp.arange(4) == i), jax.random.key(0)
      )[1][0]
    )
    for i in range(4)
  ]
  assert len(set(alone)) == 4


def test_traced_numbers_in_one_program():
  batch = make_batch()

  def gradient(clip_norm):
    return make(clip_norm=clip_norm)(PARAMS, batch, jax.random.key(0))[1]

  both = jax.vmap(gradient)(jnp.array([0.5, 1.5]))
  for i, clip_norm in enumerate((0.5, 1.5)):
    want = expected(batch, np.ones(B, bool), clip_norm, B)
    got = np.append(both['b'][i], both['w'][i])
    np.testing.assert_allclose(got, want, 1e-5, 1e-6)


def test_under_attack_a_rule_on_noisy_momenta_still_learns():
  # SAFE-DSHB: clip, average, noise, momentum, rule.
  rng = np.random.default_rng(2)
  target = np.float32(rng.normal(size=D))

  def loss_fn(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2

  training = byzjax.robust_round(
    loss_fn,
    num_workers=9,
    aggregator=byzjax.smallest_max_eigenvalue_averaging(num_byzantine=2),
    worker=byzjax.worker_momentum(0.9),
    optimizer=optax.sgd(0.1),
    value_and_grad=byzjax.differentially_private_gradient(
      loss_fn, clip_norm=1.0, noise_multiplier=0.5
    ),
    attack=byzjax.sign_flip(scale=10.0),
    byzantine=2,
  )
  state, step = training.init(jnp.zeros(D)), jax.jit(training.step)
  for _ in range(150):
    x = np.float32(rng.normal(size=(9, 16, D)))
    state, _ = step(state, (x, x @ target), jax.random.key(0))
  assert np.linalg.norm(state.params - target) < 0.2 * np.linalg.norm(target)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: make(clip_norm=0.0), 'clip_norm'),
    (lambda: make(clip_norm=np.inf), 'clip_norm'),
    (lambda: make(noise_multiplier=-1.0), 'noise_multiplier'),
    (lambda: make(batch_size=0), 'batch_size'),
    (
      lambda: make(batch_size=3)(PARAMS, make_batch()[0], jax.random.key(0)),
      'batches to be .examples, present.',
    ),
    (
      lambda: make(batch_size=3)(
        PARAMS, (make_batch(), np.ones(B)), jax.random.key(0)
      ),
      'present to be bool.6., one entry per example, got float',
    ),
    (
      lambda: make(batch_size=3)(
        PARAMS, (make_batch(), np.ones(B - 1, bool)), jax.random.key(0)
      ),
      'present to be bool.6.',
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
