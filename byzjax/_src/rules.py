"""The two builders on which every rule stands.

A *coordinate rule* looks at one column of the n x d matrix at a time. A *Gram
rule* finds weights from the n x n matrix of inner products and returns a
weighted sum. Write one function and get a jittable, shardable, NaN-proof
aggregator.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from byzjax._src import (
  base,
  checks,
  flat,
  nonfinite,
  recipes,
  reductions,
  sorting,
)


@recipes.factory
def from_column(
  column_fn: Callable[[sorting.Rows], jax.Array],
  *,
  weighted_fn: Callable[[sorting.Rows, jax.Array], jax.Array] | None = None,
  name: str = 'from_column',
) -> base.Aggregator:
  """A rule from a function of one column of the n x d matrix of messages.

  `aggregate[j] = column_fn(x[0, j], ..., x[n-1, j])`. NaN entries reach the
  function as +inf, so that order statistics push them to the end; entries of
  the result that are not finite become zero.

  Args:
    column_fn: takes the n values of a column, as something that can be indexed
      by worker, and returns one value. It is written for numbers and gets whole
      rows: a list of n arrays `[d]`, or `[n, d]` for large n, which it must
      treat element by element. It raises ValueError for an n that it cannot
      take.
    weighted_fn: the same with a second argument, the weights float[n] of the
      workers, for calls with `worker_weights`; None refuses those.
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

  def inspect(
    messages,
    state,
    params=None,
    *,
    key=None,
    axis_name=None,
    worker_weights=None,
    **extra,
  ):
    del params, key, axis_name, extra
    n = checks.num_workers('messages', messages)
    weights = relative_weights(
      name, worker_weights, n, supported=weighted_fn is not None
    )

    # Leaf by leaf: one kernel each and no copy into a matrix.
    def aggregate_leaf(leaf):
      x, layout = flat.ravel_rows(name, leaf)
      if weights is None or weighted_fn is None:
        y = sorting.by_column(column_fn, x)
      else:
        p = weights.astype(x.dtype)
        y = sorting.by_column(
          lambda column: weighted_fn(column, p),
          x,
          sorting.MAX_WEIGHTED_NETWORK,
        )
      return layout.unravel(jnp.where(jnp.isfinite(y), y, 0))

    aggregate = jax.tree.map(aggregate_leaf, messages)
    return aggregate, state, base.AggregationInfo()

  return base.Aggregator(optax.init_empty_state, inspect, name=name)


def relative_weights(
  name: str, weights: jax.Array | None, n: int, *, supported: bool
) -> jax.Array | None:
  """The workers' weights with zero for what is no weight, or None."""
  if weights is None:
    return None
  if not supported:
    raise ValueError(f'{name} has no version with worker_weights')
  checks.check_worker_weights(name, weights, n)
  weights = jnp.asarray(weights, flat.compute_dtype(jnp.result_type(weights)))
  return nonfinite.usable_weights(weights)


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
  the finite message of median norm. Messages whose squared norm is not finite
  (or would overflow sums of distances) are masked: their rows of the Gram
  matrix are zero and `weights_fn` must give them weight 0. If every message is
  masked the aggregate is zero.

  Args:
    weights_fn: `Gram -> float[n]`, weights that sum to one; or an
      `AggregationInfo` that has them, and more. It raises ValueError for an n
      that it cannot take.
    selects: set it if the weights average a few whole messages. They are then
      combined without the centre, and a single one is returned bit for bit.
    weighted: set it if the function heeds `gram.worker_weights`; calls with
      worker weights are refused otherwise.
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

  def weights(gram, state, *, key=None):
    del key
    info = weights_fn(gram)
    if not isinstance(info, base.AggregationInfo):
      info = base.AggregationInfo(info)
    return info, state

  rule = base.GramRule(
    optax.init_empty_state, weights, selects=selects, weighted=weighted
  )
  return from_gram_rule(rule, name)


