r"""Time of every rule as a multiple of reading its messages once.

  python -m benchmarks.rules
  python -m benchmarks.rules --num_workers=50 --num_coordinates=1000000

F is one read of X[n, d] (`w @ X`) in the same process; figures are medians over
repeats of (time of the rule) / (F of the same repeat). `temp` is temporary
memory as a share of X, `NumPy` the time of the textbook NumPy form, in F too.
"""

import functools
import math
import platform
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import byzjax
from benchmarks import timing
from byzjax._src import bits
from byzjax.aggregators import _packed_vote

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 20, 'n; f is n // 5.', 5)
flags.DEFINE_integer('num_coordinates', 1_000_000, 'd.', 1)
flags.DEFINE_integer('repeats', 9, 'Repeats of each measurement.', 1)
flags.DEFINE_string('only', '', 'Only rules whose name contains this.')

# Multiples of F that the project set itself, for n = 20, 50 and 128 on a CPU.
COORDINATE, GRAM = 7.0, 20.0  # for n = 128
GOALS = {
  'coordinate_median': (1.2, 4.0, COORDINATE),
  'trimmed_mean': (1.2, 4.0, COORDINATE),
  'mean_around_median': (1.3, 5.0, COORDINATE),
  'majority_vote': (1.1, 2.0, COORDINATE),
  'majority_vote, packed words': (0.1, 0.1, None),
  'centered_clipping, 1 step': (3.5, 5.0, GRAM),
  'centered_clipping, 3 steps': (6.0, 12.0, GRAM),
  'krum': (5.0, 10.0, GRAM),
  'multi_krum': (5.0, 10.0, GRAM),
  'geometric_median, 32 steps': (6.0, 12.0, GRAM),
  'minimum_diameter_averaging': (8.0, None, None),
  'minimum_diameter_averaging, f=5': (None, 15.0, None),
  'bulyan': (8.0, None, None),
  'bulyan, f=5': (None, 15.0, None),
  'mixing + krum': (7.0, 14.0, GRAM),
}
GOALS_OF_GROUPS = {('detox vote, r=3', 15): 2.4}
# More subsets than this are not for smallest_max_eigenvalue_averaging.
MAX_SUBSETS = 200_000


def rules(n: int) -> dict[str, byzjax.Aggregator]:
  f = n // 5
  mixing = functools.partial(byzjax.nearest_neighbor_mixing, num_byzantine=f)
  named = {
    'mean': byzjax.mean(),
    'coordinate_median': byzjax.coordinate_median(),
    'trimmed_mean': byzjax.trimmed_mean(num_byzantine=f),
    'mean_around_median': byzjax.mean_around_median(num_byzantine=f),
    'phocas': byzjax.phocas(num_byzantine=f),
    'majority_vote': byzjax.majority_vote(),
    'centered_clipping, 1 step': byzjax.centered_clipping(radius=1.0),
    'centered_clipping, 3 steps': byzjax.centered_clipping(
      radius=1.0, num_iterations=3
    ),
    'comparative_gradient_elimination': (
      byzjax.comparative_gradient_elimination(num_byzantine=f)
    ),
    'monna': byzjax.monna(num_byzantine=f, reference_worker=0),
    'aksel': byzjax.aksel(num_byzantine=f),
    'krum': byzjax.krum(num_byzantine=f),
    'multi_krum': byzjax.multi_krum(num_byzantine=f),
    'geometric_median, 32 steps': byzjax.geometric_median(),
    'covariance_filter': byzjax.covariance_filter(num_byzantine=f),
    'divide_and_conquer': byzjax.divide_and_conquer(num_byzantine=f),
    'clustering': byzjax.clustering(),
    'clipped_clustering': byzjax.clipped_clustering(),
    'mixing + krum': byzjax.pre_aggregate(
      mixing(), byzjax.krum(num_byzantine=f)
    ),
    'mixing + coordinate_median': byzjax.pre_aggregate(
      mixing(), byzjax.coordinate_median()
    ),
    'clipping + mean': byzjax.pre_aggregate(
      byzjax.adaptive_clipping(num_byzantine=f), byzjax.mean()
    ),
  }
  # The searches and Bulyan are for few attackers.
  few, suffix = min(f, 5), '' if f <= 5 else ', f=5'
  if n >= 4 * few + 3:
    named[f'bulyan{suffix}'] = byzjax.bulyan(num_byzantine=few)
  named[f'minimum_diameter_averaging{suffix}'] = (
    byzjax.minimum_diameter_averaging(num_byzantine=few)
  )
  if math.comb(n, few) <= MAX_SUBSETS:
    named[f'smallest_max_eigenvalue_averaging{suffix}'] = (
      byzjax.smallest_max_eigenvalue_averaging(num_byzantine=few)
    )
  if n % 3 == 0:
    named['detox vote, r=3'] = byzjax.detox(group_size=3, rule=byzjax.mean())
  return named


