"""GAS: scores messages by a rule on random pieces of the coordinates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax._src import (
  base,
  calls,
  checks,
  draws,
  grams,
  injected,
  layouts,
  nonfinite,
  recipes,
  reductions,
)
from byzjax._src.message_rows import Rows


class Pieces(NamedTuple):
  """The columns here, piece after piece.

  Attributes:
    order: int32[m + width], columns sorted by their piece, padded.
    starts: int32[p + 1], where each piece begins.
    width: the most columns that one piece has here.
  """

  order: jax.Array
  starts: jax.Array
  width: int

  def inside(self, q: jax.Array) -> jax.Array:
    """Which of the width columns are of piece q: bool[width]."""
    return jnp.arange(self.width) < self.starts[q + 1] - self.starts[q]

  def columns(self, rows: Rows, mask: jax.Array, q: jax.Array) -> jax.Array:
    """The columns of piece q, zero elsewhere and in masked rows: [n, width]."""
    index = lax.dynamic_slice_in_dim(self.order, self.starts[q], self.width)
    read = mask[:, None] & self.inside(q)[None]
    return jnp.where(read, rows.take(index).written(), 0)


def pieces_of(
  permutation: jax.Array | np.ndarray,
  num_pieces: int,
  coordinates: jax.Array,
) -> Pieces:
  """Consecutive stretches of a permutation int[d], of the coordinates here."""
  d, m = permutation.shape[0], coordinates.shape[0]
  size = -(-d // num_pieces)
  rank = jnp.zeros(d, int).at[permutation].set(jnp.arange(d))
  # Padding is in no piece.
  rank = jnp.where(coordinates < d, rank[jnp.minimum(coordinates, d - 1)], d)
  order, width = jnp.argsort(rank), min(size, m)
  stops = jnp.minimum(jnp.arange(-(-d // size) + 1) * size, d)
  starts = jnp.searchsorted(rank[order], stops)
  return Pieces(jnp.pad(order, (0, width)), starts, width)


@recipes.factory
def gas(
  rule: base.Aggregator,
  *,
  num_byzantine: int,
  num_pieces: int = 1000,
  permutation: jax.Array | np.ndarray | None = None,
) -> base.Aggregator:
  """The mean of the n - f messages nearest to a rule, piece by piece (GAS).

  The coordinates are split at random into p pieces of `ceil(d / p)`, redrawn in
  every call. The rule aggregates each piece alone, `a^q = rule(x_1^q, ...,
  x_n^q)`, and message i gets the score `s_i = sum_q |x_i^q - a^q|`. The
  aggregate is the mean of the n - f whole messages x_i with the smallest s_i.
  Ties go to the lowest index. In low-dimensional pieces a rule detects outliers
  that are hidden in many dimensions, such as those of `alie` on heterogeneous
  data.

  A rule that acts on a Gram matrix, such as `krum`, gets the Gram matrix of
  each piece: p matrices of n x n numbers. Other rules get the pieces one by
  one.

  The official code and FL-Byzantine-Library have two rules: `krum`, which is
  `multi_krum(num_byzantine=f)` here, and `bulyan`, which by an error averages
  the n - 4f smallest *distances* to the median instead of the values.
  `bulyan(num_byzantine=f)` here averages the values, and recomputes the Krum
  scores after each selected message. The official code lowers f where the rule
  does not allow it; here f is an argument of the rule and of `gas` separately.

  With fewer than n - f usable messages, the mean is over those that remain.

  Args:
    rule: an `Aggregator` without state.
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    num_pieces: p >= 1, a Python int. If p > d there are d pieces; 1 gives the
      mean of the n - f messages nearest to the rule's output.
    permutation: int[d], each of 0 ... d - 1 once, a fixed order in which the
      coordinates are split, instead of a random one; `jnp.arange(d)` makes
      pieces of neighbouring coordinates. None draws one. Traced values are not
      checked.

  Returns:
    An `Aggregator` without state, which needs a `key` unless there is a
    permutation and the rule needs none: leaves `[n, *shape] -> [*shape]`.
    `inspect` reports which messages were kept, and the s_i as scores.
    `worker_weights` are not supported.

  Raises:
    TypeError: if the permutation is not an array.
    ValueError: if an argument is out of its range, or the rule has state; at
      trace time if `n <= 2f`, the rule rejects n, there is no key, the
      permutation is not int[d], or coordinates are split over a mesh and the
      rule does not act on a Gram matrix.

  References:
    Liu, Chen, Lyu, Wu, Wu, Chen, 2023, arXiv:2302.06079.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> rule = byzjax.gas(
    ...   byzjax.coordinate_median(), num_byzantine=1, num_pieces=2)
    >>> x = jnp.array([[0., 0.], [1., 1.], [2., 2.], [1., 9.]])
    >>> rule(x, key=jax.random.key(0))
    Array([1., 1.], dtype=float32)
  """
  rule = injected.as_aggregator('gas', rule, 'rule')
  checks.check_count('gas', 'num_byzantine', num_byzantine)
  checks.check_count('gas', 'num_pieces', num_pieces, 1)
  _check_permutation(permutation)
  if jax.tree.leaves(jax.eval_shape(rule.init, jnp.zeros(1))):
    raise ValueError(f'gas needs a rule without state, got {rule.name}')

  def pieces(rows, call):
    axes, m = call.axis_name, rows.shape[1]
    here = call.extra.get('coordinates')
    if here is None:
      here = layouts.coordinates(m, axes)
    d = call.extra.get('num_coordinates')
    if d is None:
      d = m if axes is None else m * lax.axis_size(axes)
    order, key = permutation, call.key
    if order is None:
      draw_key, key = jax.random.split(draws.require_key('gas', key))
      order = jax.random.permutation(draw_key, d)
    if order.shape != (d,):
      raise ValueError(
        f'gas needs permutation to be int[{d}], one entry per coordinate, got'
        f' {order.dtype}{list(order.shape)}'
      )
    return pieces_of(order, num_pieces, here), key

  def aggregate(rows, state, call):
    n, axes = rows.shape[0], call.axis_name
    checks.check_majority('gas', n, num_byzantine)
    constant = lax.stop_gradient(rows)
    norms = reductions.squared_norms(constant, axis_name=axes)
    mask = nonfinite.usable_norms(norms)
    cut, key = pieces(rows, call)
    first = grams.lower_median_index(norms, mask)
    squared = _squared_distances(rule, constant, mask, first, cut, key, axes)
    scores = jnp.where(mask, reductions.sqrt(squared).sum(axis=0), jnp.inf)
    order = jnp.argsort(scores, stable=True)[: n - num_byzantine]
    kept = jnp.zeros(n, bool).at[order].set(True) & mask
    weights = reductions.shares(kept).astype(rows.dtype)
    info = base.AggregationInfo(weights, mask, kept=kept, scores=scores)
    return reductions.combine(weights, rows), state, info

  return calls.from_rows('gas', aggregate, takes_norms=True)


def _squared_distances(rule, rows, mask, first, cut, key, axis_name):
  """`|x_i^q - a^q|^2`: float[p, n]."""
  numbers = jnp.arange(cut.starts.shape[0] - 1)
  keys = None if key is None else jax.random.split(key, len(numbers))

  if rule.gram_rule is None:
    if axis_name is not None:
      raise ValueError(
        'gas needs a rule that acts on a Gram matrix where coordinates are'
        f' split over a mesh, got {rule.name}'
      )

    def to_rule(q_and_key):
      q, key = q_and_key
      x = cut.columns(rows, mask, q)
      # What is masked must stay so for the rule.
      known = jnp.where(mask[:, None], x, jnp.nan)
      y = rule.update(known, rule.init(x[0]), key=key)[0]
      apart = jnp.where(cut.inside(q)[None], x - y[None], 0)
      return jnp.sum(jnp.square(apart), axis=1)

    return lax.map(to_rule, (numbers, keys))

  def gram_of_piece(q_and_center):
    q, center = q_and_center
    x = cut.columns(rows, mask, q)
    y = jnp.where(mask[:, None], x - x[center][None], 0)
    return reductions.matmul(y, y.T), jnp.sum(jnp.square(x), axis=1)

  def grams_about(centers):
    pieces = lax.map(gram_of_piece, (numbers, centers))
    return reductions.psum(pieces, axis_name)

  first_grams = grams_about(jnp.full_like(numbers, first))
  nearer = jax.vmap(grams.nearer_index, (0, None, None))(
    first_grams[0], first, mask
  )
  inner, norms = lax.cond(
    jnp.any(nearer != first), lambda: grams_about(nearer), lambda: first_grams
  )

  def of_piece(inner, norms, key):
    info, _ = rule.gram_rule.weights(
      base.Gram(inner, norms, mask), rule.init(jnp.zeros(1)), key=key
    )
    w = jnp.where(mask, info.weights, 0).astype(inner.dtype)
    projected = reductions.matmul(inner, w)
    squared = jnp.diagonal(inner) - 2 * projected
    return jnp.maximum(squared + reductions.matmul(w, projected), 0)

  return jax.vmap(of_piece)(inner, norms, keys)


def _check_permutation(permutation):
  if permutation is None:
    return
  is_array = isinstance(permutation, (jax.Array, np.ndarray))
  if not is_array or permutation.ndim != 1:
    raise TypeError(
      f'gas needs permutation to be an array int[d] or None, got'
      f' {permutation!r}'
    )
  checks.check_whole('gas', 'permutation', permutation)
  if isinstance(permutation, jax.core.Tracer):
    return
  values, d = np.asarray(permutation), len(permutation)
  seen = np.zeros(d, bool)
  seen[values[values < d]] = True
  if not seen.all():
    raise ValueError(
      f'gas needs permutation to have each of 0 ... {d - 1} once, got {values}'
    )
