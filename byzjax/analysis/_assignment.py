"""The linear assignment problem: rows to columns at minimum cost."""

import jax
import jax.numpy as jnp

from byzjax._src import flat


def linear_assignment(cost: jax.Array) -> jax.Array:
  """A permutation p that minimises sum_i cost[i, p[i]] (Hungarian method).

  Rows are assigned one after another, each along the shortest augmenting path
  of reduced costs, by Dijkstra's method with potentials: O(n^3) operations. It
  works in jit and vmap. Entries that are NaN or infinite are avoided if
  possible; the result is always a permutation.

  Args:
    cost: float[n, n].

  Returns:
    int32[n].

  References:
    Kuhn, 1955, doi:10.1002/nav.3800020109; Jonker, Volgenant, 1987,
    doi:10.1007/BF02278710.

  Example:
    >>> import jax.numpy as jnp
    >>> print(linear_assignment(jnp.array([[1., 2.], [1., 4.]])))
    [1 0]
  """
  n = cost.shape[0]
  dtype = flat.compute_dtype(cost)
  cost = cost.astype(dtype)
  highest = jnp.finfo(dtype).max

  # Column n is where the path of a new row begins.
  def assign(row, carry):
    row_of, column_price, row_price = carry

    def is_open(search):
      return row_of[search[0]] >= 0

    def extend(search):
      column, is_done, distance, back = search
      is_done = is_done.at[column].set(True)
      here = row_of[column]
      base = distance[column]
      reduced = cost[here] - row_price[here] - column_price[:n]
      through = jnp.where(column < n, base, 0) + reduced
      is_better = (through < distance[:n]) & ~is_done[:n]
      distance = distance.at[:n].set(
        jnp.where(is_better, through, distance[:n])
      )
      back = jnp.where(is_better, column, back)
      # Finite where a column is not done, so that one of those is next.
      reach = jnp.nan_to_num(distance[:n], nan=highest, posinf=highest)
      nearest = jnp.argmin(jnp.where(is_done[:n], jnp.inf, reach))
      return nearest, is_done, distance, back

    row_of = row_of.at[n].set(row)
    end, is_done, distance, back = jax.lax.while_loop(
      is_open,
      extend,
      (
        jnp.array(n),
        jnp.zeros(n + 1, bool),
        jnp.full(n + 1, jnp.inf, dtype),
        jnp.full(n, n),
      ),
    )
    length = distance[end]
    slack = jnp.where(is_done, length - distance.at[n].set(0), 0)
    column_price = column_price - slack
    # The row of the last column is none, and is none of those done.
    row_price = row_price.at[row_of].add(slack)

    def flip(walk):
      column, row_of = walk
      before = back[column]
      return before, row_of.at[column].set(row_of[before])

    _, row_of = jax.lax.while_loop(
      lambda walk: walk[0] != n, flip, (end, row_of)
    )
    return row_of, column_price, row_price

  start = jnp.full(n + 1, -1), jnp.zeros(n + 1, dtype), jnp.zeros(n, dtype)
  row_of = jax.lax.fori_loop(0, n, assign, start)[0][:n]
  return jnp.zeros(n, jnp.int32).at[row_of].set(jnp.arange(n, dtype=jnp.int32))