def from_gram_rule(rule: base.GramRule, name: str) -> base.Aggregator:
  """The aggregator of a Gram rule: two passes over the messages."""

  def inspect(
    messages,
    state,
    params=None,
    *,
    key=None,
    axis_name=None,
    worker_weights=None,
    **extra,
  ):
    del params, extra
    x, layout = flat.ravel_rows(name, messages)
    center = rule.center and layout.ravel(rule.center(state))
    gram, center = gram_of(x, center, axis_name=axis_name)
    gram = weighted_gram(name, gram, worker_weights, supported=rule.weighted)
    info, state = rule.weights(gram, state, key=key)
    assert info.weights is not None
    weights = jnp.where(gram.mask, info.weights, 0).astype(x.dtype)
    aggregate = reductions.combine(weights, x, None if rule.selects else center)
    info = info._replace(weights=weights, mask=gram.mask)
    if rule.selects:
      info = info._replace(kept=weights > 0)
    return layout.unravel(aggregate), rule.remember(state, aggregate), info

  return base.Aggregator(rule.init, inspect, rule, name)


def weighted_gram(
  name: str,
  gram: base.Gram,
  worker_weights: jax.Array | None,
  *,
  supported: bool,
) -> base.Gram:
  """The Gram matrix with the workers' weights, if there are any."""
  n = gram.mask.shape[0]
  weights = relative_weights(name, worker_weights, n, supported=supported)
  if weights is None:
    return gram
  weights = jnp.where(gram.mask, weights, 0).astype(gram.inner.dtype)
  return gram._replace(worker_weights=weights)


def gram_of(
  x: jax.Array,
  center: jax.Array | None = None,
  *,
  axis_name: base.AxisName = None,
) -> tuple[base.Gram, jax.Array]:
  """The Gram matrix of the rows of `[n, d]`, and the centre [d] it is about."""
  norms = reductions.squared_norms(x, axis_name=axis_name)
  mask = nonfinite.usable_norms(norms)
  if center is None:
    center = median_norm_row(x, norms, mask)
  inner = reductions.centered_gram(x, center, mask, axis_name=axis_name)
  return base.Gram(inner, jnp.where(mask, norms, 0), mask), center


