"""Rules on rows that the server keeps for every worker, not on messages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from byzjax._src import base, calls, checks, flat, reductions


def zeros(params: base.Params, num_workers: int) -> base.Messages:
  """Leaves `[n, *shape]`, in the dtype that rules compute with."""

  def of_leaf(p):
    shape = (num_workers, *jnp.shape(p))
    dtype = flat.compute_dtype(jnp.result_type(p))
    # Split over devices as the parameters are.
    return jnp.full_like(p, 0, shape=shape, dtype=dtype)

  return jax.tree.map(of_leaf, params)


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
      is zero if its worker has weight 0 or sent a non-finite message.
    make_state: `(kept, state of the rule) -> state`, a pair.
  """

  def init(params):
    return make_state(zeros(params, num_workers), rule.init(params))

  def aggregate(messages, state, call):
    x, _ = flat.ravel_rows(name, messages)
    if x.shape[0] != num_workers:
      raise ValueError(
        f'{name} needs num_workers={num_workers} messages, got {x.shape[0]}'
      )
    kept, rule_state = state
    # Leaf by leaf: what has another shape would broadcast.
    found, wanted = checks.signature(kept), checks.signature(messages)
    checks.check_remembered(name, found[1], wanted[1], 'leaves {}')
    present = reductions.finite_rows(x, axis_name=call.axis_name)
    if call.worker_weights is not None:
      present &= call.worker_weights > 0

    def of_leaf(old, row):
      here = present.reshape(-1, *(1,) * (old.ndim - 1))
      new = jnp.where(here, row, 0).astype(old.dtype)
      return moved(old, new).astype(old.dtype)

    kept = jax.tree.map(of_leaf, kept, messages)
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
    f'{name}({rule.name})', aggregate, init=init, weighted=True
  )
