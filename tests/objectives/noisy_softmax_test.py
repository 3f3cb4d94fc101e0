import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import models
from byzjax.objectives import (
  mixup,
  noisy_softmax,
  noisy_softmax_cross_entropy,
  proximal,
)
from tests.objectives.local_sgd import context
from tests.rounds import problem

KEY = jax.random.key(5)
B, D, C = 6, 4, 3
KINDS = [
  ('annealed', 'lower'),
  ('norms', 'lower'),
  ('constant', 'lower'),
  ('annealed', 'both'),
  ('annealed', 'raise'),
]


def _arguments(dtype=jnp.float32, seed=0):
  random = np.random.default_rng(seed)
  shapes = (B, D), (D, C), (C,)
  features, weights, bias = (
    jnp.asarray(random.normal(size=shape), dtype) for shape in shapes
  )
  return features, weights, bias, jnp.arange(B) % C


def _plain(features, weights, bias, labels):
  return optax.softmax_cross_entropy_with_integer_labels(
    features @ weights + bias[None], labels
  )


def _noise_of(losses, features, weights, labels):
  """What was taken off the target logit, from the loss of float64 rows."""
  logits = np.asarray(features) @ np.asarray(weights)
  rows, labels = np.arange(len(labels)), np.asarray(labels)
  target = logits[rows, labels].copy()
  logits[rows, labels] = -np.inf
  others = np.log(np.exp(logits).sum(axis=1))
  return np.log(np.expm1(losses)) - others + target


def _reference(features, weights, bias, labels, alpha, xi, kind):
  """Row by row: the loss, and its gradients by hand."""
  features, weights, bias = map(np.asarray, (features, weights, bias))
  amplitude, direction = kind
  losses = np.zeros(len(features))
  d_features, d_weights = np.zeros_like(features), np.zeros_like(weights)
  d_bias = np.zeros_like(bias)
  for row, (x, y) in enumerate(zip(features, np.asarray(labels))):
    w = weights[:, y]
    norm_x, norm_w = np.sqrt(x @ x), np.sqrt(w @ w)
    s = alpha * {'lower': abs(xi[row]), 'both': xi[row]}.get(
      direction, -abs(xi[row])
    )
    cosine = w @ x / (norm_w * norm_x)
    noise, in_x, in_w = {
      'annealed': (
        s * norm_w * norm_x * (1 - cosine),
        s * norm_w * x / norm_x - s * w,
        s * norm_x * w / norm_w - s * x,
      ),
      'norms': (
        s * norm_w * norm_x,
        s * norm_w * x / norm_x,
        s * norm_x * w / norm_w,
      ),
      'constant': (s, 0 * x, 0 * w),
    }[amplitude]
    logits = x @ weights + bias
    logits[y] -= noise
    p = np.exp(logits) / np.exp(logits).sum()
    losses[row] = -np.log(p[y])
    p[y] -= 1  # now the gradient in the logits
    d_features[row] = weights @ p - p[y] * in_x
    d_weights += np.outer(x, p)
    d_weights[:, y] -= p[y] * in_w
    d_bias += p
  return losses, (d_features, d_weights, d_bias)


def _of_all_kinds(floats, labels, alpha, differentiate):
  """Losses and gradients of the kinds, one program."""

  @jax.jit
  def run(floats, alpha):
    found = []
    for amplitude, direction in KINDS:

      def losses(floats, amplitude=amplitude, direction=direction):
        return noisy_softmax_cross_entropy(
          *floats,
          labels,
          alpha=alpha,
          key=KEY,
          amplitude=amplitude,
          direction=direction,
        )

      found.append((losses(floats), differentiate(losses)(floats)))
    return found

  return zip(KINDS, run(floats, alpha))


