"""A learning rate by the progress of the data, and not of the worker."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax._src import checks, flat
from byzjax.transforms import _arrivals


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
  progress to the optimizer of the local steps, this step counted, and to that
  of the server, when the job began; in a loop of your own pass it to `update`.

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
  name = 'scale_by_progress'
  checks.check_function(name, 'schedule', schedule)

  def update_fn(updates, state, params=None, *, progress=None, **extra):
    del params, extra
    _arrivals.require(name, progress=progress)
    step_size = schedule(jnp.asarray(progress))

    def scale(u):
      return (-step_size * u.astype(flat.compute_dtype(u))).astype(u.dtype)

    return jax.tree.map(scale, updates), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )
