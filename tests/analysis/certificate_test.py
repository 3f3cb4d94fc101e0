"""What is said of rules: for every one, with sources, and nothing invented."""

import inspect
import math
import re

import jax
import pytest

import byzjax
from byzjax import analysis, theory
from byzjax.analysis import _facts
from byzjax.theory import _names

# These make an aggregator from others, or from a function of the caller's.
NOT_RULES = [
  'delayed_momentum',
  'detox',
  'from_column',
  'from_weights',
  'gas',
  'hierarchical',
  'pre_aggregate',
  'worker_sharded',
]


def factories(kind):
  for name in byzjax.__all__:
    value = getattr(byzjax, name)
    if inspect.isfunction(value) and name not in NOT_RULES:
      if inspect.signature(value).return_annotation is kind:
        yield name


@pytest.mark.parametrize('name', factories(byzjax.Aggregator))
def test_every_rule_has_a_certificate(name):
  found = analysis.certificate(name, 15, 0)
  assert found.legal and found.max_byzantine >= 0
  assert 'nothing is known about this rule' not in str(found)
  assert found.sources
  for source in found.sources:
    assert re.search(r'\d{4} (arXiv:\d{4}\.\d{4,5}|doi:10\.)', source), source
    assert source in str(found)


@pytest.mark.parametrize('name', factories(byzjax.PreAggregator))
def test_every_stage_has_its_facts(name):
  found = analysis.certificate(f'{name} + trimmed_mean', 15, 2)
  assert _facts.STAGES[name].facts[0] in found.facts
  assert set(_facts.STAGES[name].sources) <= set(found.sources)


def test_facts_are_for_names_that_exist():
  assert set(_facts.RULES) == set(_names.MAX_BYZANTINE)
  assert set(_facts.STAGES) == {*_names.STAGES, *_names.SPREADING}
  assert set(_facts.RULES) | set(_facts.STAGES) <= set(byzjax.__all__)


def test_numbers_are_those_of_the_theory():
  found = analysis.certificate('krum', 11, 2)
  assert found.kappa_upper == theory.kappa_bound('krum', 11, 2)
  assert found.kappa_lower == theory.kappa_lower_bound(11, 2)
  assert found.resilience == theory.resilience_bound('krum', 11, 2)
  assert found.max_byzantine == 4
  assert '<= 5.416; best possible 0.2857' in str(found)


def test_a_rule_is_known_by_its_name():
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=2),
    byzjax.krum(num_byzantine=2),
  )
  found = analysis.certificate(rule, 11, 2)
  name = 'nearest_neighbor_mixing + krum'
  of_name = analysis.certificate(name, 11, 2)
  assert of_name.arguments == f'{found.arguments}, by default'
  assert found == of_name._replace(arguments=found.arguments)
  assert found.rule == name


@pytest.mark.parametrize(
  'name, n, f, reason',
  [
    ('krum', 8, 3, 'needs num_byzantine <= 2, got 3'),
    ('krum', 2, 0, 'needs num_workers >= 3, got 2'),
    ('mean', 10, 1, 'needs num_byzantine <= 0, got 1'),
    ('geometric_median', 10, 5, 'needs num_byzantine <= 4, got 5'),
    ('nearest_neighbor_mixing + bulyan', 10, 2, 'num_byzantine <= 1'),
  ],
)
def test_what_is_not_legal_has_no_bound(name, n, f, reason):
  found = analysis.certificate(name, n, f)
  assert found.legal is False and reason in found.reason
  assert found.kappa_upper is None and found.resilience is None
  assert reason in str(found) and 'kappa  ' not in str(found)


def test_of_unknown_rules_nothing_is_said():
  own = byzjax.from_weights(lambda gram: gram.mask / 3, name='own')
  for rule in (own, 'own', 'own + krum', 'krum + own'):
    found = analysis.certificate(rule, 3, 1)
    assert found.facts == ('nothing is known about this rule',)
    assert found.sources == () and found.legal is None
    assert found.kappa_upper is None and found.max_byzantine is None
  assert found.kappa_lower == 1
  assert analysis.certificate('own', 4, 2).kappa_lower == math.inf


def test_rules_without_a_kappa_say_so():
  text = str(analysis.certificate('majority_vote', 9, 2))
  assert 'none exists' in text and 'no kappa' in text
  # Behind a stage of unknown effect nothing is claimed.
  found = analysis.certificate('bucketing + majority_vote', 9, 2)
  assert found.legal is None and found.kappa_upper is None
  assert 'depends on the argument of bucketing' in str(found)


