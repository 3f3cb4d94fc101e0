r"""Time of every rule as a multiple of reading its messages once.

  python -m benchmarks.rules
  python -m benchmarks.rules --num_workers=50 --num_coordinates=1000000

F is one read of X[n, d] (`w @ X`) in the same process; figures are medians over
repeats of (time of the rule) / (F of the same repeat). `temp` is temporary
memory as a share of X.
"""

import functools
import platform

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import byzjax
from benchmarks import timing

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 20, 'n; f is n // 5.', 5)
flags.DEFINE_integer('num_coordinates', 1_000_000, 'd.', 1)
flags.DEFINE_integer('repeats', 9, 'Repeats of each measurement.', 1)
flags.DEFINE_string('only', '', 'Only rules whose name contains this.')

# Multiples of F that the project set itself, for n = 20 and n = 50 on a CPU.
GOALS = {
  'coordinate_median': (1.2, 4.0),
  'trimmed_mean': (1.2, 4.0),
  'centered_clipping, 1 step': (3.5, 5.0),
  'krum': (5.0, 10.0),
  'multi_krum': (5.0, 10.0),
  'geometric_median, 32 steps': (6.0, 12.0),
  'mixing + krum': (7.0, 14.0),
}


def rules(f: int) -> dict[str, byzjax.Aggregator]:
  mixing = functools.partial(byzjax.nearest_neighbor_mixing, num_byzantine=f)
  return {
    'mean': byzjax.mean(),
    'coordinate_median': byzjax.coordinate_median(),
    'trimmed_mean': byzjax.trimmed_mean(num_byzantine=f),
    'centered_clipping, 1 step': byzjax.centered_clipping(radius=1.0),
    'centered_clipping, 3 steps': byzjax.centered_clipping(
      radius=1.0, num_iterations=3
    ),
    'krum': byzjax.krum(num_byzantine=f),
    'multi_krum': byzjax.multi_krum(num_byzantine=f),
    'geometric_median, 32 steps': byzjax.geometric_median(),
    'mixing + krum': byzjax.pre_aggregate(
      mixing(), byzjax.krum(num_byzantine=f)
    ),
    'mixing + coordinate_median': byzjax.pre_aggregate(
      mixing(), byzjax.coordinate_median()
    ),
  }


def main(argv):
  del argv
  n, d = FLAGS.num_workers, FLAGS.num_coordinates
  x = jax.random.normal(jax.random.key(0), (n, d))
  host = np.asarray(x)
  weights = jnp.full(n, 1 / n)
  floor, _, _ = timing.compiled(lambda w, x: w @ x, weights, x)
  programs = {
    name: timing.compiled(
      lambda x, state, rule=rule: rule.update(x, state), x, rule.init(x[0])
    )
    for name, rule in rules(n // 5).items()
    if FLAGS.only in name
  }
  baselines = {
    'jnp.median': timing.compiled(lambda x: jnp.median(x, axis=0), x)[0],
    'np.mean': lambda: np.mean(host, axis=0),
  }
  seconds = timing.interleaved(
    {
      'F': floor,
      **{name: call for name, (call, _, _) in programs.items()},
      **baselines,
    },
    FLAGS.repeats,
  )
  print(
    f'n={n} d={d} f={n // 5}, {jax.default_backend()}, jax {jax.__version__},'
    f' {platform.machine()}, F = {1e3 * np.median(seconds["F"]):.1f} ms'
  )
  print(f'{"rule":28} {"x F":>6} {"goal":>6} {"temp":>7} {"compile":>8}')
  column = {20: 0, 50: 1}.get(n)
  for name, (_, compile_seconds, temporary) in programs.items():
    goal = '-'
    if column is not None and name in GOALS:
      goal = f'{GOALS[name][column]:.1f}'
    print(
      f'{name:28} {timing.ratio(seconds[name], seconds["F"]):6.1f} {goal:>6}'
      f' {temporary / x.nbytes:7.1%} {compile_seconds:6.1f} s'
    )
  for name in baselines:
    print(f'{name:28} {timing.ratio(seconds[name], seconds["F"]):6.1f}')


if __name__ == '__main__':
  app.run(main)
