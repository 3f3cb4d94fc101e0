"""Empirical kappa: the worst messages that a search finds for a rule."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, reductions
from byzjax.attacks import _ascent

# V counts as at least this share of the larger of one and the largest squared
# honest norm: what is smaller may be rounding.
_LEAST_VARIANCE = 1e-6
# Placements compete with those that started next to them.
_ISLAND = 16


class EmpiricalKappa(NamedTuple):
  """The worst messages that a search found for a rule.

  Attributes:
    kappa: float[], the largest ratio found.
    messages: float[n, d], at which it is attained.
    is_honest: bool[n], the set S of n - f messages.
  """

  kappa: jax.Array
  messages: jax.Array
  is_honest: jax.Array


class Placement(NamedTuple):
  """Messages, who of them is honest, the key for the rule, and the ratio."""

  rows: jax.Array
  is_honest: jax.Array
  key: jax.Array
  value: jax.Array


# `(rows [n, d], is_honest [n], key) -> float[]`
Ratio = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def ratio_of(aggregator: base.Aggregator) -> Ratio:
  """`|aggregate - xbar|^2 / V`, xbar and V over the honest messages.

  V counts as no less than what rounding may add, and the rule is in its first
  state.
  """

  def ratio(rows, is_honest, key):
    state = aggregator.init(jnp.zeros_like(rows[0]))
    aggregate, _ = aggregator.update(rows, state, key=key)
    shares = reductions.shares(is_honest).astype(rows.dtype)
    mean = reductions.matmul(shares, rows)
    variance = shares @ jnp.square(rows - mean[None]).sum(axis=1)
    norms = jnp.where(is_honest, jnp.square(rows).sum(axis=1), 0)
    least = jax.lax.stop_gradient(jnp.maximum(norms.max(), 1))
    variance = jnp.maximum(variance, _LEAST_VARIANCE * least)
    return jnp.square(aggregate - mean).sum() / variance

  return ratio


def empirical_kappa(
  aggregator: base.Aggregator,
  *,
  num_workers: int,
  num_byzantine: int,
  num_coordinates: int = 3,
  num_draws: int = 256,
  num_steps: int = 500,
  key: jax.Array,
) -> EmpiricalKappa:
  """An empirical lower bound on kappa: the worst ratio found by a search.

  The search maximises `|F(x) - xbar_S|^2 / V_S` with `V_S = (1/|S|) sum_{i in
  S} |x_i - xbar_S|^2`. A rule F is (f, kappa)-robust if this ratio is at most
  kappa for all messages and all S of n - f of them; compare the result with the
  upper bound `byzjax.theory.kappa_bound`.

  Each draw starts from messages of one kind: Gaussian, a few points shared by
  many messages, or equally spaced on a line; Byzantine ones of the same kind,
  all equal, copies, or far away. Then all n messages move, honest ones too:
  first along the gradient of the ratio through the rule, then by random steps,
  because rules that select messages jump where the gradient is blind. The first
  f rows are Byzantine in half of the draws and random rows in the other half,
  because ties go to low indices. The search is one compiled program.

  The messages are of size about one, and V is bounded below by 1e-6 of their
  largest square, so that rounding does not count as an error. A rule without
  any kappa shows up as a value of about 1e6.

  Args:
    aggregator: the rule; a rule with state is used in its initial state.
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    num_coordinates: d, a Python int >= 1.
    num_draws: number of starts, a Python int >= 1.
    num_steps: steps of each kind, a Python int >= 0; 0: only the starts.
    key: for the search, and for rules that need a key; not traced.

  Returns:
    An `EmpiricalKappa`: the ratio, float[], and the messages, float[n, d], and
    the set, bool[n], at which it is attained.

  Raises:
    ValueError: if an argument is not an int in its range, or the rule raises.

  References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2023,
    arXiv:2302.01772, for kappa.

  Example:
    >>> import byzjax, jax
    >>> worst = byzjax.analysis.empirical_kappa(
    ...   byzjax.trimmed_mean(num_byzantine=1), num_workers=5, num_byzantine=1,
    ...   num_draws=32, num_steps=20, key=jax.random.key(0))
    >>> print(f'{worst.kappa:.3f}')
    0.333
  """
  name, n = 'empirical_kappa', num_workers
  checks.check_count(name, 'num_workers', n, 1)
  checks.check_count(name, 'num_byzantine', num_byzantine)
  checks.check_majority(name, n, num_byzantine)
  checks.check_count(name, 'num_coordinates', num_coordinates, 1)
  checks.check_kind(name, 'aggregator', aggregator, base.Aggregator)
  checks.check_key(name, 'key', key)
  checks.check_count(name, 'num_draws', num_draws, 1)
  checks.check_count(name, 'num_steps', num_steps)
  random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
  draws = [
    start(random, i, n, num_byzantine, num_coordinates)
    for i in range(num_draws)
  ]
  rows, is_honest, step_sizes = (np.stack(parts) for parts in zip(*draws))
  # The cheap kind of key, for steps that need not be the best random numbers.
  climb_key = jax.random.key(random.integers(2**31), impl='rbg')
  rule_keys = jax.random.split(key, num_draws)
  placed = (rows, is_honest, step_sizes, rule_keys)
  return _search(aggregator, num_steps, placed, climb_key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(aggregator, num_steps, placed, key):
  ratio = ratio_of(aggregator)

  def ascend(rows, is_honest, step_size, key):
    rows, value = _ascent.ascend(
      _ascent.slope_of(lambda rows: ratio(rows, is_honest, key)),
      rows,
      num_steps=num_steps,
      step_size=step_size,
      movable=jnp.ones_like(is_honest),
    )
    return Placement(rows, is_honest, key, value)

  climbed = climb(ratio, jax.vmap(ascend)(*placed), key, num_steps)
  best = jnp.argmax(climbed.value)
  return EmpiricalKappa(
    climbed.value[best], climbed.rows[best], climbed.is_honest[best]
  )


def start(
  random: np.random.Generator, index: int, n: int, f: int, d: int
) -> tuple[np.ndarray, np.ndarray, float]:
  """Messages [n, d] to start from, who of them is honest, and a step size."""
  is_byzantine = np.arange(n) < f
  direction = random.normal(size=(1, d))
  direction /= np.linalg.norm(direction)
  points = random.normal(size=(3, d))
  rows = (
    random.normal(size=(n, d)),
    random.integers(-2, 3, size=(n, 1)) * direction,
    points[random.integers(0, 3, size=n)],
    points[random.integers(0, 2, size=n)],
  )[index % 4]
  byzantine = (
    rows,
    rows[np.full(n, random.integers(n))],
    rows[random.integers(0, n, size=n)],
    rows + 10 ** random.uniform(0, 3) * direction,
  )[index // 4 % 4]
  rows = np.where(is_byzantine[:, None], byzantine, rows)
  # Off the origin too, for rules to which that matters.
  rows = rows + (index // 16 % 2) * points[:1]
  order = random.permutation(n) if index // 32 % 2 else np.arange(n)
  return rows[order], ~is_byzantine[order], 10 ** random.uniform(-2, 0)


def climb(
  ratio: Ratio, placements: Placement, key: jax.Array, num_steps: int
) -> Placement:
  """Random steps uphill, for what a gradient does not see: where rules jump.

  Every placement moves some of its rows by a random length, and back unless
  that is better. From time to time the better half of an island takes the place
  of the other. Leaves of `placements` are `[num_placements, ...]`.
  """
  num_placements, n, d = placements.rows.shape
  index = jnp.arange(num_placements)
  island = index // _ISLAND

  def step(placements, t):
    noise = jax.random.normal(
      jax.random.fold_in(key, t), (num_placements, n, d + 2)
    )
    lengths = 10 ** (noise[:, :1, d + 1 :] - 1.75)
    moves = jnp.where(noise[..., d : d + 1] > 0, noise[..., :d], 0)
    rows = placements.rows + lengths * moves
    values = jax.vmap(ratio)(rows, placements.is_honest, placements.key)
    better = values > placements.value  # False for NaN
    placements = placements._replace(
      rows=jnp.where(better[:, None, None], rows, placements.rows),
      value=jnp.where(better, values, placements.value),
    )
    order = jnp.lexsort((-placements.value, island))
    order = order[island * _ISLAND + index % _ISLAND // 2]
    kept = jnp.where(t % 32 == 31, order, index)
    return jax.tree.map(lambda x: x[kept], placements), None

  return jax.lax.scan(step, placements, jnp.arange(num_steps))[0]
