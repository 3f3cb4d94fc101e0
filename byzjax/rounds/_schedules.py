"""Schedules of Byzantine and of participating workers."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, round_arguments


def random_byzantine(
  num_workers: int, num_byzantine: int, key: jax.Array
) -> base.ByzantineSchedule:
  """A schedule of f Byzantine workers drawn at random in every step.

  Args:
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    key: the key of all draws; step t uses `fold_in(key, t)`.

  Returns:
    A schedule, `step int32[] -> bool[n]`, for `robust_round(byzantine=...)`.

  Raises:
    ValueError: if `n <= 2f` or an argument is not an int.

  Example:
    >>> import byzjax, jax
    >>> schedule = byzjax.random_byzantine(5, 2, jax.random.key(0))
    >>> int(schedule(3).sum())
    2
  """
  round_arguments.check_byzantine(num_workers, num_byzantine)
  checks.check_key('random_byzantine', 'key', key)
  mask = jnp.arange(num_workers) < num_byzantine
  return lambda step: jax.random.permutation(
    jax.random.fold_in(key, step), mask
  )


def random_participation(
  num_workers: int, num_participants: int, key: jax.Array
) -> base.WeightSchedule:
  """Partial participation: m workers drawn at random in every step.

  The draws are uniform without replacement, and independent of those of
  `random_byzantine`, even with the same key.

  Args:
    num_workers: n, a Python int.
    num_participants: m, a Python int with `1 <= m <= n`.
    key: the key of all draws.

  Returns:
    `robust_round(worker_weights=...)`: 1 for workers that take part, else 0.

  Raises:
    ValueError: if an argument is not an int in its range.

  Example:
    >>> import byzjax, jax
    >>> schedule = byzjax.random_participation(5, 2, jax.random.key(0))
    >>> int(schedule(3).sum())
    2
  """
  name = 'random_participation'
  checks.check_count(name, 'num_workers', num_workers, 1)
  checks.check_count(name, 'num_participants', num_participants, 1)
  checks.check_key(name, 'key', key)
  if num_participants > num_workers:
    raise ValueError(
      f'{name} needs num_participants <= num_workers, got {num_participants}'
      f' and {num_workers}'
    )
  weights = (jnp.arange(num_workers) < num_participants).astype(jnp.float32)
  # Another stream of draws than that of random_byzantine.
  key = jax.random.split(key)[1]
  return lambda step: jax.random.permutation(
    jax.random.fold_in(key, step), weights
  )
