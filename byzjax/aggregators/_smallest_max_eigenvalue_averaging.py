"""Smallest maximum eigenvalue averaging: the subset of least covariance."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, recipes, reductions, rules, spectral

# Subsets whose bounds are computed at once: what fits a core's cache.
_BLOCK = 4096
# Subsets whose eigenvalues are computed at once.
_CHUNK = 32
# Of the lower bounds: after 8, few subsets of 11 messages are in doubt.
_LANCZOS_STEPS = 8
# Values closer than this many roundings are equal.
_TIE = 64


def subset_of_rank(ranks: jax.Array, n: int, size: int) -> jax.Array:
  """The subsets of `size` of n things that have these lexicographic ranks.

  Args:
    ranks: int32[...], below the binomial coefficient C(n, size).
    n: a Python int.
    size: a Python int.

  Returns:
    bool[..., n].
  """
  # Entries beyond the dtype belong to no rank.
  largest = np.iinfo(np.int32).max
  counts = jnp.array(
    [
      [min(math.comb(i, k), largest) for k in range(size)]
      for i in reversed(range(n))
    ],
    jnp.int32,
  )

  # Of the subsets that agree below i, those with i in them come first.
  def decide(carry, counts):
    ranks, missing = carry
    with_i = jnp.where(missing > 0, counts[missing - 1], 0)
    is_in = ranks < with_i
    return (jnp.where(is_in, ranks, ranks - with_i), missing - is_in), is_in

  start = (ranks, jnp.full_like(ranks, size))
  _, members = jax.lax.scan(decide, start, counts)
  return jnp.moveaxis(members, 0, -1)


def _centered(vectors, subsets, size):
  """Rows `[b, n]` restricted to their subsets, minus their mean there."""
  mean = jnp.sum(vectors * subsets, axis=1, keepdims=True) / size
  return subsets * (vectors - mean)


def lower_bounds(inner: jax.Array, subsets: jax.Array, size: int) -> jax.Array:
  """What the top eigenvalues of the scatter matrices are at least.

  The top eigenvalue of the tridiagonal matrix T of a few Lanczos steps, which
  is close, costs one n x n product per step, and never exceeds the true one by
  more than rounding.

  Args:
    inner: float[n, n], the Gram matrix around any point.
    subsets: float[b, n], ones for the members of each subset, zeros else.
    size: how many members they have, a Python int.

  Returns:
    float[b].
  """

  def rowdot(x, y):
    return jnp.sum(x * y, axis=1)

  def unit(x):
    norms = reductions.sqrt(rowdot(x, x))
    return x / jnp.where(norms > 0, norms, 1)[:, None], norms

  n = inner.shape[0]
  diagonal = reductions.matmul(subsets, jnp.diagonal(inner)[:, None])[:, 0]
  total = rowdot(reductions.matmul(subsets, inner), subsets)
  trace = diagonal - total / size
  trace = jnp.where(trace > 0, trace, jnp.inf)

  def product(v):
    return _centered(
      reductions.matmul(v, inner) / trace[:, None], subsets, size
    )

  def step(carry, _):
    before, v, beta = carry
    w = product(v)
    alpha = rowdot(w, v)
    w = w - alpha[:, None] * v - beta[:, None] * before
    after, next_beta = unit(_centered(w, subsets, size))
    return (v, after, next_beta), (alpha, beta)

  start = jnp.cos(jnp.arange(1, n + 1, dtype=inner.dtype))  # any vector
  v, _ = unit(product(_centered(start[None], subsets, size)))
  _, (alphas, betas) = jax.lax.scan(
    step,
    (jnp.zeros_like(v), v, jnp.zeros_like(trace)),
    length=min(size - 1, _LANCZOS_STEPS),
  )

  # Bisection: T is less than mu if all pivots of T - mu are negative.
  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    is_less, pivot = True, -jnp.ones_like(middle)
    for alpha, beta in zip(alphas, betas):
      pivot = alpha - middle - beta**2 / pivot
      is_less &= pivot < 0
      pivot = jnp.where(pivot < 0, pivot, -1)
    return jnp.where(is_less, low, middle), jnp.where(is_less, middle, high)

  steps = -jnp.finfo(inner.dtype).machep
  zero = jnp.zeros_like(trace)
  low, _ = jax.lax.fori_loop(0, steps, halve, (zero, zero + 1))
  return jnp.where(trace < jnp.inf, low * trace, 0)


def _eigenvalues(inner, subsets, size):
  """The top eigenvalue of the scatter matrix of each subset: float[b]."""

  def scatter(subset):
    rows = reductions.matmul(inner, subset) / size
    mean = reductions.matmul(subset, rows) / size
    centered = inner - rows[:, None] - rows[None] + mean
    return centered * subset[:, None] * subset[None]

  return jax.vmap(lambda s: spectral.top_eigenpair(scatter(s))[0])(subsets)


def least_scatter_subset(
  inner: jax.Array, mask: jax.Array, size: int
) -> jax.Array:
  """The subset of `size` whose covariance has the least top eigenvalue.

  Args:
    inner: float[n, n], the Gram matrix around any point.
    mask: bool[n], what may be chosen; all of it is if there is no more.
    size: a Python int.

  Returns:
    bool[n].
  """
  n, count = mask.shape[0], math.comb(mask.shape[0], size)
  num_blocks = -(-count // _BLOCK)
  block = -(-count // num_blocks)

  def bounds_of_block(i):
    subsets = subset_of_rank(i * block + jnp.arange(block), n, size)
    bounds = lower_bounds(inner, subsets.astype(inner.dtype), size)
    return jnp.where(jnp.any(subsets & ~mask[None], axis=1), jnp.inf, bounds)

  bounds = jax.lax.map(bounds_of_block, jnp.arange(num_blocks)).reshape(-1)
  padding = -count % _CHUNK
  bounds = jnp.pad(bounds[:count], (0, padding), constant_values=jnp.inf)
  order = jnp.argsort(bounds, stable=True)
  bounds = bounds[order]
  tie = 1 + _TIE * jnp.finfo(inner.dtype).eps

  # In the order of their bounds, until none is below the least value.
  def is_open(carry):
    start, values = carry
    limit = jnp.min(values) * tie**2
    return (start < len(bounds)) & (bounds[start] < limit)

  def evaluate(carry):
    start, values = carry
    ranks = jax.lax.dynamic_slice_in_dim(order, start, _CHUNK)
    subsets = subset_of_rank(ranks, n, size).astype(inner.dtype)
    found = jnp.maximum(_eigenvalues(inner, subsets, size), 0)
    usable = jax.lax.dynamic_slice_in_dim(bounds, start, _CHUNK) < jnp.inf
    found = jnp.where(usable, found, jnp.inf)
    return start + _CHUNK, values.at[ranks].set(found)

  values = jnp.full_like(bounds, jnp.inf)
  _, values = jax.lax.while_loop(is_open, evaluate, (0, values))
  best = jnp.argmax(values <= jnp.min(values) * tie)
  return jnp.where(mask.sum() > size, subset_of_rank(best, n, size), mask)


@recipes.factory
def smallest_max_eigenvalue_averaging(
  *, num_byzantine: int, max_subsets: int = 200_000
) -> base.Aggregator:
  """The mean of the n - f messages with the smallest covariance norm (SMEA).

  `aggregate = mean of x_i over S`, where S is the subset of n - f messages
  whose covariance has the smallest maximum eigenvalue. Eigenvalues within 64
  units of rounding of the smallest count as equal, and of such subsets the
  first in lexicographic order is taken.

  All C(n, f) subsets are examined, in Gram space: first a lower bound for each,
  by 8 Lanczos steps, then eigenvalues in the order of the bounds until no
  remaining bound is below the smallest eigenvalue found. For typical messages
  that takes a few dozen eigenvalues; if all subsets are alike it takes all of
  them, and is 20 times slower. `max_subsets` limits the number of subsets.

  Implementations differ in the eigenvalue: ByzFL takes one power step from a
  random start, which often selects another subset; ByzPy's is exact, as here.

  Masked (non-finite) messages are never chosen; with fewer than n - f others
  the mean is over those.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    max_subsets: raise an error if there are more subsets, a Python int >= 1;
      200,000 take about 0.3 seconds on a CPU.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports which messages were kept.

  Raises:
    ValueError: if an argument is not an int in its range; at trace time if `n
      <= 2f` or C(n, f) exceeds `max_subsets`.

  References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2023,
    arXiv:2302.01772.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.smallest_max_eigenvalue_averaging(num_byzantine=1)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  name = 'smallest_max_eigenvalue_averaging'
  checks.check_count(name, 'num_byzantine', num_byzantine)
  checks.check_count(name, 'max_subsets', max_subsets, 1)

  def weights_fn(gram):
    n = gram.mask.shape[0]
    checks.check_majority(name, n, num_byzantine)
    count = math.comb(n, num_byzantine)
    if count > max_subsets:
      raise ValueError(
        f'{name} needs max_subsets >= {count}, the number of subsets of'
        f' {n} messages without {num_byzantine}, got {max_subsets}'
      )
    inner = jax.lax.stop_gradient(gram.inner)
    chosen = least_scatter_subset(inner, gram.mask, n - num_byzantine)
    return chosen / jnp.maximum(chosen.sum(), 1)

  return rules.from_weights(weights_fn, selects=True, name=name)
