"""A small, smooth training problem whose workers see different data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax

N = 16
SHAPES = {'w1': (5, 15), 'b1': (15,), 'w2': (15, 3), 'b2': (3,)}
KEY = jax.random.key(11)


def params(seed=0, dtype=jnp.float32):
  random = np.random.default_rng(seed)
  return {
    name: jnp.asarray(0.5 * random.normal(size=shape), dtype)
    for name, shape in SHAPES.items()
  }


def loss_fn(params, batch):
  images, labels = batch
  images = images.astype(params['w1'].dtype)
  hidden = jnp.tanh(images @ params['w1'] + params['b1'][None])
  logits = hidden @ params['w2'] + params['b2'][None]
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batches(num_rounds, n=N, seed=0):
  """Leaves [T, n, 4, ...]; every worker has data of its own."""
  random = np.random.default_rng(seed)
  images = random.normal(size=(num_rounds, n, 4, 5))
  images += np.linspace(-1, 1, n)[:, None, None]
  labels = (images.sum(axis=-1) > 0).astype(np.int32) + (images[..., 0] > 1)
  return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def batch(n=N, seed=0):
  return jax.tree.map(lambda x: x[0], batches(1, n, seed))


def mesh(*shape, names=('workers', 'model')):
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  auto = (jax.sharding.AxisType.Auto,) * len(shape)
  return jax.sharding.Mesh(devices, names[: len(shape)], axis_types=auto)


def training(**kwargs):
  defaults = dict(
    aggregator=byzjax.mean(), optimizer=optax.sgd(0.1), num_workers=N
  )
  return byzjax.robust_round(loss_fn, **(defaults | kwargs))


def scan(rounds, batches):
  """All rounds as one program: the last state, and the infos of all."""
  step = functools.partial(rounds.step, key=KEY)
  run = jax.jit(functools.partial(jax.lax.scan, step))
  return run(rounds.init(params()), batches)


def flat(tree):
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def select(worker):
  """A rule that returns the message of one worker."""
  return byzjax.from_weights(
    lambda gram: jnp.where(jnp.arange(gram.mask.shape[0]) == worker, 1.0, 0.0),
    selects=True,
  )
