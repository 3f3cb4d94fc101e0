"""How far an attacker would move an aggregate: what adaptive attacks maximise.

The attacker holds the rule and its state, and only looks: nothing here returns
a new state. Rules that work on a Gram matrix are searched there, at n x n cost
per trial whatever the number of coordinates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat, nonfinite, reductions, rules

# Calls of the rule that a search spends on what its trials promised.
_MAX_CALLS = 8
# By how much a promise that holds may be higher than what the rule does.
_ROUNDING = 1e-3

# `(rows [n, d]) -> float[]`
Damage = Callable[[jax.Array], jax.Array]


class Scene(NamedTuple):
  """What an adaptive attacker knows before choosing its rows.

  Attributes:
    rows: float[n, d], honest messages, and a first draft of the others.
    mean: float[d], of the finite honest messages.
    is_byzantine: bool[n].
    spread: float[], root mean square distance of honest messages to the mean.
    state: of the rule.
    key: for rules that draw; not the one that the server will use.
    axis_name: mesh axes over which the coordinates are split.
  """

  rows: jax.Array
  mean: jax.Array
  is_byzantine: jax.Array
  spread: jax.Array
  state: base.State
  key: jax.Array | None
  axis_name: base.AxisName


def scene(
  rows: jax.Array,
  is_byzantine: jax.Array,
  state: base.State,
  *,
  key: jax.Array | None = None,
  axis_name: base.AxisName = None,
) -> Scene:
  """The scene of one round."""
  norms = reductions.squared_norms(rows, axis_name=axis_name)
  honest = ~is_byzantine & nonfinite.usable_norms(norms)
  mean = reductions.rows_mean(rows, honest)
  squared = reductions.squared_norms(rows, center=mean, axis_name=axis_name)
  squared = jnp.where(honest, squared, 0).sum() / jnp.maximum(honest.sum(), 1)
  spread = reductions.sqrt(squared)
  return Scene(rows, mean, is_byzantine, spread, state, key, axis_name)


def draft_scene(
  name: str,
  attack: base.Attack,
  aggregator: base.Aggregator,
  messages: base.Messages,
  state: base.State,
  *,
  is_byzantine: jax.Array,
  key: jax.Array | None,
  axis_name: base.AxisName,
  aggregator_state: base.State | None,
  **knowledge: Any,
) -> tuple[Scene, flat.RowLayout, base.State]:
  """The scene after `attack` has made its draft; and the attack's new state."""
  attack_key, rule_key = (None, None) if key is None else jax.random.split(key)
  messages, state = attack.apply(
    messages,
    state,
    is_byzantine=is_byzantine,
    key=attack_key,
    axis_name=axis_name,
    aggregator_state=aggregator_state,
    **knowledge,
  )
  rows, layout = flat.ravel_rows(name, messages)
  if aggregator_state is None:
    aggregator_state = aggregator.init(jnp.zeros_like(rows[0]))
  drafted = scene(
    rows, is_byzantine, aggregator_state, key=rule_key, axis_name=axis_name
  )
  return drafted, layout, state


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
  checks.check_range(name, 'momentum', momentum, 0, 1)


def in_gram_space(
  aggregator: base.Aggregator, scene: Scene, num_rounds: int
) -> bool:
  """Whether trials need no more than the Gram matrix of the scene."""
  # A rule without a memory does the same in all the rounds ahead.
  same_rounds = num_rounds == 1 or not jax.tree.leaves(scene.state)
  return aggregator.gram_rule is not None and same_rounds


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

  def damage(rows):
    def one_round(carry, factor):
      state, total = carry
      aggregate, state = aggregator.update(
        rows, state, key=scene.key, axis_name=scene.axis_name
      )
      return (state, total + factor * (aggregate - scene.mean)), None

    zeros = jnp.zeros_like(scene.mean)
    (_, total), _ = jax.lax.scan(one_round, (scene.state, zeros), factors)
    return reductions.distance(
      total / factors.sum(), zeros, axis_name=scene.axis_name
    )

  return damage


