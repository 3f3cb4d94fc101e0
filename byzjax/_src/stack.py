"""Stacks a list of messages, one per worker, into one tree."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from byzjax._src import base, checks


def stack(messages: Sequence[base.Aggregate]) -> base.Messages:
  """Stacks n trees, one per worker, into one tree of messages.

  `stack([x_1, ..., x_n])` has leaves `[n, *shape]`; row i is `x_i`. Rules,
  attacks and pre-aggregators take this form, and `jax.vmap(jax.grad(loss_fn),
  in_axes=(None, 0))` returns it.

  Args:
    messages: a list or tuple of n >= 1 trees with the same structure and, leaf
      by leaf, the same shapes `[*shape]`; any dtype.

  Returns:
    A tree of the same structure with leaves `[n, *shape]`.

  Raises:
    ValueError: if there is no message, or if one differs from the first in
      structure or in the shape of a leaf; the error names its index.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> workers = [{'w': jnp.array([0., 1.])}, {'w': jnp.array([2., 1.])},
    ...            {'w': jnp.array([99., -99.])}]
    >>> byzjax.coordinate_median()(byzjax.stack(workers))
    {'w': Array([2., 1.], dtype=float32)}
  """
  if not isinstance(messages, (list, tuple)) or not messages:
    raise ValueError(
      'stack needs messages to be a list of at least one tree, got'
      f' {type(messages).__name__}'
    )
  structure, shapes = checks.signature(messages[0])
  for i, message in enumerate(messages):
    treedef, found_shapes = checks.signature(message)
    if treedef != structure:
      raise ValueError(
        'stack needs messages of the same structure, got the structure'
        f' {treedef} in messages[{i}] and {structure} in messages[0]'
      )
    if found_shapes != shapes:
      raise ValueError(
        'stack needs messages of the same shapes, got leaves of the shapes'
        f' {found_shapes} in messages[{i}] and {shapes} in messages[0]'
      )
  return jax.tree.map(lambda *rows: jnp.stack(rows), *messages)
