"""Pre-aggregators and a rule, composed into one rule."""

import jax

from byzjax._src import base, reductions, rules


def pre_aggregate(
  *stages: base.PreAggregator | base.Aggregator,
) -> base.Aggregator:
  """Pre-aggregators, in order, and then a rule: one `Aggregator`.

  `aggregate = rule(M_k ... M_1 x)`. Where every pre-aggregator is linear and
  the rule works on a Gram matrix K, nothing but n x n matrices is touched:
  the rule sees `M K M^T` and its weights w become `w M`. There K is taken
  around the rule's centre: around the previous aggregate for
  `centered_clipping`, so that distances lose digits while it is far away, as it
  may be at the start. Messages whose squared norm would overflow are masked,
  for `mean` too.

  Args:
    *stages: any number of `PreAggregator`s, and an `Aggregator` last.

  Returns:
    An `Aggregator` whose state is the tuple of the stages' states.

  Raises:
    ValueError: if the stages are not pre-aggregators followed by one
      aggregator.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.pre_aggregate(
    ...   byzjax.nearest_neighbor_mixing(num_byzantine=1),
    ...   byzjax.krum(num_byzantine=1),
    ... )
    >>> rule(jnp.array([[0.], [1.], [2.], [3.], [100.]]))
    Array([1.5], dtype=float32)
  """
  *mixers, aggregator = stages or (None,)
  if not isinstance(aggregator, base.Aggregator) or not all(
    isinstance(mixer, base.PreAggregator) for mixer in mixers
  ):
    raise ValueError(
      'pre_aggregate needs PreAggregators followed by one Aggregator, got'
      f' {[type(stage).__name__ for stage in stages]}'
    )
  if aggregator.gram_rule and all(mixer.matrix for mixer in mixers):
    return _in_gram_space(mixers, aggregator.gram_rule)
  return _one_by_one(mixers, aggregator)


def _in_gram_space(mixers, rule):
  def init(params):
    return (*(mixer.init(params) for mixer in mixers), rule.init(params))

  def weights(gram, state, *, key=None):
    *mixer_states, rule_state = state
    keys = _keys(key, len(mixers) + 1)
    product, new_states = None, []
    for mixer, mixer_state, mixer_key in zip(mixers, mixer_states, keys):
      matrix, mixer_state = mixer.matrix(gram, mixer_state, key=mixer_key)
      gram = rules.mix_gram(gram, matrix)
      product = (
        matrix if product is None else reductions.matmul(matrix, product)
      )
      new_states.append(mixer_state)
    w, rule_state = rule.weights(gram, rule_state, key=keys[-1])
    if product is not None:
      w = reductions.matmul(w.astype(product.dtype), product)
    return w, (*new_states, rule_state)

  center, remember = rule.center, rule.remember
  return rules.from_gram_rule(
    base.GramRule(
      init,
      weights,
      center=center and (lambda state: center(state[-1])),
      remember=lambda state, aggregate: (
        *state[:-1],
        remember(state[-1], aggregate),
      ),
    )
  )


def _one_by_one(mixers, aggregator):
  def init(params):
    return (*(mixer.init(params) for mixer in mixers), aggregator.init(params))

  def inspect(
    messages, state, params=None, *, key=None, axis_name=None, **extra
  ):
    *mixer_states, rule_state = state
    keys = _keys(key, len(mixers) + 1)
    new_states = []
    for mixer, mixer_state, mixer_key in zip(mixers, mixer_states, keys):
      messages, mixer_state = mixer.apply(
        messages, mixer_state, key=mixer_key, axis_name=axis_name
      )
      new_states.append(mixer_state)
    aggregate, rule_state, _ = aggregator.inspect(
      messages,
      rule_state,
      params,
      key=keys[-1],
      axis_name=axis_name,
      **extra,
    )
    # The rule's weights and mask are of mixtures, not of workers.
    return aggregate, (*new_states, rule_state), base.AggregationInfo()

  return base.Aggregator(init, inspect)


def _keys(key, count):
  return [None] * count if key is None else jax.random.split(key, count)
