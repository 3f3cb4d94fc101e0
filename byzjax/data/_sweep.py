"""Passes over a growing pool without replacement, in static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sweep(NamedTuple):
  """Where a pass over a pool of places stands.

  Attributes:
    priority: float32[m], of this pass: in [1, 2) for places of the pool, -1 for
      the others; lowered by 1 once a place was given out.
    pool: int32[], places in the pool of this pass; 0 before the first.
    position: int32[], how many of them were given out.
  """

  priority: jax.Array
  pool: jax.Array
  position: jax.Array


def start(rank: jax.Array) -> Sweep:
  """A sweep over the places of `rank` that is over: the next one begins."""
  # In terms of an argument, so that inside shard_map it varies like one.
  zero = jnp.zeros_like(rank[0], jnp.int32)
  return Sweep(jnp.full_like(rank, -1, jnp.float32), zero, zero)


def take(
  sweep: Sweep, rank: jax.Array, pool: jax.Array, key: jax.Array, count: int
) -> tuple[jax.Array, Sweep]:
  """The next `count` places of the sweep, or the first of a new one.

  Args:
    sweep: of m places.
    rank: integers [m], a permutation: the pool of a new sweep is `rank < pool`.
    pool: int32[], of a new sweep, from 1 to m.
    key: of the shuffle of a new sweep. It is tied to the places, so that the
      ranks matter to who is in the pool and not to the order within it.
    count: how many places, a Python int.

  Returns:
    int32[count], and the sweep. What the last batch lacks comes from the start
    of the same sweep.
  """
  over = sweep.position >= sweep.pool
  # Selecting the largest is much cheaper than sorting on CPU, and vmap would
  # run a sort inside `lax.cond` in every step.
  drawn = 1 + jax.random.uniform(key, rank.shape, jnp.float32)
  fresh = jnp.where(rank < pool, drawn, -1)
  priority = jnp.where(over, fresh, sweep.priority)
  pool = jnp.where(over, pool, sweep.pool).astype(jnp.int32)
  position = jnp.where(over, 0, sweep.position)
  # Those given out come after the others, in their order among themselves.
  width = min(count, rank.size)
  top = jax.lax.top_k(priority, width)[1]
  chosen = top[jnp.arange(count) % jnp.minimum(pool, width)]
  given = jnp.zeros(rank.shape, bool).at[chosen].set(True)
  priority = jnp.where(given & (priority >= 1), priority - 1, priority)
  return chosen, Sweep(priority, pool, position + count)
