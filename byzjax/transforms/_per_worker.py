"""Any optax transform, applied to each worker separately."""

import jax
import optax

from byzjax._src import checks, round_arguments


def per_worker(
  tx: optax.GradientTransformation, num_workers: int
) -> optax.GradientTransformationExtraArgs:
  """Applies an optax transform to stacked updates, with one state per worker.

  Row i of the result is `tx.update` on row i with worker i's own state:
  clipping uses each worker's own norm, momentum is kept per worker.

  All states start equal: a transform that keeps a random key, such as
  `optax.add_noise`, draws the same noise for every worker.

  Args:
    tx: any optax transform.
    num_workers: n >= 1, a Python int.

  Returns:
    An optax transform whose updates have leaves `[n, *shape]` and whose state
    leaves are `[n, ...]`; params keep their shapes. Extra arguments are passed
    to every worker unchanged.

  Raises:
    ValueError: if n is not a positive int; at trace time, if the leaves of the
      updates do not have n rows.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> tx = byzjax.per_worker(optax.clip_by_global_norm(1.0), 2)
    >>> updates = jnp.array([[3., 4.], [0., 0.5]])
    >>> tx.update(updates, tx.init(jnp.zeros(2)))[0]
    Array([[0.6, 0.8],
           [0. , 0.5]], dtype=float32)
  """
  checks.check_count('per_worker', 'num_workers', num_workers, 1)
  round_arguments.check_transform('per_worker', 'tx', tx)
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    return jax.vmap(tx.init, in_axes=None, axis_size=num_workers)(params)

  def update_fn(updates, state, params=None, **extra):
    rows = checks.num_workers('per_worker: updates', updates)
    if rows != num_workers:
      raise ValueError(
        f'per_worker needs updates with num_workers={num_workers} rows, got'
        f' {rows}'
      )

    def update_row(row, row_state):
      return tx.update(row, row_state, params, **extra)

    return jax.vmap(update_row)(updates, state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
