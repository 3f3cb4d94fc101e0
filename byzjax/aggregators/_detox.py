"""DETOX: exact votes in redundant groups, then any robust rule on the votes."""

import jax.numpy as jnp

from byzjax._src import base, calls, checks, groups, recipes
from byzjax.aggregators._group_vote import vote
from byzjax.aggregators._hierarchical import hierarchical


@recipes.factory
def detox(
  *,
  group_size: int,
  rule: base.Aggregator,
  bucket_rule: base.Aggregator | None = None,
  num_buckets: int | None = None,
) -> base.Aggregator:
  """Exact votes in groups of r workers, then one or two rules on the votes.

  `aggregate = A_1(A_0(z_B1), ..., A_0(z_Bk))`, where z are the votes of
  `group_vote` and B_1, ..., B_k the random buckets of `hierarchical`; without a
  `bucket_rule` it is `A_1(z_1, ..., z_(n/r))`. The workers of a group must get
  the same data, as from `data.redundant_groups`. f Byzantine workers at random
  positions corrupt `theory.expected_corrupted_groups(n, f, r)` votes on average
  and at most g = `theory.max_corrupted_groups(n, f, r)`: the rule that follows
  must tolerate g of n / r.

  Instances of the paper, for n = 45, f = 5 and r = 3, so that g = 2 of 15:

  - median of means: `rule=geometric_median()` (`coordinate_median()` in the
    official code), `bucket_rule=mean()`, `num_buckets=5`;
  - multi-Krum: `rule=mean()`, `bucket_rule=multi_krum(num_byzantine=2)`,
    `num_buckets=2`. Buckets have 8 and 7 votes; the code averages the best s -
    g - 2 of s, here 4 and 3, and `num_selected` sets one number for both;
  - Bulyan: `rule=bulyan(num_byzantine=2)`. The code computes the scores once.

  Args:
    group_size: r >= 1, an odd Python int that divides n; 1 means no vote.
    rule: A_1, an `Aggregator` on the results of the buckets, or on the votes.
    bucket_rule: A_0, an `Aggregator` without state, inside the buckets, or None
      for no buckets.
    num_buckets: k, a Python int with `1 <= k <= n / r`; k = 1 is A_0 alone.
      Required with a `bucket_rule`.

  Returns:
    An `Aggregator` with the state of the rule, which needs a `key` if there are
    buckets: leaves `[n, *shape] -> [*shape]`. In `inspect`, `kept` bool[n]
    marks the workers that sent the message elected by their group (none in a
    group without a majority), and the weight of a vote is divided among them.

  Raises:
    ValueError: if r is not an odd int, or only one of `bucket_rule` and
      `num_buckets` is given; at trace time, if r does not divide n, or k > n /
      r.

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> rule = byzjax.detox(group_size=3, rule=byzjax.coordinate_median())
    >>> rule(jnp.array([1., 9., 1., 2., 2., 2., 7., 8., 9., 3., 3., 3.]))
    Array(2.5, dtype=float32)
  """
  groups.check_group_size('detox', group_size)
  if (bucket_rule is None) != (num_buckets is None):
    raise ValueError(
      'detox needs both bucket_rule and num_buckets, or neither, got'
      f' {bucket_rule} and {num_buckets}'
    )
  if not isinstance(rule, base.Aggregator):
    raise ValueError(
      f'detox needs rule to be an Aggregator, got {type(rule).__name__}'
    )
  tail = rule
  if bucket_rule is not None and num_buckets is not None:
    tail = hierarchical(rule, bucket_rule=bucket_rule, num_buckets=num_buckets)

  def aggregate(messages, state, call):
    n = checks.num_workers('messages', messages)
    calls.relative_weights('detox', call.worker_weights, n, supported=False)
    votes, agrees = vote(
      'detox', messages, group_size, axis_name=call.axis_name
    )
    result, state, info = tail.inspect(
      votes, state, call.params, **call.keywords()
    )
    weights = info.weights
    if weights is not None:
      voters = agrees.reshape(-1, group_size)
      shares = voters / jnp.maximum(voters.sum(axis=1, keepdims=True), 1)
      weights = (weights[:, None] * shares).reshape(n)
    return result, state, base.AggregationInfo(weights, kept=agrees)

  return calls.from_messages(
    f'group_vote + {tail.name}', aggregate, init=tail.init, weighted=True
  )
