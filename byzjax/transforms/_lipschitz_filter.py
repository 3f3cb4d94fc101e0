"""Kardam: rejects single messages by an empirical Lipschitz coefficient."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import (
  base,
  checks,
  flat,
  parameters,
  reductions,
  round_arguments,
)
from byzjax.transforms import _arrivals

Reference = Literal['accepted', 'sender']


class LipschitzFilterState(NamedTuple):
  """State of `lipschitz_filter`; R is K by 'sender' and 1 by 'accepted'."""

  inner: optax.OptState
  messages: base.Params  # leaves [R, ...], what messages are compared with
  points: base.Params  # leaves [R, ...], where those were computed
  has_message: jax.Array  # bool[R]
  coefficients: jax.Array  # float32[K]; +inf while unknown
  recent_senders: jax.Array  # int32[2 f], of accepted messages; -1 for none
  num_rejected: jax.Array  # shape=(), dtype=int32


def lipschitz_filter(
  inner: optax.GradientTransformation,
  *,
  num_workers: int,
  num_byzantine: int,
  reference: Reference = 'accepted',
  limit_frequency: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Rejects messages that change faster than honest gradients (Kardam).

  A message g, computed at the (stale) parameters x, is accepted if it passes
  two filters.

  1. Lipschitz. Its coefficient `|g - g'| / |x - x'|` must be at most the (K -
     f)-th smallest of the latest coefficients of all K workers, its own
     included: f workers cannot raise that above the largest honest one. With
     `reference='accepted'`, g' and x' are those of the last accepted message;
     with 'sender', those of the last message of the same worker.
  2. Frequency. The sender must not be among the senders of the last 2 f
     accepted messages. So of any 2 f + 1 in a row at least f + 1 are honest.

  A rejected message changes neither the parameters nor the state of `inner`.
  Messages with NaN or inf are always rejected, and not stored. Kardam's
  dampening of stale messages is
  `optax.chain(byzjax.discount_staleness(1.0), ...)` as `inner`.

  Kardam computes the coefficients of the workers as with 'sender'. This alone
  is no defence: a worker that repeats one vector has the coefficient 0,
  whatever the norm of the vector. The published code compares these
  coefficients with another one, `|g - g'| / |w - w'|`, between the last
  accepted message and the server's parameters at that time. This covers one
  step, whereas a worker's coefficient covers all steps by which it is late, so
  noise makes it larger, rejections increase it further, and training would
  stall without that code's rule to accept any message after K rejections.
  'accepted' compares coefficients of the same kind, and stores 2 vectors
  instead of 2 K. The published code has no frequency filter, takes each
  worker's largest of several coefficients, and a fixed quantile, 2 / 3.

  Limitations. Until K - f workers have a coefficient, every finite message is
  accepted: clip first, for instance with `optax.clip_by_global_norm`. A
  Byzantine perturbation as small as the noise of honest gradients is accepted.
  A message computed at x' itself has no coefficient, and is rejected unless it
  equals g', so the filter does not suit synchronous schedules. The frequency
  filter makes fast workers wait for slow ones.

  `update(updates, state, params, *, worker, stale_params)`:
  `asynchronous_round` passes these; in your own training loop, pass the number
  of the sender and the parameters that were sent to it. All arguments are
  forwarded to `inner`.

  Args:
    inner: the optimizer that gets the accepted messages.
    num_workers: K, a Python int, with `K >= 3 f + 1`.
    num_byzantine: f >= 0, a Python int.
    reference: 'accepted' or 'sender', see above.
    limit_frequency: whether to apply the second filter.

  Returns:
    An optax transform with a `LipschitzFilterState`: memory of 2 models in
    addition to `inner`, or of 2 K for 'sender'.

  Raises:
    ValueError: if a count is out of range or the reference unknown; at trace
      time, if `worker` or `stale_params` is missing.

  References:
    Damaskinos, El Mhamdi, Guerraoui, Patra, Taziki, 2018, arXiv:1802.07928.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> tx = byzjax.lipschitz_filter(
    ...   optax.sgd(0.5), num_workers=4, num_byzantine=1)
    >>> w = jnp.ones(1)
    >>> state = tx.init(w)
    >>> for t in range(13):
    ...   gradient = -9 * w if t == 12 else w
    ...   update, state = tx.update(
    ...     gradient, state, w, worker=t % 4, stale_params=w)
    ...   w = w + update
    >>> print(update, state.num_rejected)
    [0.] 1
  """
  name, k, f = 'lipschitz_filter', num_workers, num_byzantine
  checks.check_count(name, 'num_byzantine', f)
  checks.check_count(name, 'num_workers', k, 1)
  if k < 3 * f + 1:
    raise ValueError(
      f'{name} needs num_workers >= 3 * num_byzantine + 1, got {k} and {f}'
    )
  checks.check_choice(name, 'reference', reference, get_args(Reference))
  checks.check_flag(name, 'limit_frequency', limit_frequency)
  round_arguments.check_transform(name, 'inner', inner)
  by_sender = reference == 'sender'
  num_rows = k if by_sender else 1
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    rows = parameters.zeros_like(params, (num_rows,))
    return LipschitzFilterState(
      inner=inner.init(params),
      messages=rows,
      # Not the same buffers twice: a state may be donated.
      points=optax.tree.zeros_like(rows),
      has_message=jnp.zeros(num_rows, bool),
      coefficients=jnp.full(k, jnp.inf, jnp.float32),
      recent_senders=jnp.full(2 * f if limit_frequency else 0, -1, jnp.int32),
      num_rejected=jnp.zeros([], jnp.int32),
    )

  def update_fn(
    updates, state, params=None, *, worker=None, stale_params=None, **extra
  ):
    _arrivals.require(name, worker=worker, stale_params=stale_params)
    worker = jnp.asarray(worker, jnp.int32)
    row = worker if by_sender else jnp.zeros([], jnp.int32)
    finite = reductions.finite_tree(updates)
    ratio, moved, differs = _coefficient(updates, stale_params, state, row)
    own = jnp.where(finite & moved, ratio, state.coefficients[worker])
    coefficients = state.coefficients.at[worker].set(own)
    tested = own
    if not by_sender:
      # Where nothing moved an old coefficient must not speak for this message.
      tested = jnp.where(moved, ratio, jnp.where(differs, jnp.inf, 0))
    is_smooth = tested <= jnp.sort(coefficients)[k - f - 1]
    is_rare = jnp.all(state.recent_senders != worker)
    accepted = finite & is_smooth & is_rare

    updates_out, inner_state = _arrivals.update_if(
      accepted,
      inner,
      updates,
      state.inner,
      params,
      worker=worker,
      stale_params=stale_params,
      **extra,
    )
    keep = finite if by_sender else accepted
    return updates_out, LipschitzFilterState(
      inner=inner_state,
      messages=_with_row(state.messages, row, updates, keep),
      points=_with_row(state.points, row, stale_params, keep),
      has_message=state.has_message.at[row].set(state.has_message[row] | keep),
      coefficients=coefficients,
      recent_senders=_pushed(state.recent_senders, worker, accepted),
      num_rejected=state.num_rejected + (~accepted).astype(jnp.int32),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _coefficient(updates, point, state: LipschitzFilterState, row):
  """`|g - g'| / |x - x'|`, whether there is one, and whether g differs."""
  change = _distance(updates, _row(state.messages, row))
  distance = _distance(point, _row(state.points, row))
  moved = state.has_message[row] & (distance > 0)
  ratio = (change / jnp.where(moved, distance, 1)).astype(jnp.float32)
  return ratio, moved, change > 0


def _pushed(queue: jax.Array, number: jax.Array, accepted: jax.Array):
  """The queue with a number at its end, if it is accepted."""
  if not queue.size:
    return queue
  return jnp.where(accepted, jnp.roll(queue, -1).at[-1].set(number), queue)


def _distance(x: base.Params, y: base.Params) -> jax.Array:
  """The norm of `x - y` over all leaves."""

  def squares(a, b):
    dtype = flat.compute_dtype(a)
    return jnp.sum(jnp.square(a.astype(dtype) - b.astype(dtype)))

  return reductions.sqrt(
    jnp.asarray(sum(jax.tree.leaves(jax.tree.map(squares, x, y))))
  )


def _row(rows: base.Params, index: jax.Array) -> base.Params:
  return jax.tree.map(
    lambda r: lax.dynamic_index_in_dim(r, index, keepdims=False), rows
  )


def _with_row(rows, index, row, keep) -> base.Params:
  """Rows with one replaced, where that is to be kept."""

  def put(r, new):
    old = lax.dynamic_index_in_dim(r, index, keepdims=False)
    new = jnp.where(keep, new.astype(r.dtype), old)
    return lax.dynamic_update_index_in_dim(r, new, index, 0)

  return jax.tree.map(put, rows, row)
