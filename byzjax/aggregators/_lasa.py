"""LASA: clipped, sparsified messages, filtered layer by layer."""

import math

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  grams,
  nonfinite,
  recipes,
  reductions,
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
  """In every layer, the mean of messages with typical norm and signs (LASA).

  Layer-adaptive sparsified model aggregation, in three steps. First, every
  message is clipped to the median norm M: `y_i = x_i min(1, M / |x_i|)`.
  Second, each message is made sparse: over all its leaves with two or more axes
  together (weights, not biases or scales), only entries with `|y_ij| > t_i` are
  kept and the others set to zero, where t_i is the k-th largest of these m
  magnitudes and `k = floor((1 - sparsity) m)`. Third, each leaf l is aggregated
  alone:

  `a_i = |y_i^l|`, `b_i = sum_j sign(y_ij^l) / sum_j |sign(y_ij^l)|`,

  `K = {i : |a_i - med a| / std a < max_norm_score` and the same of b with
  `max_sign_score}`, `aggregate^l = mean of y_i^l, i in K`.

  M is the lower median. If a standard deviation is zero, its condition excludes
  no message; if K is empty, it is replaced by all messages. Even without an
  attack, about a third of the messages is farther than one standard deviation
  from the median. The paper has its own bound; (f, kappa)-robustness is not
  proved, since sparsification loses entries even if all messages are equal.

  The official code does the same, except that it makes messages of zeros NaN.
  FL-Byzantine-Library and FLPoison average the messages from before
  sparsification. In the first, the argument is the share that is *kept*, over
  all leaves, and it also reduces the effect of the sign score, to none if
  everything is kept; the second scores messages before clipping.

  Args:
    sparsity: share of the entries that are set to zero, a Python float in [0,
      1]; 0 keeps all entries, also the smallest.
    max_norm_score: bound on the norms' score, > 0 or inf; float[], may be
      traced.
    max_sign_score: bound on the signs' score, likewise.
    like: a tree with the leaves `[*shape]` of one message, such as the
      parameters. Required in rounds, because they pass messages as flat
      vectors.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports as kept the messages that enter the mean of at least one leaf, as
    scores the share of leaves that exclude each, and `M / |x_i|` as factors.
    `worker_weights` are not supported.

  Raises:
    ValueError: if an argument is out of its range; at trace time if `like` is
      missing in a round, the messages have another size, or coordinates are
      split over a mesh (leaves must be whole).

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
    median = norms[grams.lower_median_index(squared, mask)]
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
      f'{_NAME} needs like=params in a round, where a message is one vector'
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
