"""Attackers that hold the defence."""

import functools
import itertools

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

# One of each kind of search; the others are in the slow tier.
KINDS = (
  'coordinate_median', 'krum', 'geometric_median', 'nnm_coordinate_median',
  'minimum_diameter_averaging', 'divide_and_conquer_sampled',
)  # fmt: skip
every_rule = pytest.mark.parametrize(
  'rule',
  [
    pytest.param(
      rule, id=rule.name, marks=() if rule.name in KINDS else pytest.mark.slow
    )
    for rule in RULES
  ],
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
  aggregate, _ = jax.jit(aggregator.update)(sent, state, key=key)
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

  def harm(sent):
    return _damage(aggregator, sent, bad, key=_rule_key(aggregator))

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
    pytest.param(byzjax.adaptive, 'krum', marks=pytest.mark.slow),
    pytest.param(
      byzjax.adaptive, 'nnm_coordinate_median', marks=pytest.mark.slow
    ),
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


TIED = {
  'on a line': np.arange(5.0)[:, None] * np.ones(3),
  'in thirds': np.arange(5.0)[:, None] * np.ones(3) / 3 + 0.1,
  'twice': (np.arange(5) // 2)[:, None] * np.ones(3),
  'corners': np.array(list(itertools.product([0.0, 1.0], repeat=3)))[:5],
}


@pytest.mark.parametrize('start', [byzjax.alie(z=1.0), byzjax.sign_flip()])
def test_at_ties_what_is_sent_does_what_was_promised(start):
  # Of messages that are exactly as good a trial on the Gram matrix picks one,
  # and the rule another.
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=1),
    byzjax.krum(num_byzantine=1),
  )
  bad = np.arange(6) < 1
  searched = byzjax.adaptive(start, rule, num_refinements=0)
  ascended = byzjax.adaptive_gradient(start, rule, num_steps=3)

  @jax.jit
  def of_all(x):
    begun, *sent = (_sent(a, x, bad) for a in (start, searched, ascended))
    mean = x[~bad].mean(axis=0)[None]
    strengths = jnp.exp2(jnp.arange(-8, 13) / 2)[:, None, None]
    tried = mean[None] + strengths * (begun - mean)[None]
    return begun, *sent, jnp.where(bad[None, :, None], tried, x[None])

  for name, honest in TIED.items():
    x = jnp.asarray(np.concatenate([np.zeros((1, 3)), honest]), jnp.float32)
    begun, best, moved, tried = of_all(x)
    harm = _damage(rule, best, bad)
    as_it_is = _damage(rule, begun, bad) * (1 - 1e-6)
    assert harm >= as_it_is, name
    assert _damage(rule, moved, bad) >= as_it_is, name
    # Not the best there is: a trial that promises too little is not looked at.
    assert harm > 0.8 * max(_damage(rule, rows, bad) for rows in tried), name


@pytest.mark.parametrize('make', [byzjax.adaptive, byzjax.adaptive_gradient])
def test_searches_of_a_batch_are_those_of_its_parts(make):
  rule = byzjax.krum(num_byzantine=F)
  attack = make(byzjax.alie(z=1.0), rule)

  def sent(x):
    return attack.apply(x, attack.init(x[0]), is_byzantine=jnp.asarray(BAD))[0]

  x = jnp.stack([_messages(9), _messages(10)])
  found = jax.jit(jax.vmap(sent))(x)
  for mine, messages in zip(found, x):
    harm = _damage(rule, mine, BAD)
    expected = _damage(rule, jax.jit(sent)(messages), BAD)
    np.testing.assert_allclose(harm, expected, 1e-4)


def test_what_is_sent_has_the_derivatives_of_its_strength():
  # Twice as far as a = -mu, the rows are mu + 2 (a - mu) = -3 mu.
  attack = byzjax.adaptive(
    byzjax.sign_flip(), byzjax.mean(), strengths=(1.0, 2.0), num_refinements=0
  )

  def total(x):
    sent, _ = attack.apply(x, attack.init(x[0]), is_byzantine=jnp.arange(3) < 1)
    return sent[0].sum()

  x = jnp.array([[1.0], [2.0], [4.0]])
  value, gradient = jax.jit(jax.value_and_grad(total))(x)
  np.testing.assert_allclose(value, -9)
  np.testing.assert_allclose(gradient[:, 0], [0, -1.5, -1.5])


def test_rows_of_few_digits_are_tried_as_they_are_sent():
  rule, x = byzjax.krum(num_byzantine=F), _messages(11).astype(jnp.bfloat16)
  sent = _sent(byzjax.adaptive(byzjax.alie(z=1.0), rule), x, BAD)
  assert sent.dtype == jnp.bfloat16
  harm = _damage(rule, sent.astype(jnp.float32), BAD)
  begun = _sent(byzjax.alie(z=1.0), x, BAD).astype(jnp.float32)
  assert harm >= _damage(rule, begun, BAD) * (1 - 1e-6)


RULE = byzjax.mean()


@pytest.mark.parametrize(
  'build, message',
  [
    (
      lambda: byzjax.adaptive(byzjax.label_flip(10), RULE),
      'adaptive needs attack to be an Attack on messages, got Recorded',
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
      lambda: byzjax.adaptive(byzjax.alie(), RULE, momentum=jnp.array(1.0)),
      'adaptive needs momentum < 1, got 1.0',
    ),
    (
      lambda: byzjax.adaptive_gradient(byzjax.alie(), RULE, momentum=1.0),
      'adaptive_gradient needs momentum < 1, got 1.0',
    ),
    (
      lambda: byzjax.adaptive(byzjax.alie(), RULE, batch_size=0),
      'adaptive needs batch_size .* at least 1, got 0',
    ),
    (
      lambda: byzjax.adaptive(byzjax.alie(), RULE, strengths=()),
      'adaptive needs strengths to be a tuple of real numbers',
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
