"""Data and networks of the study: trained, attacked and measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import convex, data, objectives

ATTACKS = {
  'none': None,
  'sign flip': byzjax.sign_flip(scale=3.0),
  'alie': byzjax.alie(z=1.5),
}
RULES = {
  'mean': lambda f: byzjax.mean(),
  'geometric median': lambda f: byzjax.geometric_median(),
  'trimmed mean': lambda f: byzjax.trimmed_mean(num_byzantine=f),
  'nnm, geometric median': lambda f: byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f), byzjax.geometric_median()
  ),
}
Examples = tuple[jax.Array, jax.Array]
EARLY = (10, 40, 100)  # iterations after which a network is tested
AFTER = tuple(f'after {k}' for k in (*EARLY, 'end'))


def two_classes(
  dataset: data.Dataset, classes: tuple[int, int], size: int, pool: int
) -> tuple[Examples, Examples]:
  """The first examples of both classes, for training; and all for testing.

  Pixels are averaged over squares, and from 0 to 1, before a column of ones;
  classes are -1 and 1.
  """

  def prepare(images, labels, limit):
    chosen = np.flatnonzero(np.isin(labels, classes))[:limit]
    x = images[chosen].astype(np.float64).mean(axis=-1) / dataset.scale
    n, height, width = x.shape
    x = x.reshape(n, height // pool, pool, width // pool, pool).mean((2, 4))
    y = np.where(labels[chosen] == classes[0], -1.0, 1.0)
    ones = np.ones((n, 1))
    return jnp.array(np.c_[x.reshape(n, -1), ones]), jnp.array(y)

  return (
    prepare(dataset.train_images, dataset.train_labels, size),
    prepare(dataset.test_images, dataset.test_labels, None),
  )


def toy(n: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Points of the plane in two classes at alternate corners of a square."""
  corners = jnp.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
  which = jnp.arange(n) % 4
  noise = jax.random.uniform(key, (n, 2), minval=-0.6, maxval=0.6)
  x = jnp.concatenate([corners[which] + noise, jnp.ones((n, 1))], axis=1)
  return x, jnp.where(which < 2, 1.0, -1.0)


def patterns(x, num_samples, key, **options):
  """Sampled arrangements, and the one of the bias: active everywhere."""
  drawn = convex.sample_arrangements(x, num_samples, key, **options)
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


def descended(
  x, y, seed, rates, *, loss, beta, epsilon=0.0, attack_steps=10, **options
) -> convex.Network:  # fmt: skip
  """By gradients, at the rate with the least objective in training."""

  def at(rate):
    return by_gradients(
      x, y, jax.random.key(seed), rate, loss=loss, beta=beta, epsilon=epsilon,
      attack_steps=attack_steps, **options,
    )  # fmt: skip

  def value(network):
    inputs = x
    if epsilon:
      inputs = moved(network, x, y, epsilon=epsilon, num_steps=attack_steps)
    return convex.network_objective(network, inputs, y, beta=beta, loss=loss)

  networks = jax.jit(jax.vmap(at))(rates)
  best = jnp.nanargmin(jax.vmap(value)(networks))
  return jax.tree.map(lambda leaf: leaf[best], networks)


