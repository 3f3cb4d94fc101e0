"""How byzjax expresses the attacks of other libraries."""

import statistics

import jax
import numpy as np

import byzjax
from tests import conformance_cases as stored

# ByzFL doubles its factor up to 5e6; half octaves from 1/16 to 2^23.
_STRENGTHS = tuple(2 ** (k / 2) for k in range(-8, 47))


def attack(express, count=lambda params: 2):
  """Runs `express(n, num_byzantine, **params) -> Attack`.

  The stored rows are the honest ones.
  """

  def run(case):
    honest, f = stored.messages(case), count(case['params'])
    n = len(honest) + f
    expected = (
      stored.output(case) if 'output' in case else stored.output(case, 'output')
    )
    actual = _sent(express(n, f, **stored.params(case, n)), honest, f)
    stored.check(case, actual, np.broadcast_to(expected, actual.shape))

  return run


def _sent(attack, honest, f):
  """What f attackers send."""
  # What the attackers computed themselves must not matter.
  messages = np.concatenate([np.full((f, honest.shape[1]), 1e3), honest])
  actual, _ = attack.apply(
    messages,
    attack.init(honest[0]),
    is_byzantine=np.arange(len(messages)) < f,
    key=jax.random.key(0),
  )
  actual = np.asarray(actual)
  np.testing.assert_array_equal(actual[f:], honest)
  return actual[:f]


def counted(params):
  return params['f']


def ipm(epsilon):
  return attack(
    lambda n, _, **params: byzjax.inner_product_manipulation(
      epsilon=epsilon(params)
    )
  )


# A little is enough.


def epfml_alie(n, f, m, z):
  np.testing.assert_allclose(byzjax.alie_factor(n, m), z, rtol=1e-12)
  return byzjax.alie()  # z is the default


def blades_alie(case):
  # Its inverse normal is float32, hence the stored z; which it adds.
  n, f = case['params']['num_clients'], case['params']['f']
  z = float(stored.output(case, 'z_max'))
  np.testing.assert_allclose(byzjax.alie_factor(n, f), z, rtol=1e-6)
  attack(lambda n, _, **params: byzjax.alie(z=-z), counted)(case)


def whole_population_alie(n, num_byzantine, f, z='max', direction='positive'):
  """krum and ByzPy: deviations with ddof 0, and a z that counts everyone."""
  assert z == 'max'
  supporters = n // 2 + 1 - f
  z = statistics.NormalDist().inv_cdf((n - supporters) / n)
  return byzjax.alie(z=z if direction == 'negative' else -z, ddof=0)


# Attacks that search for their strength.


def _defence(n, f, agg, pre):
  """ByzFL's rules and pre-aggregators, with its defaults."""
  rule = {
    'Average': byzjax.mean,
    'Median': byzjax.coordinate_median,
    'TrMean': lambda: byzjax.trimmed_mean(num_byzantine=f),
    'GeometricMedian': lambda: byzjax.geometric_median(
      num_iterations=3, smoothing=0.1, start='zeros'
    ),
    'MultiKrum': lambda: byzjax.multi_krum(
      num_byzantine=f, num_selected=n - f, num_neighbors=n - f - 1
    ),
  }[agg]()
  known = {
    'NNM': lambda: byzjax.nearest_neighbor_mixing(num_byzantine=f),
    'Clipping': lambda: byzjax.clip_messages(max_norm=2.0),
  }
  steps = [] if pre == 'none' else [known[name]() for name in pre.split('+')]
  return byzjax.pre_aggregate(*steps, rule) if steps else rule


def optimal(at_factor, at_strength_one):
  """ByzFL's line search: its message is ours at its factor.

  `adaptive`, which searches a grid, does at least as much damage.
  """

  def run(case):
    honest, params = stored.messages(case), case['params']
    f, mean = params['f'], honest.mean(axis=0)
    factor = float(stored.output(case, 'tau'))
    theirs = _sent(at_factor(factor), honest, f)
    stored.check(
      case,
      theirs,
      np.broadcast_to(stored.output(case, 'output'), theirs.shape),
    )
    rule = _defence(len(honest) + f, f, params['agg'], params['pre'])
    search = byzjax.adaptive(
      at_strength_one, rule, strengths=_STRENGTHS, num_refinements=2
    )

    def damage(sent):
      aggregate = stored.once(rule, np.concatenate([sent, honest]))
      return np.linalg.norm(aggregate - mean)

    ours = _sent(search, honest, f)
    assert damage(ours) >= damage(theirs) * (1 - 1e-6), case['id']

  return run


optimal_alie = optimal(
  lambda factor: byzjax.alie(z=-factor), byzjax.alie(z=-1.0)
)
# From the mean towards zero, and on: at strength s the factor is s - 1.
optimal_ipm = optimal(
  lambda factor: byzjax.inner_product_manipulation(epsilon=factor),
  byzjax.inner_product_manipulation(epsilon=0.0),
)


def min_max(case):
  """Blades bisects, and its last midpoint may lie beyond the bound."""
  honest, params = stored.messages(case), case['params']
  assert (params['low'], params['deviation']) == (0, 'std ddof 1')
  attack = byzjax.min_max(deviation='std', ddof=1, max_gamma=params['high'])
  (actual,) = _sent(attack, honest, 1)
  error = np.abs(actual - stored.output(case))
  assert (error <= params['stop'] * honest.std(axis=0, ddof=1) + 1e-12).all()
  bound = np.linalg.norm(honest[:, None] - honest, axis=-1).max()
  farthest = np.linalg.norm(actual - honest, axis=-1).max()
  assert farthest <= bound * (1 + 1e-9) + 1e-12, case['id']


def small_perturbation(case):
  """krum's: the mean, moved along one axis as far as Krum still takes it.

  Our Krum takes it too, and takes none that lies 2e-3 farther out.
  """
  honest, params = stored.messages(case), case['params']
  f, sent = params['f'], stored.output(case)
  assert params['n'] == len(honest) + f and params['aggregator'] == 'Krum'
  rule = byzjax.krum(num_byzantine=f)

  def is_taken(message):
    messages = np.concatenate([honest, np.broadcast_to(message, (f, 5))])
    return np.array_equal(stored.once(rule, messages), message)

  step = sent - honest.mean(axis=0)
  assert is_taken(sent), case['id']
  assert not is_taken(sent + 2e-3 * step / np.linalg.norm(step)), case['id']
