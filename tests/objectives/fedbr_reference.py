"""The published step of FedBR, in two parts, as its description goes.

Nothing here comes from byzjax but the container of the context.
"""

import jax
import jax.numpy as jnp
import numpy as np

B, D, WIDTH, CLASSES = 4, 5, 6, 3
SETTINGS = dict(
  ascent_step_size=0.3,
  contrast_weight=0.5,
  pseudo_weight=0.8,
  tau_pull=2.0,
  tau_push=1.5,
)


def features(model, x):
  return jnp.tanh(x @ model['w'] + model['b'][None])


def classify(model, z):
  return z @ model['v'] + model['c'][None]


def params(seed=0, dtype=jnp.float32):
  random = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(random.normal(size=shape) * 0.7, dtype)

  model = {
    'w': normal(D, WIDTH),
    'b': normal(WIDTH),
    'v': normal(WIDTH, CLASSES),
    'c': normal(CLASSES),
  }
  sizes = [WIDTH, 7, 7, 4]
  head = [
    {'kernel': normal(m, k), 'bias': normal(k)}
    for m, k in zip(sizes, sizes[1:])
  ]
  return {'model': model, 'projection': head}


def data(*lead, seed=1, dtype=jnp.float32):
  random = np.random.default_rng(seed)
  inputs = jnp.asarray(random.normal(size=(*lead, B, D)), dtype)
  labels = jnp.asarray(random.integers(0, CLASSES, (*lead, B)), jnp.int32)
  return inputs, labels


def pseudo_inputs(dtype=jnp.float32):
  random = np.random.default_rng(2)
  return jnp.asarray(0.3 * random.normal(size=(B, D)), dtype)


def head_of(head, z):
  first, second, third = head
  z = jax.nn.relu(z @ first['kernel'] + first['bias'][None])
  z = jax.nn.relu(z @ second['kernel'] + second['bias'][None])
  return z @ third['kernel'] + third['bias'][None]


def similarity(x, y):
  norms = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(y, axis=1)
  return jnp.sum(x * y, axis=1) / norms


def contrast(head, z_p, z_g, z, tau_pull, tau_push):
  a, b, c = head_of(head, z_p), head_of(head, z_g), head_of(head, z)
  near = jnp.exp(tau_pull * similarity(a, b))
  far = jnp.exp(tau_push * similarity(a, c))
  return jnp.mean(-jnp.log(near / (near + far)))


def cross_entropy(logits, targets):
  log_shares = logits - jnp.log(jnp.sum(jnp.exp(logits), 1, keepdims=True))
  return -jnp.mean(jnp.sum(targets * log_shares, axis=1))


def ascended(params, anchor, inputs, shared, settings):
  """The projection after the max step, everything else held."""
  model, head = params['model'], params['projection']
  z, z_p = features(model, inputs), features(model, shared)
  z_g = features(anchor['model'], shared)
  gradient = jax.grad(contrast)(
    head, z_p, z_g, z, settings['tau_pull'], settings['tau_push']
  )
  step = settings['ascent_step_size']
  return jax.tree.map(lambda p, g: p + step * g, head, gradient)


def objective(model, head, anchor, batch, shared, targets, settings):
  """J, for a projection that is given."""
  inputs, labels = batch
  z, z_p = features(model, inputs), features(model, shared)
  z_g = features(anchor['model'], shared)
  taus = settings['tau_pull'], settings['tau_push']
  return (
    cross_entropy(classify(model, z), jax.nn.one_hot(labels, CLASSES))
    + settings['contrast_weight'] * contrast(head, z_p, z_g, z, *taus)
    + settings['pseudo_weight'] * cross_entropy(classify(model, z_p), targets)
  )


def step(params, anchor, batch, shared, targets, settings):
  """One local step with SGD, its learning rate that of the max step."""
  head = ascended(params, anchor, batch[0], shared, settings)
  gradient = jax.grad(objective)(
    params['model'], head, anchor, batch, shared, targets, settings
  )
  model = jax.tree.map(
    lambda p, g: p - settings['ascent_step_size'] * g, params['model'], gradient
  )
  return {'model': model, 'projection': head}


def uniform():
  return jnp.full((B, CLASSES), 1 / CLASSES)
