"""Learning rates as functions of data progress or of the round number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax._src import checks, flat


def scale_by_progress(
  schedule: Callable[[jax.Array], Any],
) -> optax.GradientTransformationExtraArgs:
  """Multiplies by `-schedule(progress)`, for workers of different speeds.

  Progress is the number of local steps taken on a shard of data, by any worker.
  If the learning rate depended on the worker's own step count, fast workers
  would finish while slow ones are still warming up; with progress, each shard
  goes through the whole schedule once. Put this last in a chain, as
  `optax.scale_by_learning_rate`.

  A shard may be trained beyond its planned end: use a schedule that stays above
  zero there, such as `optax.warmup_cosine_decay_schedule(0., peak,
  warmup_steps, decay_steps, end)` with `end > 0`, which is constant after
  `decay_steps`.

  `update(updates, state, params, *, progress)`: `asynchronous_round` passes the
  progress: to the optimizer of the local steps, the number of steps before the
  current one; to that of the server, the number when the job began. In
  `local_round`, where every worker has its own data, it counts the local steps
  of this and all earlier rounds, including those that the worker missed. In
  your own training loop, pass it yourself.

  Args:
    schedule: int32[] -> learning rate.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: at trace time, if `progress` is missing.

  References:
    Liu et al., 2024, arXiv:2401.09135.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> schedule = optax.warmup_cosine_decay_schedule(0., 1., 2, 4, 0.5)
    >>> tx = byzjax.scale_by_progress(schedule)
    >>> for progress in (1, 2, 9):
    ...   print(tx.update(jnp.ones(1), tx.init(None), progress=progress)[0])
    [-0.5]
    [-1.]
    [-0.5]
  """
  return _scale_by('scale_by_progress', 'progress', schedule)


def scale_by_round(
  schedule: Callable[[jax.Array], Any],
) -> optax.GradientTransformationExtraArgs:
  """Multiplies by `-schedule(round)`, for local steps with a decaying rate.

  A schedule inside an optimizer counts the optimizer's own updates. If a worker
  starts every round with a fresh optimizer, as in `fed_avg` and with
  `local_state='reset'`, that count restarts too, so the rate never decays.
  Rounds pass the round number to the optimizer of the local steps. Put this
  last in a chain, as `optax.scale_by_learning_rate`.

  `update(updates, state, params, *, round)`: in your own training loop, pass
  the round number yourself.

  Args:
    schedule: int32[], the number of earlier rounds -> learning rate.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: at trace time, if `round` is missing.

  References:
    McMahan, Moore, Ramage, Hampson, Aguera y Arcas, 2017, arXiv:1602.05629,
    for rates that decay by rounds.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> tx = byzjax.scale_by_round(optax.exponential_decay(1.0, 1, 0.5))
    >>> for round in (0, 1, 1, 2):
    ...   print(tx.update(jnp.ones(1), tx.init(None), round=round)[0])
    [-1.]
    [-0.5]
    [-0.5]
    [-0.25]
  """
  return _scale_by('scale_by_round', 'round', schedule)


def _scale_by(name: str, count: str, schedule: Callable[[jax.Array], Any]):
  checks.check_function(name, 'schedule', schedule)

  def update_fn(updates, state, params=None, **extra):
    del params
    known = extra.get(count)
    if known is None:
      raise ValueError(
        f'{name} needs {count} in update, got None: rounds pass it to the'
        ' optimizer of the local steps; pass it yourself in your own training'
        ' loop'
      )
    step_size = schedule(jnp.asarray(known))

    def scale(u):
      return (-step_size * u.astype(flat.compute_dtype(u))).astype(u.dtype)

    return jax.tree.map(scale, updates), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )
