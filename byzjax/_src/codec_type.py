"""The type of a codec: how one message is encoded and decoded."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from byzjax._src import recipes

Payload: TypeAlias = Any  # a pytree of arrays


class Codec(NamedTuple):
  """How one vector is encoded for communication, and its length in bits.

  Vectors are flat, `float[D]`: the d = `num_coordinates` coordinates, and zeros
  up to D, a multiple of 32. Leaves of a payload are scalars, or arrays whose
  last axis is D (a number per coordinate) or D / 32 (a word per 32 consecutive
  coordinates). So a payload can be cut where coordinates are split over
  devices, and `encode` can run on such a slice: with an `axis_name`, x is the
  local part of the coordinates, sums over coordinates are completed over the
  mesh axes, and scalars of the payload are the same on all devices.

  Attributes:
    init: `params float[D] -> state`.
    encode: `(x float[D], state, key, *, num_coordinates, axis_name=None) ->
      (payload, state)`, for one vector; the key may be None for codecs without
      randomness.
    decode: `payload -> float[D]`, element by element given the scalars, so it
      also takes a slice of a payload. Decoded padding is undefined.
    bits_per_message: `(payload, num_coordinates) -> float32[]`, the exact
      length of this message (a whole one, not a slice).
    constrain: `(x float[D], *, num_coordinates, axis_name=None) -> float[D]`,
      the possible output of `decode` nearest to x. A Byzantine worker need not
      use `encode`, but the server can only decode such messages. Decoded
      messages do not change.
    packs_signs: whether the payload is uint32[D / 32], a bit per coordinate
      that is 1 for -1 and 0 for +1, so that a vote can be taken without
      decoding.
    name: as in `byzjax.sign_codec`.
  """

  init: Callable[[Any], Any]
  encode: Callable[..., tuple[Payload, Any]]
  decode: Callable[[Payload], jax.Array]
  bits_per_message: Callable[[Payload, int], jax.Array]
  constrain: Callable[..., jax.Array]
  name: str = 'codec'
  packs_signs: bool = False

  @property
  def config(self) -> dict[str, Any] | None:
    """The hyper-parameters by name, as `Aggregator.config`."""
    return recipes.config_of(self)

  def __repr__(self) -> str:
    return recipes.show(self, f'codec {self.name}')

  def __reduce__(self) -> tuple[Any, ...]:
    return recipes.reduce(self)


def check_vector(name: str, x: Any) -> None:
  """Raises ValueError unless `x` is one vector."""
  if jnp.ndim(x) != 1:
    raise ValueError(
      f'{name} encodes one vector float[D], got the shape {[*jnp.shape(x)]}:'
      ' did you forget jax.vmap over the workers?'
    )
