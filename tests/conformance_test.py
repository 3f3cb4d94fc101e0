"""byzjax against stored answers of other libraries.

`conformance/` holds inputs, and what other implementations answer on them (see
its README). The tables below say, peer by peer, how byzjax expresses each of
their operations; where a convention differs, the row says which arguments give
the peer's. Nothing of an operation that byzjax has is left out silently: a case
runs, or must be refused, or is excluded for a reason that is written down.
"""

import jax
import numpy as np
import pytest

import byzjax
from tests import conformance_attacks as attacks
from tests import conformance_cases as stored
from tests import conformance_rules as rules
from tests import conformance_spectral as spectral
from tests import conformance_zoo as zoo
from tests import reference

# What byzjax does not have.
OTHER_OPERATIONS = {
  ('epfml_decentralized', 'SelfCenteredClipping'): 'asked in tests/gossip',
  ('epfml_decentralized', 'dissensus'): 'asked in tests/gossip',
  ('epfml_decentralized', 'metropolis'): 'asked in tests/gossip',
  ('fedlib', 'Signguard'): (
    'k-means, with its random starts, on the shares of signs; sign_guard has'
    ' mean shift and DBSCAN: asked in conformance_defences_test.py'
  ),
}

# Where byzjax answers something else on purpose: the row checks what is said.
DIFFERENT = {
  ('byzfl_numpy', 'CAF'): (
    'one power step from a random start for the eigenvector; a removed row'
    ' still sets the scale, so that it may not end; None for f = 0'
  ),
  ('byzpy014', 'CAF'): 'three power steps from a fixed start',
  ('byzfl_numpy', 'SMEA'): (
    'one power step from a random start for each eigenvalue: not the subset of'
    ' the least one'
  ),
  ('byzfl_numpy', 'Optimal_ALittleIsEnough'): (
    'searches upwards by doubling; byzjax on a grid, which does no less damage'
  ),
  ('byzfl_numpy', 'Optimal_InnerProductManipulation'): (
    'searches upwards by doubling; byzjax on a grid, which does no less damage'
  ),
  ('blades', 'MinMax'): 'bisects to 0.01, and may end beyond its bound',
  ('fedlib', 'Clippedclustering'): 'adds 1e-6 to the norms when it clips',
}

# Cases with no question in them that byzjax could be asked.
EXCLUDED = {
  'byzfl_numpy/TrMean/0341': 'a NaN with f = 0: more bad rows than declared',
  'epfml/TM/1513': (
    'subtracts the extremes, 1e8, from the sum: wrong by 6e-9 of rounding'
  ),
  'fedlib/Trimmedmean/1916': (
    'subtracts the extremes, 1e8, from the sum: wrong by 6e-9 of rounding'
  ),
  'byzpy014/MultiKrum/2968': (
    'distances from an uncentred Gram matrix: a wrong row is selected'
  ),
  'reference/GeometricMedian_exact/3845': (
    'values of 1e-30, below its absolute tolerance: it stopped at its start'
  ),
  'byzpy014/GeometricMedian/2763': (
    'its start, the coordinate median, is a message that is not the geometric'
    ' median; unmodified Weiszfeld steps never leave it'
  ),
  'byzpy014/GeometricMedian/2999': (
    'every point between two messages is a geometric median: the start decides'
  ),
}
EXCLUDED |= {
  f'byzfl_numpy/LabelFlipping/{number:04}': (
    'the mean of gradients on flipped labels; byzjax flips the labels'
  )
  for number in (974, 984, 994, 1004, 1014, 1034, 1084)
}


