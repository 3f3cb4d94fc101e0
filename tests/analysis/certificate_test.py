"""What is said of rules: for every one, with sources, and nothing invented."""

import inspect
import math
import re

import pytest

import byzjax
from byzjax import analysis, theory
from byzjax.analysis import _facts
from byzjax.theory import _names

# These make an aggregator from others, or from a function of the caller's.
NOT_RULES = [
  'detox',
  'from_column',
  'from_weights',
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
  assert found == analysis.certificate('nearest_neighbor_mixing + krum', 11, 2)
  assert found.rule == 'nearest_neighbor_mixing + krum'


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


@pytest.mark.parametrize('n, f', [(0, 0), (3.0, 1), (5, -1)])
def test_counts_are_checked(n, f):
  with pytest.raises(ValueError, match='certificate needs num_'):
    analysis.certificate('krum', n, f)