def test_losses_and_gradients_are_those_by_hand():
  with jax.enable_x64(True):
    *floats, labels = _arguments(jnp.float64)
    xi = np.asarray(jax.random.normal(KEY, (B,), jnp.float64))
    assert xi.min() < -0.1 and xi.max() > 0.1
    for kind, (found, gradients) in _of_all_kinds(
      floats, labels, 0.7, lambda losses: jax.grad(lambda x: losses(x).sum())
    ):
      expected, by_hand = _reference(*floats, labels, 0.7, xi, kind)
      np.testing.assert_allclose(found, expected, rtol=1e-12)
      for gradient, its in zip(gradients, by_hand):
        np.testing.assert_allclose(gradient, its, rtol=1e-10, atol=1e-13)


def test_without_noise_it_is_the_softmax_cross_entropy_bit_for_bit():
  *floats, labels = _arguments()
  # A zero row, a zero column, and norms whose product has no float32.
  floats[0] = floats[0].at[0].set(0).at[1].set(jnp.array([1e30, 0, 0, 0]))
  floats[1] = (
    floats[1].at[:, 2].set(0).at[:, 1].set(jnp.array([1.0, 1e30, 0, 0]))
  )
  # Loss by loss: a sum would round small ones away.
  plain = jax.jit(
    lambda x: (_plain(*x, labels), jax.jacrev(lambda x: _plain(*x, labels))(x))
  )(floats)
  assert np.isfinite(problem.flat(plain)).all()
  for _, found in _of_all_kinds(floats, labels, 0.0, jax.jacrev):
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_the_noise_depends_on_the_angle_and_on_lengths_as_published():
  with jax.enable_x64(True):
    weights = jnp.array([[2.0, 0.3], [0.0, -1.0]])
    angles = np.array([0.0, 1e-9, 0.5, np.pi / 2, 2.5, np.pi])
    rows = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = jnp.zeros(6, int)
    xi = np.abs(jax.random.normal(KEY, (6,), jnp.float64))

    @jax.jit
    def losses(features, scale, alpha):
      return noisy_softmax_cross_entropy(
        features, scale * weights, None, labels, alpha=alpha, key=KEY
      )

    def noise(scale_x, scale_w):
      x = jnp.asarray(scale_x * rows)
      found = losses(x, scale_w, 0.5)
      assert (found >= losses(x, scale_w, 0.0)).all()
      return _noise_of(found, x, scale_w * weights, labels)

    once = noise(1.0, 1.0)
    np.testing.assert_allclose(
      once, 0.5 * 2 * 3 * (1 - np.cos(angles)) * xi, rtol=1e-9, atol=1e-12
    )
    assert once[5] == pytest.approx(2 * 0.5 * 2 * 3 * xi[5])
    np.testing.assert_allclose(noise(0.25, 1), 0.25 * once, 1e-9, 1e-12)
    np.testing.assert_allclose(noise(1, 0.25), 0.25 * once, 1e-9, 1e-12)


def test_on_average_the_target_logit_falls_by_the_mean_of_a_half_normal():
  with jax.enable_x64(True):
    x, weights = jnp.array([1.0, 2.0]), jnp.array([[0.5, 1.0], [-1.0, 0.2]])
    features = jnp.tile(x, (40_000, 1))
    labels = jnp.zeros(40_000, int)
    losses = jax.jit(
      lambda x: noisy_softmax_cross_entropy(
        x, weights, None, labels, alpha=0.3, key=KEY
      )
    )(features)
    found = _noise_of(losses, features, weights, labels)
    w = weights[:, 0]
    reach = 0.3 * (jnp.sqrt(w @ w) * jnp.sqrt(x @ x) - w @ x)
    np.testing.assert_allclose(
      found.mean(), np.sqrt(2 / np.pi) * reach, rtol=0.02
    )
    np.testing.assert_allclose(
      found.var(), (1 - 2 / np.pi) * reach**2, rtol=0.03
    )


