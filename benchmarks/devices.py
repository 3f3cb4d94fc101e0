r"""One CPU as several devices: what rules and whole rounds gain.

  python -m benchmarks.devices
  python -m benchmarks.devices --num_devices=4

`jax_num_cpu_devices` makes several devices of a CPU. A program of one device
has all cores too, but loops, such as those over blocks of a Gram matrix, run on
one; split over devices each of them has a core. Rules have their coordinates
split, rounds their workers. Ratios are to the same rule or round on one device,
and `differs` is the largest difference to its result, as a share of the largest
number of that.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding

import byzjax
from benchmarks import program, records, rounds, timing

FLOOR = 'on one device'
AXIS = 'workers'  # Of rounds; rules have their coordinates split over it.


@dataclasses.dataclass(frozen=True)
class Settings:
  num_devices: int = program.option(2, 'Devices to make of the CPU.')
  sizes: tuple[str, ...] = program.option(
    ('20x1000000', '50x1000000'), 'Sizes n x d of messages for rules.'
  )
  models: tuple[str, ...] = program.option(
    ('digits', 'mlp', 'cnn', 'quadratic'),
    'Of rounds; quadratic is a loss whose gradients cost next to nothing.',
  )
  num_coordinates: int = program.option(1_000_000, 'd of the quadratic loss.')
  rules: tuple[str, ...] = program.option((), 'Only these; all by default.')
  num_workers: int = program.option(16, 'n of rounds; f is n // 5.')
  batch_size: int = program.option(32, 'Examples per worker.')
  rounds: int = program.option(
    20, 'Rounds in one program; fewer for the last two models.'
  )
  repeats: int = program.option(9, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings(2, ('5x500',), ('quadratic',), 500, ('krum',), 6, 2, 2, 1)


def measure(settings: Settings) -> Iterator[records.Run]:
  program.split_cpu(settings.num_devices)
  devices = jax.devices()[: settings.num_devices]
  mesh = jax.make_mesh(
    (len(devices),), (AXIS,), (AxisType.Auto,), devices=devices
  )
  seconds = settings.seconds / (len(settings.sizes) + len(settings.models))
  for size in settings.sizes:
    n, d = map(int, size.split('x'))
    pairs = _rules(n, d, settings, mesh)
    yield _compared(f'rules, n={n} d={d} f={n // 5}', pairs, settings, seconds)
  for model in settings.models:
    pairs, title = _rounds(model, settings, mesh)
    yield _compared(title, pairs, settings, seconds)


def _rules(
  n: int, d: int, settings: Settings, mesh
) -> dict[str, list[timing.Program]]:
  """Each rule on one device and on the mesh."""
  f = n // 5
  median = byzjax.coordinate_median()
  mixing = byzjax.nearest_neighbor_mixing(num_byzantine=f)
  chosen = {
    'coordinate_median': median,
    'centered_clipping': byzjax.centered_clipping(radius=1.0),
    'krum': byzjax.krum(num_byzantine=f),
    'geometric_median': byzjax.geometric_median(),
    'mixing + coordinate_median': byzjax.pre_aggregate(mixing, median),
  }
  columns = jax.P(None, AXIS)
  x = jax.random.normal(jax.random.key(0), (n, d))
  split = jax.device_put(x, NamedSharding(mesh, columns))

  def on_mesh(rule):
    return jax.shard_map(
      lambda x: rule.update(x, rule.init(x[0]), axis_name=AXIS)[0],
      mesh=mesh,
      in_specs=columns,
      out_specs=jax.P(AXIS),
    )

  def alone(rule):
    return lambda x: rule.update(x, rule.init(x[0]))[0]

  return {
    name: [
      timing.compiled(alone(rule), x),
      timing.compiled(on_mesh(rule), split),
    ]
    for name, rule in chosen.items()
    if not settings.rules or name in settings.rules
  }


def _rounds(model: str, settings: Settings, mesh):
  n = settings.num_workers
  count = max(settings.rounds // (4 if model == 'cnn' else 1), 1)
  if model == 'quadratic':
    shape = n, settings.num_coordinates
    given = rounds.quadratic(jax.random.normal(jax.random.key(0), shape))
    count = max(settings.rounds // 10, 1)
  else:
    given = rounds.problem(model, (n, settings.batch_size), 'auto')
  pairs = {
    name: [
      rounds.round_program(given, rule, count),
      rounds.round_program(given, rule, count, mesh),
    ]
    for name, rule in rounds.rules(n // 5).items()
    if not settings.rules or name in settings.rules
  }
  title = f'rounds, {model}, {given.size} parameters, n={n}, {given.worker_map}'
  return pairs, title


def _compared(
  title: str,
  pairs: dict[str, list[timing.Program]],
  settings: Settings,
  seconds: float,
) -> records.Run:
  calls = {
    f'{name}{suffix}': each.call
    for name, pair in pairs.items()
    for suffix, each in zip(('', FLOOR), pair[::-1])
  }
  times = timing.interleaved(calls, settings.repeats, seconds)
  figures = [
    records.figure(
      name,
      times[name],
      times[f'{name}{FLOOR}'],
      {
        'differs': _difference(*(each.call() for each in pair)),
        'one_wall_minimum': min(times[f'{name}{FLOOR}'].wall),
      },
    )
    for name, pair in pairs.items()
  ]
  return records.Run(f'{title}, {settings.num_devices} devices', FLOOR, figures)


def _difference(one: Any, other: Any) -> float:
  """Of aggregates, or of the parameters after rounds."""
  if isinstance(one, tuple):
    one, other = one[0].params, other[0].params
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
  return max(
    float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(a).max())
    for a, b in pairs
  )


if __name__ == '__main__':
  program.run('devices', Settings, QUICK, measure)
