"""MoNNA: the mean of the messages nearest to the node's own."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import (
  base,
  calls,
  checks,
  grams,
  nonfinite,
  recipes,
  reductions,
  rules,
)


def nearest_to(
  squared_distances: jax.Array,
  mask: jax.Array,
  reference: int | jax.Array,
  count: int,
) -> base.AggregationInfo:
  """Equal weights for the `count` nearest messages, the reference first.

  `squared_distances` are float[n], those to the message `reference`.
  """
  n = mask.shape[0]
  scores = jnp.where(mask & mask[reference], squared_distances, jnp.inf)
  # Nothing is nearer to the reference than itself, duplicates included.
  is_reference = jnp.arange(n) == reference
  order = jnp.argsort(jnp.where(is_reference, -1, scores), stable=True)
  chosen = jnp.zeros(n, bool).at[order[:count]].set(True) & (scores < jnp.inf)
  weights = chosen / jnp.maximum(chosen.sum(), 1)
  return base.AggregationInfo(weights, kept=chosen, scores=scores)


@recipes.factory
def monna(
  *,
  num_byzantine: int,
  reference_worker: int | jax.Array,
  num_selected: int | None = None,
) -> base.Aggregator:
  """The mean of the messages nearest to one trusted worker's message (MoNNA).

  `aggregate = (1/m) sum_{i in S} x_i`, where S holds the m messages nearest to
  `x_r`, the message of the reference worker r, which is in S itself. Ties go to
  the lowest index. A node of a decentralised network runs this rule with itself
  as r. The rule tolerates f Byzantine messages if r is honest, and none
  otherwise.

  Libraries agree on `m = n - f`, the default; `NearestNeighborAverage` of krum
  (the Python package) takes m as its argument, here `num_selected`.

  With fewer than m usable messages, the mean is over those that remain. If the
  reference message is masked (non-finite), all weights and the aggregate are
  zero.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    reference_worker: r, a Python int in `0 ... n - 1`: the n distances take one
      pass over the messages. Or an integer array of shape [], possibly traced:
      then all pairwise distances are computed, and one vmap over r gives the
      result of every node. Such an r out of range is clipped to it.
    num_selected: m, in `1 ... n`, a Python int; None for `n - f`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports which messages were kept, and their squared distances to x_r as
    scores.

  Raises:
    ValueError: if an argument is not an int in its range; at trace time unless
      `n > 2f`, `r < n` and `m <= n`.

  References:
    Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, 2023,
    arXiv:2209.10931.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.monna(num_byzantine=1, reference_worker=3)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  checks.check_count('monna', 'num_byzantine', num_byzantine)
  if num_selected is not None:
    checks.check_count('monna', 'num_selected', num_selected, 1)
  _check_reference(reference_worker)

  def nearest(squared_distances, mask):
    n = mask.shape[0]
    count = n - num_byzantine if num_selected is None else num_selected
    reference = jnp.clip(reference_worker, 0, n - 1)
    return nearest_to(squared_distances, mask, reference, count)

  def check(n):
    checks.check_majority('monna', n, num_byzantine)
    if num_selected is not None and num_selected > n:
      raise ValueError(
        f'monna needs num_selected <= num_workers, got {num_selected} and {n}'
      )
    if isinstance(reference_worker, int) and reference_worker >= n:
      raise ValueError(
        'monna needs reference_worker < num_workers, got'
        f' {reference_worker} and {n}'
      )

  def weights(gram, state, *, key=None):
    del key
    n = gram.mask.shape[0]
    check(n)
    distances = jax.lax.stop_gradient(grams.squared_distances(gram))
    row = distances[jnp.clip(reference_worker, 0, n - 1)]
    return nearest(row, gram.mask), state

  def aggregate(rows, state, call):
    # One row of distances needs no Gram matrix.
    check(rows.shape[0])
    constant, axes = jax.lax.stop_gradient(rows), call.axis_name
    row = constant.row(reference_worker)
    squared = reductions.squared_norms(constant, center=row, axis_name=axes)
    own = reductions.squared_norms(row[None], axis_name=axes)
    mask = nonfinite.usable_norms(squared) & nonfinite.usable_norms(own)
    info = nearest(squared, mask)
    weights = info.weights.astype(rows.dtype)
    info = info._replace(weights=weights, mask=mask)
    return reductions.combine(weights, rows), state, info

  rule = base.GramRule(optax.init_empty_state, weights, selects=True)
  if isinstance(reference_worker, int):
    return calls.from_rows('monna', aggregate, gram_rule=rule)
  return rules.from_gram_rule(rule, 'monna')


def _check_reference(worker):
  if not isinstance(worker, jax.Array):
    checks.check_count('monna', 'reference_worker', worker)
  elif worker.shape or not jnp.issubdtype(worker.dtype, jnp.integer):
    raise ValueError(
      'monna needs reference_worker to be an integer, got'
      f' {worker.dtype}{list(worker.shape)}'
    )
