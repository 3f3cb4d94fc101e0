"""A transformer cut into levels of modules, and joined again."""

from typing import Any

from flax import nnx

from byzjax._src import checks

_FIRST = ('embedding', 'positions')
_BLOCKS = 'blocks'


def split_levels(params: Any, num_levels: int) -> tuple[Any, ...]:
  """Cuts the parameters of a `Transformer` into levels, bottom to top.

  The blocks are divided evenly, larger parts first; the first level also has
  the embeddings, and the last one the last norm and the head.

  Args:
    params: from `split(Transformer(...))`.
    num_levels: L, a Python int from 1 to the number of blocks.

  Returns:
    A tuple of L trees, for `repeat_modules`.

  Raises:
    ValueError: if the parameters are not those of a `Transformer`, or there
      are more levels than blocks.

  Example:
    >>> import jax
    >>> from byzjax import models
    >>> from flax import nnx
    >>> graphdef, params = models.split(models.Transformer(
    ...   30, num_layers=4, width=8, num_heads=2, length=16, rngs=nnx.Rngs(0)))
    >>> levels = models.split_levels(params, 2)
    >>> [sorted(level) for level in levels]
    [['blocks', 'embedding', 'positions'], ['blocks', 'head', 'norm']]
    >>> [sorted(level['blocks']) for level in levels]
    [[0, 1], [2, 3]]
  """
  name = 'split_levels'
  checks.check_count(name, 'num_levels', num_levels, 1)
  if not isinstance(params, nnx.State) or not {_BLOCKS, *_FIRST} <= set(params):
    raise ValueError(
      f'{name} needs params to be those of a Transformer, got'
      f' {type(params).__name__}'
    )
  flat = nnx.to_flat_state(params)
  num_blocks = len(params[_BLOCKS])
  if num_levels > num_blocks:
    raise ValueError(
      f'{name} needs num_levels <= num_layers, got {num_levels} and'
      f' {num_blocks}'
    )
  size, larger = divmod(num_blocks, num_levels)
  level_of_block = [
    level for level in range(num_levels) for _ in range(size + (level < larger))
  ]

  def level_of(path):
    if path[0] == _BLOCKS:
      return level_of_block[path[1]]
    return 0 if path[0] in _FIRST else num_levels - 1

  return tuple(
    nnx.from_flat_state([leaf for leaf in flat if level_of(leaf[0]) == level])
    for level in range(num_levels)
  )


def join_levels(levels: tuple[Any, ...]) -> Any:
  """The parameters of a model from those of its levels.

  Args:
    levels: from `split_levels`, or the modules of one path, `select_path(...)`.

  Returns:
    The parameters, for `nnx.merge(graphdef, params)` and for the losses.

  Example:
    >>> import jax
    >>> from byzjax import models
    >>> from flax import nnx
    >>> graphdef, params = models.split(models.Transformer(
    ...   30, num_layers=4, width=8, num_heads=2, length=16, rngs=nnx.Rngs(0)))
    >>> joined = models.join_levels(models.split_levels(params, 3))
    >>> jax.tree.structure(joined) == jax.tree.structure(params)
    True
  """
  return nnx.merge_state(*levels)
