"""A bias that looks like noise in one round and accumulates over many."""

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


class DriftState(NamedTuple):
  """The state of `drift`.

  Attributes:
    direction: u, a unit vector; zeros until it is known.
    known: bool[], whether the direction has been chosen.
  """

  direction: base.Params
  known: jax.Array


@recipes.factory
def drift(
  *, strength: base.Scalar = 1.0, direction: str = 'random'
) -> base.Attack:
  """Byzantine workers add a small bias in the same direction in every round.

  `x_b = mu + a rho u`, where mu is the honest mean, rho the mean distance of
  the honest messages to it, and u a unit vector fixed in the first round. With
  `a <= 1` the message is not an outlier in any round, but the bias of `a rho f
  / n` accumulates, whereas the noise of honest workers averages out. Momentum
  of the workers is a defence because it makes rho small.

  Args:
    strength: a >= 0; may be traced.
    direction: 'random' for u uniform on the sphere, drawn from the key of the
      first round, or 'gradient' for `-mu / |mu|` of the first round in which mu
      is not zero.

  Returns:
    An `Attack` with a `DriftState`: `[n, ...] -> [n, ...]`, dtypes kept; it
    needs a `key` for a random direction, which does not depend on the number of
    devices.

  Raises:
    ValueError: if an argument is out of range; at trace time, if `is_byzantine`
      is not bool[n], the state is not that of `init(params)` or a key is
      missing.

  References:
    Karimireddy, He, Jaggi, 2021, arXiv:2012.10333, on attacks that are coupled
    over time.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.drift(direction='gradient')
    >>> x = jnp.array([[7., 7.], [2., 0.], [4., 0.]])
    >>> messages, _ = attack.apply(
    ...   x, attack.init(x[0]), is_byzantine=jnp.array([True, False, False]))
    >>> messages[0]
    Array([2., 0.], dtype=float32)
  """
  checks.check_range('drift', 'strength', strength, 0)
  checks.check_choice('drift', 'direction', direction, ('random', 'gradient'))

  def init(params):
    return DriftState(parameters.zeros_like(params), jnp.zeros([], bool))

  def choose(view, state, mean):
    if direction == 'random':
      u = _message.draw_row(jax.random.normal, view, 0)
      u *= _message.columns(view)
    else:
      u = -mean
    length = _message.norm(u, view.axis_name)
    u /= jnp.where(length > 0, length, 1)
    return DriftState(_message.remember(state.direction, u), length > 0)

  def send(view, state):
    if direction == 'random':
      _message.require_key('drift', view.key)
    mean = _message.mean_of(view)
    # A tree of another size is refused before it meets the other branch.
    _message.recall('drift', state.direction, view)
    state = jax.lax.cond(
      state.known, lambda: state, lambda: choose(view, state, mean)
    )
    u = _message.recall('drift', state.direction, view)
    squared = reductions.squared_norms(
      view.x, center=mean, axis_name=view.axis_name
    )
    distances = reductions.sqrt(jnp.where(view.is_honest, squared, 0))
    rho = distances.sum() / jnp.maximum(view.is_honest.sum(), 1)
    return mean + (strength * rho).astype(mean.dtype) * u, state

  return _message.from_view('drift', send, init)
