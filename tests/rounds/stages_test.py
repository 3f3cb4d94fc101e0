"""Stages of local, gossip and modular rounds, each alone, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import gossip, topology
from byzjax._src import base, draws, flat, layouts, local, round_arguments
from byzjax.gossip import _sending
from byzjax.rounds import (
  _gossip_step,
  _gossip_work,
  _local_steps,
  _local_work,
  _modular_server,
  _modular_work,
  _parle,
  _replicas,
  _worker_gradients,
)

KEY = jax.random.key(0)
NOBODY = jnp.array(False)


def loss_fn(w, x):
  return jnp.sum((w - x) ** 2) / 2


def parts_of(kind, **fields):
  """Parts of which a stage reads these fields alone."""
  return kind(**(dict.fromkeys(kind._fields) | fields))


def training(optimizer, data_attack=None):
  return _local_steps.LocalTraining(
    'a round',
    local.as_estimator(loss_fn, name='a round'),
    optax.with_extra_args_support(optimizer),
    _local_steps.take_in_turn(),
    data_attack,
  )


def equal(actual, expected):
  np.testing.assert_array_equal(actual, jnp.asarray(expected))


# What all rounds share.


def test_a_round_copies_parameters_and_ignores_the_key():
  made = round_arguments.make_round('a round', lambda params: params, None)
  params = {'w': jnp.zeros(2)}
  state = made.init(params, jax.random.key(1))
  assert state['w'] is not params['w']
  state = made.init({'w': 1.0})
  assert state['w'].dtype == jnp.float32 and not state['w'].weak_type
  with pytest.raises(ValueError, match='a round needs .* at least one leaf'):
    made.init({})


def test_attacks_on_messages_and_on_data():
  attack, flip = byzjax.sign_flip(), byzjax.label_flip(10)
  assert round_arguments.split_attack(None) == (None, None)
  assert round_arguments.split_attack(attack) == (attack, None)
  assert round_arguments.split_attack(flip) == (None, flip)
  edges = gossip.dissensus()
  assert round_arguments.split_attack(edges, _sending.Attack) == (edges, None)


def test_keys_are_by_the_number_of_the_worker():
  keys = draws.worker_keys(KEY, jnp.array([3, 0]))
  for key, i in zip(keys, [3, 0]):
    assert key == jax.random.fold_in(KEY, i)


# Local update.


@jax.jit
def _local_update(num_steps, is_byzantine, factor):
  """From 0 with rate 1/2, on the batches 1 and 3, or -1 and -3."""
  return _local_steps.local_update(
    training(optax.sgd(0.5), lambda x, mask, key: jnp.where(mask, -x, x)),
    jnp.zeros([]),
    optax.sgd(0.5).init(jnp.zeros([])),
    (),
    jnp.array([1.0, 3.0]),
    is_byzantine,
    KEY,
    num_steps,
    round=jnp.zeros([], jnp.int32),
    scale=lambda gradient: factor * gradient,
  )


@pytest.mark.parametrize(
  ('num_steps', 'is_byzantine', 'factor', 'params', 'loss'),
  [
    (0, False, 1.0, 0.0, 0.0),
    (1, False, 1.0, 0.5, 0.5),
    (2, False, 1.0, 1.75, (0.5 + 2.5**2 / 2) / 2),
    (2, True, 1.0, -1.75, (0.5 + 2.5**2 / 2) / 2),
    (2, False, 2.0, 3.0, (0.5 + 2.0**2 / 2) / 2),
  ],
)
def test_local_update(num_steps, is_byzantine, factor, params, loss):
  end = _local_update(num_steps, is_byzantine, factor)
  equal((end.params, end.loss), (params, loss))
  assert end.aux is None


def test_statistics_of_a_preconditioner():
  """The gradient, or the diagonal of the Hessian: exact for a quadratic."""

  def quadratic(w, x):
    return jnp.sum(jnp.array([1.0, 4.0]) * (w - x) ** 2) / 2

  estimator = local.as_estimator(quadratic, name='a round')
  context = local.LocalContext(jnp.zeros(2), KEY, 0)

  def statistic(rule):
    tx = byzjax.scale_by_preconditioner(rule, lower_bound=0.1)
    of_batch = _local_work.statistic_of(quadratic, estimator, tx)
    return jax.jit(of_batch)(jnp.full(2, 3.0), jnp.zeros(2), context)

  equal(statistic('adam'), [3.0, 12.0])
  equal(statistic('oasis'), [1.0, 4.0])


def test_attackers_may_leave_out_the_chain():
  for byzantine_chain, expected in [(True, [[3], [4]]), (False, [[3], [2]])]:
    parts = parts_of(
      _local_work.Parts,
      chain=optax.trace(1.0),
      byzantine_chain=byzantine_chain,
    )
    messages, momentum = _worker_gradients.worker_messages(
      parts,
      jnp.array([[1.0], [2.0]]),
      optax.TraceState(jnp.array([[2.0], [2.0]])),
      jnp.zeros(1),
      jnp.array([False, True]),
    )
    equal(messages, jnp.float32(expected))
    equal(momentum.trace, [[3.0], [4.0]])


def test_states_are_averaged_and_counts_are_the_largest():
  start = optax.ScaleByAdamState(jnp.zeros([], int), jnp.zeros(1), ())
  ends = optax.ScaleByAdamState(
    jnp.array([2, 5, 9]), jnp.array([[1.0], [3.0], [9.0]]), ()
  )

  def exchange(i, rows, state):
    assert i == 0
    return rows[:2].mean(axis=0), state + 1

  class Context:
    takes_part = jnp.array([True, True, False])
    axis_name = None

  average, states = _local_work._average(start, ends, [4], exchange, Context)
  equal((average.count, average.mu[0]), (5, 2.0))
  assert states == [5]


# Replicas.


def test_forces_are_added_to_gradients():
  estimator = local.as_estimator(loss_fn, name='a round')
  context = local.LocalContext(None, KEY, 0)
  forced = _replicas._forced(estimator, lambda w: 10 * w)
  loss, gradient = forced.estimate(jnp.array(3.0), jnp.array(1.0), context)
  equal((loss, gradient), (2.0, 32.0))


@pytest.mark.parametrize(
  ('released', 'x'), [(False, 4 - 0.5 * (2 + 1.5)), (True, 7 - 0.5 * (2 + 3))]
)
def test_outer_step(released, x):
  """g = (4 - 3) + 0.5 (4 - 2) = 2, m = 0.5 * 2 + 2 = 3; g + m / 2 or g + m."""
  parts = parts_of(_parle.Parts, momentum=0.5, released=released)
  row = _replicas.ReplicaRows(
    params=jnp.array([4.0]),
    average=jnp.array([3.0]),
    momentum=jnp.array([2.0]),
    end=jnp.array([7.0]),
  )
  step = _parle.outer_step(parts, 0.5, 0.5, jnp.array([2.0]), row)
  equal(step, [[x], [3.0]])


# Gossip.


def test_byzantine_messages():
  x = jnp.array([[1.0], [2.0], [3.0]])
  mask = jnp.array([False, True, False])

  def send(attack):
    sent, _ = _sending.byzantine_messages(
      attack,
      x,
      _sending.init(attack, x[0]),
      is_byzantine=mask,
      ids=jnp.arange(3),
      key=KEY,
    )
    return sent

  assert send(None) == _sending.Sent(x, x)
  equal(send(byzjax.constant(value=9.0)).x, [[1.0], [9.0], [3.0]])
  equal(send(gossip.alone(byzjax.sign_flip(own=True))).x, [[1], [-2], [3]])
  edges = send(gossip.dissensus())
  assert edges.x is x and edges.is_byzantine is mask


@pytest.mark.parametrize(
  ('adapts_first', 'expected'), [(True, [2.5, 5.5]), (False, [2.0, 6.0])]
)
def test_gossip_update_in_both_orders(adapts_first, expected):
  """Half of the way to the mean of two, of (0, 4) + (1, 3)."""
  parts = parts_of(
    _gossip_work.Parts,
    topology=topology.complete(2),
    rule=gossip.plain(),
    adapts_first=adapts_first,
    consensus_at=lambda step: 0.5,
  )
  update = jax.jit(functools.partial(_gossip_step.gossip_update, parts))
  mixed = update(
    jnp.array([[0.0], [4.0]]),
    jnp.array([[1.0], [3.0]]),
    base.RoundState(jnp.zeros([], int), (), (), (), (), ()),
    jnp.array([False, False]),
    jnp.arange(2),
    KEY,
  )
  equal(mixed.x[:, 0], expected)
  assert mixed.usable.all()


def test_consensus_is_of_finite_honest_nodes():
  x = jnp.array([[0.0], [2.0], [jnp.nan], [100.0]])
  honest = jnp.array([True, True, True, False])
  consensus = jax.jit(_gossip_step.consensus_distance, static_argnums=2)
  mean, distance = consensus(x, honest, None)
  equal((mean[0], distance), (1.0, 1.0))


# Modules.


def test_modules_of_as_many_paths_are_one_group():
  groups = _modular_work.groups_of(np.array([0, 1, 0, 2]))
  assert [g.modules.tolist() for g in groups] == [[1, 2], [0]]
  assert [g.senders.tolist() for g in groups] == [[[1], [3]], [[0, 2]]]


def test_messages_of_a_path_are_by_level():
  """Both modules of the path (1, 0) are pulled to the batch 3, at rate 1."""
  parts = parts_of(
    _modular_work.Parts, training=training(optax.sgd(1.0)), keeps=False
  )
  parts = parts._replace(
    training=parts.training._replace(
      estimator=local.as_estimator(
        lambda path, x: loss_fn(path[0], x) + loss_fn(path[1], x), name='r'
      )
    )
  )
  output = _modular_work.local_update(
    parts,
    jnp.array(1),
    jnp.array(0),
    (jnp.array([0.0, 1.0]), jnp.array([5.0])),
    jnp.array([1, 0]),
    _modular_work.ModularRows((), (), ()),
    jnp.array([3.0]),
    NOBODY,
    KEY,
    (),
  )
  equal(output.loss, 4.0)
  equal(jnp.concatenate(output.messages), [1.0 - 3.0, 5.0 - 3.0])


def test_modules_hear_of_their_paths_and_step():
  """Module 0 has paths 0 and 2, module 1 has path 1, which is not there."""
  server = layouts.attacked(byzjax.mean(), None)
  groups = _modular_work.groups_of(np.array([0, 1, 0]))
  inspect = _modular_server.of_module(
    parts_of(_modular_work.Parts), server, size=1
  )
  aggregate = functools.partial(
    _modular_server.aggregate, inspect, groups, 'a level'
  )
  sent = jax.jit(aggregate)(
    jnp.array([[1.0], [8.0], [3.0]]),
    jax.vmap(server.init)(jnp.zeros([2, 1])),
    KEY,
    jnp.zeros(3, bool),
    jnp.array([1.0, 0.0, 1.0]),
  )
  equal(sent.aggregates[0], [2.0])
  equal(sent.counts, [2, 0])
  modules, _ = _modular_server.module_step(
    optax.with_extra_args_support(optax.sgd(0.5)),
    True,
    sent._replace(counts=jnp.array([4, 0])),
    flat.row_layout(jnp.zeros([])),
    jax.vmap(optax.sgd(0.5).init)(jnp.zeros(2)),
    jnp.array([10.0, 20.0]),
  )
  equal(modules, [10.0 - 0.5 * 2.0 * 2.0, 20.0])