def test_the_bound_for_monna_depends_on_the_reference():
  found = analysis.certificate('monna', 11, 2)
  assert found.kappa_upper is None
  assert 'if the reference worker is honest' in found.facts[0]


# An object is certified as it is.


@pytest.mark.parametrize(
  'rule, kappa',
  [
    (byzjax.coordinate_median(middle='lower'), 5 / 2),
    (byzjax.geometric_median(num_iterations=3), None),
    (byzjax.geometric_median(start='zeros'), None),
    (byzjax.geometric_median(smoothing=0.1), None),
    (byzjax.geometric_median(num_iterations=64), 5 / 2),
    (byzjax.krum(num_byzantine=4, num_neighbors=1), None),
    (byzjax.krum(num_byzantine=4, num_neighbors=10), None),
    (byzjax.krum(num_byzantine=4, distance_power=1), None),
    (byzjax.multi_krum(num_byzantine=4, num_selected=8), None),
    (byzjax.aksel(num_byzantine=4, num_selected=1), 118.88),
    (byzjax.divide_and_conquer(num_byzantine=4, filter_fraction=2.0), None),
    (byzjax.centered_clipping(radius=1.0), math.inf),
    (byzjax.centered_clipping(radius=math.inf), None),
  ],
  ids=lambda value: getattr(value, 'name', ''),
)
def test_arguments_decide_what_is_proved(rule, kappa):
  found = analysis.certificate(rule, 11, 4)
  assert found.arguments in repr(rule)
  if kappa is None:
    assert found.kappa_upper is None and found.resilience is None
    assert 'nothing known' in str(found)
  else:
    assert found.kappa_upper == pytest.approx(kappa, rel=1e-3)


def test_bulyan_is_covered_where_it_selects_messages():
  def kappa(**arguments):
    rule = byzjax.bulyan(num_byzantine=2, **arguments)
    return analysis.certificate(rule, 12, 2).kappa_upper

  assert kappa() == analysis.certificate('bulyan', 12, 2).kappa_upper
  assert kappa(num_neighbors=3, distance_power=1) == kappa()
  assert kappa(middle='lower') > kappa()
  assert kappa(second_stage='trimmed_mean') < kappa()
  assert kappa(num_averaged=1) != kappa()
  assert kappa(first_stage='multi_krum') is None
  assert kappa(num_selected=12, second_stage='trimmed_mean') != kappa()
  # More are averaged than a trimmed mean with f at each end leaves.
  assert kappa(num_averaged=6, second_stage='trimmed_mean') is None


@pytest.mark.parametrize(
  'rule, message',
  [
    (byzjax.trimmed_mean(num_byzantine=1), 'trimmed_mean has .*=1, got 4'),
    (byzjax.krum(num_byzantine=5, num_neighbors=6), 'krum has .*=5, got 4'),
    (
      byzjax.pre_aggregate(
        byzjax.nearest_neighbor_mixing(num_byzantine=3),
        byzjax.coordinate_median(),
      ),
      'nearest_neighbor_mixing has num_byzantine=3, got 4',
    ),
    (
      byzjax.pre_aggregate(
        byzjax.resampling(num_samples=2), byzjax.phocas(num_byzantine=4)
      ),
      'phocas has num_byzantine=4, got 4, which corrupt 8 after resampling',
    ),
  ],
  ids=lambda value: getattr(value, 'name', ''),
)
def test_a_rule_made_for_another_f_is_an_error(rule, message):
  for function in (
    analysis.certificate,
    theory.kappa_bound,
    theory.resilience_bound,
  ):
    with pytest.raises(
      ValueError, match=f'{function.__name__} needs .*{message}'
    ):
      function(rule, 11, 4)


def test_what_a_factory_did_not_make_so_is_not_known():
  def init(params):
    del params
    return ()

  rule = byzjax.krum(num_byzantine=2)
  for other in (
    rule._replace(init=init),
    byzjax.Aggregator(rule.init, rule.inspect, name='krum'),
    byzjax.from_weights(lambda gram: gram.mask / 11, name='krum'),
    byzjax.pre_aggregate(
      byzjax.adaptive_clipping(num_byzantine=2)._replace(init=init), rule
    ),
  ):
    found = analysis.certificate(other, 11, 2)
    assert found.kappa_upper is None and found.legal is None
    assert found.facts == ('nothing is known about this rule',)
    assert theory.kappa_bound(other, 11, 2) is None
    assert theory.resilience_bound(other, 11, 2) is None
    assert theory.max_byzantine(other, 11) is None