def numpy_rules(x: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
  """The same by NumPy, as one would write it."""
  n = len(x)
  f = n // 5

  def krum():
    inner = x @ x.T
    norms = np.diagonal(inner)
    distances = norms[:, None] + norms[None] - 2 * inner
    nearest = np.sort(distances, axis=1)[:, 1 : n - f - 1]
    return x[np.argmin(nearest.sum(axis=1))]

  return {
    'mean': lambda: np.mean(x, axis=0),
    'coordinate_median': lambda: np.median(x, axis=0),
    'trimmed_mean': lambda: np.sort(x, axis=0)[f : n - f].mean(axis=0),
    'majority_vote': lambda: np.sign(np.sign(x).sum(axis=0)),
    'krum': krum,
  }


def main(argv):
  del argv
  n, d = FLAGS.num_workers, FLAGS.num_coordinates
  x = jax.random.normal(jax.random.key(0), (n, d))
  host = np.asarray(x)
  weights = jnp.full(n, 1 / n)
  floor, _, _ = timing.compiled(lambda w, x: w @ x, weights, x)
  key = jax.random.key(1)
  programs = {
    name: timing.compiled(
      lambda x, state, rule=rule: rule.update(x, state, key=key),
      x,
      rule.init(x[0]),
    )
    for name, rule in rules(n).items()
    if FLAGS.only in name
  }
  packed = 'majority_vote, packed words'
  if FLAGS.only in packed:
    words = jax.jit(bits.pack)(x < 0)
    programs[packed] = timing.compiled(_packed_vote.vote_words, words)
  baselines = {
    name: call for name, call in numpy_rules(host).items() if name in programs
  }
  seconds = timing.interleaved(
    {'F': floor, **{name: call for name, (call, _, _) in programs.items()}},
    FLAGS.repeats,
  )
  # With a floor of their own: they leave other things in the caches.
  numpy_seconds = timing.interleaved({'F': floor, **baselines}, 3)
  print(
    f'n={n} d={d} f={n // 5}, {jax.default_backend()}, jax {jax.__version__},'
    f' {platform.machine()}, F = {1e3 * np.median(seconds["F"]):.2f} ms'
  )
  print(
    f'{"rule":34} {"x F":>6} {"goal":>6} {"temp":>7} {"compile":>8}'
    f' {"NumPy":>7}'
  )
  column = {20: 0, 50: 1, 128: 2}.get(n)
  for name, (_, compile_seconds, temporary) in programs.items():
    goal = GOALS.get(name, (None,) * 3)[column] if column is not None else None
    goal = GOALS_OF_GROUPS.get((name, n), goal)
    line = (
      f'{name:34} {timing.ratio(seconds[name], seconds["F"]):6.1f}'
      f' {goal or "-":>6} {temporary / x.nbytes:7.1%} {compile_seconds:6.1f} s'
    )
    if name in baselines:
      ratio = timing.ratio(numpy_seconds[name], numpy_seconds['F'])
      line += f' {ratio:7.1f}'
    print(line)


if __name__ == '__main__':
  app.run(main)
