"""Sparse signs, sent with a probability proportional to the magnitude."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import (
  base,
  bits,
  checks,
  codec_type,
  draws,
  flat,
  recipes,
)


@recipes.factory
def sparsign_codec(*, budget: base.Scalar) -> base.Codec:
  """Sparse signs: large coordinates are sent more often (sparsignSGD).

  `C(x)[j] = sign(x[j])` with probability `min(1, B |x[j]|)`, else 0. As long as
  `B |x[j]| <= 1`, the mean of C(x) is `B x`: a majority vote on such messages
  follows the sum of the workers' gradients, whereas a vote on signs follows
  their number. The paper requires `B |x[j]| <= 1`; the minimum with 1 is added
  here. No magnitude is sent, unlike in `terngrad_codec`. A NaN is not sent.

  The positions of non-zero entries are sent in Golomb-Rice code, whose length
  `bits_per_message` counts; inside a program the payload has two bits per
  coordinate.

  A Byzantine message need not be sparse: each of its non-zero entries becomes
  +1 or -1.

  Args:
    budget: B >= 0, in 1 / the units of x; may be traced.

  Returns:
    A `Codec` without state that needs a key: float[D] to uint32[2, D / 32].

  Raises:
    ValueError: if B is negative; at trace time, if no key is given.

  References:
    Jin, He, Zhong, Zhang, Quek, Dai, 2023, arXiv:2302.09634.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> codec = byzjax.sparsign_codec(budget=1e9)
    >>> x = jnp.array([-1., 0., 7.] + 29 * [0.])
    >>> payload, _ = codec.encode(x, (), jax.random.key(0), num_coordinates=3)
    >>> print(codec.decode(payload)[:3], codec.bits_per_message(payload, 3))
    [-1.  0.  1.] 7.0
  """
  checks.check_range('sparsign_codec', 'budget', budget, 0)

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    del num_coordinates
    codec_type.check_vector('sparsign_codec', x)
    return bits.pack_ternary(sparsign(x, budget, key, axis_name)), state

  def constrain(x, *, num_coordinates, axis_name=None):
    del num_coordinates, axis_name
    return jnp.where(jnp.isnan(x), 0, jnp.sign(x))

  return base.Codec(
    optax.init_empty_state,
    encode,
    bits.unpack_ternary,
    bits.ternary_bits,
    constrain,
    'sparsign_codec',
  )


def sparsign(
  x: jax.Array,
  budget: base.Scalar,
  key: jax.Array | None,
  axis_name: base.AxisName = None,
) -> jax.Array:
  """`sign(x)` with probability `min(1, B |x|)`, else 0: [D] -> [D]."""
  key = draws.require_key('sparsign_codec', key)
  # In float32 at least: a draw of half precision is zero too often.
  wide = x.astype(flat.compute_dtype(x))
  uniform = draws.draw(jax.random.uniform, key, wide, axis_name)
  sent = uniform < budget * jnp.abs(wide)  # False for NaN
  return jnp.where(sent, jnp.sign(x), 0)