def by_gradients(
  x, y, key, rate, *, loss, beta, num_units, num_steps, momentum=None,
  batch_size=None, epsilon=0.0, attack_steps=10,
) -> convex.Network:  # fmt: skip
  """Adam, or SGD with momentum, on the objective of the network.

  With an epsilon on inputs moved by PGD; one step of it is FGSM. The rate falls
  to zero.
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
      x = moved(network, x, y, epsilon=epsilon, num_steps=attack_steps)
    gradient = jax.grad(objective)(network, x, y)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(network, updates), state

  carry = (network, optimizer.init(network))
  return jax.lax.fori_loop(0, num_steps, step, carry)[0]


@functools.cache
def split(settings) -> tuple[Examples, Examples]:
  return two_classes(
    data.load(settings.dataset, settings.data_dir),
    settings.classes,
    settings.num_examples,
    settings.pool,
  )


def train(settings, part: str, method: str, seed: int) -> dict:
  """On the squared loss; in the plane the data are the same for all seeds."""
  key, more, beta = jax.random.key(seed), {}, settings.beta
  num_samples, num_iterations = settings.num_samples, settings.num_iterations
  if part == 'plane':
    x, y = test = toy(20, jax.random.key(0))
    beta = settings.plane_beta
    num_samples, num_iterations = settings.plane_samples, 3 * num_iterations
  else:
    (x, y), test = split(settings)
  descend = functools.partial(
    descended, x, y, seed, loss='squared', beta=beta,
    num_units=2 * settings.num_samples, num_steps=settings.num_steps,
  )  # fmt: skip
  rates = jnp.array(settings.rates)
  if method == 'sampled':
    vectors = jax.random.normal(key, (settings.num_examples, x.shape[1]))
    solution, _ = convex.sampled_program(
      x, y, vectors, beta=beta, rho=1.0, dual_ratio=1.6,
      num_iterations=num_iterations, record_every=num_iterations,
    )  # fmt: skip
    network = convex.sampled_network(solution.weights, vectors)
  elif method == 'sgd':
    network = descend(0.1 * rates, momentum=0.9, batch_size=32)
  elif method == 'adam':
    network = descend(rates)
  else:
    active = patterns(x, num_samples, key)
    if method == 'adam, then convex':
      hidden = descend(rates).hidden
      active = np.unique(convex.arrangements(x, hidden.T), axis=0)
    state, done = None, 0
    for name, stop in zip(AFTER, (*EARLY, num_iterations)):
      state, history = convex.admm(
        x, y, active, beta=beta, rho=0.1, dual_ratio=1.6,
        num_iterations=stop - done, record_every=stop - done, state=state,
      )  # fmt: skip
      network, done = convex.recover_network(state.blocks), stop
      more[name] = accuracy(network, *test)
    more |= {
      'patterns': len(active),
      'program': history.objective[-1],
      'violation': history.violation[-1],
    }
  return more | {
    'objective': convex.network_objective(network, x, y, beta=beta),
    'accuracy': accuracy(network, *test),
  }


def boxed(settings, part: str, method: str, seed: int) -> dict:
  """On the hinge loss, with inputs in a box; units that the picture needs."""
  key = jax.random.key(seed)
  if part == 'toy':
    x, y = toy(40, jax.random.fold_in(key, 0))
    test = toy(400, jax.random.fold_in(key, 1))
    epsilon = settings.toy_epsilon
  else:
    (x, y), test = split(settings)
    epsilon = settings.epsilon
  if method.startswith('sgd'):
    network = descended(
      x, y, seed, jnp.array(settings.rates), loss='hinge',
      beta=settings.hinge_beta, num_units=2 * settings.num_samples,
      num_steps=settings.num_steps, momentum=0.9, batch_size=32,
      epsilon=epsilon if method.endswith('pgd') else 0.0,
    )  # fmt: skip
  else:
    active = patterns(
      x, settings.num_samples // 2, key, epsilon=sides(x, epsilon),
      num_perturbations=1,
    )  # fmt: skip
    held = epsilon if method.endswith('robust') else 0.0
    num_iterations = settings.num_iterations // 2
    state, _ = convex.robust_admm(
      x, y, active, beta=settings.hinge_beta, rho=0.003, dual_ratio=1.6,
      epsilon=sides(x, held), num_iterations=num_iterations,
      record_every=num_iterations,
    )  # fmt: skip
    network = convex.recover_network(state.blocks)
  hidden, output = network
  weight = jnp.linalg.norm(hidden, axis=0) * jnp.abs(output)
  bent = (weight > 0) & ~(x @ hidden > 0).all(axis=0)
  found = attacked_accuracies(network, *test, epsilon)
  found |= {'units': (weight > 0).sum(), 'bent': bent.sum()}
  if part == 'toy' and seed == 0:  # Units that can be seen in a picture.
    drawn = weight > 0.01 * weight.max()
    found['drawn'] = jnp.vstack([hidden, output])[:, drawn].T
  return found


@functools.cache
def of_workers(settings, seed: int):
  """Examples of workers, directions of units, the value at the optimum."""
  ((x, y), _), n = split(settings), settings.num_workers
  order = jax.random.permutation(jax.random.key(seed), len(y))
  order = order[: len(order) // n * n].reshape(n, -1)
  x, y = x[order], y[order]
  flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1)
  vectors = jax.random.normal(
    jax.random.key(seed), (settings.num_samples // 4, x.shape[-1])
  )
  # The unit of the bias: all examples are active.
  vectors = jnp.concatenate([vectors, jnp.eye(x.shape[-1])[-1:]])
  optimum, _ = convex.admm(
    flat_x, flat_y, convex.arrangements(flat_x, vectors),
    beta=settings.workers_beta, rho=1.0, dual_ratio=1.6,
    num_iterations=settings.num_iterations,
    record_every=settings.num_iterations,
  )  # fmt: skip

  def value(network):
    return convex.network_objective(
      network, flat_x, flat_y, beta=settings.workers_beta
    )

  return x, y, vectors, value, value(convex.recover_network(optimum.blocks))


def share(settings, rule: str, attack: str, seed: int) -> dict:
  """By workers, on the squared loss: the value over that of the optimum."""
  x, y, vectors, value, least = of_workers(settings, seed)
  num_iterations = settings.num_iterations // 4
  state, history = convex.consensus_admm(
    x, y, jax.vmap(convex.arrangements, (0, None))(x, vectors),
    beta=settings.workers_beta, rho=1.0, num_iterations=num_iterations,
    record_every=num_iterations,
    aggregator=RULES[rule](settings.num_byzantine), attack=ATTACKS[attack],
    byzantine=settings.num_byzantine if ATTACKS[attack] else 0,
  )  # fmt: skip
  network = convex.recover_network(state.blocks)
  return {
    'accuracy': accuracy(network, *split(settings)[1]),
    'excess': 100 * (value(network) / least - 1),
    'residual': history.primal_residual[-1],
  }
