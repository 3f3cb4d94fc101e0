"""Tables of results as text; as a program, those of `benchmarks/README.md`.

  python -m benchmarks.tables

Each table of the page stands between `<!-- NAME -->` and `<!-- end -->` and is
made of `results/NAME.json`; `goals` of all of them.
"""

import pathlib
import re
from typing import Any, NamedTuple

from benchmarks import goals, records

README = pathlib.Path(__file__).parent / 'README.md'
_BLOCK = re.compile(r'(<!-- (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


class Column(NamedTuple):
  """Of a table: its head, what it shows of a figure, and how."""

  head: str
  key: str  # A field of `Figure`, or of its values.
  form: str = '.2f'
  scale: float = 1.0


_WALL = Column('x wall', 'ratio')
_CRITICAL = Column('x crit', 'critical_ratio')
_MS = Column('ms', 'wall_minimum', '.2f', 1e3)
_COMPILE = Column('compile s', 'compile_seconds', '.1f')
_RATE = Column('per s', 'rate', '.1f')
_ONE = _WALL._replace(form='.1f'), _CRITICAL._replace(form='.1f')
_TEMP = Column('temp', 'temporary_share', '.1%')
_PEER = (
  Column('failed', 'failed'),
  Column('peer ms', 'peer_wall_median', '.1f', 1e3),
  Column('ours ms', 'wall_median', '.1f', 1e3),
  Column('x peer', 'peer_ratio'),
  Column('best', 'peer_best'),
  Column('differs', 'differs', '.0e'),
)

COLUMNS: dict[str, tuple[Column, ...]] = {
  'rules': (*_ONE, _TEMP, _COMPILE, Column('NumPy', 'numpy_ratio', '.1f')),
  'rounds': (_WALL, _CRITICAL, _RATE, _COMPILE),
  'growth': (
    Column('n', 'n', 'd'),
    Column('d', 'd', 'd'),
    _MS,
    Column('crit ms', 'critical_path', '.2f', 1e3),
    Column('ns per entry', 'nanoseconds_per_entry', '.3f'),
    _TEMP,
    _COMPILE,
  ),
  'devices': (_WALL, _CRITICAL, _MS, Column('differs', 'differs', '.0e')),
  'local_rounds': (
    _WALL,
    _CRITICAL,
    _RATE,
    Column('programs', 'programs', 'd'),
  ),
  'asynchronous': (_WALL, _CRITICAL, _RATE._replace(form='.0f')),
  'gradients': (
    _WALL,
    _CRITICAL,
    _RATE,
    Column('x memory', 'memory_ratio'),
    Column('MiB', 'temporary_bytes', '.2f', 2**-20),
  ),
  'guard': (
    _WALL,
    _CRITICAL,
    _RATE,
    Column('loss with a flipped bit', 'loss_broken', '.3g'),
  ),
  'convex': (
    Column('iterations/s', 'rate', '.0f'),
    Column('ms', 'wall_median', '.1f', 1e3),
    Column('temp MB', 'temporary_bytes', '.1f', 1e-6),
    Column('iterations', 'iterations', 'd'),
    Column('objective', 'objective', '.5f'),
  ),
  'byzfl_rules': _PEER,
  'byzfl_rounds': (
    Column('ByzFL/s', 'peer_rate'),
    Column('byzjax/s', 'rate'),
    *(column for column in _PEER if not column.head.endswith('ms')),
  ),
  'byzpy_rules': _PEER,
  'resnet': (
    _WALL,
    _RATE._replace(form='.2f'),
    Column('rounds', 'rounds', 'd'),
    Column('accuracy', 'accuracy', '.3f'),
    _COMPILE,
  ),
}


def table(benchmark: str, run: records.Run) -> str:
  """The title, a line for every figure, and the notes."""
  columns = COLUMNS[benchmark]
  rows = [[_text(figure, c) for c in columns] for figure in run.figures]
  # A column that no figure has anything for is not shown.
  shown = [j for j in range(len(columns)) if any(row[j] != '-' for row in rows)]
  head = ['', *(columns[j].head for j in shown)]
  body = [
    [figure.name, *(row[j] for j in shown)]
    for figure, row in zip(run.figures, rows)
  ]
  notes = [f'{name}: {_note(value)}' for name, value in run.notes.items()]
  return '\n'.join([run.title, *aligned([head, *body]), *notes])


def aligned(rows: list[list[str]]) -> list[str]:
  """Lines of columns, the first to the left and all others to the right."""
  widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
  return [
    '  '.join(
      f'{cell:{"<" if j == 0 else ">"}{width}}'
      for j, (cell, width) in enumerate(zip(row, widths))
    ).rstrip()
    for row in rows
  ]


def source(record: records.Record) -> str:
  """A sentence about where a record comes from."""
  at = record.machine
  caches = ', '.join(f'{k} {v}' for k, v in at['caches'].items())
  named = ', '.join(f'{k} {v}' for k, v in record.versions.items() if v)
  before, after = (load[0] for load in (record.load_before, record.load_after))
  return (
    f'`{record.command}` at commit {record.commit}, {record.date}, in'
    f' {record.seconds:.0f} s: {at["cpu"]}, {at["cores"]} cores'
    f' ({caches}), {record.device}; {named}; load {before} before and {after}'
    ' after.' + (' Toy sizes.' if record.quick else '')
  )


def block(name: str, folder: pathlib.Path = records.RESULTS) -> str:
  """What stands between the markers of a name."""
  if name == 'goals':
    return _goals(folder)
  path = folder / f'{name}.json'
  if not path.exists():
    return f'Not measured yet: there is no `results/{name}.json`.\n'
  record = records.read(path)
  text = '\n\n'.join(table(name, run) for run in record.runs)
  return f'{source(record)}\n\n```\n{text}\n```\n'


def page(text: str, folder: pathlib.Path = records.RESULTS) -> str:
  """The page with all its blocks anew."""
  return _BLOCK.sub(lambda m: f'{m[1]}{block(m[2], folder)}{m[3]}', text)


def _goals(folder: pathlib.Path) -> str:
  rows = [
    '| | goal | measured | |',
    '|---|---|---|---|',
    *(
      f'| {row.what} | {row.goal} | {row.measured} | {row.verdict} |'
      for row in goals.rows(folder)
    ),
  ]
  return '\n'.join(rows) + '\n'


def _text(figure: records.Figure, column: Column) -> str:
  value = getattr(figure, column.key, figure.values.get(column.key))
  if value is None:
    return '-'
  if isinstance(value, str):
    return value
  return f'{value * column.scale if column.scale != 1 else value:{column.form}}'


def _note(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def main() -> None:
  README.write_text(page(README.read_text()))


if __name__ == '__main__':
  main()
