"""Arguments that rules of single coordinates must refuse."""

import jax.numpy as jnp
import pytest

import byzjax

WRONG = [
  (byzjax.coordinate_median, {'middle': 'upper'}, 'middle'),
  (byzjax.mean_around_median, {'num_byzantine': -1}, 'num_byzantine'),
  (
    byzjax.mean_around_median,
    {'num_byzantine': 1, 'num_kept': 0},
    'num_kept .* at least 1',
  ),
  (
    byzjax.mean_around_median,
    {'num_byzantine': 1, 'middle': 'both'},
    'middle',
  ),
  (byzjax.phocas, {'num_byzantine': 1.0}, 'num_byzantine'),
  (byzjax.bulyan, {'num_byzantine': 1, 'first_stage': 'k'}, 'first_stage'),
  (byzjax.bulyan, {'num_byzantine': 1, 'second_stage': ''}, 'second_stage'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_averaged': 0}, 'num_averaged'),
  (byzjax.majority_vote, {'zeros': 'minus'}, 'zeros'),
  (byzjax.aksel, {'num_byzantine': 1, 'num_selected': 0}, 'num_selected'),
  (byzjax.aksel, {'num_byzantine': 1, 'middle': 1}, 'middle'),
]


@pytest.mark.parametrize('factory, kwargs, match', WRONG)
def test_wrong_arguments_are_named(factory, kwargs, match):
  with pytest.raises(ValueError, match=f'{factory.__name__} needs {match}'):
    factory(**kwargs)


WRONG_FOR_SEVEN = [
  (byzjax.mean_around_median, {'num_byzantine': 4}, 'got 7 and 4'),
  (
    byzjax.mean_around_median,
    {'num_byzantine': 2, 'num_kept': 6},
    'got 6 and 7 - 2',
  ),
  (byzjax.phocas, {'num_byzantine': 4}, 'got 7 and 4'),
  (byzjax.aksel, {'num_byzantine': 4}, 'got 7 and 4'),
  (byzjax.aksel, {'num_byzantine': 2, 'num_selected': 6}, 'got 6 and 7 - 2'),
  (byzjax.bulyan, {'num_byzantine': 2}, 'got 7 and 2'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_selected': 8}, 'got 8'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_selected': 2}, 'got 2'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_averaged': 5}, 'got 5'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_neighbors': 7}, 'got 7'),
  (
    byzjax.bulyan,
    {'num_byzantine': 1, 'num_averaged': 2, 'second_stage': 'trimmed_mean'},
    'got 5 and 2',
  ),
  (
    byzjax.bulyan,
    {'num_byzantine': 1, 'num_selected': 5, 'first_stage': 'multi_krum'},
    'got 5',
  ),
]


@pytest.mark.parametrize('factory, kwargs, match', WRONG_FOR_SEVEN)
def test_arguments_that_do_not_fit_the_messages(factory, kwargs, match):
  with pytest.raises(ValueError, match=f'{factory.__name__} needs .*{match}'):
    factory(**kwargs)(jnp.zeros((7, 3)))


@pytest.mark.parametrize(
  'rule',
  [
    byzjax.mean_around_median(num_byzantine=1),
    byzjax.phocas(num_byzantine=1),
    byzjax.bulyan(num_byzantine=1),
    byzjax.aksel(num_byzantine=1),
  ],
  ids=lambda rule: rule.name,
)
def test_without_a_weighted_version(rule):
  with pytest.raises(ValueError, match=f'{rule.name} does not support'):
    rule(jnp.zeros((7, 3)), worker_weights=jnp.ones(7))


@pytest.mark.parametrize('n', [5, 130])
def test_a_leaf_without_coordinates_stays_without(n):
  messages = {'empty': jnp.zeros((n, 0)), 'w': jnp.ones((n, 2))}
  result = byzjax.coordinate_median()(messages)
  assert result['empty'].shape == (0,)
  assert result['w'].tolist() == [1, 1]