def worst_rows(
  aggregator: base.Aggregator,
  scene: Scene,
  layout: flat.RowLayout,
  rows_of: Callable[[jax.Array], jax.Array],
  promised: jax.Array,
  baseline: int | jax.Array,
  *,
  num_rounds: int = 1,
  momentum: base.Scalar = 0.0,
) -> jax.Array:
  """The candidate that does the most damage, by calls of the rule itself.

  What a search promises is not what the rule does where its choice hangs on a
  tie: a trial in Gram space, or in a batch, rounds otherwise and breaks the tie
  otherwise. So the best promise is tried, and the baseline; and as long as a
  promise not yet tried is higher than what was found, that one. Where promises
  hold, this is two calls.

  Args:
    aggregator: the rule.
    scene: in which it is attacked.
    layout: of the messages, whose dtypes may have fewer digits than rows.
    rows_of: `index -> float[n, d]`, the messages of a candidate.
    promised: float[k], the damage of each by the search, -inf for none.
    baseline: the index of the candidate that must not do more than the result.
    num_rounds: as in `damage_of`.
    momentum: as in `damage_of`.

  Returns:
    float[n, d].
  """
  # A rule without a memory does the same in all the rounds ahead.
  ahead = num_rounds if jax.tree.leaves(scene.state) else 1
  damage = damage_of(aggregator, scene, num_rounds=ahead, momentum=momentum)

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
    goes_on &= count < _MAX_CALLS
    index = jnp.where(count > 0, jnp.where(goes_on, following, worst), index)
    rows = jax.lax.stop_gradient(as_sent(index))
    return count + 1, tried, index, goes_on, rows, worst, best

  # No derivative goes through a choice, nor could it through this loop.
  promised = jax.lax.stop_gradient(promised)
  first = jnp.argmax(promised).astype(jnp.int32)
  zero, lowest = jnp.zeros([], jnp.int32), jnp.full_like(promised[0], -jnp.inf)
  tried, goes_on = promised != promised, zero == 0
  carry = (zero, tried, first, goes_on, scene.rows, first, lowest)
  *_, rows, index, _ = jax.lax.while_loop(
    lambda carry: carry[3], body, jax.lax.stop_gradient(carry)
  )
  return _with_derivative(rows, rows_of(index))


@jax.custom_jvp
def _with_derivative(value: jax.Array, of: jax.Array) -> jax.Array:
  """The value; its derivatives are those of the other, which is the same."""
  del of
  return value


@_with_derivative.defjvp
def _(primals, tangents):
  return primals[0], tangents[1]


class GramScene(NamedTuple):
  """A scene in which every vector is a combination of n + 2 known ones.

  The n rows, the honest mean and the origin stand around the centre c of the
  rule; `c + M (z - c)` are the messages for a matrix M [n, n + 2].

  Attributes:
    vectors: float[n + 2, d], the z.
    center: float[d], c.
    inner: float[n + 2, n + 2], their Gram matrix around c.
    mask: bool[n], the rows that are usable.
    identity: float[n, n + 2], the M of the rows as they are.
    objective: `(inner [n + 1, n + 1] of messages and mean, squared_norms [n])
      -> float[]`, the distance from aggregate to mean.
  """

  vectors: jax.Array
  center: jax.Array
  inner: jax.Array
  mask: jax.Array
  identity: jax.Array
  objective: Callable[[jax.Array, jax.Array], jax.Array]


def grams(scene: GramScene, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The arguments of `objective` for the messages `c + M (z - c)`."""
  n = scene.mask.shape[0]
  mean = jnp.zeros((1, n + 2), matrix.dtype).at[0, n].set(1)
  inner = quadratic(jnp.concatenate([matrix, mean]), scene.inner)
  from_origin = matrix - jnp.zeros_like(mean).at[0, n + 1].set(1)
  norms = jnp.diagonal(quadratic(from_origin, scene.inner))
  return inner, norms


def messages(scene: GramScene, matrix: jax.Array) -> jax.Array:
  """`c + M (z - c)`: float[n, d]; rows of M that are zero give NaN."""
  usable = jnp.concatenate([scene.mask, jnp.ones(2, bool)])
  return reductions.mix(matrix, scene.vectors, scene.center, usable)


def gram_scene(aggregator: base.Aggregator, scene: Scene) -> GramScene:
  """The scene for a rule with a `gram_rule`."""
  rule = aggregator.gram_rule
  assert rule is not None
  n = scene.rows.shape[0]
  center = rule.center(scene.state) if rule.center else scene.mean
  extra = jnp.stack([scene.mean, jnp.zeros_like(scene.mean)])
  vectors = jnp.concatenate([scene.rows, extra])
  gram, center = rules.gram_of(vectors, center, axis_name=scene.axis_name)
  mask = gram.mask[:n]
  identity = jnp.where(mask[:, None], jnp.eye(n, n + 2, dtype=vectors.dtype), 0)

  def objective(inner, norms):
    usable = mask & nonfinite.usable_norms(norms)
    both = usable[:, None] & usable[None]
    gram = base.Gram(
      jnp.where(both, inner[:n, :n], 0), jnp.where(usable, norms, 0), usable
    )
    info, _ = rule.weights(gram, scene.state, key=scene.key)
    assert info.weights is not None
    weights = jnp.where(usable, info.weights, 0).astype(inner.dtype)
    toward = jnp.append(weights, -1)
    return reductions.sqrt(toward @ reductions.matmul(inner, toward))

  return GramScene(vectors, center, gram.inner, mask, identity, objective)


def quadratic(a: jax.Array, inner: jax.Array) -> jax.Array:
  """`A K A^T`."""
  return reductions.matmul(reductions.matmul(a, inner), a.T)
