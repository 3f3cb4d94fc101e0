"""Stages of an asynchronous round, each alone, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony
from byzjax._src import base, local
from byzjax.asynchrony import _plan
from byzjax.rounds import (
  _asynchronous_server,
  _asynchronous_work,
  _local_steps,
)

KEY = jax.random.key(0)
PLAN, NUM_VERSIONS = _plan.plan(
  asynchrony.simulate([1.0, 2.5], num_events=5), None
)


def equal(actual, expected):
  np.testing.assert_array_equal(actual, jnp.asarray(expected))


def parts_of(**fields):
  """Parts of which a stage reads these fields alone."""
  kind = _asynchronous_work.Parts
  return kind(**(dict.fromkeys(kind._fields) | fields))


def message(index, **fields):
  """The plan of message `index`, or of one like it."""
  return _plan.Plan(*(x[index] for x in PLAN))._replace(**fields)


def test_versions_are_written_where_jobs_will_read_them():
  """Workers 0 0 1 0 0 began from the versions 0 1 0 2 4."""
  equal(PLAN.worker, [0, 0, 1, 0, 0])
  equal(PLAN.issued_at, [0, 1, 0, 2, 4])
  # What is written after message e is version e + 1.
  for reader, version in enumerate(PLAN.issued_at.tolist()):
    if version:
      assert PLAN.read[reader] == PLAN.write[version - 1]
  # Nobody reads versions 3 and 5.
  unread = NUM_VERSIONS - 1
  assert PLAN.write[2] == unread and PLAN.write[4] == unread
  assert NUM_VERSIONS == 3


@pytest.mark.parametrize(
  ('optimizer', 'expected'), [(None, 3.0), (optax.sgd(0.5), 2.25)]
)
def test_a_job_is_a_gradient_or_local_steps(optimizer, expected):
  """At 5: the gradient 5 - 2; or two steps of 1/2, to 3.5 and to 2.75."""
  training = _local_steps.LocalTraining(
    'a round',
    local.as_estimator(lambda w, x: (w - x) ** 2 / 2, name='a round'),
    optimizer and optax.with_extra_args_support(optimizer),
    _local_steps.take_in_turn(),
    None,
  )
  parts = parts_of(training=training, keeps=False)
  now = message(0, num_local_steps=jnp.array(2))
  job = jax.jit(functools.partial(_asynchronous_work.run_job, parts))
  output = job(now, jnp.array(5.0), jnp.array([2.0]), (), jnp.array(False), KEY)
  equal(output.message, expected)


def test_attackers_send_what_the_attack_makes():
  send = jax.jit(
    functools.partial(
      _asynchronous_work.byzantine_message, byzjax.constant(value=7.0), None
    )
  )
  latest = jnp.array([[1.0], [2.0]])
  for worker, expected in [(0, 1.0), (1, 7.0)]:
    row, _ = send(
      latest[worker], latest, worker, jnp.array([False, True]), (), (), KEY
    )
    equal(row, [expected])


def test_a_place_has_the_mean_of_its_messages():
  shared = _asynchronous_work.AsynchronousShared(
    (), jnp.array([[2.0], [jnp.nan]]), jnp.array([True, False]), None, ()
  )

  @jax.jit
  def place(row, num_averaged, is_byzantine):
    now = message(0, row=row, num_averaged=num_averaged)
    return _asynchronous_server.place(
      now, jnp.array([8.0]), is_byzantine, shared
    )

  places, is_byzantine = place(0, 2, False)
  equal((places[0, 0], is_byzantine[0]), (5.0, True))
  # The first message of a place ends what was there.
  places, is_byzantine = place(1, 1, False)
  equal(places, [[2.0], [8.0]])
  equal(is_byzantine, [True, False])


def test_the_transform_does_not_keep_what_is_not_finite():
  parts = parts_of(incoming=optax.trace(1.0))

  @jax.jit
  def receive(row):
    state = base.RoundState(
      *[()] * 6,
      shared=_asynchronous_work.AsynchronousShared(
        (), None, None, None, optax.TraceState(jnp.array([1.0]))
      ),
    )
    sent = _asynchronous_work.Sent(row, None, None, ())
    received = _asynchronous_server.receive(
      parts, message(0), state, sent, jnp.array(False), {}
    )
    return received.message, received.incoming.trace

  equal(receive(jnp.array([2.0])), [[3.0], [3.0]])
  equal(receive(jnp.array([jnp.inf])), [[jnp.inf], [1.0]])


@pytest.mark.parametrize(
  ('is_full', 'is_over', 'params'),
  [(True, False, -1.0), (False, False, 1.0), (True, True, 1.0)],
)
def test_the_server_steps_where_the_buffer_is_full(is_full, is_over, params):
  """From 1 by the mean 4 of two places, at rate 1/2."""
  result = _serve(jnp.array(is_full), jnp.array(is_over))
  equal(result.params, [params])


@jax.jit
def _serve(is_full, is_over):
  parts = parts_of(
    num_places=2,
    aggregator=byzjax.mean(),
    optimizer=optax.with_extra_args_support(optax.sgd(0.5)),
  )
  params = jnp.array([1.0])
  state = base.RoundState(
    step=0,
    params=params,
    workers=(),
    attack=(),
    aggregator=parts.aggregator.init(params),
    optimizer=parts.optimizer.init(params),
  )
  received = _asynchronous_server.Received(
    params, jnp.array([[3.0], [5.0]]), jnp.zeros(2, bool), ()
  )
  return _asynchronous_server.serve(
    parts, message(0, is_full=is_full), state, (), received, {}, KEY, is_over
  )[0]
