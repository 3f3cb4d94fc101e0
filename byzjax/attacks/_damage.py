"""How far an attacker would move an aggregate: what adaptive attacks maximise.

The attacker holds the rule and its state, and only looks: nothing here returns
a new state. Trials that need no call of the rule stand in files of their own:
`_damage_in_gram_space` and `_damage_by_mixing`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat, nonfinite, recipes, reductions

# Calls of the rule that a search spends on what its trials promised.
_MAX_CALLS = 8
# By how much a promise that holds may be higher than what the rule does.
_ROUNDING = 1e-3
# The same for short distances: units of rounding of the messages themselves.
_UNITS = 8
# Numbers of one block of columns: what a core's cache holds.
_CACHED = 1 << 20

# `rows [n or 1, d] -> float[]`
Damage = Callable[[jax.Array], jax.Array]
# `strengths float[k] -> (float[k], bool[k])`: the damage that each promises,
# and whether the rule is sure to do it, but for rounding.
Trials = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Scene(NamedTuple):
  """What an adaptive attacker knows before choosing its rows.

  Attributes:
    rows: float[n, d], the messages. Of Byzantine workers only what is in
      `draft` counts.
    draft: what these would send: float[n, d], or float[1, d] if all of them
      send the same.
    mean: float[d], of the usable honest messages.
    is_byzantine: bool[n].
    is_honest: bool[n], who is honest and usable.
    spread: float[], root mean square distance of these to the mean.
    state: of the rule.
    key: for rules that draw; not the one that the server will use.
    axis_name: mesh axes over which the coordinates are split.
  """

  rows: jax.Array
  draft: jax.Array
  mean: jax.Array
  is_byzantine: jax.Array
  is_honest: jax.Array
  spread: jax.Array
  state: base.State
  key: jax.Array | None
  axis_name: base.AxisName


# Rules whose aggregate changes continuously with the messages. Where a trial
# rounds otherwise than the rule, it finds almost the same.
_CONTINUOUS = (
  'centered_clipping',
  'coordinate_median',
  'geometric_median',
  'mean',
  'trimmed_mean',
)


def is_continuous(rule: base.Aggregator) -> bool:
  """Whether a little change of the messages changes the aggregate a little."""
  # The medoid is one of the messages, and another one after a little change.
  starts_anywhere = (rule.config or {}).get('start') != 'medoid'
  return recipes.factory_name(rule) in _CONTINUOUS and starts_anywhere


def draft_scene(
  name: str,
  attack: base.Attack,
  aggregator: base.Aggregator,
  messages: base.Messages,
  state: base.State,
  *,
  is_byzantine: jax.Array,
  key: jax.Array | None = None,
  axis_name: base.AxisName = None,
  aggregator_state: base.State | None = None,
  **knowledge: Any,
) -> tuple[Scene, flat.RowLayout, base.State]:
  """The scene after `attack` has made its draft; and the attack's new state."""
  attack_key, rule_key = (None, None) if key is None else jax.random.split(key)
  make = attack.send or attack.apply
  draft, state = make(
    messages,
    state,
    is_byzantine=is_byzantine,
    key=attack_key,
    axis_name=axis_name,
    aggregator_state=aggregator_state,
    **knowledge,
  )
  rows, layout = flat.ravel_rows(name, messages)
  if attack.send is not None:
    draft = jax.tree.map(lambda leaf: leaf[None], draft)
  draft = layout.ravel_rows(draft)
  if attack.send is None:
    rows = draft
  if aggregator_state is None:
    aggregator_state = aggregator.init(jnp.zeros_like(rows[0]))
  norms = reductions.squared_norms(rows, axis_name=axis_name)
  is_honest = ~is_byzantine & nonfinite.usable_norms(norms)
  mean = reductions.rows_mean(rows, is_honest)
  squared = reductions.squared_norms(rows, center=mean, axis_name=axis_name)
  squared = jnp.where(is_honest, squared, 0).sum()
  spread = reductions.sqrt(squared / jnp.maximum(is_honest.sum(), 1))
  drafted = Scene(
    rows, draft, mean, is_byzantine, is_honest, spread,
    aggregator_state, rule_key, axis_name,
  )  # fmt: skip
  return drafted, layout, state


def sent_at(scene: Scene, strength: jax.Array) -> jax.Array:
  """`mu + s (a - mu)`, a the draft; at s = 1 the draft, bit for bit."""
  moved = scene.mean[None] + strength * (scene.draft - scene.mean[None])
  return jnp.where(strength != 1, moved, scene.draft)


