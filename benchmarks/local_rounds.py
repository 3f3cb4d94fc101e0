r"""Rounds per second of the local round against loops over workers.

  python -m benchmarks.local_rounds
  python -m benchmarks.local_rounds --setups=cnn:map:1:2

The same local SGD, batches of random images, four ways: a Python loop
over workers and steps that calls a compiled step, as FedAvg is usually written;
a Python loop over workers that calls their compiled local steps; these steps
alone for all workers in one program, without any server; and `local_round` with
a rule, a whole round in one program. The lengths of its rounds change from call
to call: `programs` counts how often it was compiled. A setup is a model, a
worker_map, devices that `local_round` is divided over, and local steps H.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import optax
from jax.sharding import AxisType

import byzjax
from benchmarks import program, records, rounds, timing

LEARNING_RATE = 0.05
FLOOR = 'local steps alone'


@dataclasses.dataclass(frozen=True)
class Settings:
  setups: tuple[str, ...] = program.option(
    ('mlp:vmap:1:8', 'mlp:map:2:8', 'digits:vmap:1:8', 'cnn:map:1:2'),
    'Each is MODEL:WORKER_MAP:DEVICES:STEPS.',
  )
  num_workers: int = program.option(16, 'n; f is n // 5.')
  batch_size: int = program.option(32, 'Examples per step.')
  repeats: int = program.option(9, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings(('digits:vmap:1:2',), 5, 2, repeats=1)


class Setup(NamedTuple):
  model: str
  worker_map: str
  num_devices: int
  num_local_steps: int


def measure(settings: Settings) -> Iterator[records.Run]:
  setups = []
  for text in settings.setups:
    model, worker_map, devices, steps = text.split(':')
    setups.append(Setup(model, worker_map, int(devices), int(steps)))
  most = max(setup.num_devices for setup in setups)
  program.split_cpu(most)
  for setup in setups:
    yield _of_setup(setup, settings, settings.seconds / len(setups))


def _of_setup(setup: Setup, settings: Settings, seconds: float) -> records.Run:
  n, h = settings.num_workers, setup.num_local_steps
  shape = (n, h, settings.batch_size)
  given = rounds.problem(setup.model, shape, setup.worker_map)
  calls = _loops(given)
  counts: dict[str, int] = {}
  for name, rule in _rules(n // 5).items():
    calls[f'local_round, {name}'] = _local_round(given, setup, rule, counts)
    counts[f'local_round, {name}'] = counts.pop('new')
  times = timing.interleaved(calls, settings.repeats, seconds)
  values = {
    name: {'rate': 1 / min(each.wall), 'programs': counts.get(name)}
    for name, each in times.items()
  }
  title = (
    f'{setup.model}, {given.size} parameters, n={n}, H={h}, batch'
    f' {settings.batch_size}, {setup.worker_map}, {setup.num_devices} devices'
  )
  return records.Run(title, FLOOR, records.figures(times, FLOOR, values))


def _rules(f: int) -> dict[str, byzjax.Aggregator]:
  return {
    'mean': byzjax.mean(),
    'trimmed_mean': byzjax.trimmed_mean(num_byzantine=f),
    'krum': byzjax.krum(num_byzantine=f),
  }


def _loops(given: rounds.Problem) -> dict[str, Callable]:
  """Local SGD without a server that is robust."""

  def sgd_step(params, batch):
    gradient = jax.grad(given.loss_fn)(params, batch)
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)

  def steps(params, batch):
    def body(params, one):
      return sgd_step(params, one), None

    return jax.lax.scan(body, params, batch)[0]

  def of_all(params, batch):
    return rounds.over_workers(
      lambda one: steps(params, one), given.worker_map, batch
    )

  step_of_one, steps_of_one = jax.jit(sgd_step), jax.jit(steps)
  alone, params = jax.jit(of_all), given.params
  images, labels = given.batch
  shards = list(zip(images, labels))
  slices = [list(zip(*shard)) for shard in shards]
  average = jax.jit(
    lambda rows: jax.tree.map(lambda *x: sum(x[1:], x[0]) / len(shards), *rows)
  )

  def loop_over_steps():
    ends = []
    for shard in slices:
      w = params
      for one in shard:
        w = step_of_one(w, one)
      ends.append(w)
    return average(ends)

  def loop_over_workers():
    return average([steps_of_one(params, shard) for shard in shards])

  return {
    'loop over workers and steps': loop_over_steps,
    'loop over workers': loop_over_workers,
    FLOOR: lambda: alone(params, given.batch),
  }


def _local_round(
  given: rounds.Problem,
  setup: Setup,
  rule: byzjax.Aggregator,
  counts: dict[str, int],
) -> Callable:
  """A round of H steps; `counts['new']` says how often it was compiled."""
  n, h, mesh = len(given.batch[1]), setup.num_local_steps, None
  if setup.num_devices > 1:
    devices = jax.devices()[: setup.num_devices]
    mesh = jax.make_mesh(
      (len(devices),), ('workers',), (AxisType.Auto,), devices=devices
    )
  training = byzjax.local_round(
    given.loss_fn,
    local_optimizer=optax.sgd(LEARNING_RATE),
    num_local_steps=lambda step: h - step % 2,
    local_state='reset',
    aggregator=rule,
    optimizer=optax.sgd(1.0),
    num_workers=n,
    attack=byzjax.alie(),
    byzantine=n // 5,
    worker_map=given.worker_map,
    mesh=mesh,
  )

  def counted(*arguments):
    # Runs when it is traced, and never again.
    counts['new'] = counts.get('new', 0) + 1
    return training.step(*arguments)

  step, key = jax.jit(counted), jax.random.key(0)
  state = training.init(given.params)
  odd, _ = step(state, given.batch, key)
  step(odd, given.batch, key)  # H - 1 steps
  return functools.partial(step, state, given.batch, key)


if __name__ == '__main__':
  program.run('local_rounds', Settings, QUICK, measure)
