"""Data, training by gradients, and attacks on test inputs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import convex, data, objectives


class Split(NamedTuple):
  """Two classes, as -1 and 1; pixels are from 0 to 1, then a column of ones."""

  x: jax.Array
  y: jax.Array
  test_x: jax.Array
  test_y: jax.Array


def two_classes(
  dataset: data.Dataset, classes: tuple[int, int], size: int, pool: int
) -> Split:
  """The first examples of both classes, pixels averaged over squares."""

  def prepare(images, labels, limit):
    chosen = np.flatnonzero(np.isin(labels, classes))[:limit]
    x = images[chosen].astype(np.float64).mean(axis=-1) / dataset.scale
    n, height, width = x.shape
    x = x.reshape(n, height // pool, pool, width // pool, pool).mean((2, 4))
    y = np.where(labels[chosen] == classes[0], -1.0, 1.0)
    ones = np.ones((n, 1))
    return jnp.array(np.c_[x.reshape(n, -1), ones]), jnp.array(y)

  return Split(
    *prepare(dataset.train_images, dataset.train_labels, size),
    *prepare(dataset.test_images, dataset.test_labels, None),
  )


def toy(n: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Points of the plane in two classes at alternate corners of a square."""
  corners = jnp.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
  which = jnp.arange(n) % 4
  noise = jax.random.uniform(key, (n, 2), minval=-0.6, maxval=0.6)
  x = jnp.concatenate([corners[which] + noise, jnp.ones((n, 1))], axis=1)
  return x, jnp.where(which < 2, 1.0, -1.0)


def patterns(x, num_samples, key, *, epsilon=0.0, num_perturbations=0):
  """Sampled arrangements, and the one of the bias: active everywhere."""
  drawn = convex.sample_arrangements(
    x, num_samples, key, epsilon=epsilon, num_perturbations=num_perturbations
  )
  return np.unique(np.concatenate([np.ones((1, len(x)), bool), drawn]), axis=0)


def sides(x, epsilon):
  """How far each column may move: the ones stay."""
  return jnp.full(x.shape[1], epsilon).at[-1].set(0.0)


def moved(network, x, y, *, epsilon, num_steps):
  """Inputs moved by PGD on the margin; one step of full size is FGSM."""
  movable = jnp.ones(x.shape[1]).at[-1].set(0.0)[None]

  def loss_fn(network, batch):
    inputs = x + movable * (batch[0] - x)
    # Of the margin: a hinge has no slope where the margin is wide.
    return -jnp.mean(batch[1] * convex.network_outputs(network, inputs))

  step_size = epsilon if num_steps == 1 else epsilon / 4
  worst = objectives.pgd_inputs(
    loss_fn, network, (x, y), epsilon=epsilon, step_size=step_size,
    num_steps=num_steps,
  )  # fmt: skip
  return x + movable * (worst - x)


def accuracy(network, x, y):
  """In percent."""
  return 100 * jnp.mean((convex.network_outputs(network, x) * y) > 0)


def attacked_accuracies(network, x, y, epsilon):
  return {
    'clean': accuracy(network, x, y),
    'fgsm': accuracy(
      network, moved(network, x, y, epsilon=epsilon, num_steps=1), y
    ),
    'pgd': accuracy(
      network, moved(network, x, y, epsilon=epsilon, num_steps=20), y
    ),
  }


def by_gradients(
  x, y, key, rate, *, loss, beta, num_units, num_steps, momentum=None,
  batch_size=None, epsilon=0.0,
) -> convex.Network:  # fmt: skip
  """Adam, or SGD with momentum, on the objective of the network.

  With an epsilon on inputs moved by ten steps of PGD. The rate falls to zero.
  """
  schedule = optax.linear_schedule(rate, 0.0, num_steps)
  optimizer = optax.adam(schedule)
  if momentum is not None:
    optimizer = optax.sgd(schedule, momentum)
  first, second, draws = jax.random.split(key, 3)
  d = x.shape[1]
  network = convex.Network(
    jax.random.normal(first, (d, num_units)) / jnp.sqrt(d),
    jax.random.normal(second, (num_units,)) / jnp.sqrt(num_units),
  )

  def objective(network, x, y):
    # Of a part of the examples, scaled up to all; hinge is a mean anyway.
    scale = 1.0 if loss == 'hinge' else len(all_y) / len(y)
    fitted = convex.network_objective(network, x, y, beta=0.0, loss=loss)
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in network)
    return scale * fitted + beta / 2 * squares

  all_x, all_y = x, y

  def step(k, carry):
    network, state = carry
    x, y = all_x, all_y
    if batch_size is not None:
      chosen = jax.random.choice(
        jax.random.fold_in(draws, k), len(all_y), (batch_size,)
      )
      x, y = x[chosen], y[chosen]
    if epsilon:
      x = moved(network, x, y, epsilon=epsilon, num_steps=10)
    gradient = jax.grad(objective)(network, x, y)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(network, updates), state

  carry = (network, optimizer.init(network))
  return jax.lax.fori_loop(0, num_steps, step, carry)[0]
