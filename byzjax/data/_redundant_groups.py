"""Redundant data: the same batch for every worker of a group."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, groups


def redundant_groups(batch: base.Batch, group_size: int) -> base.Batch:
  """Gives the batch of each group to all of its r workers.

  Workers `j r, ..., j r + r - 1` get slice j. Everything else that affects the
  gradients must be the same too; for example, make keys leaves of the batch.
  Equal inputs then give bitwise equal gradients in `robust_round`, under the
  conditions in `group_vote`.

  Args:
    batch: leaves `[n/r, ...]`, one slice per group.
    group_size: r >= 1, an odd Python int.

  Returns:
    The batch of all workers: leaves `[n, ...]`.

  Raises:
    ValueError: if r is not an odd int of at least 1, or the leaves do not share
      their leading axis.

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import data
    >>> data.redundant_groups(jnp.array([5, 7]), 3)
    Array([5, 5, 5, 7, 7, 7], dtype=int32)
  """
  groups.check_group_size('redundant_groups', group_size)
  checks.num_workers('redundant_groups: batch', batch)
  return jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=0), batch)
