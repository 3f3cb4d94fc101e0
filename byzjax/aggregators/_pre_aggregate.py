"""One rule made of pre-aggregators and an aggregation rule."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  calls,
  flat,
  grams,
  kept_rows,
  message_rows,
  pre_aggregators,
  recipes,
  reductions,
  rules,
)

# Of these a message is made of other workers' in every call.
_DRAWN = ('bucketing', 'resampling')


@recipes.factory
def pre_aggregate(
  *stages: base.PreAggregator | base.Aggregator,
) -> base.Aggregator:
  """Applies pre-aggregators in order, then a rule: one `Aggregator`.

  `aggregate = rule(M_k ... M_1 x)`. If every pre-aggregator is linear and the
  rule works on a Gram matrix K, all steps run on n x n matrices: the rule gets
  `M K M^T` and its weights w become `w M`. K is taken around the centre of the
  rule, which for `centered_clipping` is the previous aggregate; distances lose
  digits while that is far from the messages, as it may be at the start.
  Pre-aggregators that scale messages are applied one by one, and the linear
  ones after them stay in Gram space. Messages whose squared norm would overflow
  are masked, for `mean` too.

  Args:
    *stages: any number of `PreAggregator`s, then one `Aggregator`.

  Returns:
    An `Aggregator` whose state is the tuple of the stages' states.

  Raises:
    ValueError: if the stages are not pre-aggregators followed by one
      aggregator, or if this keeps a row for each worker, such as
      `delayed_momentum`, behind groups that are drawn.

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
  drawn = [mixer for mixer in mixers if mixer.name in _DRAWN]
  if drawn and kept_rows.keeps_rows(aggregator):
    raise ValueError(
      'pre_aggregate needs a rule without a row for each worker behind'
      f' {drawn[0]!r}, which draws other groups in every call, got'
      f' {aggregator!r}'
    )
  # What stays in Gram space: the linear stages that stand next to the rule.
  first = len(mixers)
  while aggregator.gram_rule and first and mixers[first - 1].matrix:
    first -= 1
  tail = _in_gram_space(mixers[first:], aggregator)
  return _one_by_one(mixers[:first], tail) if first else tail


def _name(mixers, aggregator):
  return ' + '.join([*(mixer.name for mixer in mixers), aggregator.name])


def _in_gram_space(mixers, aggregator):
  """A rule behind linear stages; its state is a tuple."""
  if not mixers:
    return _with_tuple_state(aggregator)
  rule = aggregator.gram_rule

  def init(params):
    return (*(mixer.init(params) for mixer in mixers), rule.init(params))

  def weights(gram, state, *, key=None):
    *mixer_states, rule_state = state
    keys = _keys(key, len(mixers) + 1)
    product, new_states = jnp.eye(gram.mask.shape[0]), []
    for mixer, mixer_state, mixer_key in zip(mixers, mixer_states, keys):
      matrix, mixer_state = mixer.matrix(gram, mixer_state, key=mixer_key)
      gram = grams.mix_gram(gram, matrix)
      product = reductions.matmul(matrix, product)
      new_states.append(mixer_state)
    info, rule_state = rule.weights(gram, rule_state, key=keys[-1])
    w = reductions.matmul(info.weights.astype(product.dtype), product)
    # Of the diagnostics only the weights can be told of workers.
    return base.AggregationInfo(w), (*new_states, rule_state)

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
      weighted=rule.weighted and all(mixer.weighted for mixer in mixers),
    ),
    _name(mixers, aggregator),
  )


def _with_tuple_state(aggregator):
  update = aggregator.update

  def init(params):
    return (aggregator.init(params),)

  def aggregate(messages, state, call):
    result, state, info = update.inspect(
      messages, state[0], call.params, **call.keywords()
    )
    return result, (state,), info

  def of_rows(rows, state, call):
    result, state, info = update.of_rows(rows, state[0], call)
    return result, (state,), info

  return calls.from_messages(
    aggregator.name,
    aggregate,
    init=init,
    weighted=True,  # if not, it says so itself
    takes_common=update.takes_common,
    takes_norms=update.takes_norms,
    of_rows=update.of_rows and of_rows,
    by_coordinate=update.by_coordinate,
  )


