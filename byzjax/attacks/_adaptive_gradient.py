"""An adaptive attack that differentiates through the rule."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, reductions
from byzjax.attacks import _ascent, _damage, _damage_in_gram_space, _message


@recipes.factory
def adaptive_gradient(
  attack: base.Attack,
  aggregator: base.Aggregator,
  *,
  num_steps: int = 30,
  step_size: base.Scalar = 0.5,
  jitter: base.Scalar = 0.1,
  num_rounds: int = 1,
  momentum: base.Scalar = 0.0,
) -> base.Attack:
  """Byzantine messages by gradient ascent on the damage to a known rule.

  Starts from the messages of `attack` and maximises `|Agg(x) - mu|` over all
  Byzantine messages jointly, by `num_steps` normalised gradient steps through
  the rule. A second ascent starts from messages that are first moved apart,
  each slightly towards a different honest message, because equal messages have
  equal gradients and would stay equal. The best messages of both ascents and
  those of `attack` are then compared by calls of the rule itself, and the most
  harmful are sent. So the attack is at least as harmful as `attack`, which may
  itself be `adaptive(attack, aggregator)`.

  For rules that work on a Gram matrix the gradient lies in the span of the
  messages, so the whole ascent runs on n x n numbers. For others a step costs
  the rule and its derivative. Rules that select messages have gradients too:
  with respect to the selected messages.

  Args:
    attack: the `Attack` to start from.
    aggregator: the rule under attack, including its pre-aggregators.
    num_steps: T >= 1, the number of ascent steps, a Python int.
    step_size: length of the first step, in units of the root mean square
      distance of the honest messages to their mean; later steps decrease
      linearly to zero; may be traced.
    jitter: how far the messages are moved apart, in the same units, >= 0.
    num_rounds: how many rounds ahead the attacker simulates, as in `adaptive`.
    momentum: the momentum of the server, as in `adaptive`.

  Returns:
    An `Attack` whose state is that of `attack`: `[n, ...] -> [n, ...]`.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.geometric_median()
    >>> start = byzjax.alie(z=1.0)
    >>> attack = byzjax.adaptive_gradient(start, rule, num_steps=50)
    >>> x = jnp.array([[9., 9.], [0., 0.], [1., 3.], [2., 1.], [4., 2.]])
    >>> is_byzantine = jnp.arange(5) < 1
    >>> def damage(attack):
    ...   sent, _ = attack.apply(x, attack.init(x[0]),
    ...                          is_byzantine=is_byzantine)
    ...   return jnp.linalg.norm(rule(sent) - x[1:].mean(axis=0))
    >>> bool(damage(attack) > 1.02 * damage(start))
    True
  """
  _damage.check_search(
    'adaptive_gradient', attack, aggregator, num_rounds, momentum
  )
  checks.check_count('adaptive_gradient', 'num_steps', num_steps, 1)
  checks.check_range('adaptive_gradient', 'step_size', step_size, 0)
  checks.check_range('adaptive_gradient', 'jitter', jitter, 0)

  def apply(messages, state, *, is_byzantine, **knowledge):
    is_byzantine = _message.mask_of('adaptive_gradient', messages, is_byzantine)
    scene, layout, state = _damage.draft_scene(
      'adaptive_gradient',
      attack,
      aggregator,
      messages,
      state,
      is_byzantine=is_byzantine,
      **knowledge,
    )
    scene = scene._replace(draft=_damage.written(scene, scene.draft))
    hill = _hill(aggregator, scene, num_rounds, momentum)
    start, movable = hill.start, hill.movable
    partners = _partners(is_byzantine, movable)
    movable &= is_byzantine

    pulled = start + jitter * (start[partners] - hill.mean[None])
    apart = jnp.where(movable[:, None], pulled, start)

    def ascend(rows):
      return _ascent.ascend(
        hill.slope,
        rows,
        num_steps=num_steps,
        step_size=step_size * scene.spread,
        movable=movable,
      )

    ends, values = jax.vmap(ascend)(jnp.stack([start, apart]))

    def rows_of(i):
      """Of both ascents, and then of the attack that they start from."""
      rows = hill.messages(ends[jnp.minimum(i, 1)])
      return jnp.where(movable[:, None] & (i < 2), rows, scene.draft)

    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    rows = _damage.worst(
      aggregator,
      scene,
      layout,
      rows_of,
      jnp.append(values, -jnp.inf),
      2,
      num_rounds=num_rounds,
      momentum=momentum,
    )
    sent = layout.unravel_rows(rows)
    return _message.overwrite(messages, sent, is_byzantine), state

  return base.Attack(
    attack.init, apply, attack.observe, reads_own=attack.reads_own
  )


class _Hill(NamedTuple):
  """What is climbed: messages, or what each is of all messages."""

  slope: _ascent.Slope
  start: jax.Array
  mean: jax.Array
  movable: jax.Array
  messages: Callable[[jax.Array], jax.Array]


def _hill(
  aggregator: base.Aggregator,
  scene: _damage.Scene,
  num_rounds: int,
  momentum: base.Scalar,
) -> _Hill:
  """In Gram space if the rule permits."""
  if not _damage_in_gram_space.is_possible(aggregator, scene, num_rounds):
    damage = _damage.damage_of(
      aggregator, scene, num_rounds=num_rounds, momentum=momentum
    )
    return _Hill(
      _ascent.slope_of(damage, axis_name=scene.axis_name),
      scene.draft,
      scene.mean,
      reductions.finite_rows(scene.draft, axis_name=scene.axis_name),
      lambda rows: rows,
    )
  center = _damage_in_gram_space.center_of(aggregator, scene)
  gram = _damage_in_gram_space.of_rows(scene, center)
  start = gram.identity
  return _Hill(
    _slope_in_gram_space(aggregator, scene, gram),
    start,
    jnp.zeros_like(start[0]).at[start.shape[0]].set(1),
    gram.mask,
    lambda rows: _damage_in_gram_space.messages(gram, scene, center, rows),
  )


def _partners(is_byzantine, usable):
  """For each Byzantine worker another honest one, as long as there are any."""
  honest = ~is_byzantine & usable
  order = jnp.argsort(~honest, stable=True)
  rank = jnp.cumsum(is_byzantine) - 1
  return order[rank % jnp.maximum(honest.sum(), 1)]


def _slope_in_gram_space(
  aggregator: base.Aggregator,
  scene: _damage.Scene,
  gram: _damage_in_gram_space.GramScene,
) -> _ascent.Slope:
  """The gradient of the damage with respect to messages `c + M (z - c)`.

  It is a combination of the same vectors: with J a function of the inner
  products K of messages and mean, and of the squared norms q,
  `dJ/dx_b = sum_j (dJ/dK_bj + dJ/dK_jb) (x_j - c) + 2 dJ/dq_b x_b`.
  """
  n = gram.mask.shape[0]
  objective = _damage_in_gram_space.objective(aggregator, scene, gram)
  mean = jnp.zeros((1, n + 2), gram.identity.dtype).at[0, n].set(1)
  origin = jnp.zeros((1, n + 2), gram.identity.dtype).at[0, n + 1].set(1)

  def slope(matrix):
    value, (of_inner, of_norms) = jax.value_and_grad(objective, (0, 1))(
      *_damage_in_gram_space.products(gram, matrix)
    )
    symmetric = (of_inner + of_inner.T)[:n]
    direction = reductions.matmul(symmetric, jnp.concatenate([matrix, mean]))
    direction += 2 * of_norms[:, None] * (matrix - origin)
    squared = jnp.diagonal(
      _damage_in_gram_space.quadratic(direction, gram.inner)
    )
    return value, direction, squared

  return slope
