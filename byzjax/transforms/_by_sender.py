"""Any optax transform, with a separate state for each sender."""

import jax
import optax
from jax import lax

from byzjax._src import checks, round_arguments
from byzjax.transforms import _arrivals


def by_sender(
  tx: optax.GradientTransformation, num_workers: int
) -> optax.GradientTransformationExtraArgs:
  """Keeps K states of a transform at the server, one per sender.

  A message is transformed with the state of the worker that sent it, and only
  that state changes. (`per_worker` does the same for messages that arrive all
  at once.) Around `optax.sgd(eta, momentum=beta)` this is shifted momentum,
  `u_k <- beta u_k + g`, `w <- w - eta u_k`; around a moving average it gives
  each worker's own gradient estimate, which rules that use history need.

  All states start equal. A schedule inside counts the messages of one worker,
  not of all.

  `update(updates, state, params, *, worker)`: `asynchronous_round` passes the
  number of the sender; in your own training loop, pass it yourself. All
  arguments are forwarded to `tx`.

  Args:
    tx: any optax transform.
    num_workers: K >= 1, a Python int.

  Returns:
    An optax transform of single messages with state leaves `[K, ...]`.

  Raises:
    ValueError: if K is not a positive int; at trace time, if `worker` is
      missing.

  References:
    Shifted momentum: Giladi, Nacson, Hoffer, Soudry, 2019, arXiv:1909.12340.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> tx = byzjax.by_sender(optax.sgd(1.0, momentum=0.5), 2)
    >>> w = jnp.zeros(1)
    >>> state = tx.init(w)
    >>> for worker in (0, 1, 0):
    ...   update, state = tx.update(jnp.ones(1), state, w, worker=worker)
    ...   print(update)
    [-1.]
    [-1.]
    [-1.5]
  """
  name = 'by_sender'
  checks.check_count(name, 'num_workers', num_workers, 1)
  round_arguments.check_transform(name, 'tx', tx)
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    return jax.vmap(tx.init, in_axes=None, axis_size=num_workers)(params)

  def update_fn(updates, state, params=None, *, worker=None, **extra):
    _arrivals.require(name, worker=worker)
    own = jax.tree.map(
      lambda rows: lax.dynamic_index_in_dim(rows, worker, keepdims=False), state
    )
    updates, own = tx.update(updates, own, params, worker=worker, **extra)

    def with_row(rows, row):
      if row.dtype != rows.dtype:  # Keys have no `astype`.
        row = row.astype(rows.dtype)
      return lax.dynamic_update_index_in_dim(rows, row, worker, 0)

    return updates, jax.tree.map(with_row, state, own)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