def _one_by_one(mixers, tail):
  """A rule, its state a tuple, behind stages that are not in Gram space."""
  name = _name(mixers, tail)

  def init(params):
    return (*(mixer.init(params) for mixer in mixers), *tail.init(params))

  def aggregate(messages, state, call):
    keys = _keys(call.key, len(mixers) + 1)
    view = _View(messages, *calls.rows_of(name, messages, call))
    new_states: list[base.State] = []
    for mixer, mixer_state, mixer_key in zip(mixers, state, keys):
      if call.worker_weights is not None and not mixer.weighted:
        raise ValueError(f'{mixer.name} does not support worker_weights')
      view, mixer_state = _after(
        mixer, view, mixer_state, call._replace(key=mixer_key)
      )
      new_states.append(mixer_state)
    result, tail_state, info = _aggregated(
      tail, view, state[len(mixers) :], call._replace(key=keys[-1])
    )
    if view.factors is None:
      info = base.AggregationInfo()
    else:
      weights = None if info.weights is None else info.weights * view.factors
      info = info._replace(weights=weights, factors=view.factors)
    return result, (*new_states, *tail_state), info

  return calls.from_messages(
    name,
    aggregate,
    init=init,
    weighted=True,  # if not, the stages say so themselves
    takes_common=True,
    takes_norms=True,
  )


class _View(NamedTuple):
  """The messages between two stages.

  Attributes:
    messages: leaves `[n, *shape]`, or None where they are not written.
    rows: the same as one matrix, `Rows` or a `Mixture`.
    layout: the way back from there.
    factors: float[n], what the messages of workers have been multiplied by, or
      None once they are mixtures.
  """

  messages: base.Messages | None
  rows: Any
  layout: flat.RowLayout
  factors: jax.Array | float | None = 1.0


def _after(mixer, view, state, call):
  """The messages behind one stage, and its state."""
  axes = call.axis_name
  if mixer.factors:
    rows, state, scale = pre_aggregators.scale(
      mixer.factors,
      message_rows.as_rows(view.rows),
      state,
      call.key,
      axes,
      # Rows that were mixed before are nobody's.
      None if view.factors is None else call.worker_weights,
    )
    factors = None if view.factors is None else view.factors * scale
    return _View(None, rows, view.layout, factors), state
  if mixer.matrix:
    rows = message_rows.as_rows(view.rows)
    weights = call.worker_weights
    gram, index = grams.indexed_gram(rows, weights=weights, axis_name=axes)
    matrix, state = mixer.matrix(gram, state, key=call.key)
    mixed = reductions.Mixture(
      matrix, rows, index, gram.mask, jnp.any(matrix != 0, axis=1)
    )
    return _View(None, mixed, view.layout, None), state
  options = {'key': call.key, 'axis_name': axes}
  if call.worker_weights is not None:
    options['worker_weights'] = call.worker_weights
  messages, state = mixer.apply(_written(view), state, **options)
  rows, layout = calls.rows_of(mixer.name, messages, calls.Call())
  return _View(messages, rows, layout, None), state


def _aggregated(tail, view, state, call):
  """What the rule makes of the messages behind all stages."""
  call = call._replace(common=None, squared_norms=None)
  if view.messages is not None or tail.update.of_rows is None:
    return tail.inspect(_written(view), state, call.params, **call.keywords())
  rows = view.rows
  if not tail.update.by_coordinate:
    rows = message_rows.as_rows(rows)
  vector, state, info = tail.update.of_rows(rows, state, call)
  return view.layout.unravel(vector), state, info


def _written(view):
  if view.messages is not None and view.rows.common is None:
    return view.messages
  return view.layout.unravel_rows(view.rows.written())


def _keys(key, count):
  return [None] * count if key is None else jax.random.split(key, count)
