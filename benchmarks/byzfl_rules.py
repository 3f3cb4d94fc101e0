r"""Rules of byzjax and of ByzFL on the same messages, in one process.

  python -m benchmarks.byzfl_rules      # with the peers installed
  python -m benchmarks.byzfl_rules --only=Krum,TrMean

Each rule is made with the arguments of the other's convention, so that both
compute the same; `differs` is the largest difference of the aggregates. Of
torch, as many threads as there are cores. `x peer` is ByzFL's time over ours.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np

import byzjax
from benchmarks import peers, program, records, rules


@dataclasses.dataclass(frozen=True)
class Settings:
  num_workers: int = program.option(20, 'n; f is n // 5.')
  num_coordinates: int = program.option(1_000_000, 'd.')
  only: tuple[str, ...] = program.option((), 'Only these rows.')
  timeout: float = program.option(60.0, 'Seconds of a row, at most.')
  row_seconds: float = program.option(6.0, 'Of repeating a row, at most.')
  repeats: int = program.option(7, 'Repeats of each measurement.')


QUICK = Settings(6, 500, ('Average', 'Krum'), repeats=1)


def pairs(n: int, f: int) -> dict[str, tuple[Callable, byzjax.Aggregator]]:
  """Makes ByzFL's rule from its module, and ours with its convention."""
  near = dict(num_byzantine=f, num_neighbors=n - f - 1)
  trimmed = byzjax.trimmed_mean(num_byzantine=f)
  mixing = byzjax.nearest_neighbor_mixing(num_byzantine=f)

  def mixed(byzfl):
    mix, trim = byzfl.NNM(f=f), byzfl.TrMean(f=f)
    return lambda x: trim(mix(x))

  return {
    'Average': (lambda b: b.Average(), byzjax.mean()),
    'Median': (lambda b: b.Median(), byzjax.coordinate_median()),
    'TrMean': (lambda b: b.TrMean(f=f), trimmed),
    'Meamed': (
      lambda b: b.Meamed(f=f),
      byzjax.mean_around_median(num_byzantine=f),
    ),
    'Krum': (lambda b: b.Krum(f=f), byzjax.krum(**near)),
    'MultiKrum': (
      lambda b: b.MultiKrum(f=f),
      byzjax.multi_krum(num_selected=n - f, **near),
    ),
    'GeometricMedian': (
      lambda b: b.GeometricMedian(nu=0.1, T=3),
      byzjax.geometric_median(num_iterations=3, smoothing=0.1, start='zeros'),
    ),
    'CenteredClipping': (
      # Anew for each call: it keeps what it returned.
      lambda b: lambda x: b.CenteredClipping(L=1, tau=100.0)(x),
      byzjax.centered_clipping(radius=100.0),
    ),
    'MoNNA': (
      lambda b: b.MoNNA(f=f, idx=0),
      byzjax.monna(num_byzantine=f, reference_worker=0),
    ),
    'MDA': (
      lambda b: b.MDA(f=f),
      byzjax.minimum_diameter_averaging(num_byzantine=f),
    ),
    'NNM TrMean': (mixed, byzjax.pre_aggregate(mixing, trimmed)),
  }


def row_of(settings: Settings, name: str) -> records.Figure:
  torch, byzfl = peers.required('torch', 'byzfl')
  torch.set_num_threads(os.cpu_count() or 1)
  n, d = settings.num_workers, settings.num_coordinates
  make, rule = pairs(n, n // 5)[name]
  x = jax.random.normal(jax.random.key(0), (n, d))
  messages, theirs = torch.tensor(np.asarray(x)), make(byzfl)
  ours = rules.program_of(rule, x).call
  apart = peers.difference(theirs(messages).numpy(), ours()[0])
  return peers.row(
    name, lambda: theirs(messages), ours, settings, differs=apart
  )


def measure(settings: Settings) -> Iterator[records.Run]:
  peers.check('byzfl', 'torch')
  n, d = settings.num_workers, settings.num_coordinates
  names = settings.only or tuple(pairs(n, n // 5))
  figures = peers.rows_in_children('benchmarks.byzfl_rules', names, settings)
  title = f'rules of ByzFL, n={n} d={d} f={n // 5}'
  yield records.Run(title, peers.FLOOR, list(figures))


if __name__ == '__main__':
  program.run('byzfl_rules', Settings, QUICK, measure, ('byzfl', 'torch'))