def one_by_one(
  trial: Callable[[jax.Array], jax.Array],
  rule: base.Aggregator,
  batch_size: int | None,
) -> Trials:
  """Trials of a function of one strength, which rounds otherwise than the rule.

  That is sure of its promises where the rule is continuous.
  """

  def trials(grid):
    if batch_size is None:
      values = jax.vmap(trial)(grid)
    else:
      values = jax.lax.map(trial, grid, batch_size=batch_size)
    return values, jnp.full(len(grid), is_continuous(rule))

  return trials


def written(scene: Scene, rows: jax.Array) -> jax.Array:
  """The messages if the Byzantine workers send these rows: float[n, d]."""
  return jnp.where(scene.is_byzantine[:, None], rows, scene.rows)


def check_search(
  name: str,
  attack: base.Attack,
  aggregator: base.Aggregator,
  num_rounds: int,
  momentum: base.Scalar,
) -> None:
  """Raises ValueError unless these are the arguments of a search."""
  if not isinstance(attack, base.Attack):
    raise ValueError(
      f'{name} needs attack to be an Attack on messages, got'
      f' {type(attack).__name__}'
    )
  if not isinstance(aggregator, base.Aggregator):
    raise ValueError(
      f'{name} needs aggregator to be an Aggregator, got'
      f' {type(aggregator).__name__}'
    )
  checks.check_count(name, 'num_rounds', num_rounds, 1)
  # At 1 all factors of the rounds ahead are zero, and so is their sum.
  checks.check_momentum(name, 'momentum', momentum)


def is_one_round(scene: Scene, num_rounds: int) -> bool:
  """Whether the rounds ahead are all like the first."""
  # A rule without a memory does the same in all of them.
  return num_rounds == 1 or not jax.tree.leaves(scene.state)


def damage_of(
  aggregator: base.Aggregator,
  scene: Scene,
  *,
  num_rounds: int = 1,
  momentum: base.Scalar = 0.0,
) -> Damage:
  """`rows -> |sum_k c_k (Agg_k - mean)| / sum_k c_k`, over the rounds ahead.

  All messages are held for K rounds while the state of the rule moves. The
  aggregate of round k has been through the server's momentum K - k times since:
  `c_k = 1 - momentum^(K - k)`, k = 0 ... K - 1.
  """

  rounds_left = num_rounds - jnp.arange(num_rounds)
  factors = 1 - jnp.asarray(momentum, scene.rows.dtype) ** rounds_left

  takes_row = scene.draft.shape[0] == 1 and aggregator.update.takes_common

  def damage(rows):
    messages, common = scene.rows, {}
    if takes_row:
      common['common'] = base.CommonRow(rows[0], scene.is_byzantine)
    else:
      messages = written(scene, rows)

    def one_round(carry, factor):
      state, total = carry
      aggregate, state = aggregator.update(
        messages, state, key=scene.key, axis_name=scene.axis_name, **common
      )
      return (state, total + factor * (aggregate - scene.mean)), None

    zeros = jnp.zeros_like(scene.mean)
    (_, total), _ = jax.lax.scan(one_round, (scene.state, zeros), factors)
    return reductions.distance(
      total / factors.sum(), zeros, axis_name=scene.axis_name
    )

  return damage


