"""Diagnostics of a rule: what it did with the message of each worker."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat, reductions


def diagnose(
  aggregator: base.Aggregator,
  messages: base.Messages,
  state: base.State | None = None,
  *,
  key: jax.Array | None = None,
  **extra,
) -> base.AggregationInfo:
  """What a rule did with every message: kept, weight, score, clipping factor.

  Fields that the rule reports itself (by `aggregator.inspect`, and as
  `RoundInfo` in training) are returned as they are. The rest is measured:

  - `weights`: `w_i = (1/d) sum_j d aggregate[j] / d x_i[j]`, the derivative
    averaged over the coordinates. For a trimmed mean that is the share of
    coordinates in which message i was not trimmed, over n - 2f.
  - `scores`: `|x_i - aggregate|^2`, the squared distance to the result.
  - `kept`: whether the weight is above zero.
  - `factors`: ones, where nothing is clipped.

  This costs several times as much as the rule; use it to inspect a rule, not in
  every round.

  Args:
    aggregator: the rule.
    messages: pytree with leaves `[n, *shape]`.
    state: the state of the rule; None for a fresh one.
    key: for rules that need a random key.
    **extra: further arguments of `update`, such as `worker_weights`.

  Returns:
    An `AggregationInfo` in which every field except `error` is an array.

  Raises:
    ValueError: whatever the rule raises.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.trimmed_mean(num_byzantine=1)
    >>> info = byzjax.diagnose(rule, jnp.array([[0.], [1.], [2.], [99.]]))
    >>> info.kept
    Array([False,  True,  True, False], dtype=bool)
  """
  checks.check_kind('diagnose', 'aggregator', aggregator, base.Aggregator)
  if key is not None:
    checks.check_key('diagnose', 'key', key)
  x, layout = flat.ravel_rows('diagnose', messages)
  if state is None:
    state = aggregator.init(jax.tree.map(lambda x: x[0], messages))
  finite = reductions.finite_rows(x)

  def aggregate(rows):
    rows = layout.unravel_rows(rows)
    out, _, info = aggregator.inspect(rows, state, key=key, **extra)
    return layout.ravel(out), info

  result, pullback, info = jax.vjp(aggregate, x, has_aux=True)
  mask = finite if info.mask is None else info.mask
  if info.weights is None:
    (slopes,) = pullback(jnp.ones_like(result))
    slopes = jnp.where(jnp.isfinite(slopes), slopes, 0).mean(axis=1)
    info = info._replace(weights=slopes)
  if info.kept is None:
    info = info._replace(kept=info.weights > 0)
  if info.scores is None:
    squared = reductions.squared_norms(x, center=result)
    info = info._replace(scores=jnp.where(mask, squared, jnp.inf))
  if info.factors is None:
    info = info._replace(factors=jnp.ones(x.shape[0], x.dtype))
  return info._replace(mask=mask)
