"""Differences go over the wire, and the rule sees what they add up to."""

import operator
from typing import NamedTuple

import jax.numpy as jnp

from byzjax._src import (
  base,
  checks,
  injected,
  kept_rows,
  layouts,
  parameters,
  reductions,
)

_NAME = 'byz_ef21'


class ByzEf21(NamedTuple):
  """The two sides of `byz_ef21`, named as the arguments of a round.

  Attributes:
    codec: of the workers: it encodes the difference to what was sent so far.
    aggregator: of the server: it adds the differences up, and hands the sums to
      the rule.
  """

  codec: base.Codec
  aggregator: base.Aggregator


class Ef21CodecState(NamedTuple):
  """What a worker keeps: what the server has of it, and the codec's own."""

  estimate: base.Params
  codec: base.State


class Ef21ServerState(NamedTuple):
  """What the server keeps.

  Attributes:
    estimates: of every worker, leaves `[n, *shape]`.
    rule: the state of the rule.
  """

  estimates: base.Messages
  rule: base.State


def byz_ef21(
  *, codec: base.Codec, rule: base.Aggregator, num_workers: int
) -> ByzEf21:
  r"""Error feedback whose error vanishes, in front of a robust rule (Byz-EF21).

  .. math::
    c_i = C(x_i - g_i), \qquad g_i \leftarrow g_i + c_i, \qquad
    \text{aggregate} = \mathrm{rule}(g_1, \ldots, g_n)

  Worker i sends c_i, and both sides add it to their copy of g_i, which starts
  at zero. Where gradients settle, the differences become small, and g_i comes
  as close to x_i as one likes: at a fixed x_i, within `(1 - a)^(k/2)` of it
  after k rounds if C keeps a share a (`top_k_codec(num_kept=k)`: k / d). With
  `error_feedback` the rule sees C(.) instead, whose distances between honest
  workers do not vanish, and attackers hide in them.

  Give both parts to a round, `**byz_ef21(...)._asdict()`; a codec without its
  server, or in the place of `server_codec`, sends differences that nobody adds
  up. With `worker=worker_momentum(beta)` it is Byz-EF21-SGDM.

  Attacks act on the c_i, put into the form that the codec can carry. The
  server keeps a g_i of attackers, too: with top-k they can move k of its
  coordinates in a round. `RoundInfo.aggregation_error` compares the aggregate
  with the c_i, and means nothing here. A message with NaN or inf is dropped, on
  both sides; so is one of a worker of weight 0.

  Args:
    codec: C, a contraction such as `top_k_codec(num_kept=k)` or
      `scaled_sign_codec()`.
    rule: an `Aggregator`, on all n estimates, also those of workers that are
      away.
    num_workers: n, a Python int, for the copies at the server: n times the
      memory of the parameters.

  Returns:
    A `ByzEf21`: a `Codec` with an `Ef21CodecState`, and an `Aggregator` with an
    `Ef21ServerState`, leaves `[n, *shape] -> [*shape]`. A worker with a
    `worker_weights` of zero is away; all others count the same.

  Raises:
    TypeError: if `codec` is not a `Codec`.
    ValueError: if another argument is not what it should be; at trace time, if
      there are not n messages, and as the rule.

  References:
    Rammal, Gruntkowska, Fedin, Gorbunov, Richtarik, 2024, arXiv:2310.09804;
    without attackers, Richtarik, Sokolov, Fatkhullin, 2021, arXiv:2106.05203.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> ef21 = byzjax.byz_ef21(
    ...   codec=byzjax.top_k_codec(num_kept=1),
    ...   rule=byzjax.coordinate_median(), num_workers=3)
    >>> round = byzjax.robust_round(
    ...   lambda w, x: jnp.sum(w * x), num_workers=3,
    ...   optimizer=optax.sgd(1.0), **ef21._asdict())
    >>> state = round.init(jnp.zeros(2))
    >>> x = jnp.tile(jnp.array([1., 2.]), (3, 1))
    >>> for _ in range(3):
    ...   state, info = round.step(state, x, jax.random.key(0))
    ...   print(state.aggregator.estimates[0, :2], state.params)
    [0. 2.] [ 0. -2.]
    [1. 2.] [-1. -4.]
    [1. 2.] [-2. -6.]
  """
  checks.check_kind(_NAME, 'codec', codec, base.Codec)
  rule = injected.as_aggregator(_NAME, rule, 'rule')
  checks.check_count(_NAME, 'num_workers', num_workers, 1)
  sums = kept_rows.rule_on_kept_rows(
    _NAME, rule, num_workers, operator.add, Ef21ServerState
  )
  return ByzEf21(_differences(codec), sums)


def _differences(codec: base.Codec) -> base.Codec:
  """The side of a worker."""

  def init(params):
    zeros = parameters.zeros_like(params)
    return Ef21CodecState(zeros, codec.init(params))

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    payload, inner = codec.encode(
      x - state.estimate,
      state.codec,
      key,
      num_coordinates=num_coordinates,
      axis_name=axis_name,
    )
    true = layouts.columns(x.size, num_coordinates, axis_name)
    sent = jnp.where(true, codec.decode(payload).astype(x.dtype), 0)
    arrives = reductions.finite_rows(sent[None], axis_name=axis_name)
    estimate = jnp.where(arrives, state.estimate + sent, state.estimate)
    return payload, Ef21CodecState(estimate.astype(x.dtype), inner)

  return codec._replace(
    init=init,
    encode=encode,
    name=f'{_NAME}({codec.name})',
    # A vote on the signs of differences is no vote on what they add up to.
    packs_signs=False,
  )
