"""Delayed momentum: a rule on the momenta of all workers, absent ones too."""

from typing import NamedTuple

import jax

from byzjax._src import base, checks, injected, kept_rows, recipes

_NAME = 'delayed_momentum'


class DelayedMomentumState(NamedTuple):
  """The state of `delayed_momentum`.

  Attributes:
    momenta: of all n workers, absent ones too, leaves `[n, *shape]`.
    rule: the state of the aggregation rule.
  """

  momenta: base.Messages
  rule: base.State


@recipes.factory
def delayed_momentum(
  rule: base.Aggregator,
  *,
  num_workers: int,
  decay: base.Scalar,
  participation: base.Scalar = 1.0,
) -> base.Aggregator:
  r"""Applies a rule to momenta that the server keeps for all workers (DeMoA).

  If only a few of many workers are sampled per round, most of those sampled may
  be Byzantine, and no rule tolerates that. Here the server keeps a momentum for
  every worker, and the rule sees all n momenta in every round:

  .. math::
    m_i \leftarrow (1 - a p) \, m_i + a \, 1[i \text{ takes part}] \, x_i,
    \qquad
    \text{aggregate} = \mathrm{rule}(m_1, \ldots, m_n)

  with decay a and participation p, the probability that a worker takes part.
  The momenta of absent workers shrink too, so in expectation each is a momentum
  with decay a p, and a Byzantine worker cannot preserve its momentum by staying
  away. The share of Byzantine momenta is always f / n.

  All momenta start at zero. At p = 1 this is `optax.ema(1 - a, debias=False)`
  for each worker, kept at the server, so do not give the workers momentum as
  well. A message with NaN or inf counts as absent, and so does one with which
  the momentum would overflow.

  Args:
    rule: an `Aggregator`; its f counts the Byzantine workers among all n, not
      among those who take part.
    num_workers: n, a Python int. The momenta take n times the memory of the
      parameters.
    decay: a in (0, 1]; may be traced.
    participation: p in (0, 1], the probability that a worker takes part in a
      round; may be traced.

  Returns:
    An `Aggregator` with a `DelayedMomentumState`: leaves `[n, *shape] ->
    [*shape]`. A worker takes part if its entry of `worker_weights` is above
    zero; the size of the weight does not matter. `inspect` reports what the
    rule reports about the momenta.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if there are
      not `num_workers` messages, or if the rule raises.

  References:
    Otsuka, Takezawa, Yamada, 2025, arXiv:2509.02970.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.delayed_momentum(
    ...   byzjax.coordinate_median(), num_workers=3, decay=0.5,
    ...   participation=0.5)
    >>> x = jnp.array([[1.], [1.], [-9.]])
    >>> state = rule.init(x[0])
    >>> for present in ([1., 1., 0.], [0., 0., 1.]):
    ...   y, state = rule.update(x, state, worker_weights=jnp.array(present))
    ...   print(y, state.momenta[:, 0])
    [0.5] [0.5 0.5 0. ]
    [0.375] [ 0.375  0.375 -4.5  ]
  """
  rule = injected.as_aggregator(_NAME, rule, 'rule')
  checks.check_count(_NAME, 'num_workers', num_workers, 1)
  checks.check_range(_NAME, 'decay', decay, 0, 1, exclusive=True)
  checks.check_range(
    _NAME, 'participation', participation, 0, 1, exclusive=True
  )

  def moved(momentum: jax.Array, message: jax.Array) -> jax.Array:
    return (1 - decay * participation) * momentum + decay * message

  return kept_rows.rule_on_kept_rows(
    _NAME, rule, num_workers, moved, DelayedMomentumState
  )
