"""What nodes broadcast through a codec: steps of a copy that all can follow."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, layouts, nonfinite, reductions
from byzjax.gossip import EdgeAttack, _sending
from byzjax.rounds import _wire


class PublicCopies(NamedTuple):
  """What is known of every node: leaves `[n, ...]`.

  Attributes:
    rows: float[n, d], the sum of what a node has broadcast, from the common
      start on; the same at all of its neighbours.
    codec: what the codecs of the nodes keep.
  """

  rows: jax.Array
  codec: base.State


class Broadcast(NamedTuple):
  """What the nodes of one device have told their neighbours.

  Attributes:
    sent: the public copies, with those of Byzantine nodes as they want them.
    attack: its state.
    copies: after this round, or () without a codec.
    bits: float[m], of one message of every node; or float[], of all together.
  """

  sent: _sending.Sent
  attack: base.State
  copies: PublicCopies | tuple[()]
  bits: jax.Array


def init(codec: base.Codec, rows: jax.Array) -> PublicCopies:
  """All nodes know where the others begin: `rows` float[n, d]."""
  n, d = rows.shape
  zeros = jnp.zeros(_padded(d), rows.dtype)
  return PublicCopies(rows, _wire.init_rows(codec, zeros, n))


def broadcast(
  codec: base.Codec,
  attack: _sending.Attack | None,
  x: jax.Array,
  copies: PublicCopies,
  attack_state: base.State,
  *,
  is_byzantine: jax.Array,
  ids: jax.Array,
  keys: jax.Array,
  attack_key: jax.Array,
) -> Broadcast:
  """The public copies of the nodes with these numbers, a message later.

  `x` float[m, d] are their vectors, `keys` [m] those of their codecs and
  `is_byzantine` bool[n] of all nodes.
  """
  before, d = copies.rows, x.shape[1]
  mine = (is_byzantine[ids] & (attack is not None))[:, None]
  payload, codec_state, bits = _wire.encode_rows(
    codec, x - before, copies.codec, keys, _padded(d)
  )
  # What padding decodes to means nothing.
  moved = _wire.decode_rows(codec, payload, x.dtype)[:, :d]
  # Attackers know their own vectors, and of others what all know.
  sent, attack_state = _sending.byzantine_messages(
    attack,
    jnp.where(mine, x, before + moved),
    attack_state,
    is_byzantine=is_byzantine,
    ids=ids,
    key=attack_key,
  )
  heard = sent.x
  if attack is not None and not isinstance(attack, EdgeAttack):
    carried = before + _constrained(codec, heard - before)
    heard = jnp.where(mine, carried, heard)
  # A message that is no number is heard by nobody, and not for ever.
  usable = nonfinite.usable_norms(reductions.squared_norms(heard))
  after = jnp.where(usable[:, None], heard, before)
  return Broadcast(
    sent._replace(own=jnp.where(mine, x, after), x=heard),
    attack_state,
    PublicCopies(after, codec_state),
    bits,
  )


def _constrained(codec: base.Codec, x: jax.Array) -> jax.Array:
  """The nearest to the rows of x that the wire can carry: float[m, d]."""
  d = x.shape[1]
  padded = jnp.pad(x, ((0, 0), (0, _padded(d) - d)))

  def of_row(row):
    return codec.constrain(row, num_coordinates=d)[:d]

  return jax.vmap(of_row)(padded)


def _padded(size: int) -> int:
  return layouts.padded_size(size, 1)
