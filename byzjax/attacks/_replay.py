"""Replayed messages of an earlier round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  checks,
  flat,
  parameters,
  recipes,
)
from byzjax.attacks import _message


class ReplayState(NamedTuple):
  """The state of `replay`.

  Attributes:
    step: int32[], the number of rounds so far.
    history: leaves [delay, *shape], or [delay, n, *shape] for own messages;
      those of round t are at index `t % delay`.
  """

  step: jax.Array
  history: base.Params


@recipes.factory
def replay(
  *, delay: int, own: bool = False, num_workers: int | None = None
) -> base.Attack:
  """Byzantine workers send messages of k rounds ago.

  `x_b(t) = mu(t - k)`, mu the honest mean, or with `own=True` `x_b(t) = x_b(t -
  k)`, what the worker itself computed then. In the first k rounds it is the
  message of round 0. The messages were honest, but are stale.

  Args:
    delay: k >= 1, a Python int. The state holds k times the parameters.
    own: whether each Byzantine worker replays its own messages; the state then
      holds k n times the parameters.
    num_workers: n, a Python int; only for `own=True`.

  Returns:
    An `Attack` with a `ReplayState`: `[n, ...] -> [n, ...]`, dtypes kept.

  Raises:
    ValueError: if an argument is not such an int; at trace time, if
      `is_byzantine` is not bool[n], there are not `num_workers` messages or the
      state is not that of `init(params)`.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.replay(delay=2)
    >>> state, is_byzantine = attack.init(jnp.zeros(1)), jnp.arange(2) < 1
    >>> sent = []
    >>> for honest in (3., 4., 5., 6.):
    ...   x = jnp.array([[0.], [honest]])
    ...   messages, state = attack.apply(x, state, is_byzantine=is_byzantine)
    ...   sent.append(float(messages[0, 0]))
    >>> sent
    [3.0, 3.0, 3.0, 4.0]
  """
  checks.check_count('replay', 'delay', delay, 1)
  checks.check_flag('replay', 'own', own)
  if own or num_workers is not None:
    checks.check_count('replay', 'num_workers', num_workers, 1)

  def init(params):
    lead: tuple[int, ...] = (delay,)
    if own and num_workers is not None:
      lead += (num_workers,)
    return ReplayState(
      jnp.zeros([], jnp.int32), parameters.zeros_like(params, lead)
    )

  def send(view, state):
    n = view.x.shape[0]
    if own and num_workers != n:
      raise ValueError(
        f'replay needs num_workers={num_workers} messages, got {n}'
      )
    if own:
      now = view.x
    else:
      now = _message.mean_of(view)[None]
    slot = state.step % delay
    # Round 0 is at 0 until it is that old.
    first = jnp.where(state.step < delay, 0, slot)
    oldest = jax.tree.map(
      lambda h: jax.lax.dynamic_index_in_dim(h, first, keepdims=not own),
      state.history,
    )
    past, layout = flat.ravel_rows('replay', oldest)
    if past.shape != now.shape:
      raise ValueError(
        'replay needs the state that its init(params) returns, for'
        f' {now.shape[1]} coordinates, got one for {past.shape[1]}'
      )
    past = jnp.where(state.step == 0, now, past.astype(now.dtype))
    history = jax.tree.map(
      lambda h, new: jax.lax.dynamic_update_index_in_dim(
        h, new if own else new[0], slot, 0
      ),
      state.history,
      layout.unravel_rows(now),
    )
    row = (lambda worker: past[worker]) if own else past[0]
    return row, ReplayState(state.step + 1, history)

  if own:
    return _message.from_rows('replay', send, init, reads_own=True)
  return _message.from_view('replay', send, init)
