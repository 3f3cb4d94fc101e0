"""Rules on rows that the server keeps for every worker, not on messages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from byzjax._src import base, calls, checks, flat, recipes, reductions

_KINDS = (base.Aggregator, base.PreAggregator, base.Attack)
# These know a worker by its place without a state: one that is trusted or
# copied, or groups of workers with the same data.
_BY_PLACE = ('detox', 'group_vote', 'mimic', 'monna')


def zeros(params: base.Params, num_workers: int) -> base.Messages:
  """Leaves `[n, *shape]`, in the dtype that rules compute with."""

  def of_leaf(p):
    shape = (num_workers, *jnp.shape(p))
    dtype = flat.compute_dtype(jnp.result_type(p))
    # Split over devices as the parameters are.
    return jnp.full_like(p, 0, shape=shape, dtype=dtype)

  return jax.tree.map(of_leaf, params)


def keeps_rows(made: Any) -> bool:
  """Whether a rule or an attack, or one inside it, has a row for each worker.

  Such a state is by the place of a message, so the same workers must be in the
  same places in every round.
  """
  return any(map(_has_rows, _with_parts(made)))


def knows_places(made: Any) -> bool:
  """Whether a place must be that of the same worker in every round."""
  names = map(recipes.factory_name, _with_parts(made))
  return keeps_rows(made) or any(name in _BY_PLACE for name in names)


def _has_rows(made: Any) -> bool:
  if getattr(getattr(made, 'update', None), 'keeps_rows', False):
    return True
  # Only states need n in advance. `replay` has rows only of own messages.
  config = made.config or {}
  return config.get('num_workers') is not None and bool(config.get('own', True))


def _with_parts(made: Any) -> list[Any]:
  """The rule, stage or attack, and all that it is made of; none for others."""
  if not isinstance(made, _KINDS):
    return []
  parts = [made]
  for value in (made.config or {}).values():
    # Rules are tuples, too.
    several = isinstance(value, tuple | list) and not isinstance(value, _KINDS)
    for part in value if several else (value,):
      parts += _with_parts(part)
  return parts


def rule_on_kept_rows(
  name: str,
  rule: base.Aggregator,
  num_workers: int,
  moved: Callable[[jax.Array, jax.Array], jax.Array],
  make_state: Callable[[base.Messages, base.State], Any],
) -> base.Aggregator:
  """A rule on all n kept rows, also those of workers that are absent.

  Args:
    name: of the calling function, for errors.
    rule: the rule that aggregates the rows.
    num_workers: n.
    moved: `(kept [n, ...], messages [n, ...]) -> kept`, of each leaf. A message
      is zero if its worker has weight 0 or sent a non-finite message, or one
      with which the kept row would not be finite.
    make_state: `(kept, state of the rule) -> state`, a pair.
  """

  def init(params):
    return make_state(zeros(params, num_workers), rule.init(params))

  def aggregate(messages, state, call):
    n = checks.num_workers(f'{name}: messages', messages)
    if n != num_workers:
      raise ValueError(
        f'{name} needs num_workers={num_workers} messages, got {n}'
      )
    kept, rule_state = state
    # Leaf by leaf: what has another shape would broadcast.
    found, wanted = checks.signature(kept), checks.signature(messages)
    checks.check_remembered(name, found[1], wanted[1], 'leaves {}')
    weights = call.worker_weights

    def moved_by(old, row):
      return moved(old, row.astype(old.dtype)).astype(old.dtype)

    def of_leaf(old, row):
      if weights is not None:
        row = jnp.where(_along(weights > 0, row), row, 0)
      return moved_by(old, row)

    # What has been finite stays so: an overflow would never end. That also
    # finds the messages that are not finite, and needs no look at them.
    grown = jax.tree.map(of_leaf, kept, messages)
    rows, _ = flat.ravel_rows(name, grown)
    counts = reductions.finite_rows(rows, axis_name=call.axis_name)
    kept = jax.tree.map(
      lambda new, old: jnp.where(
        _along(counts, new), new, moved_by(old, jnp.zeros_like(old))
      ),
      grown,
      kept,
    )
    y, rule_state, info = rule.inspect(
      kept,
      rule_state,
      call.params,
      key=call.key,
      axis_name=call.axis_name,
      **call.extra,
    )
    y = jax.tree.map(lambda a, b: a.astype(jnp.result_type(b)), y, messages)
    return y, make_state(kept, rule_state), info

  return calls.from_messages(
    f'{name}({rule.name})',
    aggregate,
    init=init,
    weighted=True,
    keeps_rows=True,
  )


def _along(mask: jax.Array, leaf: jax.Array) -> jax.Array:
  """The mask [n] in the number of dimensions of a leaf `[n, *shape]`."""
  return mask.reshape(-1, *(1,) * (leaf.ndim - 1))
