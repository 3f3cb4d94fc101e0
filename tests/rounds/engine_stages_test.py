"""The stages of a round with a server, each alone, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax._src import draws, layouts
from byzjax.rounds import _engine, _stages
from byzjax.rounds._work import Cohort, Parts, Work, WorkContext, WorkerOutput

KEY = jax.random.key(5)


def _run(params, batch, rows, keys, *, context, exchange):
  """Each worker sends its batch, and keeps how often it was asked."""
  del keys, exchange
  losses = batch.sum(axis=1) + 0 * params.sum()
  return WorkerOutput(
    losses, batch, rows + 1, context.shared, context.auxiliary
  )


def _init_rows(params, n):
  del params
  return jnp.zeros(n)


def _parts(work=None, **changes):
  return Parts(
    work=Work(_init_rows, _run) if work is None else work,
    aggregator=byzjax.mean(),
    optimizer=optax.with_extra_args_support(optax.sgd(0.5)),
    num_workers=3,
    cohort_size=3,
    attack=None,
    data_attack=None,
    codec=None,
    server_codec=None,
    mesh=None,
    num_shards=1,
    axis_name='workers',
  )._replace(**changes)


BATCH = jnp.array([[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]])
COHORT = Cohort(jnp.arange(3), jnp.array([True, False, False]), None)
# The second worker is absent.
ABSENT = COHORT._replace(weights=jnp.array([1.0, 0.0, 3.0]))


def _start(parts, cohort=COHORT):
  state = _engine.init(parts, jnp.array([1.0, -1.0]))
  return state, _stages.context_of(parts, state, cohort)


def test_keys_differ_by_stage_and_step_and_worker():
  keys = [*_stages.keys_of(KEY, jnp.int32(0)), *_stages.keys_of(KEY, 1)]
  keys += list(draws.worker_keys(keys[0], jnp.arange(3)))
  words = {tuple(jax.random.key_data(key).tolist()) for key in keys}
  assert len(words) == 13
  np.testing.assert_array_equal(
    jax.random.key_data(draws.worker_keys(keys[0], jnp.array([2]))[0]),
    jax.random.key_data(keys[-1]),
  )


def test_local_update_leaves_the_rows_of_the_absent():
  parts = _parts()
  state, context = _start(parts, ABSENT)
  keys = _stages.keys_of(KEY, state.step)
  output = _stages.local_update(parts, state, BATCH, context, keys)
  np.testing.assert_array_equal(output.messages, BATCH)
  np.testing.assert_array_equal(output.losses, [3, 7, 8])
  np.testing.assert_array_equal(output.rows, [1, 0, 1])


def test_local_update_on_attacked_data():
  def negative(batch, is_byzantine, key):
    assert key is not None
    return jnp.where(is_byzantine[:, None], -batch, batch)

  parts = _parts(data_attack=negative)
  state, context = _start(parts)
  keys = _stages.keys_of(KEY, state.step)
  output = _stages.local_update(parts, state, BATCH, context, keys)
  np.testing.assert_array_equal(output.messages[0], -BATCH[0])
  np.testing.assert_array_equal(output.messages[1:], BATCH[1:])


def test_auxiliary_aggregation_goes_through_attack_and_rule():
  parts = _parts(attack=byzjax.constant(value=100.0))
  rule = byzjax.coordinate_median()
  rows = jnp.array([[0.0], [1.0], [3.0]])
  state = layouts.attacked(rule, parts.attack).init(jnp.zeros(1))
  aggregate, _ = _stages.auxiliary_aggregation(
    parts, ((1, rule),), COHORT, KEY, 0, rows, state
  )
  np.testing.assert_array_equal(aggregate, [3.0])


def test_encode_pads_and_keeps_the_residual_of_the_absent():
  codec = byzjax.error_feedback(byzjax.scaled_sign_codec())
  parts = _parts(codec=codec)
  state, context = _start(parts, ABSENT)
  encoded = _stages.encode(parts, BATCH, state.codec, context, KEY)
  sent = jax.vmap(codec.decode)(encoded.payload)[:, :2]
  np.testing.assert_array_equal(sent, [[1.5, 1.5], [3.5, 3.5], [4, 4]])
  (residuals,) = [x for x in jax.tree.leaves(encoded.state) if x.ndim == 2]
  np.testing.assert_array_equal(
    residuals[:, :2], [[-0.5, 0.5], [0, 0], [4, -4]]
  )


def test_attack_and_aggregate():
  parts = _parts(
    attack=byzjax.sign_flip(scale=2.0), aggregator=byzjax.coordinate_median()
  )
  state, _ = _start(parts)
  aggregate, _, info = _stages.attack_and_aggregate(
    parts, BATCH, state, COHORT, KEY
  )
  # The attacker sends -2 times the mean of the others, (-11, -4).
  np.testing.assert_array_equal(aggregate, [3.0, 0.0])
  np.testing.assert_allclose(info.error, np.hypot(2.5, 2.0), rtol=1e-6)
  assert info.mask.all()


def test_an_aggregate_that_is_no_number_has_no_error():
  naive = byzjax.Aggregator(
    lambda params: (), lambda x, state, params=None, **_: (x.mean(0), state)
  )
  parts = _parts(attack=byzjax.constant(value=jnp.nan), aggregator=naive)
  state, _ = _start(parts)
  *_, info = _stages.attack_and_aggregate(parts, BATCH, state, COHORT, KEY)
  assert np.isnan(info.error)


@pytest.mark.parametrize(
  'change, votes',
  [
    ({}, True),
    ({'attack': byzjax.alie()}, False),
    ({'aggregator': byzjax.mean()}, False),
    ({'codec': byzjax.scaled_sign_codec()}, False),
    ({'cohort_size': 1000}, False),
  ],
)
def test_words_are_counted_only_where_nobody_looks_inside(change, votes):
  parts = _parts(codec=byzjax.sign_codec(), aggregator=byzjax.majority_vote())
  assert _stages.votes_on_words(parts._replace(**change), COHORT) == votes
  assert not _stages.votes_on_words(parts, ABSENT)


def test_broadcast_and_server_step():
  parts = _parts(server_codec=byzjax.sign_codec())
  state, _ = _start(parts)
  vector = jnp.zeros(parts.padded(2)).at[:2].set(jnp.array([0.3, -7.0]))
  received, _, bits = _stages.broadcast(parts, vector, state, KEY)
  np.testing.assert_array_equal(received[:2], [1, -1])
  assert bits == 2
  params, _ = _stages.server_step(parts, received, state)
  np.testing.assert_array_equal(params, [0.5, -0.5])


def test_the_info_counts_honest_losses_and_those_who_send():
  parts = _parts()
  state, context = _start(parts, ABSENT)
  # One who is absent may have no examples, and then no loss.
  output = WorkerOutput(jnp.array([5.0, jnp.nan, 2.0]), BATCH, (), (), ())
  mask, error = jnp.array([True, True, False]), jnp.float32(2.0)
  info = _engine.round_info(
    parts,
    context,
    output,
    byzjax.AggregationInfo(mask=mask, error=error),
    jnp.array([64.0, 0.0, 64.0]),
    jnp.float32(64.0),
  )
  assert (info.loss, info.bits_up, info.bits_down) == (2, 128, 128)
  np.testing.assert_array_equal(info.masked, [False, False, True])
  assert info.num_nonfinite == 1 and info.aggregation_error == 2


def test_what_has_coordinates_is_split_and_nothing_else():
  specs = _engine.coordinate_specs(
    lambda x: (x, jnp.zeros([]), jnp.zeros((3, *x.shape))),
    64,
    jnp.float32,
    'workers',
  )
  split, whole = jax.P('workers'), jax.P()
  assert specs == (split, whole, jax.P(None, 'workers'))


def test_a_round_is_its_stages_one_after_another():
  parts = _parts(attack=byzjax.sign_flip(scale=2.0))
  state, context = _start(parts)
  assert isinstance(context, WorkContext)
  new, info = _engine.device_step(parts, state, BATCH, KEY, COHORT)
  # The mean of (-11, -4), (3, 4) and (8, 0); half of it is the step.
  np.testing.assert_allclose(new.params, [1.0, -1.0], atol=1e-6)
  np.testing.assert_array_equal(new.workers, [1, 1, 1])
  assert new.step == 1 and info.loss == 7.5