def median_norm_row(
  x: jax.Array, squared_norms: jax.Array, mask: jax.Array
) -> jax.Array:
  """The usable row of (lower) median norm, a centre that no minority moves."""
  order = jnp.argsort(jnp.where(mask, squared_norms, jnp.inf))
  middle = order[jnp.maximum(mask.sum() - 1, 0) // 2]
  row = jax.lax.dynamic_index_in_dim(x, middle, keepdims=False)
  return jnp.where(jnp.any(mask), row, 0)


def squared_distances(gram: base.Gram) -> jax.Array:
  """The squared distances between messages, from their Gram matrix.

  `D_ij = |x_i - x_j|^2 = K_ii + K_jj - 2 K_ij`, at least zero, and exactly zero
  on the diagonal. The distance to a masked message is a number that exceeds any
  sum of others and still leaves room for a sum over n: a message that is short
  of usable neighbours stays comparable.

  Args:
    gram: of n messages, as `from_weights` hands it to a rule.

  Returns:
    float[n, n].

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> def nearest_to_first(gram):
    ...   distances = byzjax.squared_distances(gram)[0]
    ...   return jnp.zeros(3).at[jnp.argmin(distances[1:]) + 1].set(1)
    >>> rule = byzjax.from_weights(nearest_to_first, selects=True)
    >>> rule(jnp.array([[0.], [5.], [2.]]))
    Array([2.], dtype=float32)
  """
  n = gram.mask.shape[0]
  norms = jnp.diagonal(gram.inner)
  squared = jnp.maximum(norms[:, None] + norms[None] - 2 * gram.inner, 0)
  usable = gram.mask[:, None] & gram.mask[None]
  far = jnp.finfo(squared.dtype).max / (2 * n)
  squared = jnp.where(usable, squared, far)
  return jnp.where(jnp.eye(n, dtype=bool), 0, squared)


def nearest(
  distances: jax.Array, weights: jax.Array, mass: jax.Array
) -> jax.Array:
  """How much of every worker the nearest `mass` around each worker takes.

  Row i goes through the workers by `distances[i]` (ties to the lowest index)
  and takes of each all its weight, until `mass` is reached; of the last only
  what is missing.

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
  """What the `count` heaviest workers weigh together: float[]."""
  return jnp.sort(weights)[::-1][:count].sum()


def mix_gram(gram: base.Gram, matrix: jax.Array) -> base.Gram:
  """The Gram matrix of `M x` around the same centre: `M K M^T`.

  Args:
    gram: of n messages.
    matrix: float[m, n], rows that sum to one, or to zero for messages that do
      not exist; masked columns are zero.

  Returns:
    The Gram matrix of the m mixed messages.
  """
  inner = reductions.matmul(reductions.matmul(matrix, gram.inner), matrix.T)
  # |c + M y|^2 from |c + y|^2: only the parts linear in M y and c mix.
  norms = reductions.matmul(
    matrix, gram.squared_norms - jnp.diagonal(gram.inner)
  ) + jnp.diagonal(inner)
  mask = jnp.any(matrix != 0, axis=1)
  norms = jnp.where(mask, jnp.maximum(norms, 0), 0)
  return base.Gram(inner, norms, mask, gram.worker_weights)


def from_matrix(
  name: str,
  matrix_fn: Callable[[base.Gram, jax.Array | None], jax.Array],
  *,
  weighted: bool = False,
) -> base.PreAggregator:
  """A linear pre-aggregator from `(gram, key) -> M [m, n]`."""

  def matrix_with_state(gram, state, *, key=None):
    return matrix_fn(gram, key), state

  def apply(messages, state, *, key=None, axis_name=None, worker_weights=None):
    x, layout = flat.ravel_rows(name, messages)
    gram, center = gram_of(x, axis_name=axis_name)
    gram = weighted_gram(name, gram, worker_weights, supported=weighted)
    mixed = reductions.mix(matrix_fn(gram, key), x, center, gram.mask)
    return layout.unravel_rows(mixed), state

  return base.PreAggregator(
    optax.init_empty_state,
    apply,
    matrix=matrix_with_state,
    weighted=weighted,
    name=name,
  )


def from_factors(
  name: str, factors_fn: Callable[[jax.Array, jax.Array], jax.Array]
) -> base.PreAggregator:
  """A pre-aggregator `y_i = s_i x_i`, `s = factors_fn(squared norms, mask)`.

  Messages that are masked stay what they are: not usable.
  """

  def factors_with_state(squared_norms, mask, state, *, key=None):
    del key
    factors = factors_fn(jnp.where(mask, squared_norms, 0), mask)
    return jnp.where(mask, factors, 1).astype(squared_norms.dtype), state

  def apply(messages, state, *, key=None, axis_name=None):
    return scale_rows(
      factors_with_state, messages, state, key=key, axis_name=axis_name
    )[:2]

  return base.PreAggregator(
    optax.init_empty_state,
    apply,
    factors=factors_with_state,
    weighted=True,
    name=name,
  )


def scale_rows(
  factors_fn: Callable[..., tuple[jax.Array, base.State]],
  messages: base.Messages,
  state: base.State,
  *,
  key: jax.Array | None = None,
  axis_name: base.AxisName = None,
) -> tuple[base.Messages, base.State, jax.Array]:
  """`s_i x_i` for every message, NaN where it is masked; and the factors s."""
  x, layout = flat.ravel_rows('scaling', messages)
  norms = reductions.squared_norms(x, axis_name=axis_name)
  mask = nonfinite.usable_norms(norms)
  factors, state = factors_fn(norms, mask, state, key=key)
  scaled = jnp.where(mask[:, None], factors[:, None] * x, jnp.nan)
  return layout.unravel_rows(scaled), state, factors
