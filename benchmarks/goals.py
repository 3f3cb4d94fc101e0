"""Speeds that the project set itself, and whether the records reach them.

Ratios to a floor are those of the critical path, which other programs on the
machine hardly move; that of the wall clock stands beside it.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import records

TEMPORARIES = 0.05  # Of the messages, where they were once copied.
_SEARCH = 'Optimal'


class Row(NamedTuple):
  """A line of the table."""

  what: str
  goal: str
  measured: str
  verdict: str


class Results:
  """Records of a folder, read once, without those of toy sizes."""

  def __init__(self, folder: pathlib.Path):
    found = {path.stem: records.read(path) for path in folder.glob('*.json')}
    self._records = {k: v for k, v in found.items() if not v.quick}

  def runs(self, benchmark: str, title: str = '') -> list[records.Run]:
    """Those whose title begins so."""
    record = self._records.get(benchmark)
    runs = record.runs if record else []
    return [run for run in runs if run.title.startswith(title)]

  def figures(
    self, benchmark: str, title: str, name: str
  ) -> list[records.Figure]:
    return [
      figure
      for run in self.runs(benchmark, title)
      for figure in run.figures
      if figure.name.startswith(name)
    ]


def rows(folder: pathlib.Path = records.RESULTS) -> list[Row]:
  """All goals; without a record of it a goal is not measured."""
  results = Results(folder)
  return [
    *_of_rules(results),
    *_of_rounds(results),
    *_of_peers(results),
    *_of_devices(results),
  ]


def _of_rules(results: Results) -> Iterator[Row]:
  n20, n50, n128 = 'n=20 d=1000000', 'n=50 d=1000000', 'n=128 d=1000000'
  for title, name, goal in (
    (n20, 'coordinate_median', 1.0),
    (n50, 'coordinate_median', 1.4),
    (n20, 'trimmed_mean', 1.0),
    (n50, 'trimmed_mean', 1.4),
    (n20, 'mean', 1.3),
    (n20, 'centered_clipping, 1 step', 3.5),
    (n20, 'krum', 6.0),
    (n50, 'krum', 12.0),
    (n20, 'multi_krum', 6.0),
    (n50, 'multi_krum', 12.0),
    (n20, 'geometric_median', 6.0),
    (n50, 'geometric_median', 12.0),
    (n20, 'mixing + coordinate_median', 11.0),
    (n50, 'mixing + coordinate_median', 11.0),
    (n128, 'mean_around_median', 18.0),
  ):
    # `mean` is also how another name begins.
    exact = [f for f in results.figures('rules', title, name)
             if f.name.split(',')[0] == name.split(',')[0]]  # fmt: skip
    yield _floor(f'{name}, {title.split()[0]}, over F', exact, goal)
  for title in (n20, n50):
    name = 'mixing + coordinate_median'
    found = results.figures('rules', title, name)
    share = found[0].values['temporary_share'] if found else None
    what = f'{name}, {title.split()[0]}, temporaries as a share of X'
    yield _at_most(what, share, TEMPORARIES, '.1%')
  for n in (129, 256):
    yield _cliff(results, n)


def _cliff(results: Results, n: int) -> Row:
  per_entry = {
    figure.values['n']: figure.values['nanoseconds_per_entry']
    for figure in results.figures('growth', 'growth with n', 'trimmed_mean')
  }
  ratio = None
  if n in per_entry and 128 in per_entry:
    ratio = per_entry[n] / per_entry[128]
  what = f'trimmed_mean, cost of an entry at n={n} over that at n=128'
  return _at_most(what, ratio, 1.6)


def _of_rounds(results: Results) -> Iterator[Row]:
  for name, goal in (('mean', 1.15), ('trimmed_mean', 1.15), ('krum', 1.4)):
    found = results.figures('rounds', 'mlp', name)
    yield _floor(f'round, MLP, {name}, over its gradients', found, goal)
  bare, ours = (
    results.figures('asynchronous', 'mlp', name)
    for name in ('bare copies', 'asynchronous_round, SGD')
  )
  ratio = None
  if bare and ours and bare[0].wall_minimum and ours[0].wall_minimum:
    ratio = ours[0].wall_minimum / bare[0].wall_minimum
  what = 'asynchronous round, MLP, over a bare loop with copies'
  yield _at_most(what, ratio, 1.05)


def _of_peers(results: Results) -> Iterator[Row]:
  faster = faster_setting(results)
  cheap = {k: v for k, v in faster.items() if _SEARCH not in k}
  slowest = min(cheap, key=lambda name: cheap[name], default=None)
  said = 'none' if slowest is None else slowest
  yield _at_least(
    f'rounds over ByzFL, {_threads(results)}; the least of {len(cheap)} rows:'
    f' {said}',
    None if slowest is None else cheap[slowest],
    1.4,
  )
  for start, goal in (('GeometricMedian', 25.0), ('NNM TrMean', 20.0)):
    ratios = [
      v for k, v in faster.items() if _SEARCH in k and k.startswith(start)
    ]
    what = f'the same under an optimised attack, {start}'
    yield _at_least(what, ratios[0] if ratios else None, goal)
  for name, said, goal in (
    ('MinimumDiameterAveraging', 'MDA n=30 f=10', 126.0),
    ('SMEA', 'SMEA n=16 f=5', 12.0),
  ):
    found = results.figures('byzpy_rules', '', name)
    value = found[0].values.get('peer_ratio') if found else None
    yield _at_least(f'{said} over ByzPy', value, goal)


def _threads(results: Results) -> str:
  """Of which setting of ByzFL's threads the ratios are."""
  settings = [
    run.title.rsplit(' ', 1)[-1] for run in results.runs('byzfl_rounds')
  ]
  return (
    f'threads {settings[0]} only'
    if len(settings) == 1
    else 'its faster threads'
  )


