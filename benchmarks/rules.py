r"""Time of every rule as a multiple of reading its messages once.

  python -m benchmarks.rules
  python -m benchmarks.rules --sizes=50x1000000 --only=krum,median

F is one read of X[n, d] (`w @ X`) in the same process; a size is n x d, and f
is n // 5. `temp` is temporary memory as a share of X, `NumPy` the wall clock of
the textbook NumPy form, in F too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from benchmarks import program, records, timing
from byzjax._src import bits
from byzjax.aggregators import _packed_vote

FLOOR = 'F'
PACKED = 'majority_vote, packed words'
# More subsets than this are not for smallest_max_eigenvalue_averaging.
MAX_SUBSETS = 200_000


@dataclasses.dataclass(frozen=True)
class Settings:
  sizes: tuple[str, ...] = program.option(
    ('10x100000', '15x1000000', '20x1000000', '50x1000000', '128x1000000'),
    'Sizes n x d.',
  )
  only: tuple[str, ...] = program.option(
    (), 'Only rules whose name contains one of these.'
  )
  numpy: bool = program.option(True, 'Whether to time the NumPy forms.')
  repeats: int = program.option(9, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings(('15x500',), ('trimmed', 'majority'), repeats=1)


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
    'mixing + trimmed_mean': byzjax.pre_aggregate(
      mixing(), byzjax.trimmed_mean(num_byzantine=f)
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


def numpy_rules(messages: jax.Array) -> dict[str, Callable[[], np.ndarray]]:
  """The same by NumPy, as one would write it."""
  x, n = np.asarray(messages), len(messages)
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


def update(rule: byzjax.Aggregator) -> Callable[[Any, Any], Any]:
  """The rule as a function of messages and state."""
  return lambda x, state: rule.update(x, state, key=jax.random.key(1))


def program_of(rule: byzjax.Aggregator, x: jax.Array) -> timing.Program:
  return timing.compiled(update(rule), x, rule.init(x[0]))


def floor_of(x: jax.Array) -> timing.Program:
  """One read of the messages."""
  weights = jnp.full(len(x), 1 / len(x))
  return timing.compiled(lambda w, x: w @ x, weights, x)


def measure(settings: Settings) -> Iterator[records.Run]:
  seconds = settings.seconds / len(settings.sizes)
  for size in settings.sizes:
    n, d = map(int, size.split('x'))
    yield _of_size(n, d, settings, seconds)


def _of_size(n: int, d: int, settings: Settings, seconds: float) -> records.Run:
  def wanted(name):
    return not settings.only or any(part in name for part in settings.only)

  x = jax.random.normal(jax.random.key(0), (n, d))
  programs = {FLOOR: floor_of(x)}
  for name, rule in rules(n).items():
    if wanted(name):
      programs[name] = program_of(rule, x)
  if wanted(PACKED):
    words = jax.jit(bits.pack)(x < 0)
    programs[PACKED] = timing.compiled(_packed_vote.vote_words, words)
  calls = {name: each.call for name, each in programs.items()}
  times = timing.interleaved(calls, settings.repeats, 0.8 * seconds)
  values: dict[str, dict[str, Any]] = {
    name: {
      'temporary_bytes': each.temporary_bytes,
      'temporary_share': each.temporary_bytes / x.nbytes,
      'compile_seconds': each.compile_seconds,
    }
    for name, each in programs.items()
  }
  if settings.numpy:
    repeats = min(3, settings.repeats)
    baselines = {k: v for k, v in numpy_rules(x).items() if k in values}
    # With a floor of their own: they leave other things in the caches.
    theirs = timing.interleaved(
      {FLOOR: calls[FLOOR], **baselines}, repeats, 0.2 * seconds
    )
    for name in baselines:
      values[name]['numpy_ratio'] = timing.ratio(theirs[name], theirs[FLOOR])
  title = f'n={n} d={d} f={n // 5}'
  return records.Run(
    title, FLOOR, records.figures(times, FLOOR, values), {'n': n, 'd': d}
  )


if __name__ == '__main__':
  program.run('rules', Settings, QUICK, measure)
