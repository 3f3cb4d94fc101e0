"""Paths through shared modules: the parameters of a path.

The parameters of a modular network are a tuple with one tree per level; the
leaves of level l have a leading axis of its K_l modules. A path takes one
module of each level.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks


class BestPaths(NamedTuple):
  """The best parameters of each path so far, for `keep_best`.

  Attributes:
    params: leaves `[P, ...]`.
    losses: float[P], their losses on the path's validation data; inf before the
      first.
  """

  params: base.Params
  losses: jax.Array


def grid_paths(num_modules: Sequence[int]) -> np.ndarray:
  """All paths through a modular network: every choice of a module per level.

  Args:
    num_modules: `(K_1, ..., K_L)`, each a Python int of at least 1.

  Returns:
    int32 `[P, L]` with `P = K_1 ... K_L`, the last level changing fastest. Each
    module of level l is on `P / K_l` paths.

  Raises:
    ValueError: if there is no level, or a number is not an int of at least 1.

  Example:
    >>> from byzjax import models
    >>> models.grid_paths((2, 2)).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
  """
  checks.check_sequence('grid_paths', 'num_modules', num_modules)
  if not num_modules:
    raise ValueError(
      'grid_paths needs num_modules of at least one level, got none'
    )
  for count in num_modules:
    checks.check_count('grid_paths', 'num_modules', count, 1)
  grid = np.indices(tuple(num_modules)).reshape(len(num_modules), -1)
  return grid.T.astype(np.int32)


def check_paths(name: str, paths: np.ndarray) -> tuple[np.ndarray, list[int]]:
  """The paths as int32 `[P, L]`, and K_l of each level, or a ValueError."""
  array = np.asarray(paths)
  if (
    array.ndim != 2
    or not array.size
    or not np.issubdtype(array.dtype, np.integer)
  ):
    raise ValueError(
      f'{name} needs paths to be integers [num_paths, num_levels], got'
      f' {array.dtype}{list(array.shape)}'
    )
  counts = []
  for level, column in enumerate(array.T):
    modules = np.unique(column)
    if not np.array_equal(modules, np.arange(modules.size)):
      raise ValueError(
        f'{name} needs paths to go through every module of a level, numbered'
        f' from 0, got {modules.tolist()} in level {level}'
      )
    counts.append(int(modules.size))
  return array.astype(np.int32), counts


def check_modules(name: str, params: base.Params, counts: list[int]) -> None:
  """Raises ValueError unless `params` has these levels of modules."""
  if not isinstance(params, tuple) or len(params) != len(counts):
    form = len(params) if isinstance(params, tuple) else type(params).__name__
    raise ValueError(
      f'{name} needs params to be a tuple of {len(counts)} levels, as paths'
      f' have, got {form}'
    )
  for level, (modules, count) in enumerate(zip(params, counts)):
    rows = checks.num_workers(f'{name}: level {level} of params', modules)
    if rows != count:
      raise ValueError(
        f'{name} needs params of level {level} to have leaves [{count}, ...], a'
        f' row for each of its modules, got {rows} rows'
      )


def select_path(
  params: base.Params, path: np.ndarray | jax.Array
) -> tuple[base.Params, ...]:
  """The parameters of one path, or of several.

  Args:
    params: a tuple over levels of trees with leaves `[K_l, ...]`.
    path: int `[L]`, a module for each level, or int `[P, L]`, several paths;
      may be traced.

  Returns:
    The tuple over levels of trees with leaves `[...]`, or `[P, ...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> params = (jnp.array([1., 2.]), jnp.array([3., 4.]))
    >>> [float(x) for x in models.select_path(params, jnp.array([1, 0]))]
    [2.0, 3.0]
  """
  path = jnp.asarray(path)
  return tuple(
    jax.tree.map(lambda x, m=path[..., level]: x[m], modules)
    for level, modules in enumerate(params)
  )


def repeat_modules(
  levels: Sequence[base.Params], num_modules: Sequence[int]
) -> tuple[base.Params, ...]:
  """A modular network of copies of one network, equal in each level.

  Args:
    levels: the parameters of one path, a tree per level.
    num_modules: `(K_1, ..., K_L)`, Python ints of at least 1.

  Returns:
    A tuple over levels of trees with leaves `[K_l, ...]`.

  Raises:
    ValueError: if there is not one number for each level, or a number is not an
      int of at least 1.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> shared, own = models.repeat_modules([jnp.ones(3), jnp.zeros(2)], (1, 4))
    >>> shared.shape, own.shape
    ((1, 3), (4, 2))
  """
  if len(levels) != len(num_modules):
    raise ValueError(
      'repeat_modules needs num_modules for each level, got'
      f' {len(num_modules)} for {len(levels)}'
    )
  for count in num_modules:
    checks.check_count('repeat_modules', 'num_modules', count, 1)
  return tuple(
    jax.tree.map(lambda x, k=count: jnp.repeat(x[None], k, axis=0), level)
    for level, count in zip(levels, num_modules)
  )


def best_paths(path_params: base.Params) -> BestPaths:
  """The initial state for `keep_best`, with losses of inf.

  Args:
    path_params: leaves `[P, ...]`, such as `select_path(params, paths)`.

  Returns:
    A `BestPaths` of these parameters; any finite loss is better.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> print(models.best_paths((jnp.zeros([2, 3]),)).losses)
    [inf inf]
  """
  count = checks.num_workers('best_paths', path_params)
  return BestPaths(path_params, jnp.full(count, jnp.inf))


def keep_best(
  state: BestPaths, path_params: base.Params, losses: jax.Array
) -> BestPaths:
  """Early stopping for each path: keeps the parameters of the lowest loss.

  A path's parameters replace the kept ones if their loss is lower; on ties the
  old ones stay, and NaN is never kept. Paths that share a module may then hold
  different copies of it.

  Args:
    state: from `best_paths` or the last call.
    path_params: leaves `[P, ...]`, the parameters of the paths now.
    losses: float[P], the loss of each path on its own validation data.

  Returns:
    A `BestPaths` of the same shapes.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> state = models.best_paths(jnp.array([0., 0.]))
    >>> for params, losses in [([1., 1.], [3., 4.]), ([2., 2.], [5., 2.])]:
    ...   state = models.keep_best(state, jnp.array(params), jnp.array(losses))
    >>> print(state.params, state.losses)
    [1. 2.] [3. 2.]
  """
  better = losses < state.losses

  def choose(new, old):
    return jnp.where(better.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

  return BestPaths(
    jax.tree.map(choose, path_params, state.params),
    choose(losses, state.losses),
  )
