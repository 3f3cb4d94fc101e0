"""What has a target: pixels, pools, readouts; every step or the last one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import byzjax
from byzjax import models
from tests.gradients import target_projection_reference as reference

C = reference.C
B = 4
KEY = jax.random.key(3)
P_KEY = jax.random.key(17)
NAMES = ('l2', 'l1', 'drtp')
LABELS = np.array([2, 0, 1, 2])
SCALE = 0.5
FORMS = [*itertools.product((False, True), repeat=2)]


def estimate_each(params, data, stages, names=NAMES, **options):
  """The gradients of these residuals, from one program."""
  options = dict(projection=reference.projection, scale=SCALE) | options
  estimators = {
    name: byzjax.target_projection(
      stages, num_classes=C, projection_key=P_KEY, residual=name, **options
    )
    for name in names
  }
  return jax.jit(
    lambda *args: {name: e(*args, KEY)[1] for name, e in estimators.items()}
  )(params, data)


def double(make_model):
  graphdef, shapes = models.split(nnx.eval_shape(make_model))
  params = jax.tree.map(lambda x: reference.random(*x.shape) / 3, shapes)
  return models.stages(graphdef), params


def convolutional():
  return models.CNN((8, 8, 2), C, activation=jnp.tanh, rngs=nnx.Rngs(0))


def recurrent():
  return models.RNN((5, 4, 7, C), rngs=nnx.Rngs(0))


def unpooled(d, y):
  """The derivative by y of a number whose derivative by pooled y is d."""
  windows = y.reshape(B, d.shape[1], 2, d.shape[2], 2, -1)
  is_largest = windows == windows.max(axis=(2, 4), keepdims=True)
  return (is_largest * d[:, :, None, :, None]).reshape(y.shape)


def readout_matrix(number, width, count):
  key = jax.random.fold_in(jax.random.fold_in(P_KEY, number), 1)
  normal = jax.random.normal(key, (width, count), jnp.float64)
  return np.asarray(normal) / np.sqrt(width)


def error_of_seen(number, y, pooled, residual, targets_after, readout):
  """-e by y, by hand: through the readout first, and then the pooling."""
  s = pooled if targets_after else y
  shape, s = s.shape, s.reshape(B, -1)
  matrix = np.eye(s.shape[1])
  if readout is not None:
    matrix = readout_matrix(number, s.shape[1], readout)
  columns = SCALE * reference.projection(None, (C, matrix.shape[1]), float)
  e = reference.error(residual, columns[LABELS], s @ matrix)
  d = (-e @ matrix.T / B).reshape(shape)
  return unpooled(d, y) if targets_after else d


@pytest.mark.parametrize('targets_after', [False, True])
@pytest.mark.parametrize('readout', [None, 6])
def test_kernels_get_the_weight_gradient_of_a_convolution(
  targets_after, readout
):
  images = reference.random(B, 8, 8, 2)
  seen = {'targets_after': targets_after, 'readout': readout}
  with jax.enable_x64(True):
    stages, params = double(convolutional)
    stages = [
      *(stage._replace(**seen) for stage in stages[:2]),
      *stages[2:],
    ]
    first = np.asarray(jax.jit(stages[0].apply)(params, images))
    pooled = first.reshape(B, 4, 2, 4, 2, 16).max(axis=(2, 4))
    second = np.asarray(jax.jit(stages[1].apply)(params, pooled))
    last = second.reshape(B, 2, 2, 2, 2, 32).max(axis=(2, 4))
    found = estimate_each(params, (images, LABELS), stages)
    for residual, gradient in found.items():
      for number, name, x, y, after in [
        (0, 'conv1', images, first, pooled),
        (1, 'conv2', pooled, second, last),
      ]:
        d = error_of_seen(number, y, after, residual, **seen)
        delta = d * (1 - y**2)
        np.testing.assert_allclose(
          gradient[name]['kernel'][...],
          reference.kernel_gradient(x, delta, 3),
          rtol=1e-10,
          atol=1e-13,
        )
        np.testing.assert_allclose(
          gradient[name]['bias'][...], delta.sum(axis=(0, 1, 2)), 1e-10, 1e-13
        )


def test_a_readout_is_about_as_large_as_what_it_reads():
  width, count = 300, 200
  stages = (
    byzjax.Stage(
      lambda p: p['a'], lambda p, h: h + p['a'][None], readout=count
    ),
    byzjax.Stage(lambda p: p['b'], lambda p, h: h @ p['b']),
  )
  params = {'a': jnp.zeros(width), 'b': jnp.zeros((width, C))}
  data = (jnp.ones((B, width)), LABELS)
  # Of l2 with no targets, -e = R^T s, and the gradient is R R^T s.
  found = estimate_each(params, data, stages, ('l2',), scale=0.0)['l2']['a']
  assert 0.8 < found.mean() * width / count < 1.2


def arrays(tree):
  names = ('kernel', 'recurrent_kernel', 'bias')
  layers = [tuple(tree['layers'][i][k][...] for k in names) for i in range(2)]
  last = tuple(tree['dense'][k][...] for k in ('kernel', 'bias'))
  return jax.tree.map(np.asarray, (layers, last))


@pytest.mark.parametrize('through_time', FORMS)
def test_recurrent_layers_agree_with_loops(through_time):
  x = reference.random(B, 6, 5)
  with jax.enable_x64(True):
    stages, params = double(recurrent)
    for last_step in FORMS:
      forms = zip(stages[:2], last_step, through_time)
      changed = [s._replace(last_step=a, through_time=b) for s, a, b in forms]
      found = estimate_each(params, (x, LABELS), [*changed, stages[2]])
      for residual, gradient in found.items():
        expected = reference.recurrent(
          *(*arrays(params), x, LABELS, residual, SCALE),
          last_step=last_step,
          through_time=through_time,
        )
        for a, b in zip(
          jax.tree.leaves(arrays(gradient)), jax.tree.leaves(expected)
        ):
          np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_through_its_own_time_is_the_gradient_of_the_loss_written_out():
  x = reference.random(B, 6, 5)

  def local_loss(params, stages, number):
    """Of h_T, in Python loops; only h of the same layer is differentiated."""
    inputs = [x[:, t] for t in range(6)]
    for stage in stages[: number + 1]:
      h, states = stage.init(params, B), []
      for x_t in inputs:
        h = stage.apply(params, jax.lax.stop_gradient(x_t), h)
        states.append(h)
      inputs = states
    columns = SCALE * reference.projection(None, (C, h.shape[1]), h.dtype)
    return jnp.square(columns[LABELS] - h).sum() / (2 * B)

  with jax.enable_x64(True):
    stages, params = double(recurrent)
    forms = dict(last_step=True, through_time=True)
    changed = [*(s._replace(**forms) for s in stages[:2]), stages[2]]
    found = estimate_each(params, (x, LABELS), changed, ('l2',))['l2']
    for number in range(2):
      expected = jax.jit(
        lambda params, number=number: jax.grad(local_loss)(
          params, stages, number
        )
      )(params)
      for a, b in zip(
        arrays(found)[0][number], arrays(expected)[0][number], strict=True
      ):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_steps_of_half_precision_are_summed_in_float32_through_time_too():
  # 400 equal steps of a layer that forgets: a sum in bfloat16 stops growing.
  rnn = byzjax.RecurrentStage(
    lambda p: p['w'],
    lambda p, x, h: jnp.tanh(x @ p['w']),
    lambda p, size: jnp.zeros((size, 2), p['w'].dtype),
    through_time=True,
  )
  output = byzjax.Stage(lambda p: p['v'], lambda p, h: h @ p['v'])
  params = {'w': jnp.full((1, 2), 0.5), 'v': jnp.ones((2, C))}

  def sum_in(dtype):
    own = jax.tree.map(lambda x: x.astype(dtype), params)
    data = (jnp.ones((1, 400, 1), dtype), np.array([1]))
    gradient = estimate_each(own, data, (rnn, output), ('drtp',))['drtp']
    assert gradient['w'].dtype == dtype
    return np.float32(gradient['w'])

  # The last digit of bfloat16, as in the test of the detached form.
  np.testing.assert_allclose(
    sum_in(jnp.bfloat16), sum_in(jnp.float32), rtol=2**-8
  )


@pytest.mark.parametrize('readout', [0, 1.5])
def test_a_readout_is_a_number_of_numbers(readout):
  stages, _ = double(convolutional)
  stages = (stages[0]._replace(readout=readout), *stages[1:])
  with pytest.raises(ValueError, match=r'stages\[0\].readout to be a Python'):
    byzjax.target_projection(stages, num_classes=C, projection_key=P_KEY)
