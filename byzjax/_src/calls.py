"""How rules are built from a function of the messages, the state and a call.

The signature that every rule shares is defined here once, with its checks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat, message_rows, nonfinite

Rows = message_rows.Rows


class Call(NamedTuple):
  """The other arguments of one call of a rule.

  Attributes:
    params: the parameters, or None.
    key: for rules with randomness, or None.
    axis_name: mesh axes over which the coordinates are split.
    worker_weights: float[n], zero for invalid weights, or None.
    common: the row of Byzantine workers not yet in the messages, or None.
    squared_norms: float[n], of the messages as they are given, or None.
    extra: arguments that only some rules take.
  """

  params: base.Params | None = None
  key: jax.Array | None = None
  axis_name: base.AxisName = None
  worker_weights: jax.Array | None = None
  common: base.CommonRow | None = None
  squared_norms: jax.Array | None = None
  extra: dict[str, Any] = {}

  def keywords(self) -> dict[str, Any]:
    """The same as keywords for the `inspect` of another rule, same messages."""
    return {
      'key': self.key,
      'axis_name': self.axis_name,
      **_given(
        worker_weights=self.worker_weights,
        common=self.common,
        squared_norms=self.squared_norms,
      ),
      **self.extra,
    }


Inspected = tuple[base.Aggregate, base.State, base.AggregationInfo]
OfMessages = Callable[[base.Messages, base.State, Call], Inspected]
OfRows = Callable[[Rows, base.State, Call], Inspected]


def from_messages(
  name: str,
  aggregate: OfMessages,
  *,
  init: Callable[[base.Params], base.State] = optax.init_empty_state,
  gram_rule: base.GramRule | None = None,
  weighted: bool = False,
  takes_common: bool = False,
  takes_norms: bool = False,
  inspect_words: Callable | None = None,
  of_rows: OfRows | None = None,
  by_coordinate: bool = False,
  keeps_rows: bool = False,
) -> base.Aggregator:
  """A rule from `(messages, state, call) -> (aggregate, state, info)`.

  Args:
    name: of the rule, for errors.
    aggregate: the function; messages have leaves `[n, *shape]`.
    init: `params -> state`.
    gram_rule: see `base.Aggregator`.
    weighted: whether it uses `call.worker_weights`; if not, they are an error.
    takes_common: whether it uses `call.common`; if not, the common row is
      written into the messages before.
    takes_norms: whether it may use `call.squared_norms`.
    inspect_words: see `base.Aggregator`.
    of_rows, by_coordinate, keeps_rows: see `base.Update`.
  """

  def inspect(
    messages,
    state,
    params=None,
    *,
    key=None,
    axis_name=None,
    worker_weights=None,
    common=None,
    squared_norms=None,
    **extra,
  ):
    n = checks.num_workers('messages', messages)
    weights = relative_weights(name, worker_weights, n, supported=weighted)
    if common is not None and not takes_common:
      messages, common = message_rows.put(messages, common), None
      squared_norms = None
    norms = squared_norms if takes_norms else None
    call = Call(params, key, axis_name, weights, common, norms, extra)
    return aggregate(messages, state, call)

  update = base.Update(
    inspect,
    name,
    gram_rule,
    inspect_words,
    takes_common=takes_common,
    takes_norms=takes_norms,
    of_rows=of_rows,
    by_coordinate=by_coordinate,
    keeps_rows=keeps_rows,
  )
  return base.Aggregator(init, update)


def from_rows(
  name: str,
  aggregate: OfRows,
  *,
  by_coordinate: bool = False,
  **options: Any,
) -> base.Aggregator:
  """A rule from `(rows [n, d], state, call) -> (float[d], state, info)`.

  Args:
    name: of the rule, for errors.
    aggregate: the function; rows have the common row in them.
    by_coordinate: whether it treats each coordinate apart, and has neither
      state nor info. Then it runs on every leaf, which saves the copy into one
      matrix, and rows may be a `reductions.Mixture`.
    **options: of `from_messages`.
  """

  def of_tree(messages, state, call):
    rows, layout = rows_of(name, messages, call)
    vector, state, info = aggregate(rows, state, call)
    return layout.unravel(vector), state, info

  def of_leaves(messages, state, call):
    def of_leaf(leaf, row=None):
      common = call.common and call.common._replace(row=row)
      return of_tree(leaf, state, call._replace(common=common))[0]

    trees = (messages,) if call.common is None else (messages, call.common.row)
    return jax.tree.map(of_leaf, *trees), state, base.AggregationInfo()

  return from_messages(
    name,
    of_leaves if by_coordinate else of_tree,
    takes_common=True,
    of_rows=aggregate,
    by_coordinate=by_coordinate,
    **options,
  )


def rows_of(
  name: str, messages: base.Messages, call: Call
) -> tuple[Rows, flat.RowLayout]:
  """The messages as rows of one matrix, and the way back."""
  x, layout = flat.ravel_rows(name, messages)
  common = call.common
  if common is not None:
    row = message_rows.in_dtypes_of(messages, common.row)
    common = base.CommonRow(layout.ravel(row), common.mask)
  return Rows(x, common, call.squared_norms), layout


def relative_weights(
  name: str, weights: jax.Array | None, n: int, *, supported: bool
) -> jax.Array | None:
  """The workers' weights with zero for invalid ones, or None."""
  if weights is None:
    return None
  if not supported:
    raise ValueError(f'{name} does not support worker_weights')
  checks.check_worker_weights(name, weights, n)
  weights = jnp.asarray(weights, flat.compute_dtype(jnp.result_type(weights)))
  return nonfinite.usable_weights(weights)


def _given(**keywords):
  return {k: v for k, v in keywords.items() if v is not None}
