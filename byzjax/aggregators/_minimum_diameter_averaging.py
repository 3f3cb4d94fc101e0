"""Minimum diameter averaging: the mean of the n - f closest messages."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, grams, recipes, rules


def num_cover_nodes(budget: int) -> int:
  """The most nodes that a search for a cover of `budget` vertices visits.

  `T(k) = 1 + T(k - 1) + T(k - 3)`, about 1.47^k: a vertex that is branched on
  has three neighbours or more.
  """
  nodes = [1]
  for k in range(1, budget + 1):
    nodes.append(1 + nodes[k - 1] + (nodes[k - 3] if k >= 3 else 0))
  return nodes[budget]


def has_cover(
  edges: jax.Array, alive: jax.Array, budget: jax.Array, max_budget: int
) -> jax.Array:
  """Whether `budget` vertices touch every edge between the alive ones.

  A depth-first search. A vertex with a neighbour of degree one is in some
  smallest cover; so is any vertex once all that is left are cycles. Else either
  the vertex of largest degree is in the cover or all of its neighbours are.

  Args:
    edges: bool[n, n], symmetric, False on the diagonal.
    alive: bool[n], the vertices that are left.
    budget: int32[], at most `max_budget`; a negative one covers nothing.
    max_budget: a Python int, which bounds the depth.

  Returns:
    bool[].
  """
  n = alive.shape[0]
  # One sibling waits per level, and two children are written at the top.
  masks = jnp.zeros((max_budget + 3, n), bool).at[0].set(alive)
  budgets = jnp.zeros(max_budget + 3, jnp.int32).at[0].set(budget)

  def is_open(carry):
    return ~carry[-1] & (carry[-2] > 0)

  def visit(carry):
    masks, budgets, depth, _ = carry
    depth -= 1
    alive, budget = masks[depth], budgets[depth]
    left = edges & alive[None] & alive[:, None]
    degrees = left.sum(axis=1, dtype=jnp.int32)
    largest = degrees.max()
    beside_leaf = jnp.any(left & (degrees == 1)[None], axis=1)
    is_forced = jnp.any(beside_leaf)
    vertex = jnp.where(is_forced, jnp.argmax(beside_leaf), jnp.argmax(degrees))
    # Each vertex of a cover touches at most `largest` edges, and an edge has
    # two ends.
    is_hopeful = degrees.sum() <= 2 * budget * largest
    branches = ~is_forced & (largest >= 3) & (largest <= budget)
    for child, cost, exists in (
      (alive & ~left[vertex], largest, branches),
      (alive & (jnp.arange(n) != vertex), 1, True),
    ):
      masks = masks.at[depth].set(child)
      budgets = budgets.at[depth].set(budget - cost)
      depth += is_hopeful & exists
    return masks, budgets, depth, (largest == 0) & (budget >= 0)

  found = jnp.any(alive) & False  # of the type, under shard_map, of the mask
  depth = (budget >= 0).astype(jnp.int32)
  return jax.lax.while_loop(is_open, visit, (masks, budgets, depth, found))[-1]


def least_diameter_subset(
  distances: jax.Array, mask: jax.Array, size: int
) -> jax.Array:
  """The first subset of `size` vertices with the least largest distance.

  Args:
    distances: float[n, n], symmetric.
    mask: bool[n], the vertices that may be chosen; all of them are if they are
      no more than `size`.
    size: a Python int.

  Returns:
    bool[n]; of several such subsets the first in lexicographic order.
  """
  n = mask.shape[0]
  max_budget = n - size
  budget = mask.sum(dtype=jnp.int32) - size

  def is_within(diameter, alive, budget):
    return has_cover(distances > diameter, alive, budget, max_budget)

  # By bisection over the distances: those beyond the least diameter leave a
  # graph whose cover is what is not chosen.
  candidates = jnp.sort(distances[np.triu_indices(n)])

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    fits = is_within(candidates[middle], mask, budget)
    return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

  first, last = 0 * budget, 0 * budget + len(candidates) - 1
  steps = len(candidates).bit_length()
  low, _ = jax.lax.fori_loop(0, steps, halve, (first, last))
  far = distances > candidates[low]

  # Then every vertex in turn is taken if a solution with it exists.
  def decide(i, carry):
    alive, budget = carry
    neighbours = far[i] & alive
    cost = neighbours.sum(dtype=jnp.int32)
    is_asked = alive[i] & (jnp.sum(alive & (jnp.arange(n) < i)) < size)
    remaining = jnp.where(is_asked, budget - cost, -1)
    fits = has_cover(far, alive & ~neighbours, remaining, max_budget)
    taken = alive & ~neighbours
    refused = alive & (jnp.arange(n) != i)
    return (
      jnp.where(fits, taken, jnp.where(is_asked, refused, alive)),
      jnp.where(fits, remaining, budget - is_asked),
    )

  alive, _ = jax.lax.fori_loop(0, n, decide, (mask, budget))
  chosen = alive & (jnp.cumsum(alive) <= size)
  return jnp.where(budget > 0, chosen, mask)


@recipes.factory
def minimum_diameter_averaging(
  *, num_byzantine: int, max_nodes: int = 10_000_000
) -> base.Aggregator:
  """The mean of the n - f messages that lie closest together (MDA).

  `aggregate = mean of x_i over S`, where S has the smallest diameter `max_{i, j
  in S} |x_i - x_j|` of all subsets of n - f messages. Of several such subsets
  it is the first in lexicographic order, as in libraries that enumerate them
  (also called Brute); if diameters differ by rounding only, rounding decides.

  The subsets are not enumerated. The messages left out of S are a vertex cover
  of the graph that links all pairs farther apart than the diameter, and such
  covers are searched for on the n x n distances. One search visits at most T(f)
  nodes, `T(k) = 1 + T(k - 1) + T(k - 3)`; there are n searches plus one per
  step of a bisection. This bound is checked before anything runs, and rarely
  reached: 50 messages with f = 20 take a few milliseconds on a CPU.

  Masked (non-finite) messages count among the f: n - f of the others are
  chosen, or all of them if there are fewer.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    max_nodes: raise an error if the bound on visited nodes is larger; a Python
      int >= 1. A search at the default may take seconds to minutes in the worst
      case.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports which messages were kept.

  Raises:
    ValueError: if an argument is not an int in its range; at trace time if `n
      <= 2f` or the bound exceeds `max_nodes`.

  References:
    Rousseeuw, 1985, Multivariate estimation with high breakdown point.
    El Mhamdi, Guerraoui, Rouault, 2018, arXiv:1802.07927 (Brute).
    El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, 2020, arXiv:1905.03853.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.minimum_diameter_averaging(num_byzantine=1)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  name = 'minimum_diameter_averaging'
  checks.check_count(name, 'num_byzantine', num_byzantine)
  checks.check_count(name, 'max_nodes', max_nodes, 1)

  def weights_fn(gram):
    n = gram.mask.shape[0]
    checks.check_majority(name, n, num_byzantine)
    _check_nodes(name, n, num_byzantine, max_nodes)
    distances = jax.lax.stop_gradient(grams.squared_distances(gram))
    # A product of matrices need not be symmetric to the last digit.
    distances = jnp.maximum(distances, distances.T)
    chosen = least_diameter_subset(distances, gram.mask, n - num_byzantine)
    return chosen / jnp.maximum(chosen.sum(), 1)

  return rules.from_weights(weights_fn, selects=True, name=name)


def _check_nodes(name, n, f, max_nodes):
  searches = n + (n * (n + 1) // 2).bit_length()
  nodes = searches * num_cover_nodes(f)
  if nodes > max_nodes:
    raise ValueError(
      f'{name} needs max_nodes >= {nodes}, the bound on its search for'
      f' {n} messages and num_byzantine = {f} (which have {math.comb(n, f)}'
      f' subsets), got {max_nodes}'
    )
