"""Small networks, and their losses in NumPy, for tests of landscapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def network(sizes, seed, scale=1.0):
  """Layers with biases that are not zero, float64 if that is on."""
  random = np.random.default_rng(seed)
  return tuple(
    (
      jnp.asarray(scale * random.normal(size=(a, b)) / np.sqrt(a)),
      jnp.asarray(0.3 * random.normal(size=b)),
    )
    for a, b in zip(sizes[:-1], sizes[1:])
  )


def apply(layers, x, activation=lambda x: jnp.maximum(x, 0)):
  for kernel, bias in layers[:-1]:
    x = activation(x @ kernel + bias[None])
  kernel, bias = layers[-1]
  return x @ kernel + bias[None]


def examples(sizes, count=20, seed=9):
  random = np.random.default_rng(seed)
  x = random.normal(size=(count, sizes[0]))
  return jnp.asarray(x), jnp.asarray(random.integers(0, sizes[-1], count))


def cross_entropy(layers, batch, activation=lambda x: jnp.maximum(x, 0)):
  logits = apply(layers, batch[0], activation)
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, batch[1]
  ).mean()


def squared_error(layers, batch, activation=jnp.tanh):
  outputs = apply(layers, batch[0], activation)
  targets = jnp.eye(outputs.shape[1])[batch[1]]
  return jnp.sum(jnp.square(outputs - targets), axis=1).mean()


def dropped_output(layers, keep, x):
  """Without the other units: loops over units, float64 NumPy and ReLU."""
  layers = jax.tree.map(np.asarray, layers)
  out = np.zeros((len(x), layers[-1][0].shape[1]))
  for row, example in enumerate(np.asarray(x, np.float64)):
    values, units, factor = example, range(len(example)), 1.0
    for number, (kernel, bias) in enumerate(layers):
      is_last = number == len(layers) - 1
      above = range(len(bias)) if is_last else np.asarray(keep[number])
      sums = {}
      for j in above:
        total = float(bias[j])
        for i in units:
          total += factor * values[i] * float(kernel[i, j])
        sums[j] = total if is_last else max(total, 0.0)
      values, units, factor = sums, above, len(bias) / len(above)
    out[row] = [values[j] for j in range(out.shape[1])]
  return out


def loss_of(name, layers, batch):
  """`cross_entropy` or `squared_error` in NumPy."""
  x, labels = map(np.asarray, batch)
  for kernel, bias in layers[:-1]:
    x = x @ kernel + bias
    x = np.maximum(x, 0) if name == 'cross_entropy' else np.tanh(x)
  outputs = x @ layers[-1][0] + layers[-1][1]
  if name == 'cross_entropy':
    return cross_entropy_of(outputs, labels)
  targets = np.eye(outputs.shape[1])[labels]
  return np.square(outputs - targets).sum(axis=1).mean()


def cross_entropy_of(logits, labels):
  """In NumPy."""
  shifted = logits - logits.max(axis=1, keepdims=True)
  logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  return -logs[np.arange(len(labels)), np.asarray(labels)].mean()
