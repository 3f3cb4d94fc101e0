"""A row that all attackers send, put in by the rule itself."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from byzjax._src import base, layouts, message_rows
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


@running.one_of_each_kind
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


def _each_its_own(messages, state, *, is_byzantine, **knowledge):
  """The first attacker sends NaN, the second 1e30, all others twice theirs."""
  del knowledge
  rank = jnp.cumsum(is_byzantine) * is_byzantine
  x = jnp.where((rank > 2)[:, None], 2 * messages, messages)
  x = jnp.where((rank == 2)[:, None], 1e30, x)
  return jnp.where((rank == 1)[:, None], jnp.nan, x), state


@running.all_rules
def test_behind_an_attack_of_rows_the_rule_sees_these(rule):
  aggregator = running.make(rule)
  attack = byzjax.Attack(lambda params: (), _each_its_own)
  server = layouts.attacked(aggregator, attack)
  x, mask = np.float32(tables.random_messages(3)), jnp.asarray(MASK)

  @jax.jit
  def both(x):
    start = server.init(x[0])
    start = start._replace(aggregator=aggregator.init(x[0]))
    _, rule_key = jax.random.split(running.KEY)
    sent, _ = attack.apply(x, (), is_byzantine=mask)
    told = {'num_coordinates': x.shape[1]}
    expected = aggregator.update(sent, start.aggregator, key=rule_key, **told)
    result, state, info = server.inspect(
      x, start, key=running.KEY, is_byzantine=mask
    )
    return (result, state.aggregator), expected, info.mask

  result, expected, is_finite = both(x)
  chex.assert_trees_all_close(result, expected, rtol=1e-6, atol=1e-7)
  assert list(np.flatnonzero(~is_finite)) == [np.flatnonzero(MASK)[0]]
