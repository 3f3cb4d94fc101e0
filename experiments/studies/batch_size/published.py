"""What the paper reports, and ours beside it.

`published.csv` has final test accuracy (%) on CIFAR-10 with ResNet-20 and 8
workers, at the best of eight learning rates, by batch size. In the rows
`uneven` workers have Dirichlet(1.0) shards, and nearest-neighbour mixing is in
front of the rule.
"""

import csv
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...reporting import tables

Case = tuple[str, int, str]  # Attack, number of attackers, rule.
METHODS = ('m', 'nm')
SMALLEST = 32  # The paper's smallest batch with i.i.d. data.


@functools.cache
def rows(data: str) -> Mapping[tuple, Mapping[int, float]]:
  """Accuracy by batch size; by attack, number of attackers, rule, method."""
  with (pathlib.Path(__file__).parent / 'published.csv').open() as file:
    found = [row for row in csv.DictReader(file) if row['data'] == data]
  return {
    (row['attack'], int(row['num_byzantine']), row['rule'], row['method']): {
      int(name): float(value)
      for name, value in row.items()
      if name.isdigit() and value
    }
    for row in found
  }


def best(of_size: Mapping[int, float]) -> int:
  """The batch size with the highest accuracy."""
  return max(of_size, key=of_size.__getitem__)


def of(data: str, case: Case, method: str) -> Mapping[int, float]:
  """The paper's row of a case; empty if it has none."""
  attack, f, rule = case
  return rows(data).get((attack if f else 'none', f, rule, method), {})


def best_sizes(
  accuracy: tables.Cells,
  cases: Sequence[Case],
  sizes: Sequence[int],
  data: str,
) -> tables.Cells:
  """The best batch by number of attackers, ours and the paper's."""
  cells = tables.Cells()
  for by_paper in (False, True):
    for method in METHODS:
      for attack, f, rule in cases:
        row = of(data, (attack, f, rule), method)
        if not by_paper:
          row = {b: accuracy[attack, f, rule, method, b].mean() for b in sizes}
        place = f'{rule}, {method}', f'{"paper, " * by_paper}f = {f}'
        if row:
          cells[place] = np.array([best(row)])
  return cells


def gains(
  accuracy: tables.Cells,
  cases: Sequence[Case],
  sizes: Callable[[str], Sequence[int]],
  data: str,
) -> tables.Cells:
  """Points of nm over m in batches of 32 and where each is best, per seed.

  `sizes` has the batch sizes that an attack was run with.
  """
  cells = tables.Cells()
  for case in cases:
    line = f'{case[0] if case[1] else "none"}, {case[1]}, {case[2]}'
    ours = [{b: accuracy[*case, x, b] for b in sizes(case[0])} for x in METHODS]
    paper = [of(data, case, method) for method in METHODS]
    for who, (m, nm) in (('', ours), ('paper, ', paper)):
      if not (m and nm):
        continue
      means = [{b: float(np.mean(v)) for b, v in x.items()} for x in (m, nm)]
      ends = [x[best(of_size)] for x, of_size in zip((m, nm), means)]
      at = SMALLEST
      cells[line, f'{who}B = {at}'] = np.asarray(nm[at] - m[at])
      cells[line, f'{who}best B'] = np.asarray(ends[1] - ends[0])
  return cells
