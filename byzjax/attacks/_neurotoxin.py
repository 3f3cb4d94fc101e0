"""Neurotoxin: only where honest workers hardly change the model."""

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks, parameters, recipes, reductions
from byzjax.attacks import _message


@recipes.factory
def neurotoxin(*, ratio: base.Scalar = 0.95) -> base.Attack:
  """Attackers leave out the coordinates in which the server moves most.

  `x_b[j] = 0` for the `(1 - ratio) d` coordinates with the largest `|a[j]|`, a
  the last aggregate; all others are what the attacker computed. What it has
  taught is then overwritten less after it stops. Put it behind a data attack by
  `joint_attack`. In the first round nothing is left out.

  This is the form that needs no clean data. The paper masks every local step,
  here it is the message, which is the same for one step of SGD.

  Args:
    ratio: share of the coordinates that attackers keep, in [0, 1]; 1 changes
      nothing; may be traced.

  Returns:
    An `Attack` whose state is the last aggregate: `[n, ...] -> [n, ...]`,
    dtypes kept. It learns the aggregate through `observe`, which rounds call.
    Coordinates that tie with the smallest one to leave out are kept.

  Raises:
    ValueError: if the ratio is out of range; at trace time, if `is_byzantine`
      is not bool[n] or the state is not that of `init(params)`.

  References:
    Zhang, Panda, Song, Yang, Mahoney, Mittal, Gonzalez, Ramchandran, 2022,
    arXiv:2206.10341.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.neurotoxin(ratio=0.5)
    >>> state = attack.observe(attack.init(jnp.zeros(2)), jnp.array([9., -1.]))
    >>> messages, _ = attack.apply(
    ...   jnp.ones([2, 2]), state, is_byzantine=jnp.array([True, False]))
    >>> messages
    Array([[0., 1.],
           [1., 1.]], dtype=float32)
  """
  checks.check_range('neurotoxin', 'ratio', ratio, 0, 1)

  def rows(view, state):
    last = _message.recall('neurotoxin', state, view)
    dropped = view.num_coordinates - jnp.floor(ratio * view.num_coordinates)
    keeps = _magnitudes(last) <= _threshold(last, dropped, view.axis_name)
    return lambda worker: jnp.where(keeps, view.x[worker], 0), state

  def observe(state, aggregate):
    return jax.tree.map(
      lambda old, new: new.astype(old.dtype), state, aggregate
    )

  attack = _message.from_rows(
    'neurotoxin', rows, parameters.zeros_like, reads_own=True
  )
  return attack._replace(observe=observe)


def _magnitudes(x: jax.Array) -> jax.Array:
  """Integers in the order of |x|, NaN last: the bits of non-negative floats."""
  return lax.bitcast_convert_type(jnp.abs(x).astype(jnp.float32), jnp.int32)


def _threshold(
  x: jax.Array, dropped: jax.Array, axis_name: base.AxisName
) -> jax.Array:
  """The least t with no more than `dropped` magnitudes above it: int32[].

  By bisection, bit by bit: no device has all coordinates to sort.
  """
  bits = _magnitudes(x)

  def one_bit(i, t):
    # Is it enough to leave this bit 0, and have all below it 1?
    lower = t - (1 << (30 - i))
    above = reductions.psum(jnp.sum(bits > lower), axis_name)
    return jnp.where(above <= dropped, lower, t)

  return lax.fori_loop(0, 31, one_bit, jnp.asarray(2**31 - 1, jnp.int32))
