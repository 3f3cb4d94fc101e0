"""A row that all attackers send, put in by the rule itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, message_rows
from tests import tables
from tests.aggregators import running

N, F = running.N, 4
MASK = np.arange(N) % 3 == 1
NAN, BIG = np.full(running.SIZE, np.nan), np.full(running.SIZE, 1e30)
ROW = np.linspace(2, -3, running.SIZE)


@functools.cache
def _compiled(name):
  """The rule with the row written in, and with the row beside the messages."""
  rule = tables.RULE[name]

  @jax.jit
  def both(x, row, mask):
    aggregator, v0 = running.make(rule), tables.to_tree(np.float32(running.V0))
    state = rule.start(aggregator.init(v0), v0)
    common = base.CommonRow(tables.to_tree(row), mask)
    messages = tables.to_tree(x)
    norms = jnp.square(x).sum(axis=1)
    known = {'squared_norms': norms} if aggregator.update.takes_norms else {}
    written = message_rows.put(messages, common)
    update = functools.partial(aggregator.update, key=running.KEY)
    return (
      update(written, state),
      update(messages, state, common=common),
      update(messages, state, common=common, **known),
    )

  return both


@running.all_rules
def test_a_common_row_is_as_good_as_written(rule):
  assert running.make(rule).update.takes_common
  x = np.float32(tables.random_messages(3))
  x[MASK] = np.float32(1e3)  # what it stands for is not looked at
  for row in (ROW, NAN, BIG):
    written, *given = _compiled(rule.name)(x, np.float32(row), MASK)
    for result in given:
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-7),
        result,
        written,
      )
