"""A filter for single messages: how much may a gradient change? (Kardam)"""

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
  """Rejects messages that change faster than gradients do, as Kardam does.

  A message g, computed at the (stale) parameters x, is taken if it passes two
  filters.

  1. Lipschitz. Its coefficient `|g - g'| / |x - x'|` must be at most the (K -
     f)-th smallest of the last coefficients of all K workers, its own among
     them: no f workers can push that above the largest of the honest ones. With
     `reference='accepted'`, g' and x' are the last message that was taken; with
     'sender', the last one of the same worker.
  2. Frequency. The sender must not be among those of the last 2 f messages that
     were taken. So of any 2 f + 1 in a row at least f + 1 are honest.

  A rejected message leaves the parameters and the state of `inner` as they
  were. Messages with NaN or inf are always rejected, and not remembered.
  Kardam's dampening of stale messages is `optax.chain(
  byzjax.discount_staleness(1.0), ...)` as inner.

  Kardam's coefficients of the workers are those of 'sender'. Alone they are no
  defence: who repeats one vector has the coefficient 0, however long it is. Its
  published code then compares them with another one, `|g - g'| / |w - w'|` of
  the last message taken and the server's parameters at that time. That is over
  one step, where a worker's is over all steps that it is late: noise makes it
  larger, rejections make it larger still, and training stands still but for the
  rule that after K rejections anything is taken. 'accepted' compares like with
  like instead, and keeps 2 vectors in place of 2 K. The published code has no
  frequency filter, takes each worker's largest of several coefficients and a
  fixed quantile, 2 / 3.

  What it cannot do. Until K - f workers have a coefficient, everything finite
  passes: clip before, for instance with `optax.clip_by_global_norm`. A lie as
  small as the noise of honest gradients passes. A message computed where g' was
  has nothing to be divided by, and is rejected unless it is the same: a
  synchronous schedule is not for this filter. And the second filter makes fast
  workers wait for slow ones.

  `update(updates, state, params, *, worker, stale_params)`:
  `asynchronous_round` gives these; in a loop of your own pass the number of the
  sender and the parameters that were sent to it. All arguments are handed to
  `inner`.

  Args:
    inner: the optimizer of the messages that are taken.
    num_workers: K, a Python int, with `K >= 3 f + 1`.
    num_byzantine: f >= 0, a Python int.
    reference: 'accepted' or 'sender'.
    limit_frequency: whether there is the second filter.

  Returns:
    An optax transform with a `LipschitzFilterState`: memory of 2 models beside
    that of `inner`, of 2 K by 'sender'.

  Raises:
    ValueError: if a count is out of range or the reference unknown; at trace
      time, if worker or stale_params is missing.

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
      points=rows,
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
    finite = jnp.all(
      jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(updates)])
    )
    change = _distance(updates, _row(state.messages, row))
    distance = _distance(stale_params, _row(state.points, row))
    moved = state.has_message[row] & (distance > 0)
    ratio = (change / jnp.where(moved, distance, 1)).astype(jnp.float32)
    old = state.coefficients[worker]
    own = jnp.where(finite & moved, ratio, old)
    coefficients = state.coefficients.at[worker].set(own)
    tested = own
    if not by_sender:
      # Where nothing moved an old coefficient must not speak for this message.
      stuck = jnp.where(change > 0, jnp.inf, 0)
      tested = jnp.where(moved, ratio, stuck)
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
    recent = state.recent_senders
    if recent.size:
      shifted = jnp.roll(recent, -1).at[-1].set(worker)
      recent = jnp.where(accepted, shifted, recent)
    keep = finite if by_sender else accepted
    return updates_out, LipschitzFilterState(
      inner=inner_state,
      messages=_with_row(state.messages, row, updates, keep),
      points=_with_row(state.points, row, stale_params, keep),
      has_message=state.has_message.at[row].set(state.has_message[row] | keep),
      coefficients=coefficients,
      recent_senders=recent,
      num_rejected=state.num_rejected + (~accepted).astype(jnp.int32),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


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
