"""Byz-EF21: workers send compressed differences, the rule gets their sums."""

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
  """The worker and server parts of `byz_ef21`, named as round arguments.

  Attributes:
    codec: of the workers: compresses the difference to what was sent so far.
    aggregator: of the server: sums the differences of each worker, and applies
      the rule to the sums.
  """

  codec: base.Codec
  aggregator: base.Aggregator


class Ef21CodecState(NamedTuple):
  """Worker state of `byz_ef21`: the server's copy, and the codec's state."""

  estimate: base.Params
  codec: base.State


class Ef21ServerState(NamedTuple):
  """The server state of `byz_ef21`.

  Attributes:
    estimates: the g_i of every worker, leaves `[n, *shape]`.
    rule: the state of the rule.
  """

  estimates: base.Messages
  rule: base.State


def byz_ef21(
  *, codec: base.Codec, rule: base.Aggregator, num_workers: int
) -> ByzEf21:
  r"""Error feedback with vanishing error, before a robust rule (Byz-EF21).

  .. math::
    c_i = C(x_i - g_i), \qquad g_i \leftarrow g_i + c_i, \qquad
    \text{aggregate} = \mathrm{rule}(g_1, \ldots, g_n)

  Worker i sends c_i, and both sides add it to their copy of g_i, which starts
  at zero. As gradients converge, the differences become small and g_i
  approaches x_i: for a constant x_i its relative error after k rounds is at
  most `(1 - a)^(k/2)` if C preserves a share a (`top_k_codec(num_kept=k)`: k /
  d). With `error_feedback` the rule gets C(.) instead, and the distances
  between honest messages do not vanish, which lets Byzantine messages hide.

  Pass both parts to a round, `**byz_ef21(...)._asdict()`. The codec alone, or
  as `server_codec`, does not work, because nobody sums the differences. With
  `worker=worker_momentum(beta)` it is Byz-EF21-SGDM.

  Attacks act on the c_i, constrained to what the codec can represent. The
  server keeps a g_i for Byzantine workers too: with top-k they can change k of
  its coordinates per round. `RoundInfo.aggregation_error` compares the
  aggregate with the c_i, and has no meaning here. A message with NaN or inf, or
  with which g_i would overflow, is dropped on both sides; so is one of a worker
  of weight 0.

  Args:
    codec: C, a contraction such as `top_k_codec(num_kept=k)` or
      `scaled_sign_codec()`.
    rule: an `Aggregator`; it gets all n estimates, also those of absent
      workers.
    num_workers: n, a Python int. The copies at the server take n times the
      memory of the parameters.

  Returns:
    A `ByzEf21`: a `Codec` with an `Ef21CodecState`, and an `Aggregator` with an
    `Ef21ServerState`, leaves `[n, *shape] -> [*shape]`. A worker is absent if
    its `worker_weights` entry is zero; all others have equal weight.

  Raises:
    TypeError: if `codec` is not a `Codec`.
    ValueError: if another argument has the wrong type or range; at trace time,
      if there are not n messages, or if the rule raises.

  References:
    Rammal, Gruntkowska, Fedin, Gorbunov, Richtarik, 2024, arXiv:2310.09804;
    without Byzantine workers, Richtarik, Sokolov, Fatkhullin, 2021,
    arXiv:2106.05203.

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
    # As the server, which drops what its copy would overflow by.
    estimate = state.estimate + sent
    arrives = reductions.finite_rows(estimate[None], axis_name=axis_name)
    estimate = jnp.where(arrives, estimate, state.estimate)
    return payload, Ef21CodecState(estimate.astype(x.dtype), inner)

  return codec._replace(
    init=init,
    encode=encode,
    name=f'{_NAME}({codec.name})',
    # A vote on the signs of differences is no vote on what they add up to.
    packs_signs=False,
  )