TABLE = {
  ('byzfl_numpy', 'Average'): rules.mean,
  ('byzfl_numpy', 'Median'): rules.median,
  ('byzfl_numpy', 'TrMean'): rules.trimmed(lambda n, f: f),
  ('byzfl_numpy', 'Krum'): rules.krum(
    lambda n, f: rules.KrumCall(n, f, n - f - 1)
  ),
  ('byzfl_numpy', 'MultiKrum'): rules.krum(
    lambda n, f: rules.KrumCall(n, f, n - f - 1, n - f)
  ),
  ('byzfl_numpy', 'GeometricMedian'): rules.rfa,
  ('byzfl_numpy', 'CenteredClipping'): rules.clipping('tau', 'L'),
  ('byzfl_numpy', 'CenteredClipping_stateful'): rules.clipping_calls(
    'tau', 'L'
  ),
  ('byzfl_numpy', 'Meamed'): zoo.mean_around_median,
  ('byzfl_numpy', 'MDA'): zoo.minimum_diameter,
  ('byzfl_numpy', 'SMEA'): spectral.no_smaller_eigenvalue,
  ('byzfl_numpy', 'CAF'): spectral.covariance_filter(
    spectral.of_byzfl, 1, 'output'
  ),
  ('byzfl_numpy', 'MoNNA'): zoo.monna,
  ('byzfl_numpy', 'NNM'): rules.nearest_neighbor_mixing,
  ('byzfl_numpy', 'Bucketing'): rules.bucketing,
  ('byzfl_numpy', 'Clipping'): zoo.clip_messages,
  ('byzfl_numpy', 'ARC'): zoo.adaptive_clipping,
  ('byzfl_numpy', 'SignFlipping'): attacks.attack(
    lambda n, _: byzjax.sign_flip()
  ),
  ('byzfl_numpy', 'LabelFlipping'): None,
  ('byzfl_numpy', 'InnerProductManipulation'): attacks.ipm(lambda p: p['tau']),
  ('byzfl_numpy', 'ALittleIsEnough'): attacks.attack(
    lambda n, _, tau: byzjax.alie(z=-tau)
  ),
  ('byzfl_numpy', 'Mimic'): attacks.attack(
    lambda n, _, epsilon: byzjax.mimic(worker=epsilon)
  ),
  ('byzfl_numpy', 'Optimal_ALittleIsEnough'): attacks.optimal_alie,
  ('byzfl_numpy', 'Optimal_InnerProductManipulation'): attacks.optimal_ipm,
  ('byzfl_torch_f32', 'Average'): rules.mean,
  ('byzfl_torch_f32', 'Median'): rules.median,
  ('byzfl_torch_f32', 'TrMean'): rules.trimmed(lambda n, f: f),
  ('byzfl_torch_f32', 'Krum'): rules.krum(
    lambda n, f: rules.KrumCall(n, f, n - f - 1)
  ),
  ('byzfl_torch_f32', 'MultiKrum'): rules.krum(
    lambda n, f: rules.KrumCall(n, f, n - f - 1, n - f)
  ),
  ('byzfl_torch_f32', 'GeometricMedian'): rules.rfa,
  ('byzfl_torch_f32', 'CenteredClipping'): rules.clipping('tau', 'L'),
  ('byzfl_torch_f32', 'NNM'): rules.nearest_neighbor_mixing,
  ('byzfl_torch_f32', 'Meamed'): zoo.mean_around_median,
  ('byzfl_torch_f32', 'MDA'): zoo.minimum_diameter,
  ('byzfl_torch_f32', 'MoNNA'): zoo.monna,
  ('byzfl_torch_f32', 'Clipping'): zoo.clip_messages,
  ('byzfl_torch_f32', 'ARC'): zoo.adaptive_clipping,
  ('epfml', 'CM'): rules.median,
  ('epfml', 'TM'): rules.trimmed(rules.count_until_one_is_left),
  ('epfml', 'Krum'): rules.krum(rules.epfml_krum),
  ('epfml', 'RFA'): rules.rfa,
  ('epfml', 'Clipping'): rules.clipping('tau', 'n_iter'),
  ('epfml', 'Clipping_stateful'): rules.clipping_calls('tau', 'n_iter'),
  ('epfml', 'Async'): rules.missing_rows,
  ('epfml', 'ALIE'): attacks.attack(
    attacks.epfml_alie, lambda params: params['m']
  ),
  ('epfml', 'IPM'): attacks.ipm(lambda p: p['epsilon']),
  ('fedlib', 'Median'): rules.median,
  ('fedlib', 'Trimmedmean'): rules.trimmed(
    lambda n, num_byzantine, filter_frac: int(filter_frac * num_byzantine)
  ),
  ('fedlib', 'Multikrum'): rules.krum(
    lambda n, num_byzantine, k: rules.paper_krum(n, num_byzantine, k, power=4)
  ),
  ('fedlib', 'Centeredclipping'): rules.clipping('tau', 'n_iter'),
  ('fedlib', 'GeoMed'): rules.stopped_weiszfeld('eps'),
  ('fedlib', 'DnC'): zoo.divide_and_conquer,
  ('fedlib', 'Clippedclustering'): zoo.clipped_clustering,
  ('blades', 'ALIE'): attacks.blades_alie,
  ('blades', 'IPM'): attacks.ipm(lambda p: p['scale']),
  ('blades', 'MinMax'): attacks.min_max,
  ('krum091', 'Krum'): rules.krum(rules.paper_krum),
  ('krum091', 'MultiKrum'): rules.krum(rules.krum091_multi),
  ('krum091', 'GeometricMedian'): rules.stopped_weiszfeld('nu'),
  ('krum091', 'Bulyan'): zoo.bulyan_of_multi_krum,
  ('krum091', 'Brute'): zoo.minimum_diameter,
  ('krum091', 'Aksel'): zoo.aksel,
  # Its medoid is the message with the least sum of distances to the others.
  ('krum091', 'Medoid'): rules.krum(
    lambda n, f: rules.KrumCall(n, 0, n - 1, power=1)
  ),
  ('krum091', 'NearestNeighborAverage'): zoo.nearest_neighbor_average,
  ('krum091', 'SmallPerturbation'): attacks.small_perturbation,
  ('krum091', 'ALIE'): attacks.attack(
    attacks.whole_population_alie, attacks.counted
  ),
  ('krum091', 'SignFlip'): attacks.attack(
    lambda n, _, f, scale: byzjax.sign_flip(scale=scale), attacks.counted
  ),
  ('byzpy014', 'Krum'): rules.krum(
    lambda n, f: rules.KrumCall(n, f, n - f - 1)
  ),
  ('byzpy014', 'MultiKrum'): rules.krum(
    lambda n, f, q: rules.KrumCall(n, f, n - f - 1, q)
  ),
  ('byzpy014', 'GeometricMedian'): rules.converged_weiszfeld,
  ('byzpy014', 'CenteredClipping'): rules.clipping_from_the_mean,
  ('byzpy014', 'MeanOfMedians'): zoo.mean_around_lower_median,
  ('byzpy014', 'CGE'): zoo.comparative_gradient_elimination,
  ('byzpy014', 'MDA'): zoo.minimum_diameter,
  ('byzpy014', 'SMEA'): zoo.smallest_eigenvalue,
  ('byzpy014', 'CAF'): spectral.covariance_filter(spectral.of_byzpy, 3),
  ('byzpy014', 'Little'): attacks.attack(
    attacks.whole_population_alie, attacks.counted
  ),
  ('byzpy014', 'Empire'): attacks.ipm(lambda p: -p['scale']),
  ('flower', 'median'): rules.median,
  ('flower', 'trimmed_avg'): rules.trimmed(
    lambda n, proportiontocut: int(proportiontocut * n)
  ),
  ('flower', 'krum'): rules.krum(rules.flower_krum),
  ('flower', 'multikrum'): rules.krum(rules.flower_krum),
  ('flower', 'bulyan'): zoo.bulyan,
  ('reference', 'MDA_exact'): zoo.minimum_diameter_exact,
  ('reference', 'SMEA_exact'): zoo.smallest_eigenvalue_exact,
  ('reference', 'CAF_exact'): spectral.covariance_filter_exact,
  ('reference', 'GeometricMedian_exact'): rules.exact_geometric_median,
}


