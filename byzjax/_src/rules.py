"""The two builders of rules: by coordinate, and from the Gram matrix.

A *coordinate rule* treats one column of the n x d matrix at a time. A *Gram
rule* computes weights from the n x n matrix of inner products and returns a
weighted sum. From one function these make an aggregator that can be jitted and
sharded and masks NaN.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  grams,
  recipes,
  reductions,
  sorting,
)
from byzjax._src.message_rows import Rows


@recipes.factory
def from_column(
  column_fn: Callable[[sorting.Column], jax.Array],
  *,
  weighted_fn: Callable[[sorting.Column, jax.Array], jax.Array] | None = None,
  name: str = 'from_column',
) -> base.Aggregator:
  """A rule from a function of one column of the n x d matrix of messages.

  `aggregate[j] = column_fn(x[0, j], ..., x[n-1, j])`. NaN entries are passed to
  the function as +inf, so that order statistics put them last; non-finite
  entries of the result become zero.

  Args:
    column_fn: takes the n values of a column, indexed by worker, and returns
      one value. It is written for numbers but gets whole rows: a list of n
      arrays `[d]`, or `[n, d]` for large n, and must act element by element. It
      raises ValueError for an n that it does not support.
    weighted_fn: the same with a second argument, the weights float[n] of the
      workers, for calls with `worker_weights`; with None these are an error.
    name: of the rule, for errors.

  Returns:
    An `Aggregator` without state. Leaves keep their dtype.

  Raises:
    ValueError: at trace time, if there are worker weights and no `weighted_fn`.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> ends = byzjax.from_column(lambda x: (x[0] + x[-1]) / 2)
    >>> ends(jnp.array([[1., 2.], [9., 9.], [3., 4.]]))
    Array([2., 3.], dtype=float32)
  """

  checks.check_text('from_column', 'name', name)
  checks.check_function(name, 'column_fn', column_fn)
  if weighted_fn is not None:
    checks.check_function(name, 'weighted_fn', weighted_fn)

  def aggregate(rows, state, call):
    weights, of_column = call.worker_weights, column_fn
    max_apart = sorting.MAX_NETWORK
    if weights is not None and weighted_fn is not None:
      max_apart = sorting.MAX_WEIGHTED_NETWORK
      p = weights.astype(rows.dtype)

      def of_column(column):
        return weighted_fn(column, p)

    def finite(column):
      y = of_column(column)
      return jnp.where(jnp.isfinite(y), y, 0)

    y = sorting.by_column(finite, rows, max_apart)
    return y, state, base.AggregationInfo()

  # One kernel for each leaf, and no copy into a matrix.
  return calls.from_rows(
    name, aggregate, by_coordinate=True, weighted=weighted_fn is not None
  )


@recipes.factory
def from_weights(
  weights_fn: Callable[[base.Gram], jax.Array | base.AggregationInfo],
  *,
  selects: bool = False,
  weighted: bool = False,
  name: str = 'from_weights',
) -> base.Aggregator:
  """A rule from a function of the Gram matrix to weights.

  `aggregate = c + sum_i w_i (x_i - c)` with `w = weights_fn(gram)`, where c is
  the finite message of median norm, or one nearer to a majority where that one
  is far from it: distances then keep their digits, whatever a minority sends.
  Messages whose squared norm is not finite (or would overflow sums of
  distances) are masked: their rows of the Gram matrix are zero and `weights_fn`
  must give them weight 0. If every message is masked the aggregate is zero.

  Args:
    weights_fn: `Gram -> float[n]`, weights that sum to one; or an
      `AggregationInfo` with these weights and other diagnostics. It raises
      ValueError for an n that it does not support.
    selects: True if the weights average a few whole messages. They are then
      combined without the centre, and a single one is returned bit for bit.
    weighted: True if the function uses `gram.worker_weights`; otherwise worker
      weights are an error.
    name: of the rule, for errors.

  Returns:
    An `Aggregator` without state. Leaves keep their dtype.

  Raises:
    ValueError: at trace time, if there are worker weights and the rule is not
      `weighted`.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> uniform = byzjax.from_weights(lambda gram: gram.mask / gram.mask.sum())
    >>> uniform(jnp.array([[1., 2.], [3., 4.], [jnp.nan, 0.]]))
    Array([2., 3.], dtype=float32)
  """

  checks.check_text('from_weights', 'name', name)
  checks.check_function(name, 'weights_fn', weights_fn)
  checks.check_flag(name, 'selects', selects)
  checks.check_flag(name, 'weighted', weighted)

  rule = gram_rule_of(weights_fn, selects=selects, weighted=weighted)
  return from_gram_rule(rule, name)


def gram_rule_of(
  weights_fn: Callable[[base.Gram], jax.Array | base.AggregationInfo],
  *,
  selects: bool = False,
  selects_one: bool = False,
  weighted: bool = False,
) -> base.GramRule:
  """A Gram rule without state from a function of the Gram matrix."""

  def weights(gram, state, *, key=None):
    del key
    info = weights_fn(gram)
    if not isinstance(info, base.AggregationInfo):
      info = base.AggregationInfo(info)
    return info, state

  return base.GramRule(
    optax.init_empty_state,
    weights,
    selects=selects,
    selects_one=selects_one,
    weighted=weighted,
  )


def from_gram_rule(rule: base.GramRule, name: str) -> base.Aggregator:
  """The aggregator of a Gram rule: two passes over the messages."""

  def aggregate(rows, state, call):
    center = rule.center and flat_vector(name, rule.center(state), rows)
    gram, center = grams.gram_of(
      rows, center, weights=call.worker_weights, axis_name=call.axis_name
    )
    info, state = rule.weights(gram, state, key=call.key)
    assert info.weights is not None
    weights = jnp.where(gram.mask, info.weights, 0).astype(rows.dtype)
    if rule.center is None:
      # A rule that takes no message has the aggregate zero, not the centre.
      center = jnp.where(jnp.any(weights != 0), center, 0)
    if rule.selects_one:
      y = reductions.select(weights, rows)
    else:
      y = reductions.combine(weights, rows, None if rule.selects else center)
    info = info._replace(weights=weights, mask=gram.mask)
    if rule.selects:
      info = info._replace(kept=weights > 0)
    return y, rule.remember(state, y), info

  return calls.from_rows(
    name,
    aggregate,
    init=rule.init,
    gram_rule=rule,
    weighted=rule.weighted,
    takes_norms=True,
  )


def flat_vector(
  name: str, tree: base.Params, rows: jax.Array | Rows
) -> jax.Array:
  """A remembered tree as one vector [d], in the dtype of the messages [n, d].

  Or a ValueError that names the rule, if it has another size than a message.
  """
  layout = flat.row_layout(tree)
  # One of n messages, or of one number, would broadcast.
  checks.check_remembered(name, layout.size, rows.shape[1])
  return layout.ravel(tree).astype(rows.dtype)


def nearest(
  distances: jax.Array, weights: jax.Array, mass: jax.Array
) -> jax.Array:
  """For each worker, the part of every worker's weight among its nearest.

  Row i goes through the workers by `distances[i]` (ties to the lowest index)
  and takes the whole weight of each until the sum is `mass`; of the last only
  the missing part.

  Args:
    distances: float[n, n], zero or less on the diagonal.
    weights: float[n], not negative.
    mass: float[], not more than the sum of the weights.

  Returns:
    float[n, n], rows that sum to `mass`.
  """
  order = jnp.argsort(distances, axis=1, stable=True)
  sorted_weights = weights[order]
  before = jnp.cumsum(sorted_weights, axis=1) - sorted_weights
  taken = jnp.clip(mass - before, 0, sorted_weights)
  return (
    jnp.zeros_like(taken).at[jnp.arange(len(order))[:, None], order].set(taken)
  )


def largest_share(weights: jax.Array, count: int) -> jax.Array:
  """The total weight of the `count` heaviest workers: float[]."""
  return jnp.sort(weights)[::-1][:count].sum()
