"""What a benchmark found, as one JSON file that says where and of what."""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import timing

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = pathlib.Path(__file__).parent / 'results'
_PACKAGES = ('jax', 'jaxlib', 'numpy', 'flax', 'optax')


class Figure(NamedTuple):
  """One program: its times in seconds, and what else was read of it.

  `ratio` is the median over repeats of wall clock over the floor's in the same
  repeat; `critical_ratio` the least critical path over that of the floor.
  """

  name: str
  wall_median: float | None = None
  wall_minimum: float | None = None
  critical_path: float | None = None  # The least of all repeats.
  ratio: float | None = None
  critical_ratio: float | None = None
  repeats: int = 0
  values: dict[str, Any] = {}


class Run(NamedTuple):
  """Programs that were measured against each other: one table."""

  title: str
  floor: str  # The figure that ratios are of.
  figures: list[Figure]
  settings: dict[str, Any] = {}
  notes: dict[str, Any] = {}  # What is of all programs together.


class Record(NamedTuple):
  """All tables of a benchmark, and what they were measured on."""

  benchmark: str
  command: str
  commit: str
  quick: bool
  date: str
  device: str
  machine: dict[str, Any]
  versions: dict[str, str | None]
  load_before: list[float]
  load_after: list[float]
  seconds: float
  runs: list[Run]


def figures(
  times: Mapping[str, timing.Times],
  floor: str,
  values: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Figure]:
  """A figure of each function, against the one named `floor`."""
  values = values or {}
  return [
    figure(name, each, times[floor], values.get(name, {}))
    for name, each in times.items()
  ]


def figure(
  name: str,
  times: timing.Times,
  floor: timing.Times,
  values: Mapping[str, Any],
) -> Figure:
  # On an accelerator threads of this machine only start what others do.
  on_cpu = jax.default_backend() == 'cpu'
  critical = min(times.critical) if times.critical and on_cpu else None
  least = min(floor.critical) if floor.critical and on_cpu else None
  return Figure(
    name,
    statistics.median(times.wall),
    min(times.wall),
    critical,
    timing.ratio(times, floor),
    critical / least if critical is not None and least else None,
    len(times.wall),
    dict(values),
  )


def write(record: Record, folder: pathlib.Path) -> pathlib.Path:
  """Replaces `folder/BENCHMARK.json`."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{record.benchmark}.json'
  runs = [
    {**run._asdict(), 'figures': [_rounded(f) for f in run.figures]}
    for run in record.runs
  ]
  temporary = path.with_suffix('.tmp')
  text = json.dumps({**record._asdict(), 'runs': runs}, indent=1)
  temporary.write_text(text + '\n')
  temporary.replace(path)
  return path


def read(path: pathlib.Path) -> Record:
  """What `write` wrote."""
  record = Record(**json.loads(path.read_text()))
  runs: Sequence[Any] = record.runs
  return record._replace(
    runs=[
      Run(**run)._replace(figures=[Figure(**f) for f in run['figures']])
      for run in runs
    ]
  )


def machine() -> dict[str, Any]:
  """The processor, its cores and its caches, as far as Linux tells."""
  return {
    'cpu': _cpu_model(),
    'architecture': platform.machine(),
    'cores': os.cpu_count(),
    'caches': _caches(),
    'system': platform.system(),
  }


def versions(peers: Sequence[str] = ()) -> dict[str, str | None]:
  """Of Python and of packages; None of those that are not installed."""
  known: dict[str, str | None] = {'python': platform.python_version()}
  for package in (*_PACKAGES, *peers):
    try:
      known[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      known[package] = None
  return known


def load() -> list[float]:
  """Programs that wanted to run, over the last 1, 5 and 15 minutes."""
  return [round(x, 2) for x in os.getloadavg()]


def date() -> str:
  return time.strftime('%Y-%m-%d', time.gmtime())


def _rounded(figure: Figure) -> dict[str, Any]:
  """Four digits of every number: more are noise."""
  fields = {k: _four_digits(v) for k, v in figure._asdict().items()}
  values = {k: _four_digits(v) for k, v in figure.values.items()}
  return {**fields, 'values': values}


def _four_digits(value: Any) -> Any:
  return float(f'{value:.4g}') if isinstance(value, float) else value


def _cpu_model() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor() or 'unknown'
  names = [line.split(':', 1)[1] for line in lines if 'model name' in line]
  return names[0].strip() if names else platform.processor() or 'unknown'


def _caches() -> dict[str, str]:
  """Size of each cache of the first core, as in `{'L2': '1024K'}`."""
  caches = {}
  folder = pathlib.Path('/sys/devices/system/cpu/cpu0/cache')
  for index in sorted(folder.glob('index*')):
    level, kind, size = (
      (index / name).read_text().strip() for name in ('level', 'type', 'size')
    )
    letter = {'Data': 'd', 'Instruction': 'i'}.get(kind, '')
    caches[f'L{level}{letter}'] = size
  return caches