# Rules that go through subsets, rounds or runs: those are compiled.
SEARCHES = (
  'MDA MDA_exact Brute SMEA SMEA_exact CAF CAF_exact Bulyan bulyan'
).split()


def _included(peer, op):
  return [c for c in stored.by_operation()[peer, op] if c['id'] not in EXCLUDED]


def _check_all(peer, op, every):
  cases = _included(peer, op)
  if not every:
    # Evenly spread over inputs and parameters: nearly every case compiles.
    count = 2 if peer in ('byzfl_numpy', 'reference') else 1
    cases = cases[:: -(-len(cases) // count)]
  assert cases
  with jax.enable_x64(peer != 'byzfl_torch_f32'):
    for case in cases:
      TABLE[peer, op](case)


_some_or_every = pytest.mark.parametrize(
  'every',
  [False, pytest.param(True, marks=pytest.mark.slow)],
  ids=['some', 'every'],
)


@pytest.mark.parametrize(
  'peer, op', [k for k in TABLE if TABLE[k] and k[1] not in SEARCHES]
)
@_some_or_every
def test_conformance(peer, op, every):
  _check_all(peer, op, every)


@pytest.mark.parametrize('peer, op', [k for k in TABLE if k[1] in SEARCHES])
@_some_or_every
def test_conformance_of_searches(peer, op, every):
  _check_all(peer, op, every)


def _against_oracle():
  inputs = stored.load('inputs')
  x = inputs['outlier11x64']
  yield (
    stored.once(byzjax.trimmed_mean(num_byzantine=2), x),
    reference.trimmed_mean(x, 2),
  )
  x = inputs['offset11x64']
  counts = {'num_selected': 6, 'num_neighbors': 5}
  yield (
    stored.once(byzjax.multi_krum(num_byzantine=5, **counts), x),
    reference.multi_krum(x, 5, **counts),
  )
  for name, smoothing in [('tiny7x5', 1e-42), ('ties7x5', 1e-12)]:
    x = inputs[name]
    rule = byzjax.geometric_median(num_iterations=2000, smoothing=smoothing)
    yield stored.once(rule, x), reference.geometric_median(x)


def test_where_peers_are_wrong_the_oracle_decides():
  with jax.enable_x64(True):
    for actual, expected in _against_oracle():
      scale = np.abs(expected).max()
      np.testing.assert_allclose(
        actual, expected, rtol=1e-9, atol=1e-10 * min(1, scale)
      )


def test_every_case_is_accounted_for():
  assert set(TABLE) | set(OTHER_OPERATIONS) == set(stored.by_operation())
  assert not set(TABLE) & set(OTHER_OPERATIONS)
  assert set(DIFFERENT) <= set(TABLE)
  ids = {case['id'] for key in TABLE for case in stored.by_operation()[key]}
  run = {case['id'] for k in TABLE if TABLE[k] for case in _included(*k)}
  assert run | set(EXCLUDED) == ids
  assert not run & set(EXCLUDED)
  assert set(rules.REFUSED) <= run
