"""The loss along a piecewise-linear path."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat


def linear_path(params_a: base.Params, params_b: base.Params) -> base.Params:
  """The straight line between two points, as a path with one segment.

  Args:
    params_a: any pytree of arrays.
    params_b: a tree of the same structure, shapes and dtypes.

  Returns:
    A tree with leaves `[2, *shape]`, for `loss_along_path`.

  Raises:
    ValueError: if the trees differ in structure, or leaves in shape.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.analysis.linear_path(jnp.zeros(3), jnp.ones(3)).tolist()
    [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
  """
  return jax.tree.map(lambda a, b: jnp.stack([a, b]), params_a, params_b)


def loss_along_path(
  path: base.Params,
  loss_fn: Callable[[base.Params], jax.Array],
  *,
  points_per_segment: int = 41,
) -> jax.Array:
  """The loss at evenly spaced points of each segment of a path.

  L((1 - t) p_s + t p_{s+1}) for s = 0, ..., S - 1 and t from 0 to 1; the points
  of a segment include both of its ends, which are exactly the breakpoints.

  Args:
    path: leaves `[S + 1, *shape]`, the S + 1 >= 2 breakpoints p_s, as from
      `dropout_path` and `linear_path`.
    loss_fn: `params -> scalar`, the loss on fixed data; or an array, such as a
      loss and an accuracy, whose axes then come last in the result.
    points_per_segment: P, a Python int >= 2.

  Returns:
    float[S, P], computed one after another, so that memory does not grow with
    the path. The function is pure: jit it with the data of `loss_fn` as an
    argument, and map it over several paths.

  Raises:
    ValueError: if there is no segment, or the number of points is below 2.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> path = jnp.array([-1., 1., 1.])
    >>> byzjax.analysis.loss_along_path(
    ...   path, jnp.square, points_per_segment=3).tolist()
    [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
  """
  name = 'loss_along_path'
  checks.check_function(name, 'loss_fn', loss_fn)
  checks.check_count(name, 'points_per_segment', points_per_segment, 2)
  num_segments = checks.num_workers(f'{name}: path', path) - 1
  if num_segments < 1:
    raise ValueError(f'{name} needs path to have at least 2 points, got 1')

  def loss_at(place):
    segment, t = place

    def between(x):
      dtype = flat.compute_dtype(x)
      start, end = x[segment].astype(dtype), x[segment + 1].astype(dtype)
      s = t.astype(dtype)
      return ((1 - s) * start + s * end).astype(x.dtype)

    return loss_fn(jax.tree.map(between, path))

  ts = jnp.linspace(0, 1, points_per_segment)
  places = jnp.meshgrid(jnp.arange(num_segments), ts, indexing='ij')
  losses = jax.lax.map(loss_at, tuple(x.ravel() for x in places))
  return losses.reshape(num_segments, points_per_segment, *losses.shape[1:])


def path_barrier(losses: jax.Array) -> jax.Array:
  """The barrier of a path: its maximum loss above the higher of its ends.

  max_path L - max(L(start), L(end)) >= 0: the smallest eps for which the ends
  are eps-connected by this path, at the given points.

  Args:
    losses: float[..., S, P], from `loss_along_path`.

  Returns:
    float[...]; NaN if a loss is NaN.

  References:
    Shevchenko, Mondelli, 2020, arXiv:1912.10095.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> losses = jnp.array([[1., 2., 1.5], [1.5, 4., 3.]])
    >>> print(byzjax.analysis.path_barrier(losses))
    1.0
  """
  ends = jnp.maximum(losses[..., 0, 0], losses[..., -1, -1])
  return losses.max(axis=(-2, -1)) - ends
