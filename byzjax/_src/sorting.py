"""Order statistics over workers by a pruned sorting network.

A median of n values per coordinate is a fixed sequence of compare-and-swaps.
Unrolled over the rows of `[n, d]` they fuse into one pass over the data, where
`jnp.sort` over workers takes 80 to 480 times longer on a CPU.
"""

import functools

import jax
import jax.numpy as jnp

Rows = jax.Array | list[jax.Array]

# Above this the unrolled network takes minutes to compile.
MAX_NETWORK = 128


def comparators(n: int) -> list[tuple[int, int]]:
  """Batcher's odd-even merge sort for any n (Knuth, TAOCP 3, 5.2.2, M)."""
  pairs = []
  top = 1 << max(n - 1, 0).bit_length() >> 1  # largest power of two below n
  p = top
  while p > 0:
    q, r, distance = top, 0, p
    while True:
      pairs += [(i, i + distance) for i in range(n - distance) if (i & p) == r]
      if q == p:
        break
      distance, q, r = q - p, q >> 1, p
    p >>= 1
  return pairs


@functools.cache
def pruned_comparators(labels: tuple[int, ...]) -> list[tuple[int, int]]:
  """The comparators that matter when equal labels may come in any order.

  Walking back from the outputs, a comparator whose two wires carry the same
  label changes nothing that anybody reads.
  """
  wires: list[object] = list(labels)
  kept = []
  for a, b in reversed(comparators(len(labels))):
    if wires[a] == wires[b]:
      continue
    kept.append((a, b))
    wires[a], wires[b] = object(), object()
  return kept[::-1]


def rows_of(x: jax.Array) -> Rows:
  """The rows of `[n, d]` with +inf for NaN, ready to be sorted.

  Up to the size of a network they are separate, so that what is done to each
  fuses with what is done to all.
  """
  rows = [x] if x.shape[0] > MAX_NETWORK else [x[i] for i in range(x.shape[0])]
  rows = [jnp.where(jnp.isnan(row), jnp.inf, row) for row in rows]
  return rows[0] if x.shape[0] > MAX_NETWORK else rows


def sorted_rows(rows: Rows, labels: tuple[int, ...]) -> Rows:
  """The n rows sorted per column, in any order within a label.

  `labels[k]` tags the k-th smallest value. The caller must reduce the rows to
  one expression; returning many of them recomputes the network for each.
  """
  if isinstance(rows, jax.Array):
    return jnp.sort(rows, axis=0)
  rows = list(rows)
  for a, b in pruned_comparators(labels):
    # Select, not minimum and maximum: half the time to run, and far less to
    # compile.
    smaller = rows[a] < rows[b]
    rows[a], rows[b] = (
      jnp.where(smaller, rows[a], rows[b]),
      jnp.where(smaller, rows[b], rows[a]),
    )
  return rows


def trimmed_rows(rows: Rows, num_trimmed: int) -> Rows:
  """The n - 2k middle values of each column, in any order."""
  n, k = len(rows), num_trimmed
  labels = tuple(0 if i < k else 1 if i < n - k else 2 for i in range(n))
  return sorted_rows(rows, labels)[k : n - k]