def sum_over_blocks(
  block_fn: Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array],
  scene: Scene,
  num_rows: int,
) -> jax.Array:
  """Adds up a function of blocks of coordinates, over all devices.

  Args:
    block_fn: `(take, is_new bool[width]) -> array`; `take` cuts the block's
      columns out of an array [..., d]. The last block may begin before the one
      in front of it ends: what is not new must not be counted.
    scene: has the coordinates.
    num_rows: how many numbers a column needs.
  """
  d = scene.rows.shape[1]
  width = d
  if jax.default_backend() == 'cpu':
    width = min(max(_CACHED // num_rows, 256), d)

  def block(index):
    start = jnp.minimum(index * width, d - width)
    is_new = start + jnp.arange(width) >= index * width

    def take(array):
      return jax.lax.dynamic_slice_in_dim(array, start, width, axis=-1)

    return block_fn(take, is_new)

  count = -(-d // width)
  if count == 1:
    total = block_fn(lambda array: array, jnp.ones(d, bool))
  else:
    total = jax.lax.map(block, jnp.arange(count)).sum(axis=0)
  return reductions.psum(total, scene.axis_name)


def worst(
  aggregator: base.Aggregator,
  scene: Scene,
  layout: flat.RowLayout,
  rows_of: Callable[[jax.Array], jax.Array],
  promised: jax.Array,
  baseline: int | jax.Array,
  *,
  is_sure: jax.Array | None = None,
  num_rounds: int = 1,
  momentum: base.Scalar = 0.0,
) -> jax.Array:
  """The candidate that does the most damage.

  What a search promises is not what the rule does where its choice hangs on a
  tie: a trial in Gram space, or in a batch, rounds otherwise and breaks the tie
  otherwise. So unless the search is sure, the rule itself is called: for the
  best promise, for the baseline, and as long as a promise not yet tried is
  higher than what was found, for that one. Where promises hold, this is two
  calls.

  Args:
    aggregator: the rule.
    scene: in which it is attacked.
    layout: of the messages, whose dtypes may have fewer digits than rows.
    rows_of: `index -> float[n or 1, d]`, what a candidate sends.
    promised: float[k], the damage of each by the search, -inf for none.
    baseline: the index of the candidate that must not do more than the result.
    is_sure: bool[k], which promises the rule is sure to keep; None for none.
    num_rounds: as in `damage_of`.
    momentum: as in `damage_of`.

  Returns:
    The rows of the candidate, as `rows_of`.
  """
  # A rule without a memory does the same in all the rounds ahead.
  ahead = 1 if is_one_round(scene, num_rounds) else num_rounds
  damage = damage_of(aggregator, scene, num_rounds=ahead, momentum=momentum)

  # No derivative goes through a choice, nor could it through this loop.
  promised = jax.lax.stop_gradient(promised)
  first = jnp.argmax(promised).astype(jnp.int32)
  sure = jnp.zeros([], bool)
  if is_sure is not None:
    sure = _is_clear(scene, promised, first, baseline)
    sure &= is_sure[first] & is_sure[baseline]

  def as_sent(index):
    return layout.ravel_rows(layout.unravel_rows(rows_of(index)))

  def choose(tried, best):
    """`(who is next, whether it must be tried)`."""
    untried = jnp.where(tried, -jnp.inf, promised)
    is_first = ~tried[baseline]
    index = jnp.where(is_first, baseline, jnp.argmax(untried))
    doubtful = untried.max() > (1 + _ROUNDING) * best
    return index.astype(jnp.int32), is_first | doubtful

  # What is tried and what is sent are the same bits, for both are rows that the
  # loop has carried: its last turn makes those of the worst index again. In the
  # rule's own kernels `mean + s (a - mean)` would round otherwise.
  def body(carry):
    count, tried, index, goes_on, rows, worst, best = carry
    value = jax.lax.cond(
      count > 0,
      lambda: damage(rows).astype(best.dtype),
      lambda: lowest,
    )
    better = value > best  # False for NaN
    best = jnp.where(better, value, best)
    worst = jnp.where(better, index, worst)
    tried = tried.at[index].set(count > 0)
    following, goes_on = choose(tried, best)
    goes_on &= (count < _MAX_CALLS) & ~sure
    index = jnp.where(count > 0, jnp.where(goes_on, following, worst), index)
    rows = jax.lax.stop_gradient(as_sent(index))
    return count + 1, tried, index, goes_on, rows, worst, best

  zero, lowest = jnp.zeros([], jnp.int32), jnp.full_like(promised[0], -jnp.inf)
  tried, goes_on = promised != promised, zero == 0
  carry = (zero, tried, first, goes_on, scene.draft, first, lowest)
  *_, rows, index, _ = jax.lax.while_loop(
    lambda carry: carry[3], body, jax.lax.stop_gradient(carry)
  )
  return _with_derivative(rows, rows_of(index))


def _is_clear(scene, promised, best, baseline):
  """Whether the best promise is the baseline's, or higher by a clear margin."""
  size = reductions.distance(
    scene.mean, jnp.zeros_like(scene.mean), axis_name=scene.axis_name
  )
  least = (1 + _ROUNDING) * promised[baseline]
  least += (_UNITS * jnp.finfo(size.dtype).eps * size).astype(least.dtype)
  return (best == baseline) | (promised[best] > least)


@jax.custom_jvp
def _with_derivative(value: jax.Array, of: jax.Array) -> jax.Array:
  """The value; its derivatives are those of the other, which is the same."""
  del of
  return value


@_with_derivative.defjvp
def _(primals, tangents):
  return primals[0], tangents[1]
