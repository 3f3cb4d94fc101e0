"""Target projection: its memory, and its place in rounds under attack."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import byzjax
from byzjax import data, models
from tests.rounds import problem

KEY = jax.random.key(3)
P_KEY = jax.random.key(17)
WIDTH = 16
BATCH = 512
ACTIVATION = 4 * BATCH * WIDTH  # bytes


def fixed(key, shape, dtype):
  """Signs, where `jax.random` would draw them in every program."""
  del key
  return np.sign(np.random.default_rng(shape).normal(size=shape)).astype(dtype)


# What of a recurrent stage has a target, and how far its gradient goes.
THROUGH = {'last_step': True, 'through_time': True}


def estimator_of(make_model, changed=None, **options):
  """`changed` are fields of the stages that have them."""
  graphdef, shapes = models.split(nnx.eval_shape(make_model))
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(random.normal(size=x.shape) / x.shape[0] ** 0.5),
    shapes,
  )
  options = dict(num_classes=10, projection_key=P_KEY) | options
  stages = [
    stage._replace(**changed)
    if changed and hasattr(stage, [*changed][0])
    else stage
    for stage in models.stages(graphdef)
  ]
  return byzjax.target_projection(stages, **options), params


def mlp(sizes):
  return models.MLP(sizes, activation=jnp.tanh, rngs=nnx.Rngs(0))


def temporary_bytes(value_and_grad, params, shape):
  images = jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32)
  labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
  lowered = jax.jit(value_and_grad).lower(params, (images, labels))
  return lowered.compile().memory_analysis().temp_size_in_bytes


def both(make_model, shape, changed=None):
  """Temporary bytes of target projection, and of backpropagation."""
  estimator, params = estimator_of(make_model, changed, projection=fixed)
  graphdef, _ = models.split(nnx.eval_shape(make_model))
  loss_fn = models.cross_entropy_loss(graphdef)
  return (
    temporary_bytes(lambda *args: estimator(*args, KEY), params, shape),
    temporary_bytes(jax.value_and_grad(loss_fn), params, shape),
  )


def test_memory_does_not_grow_with_depth():
  found = {}
  for depth in (4, 8, 16):
    sizes = (WIDTH,) * (depth + 1) + (10,)
    found[depth] = both(lambda sizes=sizes: mlp(sizes), (WIDTH,))
  projected, propagated = zip(*found.values())
  assert max(projected) - min(projected) < ACTIVATION
  assert max(projected) < 5 * ACTIVATION
  # Backpropagation keeps an activation of every layer.
  for more, less in [(8, 4), (16, 8)]:
    grown = found[more][1] - found[less][1]
    assert grown >= (more - less) * ACTIVATION
  assert propagated[-1] > 3 * projected[-1]


def test_memory_does_not_grow_with_the_length_of_a_sequence():
  def rnn():
    return models.RNN((4, WIDTH, WIDTH, 10), rngs=nnx.Rngs(0))

  short, long = (both(rnn, (length, 4)) for length in (8, 64))
  assert long[0] == short[0] < 10 * ACTIVATION
  assert long[1] - short[1] >= 2 * (64 - 8) * ACTIVATION


def test_through_time_memory_is_that_of_the_steps_of_one_layer():
  def rnn(depth):
    sizes = (4, *[WIDTH] * depth, 10)
    return lambda: models.RNN(sizes, rngs=nnx.Rngs(0))

  found = {
    (depth, length): both(rnn(depth), (length, 4), THROUGH)
    for depth, length in [(2, 8), (2, 64), (6, 64)]
  }
  sequence = 64 * ACTIVATION
  short, long, deep = (found[key][0] for key in found)
  assert short + 56 * ACTIVATION < long < 4 * sequence
  assert deep - long < sequence / 4
  # Backpropagation keeps the states of every layer.
  assert found[6, 64][1] - found[2, 64][1] >= 4 * sequence


def training(estimator, **options):
  options = dict(optimizer=optax.sgd(0.5), num_workers=10) | options
  return byzjax.robust_round(None, value_and_grad=estimator, **options)


def small_mlp(**options):
  return estimator_of(lambda: mlp((64, 32, 10)), **options)


def digits(num_workers, batch_size, key):
  found = data.load('digits')
  rows = jax.random.choice(key, 1000, (num_workers, batch_size))
  images = jnp.asarray(found.train_images, jnp.float32)[:, :, :, 0]
  images = images.reshape(-1, 64) / found.scale
  return images[rows], jnp.asarray(found.train_labels)[rows]


def test_workers_with_equal_data_send_equal_messages():
  estimator, params = small_mlp()

  one = digits(1, 8, KEY)
  batch = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), one)
  rounds = training(
    estimator, aggregator=byzjax.coordinate_median(), num_workers=3
  )
  _, info = jax.jit(rounds.step)(rounds.init(params), batch, KEY)
  # The distance of the median to the mean: none between equal rows alone.
  assert info.aggregation_error < 1e-6


def losses(estimator, params, rule, attack):
  """The losses of 100 rounds, with 3 attackers of 10."""
  rounds = training(
    estimator,
    aggregator=rule,
    worker=byzjax.worker_momentum(0.9),
    attack=attack,
    byzantine=3,
  )

  def body(state, key):
    state, info = rounds.step(state, digits(10, 16, key), KEY)
    return state, info.loss

  keys = jax.random.split(KEY, 100)
  run = jax.jit(lambda params: jax.lax.scan(body, rounds.init(params), keys)[1])
  return run(params)


@pytest.mark.parametrize('residual', ['l2', 'l1'])
def test_learns_under_attack_with_a_robust_rule(residual):
  estimator, params = small_mlp(residual=residual, projection=fixed)
  flip = byzjax.sign_flip(scale=10.0)
  attack = {'l2': flip, 'l1': byzjax.alie(z=1.5)}[residual]
  rule = byzjax.trimmed_mean(num_byzantine=3)
  found = losses(estimator, params, rule, attack)
  assert found[-10:].mean() < 0.4 * found[0]
  if residual == 'l2':
    lost = losses(estimator, params, byzjax.mean(), attack)
    assert not lost[-10:].mean() < lost[0]


@pytest.mark.parametrize('changed', [None, THROUGH])
def test_a_round_on_several_devices_gives_the_same_numbers(changed):
  estimator, params = estimator_of(
    lambda: models.RNN((8, 6, 5, 10), rngs=nnx.Rngs(0)),
    changed,
    projection=fixed,
  )
  images, labels = digits(4, 8, KEY)
  batch = (images.reshape(4, 8, 8, 8), labels)
  rounds = training(
    estimator,
    num_workers=4,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(1.0),
    mesh=problem.mesh(2),
  )
  state, _ = jax.jit(rounds.step)(rounds.init(params), batch, KEY)
  of_workers = jax.jit(jax.vmap(lambda b: estimator(params, b, KEY)[1]))(batch)
  expected = jax.tree.map(lambda p, g: p - g.mean(0), params, of_workers)
  moved = problem.flat(state.params) - problem.flat(params)
  assert np.abs(moved).max() > 0.01
  np.testing.assert_allclose(
    problem.flat(state.params), problem.flat(expected), 1e-5, 1e-6
  )
