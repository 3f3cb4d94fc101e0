"""How byzjax expresses the rules and pre-aggregators of other libraries."""

import functools

import jax
import numpy as np
import pytest

import byzjax
from tests import conformance_cases as stored
from tests import reference

# Cases that peers answer and byzjax must refuse, with a ValueError.
REFUSED = {
  'byzfl_numpy/MultiKrum/0276': 'one message has no neighbours',
  'fedlib/Multikrum/2027': 'n - f - 2 = 0 neighbours: every score is zero',
  'krum091/Medoid/2544': 'one message has no neighbours',
  'flower/krum/3689': 'one of two messages is Byzantine: no majority',
  'flower/krum/3697': 'the only message is Byzantine: no majority',
  'flower/multikrum/3690': 'one of two messages is Byzantine: no majority',
}


def rule_of(express):
  """Runs `express(n, **params) -> Aggregator` and compares the vector."""

  def run(case):
    x = stored.messages(case)
    actual = stored.once(express(len(x), **stored.params(case, len(x))), x)
    if case['finite']:
      stored.check(case, actual, stored.output(case))
    else:
      stored.check_bounded(case, actual)

  return run


mean = rule_of(lambda n: byzjax.mean())
median = rule_of(lambda n: byzjax.coordinate_median())


def trimmed(count):
  return rule_of(
    lambda n, **params: byzjax.trimmed_mean(num_byzantine=count(n, **params))
  )