@pytest.mark.parametrize(
  'rule, reason',
  [
    (byzjax.multi_krum(num_byzantine=2, num_selected=20), 'num_selected <='),
    (byzjax.bulyan(num_byzantine=2, num_selected=4), 'num_selected in 5'),
    (
      byzjax.minimum_diameter_averaging(num_byzantine=2, max_nodes=1),
      'max_nodes',
    ),
    (
      byzjax.pre_aggregate(
        byzjax.bucketing(bucket_size=3), byzjax.krum(num_byzantine=2)
      ),
      'num_byzantine <= 0, got 2',
    ),
    (
      byzjax.pre_aggregate(
        byzjax.group_vote(group_size=3), byzjax.trimmed_mean(num_byzantine=1)
      ),
      'group_size',
    ),
  ],
  ids=lambda value: getattr(value, 'name', ''),
)
def test_what_a_rule_refuses_is_not_legal(rule, reason):
  found = analysis.certificate(rule, 11, 2)
  assert found.legal is False and reason in found.reason


def test_stages_that_spread_messages_tell_how():
  rule = byzjax.pre_aggregate(
    byzjax.resampling(num_samples=2), byzjax.trimmed_mean(num_byzantine=4)
  )
  found = analysis.certificate(rule, 11, 2)
  assert found.legal and found.max_byzantine == 2
  assert found.kappa_upper is None
  assert theory.max_byzantine(rule, 11) == 2
  vote = byzjax.pre_aggregate(
    byzjax.group_vote(group_size=3), byzjax.trimmed_mean(num_byzantine=1)
  )
  assert theory.max_byzantine(vote, 12) == 3
  assert analysis.certificate(vote, 12, 3).legal
  named = analysis.certificate('resampling + trimmed_mean', 11, 2)
  assert 'trimmed_mean(num_byzantine=...)' in named.arguments


def test_facts_follow_the_arguments():
  def facts(rule):
    return ' '.join(analysis.certificate(rule, 11, 2).facts)

  by_sum = byzjax.comparative_gradient_elimination(
    num_byzantine=2, reduce='sum'
  )
  assert 'longest honest message' in facts('comparative_gradient_elimination')
  assert 'longest honest message' not in facts(by_sum)
  assert 'magnitude one' in facts(byzjax.majority_vote())
  assert 'magnitude one' not in facts(byzjax.majority_vote(zeros='abstain'))
  assert 'no bound is proved' in facts(
    byzjax.krum(num_byzantine=2, num_neighbors=1)
  )
  five = byzjax.monna(num_byzantine=2, reference_worker=0, num_selected=5)
  all_of_them = byzjax.monna(
    num_byzantine=2, reference_worker=0, num_selected=11
  )
  assert 'if the reference worker is honest' in facts(five)
  assert 'if the reference worker is honest' not in facts(all_of_them)


SEARCHED = [
  byzjax.aksel(num_byzantine=1, num_selected=3, middle='lower'),
  byzjax.bulyan(
    num_byzantine=1, num_selected=6, second_stage='trimmed_mean',
    num_averaged=2, distance_power=1,
  ),
  byzjax.coordinate_median(middle='lower'),
  byzjax.krum(num_byzantine=1, num_neighbors=2),
  byzjax.mean_around_median(num_byzantine=1, num_kept=4, middle='lower'),
  byzjax.multi_krum(num_byzantine=1, num_selected=3, num_neighbors=6),
]  # fmt: skip


@pytest.mark.parametrize(
  'rule',
  [
    # Two compile for long.
    pytest.param(
      rule,
      id=rule.name,
      marks=pytest.mark.slow
      if rule.name in ('bulyan', 'mean_around_median')
      else (),
    )
    for rule in SEARCHED
  ],
)
def test_no_search_finds_more_than_what_is_certified(rule):
  found = analysis.empirical_kappa(
    rule,
    num_workers=8,
    num_byzantine=1,
    num_coordinates=2,
    num_draws=32,
    num_steps=60,
    key=jax.random.key(0),
  )
  kappa = analysis.certificate(rule, 8, 1).kappa_upper
  assert kappa / 50 < found.kappa <= kappa * 1.002
  if rule.name == 'coordinate_median':  # sharp
    default = analysis.certificate('coordinate_median', 8, 1).kappa_upper
    assert found.kappa > 1.1 * default


@pytest.mark.parametrize('n, f', [(0, 0), (3.0, 1), (5, -1)])
def test_counts_are_checked(n, f):
  with pytest.raises(ValueError, match='certificate needs num_'):
    analysis.certificate('krum', n, f)
