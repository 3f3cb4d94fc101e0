"""The placement of Byzantine workers that is worst for redundant groups."""

import jax
import jax.numpy as jnp

from byzjax._src import checks, groups


def worst_case_byzantine(
  num_workers: int, num_byzantine: int, group_size: int
) -> jax.Array:
  """Byzantine workers placed to have a majority in as many groups as possible.

  (r + 1) / 2 of them are in each of the first `floor(f / ((r + 1) / 2))` groups
  of r workers, and the rest, too few for a majority, in the next group.
  `random_byzantine` places them at random.

  Args:
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    group_size: r >= 1, an odd Python int that divides n.

  Returns:
    bool[n], for `robust_round(byzantine=...)`.

  Raises:
    ValueError: if an argument is not an int in its range.

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205.

  Example:
    >>> import byzjax
    >>> byzjax.worst_case_byzantine(9, 3, 3).reshape(3, 3).astype(int)
    Array([[1, 1, 0],
           [1, 0, 0],
           [0, 0, 0]], dtype=int32)
  """
  name = 'worst_case_byzantine'
  groups.check_groups(name, group_size, num_workers)
  checks.check_count(name, 'num_byzantine', num_byzantine)
  checks.check_majority(name, num_workers, num_byzantine)
  group, member = jnp.divmod(jnp.arange(num_workers), group_size)
  majority = (group_size + 1) // 2
  place = group * majority + member
  return (member < majority) & (place < num_byzantine)