def test_a_constant_in_place_of_the_draw_is_a_margin():
  with jax.enable_x64(True):
    *floats, labels = _arguments(jnp.float64)
    xi = np.abs(jax.random.normal(KEY, (B,), jnp.float64))
    # One row, one draw: alpha can undo it.
    found = jax.jit(
      jax.vmap(
        lambda alpha: noisy_softmax_cross_entropy(
          *floats, labels, alpha=alpha, key=KEY
        )
      )
    )(0.4 / xi)
    x, w, b, y = map(np.asarray, (*floats, labels))
    logits, rows = x @ w + b, np.arange(B)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(w, axis=0)[y]
    logits[rows, y] -= 0.4 * (lengths - (x @ w)[rows, y])
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[rows, y]
    np.testing.assert_allclose(np.diag(found), expected, rtol=1e-12)


def test_half_precision_is_accumulated_in_float32():
  dtype = jnp.bfloat16
  *floats, labels = _arguments(dtype)

  @jax.jit
  def run(floats):
    def losses(floats):
      return noisy_softmax_cross_entropy(*floats, labels, alpha=0.5, key=KEY)

    exact = losses([x.astype(jnp.float32) for x in floats])
    return losses(floats), exact, jax.grad(lambda x: losses(x).sum())(floats)

  found, exact, gradients = run(floats)
  assert found.dtype == jnp.float32
  assert [g.dtype for g in gradients] == [dtype] * 3
  np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize('amplitude', ['annealed', 'norms'])
def test_at_extreme_values_losses_and_gradients_are_finite(amplitude):
  features = jnp.array([[1e30, -1e30], [0, 0], [1e-30, 1e-30], [3, 4]])
  weights = jnp.array([[1.0, 0.0], [2.0, 0.0]])  # a column of zeros, too
  labels = jnp.array([0, 1, 0, 1])

  @jax.jit
  def run(floats):
    def losses(floats):
      return noisy_softmax_cross_entropy(
        *floats, None, labels, alpha=1.0, key=KEY, amplitude=amplitude
      )

    return losses(floats), jax.grad(lambda x: losses(x).sum())(floats)

  losses, gradients = run((features, weights))
  assert np.isfinite(losses).all() and losses[0] > 1e29
  assert np.isfinite(problem.flat(gradients)).all()
  # Tiny rows have norms, too: the gradient does not know lengths.
  same = run((features.at[2].set(1e-10), weights))[1][0][2]
  np.testing.assert_allclose(gradients[0][2], same, atol=1e-6)


def test_the_objective_is_the_loss_on_the_last_layer_of_a_model():
  graphdef, params = models.split(models.make('mlp', (2, 2, 1), C, seed=0))
  features, _ = models.features_and_classifier(graphdef)
  classifier = models.classifier_weights(graphdef)
  batch = jax.random.normal(KEY, (B, 2, 2, 1)), jnp.arange(B) % C

  @jax.jit
  def run(alpha, seed):
    objective = noisy_softmax(features, classifier, alpha=alpha)
    its = context(params, seed)
    of_layer = noisy_softmax_cross_entropy(
      features(params, batch[0]),
      *classifier(params),
      batch[1],
      alpha=alpha,
      key=its.key,
    )
    wrapped = proximal(mixup(objective), mu=1.0)
    return (
      objective.loss(params, batch, its),
      of_layer.mean(),
      jax.grad(objective.loss)(params, batch, its),
      wrapped.loss(params, batch, its),
    )

  value, expected, _, wrapped = run(0.5, 1)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert value != run(0.5, 2)[0]
  clean, _, clean_gradient, clean_wrapped = run(0.0, 1)
  loss_fn = models.cross_entropy_loss(graphdef)
  plain = jax.jit(jax.value_and_grad(loss_fn))(params, batch)
  np.testing.assert_allclose(clean, plain[0], rtol=1e-6)
  np.testing.assert_allclose(
    problem.flat(clean_gradient), problem.flat(plain[1]), atol=1e-6
  )
  assert wrapped > clean_wrapped


def _features(params, x):
  return jnp.tanh(x @ params['w1'] + params['b1'][None])


def _objective(alpha, **settings):
  return noisy_softmax(
    _features, lambda p: (p['w2'], p['b2']), alpha=alpha, **settings
  )