def count_until_one_is_left(n, b):
  # epfml lowers b silently where nothing would be left.
  return min(b, (n - 1) // 2)


class KrumCall:
  """A call of `krum`, or with `m` of `multi_krum`; `summed` as epfml."""

  def __init__(self, n, f, k=None, m=None, power=2, summed=False):
    if k is not None and k == n - f - 2 and n >= 2 * f + 3:
      k = None  # the default, so that the default is what runs
    counts = {'num_byzantine': f, 'num_neighbors': k, 'distance_power': power}
    if m is None:
      rule = functools.partial(byzjax.krum, **counts)
    else:
      rule = functools.partial(byzjax.multi_krum, num_selected=m, **counts)
    factor = m if summed else 1
    self.answer = lambda x: factor * stored.once(rule(), x)
    self.scores = lambda x: reference.krum_scores(x, f, k, power)
    self.factor, self.num_selected = factor, m or 1


def krum(express):
  """Runs `express(n, **params) -> KrumCall`; up to ties, the peer's answer."""

  def run(case):
    x = stored.messages(case)
    call = express(len(x), **stored.params(case, len(x)))
    if 'raises' in case or case['id'] in REFUSED:
      with pytest.raises(ValueError, match='krum needs'):
        call.answer(x)
      return
    actual = call.answer(x)
    if not case['finite']:
      stored.check_bounded(case, actual)
    elif not case.get('order_dependent'):
      stored.check(case, actual, stored.output(case))
    else:
      lowest = reference.lowest_sets(
        call.scores(x), call.num_selected, stored.tie_tolerance(case)
      )
      answers = [call.factor * reference.mean(x[chosen]) for chosen in lowest]
      assert stored.is_one_of(case, stored.output(case), answers), case['id']
      assert stored.is_one_of(case, actual, answers), case['id']

  return run


def paper_krum(n, f, m=None, **options):
  """The n - f - 2 nearest; what is left to refuse is left to byzjax."""
  # n = 2 f + 2 is one less than the paper allows, and answered by epfml.
  neighbors = n - f - 2 if n == 2 * f + 2 and n > 2 else None
  return KrumCall(n, f, neighbors, m, **options)


def krum091_multi(n, f, m):
  return paper_krum(n, f, n - 2 * f - 3 if m == 'n-2f-3' else m)


def epfml_krum(n, f, m):
  # Fourth powers; the sum of the selected and not their mean.
  if m == 1:
    return paper_krum(n, f, power=4)
  return paper_krum(n, f, m, power=4, summed=True)


def flower_krum(n, num_malicious, to_keep):
  neighbors = max(1, n - num_malicious - 2)
  return KrumCall(n, num_malicious, neighbors, to_keep or None)


rfa = rule_of(
  lambda n, nu, **params: byzjax.geometric_median(
    num_iterations=params['T'], smoothing=nu, start='zeros'
  )
)


def stopped_weiszfeld(smoothing_name):
  """Smoothed Weiszfeld from the mean, stopped early by the peer.

  Both peers stop on a tolerance, after a number of steps that is not stored.
  The oracle finds it: the first step at which it holds the peer's answer.
  byzjax must then hold the same after the same number of steps.
  """

  def run(case):
    x, expected = stored.messages(case), stored.output(case)
    smoothing = case['params'][smoothing_name]
    z, found = reference.mean(x), None
    for step in range(1, 3000):
      z = reference.smoothed_weiszfeld(x, z, 1, smoothing)
      if np.abs(z - expected).max() <= 1e-13 * np.abs(expected).max():
        found = step
        break
    assert found, f'{case["id"]}: never at {expected}'
    rule = byzjax.geometric_median(
      num_iterations=found, smoothing=smoothing, start='mean'
    )
    stored.check(case, stored.once(rule, x), expected)

  return run


def converged_weiszfeld(case):
  """Weiszfeld from another start, stopped at steps below `tol`.

  Steps shrink by a factor that rises to some r < 1, so from a step s on the
  limit is at most s / (1 - r) away: that is the peer's distance to the median,
  and all that byzjax may differ by.
  """
  x, expected, params = (
    stored.messages(case),
    stored.output(case),
    case['params'],
  )
  scale = np.abs(expected).max()
  z, steps = expected, []
  while not steps or steps[-1] > 1e-10 * scale:
    previous = z
    z = reference.smoothed_weiszfeld(x, previous, 1, params['eps'])
    steps.append(np.linalg.norm(z - previous))
  ratio = max((b / a for a, b in zip(steps, steps[1:])), default=0)
  assert steps[0] <= params['tol'] and ratio < 1
  rule = byzjax.geometric_median(num_iterations=2000, smoothing=params['eps'])
  tolerances = stored.tolerances(case)
  stored.check(
    case,
    stored.once(rule, x),
    expected,
    atol=max(steps[0] / (1 - ratio), tolerances['atol']),
  )


def exact_geometric_median(case):
  x = stored.messages(case)
  # As good as no smoothing, in the units of the input.
  smoothing = 1e-12 * (np.abs(x).max() or 1)
  rule = byzjax.geometric_median(num_iterations=2000, smoothing=smoothing)
  stored.check(case, stored.once(rule, x), stored.output(case, 'output'))


def clipping(radius, steps):
  return rule_of(
    lambda n, **params: byzjax.centered_clipping(
      radius=params[radius], num_iterations=params[steps]
    )
  )


def clipping_calls(radius, steps):
  """Three calls of one rule, each from the answer before."""

  def run(case):
    x, params = stored.messages(case), case['params']
    assert params['calls'] == ['x', '2x-1', '-x']
    rule = byzjax.centered_clipping(
      radius=params[radius], num_iterations=params[steps]
    )
    state = rule.init(x[0])
    for name, messages in [('call1', x), ('call2', 2 * x - 1), ('call3', -x)]:
      actual, state = rule.update(messages, state)
      stored.check(case, actual, stored.output(case, name))

  return run


def clipping_from_the_mean(case):
  x, params = stored.messages(case), case['params']
  assert params['init'] == 'mean'
  rule = byzjax.centered_clipping(
    radius=params['c_tau'], num_iterations=params['M']
  )
  state = byzjax.CenteredClippingState(center=stored.once(byzjax.mean(), x))
  actual, _ = rule.update(x, state)
  stored.check(case, actual, stored.output(case))


def missing_rows(case):
  """Absent messages: zeros for the peer's mean, the centre in clipping.

  The latter is what byzjax does with a masked message: it divides by n.
  """
  params, zeroed = case['params'], stored.messages(case)
  zeroed[params['missing']] = 0
  stored.check(
    case, stored.once(byzjax.mean(), zeroed), stored.output(case, 'mean')
  )
  masked = stored.messages(case)
  masked[params['missing']] = np.nan
  rule = byzjax.centered_clipping(
    radius=params['tau'], num_iterations=params['n_iter']
  )
  stored.check(case, stored.once(rule, masked), stored.output(case, 'cc'))


# Pre-aggregators.


def nearest_neighbor_mixing(case):
  x, f = stored.messages(case), case['params']['f']
  pre = byzjax.nearest_neighbor_mixing(num_byzantine=f)
  actual, _ = pre.apply(x, pre.init(x[0]), key=None)
  expected = stored.output(case)
  assert actual.shape == x.shape
  actual = actual[: len(expected)]  # of large inputs some rows are stored
  if not case.get('order_dependent'):
    stored.check(case, actual, expected)
    return
  for i in range(len(expected)):
    distances = np.linalg.norm(x.astype(np.float64) - x[i], axis=1)
    nearest = reference.lowest_sets(
      distances, len(x) - f, stored.tie_tolerance(case)
    )
    means = [reference.mean(x[chosen]) for chosen in nearest if i in chosen]
    assert stored.is_one_of(case, expected[i], means), case['id']
    assert stored.is_one_of(case, actual[i], means), case['id']


def bucketing(case):
  """Permutations differ; what holds for every one must hold for both."""
  x, s = stored.messages(case), case['params']['s']
  expected = stored.output(case, 'output')
  permutation = stored.output(case, 'permutation')
  pre, n = byzjax.bucketing(bucket_size=s), len(x)
  np.testing.assert_allclose(
    reference.bucketing(x, permutation, s), expected, rtol=1e-12, atol=1e-12
  )

  # Unit vectors, mixed along with the messages, become the mixing matrix.
  messages = {'matrix': np.eye(n), 'x': x}
  params = jax.tree.map(lambda leaf: leaf[0], messages)
  mixed, _ = pre.apply(messages, pre.init(params), key=jax.random.key(0))
  actual, matrix = np.asarray(mixed['x']), np.asarray(mixed['matrix'])
  assert actual.shape == expected.shape, case['id']
  # It is a partition of the rows into buckets, of the peer's sizes.
  sizes = [len(range(i, min(i + s, n))) for i in range(0, n, s)]
  np.testing.assert_array_equal((matrix > 1e-12).sum(axis=1), sizes)
  np.testing.assert_array_equal((matrix > 1e-12).sum(axis=0), np.ones(n))
  stored.check(case, actual, matrix @ x)
  # Sums do not see how rows were dealt out.
  stored.check(case, sizes @ actual, sizes @ expected)
  if s >= n:
    stored.check(case, actual, expected)
