"""Comparative gradient elimination: drops the messages of largest norm."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import (
  base,
  calls,
  checks,
  nonfinite,
  recipes,
  reductions,
)


@recipes.factory
def comparative_gradient_elimination(
  *, num_byzantine: int, reduce: str = 'mean'
) -> base.Aggregator:
  """The mean of the n - f messages of smallest norm (CGE).

  `aggregate = (1 / (n - f)) sum_{i in S} x_i`, where S holds the n - f messages
  of smallest norm. Ties go to the lowest index. The norm of the aggregate is at
  most that of the longest honest message; within this ball, f Byzantine
  messages can still bias it.

  The paper takes the sum (`reduce='sum'`), which needs a step size n - f times
  smaller; libraries take the mean.

  With fewer than n - f usable messages the mean is over those there are.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`. 0 gives the mean.
    reduce: 'mean' or 'sum'.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports which messages were kept, with the norms as scores.

  Raises:
    ValueError: if f is not a non-negative int or `reduce` is not one of the
      two; at trace time if `n <= 2f`.

  References:
    Gupta, Liu, Vaidya, 2020, arXiv:2008.04699.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.comparative_gradient_elimination(num_byzantine=1)
    >>> rule(jnp.array([1., 2., 3., -100.]))
    Array(2., dtype=float32)
  """
  name = 'comparative_gradient_elimination'
  checks.check_count(name, 'num_byzantine', num_byzantine)
  if reduce not in ('mean', 'sum'):
    raise ValueError(
      f"{name} needs reduce to be 'mean' or 'sum', got {reduce!r}"
    )

  def keep_smallest(squared_norms, mask):
    n = mask.shape[0]
    checks.check_majority(name, n, num_byzantine)
    norms = reductions.sqrt(jax.lax.stop_gradient(squared_norms))
    scores = jnp.where(mask, norms, jnp.inf)
    order = jnp.argsort(scores, stable=True)[: n - num_byzantine]
    kept = jnp.zeros(n, bool).at[order].set(True) & mask
    weights = kept.astype(norms.dtype)
    if reduce == 'mean':
      weights = reductions.shares(kept)
    return base.AggregationInfo(weights, mask, kept=kept, scores=scores)

  def weights(gram, state, *, key=None):
    del key
    return keep_smallest(gram.squared_norms, gram.mask), state

  def aggregate(rows, state, call):
    # Norms need no Gram matrix.
    norms = reductions.squared_norms(rows, axis_name=call.axis_name)
    info = keep_smallest(norms, nonfinite.usable_norms(norms))
    info = info._replace(weights=info.weights.astype(rows.dtype))
    return reductions.combine(info.weights, rows), state, info

  # Behind others a Gram rule's weights must sum to one.
  rule = None
  if reduce == 'mean':
    rule = base.GramRule(optax.init_empty_state, weights, selects=True)
  return calls.from_rows(name, aggregate, gram_rule=rule, takes_norms=True)
