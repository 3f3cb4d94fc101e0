"""Target projection in loops over layers, steps and examples, in NumPy."""

import numpy as np

C = 3  # classes


def random(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape)


def projection(key, shape, dtype):
  """P^T, a function of its shape alone, where `jax.random` would draw."""
  del key
  return np.asarray(random(*shape, seed=1), dtype)


def error(residual, column, y):
  """e of one example, from the column of P that belongs to its label."""
  if residual == 'l2':
    return column - y
  if residual == 'l1':
    return np.sign(column - y)
  return column


def softmax_error(logits, label):
  """Minus the derivative of the cross entropy by the logits."""
  shares = np.exp(logits - logits.max())
  return np.eye(len(logits))[label] - shares / shares.sum()


def perceptron(layers, x, labels, residual, scale):
  """Gradients `[(W, b), ...]` of dense layers with tanh; the last is linear.

  All activations first, and then the layers in any order.
  """
  gradients = [(np.zeros_like(w), np.zeros_like(b)) for w, b in layers]
  for example, label in zip(x, labels):
    hidden = [example]
    for w, b in layers[:-1]:
      hidden.append(np.tanh(hidden[-1] @ w + b))
    for i in reversed(range(len(layers))):
      w, b = layers[i]
      if i == len(layers) - 1:
        delta = softmax_error(hidden[i] @ w + b, label)
      else:
        y = hidden[i + 1]
        column = scale * projection(None, (C, len(y)), float)[label]
        delta = error(residual, column, y) * (1 - y**2)
      gradients[i][0][...] -= np.outer(hidden[i], delta) / len(x)
      gradients[i][1][...] -= delta / len(x)
  return gradients


def recurrent(
  layers,
  output,
  x,
  labels,
  residual,
  scale,
  last_step=(False, False),
  through_time=(False, False),
):
  """Gradients `[(W, U, b), ...]` of recurrent layers, and (W, b) of the last.

  The loops are over layers outside and steps inside: forwards for the states,
  backwards for what a state hears of the later states of its layer.
  """
  gradients = [tuple(np.zeros_like(a) for a in layer) for layer in layers]
  last = tuple(np.zeros_like(a) for a in output)
  for example, label in zip(x, labels):
    inputs = example
    for i, ((w, u, b), (dw, du, db)) in enumerate(zip(layers, gradients)):
      column = scale * projection(None, (C, len(b)), float)[label]
      states = [np.zeros(len(b))]
      for x_t in inputs:
        states.append(np.tanh(x_t @ w + states[-1] @ u + b))
      heard = np.zeros(len(b))
      for t in reversed(range(len(inputs))):
        h, y = states[t : t + 2]
        has_target = t == len(inputs) - 1 or not last_step[i]
        e = error(residual, column, y) if has_target else 0
        delta = (e + heard) * (1 - y**2)
        dw -= np.outer(inputs[t], delta) / len(x)
        du -= np.outer(h, delta) / len(x)
        db -= delta / len(x)
        if through_time[i]:
          heard = u @ delta
      inputs = states[1:]
    delta = softmax_error(inputs[-1] @ output[0] + output[1], label)
    last[0][...] -= np.outer(inputs[-1], delta) / len(x)
    last[1][...] -= delta / len(x)
  return gradients, last


def kernel_gradient(x, delta, size):
  """Of a convolution with SAME padding: `sum x[p + i, q + j] delta[p, q]`."""
  pad = size // 2
  x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
  height, width = delta.shape[1:3]
  gradient = np.zeros((size, size, x.shape[-1], delta.shape[-1]))
  for i in range(size):
    for j in range(size):
      window = x[:, i : i + height, j : j + width]
      gradient[i, j] = np.einsum('bpqc,bpqo->co', window, delta)
  return gradient
