"""A learning rate by the progress of the data, and not of the worker."""

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

  Progress is the number of local steps that have been taken on a shard of data,
  by whichever worker. With a learning rate by the worker's own count, fast
  workers would be done while slow ones still warm up; by progress, each shard
  sees one whole schedule. This ends a chain, as
  `optax.scale_by_learning_rate` does.

  A shard may run past the end it was planned for: use a schedule that then
  stays above zero, such as `optax.warmup_cosine_decay_schedule(0., peak,
  warmup_steps, decay_steps, end)` with `end > 0`, which takes no more steps
  into account than `decay_steps`.

  `update(updates, state, params, *, progress)`: `asynchronous_round` gives the
  progress to the optimizer of the local steps, which counts the steps before
  this one, and to that of the server, when the job began. In `local_round`,
  where every worker has its own data, it is the local steps of all rounds
  before, also of those that the worker missed, and those of this one. In a loop
  of your own pass it to `update`.

  Args:
    schedule: int32[] -> the learning rate.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: at trace time, if the progress is missing.

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

  A schedule inside of an optimizer counts its own updates. In `fed_avg`, and
  wherever a worker begins every round with a fresh optimizer
  (`local_state='reset'`), that count begins anew as well, so such a rate never
  decays. Rounds tell the optimizer of the local steps which round it is; this
  ends a chain, as `optax.scale_by_learning_rate` does.

  `update(updates, state, params, *, round)`: in a loop of your own pass it to
  `update`.

  Args:
    schedule: int32[], the rounds before this one -> the learning rate.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: at trace time, if the round is missing.

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
        f'{name} needs {count} in update, got None: rounds give it to the'
        ' optimizer of the local steps, and a loop of your own passes it to'
        ' update'
      )
    step_size = schedule(jnp.asarray(known))

    def scale(u):
      return (-step_size * u.astype(flat.compute_dtype(u))).astype(u.dtype)

    return jax.tree.map(scale, updates), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )
