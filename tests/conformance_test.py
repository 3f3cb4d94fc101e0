"""byzjax against stored answers of other libraries.

`conformance/` holds inputs, and what other implementations answer on them (see
its README). The tables below say, peer by peer, how byzjax expresses each of
their operations; where a convention differs, the row says which arguments give
the peer's. Nothing of an operation that byzjax has is left out silently: a case
runs, or must be refused, or is excluded for a reason that is written down.
"""

import functools
import statistics

import jax
import numpy as np
import pytest

import byzjax
from tests import conformance_cases as stored
from tests import conformance_rules as rules
from tests import reference

# (peer, operation) pairs that byzjax does not have (yet).
OTHER_OPERATIONS = {
  'byzfl_numpy': (
    'ARC CAF Clipping MDA Meamed Mimic MoNNA'
    ' Optimal_ALittleIsEnough Optimal_InnerProductManipulation SMEA'
  ),
  'byzfl_torch_f32': 'ARC Clipping MDA Meamed MoNNA',
  'epfml_decentralized': 'SelfCenteredClipping dissensus metropolis',
  'fedlib': 'Clippedclustering DnC Signguard',
  'blades': 'MinMax',
  'krum091': (
    'Aksel Brute Bulyan Medoid NearestNeighborAverage SmallPerturbation'
  ),
  'byzpy014': 'CAF CGE MDA MeanOfMedians SMEA',
  'flower': 'bulyan',
  'reference': 'CAF_exact MDA_exact SMEA_exact',
}
OTHER_OPERATIONS = {
  (peer, op) for peer, ops in OTHER_OPERATIONS.items() for op in ops.split()
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


# Attacks.


def _attack(express, count=lambda params: 2):
  """Runs `express(n, num_byzantine, **params) -> Attack`.

  The stored rows are the honest ones.
  """

  def run(case):
    honest, f = stored.messages(case), count(case['params'])
    n = len(honest) + f
    attack = express(n, f, **stored.params(case, n))
    expected = (
      stored.output(case) if 'output' in case else stored.output(case, 'output')
    )
    # What the attackers computed themselves must not matter.
    messages = np.concatenate([np.full((f, honest.shape[1]), 1e3), honest])
    actual, _ = attack.apply(
      messages,
      attack.init(honest[0]),
      is_byzantine=np.arange(n) < f,
      key=jax.random.key(0),
    )
    actual = np.asarray(actual)
    np.testing.assert_array_equal(actual[f:], honest)
    stored.check(case, actual[:f], np.broadcast_to(expected, actual[:f].shape))

  return run


def _ipm(epsilon):
  return _attack(
    lambda n, _, **params: byzjax.inner_product_manipulation(
      epsilon=epsilon(params)
    )
  )


def _epfml_alie(n, f, m, z):
  np.testing.assert_allclose(byzjax.alie_factor(n, m), z, rtol=1e-12)
  return byzjax.alie()  # z is the default


def _blades_alie(case):
  # Its inverse normal is float32, hence the stored z; which it adds.
  n, f = case['params']['num_clients'], case['params']['f']
  z = float(stored.output(case, 'z_max'))
  np.testing.assert_allclose(byzjax.alie_factor(n, f), z, rtol=1e-6)
  _attack(lambda n, _, **params: byzjax.alie(z=-z), _counted)(case)


def _whole_population_alie(n, num_byzantine, f, z='max', direction='positive'):
  """krum and ByzPy: deviations with ddof 0, and a z that counts everyone."""
  assert z == 'max'
  supporters = n // 2 + 1 - f
  z = statistics.NormalDist().inv_cdf((n - supporters) / n)
  return byzjax.alie(z=z if direction == 'negative' else -z, ddof=0)


def _counted(params):
  return params['f']


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
  ('byzfl_numpy', 'NNM'): rules.nearest_neighbor_mixing,
  ('byzfl_numpy', 'Bucketing'): rules.bucketing,
  ('byzfl_numpy', 'SignFlipping'): _attack(lambda n, _: byzjax.sign_flip()),
  ('byzfl_numpy', 'LabelFlipping'): None,
  ('byzfl_numpy', 'InnerProductManipulation'): _ipm(lambda p: p['tau']),
  ('byzfl_numpy', 'ALittleIsEnough'): _attack(
    lambda n, _, tau: byzjax.alie(z=-tau)
  ),
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
  ('epfml', 'CM'): rules.median,
  ('epfml', 'TM'): rules.trimmed(rules.count_until_one_is_left),
  ('epfml', 'Krum'): rules.krum(rules.epfml_krum),
  ('epfml', 'RFA'): rules.rfa,
  ('epfml', 'Clipping'): rules.clipping('tau', 'n_iter'),
  ('epfml', 'Clipping_stateful'): rules.clipping_calls('tau', 'n_iter'),
  ('epfml', 'Async'): rules.missing_rows,
  ('epfml', 'ALIE'): _attack(_epfml_alie, lambda params: params['m']),
  ('epfml', 'IPM'): _ipm(lambda p: p['epsilon']),
  ('fedlib', 'Median'): rules.median,
  ('fedlib', 'Trimmedmean'): rules.trimmed(
    lambda n, num_byzantine, filter_frac: int(filter_frac * num_byzantine)
  ),
  ('fedlib', 'Multikrum'): rules.krum(
    lambda n, num_byzantine, k: rules.paper_krum(n, num_byzantine, k, power=4)
  ),
  ('fedlib', 'Centeredclipping'): rules.clipping('tau', 'n_iter'),
  ('fedlib', 'GeoMed'): rules.stopped_weiszfeld('eps'),
  ('blades', 'ALIE'): _blades_alie,
  ('blades', 'IPM'): _ipm(lambda p: p['scale']),
  ('krum091', 'Krum'): rules.krum(rules.paper_krum),
  ('krum091', 'MultiKrum'): rules.krum(rules.krum091_multi),
  ('krum091', 'GeometricMedian'): rules.stopped_weiszfeld('nu'),
  ('krum091', 'ALIE'): _attack(_whole_population_alie, _counted),
  ('krum091', 'SignFlip'): _attack(
    lambda n, _, f, scale: byzjax.sign_flip(scale=scale), _counted
  ),
  ('byzpy014', 'Krum'): rules.krum(
    lambda n, f: rules.KrumCall(n, f, n - f - 1)
  ),
  ('byzpy014', 'MultiKrum'): rules.krum(
    lambda n, f, q: rules.KrumCall(n, f, n - f - 1, q)
  ),
  ('byzpy014', 'GeometricMedian'): rules.converged_weiszfeld,
  ('byzpy014', 'CenteredClipping'): rules.clipping_from_the_mean,
  ('byzpy014', 'Little'): _attack(_whole_population_alie, _counted),
  ('byzpy014', 'Empire'): _ipm(lambda p: -p['scale']),
  ('flower', 'median'): rules.median,
  ('flower', 'trimmed_avg'): rules.trimmed(
    lambda n, proportiontocut: int(proportiontocut * n)
  ),
  ('flower', 'krum'): rules.krum(rules.flower_krum),
  ('flower', 'multikrum'): rules.krum(rules.flower_krum),
  ('reference', 'GeometricMedian_exact'): rules.exact_geometric_median,
}


def _included(peer, op):
  return [c for c in stored.by_operation()[peer, op] if c['id'] not in EXCLUDED]


@pytest.fixture
def interpreted_loops(monkeypatch):
  """Runs short loops in Python: compiling one per case takes a minute."""
  fori_loop = jax.lax.fori_loop

  def interpreted(lower, upper, body_fun, init_val):
    if upper - lower > 200:
      return fori_loop(lower, upper, body_fun, init_val)
    return functools.reduce(
      lambda val, i: body_fun(i, val), range(lower, upper), init_val
    )

  monkeypatch.setattr(jax.lax, 'fori_loop', interpreted)


@pytest.mark.usefixtures('interpreted_loops')
@pytest.mark.parametrize('peer, op', [k for k, run in TABLE.items() if run])
def test_conformance(peer, op):
  cases = _included(peer, op)
  assert cases
  with jax.enable_x64(peer != 'byzfl_torch_f32'):
    for case in cases:
      TABLE[peer, op](case)


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
  assert set(TABLE) | OTHER_OPERATIONS == set(stored.by_operation())
  assert not set(TABLE) & OTHER_OPERATIONS
  ids = {case['id'] for key in TABLE for case in stored.by_operation()[key]}
  run = {case['id'] for k in TABLE if TABLE[k] for case in _included(*k)}
  assert run | set(EXCLUDED) == ids
  assert not run & set(EXCLUDED)
  assert set(rules.REFUSED) <= run
