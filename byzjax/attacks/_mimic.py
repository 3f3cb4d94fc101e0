"""Byzantine workers copy one honest worker."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  checks,
  parameters,
  recipes,
  reductions,
)
from byzjax.attacks import _message


class MimicState(NamedTuple):
  """The state of `mimic` with `worker=None`.

  Attributes:
    step: int32[], the number of rounds so far.
    mean: running mean of the honest mean.
    direction: estimated direction of largest honest variance; a unit vector.
    target: int32[], the worker that is copied, among all n.
  """

  step: jax.Array
  mean: base.Params
  direction: base.Params
  target: jax.Array


@recipes.factory
def mimic(
  *, worker: int | None = None, num_warmup_rounds: int = 1
) -> base.Attack:
  """Byzantine workers copy the message of one honest worker, bit for bit.

  `x_b = x_i`. The messages are indistinguishable from honest ones; with
  heterogeneous data, worker i is overrepresented by a factor f + 1.

  With `worker=None`, i is chosen in the first T rounds and then stays fixed. In
  round t, with the running mean m of the honest means and `y_i = x_i - m`, the
  direction z of largest variance takes one step of power iteration, `z <-
  unit(t z + unit(sum_i (y_i . z) y_i))`, from z ~ N(0, I) in round 0, and i is
  the honest worker with the largest `x_i . z`. This is the official code of
  bucketing, which has T = 1.

  ByzFL and ByzPy count `worker` among the honest workers, as here; the code of
  bucketing counts it among all. If the target is Byzantine in a round or has a
  NaN, the first honest worker with finite entries replaces it.

  Args:
    worker: the honest worker to copy, a Python int counted from 0 among the
      workers that are not Byzantine; None to choose one as above.
    num_warmup_rounds: T >= 1, a Python int; only for `worker=None`.

  Returns:
    An `Attack`, `[n, ...] -> [n, ...]`, dtypes kept. It has a `MimicState` for
    `worker=None` and none otherwise. The start of the power iteration is drawn
    from the key of the round, or from `jax.random.key(0)`.

  Raises:
    ValueError: if an argument is not such an int; at trace time, if there are
      too few workers or `is_byzantine` is not bool[n].

  References:
    Karimireddy, He, Jaggi, 2022, arXiv:2006.09365.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.mimic(worker=1)
    >>> messages, _ = attack.apply(
    ...   jnp.array([[7., 7.], [1., 2.], [3., 4.]]), attack.init(None),
    ...   is_byzantine=jnp.array([True, False, False]))
    >>> messages[0]
    Array([3., 4.], dtype=float32)
  """
  if worker is not None:
    checks.check_count('mimic', 'worker', worker)
    return _message.from_view(
      'mimic', lambda view, state: (_row(view, _nth(view, worker)), state)
    )
  checks.check_count('mimic', 'num_warmup_rounds', num_warmup_rounds, 1)

  def init(params):
    zero = jnp.zeros([], jnp.int32)
    return MimicState(
      zero, parameters.zeros_like(params), parameters.zeros_like(params), zero
    )

  def send(view, state):
    state = jax.lax.cond(
      state.step < num_warmup_rounds,
      lambda: _search(view, state),
      lambda: state,
    )
    row = _row(view, state.target)
    return row, state._replace(step=state.step + 1)

  return _message.from_view('mimic', send, init)


def _nth(view, worker):
  n = view.x.shape[0]
  if worker >= n:
    raise ValueError(f'mimic needs worker < num_workers, got {worker} and {n}')
  order = jnp.cumsum(~view.is_byzantine)
  return jnp.argmax(order == worker + 1)


def _row(view, target):
  first = jnp.argmax(view.is_honest)
  target = jnp.where(view.is_honest[target], target, first)
  row = jax.lax.dynamic_index_in_dim(view.x, target, keepdims=False)
  return jnp.where(jnp.any(view.is_honest), row, 0)


def _search(view, state):
  """One step of the warm-up."""
  old_mean = _message.recall('mimic', state.mean, view)
  old = _message.recall('mimic', state.direction, view)
  if view.key is None:
    view = view._replace(key=jax.random.key(0))
  noise = _message.draw_row(jax.random.normal, view, 0)
  start = jnp.where(state.step == 0, noise, old)

  # Of the running means: 1 at first, so that the zeros of init do not count.
  share = 1 / (state.step + 1).astype(view.x.dtype)
  mean = _message.mean_of(view)
  mean = (1 - share) * old_mean + share * mean
  y = view.x - mean[None]

  def along(vector):
    return reductions.psum(reductions.matmul(y, vector), view.axis_name)

  weights = jnp.where(view.is_honest, along(start), 0)
  # Only their ratios matter, and the square of small ones would be zero.
  largest = jnp.abs(weights).max()
  weights /= jnp.where(largest > 0, largest, 1)
  pull = reductions.weighted_sum(weights, view.x, lambda row: row - mean)
  pull = _message.unit(pull, view.axis_name)
  direction = (1 - share) * old + share * pull
  direction = _message.unit(direction, view.axis_name)
  scores = jnp.where(view.is_honest, along(direction), -jnp.inf)
  return MimicState(
    state.step,
    _message.remember(state.mean, mean),
    _message.remember(state.direction, direction),
    jnp.argmax(scores).astype(jnp.int32),
  )
