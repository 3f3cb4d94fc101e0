"""Error feedback: the compression error is added to the next message."""

from typing import NamedTuple

import jax.numpy as jnp

from byzjax._src import (
  base,
  layouts,
  parameters,
  recipes,
)


class ErrorFeedbackState(NamedTuple):
  """State of `error_feedback`: the error so far, and the codec's own state."""

  residual: base.Params
  codec: base.State


@recipes.factory
def error_feedback(codec: base.Codec) -> base.Codec:
  """Adds the compression error of a codec to the next message.

  `a_t = x_t + e_t`, send `C(a_t)`, `e_{t+1} = a_t - C(a_t)`, `e_0 = 0`. As
  `codec` of a round, each worker keeps its own e; as `server_codec` the server
  keeps one, so workers may be absent. Entries of e that are not finite are set
  to zero, so that one bad gradient does not affect all later messages.

  Apply learning rates after it, because e is in the units of the messages.

  Args:
    codec: C, an approximate compressor, such as `scaled_sign_codec()` or
      `top_k_codec(num_kept=k)`. With an unscaled one, such as `sign_codec()`, e
      may grow without bound.

  Returns:
    A `Codec` with an `ErrorFeedbackState`; payload and bits as of `codec`.

  Raises:
    ValueError: if `codec` is not a `Codec`.

  References:
    Seide, Fu, Droppo, Li, Yu, 2014; Karimireddy, Rebjock, Stich, Jaggi, 2019,
    arXiv:1901.09847.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> codec = byzjax.error_feedback(byzjax.scaled_sign_codec())
    >>> x = jnp.array([1., 3.] + 30 * [0.])
    >>> payload, state = codec.encode(
    ...   x, codec.init(x), None, num_coordinates=2)
    >>> print(codec.decode(payload)[:2], state.residual[:2])
    [2. 2.] [-1.  1.]
  """
  if not isinstance(codec, base.Codec):
    raise ValueError(
      f'error_feedback needs codec to be a Codec, got {type(codec).__name__}'
    )

  def init(params):
    return ErrorFeedbackState(parameters.zeros_like(params), codec.init(params))

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    total = x + state.residual
    payload, inner = codec.encode(
      total,
      state.codec,
      key,
      num_coordinates=num_coordinates,
      axis_name=axis_name,
    )
    residual = total - codec.decode(payload).astype(total.dtype)
    true = layouts.columns(x.size, num_coordinates, axis_name)
    residual = jnp.where(true & jnp.isfinite(residual), residual, 0)
    return payload, ErrorFeedbackState(residual.astype(x.dtype), inner)

  return codec._replace(
    init=init, encode=encode, name=f'error_feedback({codec.name})'
  )
