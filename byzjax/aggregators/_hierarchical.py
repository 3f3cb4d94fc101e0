"""Aggregation on two levels: inside random buckets, and across them."""

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  kept_rows,
  recipes,
  reductions,
)


@recipes.factory
def hierarchical(
  rule: base.Aggregator, *, bucket_rule: base.Aggregator, num_buckets: int
) -> base.Aggregator:
  r"""One rule inside each of k random buckets, another across the results.

  .. math::
    \mathrm{aggregate} = A_1(A_0(x_{B_1}), \ldots, A_0(x_{B_k}))

  with A_0 the `bucket_rule`, A_1 the `rule`, and B_1, ..., B_k a random
  partition of the m messages, redrawn in every call, into sizes that differ by
  at most one, the larger ones first. k = 1 is A_0 alone. A mean in each bucket
  and a median across them is the median of means. `bucketing` fixes the size of
  the buckets instead, so its last bucket may be much smaller.

  A bucket whose messages are all masked gives a masked message to A_1. A_0 must
  accept m / k messages, rounded down and up, and A_1 must accept k. The
  official code of DETOX calls k `bucket_size`.

  Args:
    rule: A_1, an `Aggregator`. It may have state, but no row for each worker.
    bucket_rule: A_0, an `Aggregator` without state, because a bucket has
      different workers in every call (with k = 1 state is allowed).
    num_buckets: k, a Python int with `1 <= k <= m`.

  Returns:
    An `Aggregator` with the state of the rule, which needs a `key` for k > 1:
    leaves `[m, *shape] -> [*shape]`.

  Raises:
    ValueError: if an argument has the wrong type or range, or A_0 has state and
      k > 1 (in `init`); at trace time, if k > m or there is no key.

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> rule = byzjax.hierarchical(
    ...   byzjax.coordinate_median(), bucket_rule=byzjax.mean(), num_buckets=3)
    >>> rule(jnp.array([1., 1., 1., 1., 1., 99.]), key=jax.random.key(0))
    Array(1., dtype=float32)
  """
  for name, value in [('rule', rule), ('bucket_rule', bucket_rule)]:
    if not isinstance(value, base.Aggregator):
      raise ValueError(
        f'hierarchical needs {name} to be an Aggregator, got'
        f' {type(value).__name__}'
      )
  checks.check_count('hierarchical', 'num_buckets', num_buckets, 1)
  if num_buckets == 1:
    return bucket_rule
  if kept_rows.keeps_rows(rule):
    raise ValueError(
      'hierarchical needs a rule without a row for each worker, because buckets'
      f' are drawn in every call, got {rule!r}'
    )

  def init(params):
    if jax.tree.leaves(bucket_rule.init(params)):
      raise ValueError(
        'hierarchical needs a bucket_rule without state, got'
        f' {bucket_rule.name}'
      )
    return rule.init(params)

  def aggregate(messages, state, call):
    m = checks.num_workers('messages', messages)
    calls.relative_weights(
      'hierarchical', call.worker_weights, m, supported=False
    )
    if num_buckets > m:
      raise ValueError(
        'hierarchical needs num_buckets <= the number of messages, got'
        f' {num_buckets} and {m}'
      )
    if call.key is None:
      raise ValueError('hierarchical needs a key to draw its buckets, got None')
    draw_key, rule_key, *keys = jax.random.split(call.key, 2 + num_buckets)
    order = jax.random.permutation(draw_key, m)
    extra = call.extra | {'axis_name': call.axis_name}

    rows = jax.tree.map(lambda x: jnp.zeros_like(x[0]), messages)
    empty = bucket_rule.init(rows)

    def of_bucket(bucket, key):
      mine = jax.tree.map(lambda x: jnp.asarray(x)[bucket], messages)
      result, _, info = bucket_rule.inspect(
        mine, empty, call.params, key=key, **extra
      )
      usable = jnp.any(_mask(mine, info, call.axis_name))
      result = jax.tree.map(lambda x: jnp.where(usable, x, jnp.nan), result)
      return result, info.weights

    buckets = _split(order, num_buckets)
    results, shares = zip(*map(of_bucket, buckets, keys))
    result, state, info = rule.inspect(
      jax.tree.map(lambda *rows: jnp.stack(rows), *results),
      state,
      call.params,
      key=rule_key,
      **extra,
    )
    return result, state, _info(order, info.weights, shares)

  name = f'hierarchical({bucket_rule.name}, {rule.name})'
  return calls.from_messages(name, aggregate, init=init, weighted=True)


def _split(order, num_buckets):
  """The order cut into k pieces, the larger ones first."""
  size, larger = divmod(len(order), num_buckets)
  stops = [size * i + min(i, larger) for i in range(num_buckets + 1)]
  return [order[start:stop] for start, stop in zip(stops, stops[1:])]


def _mask(messages, info, axis_name):
  """The messages that the rule did not leave out."""
  if info.mask is not None:
    return info.mask
  x, _ = flat.ravel_rows('hierarchical', messages)
  return reductions.finite_rows(x, axis_name=axis_name)


def _info(order, weights, shares):
  """The weight of every message, if both rules have such."""
  if weights is None or any(share is None for share in shares):
    return base.AggregationInfo()
  parts = [weights[i] * share for i, share in enumerate(shares)]
  joined = jnp.concatenate(parts)
  return base.AggregationInfo(jnp.zeros_like(joined).at[order].set(joined))
