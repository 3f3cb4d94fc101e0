"""An adaptive attack that searches the most harmful strength for a rule."""

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, recipes
from byzjax.attacks import (
  _damage,
  _damage_by_mixing,
  _damage_in_gram_space,
  _message,
)

# Half octaves around 1, the strength of the attack as it is.
_STRENGTHS = tuple(np.exp2(np.arange(-8, 13) / 2))


@recipes.factory
def adaptive(
  attack: base.Attack,
  aggregator: base.Aggregator,
  *,
  strengths: tuple[float, ...] | jax.Array | None = None,
  num_refinements: int = 1,
  num_rounds: int = 1,
  momentum: base.Scalar = 0.0,
  batch_size: int | None = None,
) -> base.Attack:
  """Scales an attack to the strength that moves the aggregate farthest.

  `x_b = mu + s (a_b - mu)`, where mu is the honest mean and a_b the message
  that `attack` would send. The strength s maximises `|Agg(x) - mu|` over a
  grid, evaluated as one batch, and then, `num_refinements` times, over as many
  points between the neighbours of the best one. The best s of all is used; s =
  1, the attack unchanged, is on the default grid.

  A trial may round differently from the rule. If the rule chooses between
  equally good messages, a trial may choose another one and over- or
  underestimate the damage. So the rule itself is called for the best strength,
  for the one nearest to 1, and then for each strength whose trial exceeds the
  largest damage measured so far: two calls without ties, and eight at most. No
  call is needed if rounding cannot change a choice: for continuous rules (the
  median, the trimmed mean, centered clipping, the geometric median from
  `start='zeros'` or `'mean'`), also after `nearest_neighbor_mixing` unless two
  distances nearly coincide. If 1 is on the grid, the messages sent do at least
  as much damage as the unscaled attack.

  The attacker simulates the rule, from the state that the round passes to it
  (`aggregator_state`; a fresh state otherwise), and changes no state but its
  own. Of a random rule it knows the distribution, not the draw; weights of
  workers, which a round may have, it does not know. For rules that work on a
  Gram matrix a trial costs n x n numbers. If all Byzantine workers send the
  same message, linear pre-aggregators before a coordinate-wise rule are applied
  for all strengths in one pass over the messages. For other rules a trial is a
  call of the rule, and the whole batch is in memory at once.

  ByzFL searches one factor upwards, by 20 calls of the rule in sequence.

  Args:
    attack: the `Attack` to scale: `alie(z=1.0)` gives all `mu - s std`.
    aggregator: the rule under attack, including its pre-aggregators.
    strengths: the grid, float[k], in any order; None for 1/16 to 64 in half
      octaves.
    num_refinements: how often the grid is refined, a Python int >= 0.
    num_rounds: how many rounds ahead the attacker simulates: the messages stay
      fixed, the state of the rule evolves, and the displacements add up. 1 is
      the current round only.
    momentum: of the server, in [0, 1): the aggregate of an earlier round has
      passed through it more often, and so gets more weight.
    batch_size: trials per batch, to save memory; None for the whole grid.

  Returns:
    An `Attack` whose state is that of `attack`: `[n, ...] -> [n, ...]`.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  References:
    Baruch, Baruch, Goldberg, 2019, arXiv:1902.06156; Shejwalkar, Houmansadr,
    2021, NDSS, for attacks that know the rule.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.trimmed_mean(num_byzantine=1)
    >>> attack = byzjax.adaptive(byzjax.alie(z=1.0), rule)
    >>> x = jnp.array([[9.], [0.], [1.], [2.], [4.]])
    >>> sent, _ = attack.apply(x, attack.init(x[0]),
    ...   is_byzantine=jnp.array([True, False, False, False, False]))
    >>> bool(rule(sent)[0] == 1.0)  # not 1.75: as low as trimming lets it
    True
  """
  _damage.check_search('adaptive', attack, aggregator, num_rounds, momentum)
  checks.check_count('adaptive', 'num_refinements', num_refinements)
  if batch_size is not None:
    checks.check_count('adaptive', 'batch_size', batch_size, 1)
  checks.check_reals('adaptive', 'strengths', strengths)
  strengths = jnp.asarray(_STRENGTHS if strengths is None else strengths)
  checks.num_workers('adaptive: strengths', strengths)
  strengths = jnp.sort(strengths)  # The best one has neighbours.

  def send(messages, state, *, is_byzantine, **knowledge):
    is_byzantine = _message.mask_of('adaptive', messages, is_byzantine)
    scene, layout, state = _damage.draft_scene(
      'adaptive',
      attack,
      aggregator,
      messages,
      state,
      is_byzantine=is_byzantine,
      **knowledge,
    )
    trials = _trials(aggregator, scene, num_rounds, momentum, batch_size)
    grid, values, is_sure = _search(
      trials, strengths.astype(scene.rows.dtype), num_refinements
    )
    baseline = jnp.argmin(jnp.abs(grid - 1))
    rows = _damage.worst(
      aggregator,
      scene,
      layout,
      lambda i: _damage.sent_at(scene, grid[i]),
      values,
      baseline,
      is_sure=is_sure if _keeps_digits(messages, layout) else None,
      num_rounds=num_rounds,
      momentum=momentum,
    )
    return layout.unravel_rows(rows), state

  def apply(messages, state, *, is_byzantine, **knowledge):
    sent, state = send(messages, state, is_byzantine=is_byzantine, **knowledge)
    is_byzantine = _message.mask_of('adaptive', messages, is_byzantine)
    return _message.overwrite(messages, sent, is_byzantine), state

  def send_row(messages, state, **knowledge):
    sent, state = send(messages, state, **knowledge)
    return jax.tree.map(lambda leaf: leaf[0], sent), state

  return base.Attack(
    attack.init,
    apply,
    attack.observe,
    None if attack.send is None else send_row,
    attack.reads_own,
  )


def _trials(aggregator, scene, num_rounds, momentum, batch_size):
  """The cheapest way to know what strengths do to this rule."""
  if _damage_in_gram_space.is_possible(aggregator, scene, num_rounds):
    return _damage_in_gram_space.trials(aggregator, scene, batch_size)
  damage = _damage.damage_of(
    aggregator, scene, num_rounds=num_rounds, momentum=momentum
  )
  stages = _damage_by_mixing.stages_of(aggregator, scene)
  if stages and _damage.is_one_round(scene, num_rounds):
    return _damage_by_mixing.trials(stages, scene)
  return _damage.one_by_one(
    lambda strength: damage(_damage.sent_at(scene, strength)),
    aggregator,
    batch_size,
  )


def _search(trials, grid, num_refinements):
  """All strengths that were tried, in order, and what the trials told."""

  def told(grid):
    values, is_sure = trials(grid)
    return grid, jnp.where(jnp.isnan(values), -jnp.inf, values), is_sure

  count, tried = len(grid), told(grid)
  for _ in range(num_refinements):
    grid, values, _ = tried
    best = jnp.argmax(values)
    low = grid[jnp.maximum(best - 1, 0)]
    high = grid[jnp.minimum(best + 1, len(grid) - 1)]
    fine = told(jnp.linspace(low, high, count + 2)[1:-1])
    tried = jax.tree.map(lambda *parts: jnp.concatenate(parts), tried, fine)
    order = jnp.argsort(tried[0])
    tried = tuple(column[order] for column in tried)
  return tried


def _keeps_digits(messages, layout):
  """Whether messages are sent in the dtype that they are computed in."""
  return all(
    jnp.result_type(leaf) == layout.dtype for leaf in jax.tree.leaves(messages)
  )
