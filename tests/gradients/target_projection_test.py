"""Layers that learn from local targets: the equations, and how they compose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.gradients import target_projection_reference as reference

C = reference.C
B = 4
KEY = jax.random.key(3)
P_KEY = jax.random.key(17)
SIZES = (5, 7, 6, C)
NAMES = ('l2', 'l1', 'drtp')
LABELS = np.array([2, 0, 1, 2])


def stage(name, activation=jnp.tanh):
  """A dense layer whose parameters are `params[name] = (W, b)`."""

  def apply(params, h):
    w, b = params[name]
    return activation(h @ w + jnp.broadcast_to(b, (h.shape[0], b.shape[0])))

  return byzjax.Stage(lambda params: params[name], apply)


def linear(x):
  return x


STAGES = (stage('first'), stage('second'), stage('output', linear))


def weights(dtype=np.float64):
  pairs = zip(SIZES[:-1], SIZES[1:])
  layers = [(reference.random(a, b) / 2, reference.random(b)) for a, b in pairs]
  layers = [tuple(x.astype(dtype) for x in layer) for layer in layers]
  return dict(zip(['first', 'second', 'output'], layers))


def batch(dtype=np.float64):
  return reference.random(B, SIZES[0]).astype(dtype), LABELS


def make(stages=STAGES, projection=reference.projection, **options):
  options = dict(num_classes=C, projection_key=P_KEY) | options
  return byzjax.target_projection(stages, projection=projection, **options)


def estimate(params, data, *args, **options):
  """Loss and gradient; of what is drawn where it is not said otherwise."""
  estimator = make(*args, **options)
  return jax.jit(lambda *args: estimator(*args))(params, data, KEY)


def estimate_each(params, data, *args, **options):
  """The gradients of all residuals, from one program."""
  estimators = {name: make(*args, residual=name, **options) for name in NAMES}
  return jax.jit(
    lambda *args: {name: e(*args)[1] for name, e in estimators.items()}
  )(params, data, KEY)


def assert_trees_close(a, b, rtol=1e-12, atol=1e-14):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_allclose(x, y, rtol, atol)


def test_dense_layers_agree_with_loops():
  params, data = weights(), batch()
  with jax.enable_x64(True):
    found = estimate_each(params, data, scale=0.7)
  for residual, gradient in found.items():
    layers = [*params.values()]
    expected = reference.perceptron(layers, *data, residual, scale=0.7)
    assert_trees_close(gradient, dict(zip(params, expected)))


def test_is_the_gradient_of_local_losses_behind_stopped_gradients():
  def local_loss(params, data, number, residual):
    h, labels = data
    for i in range(number):
      h = STAGES[i].apply(params, h)
    y = STAGES[number].apply(params, jax.lax.stop_gradient(h))
    if number == 2:
      losses = optax.softmax_cross_entropy_with_integer_labels(y, labels)
      return losses.mean()
    key = jax.random.fold_in(P_KEY, number)
    p = jax.random.uniform(key, (C, y.shape[1]), y.dtype, -0.5, 0.5)
    target = jax.nn.one_hot(labels, C, dtype=y.dtype) @ p
    if residual == 'drtp':
      return -jnp.sum(target * y) / B
    if residual == 'l1':
      return jnp.abs(target - y).sum() / B
    return jnp.square(target - y).sum() / (2 * B)

  @jax.jit
  def of_each(params, data):
    return {
      (residual, number): jax.grad(local_loss)(params, data, number, residual)
      for residual in NAMES
      for number in range(3)
    }

  params, data = weights(), batch()
  with jax.enable_x64(True):
    found = estimate_each(params, data, projection='uniform')
    for (residual, number), gradient in of_each(params, data).items():
      for i, name in enumerate(params):
        if i == number:
          assert_trees_close(found[residual][name], gradient[name])
        else:
          assert all((leaf == 0).all() for leaf in gradient[name])


def test_layers_do_not_hear_of_the_layers_behind_them():
  params, data = weights(np.float32), batch(np.float32)
  changed = params | {'output': jax.tree.map(lambda x: 2 * x, params['output'])}
  _, before = estimate(params, data)
  _, after = estimate(changed, data)
  for name in ('first', 'second'):
    np.testing.assert_array_equal(before[name][0], after[name][0])
  assert np.abs(before['output'][0] - after['output'][0]).max() > 1e-3


def test_l1_depends_on_signs_alone():
  params, data = weights(np.float32), batch(np.float32)

  def signs(key, shape, dtype):
    return np.sign(reference.projection(key, shape, dtype))

  run = jax.jit(
    lambda scale: make(residual='l1', projection=signs, scale=scale)(
      params, data, KEY
    )[1]
  )
  near, far = run(1.5), run(100.0)  # tanh is within 1 of 0.
  for a, b in zip(jax.tree.leaves(near), jax.tree.leaves(far)):
    np.testing.assert_array_equal(a, b)


def test_identity_and_a_linear_layer_are_the_delta_rule():
  x = reference.random(9, SIZES[0])
  labels = np.arange(9) % C
  stages = (stage('first', linear), stage('output', linear))
  output = weights()['output']
  params = {'first': (np.zeros((5, C)), np.zeros(C)), 'output': output}
  params['output'] = (np.eye(C), np.zeros(C))
  options = dict(
    stages=stages, scale=1.0, projection=lambda key, *like: jnp.eye(*like[0])
  )
  w = reference.random(5, C)
  with jax.enable_x64(True):
    params['first'] = (w, np.zeros(C))
    _, gradient = estimate(params, (x, labels), **options)
    delta = np.eye(C)[labels] - x @ w
    np.testing.assert_allclose(gradient['first'][0], -x.T @ delta / 9, 1e-12)
    ones = np.concatenate([x, np.ones((9, 1))], axis=1)
    best = np.linalg.lstsq(ones, np.eye(C)[labels], rcond=None)[0]
    params['first'] = (best[:-1], best[-1])
    _, gradient = estimate(params, (x, labels), **options)
  assert max(np.abs(leaf).max() for leaf in gradient['first']) < 1e-14


def test_a_linear_layer_learns_a_map_of_rank_at_most_c():
  x, labels = reference.random(20, 5), np.arange(20) % C
  stages = (stage('first', linear), stage('output', linear))
  start = {
    'first': (np.zeros((5, 7)), np.zeros(7)),
    'output': (np.zeros((7, C)), np.zeros(C)),
  }
  with jax.enable_x64(True):
    estimator = make(stages)

    def descend(_, params):
      _, gradient = estimator(params, (x, labels), KEY)
      return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradient)

    learned = jax.jit(lambda params: jax.lax.fori_loop(0, 5, descend, params))(
      start
    )
    values = np.linalg.svd(learned['first'][0], compute_uv=False)
  assert values[C] < 1e-14 < 1e-3 < values[C - 1]


def test_classes_may_be_renamed():
  params, data = weights(), batch()
  order = np.array([1, 2, 0])  # class k is called order[k]

  def renamed(key, shape, dtype):
    rows = reference.projection(key, shape, dtype)
    return rows[np.argsort(order)]

  w, b = params['output']
  other = params | {'output': (w[:, np.argsort(order)], b[np.argsort(order)])}
  with jax.enable_x64(True):
    loss, gradient = estimate(params, data)
    new_loss, new = estimate(
      other, (data[0], order[data[1]]), projection=renamed
    )
  np.testing.assert_allclose(new_loss, loss, 1e-14)
  for name in ('first', 'second'):
    assert_trees_close(new[name], gradient[name])
  np.testing.assert_allclose(
    new['output'][0][:, order], gradient['output'][0], 1e-12
  )


def test_scales_may_be_mapped_over():
  params, data = weights(np.float32), batch(np.float32)

  def of_scale(scale):
    return make(scale=scale)(params, data, KEY)[1]['first'][0]

  found = jax.jit(jax.vmap(of_scale))(jnp.array([0.0, 0.3, 0.6]))
  # e = s P y* - y is affine in s.
  np.testing.assert_allclose(found[2] + found[0], 2 * found[1], 1e-5, 1e-6)
  _, alone = estimate(params, data, scale=0.3)
  np.testing.assert_allclose(found[1], alone['first'][0], 1e-5, 1e-6)


def test_drtp_as_released_sums_over_the_batch_in_hidden_layers():
  params, (x, labels) = weights(), batch()
  with jax.enable_x64(True):
    _, mean = estimate(params, (x, labels), residual='drtp', scale=1.0)
    _, found = estimate(params, (x, labels), residual='drtp', scale=float(B))
  # e = P y*, not divided by B, as the code of the paper has it.
  (w, b), *_ = params.values()
  y = np.tanh(x @ w + b)
  p = reference.projection(None, (C, y.shape[1]), float)
  expected = -x.T @ (p[labels] * (1 - y**2))
  np.testing.assert_allclose(found['first'][0], expected, 1e-10, 1e-10)
  for name in ('first', 'second'):
    for a, one in zip(found[name], mean[name]):
      np.testing.assert_allclose(a, B * np.asarray(one), 1e-10, 1e-10)
  assert_trees_close(found['output'], mean['output'])


def test_projections_are_drawn_as_they_are_named():
  width = 500
  stages = (stage('first', linear), stage('output', linear))
  params = {
    'first': (np.zeros((1, width), np.float32), np.zeros(width, np.float32)),
    'output': (np.zeros((width, C), np.float32), np.zeros(C, np.float32)),
  }

  data = (np.ones((1, 1), np.float32), np.array([1]))

  def column(projection, scale):
    estimator = make(stages, projection, scale=scale, residual='drtp')
    return -estimator(params, data, KEY)[1]['first'][1]

  uniform, he, signs = jax.jit(
    lambda: (
      column('uniform', 0.5),
      column('he_uniform', 1.0),
      column('signs', 0.25),
    )
  )()
  assert 0.48 < np.abs(uniform).max() <= 0.5
  assert abs(uniform.mean()) < 4 * 0.5 / np.sqrt(3 * width)
  bound = np.sqrt(6 / width)
  assert 0.97 * bound < np.abs(he).max() <= bound
  assert set(np.unique(signs)) == {-0.25, 0.25}
  assert abs(signs.mean()) < 4 * 0.25 / np.sqrt(width)


def test_half_precision_is_kept():
  dtype = jnp.bfloat16
  half = jax.tree.map(lambda x: jnp.asarray(x, dtype), weights(np.float32))
  x, labels = batch(np.float32)
  _, gradient = estimate(half, (jnp.asarray(x, dtype), labels))
  _, expected = estimate(weights(np.float32), (x, labels))
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected)):
    assert a.dtype == dtype
    np.testing.assert_allclose(np.float32(a), b, rtol=0, atol=0.02)


def test_steps_of_half_precision_are_summed_in_float32():
  # 400 equal steps of a layer that forgets: a sum in bfloat16 stops growing.
  rnn = byzjax.RecurrentStage(
    lambda p: p['w'],
    lambda p, x, h: jnp.tanh(x @ p['w']),
    lambda p, size: jnp.zeros((size, 2), p['w'].dtype),
  )
  output = byzjax.Stage(lambda p: p['v'], lambda p, h: h @ p['v'])
  params = {'w': jnp.full((1, 2), 0.5), 'v': jnp.ones((2, C))}

  def sum_in(dtype):
    own = jax.tree.map(lambda x: x.astype(dtype), params)
    data = (jnp.ones((1, 400, 1), dtype), np.array([1]))
    _, gradient = estimate(own, data, (rnn, output), residual='drtp')
    return np.float32(gradient['w'])

  # The last digit of bfloat16. What a single step is rounded to differs between
  # processors, and 400 times that is no reference.
  np.testing.assert_allclose(
    sum_in(jnp.bfloat16), sum_in(jnp.float32), rtol=2**-8
  )


def test_errors():
  for options, message in [
    (dict(num_classes=0), 'needs num_classes to be a Python int'),
    (dict(scale=-1.0), 'needs scale >= 0, got -1.0'),
    (dict(residual='l3'), "residual to be one of l2, l1, drtp, got 'l3'"),
    (dict(projection='x'), 'projection to be one of signs, uniform, he_uni'),
  ]:
    with pytest.raises(ValueError, match=message):
      make(STAGES, **options)
  with pytest.raises(ValueError, match='stages to end with a Stage'):
    make(())
  params, (x, labels) = weights(np.float32), batch(np.float32)
  with pytest.raises(ValueError, match=r"params\['second'\]\[0\] in 0"):
    make(STAGES[::2])(params, (x, labels), KEY)
  with pytest.raises(ValueError, match=r"params\['first'\]\[0\] in 2"):
    make((STAGES[0], *STAGES))(params, (x, labels), KEY)
  with pytest.raises(ValueError, match=r'int\[4\], one per example, got float'):
    make(STAGES)(params, (x, labels.astype(float)), KEY)
  with pytest.raises(ValueError, match=r'draw float\[3, 7\], got the shape'):
    make(projection=lambda *_: np.zeros((7, C)))(params, (x, labels), KEY)
  with pytest.raises(ValueError, match=r'got int\d+\[3\]'):
    make(STAGES)(params, (x, labels[:3]), KEY)
