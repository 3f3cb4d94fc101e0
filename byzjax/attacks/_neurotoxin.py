"""Neurotoxin: attack only the coordinates that honest workers rarely change."""

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks, parameters, recipes, reductions
from byzjax.attacks import _message


@recipes.factory
def neurotoxin(*, ratio: base.Scalar = 0.95) -> base.Attack:
  """Byzantine workers zero the coordinates in which the server moves most.

  `x_b[j] = 0` for the `(1 - ratio) d` coordinates with the largest `|a[j]|`,
  where a is the last aggregate; all others are what the Byzantine worker
  computed. After the attack stops, honest updates then overwrite less of it, so
  the backdoor lasts longer. Combine it with a data attack by `joint_attack`. In
  the first round no coordinate is set to zero.

  This variant needs no clean data. The paper masks every local step; here the
  message is masked, which is the same for one step of SGD.

  Args:
    ratio: share of the coordinates that are kept, in [0, 1]; 1 changes nothing;
      may be traced.

  Returns:
    An `Attack` whose state is the last aggregate: `[n, ...] -> [n, ...]`,
    dtypes kept. Rounds pass it the aggregate through `observe`. Coordinates
    that tie at the threshold are kept.

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
