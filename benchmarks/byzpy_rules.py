r"""Rules of byzjax and of ByzPy on the same messages, in one process.

  python -m benchmarks.byzpy_rules      # with the peers installed

As `benchmarks.byzfl_rules`, with the sizes of ByzPy's own comparison for the
two searches, MDA and SMEA. Its median of an even number of messages is the
lower one of the middle two, and its geometric median and its clipping go on
until they converge, or ten steps from the mean: these differ from ours.
"""

import dataclasses
import importlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import byzjax
from benchmarks import peers, program, records, rules

_GEOMETRIC = 'byzpy.aggregators.geometric_wise'
_COORDINATE = 'byzpy.aggregators.coordinate_wise'
_NORM = 'byzpy.aggregators.norm_wise'


class Case(NamedTuple):
  """ByzPy's class and arguments, ours, and other sizes than the settings'."""

  place: str
  name: str
  arguments: dict[str, Any]
  ours: byzjax.Aggregator
  size: tuple[int, int] | None = None  # (n, d)


@dataclasses.dataclass(frozen=True)
class Settings:
  num_workers: int = program.option(20, 'n; f is n // 5.')
  num_coordinates: int = program.option(1_000_000, 'd.')
  search_coordinates: int = program.option(65_536, 'd of MDA and SMEA.')
  only: tuple[str, ...] = program.option((), 'Only these rows.')
  timeout: float = program.option(60.0, 'Seconds of a row, at most.')
  row_seconds: float = program.option(6.0, 'Of repeating a row, at most.')
  repeats: int = program.option(7, 'Repeats of each measurement.')


QUICK = Settings(6, 500, 500, ('CoordinateWiseTrimmedMean', 'Krum'), repeats=1)


def cases(settings: Settings) -> dict[str, Case]:
  n, f = settings.num_workers, settings.num_workers // 5
  d = settings.search_coordinates
  near = dict(num_byzantine=f, num_neighbors=n - f - 1)
  listed = [
    Case(
      f'{_COORDINATE}.median',
      'CoordinateWiseMedian',
      {},
      byzjax.coordinate_median(),
    ),
    Case(
      f'{_COORDINATE}.trimmed_mean',
      'CoordinateWiseTrimmedMean',
      {'f': f},
      byzjax.trimmed_mean(num_byzantine=f),
    ),
    Case(f'{_GEOMETRIC}.krum', 'Krum', {'f': f}, byzjax.krum(**near)),
    Case(
      f'{_GEOMETRIC}.krum',
      'MultiKrum',
      {'f': f, 'q': n - f},
      byzjax.multi_krum(num_selected=n - f, **near),
    ),
    Case(
      f'{_GEOMETRIC}.geometric_median',
      'GeometricMedian',
      {},
      byzjax.geometric_median(),
    ),
    Case(
      f'{_NORM}.center_clipping',
      'CenteredClipping',
      {'c_tau': 100.0},
      byzjax.centered_clipping(radius=100.0, num_iterations=10),
    ),
    Case(
      f'{_NORM}.comparative_gradient_elimination',
      'ComparativeGradientElimination',
      {'f': f},
      byzjax.comparative_gradient_elimination(num_byzantine=f),
    ),
    Case(
      f'{_GEOMETRIC}.monna',
      'MoNNA',
      {'f': f},
      byzjax.monna(num_byzantine=f, reference_worker=0),
    ),
    Case(
      f'{_GEOMETRIC}.minimum_diameter_average',
      'MinimumDiameterAveraging',
      {'f': 10},
      byzjax.minimum_diameter_averaging(num_byzantine=10),
      (30, d),
    ),
    Case(
      f'{_GEOMETRIC}.smea',
      'SMEA',
      {'f': 5},
      byzjax.smallest_max_eigenvalue_averaging(num_byzantine=5),
      (16, d),
    ),
  ]
  return {case.name: case for case in listed}


def row_of(settings: Settings, name: str) -> records.Figure:
  (torch,) = peers.required('torch')
  torch.set_num_threads(os.cpu_count() or 1)
  case = cases(settings)[name]
  n, d = case.size or (settings.num_workers, settings.num_coordinates)
  theirs = getattr(importlib.import_module(case.place), name)(**case.arguments)
  x = jax.random.normal(jax.random.key(0), (n, d))
  messages = list(torch.tensor(np.asarray(x)))
  ours = rules.program_of(case.ours, x).call
  apart = peers.difference(np.asarray(theirs.aggregate(messages)), ours()[0])
  return peers.row(
    f'{name}, n={n} d={d} f={case.arguments.get("f", "-")}',
    lambda: theirs.aggregate(messages),
    ours,
    settings,
    differs=apart,
  )


def measure(settings: Settings) -> Iterator[records.Run]:
  peers.check('byzpy', 'torch')
  names = settings.only or tuple(cases(settings))
  figures = peers.rows_in_children('benchmarks.byzpy_rules', names, settings)
  yield records.Run('rules of ByzPy', peers.FLOOR, list(figures))


if __name__ == '__main__':
  program.run('byzpy_rules', Settings, QUICK, measure, ('byzpy', 'torch'))