def faster_setting(results: Results) -> dict[str, float]:
  """Of each row, ByzFL's time over ours under the threads it is faster with."""
  best: dict[str, tuple[float, float]] = {}
  for figure in results.figures('byzfl_rounds', '', ''):
    if 'failed' in figure.values:
      continue
    pair = figure.values['peer_wall_median'], figure.values['peer_ratio']
    best[figure.name] = min(best.get(figure.name, pair), pair)
  return {name: ratio for name, (_, ratio) in best.items()}


def _of_devices(results: Results) -> Iterator[Row]:
  for name in ('krum', 'geometric_median'):
    found = results.figures('devices', 'rules, n=20', name)
    speed = None
    if found and (ratio := found[0].critical_ratio or found[0].ratio):
      speed = 1 / ratio
    what = f'{name}, n=20, two CPU devices over one'
    yield _at_least(what, speed, 1.7)


def _floor(what: str, found: list[records.Figure], goal: float) -> Row:
  if not found:
    return _at_most(what, None, goal)
  figure = found[0]
  row = _at_most(what, figure.critical_ratio or figure.ratio, goal)
  if figure.critical_ratio is None:
    return row
  return row._replace(measured=f'{row.measured} (wall {figure.ratio:.2f})')


def _at_most(
  what: str, value: float | None, goal: float, form: str = '.2f'
) -> Row:
  return _row(what, '<=', value, goal, form, lambda v: v / goal - 1)


def _at_least(what: str, value: float | None, goal: float) -> Row:
  return _row(what, '>=', value, goal, '.2f', lambda v: 1 - v / goal)


def _row(
  what: str,
  sign: str,
  value: float | None,
  goal: float,
  form: str,
  shortfall: Callable[[float], float],
) -> Row:
  said = f'{sign} {goal:{form}}'
  if value is None:
    return Row(what, said, '-', 'not measured')
  missing = shortfall(value)
  verdict = 'met' if missing <= 0 else f'missed by {missing:.0%}'
  return Row(what, said, f'{value:{form}}', verdict)
