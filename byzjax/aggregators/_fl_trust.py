"""FLTrust: messages weighted by their cosine to a trusted gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  nonfinite,
  recipes,
  reductions,
)

_NAME = 'fl_trust'
# So many coordinates may each lose a square as large as the smallest number.
_ROOM = 2.0**40


@recipes.factory
def fl_trust() -> base.Aggregator:
  """Rescaled messages, weighted by cosine to a trusted gradient (FLTrust).

  The server computes a gradient `g` of its own on a small clean root data set.
  With `t_i = max(cos(x_i, g), 0)`:

  `aggregate = sum_i t_i (|g| / |x_i|) x_i / sum_i t_i`

  Every message is scaled to the norm of g, short ones too. The norm of the
  aggregate is at most that of g, and its inner product with g is never
  negative, for any number of Byzantine workers: f is not an input, and may be n
  - 1. The price is a bias towards the root data: what these lack, the model may
  not learn. With `worker_weights` p, `p_i t_i` replaces t_i.

  Pass g by the keyword `trusted`: `rule.update(messages, state, trusted=g)`,
  `rule(messages, trusted=g)`; in training, give `robust_round` its
  `root_batch`, from which it computes g every round. Compute g as the workers
  compute their messages, since its norm becomes theirs: with the same momentum,
  and in local training with as many steps. Rounds without the argument
  `root_batch` reject this rule.

  The weight is zero for a message of zeros and for one that is not finite. The
  aggregate is zero if every t_i is, or if g is zero or not finite. A norm below
  1.1e-13, in float32, counts as zero: squares are lost there, and what is left
  is too short a norm to divide by.

  Implementations differ in how they treat zeros. The official code adds 1e-9 to
  every norm and to the sum of the t_i. FL-Byzantine-Library adds nothing: one
  message of zeros makes its aggregate NaN. If every t_i is zero, FLPoison takes
  the plain mean of the rescaled messages, which gives Byzantine workers full
  influence.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports the weights of the messages before rescaling (which need not sum to
    one), `1 - cos` as scores, and `|g| / |x_i|` as factors.

  Raises:
    ValueError: at trace time, if `trusted` is missing, or if it is not a tree
      like one message, leaves `[*shape]`.

  References:
    Cao, Fang, Liu, Gong, 2021, NDSS, arXiv:2012.13995.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> x = jnp.array([[2., 0.], [0., 4.], [-9., -9.]])
    >>> byzjax.fl_trust()(x, trusted=jnp.array([1., 1.])).round(3)
    Array([0.707, 0.707], dtype=float32)
  """

  def aggregate(messages, state, call):
    rows, layout = calls.rows_of(_NAME, messages, call)
    own = _own(messages, layout, call.extra.get('trusted'))
    axes = call.axis_name
    squared = reductions.squared_norms(rows, axis_name=axes)
    own_squared = reductions.squared_norms(own[None], axis_name=axes)[0]
    mask = nonfinite.usable_norms(squared)
    least = jnp.finfo(squared.dtype).tiny * _ROOM
    norms, own_norm = (
      reductions.sqrt(jnp.where(nonfinite.usable_norms(x) & (x >= least), x, 0))
      for x in (squared, own_squared)
    )
    products = norms * own_norm
    known = products > 0
    cosines = reductions.products(rows, own, axis_name=axes)
    cosines = jnp.where(known, cosines / jnp.where(known, products, 1), 0)
    trust = jnp.clip(cosines, 0, 1)
    if call.worker_weights is not None:
      trust *= call.worker_weights.astype(trust.dtype)
    factors = jnp.where(known, own_norm / jnp.where(known, norms, 1), 0)
    weights = reductions.shares(known, trust) * factors
    info = base.AggregationInfo(
      weights,
      mask,
      kept=weights > 0,
      scores=jnp.where(mask, 1 - cosines, jnp.inf),
      factors=factors,
    )
    return layout.unravel(reductions.combine(weights, rows)), state, info

  return calls.from_messages(
    _NAME, aggregate, weighted=True, takes_common=True, takes_norms=True
  )


def _own(
  messages: base.Messages, layout: flat.RowLayout, trusted: Any
) -> jax.Array:
  """The trusted gradient as one vector float[d], or a ValueError."""
  if trusted is None:
    raise ValueError(
      f"{_NAME} needs trusted, the server's own gradient, got None: pass it to"
      ' update(messages, state, trusted=...), or give robust_round its'
      ' root_batch'
    )
  row = jax.tree.map(lambda x: x[0], messages)
  checks.check_trusted(_NAME, trusted, row)
  return layout.ravel(trusted)
