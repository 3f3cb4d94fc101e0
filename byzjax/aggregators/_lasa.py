"""LASA: clipped, sparse messages, and in every layer those that look alike."""

import math

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  nonfinite,
  recipes,
  reductions,
  rules,
)

_NAME = 'lasa'


@recipes.factory
def lasa(
  *,
  sparsity: float = 0.3,
  max_norm_score: float | jax.Array = 1.0,
  max_sign_score: float | jax.Array = 1.0,
  like: base.Params | None = None,
) -> base.Aggregator:
  """In every layer the mean of the messages with usual lengths and signs.

  Layer-adaptive sparsified model aggregation. First every message gets the
  length of the median one, if it is longer: `y_i = x_i min(1, M / |x_i|)`. Then
  of the weights that are matrices or more, leaves of two and more axes, all
  together keep the largest: `|y_ij| > t_i`, with t_i the k-th largest of m and
  `k = floor((1 - sparsity) m)`. The other numbers are set to zero. Biases and
  scales stay whole. In each leaf l then

  `a_i = |y_i^l|`, `b_i = sum_j sign(y_ij^l) / sum_j |sign(y_ij^l)|`,

  `K = {i : |a_i - med a| / std a < max_norm_score` and the same of b with
  `max_sign_score}`, `aggregate^l = mean of y_i^l, i in K`.

  M is the lower median. Where a standard deviation is zero, nothing is left
  out; if K is empty, all of the leaf's messages are in it. Even if nobody
  attacks, about a third of the messages is farther than one standard deviation
  from the median. The paper has a bound of its own. In the sense of
  (f, kappa)-robustness nothing is proved: what is made sparse is lost, also if
  all messages are equal.

  The official code does the same, but for messages of zeros, which it makes
  NaN. FL-Byzantine-Library and FLPoison average messages before they are made
  sparse. In the first the share is the one that is *kept*, of all leaves, and
  weakens the score of the signs, to nothing if all is kept; the second judges
  messages before clipping.

  Args:
    sparsity: share of numbers that is set to zero, a Python float in [0, 1]; 0
      keeps all, also the smallest.
    max_norm_score: for lengths, > 0, perhaps inf; a number or a scalar array.
    max_sign_score: for signs, the same.
    like: a tree with the leaves `[*shape]` of one message, such as the
      parameters. Rounds need it, for they hand messages over as one vector.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    tells which messages are in some leaf's mean, the share of leaves without
    each as scores, and `M / |x_i|` as factors. There is no version with worker
    weights.

  Raises:
    ValueError: if an argument is out of its range; at trace time if a round has
      no `like`, the messages have another size, or coordinates are split over a
      mesh, for leaves must be whole.

  References:
    Xu, Zhang, Hu, 2025, WACV, arXiv:2409.01435.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> x = jnp.array([[2., 1.], [1., 2.], [2., 2.], [1., 1.], [-9., -9.]])
    >>> byzjax.lasa()(x).round(1)
    Array([1.5, 1.5], dtype=float32)
  """
  if not isinstance(sparsity, (int, float)):
    raise ValueError(
      f'{_NAME} needs sparsity to be a Python float, got {sparsity!r}'
    )
  checks.check_range(_NAME, 'sparsity', sparsity, 0, 1)
  for argument, bound in [
    ('max_norm_score', max_norm_score),
    ('max_sign_score', max_sign_score),
  ]:
    checks.check_range(_NAME, argument, bound, 0, exclusive=True)

  def aggregate(messages, state, call):
    if call.axis_name is not None:
      raise ValueError(
        f'{_NAME} needs whole leaves, got coordinates that are split over'
        f' axis_name={call.axis_name!r}'
      )
    rows, layout = calls.rows_of(_NAME, messages, call)
    leaves_of = layout if like is None else flat.row_layout(like)
    _check_size(layout, leaves_of, call.extra.get('num_coordinates'))
    squared = reductions.squared_norms(jax.lax.stop_gradient(rows))
    mask = nonfinite.usable_norms(squared)
    norms = reductions.sqrt(jnp.where(mask, squared, 0))
    median = norms[rules.median_norm_index(squared, mask)]
    factors = jnp.where(norms > median, median / norms, 1)
    clipped = jnp.where(mask[:, None], rows.written(), 0) * factors[:, None]
    leaves, treedef = jax.tree.flatten(leaves_of.unravel_rows(clipped))
    leaves = sparse(leaves, sparsity)
    kept = [
      usual(leaf, mask, max_norm_score, max_sign_score) for leaf in leaves
    ]
    means = [
      reductions.rows_mean(leaf.reshape(len(leaf), -1), of).reshape(
        leaf.shape[1:]
      )
      for leaf, of in zip(leaves, kept)
    ]
    stayed = jnp.stack(kept)
    info = base.AggregationInfo(
      mask=mask,
      kept=stayed.any(axis=0),
      scores=jnp.where(mask, 1 - stayed.mean(axis=0), jnp.inf),
      factors=factors,
    )
    vector = leaves_of.ravel(jax.tree.unflatten(treedef, means))
    padding = layout.size - leaves_of.size
    return layout.unravel(jnp.pad(vector, (0, padding))), state, info

  return calls.from_messages(_NAME, aggregate)


