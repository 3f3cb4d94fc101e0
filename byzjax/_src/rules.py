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

from byzjax._src import base, flat, nonfinite, reductions, sorting


def from_column(
  column_fn: Callable[[sorting.Rows], jax.Array],
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

  Returns:
    An `Aggregator` without state. Leaves keep their dtype.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> ends = byzjax.from_column(lambda x: (x[0] + x[-1]) / 2)
    >>> ends(jnp.array([[1., 2.], [9., 9.], [3., 4.]]))
    Array([2., 3.], dtype=float32)
  """

  def inspect(
    messages, state, params=None, *, key=None, axis_name=None, **extra
  ):
    del params, key, axis_name, extra
    base.num_workers('messages', messages)

    # Leaf by leaf: one kernel each and no copy into a matrix.
    def aggregate_leaf(leaf):
      x, layout = flat.ravel_rows('from_column', leaf)
      y = column_fn(sorting.rows_of(x))
      return layout.unravel(jnp.where(jnp.isfinite(y), y, 0))

    aggregate = jax.tree.map(aggregate_leaf, messages)
    return aggregate, state, base.AggregationInfo()

  return base.Aggregator(optax.init_empty_state, inspect)


def from_weights(
  weights_fn: Callable[[base.Gram], jax.Array], *, selects: bool = False
) -> base.Aggregator:
  """A rule from a function of the Gram matrix to weights.

  `aggregate = c + sum_i w_i (x_i - c)` with `w = weights_fn(gram)`, where c is
  the finite message of median norm. Messages whose squared norm is not finite
  (or would overflow sums of distances) are masked: their rows of the Gram
  matrix are zero and `weights_fn` must give them weight 0. If every message is
  masked the aggregate is zero.

  Args:
    weights_fn: `Gram -> float[n]`, weights that sum to one. It raises
      ValueError for an n that it cannot take.
    selects: set it if the weights average a few whole messages. They are then
      combined without the centre, and a single one is returned bit for bit.

  Returns:
    An `Aggregator` without state. Leaves keep their dtype.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> uniform = byzjax.from_weights(lambda gram: gram.mask / gram.mask.sum())
    >>> uniform(jnp.array([[1., 2.], [3., 4.], [jnp.nan, 0.]]))
    Array([2., 3.], dtype=float32)
  """

  def weights(gram, state, *, key=None):
    del key
    return weights_fn(gram), state

  return from_gram_rule(
    base.GramRule(optax.init_empty_state, weights, selects=selects)
  )


def from_gram_rule(rule: base.GramRule) -> base.Aggregator:
  """The aggregator of a Gram rule: two passes over the messages."""

  def inspect(
    messages, state, params=None, *, key=None, axis_name=None, **extra
  ):
    del params, extra
    x, layout = flat.ravel_rows('aggregator', messages)
    center = rule.center and layout.ravel(rule.center(state))
    gram, center = gram_of(x, center, axis_name=axis_name)
    weights, state = rule.weights(gram, state, key=key)
    weights = jnp.where(gram.mask, weights, 0).astype(x.dtype)
    aggregate = reductions.combine(weights, x, None if rule.selects else center)
    info = base.AggregationInfo(weights, gram.mask)
    return layout.unravel(aggregate), rule.remember(state, aggregate), info

  return base.Aggregator(rule.init, inspect, rule)


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
  mask = jnp.any(matrix > 0, axis=1)
  return base.Gram(inner, jnp.where(mask, jnp.maximum(norms, 0), 0), mask)


def from_matrix(
  init: Callable[[base.Params], base.State],
  matrix_fn: Callable[..., tuple[jax.Array, base.State]],
) -> base.PreAggregator:
  """A linear pre-aggregator from `(gram, state, *, key) -> (M, state)`."""

  def apply(messages, state, *, key=None, axis_name=None):
    x, layout = flat.ravel_rows('pre-aggregator', messages)
    gram, center = gram_of(x, axis_name=axis_name)
    matrix, state = matrix_fn(gram, state, key=key)
    mixed = reductions.mix(matrix, x, center, gram.mask)
    return layout.unravel_rows(mixed), state

  return base.PreAggregator(init, apply, matrix_fn)


def stateless_matrix(
  matrix_fn: Callable[..., jax.Array],
) -> base.PreAggregator:
  """A linear pre-aggregator from `(gram, key) -> M [m, n]`."""

  def with_state(gram, state, *, key=None):
    return matrix_fn(gram, key), state

  return from_matrix(optax.init_empty_state, with_state)
