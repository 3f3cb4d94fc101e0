"""Order statistics over workers by a pruned sorting network.

A median of n values per coordinate is a fixed sequence of compare-and-swaps.
Unrolled over the rows of `[n, d]` they fuse into one pass over the data, where
`jnp.sort` over workers takes 80 to 480 times longer on a CPU.

What bounds n is the number of operations: XLA compiles a fusion of up to about
3900 as one vectorised loop, and cuts off what is above as functions that are
called for every number, 5 to 100 times slower. Hence a minimum and a maximum of
integers, two operations per compare-and-swap, where numbers with their NaN
would need three.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax._src import message_rows, reductions

Column = jax.Array | list[jax.Array]  # n numbers, of each of d columns

# The most rows that are kept apart: a median and a trimmed mean of so many stay
# below the number of operations that XLA compiles well. Where nearly all rows
# are needed in order those of more than 104 do not, and yet nothing is faster.
MAX_NETWORK = 128
# The same where every row has its weight with it.
MAX_WEIGHTED_NETWORK = 54
# Numbers of one block of columns: what a core's cache holds.
_CACHED = 1 << 19
# The same for rows that are made there and then sorted by one kernel.
_MADE = 1 << 16


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


def by_column(
  column_fn: Callable[[Column], jax.Array],
  x: Any,
  max_apart: int = MAX_NETWORK,
) -> jax.Array:
  """A function of one column, of all columns of `[n, d]`, with +inf for NaN.

  Up to `max_apart` rows are handed over apart, so that what is done to each
  fuses with what is done to all. More are handed over as matrices of as many
  columns as a core's cache holds: they will be read many times. Rows that are
  not written yet are made inside the same kernel, or in such blocks where that
  is too much for one.

  Args:
    column_fn: the function.
    x: float[n, d], `Rows` or a `Mixture` of that shape.
    max_apart: see above.
  """
  rows = x if hasattr(x, 'columns') else message_rows.Rows(x)
  n, d = rows.shape
  if not d:
    return rows.blank()
  if n <= min(max_apart, rows.max_in_kernel()):
    return column_fn([_without_nan(rows.row(i)) for i in range(n)])

  cached = _CACHED if n > max_apart else _MADE
  width = d
  if jax.default_backend() == 'cpu':
    width = min(reductions.block_width(n, cached), d)

  def block(start):
    part = rows.columns(start, width).written()
    if n > max_apart:
      return column_fn(_without_nan(part))
    y = column_fn([_without_nan(row) for row in part])
    # As part of the update of the result it would not be vectorised.
    return reductions.materialized(y, start >= 0)

  if width == d:
    return block(0)

  # All blocks have one width, and so one program: the last begins earlier.
  def update(i, result):
    start = jnp.minimum(i * width, d - width)
    y = block(start).astype(rows.dtype)
    return lax.dynamic_update_slice_in_dim(result, y, start, axis=0)

  return lax.fori_loop(0, -(-d // width), update, rows.blank())


def _without_nan(x):
  return jnp.where(jnp.isnan(x), jnp.inf, x)


def sorted_rows(rows: Column, labels: tuple[int, ...]) -> list[jax.Array]:
  """The n rows sorted per column, in any order within a label.

  `labels[k]` tags the k-th smallest value; NaN counts as the largest. The
  caller must reduce the rows to one expression; returning many of them
  recomputes the network for each.
  """
  return _network(list(rows), labels)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _network(rows, labels):
  dtype = rows[0].dtype
  keys = [key(row) for row in rows]
  for a, b in pruned_comparators(labels):
    keys[a], keys[b] = lax.min(keys[a], keys[b]), lax.max(keys[a], keys[b])
  return [lax.bitcast_convert_type(_flip(key), dtype) for key in keys]


@_network.defjvp
def _network_jvp(labels, primals, tangents):
  # Integers have no derivative: the same network of selections.
  def selected(rows):
    rows = [_without_nan(row) for row in rows]
    for a, b in pruned_comparators(labels):
      _compare_and_swap(rows, a, b)
    return rows

  return jax.jvp(selected, primals, tangents)


def _compare_and_swap(rows, a, b, *along):
  """Puts the smaller of two rows first, and swaps what goes along with them."""
  smaller = rows[a] < rows[b]
  for values in (rows, *along):
    values[a], values[b] = (
      jnp.where(smaller, values[a], values[b]),
      jnp.where(smaller, values[b], values[a]),
    )


def key(row: jax.Array) -> jax.Array:
  """Integers in the order of the numbers, with every NaN at the top."""
  return _flip(lax.bitcast_convert_type(row, f'int{8 * row.dtype.itemsize}'))


def _flip(bits: jax.Array) -> jax.Array:
  """Reverses the order of what has the sign bit; its own inverse.

  The bits of a float are in order but for the sign. Subtracted from those of
  +inf, the bits of -inf become the least integer, and those of a NaN with a
  sign wrap around to above +inf, where the other NaN are.
  """
  infinity = np.array(np.inf, f'f{bits.dtype.itemsize}').view(bits.dtype)
  return jnp.where(bits < 0, infinity - bits, bits)


def sorted_with_weights(
  rows: Column, weights: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
  """The n rows sorted per column, and the weight of each value: float[n].

  Rows of weight zero become +inf and come last.
  """
  n = len(rows)
  rows = [jnp.where(weights[i] > 0, rows[i], jnp.inf) for i in range(n)]
  masses = [jnp.broadcast_to(weights[i], rows[i].shape) for i in range(n)]
  for a, b in comparators(n):
    _compare_and_swap(rows, a, b, masses)
  return rows, masses


def trimmed_rows(rows: Column, num_trimmed: int) -> list[jax.Array]:
  """The n - 2k middle values of each column, in any order."""
  n, k = len(rows), num_trimmed
  labels = tuple(0 if i < k else 1 if i < n - k else 2 for i in range(n))
  return sorted_rows(rows, labels)[k : n - k]


def mean_of(rows: Column) -> jax.Array:
  """The mean of the rows, added one by one."""
  return sum_of(rows) / len(rows)


def sum_of(rows: Column) -> jax.Array:
  """The sum of the rows, added one by one."""
  return functools.reduce(lambda a, b: a + b, rows)


def check_middle(rule: str, middle: str) -> None:
  """Raises ValueError unless `middle` is a median of an even n."""
  if middle not in ('mean', 'lower'):
    raise ValueError(
      f"{rule} needs middle to be 'mean' or 'lower', got {middle!r}"
    )


def between(low: jax.Array, high: jax.Array, middle: str) -> jax.Array:
  """The median between two middle values, by the choice of `middle`."""
  return low if middle == 'lower' or high is low else low + (high - low) / 2


def middle_ranks(n: int, middle: str) -> tuple[int, int]:
  """The ranks of the middle values among n sorted ones; equal if it is one."""
  low = (n - 1) // 2
  return low, low if middle == 'lower' else n // 2