def _check_size(layout, leaves_of, num_coordinates: int | None) -> None:
  """Raises ValueError where leaves have been put together, or do not fit."""
  if num_coordinates is None:
    num_coordinates = layout.size
  elif leaves_of is layout:
    raise ValueError(
      f'{_NAME} needs like=params in a round, which hands messages over as one'
      ' vector'
    )
  if leaves_of.size != num_coordinates:
    raise ValueError(
      f'{_NAME} needs like to have as many numbers as a message, got'
      f' {leaves_of.size} for {num_coordinates}'
    )


def sparse(leaves: list[jax.Array], sparsity: float) -> list[jax.Array]:
  """Leaves [n, *shape] with the largest numbers of all that are matrices."""
  magnitudes = [
    jnp.abs(leaf.reshape(leaf.shape[0], -1)) for leaf in leaves if leaf.ndim > 2
  ]
  if not sparsity or not magnitudes:
    return leaves
  every = jnp.sort(jnp.concatenate(magnitudes, axis=1), axis=1)
  size = every.shape[1]
  num_kept = math.floor((1 - sparsity) * size)
  # With none to keep the largest is the threshold, which nothing exceeds.
  threshold = every[:, size - max(num_kept, 1)]

  def of_leaf(leaf):
    if leaf.ndim <= 2:
      return leaf
    least = threshold.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.where(jnp.abs(leaf) > least, leaf, 0)

  return [of_leaf(leaf) for leaf in leaves]


def usual(
  leaf: jax.Array,
  mask: jax.Array,
  max_norm_score: float | jax.Array,
  max_sign_score: float | jax.Array,
) -> jax.Array:
  """Whose length and signs are near the median: bool[n]."""
  rows = jax.lax.stop_gradient(leaf.reshape(leaf.shape[0], -1))
  norms = reductions.sqrt(jnp.sum(jnp.square(rows), axis=1))
  signs = jnp.sign(rows)
  counted = jnp.maximum(jnp.abs(signs).sum(axis=1), 1)
  near = is_near(norms, mask, max_norm_score)
  near &= is_near(signs.sum(axis=1) / counted, mask, max_sign_score)
  return jnp.where(near.any(), near, mask)


def is_near(
  values: jax.Array, mask: jax.Array, bound: float | jax.Array
) -> jax.Array:
  """Who is nearer to the median than so many standard deviations: bool[n]."""
  count = jnp.maximum(mask.sum(), 1)
  ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
  median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
  # From the median, so that equal values have no deviation at all.
  distances = jnp.where(mask, values - median, 0)
  mean = distances.sum() / count
  variance = jnp.where(mask, jnp.square(distances - mean), 0).sum() / count
  deviation = reductions.sqrt(variance)
  near = jnp.abs(distances) < bound * deviation
  return mask & (near | (deviation == 0))
