"""Which pytrees may be the parameters of a model."""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from byzjax._src import base


def check_parameters(name: str, params: base.Params) -> None:
  """Raises ValueError unless all leaves are real numbers that can be trained.

  Modules and states of `flax.nnx` must have no state besides `nnx.Param`.
  """
  check_whole_state(name, 'params', params)
  leaves = jax.tree.leaves_with_path(params)
  if not leaves:
    raise ValueError(f'{name} needs params of at least one leaf, got {params}')
  for path, leaf in leaves:
    dtype = getattr(leaf, 'dtype', None)
    if dtype is None:
      dtype = jnp.result_type(leaf)
    # First, for a key has no dtype that jnp knows.
    is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if is_key or not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(
        f'{name} needs the leaves of params to be real numbers, which have'
        f' gradients, got {dtype}{list(jnp.shape(leaf))} at'
        f' params{jax.tree_util.keystr(path)}: keep what is not trained out of'
        ' params, in loss_fn or in the batch'
      )


def check_whole_state(name: str, argument: str, model: Any) -> None:
  """Raises ValueError if a model has state other than `nnx.Param`."""
  # Not imported: whoever has a module of it has imported it, and nobody else
  # needs it.
  nnx: Any = sys.modules.get('flax.nnx')
  if nnx is None:
    return

  def is_part(x):
    return isinstance(x, nnx.Module | nnx.Variable)

  others, owner = set(), type(model).__name__
  for part in jax.tree.leaves(model, is_leaf=is_part):
    if isinstance(part, nnx.Module):
      rest = nnx.split(part, nnx.Param, ...)[2]
      kinds = {type(leaf).__name__ for _, leaf in nnx.to_flat_state(rest)}
      owner = type(part).__name__ if kinds else owner
      others |= kinds
    elif isinstance(part, nnx.Variable) and not isinstance(part, nnx.Param):
      others.add(type(part).__name__)
  if others:
    raise ValueError(
      f'{name}: {argument} must hold its whole state in nnx.Param, got '
      f'{", ".join(sorted(others))} in {owner}. The server aggregates '
      'parameters only: batch statistics would leak from worker to worker '
      'without an aggregation rule, also from Byzantine ones. Normalise each '
      'example by itself instead (nnx.GroupNorm, nnx.LayerNorm). For dropout, '
      'make nnx.Dropout without rngs, and pass it rngs made from the key of '
      'the loss (needs_key=True).'
    )


def zeros_like(params: base.Params, lead: tuple[int, ...] = ()) -> base.Params:
  """Zeros with leaves [*lead, *shape], split over devices as the params are."""

  # With a dtype of its own: a weak type would be lost in the first update, and
  # the second call would compile again.
  def zeros(p):
    shape, dtype = lead + jnp.shape(p), jnp.result_type(p)
    return jnp.full_like(p, 0, shape=shape, dtype=dtype)

  return jax.tree.map(zeros, params)
