"""Attackers that hold the defence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import tables
from tests.rounds import problem

N, SIZE, F = tables.NUM_WORKERS, tables.SIZE, 3
BAD = np.arange(N) < F
KEY = jax.random.key(5)
STRENGTHS = tuple(2.0 ** np.arange(-3, 5))
RULES = [rule for rule in tables.RULES if rule.num_byzantine >= 2]

every_rule = pytest.mark.parametrize(
  'rule', RULES, ids=[rule.name for rule in RULES]
)


def _make(rule):
  return rule.make(min(F, rule.num_byzantine), 1.0)


def _bad(rule):
  return np.arange(N) < min(F, rule.num_byzantine)


def _messages(seed=0):
  return jnp.asarray(tables.random_messages(seed), jnp.float32)


@functools.cache
def _alie_of_first(count):
  """ALIE of the first `count` workers at any strength, in one program."""
  bad = np.arange(N) < count
  return jax.jit(lambda x, z: _sent(byzjax.alie(z=z), x, bad))


def _sent(attack, x, bad, **knowledge):
  @jax.jit
  def apply(x, knowledge):
    bad_rows = jnp.asarray(bad)
    return attack.apply(
      x, attack.init(x[0]), is_byzantine=bad_rows, key=KEY, **knowledge
    )[0]

  return apply(x, knowledge)


def _damage(aggregator, sent, bad, state=None, key=None):
  state = aggregator.init(sent[0]) if state is None else state
  aggregate, _ = aggregator.update(sent, state, key=key)
  honest = np.asarray(sent, np.float64)[~bad]
  return np.linalg.norm(np.asarray(aggregate) - honest.mean(axis=0))


def _rule_key(aggregator):
  # What the attacker draws with: known to a test, not to a server.
  return jax.random.split(KEY)[1]


@every_rule
def test_the_search_is_as_harmful_as_any_strength_on_its_grid(rule):
  aggregator, bad = _make(rule), _bad(rule)
  x = _messages()

  @jax.jit
  def searched(x):
    attack = byzjax.adaptive(
      byzjax.alie(z=1.0), aggregator, strengths=STRENGTHS
    )
    return _sent(attack, x, bad)

  fixed = _alie_of_first(int(bad.sum()))
  key = _rule_key(aggregator)
  damage = jax.jit(
    functools.partial(aggregator.update, key=key)
  )  # one program for all strengths
  mean = np.asarray(x)[~bad].mean(axis=0)

  def harm(sent):
    aggregate, _ = damage(sent, aggregator.init(sent[0]))
    return np.linalg.norm(np.asarray(aggregate) - mean)

  found = searched(x)
  best = harm(found)
  for z in STRENGTHS:
    assert best >= harm(fixed(x, z)) * (1 - 1e-4), z
  np.testing.assert_array_equal(found[~bad], x[~bad])


@pytest.mark.parametrize(
  'name',
  [
    'coordinate_median',
    'krum',
    'centered_clipping',
    'nnm_krum',
    'nnm_coordinate_median',
  ],
)
def test_the_gradient_is_as_harmful_as_its_start(name):
  rule = tables.RULE[name]
  aggregator, bad, x = _make(rule), _bad(rule), _messages(1)
  start = byzjax.alie(z=1.0)
  attack = byzjax.adaptive_gradient(start, aggregator, num_steps=8)
  key = _rule_key(aggregator)

  @jax.jit
  def both(x):
    return _sent(attack, x, bad), _sent(start, x, bad)

  ascended, begun = both(x)
  assert np.isfinite(ascended).all()
  np.testing.assert_array_equal(ascended[~bad], x[~bad])
  harm = _damage(aggregator, ascended, bad, key=key)
  assert harm >= _damage(aggregator, begun, bad, key=key) * (1 - 1e-4)


def test_the_gradient_moves_each_row_to_its_own_place():
  rule, x = byzjax.geometric_median(), _messages(2)
  start = byzjax.alie(z=1.0)
  attack = byzjax.adaptive_gradient(start, rule)
  sent = np.asarray(_sent(attack, x, BAD))
  harm = _damage(rule, jnp.asarray(sent), BAD)
  assert harm > 1.02 * _damage(rule, _sent(start, x, BAD), BAD)
  assert np.linalg.norm(sent[0] - sent[1]) > 1e-3


def test_the_gradient_in_gram_space_is_the_gradient():
  # A rule with its Gram rule taken away is searched in the space of messages.
  rule, x = byzjax.geometric_median(), _messages(3)
  plain = byzjax.Aggregator(rule.init, rule.inspect)
  start = byzjax.alie(z=1.0)
  options = {'num_steps': 3, 'jitter': 0.0, 'step_size': 0.3}
  sent, expected = (
    _sent(byzjax.adaptive_gradient(start, r, **options), x, BAD)
    for r in (rule, plain)
  )
  np.testing.assert_allclose(sent, expected, 1e-4, 1e-4)
  assert np.abs(sent[0] - _sent(start, x, BAD)[0]).max() > 0.05


@pytest.mark.parametrize('name', ['krum', 'geometric_median', 'nnm_krum'])
def test_trials_in_gram_space_are_calls_of_the_rule(name):
  rule, x = tables.RULE[name].make(F, 1.0), _messages(4)
  plain = byzjax.Aggregator(rule.init, rule.inspect)
  sent, expected = (
    _sent(byzjax.adaptive(byzjax.alie(z=1.0), r, strengths=STRENGTHS), x, BAD)
    for r in (rule, plain)
  )
  np.testing.assert_allclose(sent, expected, 1e-5, 1e-5)


@pytest.mark.parametrize('make', [byzjax.adaptive, byzjax.adaptive_gradient])
def test_the_search_starts_from_the_state_of_the_defender(make):
  rule, x = byzjax.centered_clipping(radius=1.0), _messages(5)
  mean = np.asarray(x)[~BAD].mean(axis=0)
  attack = make(byzjax.alie(z=1.0), rule)
  rows = []
  for center in (mean, mean + 3):
    state = byzjax.CenteredClippingState(jnp.asarray(center, jnp.float32))
    sent = _sent(attack, x, BAD, aggregator_state=state)
    rows.append(np.asarray(sent)[BAD])
    np.testing.assert_array_equal(state.center, np.float32(center))
  assert np.abs(rows[0] - rows[1]).max() > 1e-2


@pytest.mark.parametrize('make', [byzjax.adaptive, byzjax.adaptive_gradient])
def test_in_a_round_the_defender_moves_once(make):
  rule = byzjax.centered_clipping(radius=1.0)
  attack = make(byzjax.alie(z=1.0), rule)
  rounds = problem.training(aggregator=rule, attack=attack, byzantine=F)
  state = rounds.init(problem.params())
  batch = problem.batch()
  new, _ = jax.jit(rounds.step)(state, batch, problem.KEY)
  # A step of learning rate 0.1 along the aggregate, which is the new centre.
  step = problem.flat(state.params) - problem.flat(new.params)
  np.testing.assert_allclose(
    step, 0.1 * np.asarray(new.aggregator.center), 1e-4, 1e-6
  )
  assert np.linalg.norm(new.aggregator.center) <= 1 + 1e-5


def test_looking_ahead_does_more_harm_in_the_end_and_less_at_once():
  rule, x = byzjax.centered_clipping(radius=2.0), _messages(6)
  mean = np.asarray(x)[~BAD].mean(axis=0)
  harm = {}
  for ahead in (1, 6):
    attack = byzjax.adaptive_gradient(
      byzjax.alie(z=1.0), rule, num_rounds=ahead, num_steps=60, step_size=1.0
    )
    sent = _sent(attack, x, BAD)
    state, total = rule.init(x[0]), 0
    for k in range(6):
      aggregate, state = rule.update(sent, state)
      total = total + np.asarray(aggregate) - mean
      harm[ahead, k + 1] = np.linalg.norm(total)
  assert harm[6, 6] > 1.001 * harm[1, 6]
  assert harm[6, 1] < harm[1, 1]


@pytest.mark.parametrize(
  'make, name',
  [
    (byzjax.adaptive, 'krum'),
    (byzjax.adaptive_gradient, 'coordinate_median'),
  ],
)
def test_eight_devices_search_like_one(make, name):
  rule = tables.RULE[name].make(F, 1.0)
  options = {'num_steps': 4} if make is byzjax.adaptive_gradient else {}
  attack = make(byzjax.alie(z=1.0), rule, **options)
  results = []
  for mesh in (None, problem.mesh(8)):
    rounds = problem.training(
      aggregator=rule, attack=attack, byzantine=F, mesh=mesh
    )
    state, infos = problem.scan(rounds, problem.batches(2))
    results.append((problem.flat(state.params), infos.aggregation_error))
  for one, eight in zip(*results):
    np.testing.assert_allclose(one, eight, 1e-4, 1e-5)


@pytest.mark.parametrize('bad_value', [np.nan, np.inf, 1e8])
@pytest.mark.parametrize('make', [byzjax.adaptive, byzjax.adaptive_gradient])
def test_honest_messages_that_are_broken_do_not_stop_the_search(
  make, bad_value
):
  rule, x = byzjax.krum(num_byzantine=F), np.asarray(_messages(7))
  broken = x.copy()
  broken[N - 1] = bad_value
  sent = _sent(make(byzjax.alie(z=1.0), rule), jnp.asarray(broken), BAD)
  assert np.isfinite(np.asarray(sent)[BAD]).all()


def test_batches_of_trials_are_the_same_search():
  rule, x = byzjax.trimmed_mean(num_byzantine=F), _messages(8)
  harm, expected = (
    _damage(
      rule,
      _sent(byzjax.adaptive(byzjax.alie(z=1.0), rule, batch_size=size), x, BAD),
      BAD,
    )
    for size in (4, None)
  )
  np.testing.assert_allclose(harm, expected, 1e-5)
  fixed = _damage(rule, _sent(byzjax.alie(z=1.0), x, BAD), BAD)
  assert harm > 1.1 * fixed


RULE = byzjax.mean()


@pytest.mark.parametrize(
  'build, message',
  [
    (
      lambda: byzjax.adaptive(byzjax.label_flip(10), RULE),
      'adaptive needs attack to be an Attack on messages, got function',
    ),
    (
      lambda: byzjax.adaptive(byzjax.alie(), byzjax.alie()),
      'adaptive needs aggregator to be an Aggregator, got Attack',
    ),
    (
      lambda: byzjax.adaptive(byzjax.alie(), RULE, num_rounds=0),
      'adaptive needs num_rounds .* at least 1, got 0',
    ),
    (
      lambda: byzjax.adaptive(byzjax.alie(), RULE, momentum=1.5),
      'adaptive needs momentum >= 0 and momentum <= 1, got 1.5',
    ),
    (
      lambda: byzjax.adaptive(byzjax.alie(), RULE, batch_size=0),
      'adaptive needs batch_size .* at least 1, got 0',
    ),
    (
      lambda: byzjax.adaptive(byzjax.alie(), RULE, strengths=()),
      'adaptive: strengths must have',
    ),
    (
      lambda: byzjax.adaptive_gradient(byzjax.alie(), RULE, num_steps=0),
      'adaptive_gradient needs num_steps .* at least 1, got 0',
    ),
    (
      lambda: byzjax.adaptive_gradient(byzjax.alie(), RULE, step_size=-1.0),
      'adaptive_gradient needs step_size >= 0, got -1.0',
    ),
  ],
)
def test_bad_arguments_are_refused_by_name(build, message):
  with pytest.raises(ValueError, match=message):
    build()