def test_workers_with_equal_data_have_noise_of_their_own():
  batch = jax.tree.map(
    lambda x: jnp.repeat(x[:1], problem.N, axis=0), problem.batch()
  )

  @jax.jit
  def first_step(alpha, worker):
    training = byzjax.robust_round(
      _objective(alpha),
      aggregator=problem.select(worker),
      optimizer=optax.sgd(1.0),
      num_workers=problem.N,
    )
    state = training.init(problem.params())
    return training.step(state, batch, KEY)[0].params

  workers = [problem.flat(first_step(0.5, worker)) for worker in range(4)]
  for i, j in itertools.combinations(range(4), 2):
    assert np.abs(workers[i] - workers[j]).max() > 1e-3
  np.testing.assert_array_equal(workers[0], problem.flat(first_step(0.5, 0)))
  without = [problem.flat(first_step(0.0, worker)) for worker in range(2)]
  np.testing.assert_array_equal(*without)


def _score(params):
  """The plain loss on the data of the honest workers."""
  test = jax.tree.map(
    lambda x: x[4:].reshape(-1, *x.shape[2:]), problem.batch()
  )
  return problem.loss_fn(params, test)


def test_rounds_with_attackers_learn_behind_a_robust_rule():
  training = byzjax.robust_round(
    _objective(0.3),
    worker=byzjax.worker_momentum(0.9),
    aggregator=byzjax.trimmed_mean(num_byzantine=4),
    optimizer=optax.sgd(0.3),
    num_workers=problem.N,
    attack=byzjax.alie(),
    byzantine=4,
  )
  state, infos = problem.scan(training, problem.batches(60))
  assert _score(state.params) < 0.7 * _score(problem.params())
  # What workers descend is above what it is a noisy version of.
  assert infos.loss[-10:].mean() > _score(state.params)


def test_local_steps_with_attackers_learn_behind_a_robust_rule():
  training = byzjax.local_round(
    proximal(_objective(0.3), mu=0.1),
    local_optimizer=optax.sgd(0.3),
    num_local_steps=2,
    aggregator=byzjax.trimmed_mean(num_byzantine=4),
    optimizer=optax.sgd(1.0),
    num_workers=problem.N,
    attack=byzjax.sign_flip(scale=5.0),
    byzantine=4,
  )
  batches = jax.tree.map(
    lambda x: x.reshape(20, 2, *x.shape[1:]).swapaxes(1, 2),
    problem.batches(40),
  )
  state, _ = problem.scan(training, batches)
  assert _score(state.params) < 0.7 * _score(problem.params())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'alpha': -0.1}, 'noisy_softmax_cross_entropy needs alpha >= 0, got -0.1'),
    ({'amplitude': 'cosine'}, "annealed, norms, constant, got 'cosine'"),
    ({'direction': 'up'}, "lower, both, raise, got 'up'"),
    ({'labels': jnp.zeros(B)}, 'needs labels to be integers, got float32'),
    ({'labels': jnp.zeros(B + 1, int)}, r'got \(6, 4\), .*, \(7,\)'),
    ({'weights': jnp.zeros((C, D))}, r'got \(6, 4\), \(3, 4\), '),
    ({'bias': jnp.zeros(D)}, r'\(4, 3\), \(4,\), \(6,\)'),
  ],
)
def test_refusals(changes, message):
  names = ('features', 'weights', 'bias', 'labels')
  arguments = dict(zip(names, _arguments())) | {'alpha': 0.5, 'key': KEY}
  with pytest.raises(ValueError, match=message):
    noisy_softmax_cross_entropy(**(arguments | changes))


def test_the_objective_refuses_when_it_is_made():
  with pytest.raises(ValueError, match='noisy_softmax needs alpha >= 0, got'):
    _objective(float('nan'))
  with pytest.raises(ValueError, match='noisy_softmax needs direction to be'):
    _objective(0.1, direction='down')
