"""Rows of a table beside another library, each with a limit of its own.

A library may hang: ByzFL's threads do on a machine that is busy with other
things. So rows are measured in a child, one after the other; a row that is
not done in time is said to have hung, the child is ended, and another one goes
on with the rest. In a row, calls of both libraries alternate in one process.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import records, timing

FLOOR = 'the peer'
REQUIREMENTS = 'benchmarks/requirements-peers.txt'
_MARK = '@figure '
_IMPORTING = 60.0  # Seconds more for the first row of a child.


def required(*modules: str) -> list[Any]:
  """The modules of a peer, which are imported in children only."""
  return [importlib.import_module(name) for name in modules]


def check(*modules: str) -> None:
  """Ends the program in a line unless all of them are installed."""
  missing = [name for name in modules if not importlib.util.find_spec(name)]
  if missing:
    sys.exit(f'no {" and ".join(missing)}: {REQUIREMENTS} says how to install')


def row(
  name: str,
  theirs: Callable[[], Any],
  ours: Callable[[], Any],
  settings: Any,
  **values: Any,
) -> records.Figure:
  """Times of ours, beside those of theirs.

  `ratio` is theirs / ours: the median over repeats; `peer_best` that of the
  fastest repeats. Far apart, they say that the machine was not quiet.
  """
  times = timing.interleaved(
    {'theirs': theirs, 'ours': ours}, settings.repeats, settings.row_seconds
  )
  figure = records.figure(name, times['ours'], times['ours'], values)
  peer = times['theirs']
  return figure._replace(
    ratio=None,
    critical_ratio=None,
    values={
      **values,
      'wall_median': figure.wall_median,
      'peer_wall_median': float(np.median(peer.wall)),
      'peer_wall_minimum': min(peer.wall),
      'peer_critical_path': min(peer.critical) if peer.critical else None,
      'peer_ratio': timing.ratio(peer, times['ours']),
      'peer_best': min(peer.wall) / min(times['ours'].wall),
    },
  )


def difference(theirs: Any, ours: Any) -> float:
  """The largest, as a share of the largest number of theirs."""
  theirs, ours = np.asarray(theirs), np.asarray(ours)
  return float(np.abs(theirs - ours).max() / np.abs(theirs).max())


def rows_in_children(
  module: str,
  names: Sequence[str],
  settings: Any,
  environment: dict[str, str] | None = None,
) -> Iterator[records.Figure]:
  """`module.row_of(settings, name)` of each name, in children.

  `settings.timeout` is the time that a row may take, with all it compiles.
  """
  left = list(names)
  while left:
    child = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'benchmarks.peers',
        module,
        json.dumps(dataclasses.asdict(settings)),
        *left,
      ],
      cwd=records.ROOT,
      env={**os.environ, **(environment or {})},
      stdout=subprocess.PIPE,
      text=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child, lines), daemon=True)
    reader.start()
    seconds = settings.timeout + _IMPORTING
    try:
      while left:
        name = left.pop(0)
        line = _next(lines, seconds)
        seconds = settings.timeout
        if line is None:
          code = child.poll()
          reason = 'hung' if code is None else f'ended with status {code}'
          yield records.Figure(name, values={'failed': reason})
          break
        yield records.Figure(**json.loads(line))
    finally:
      child.kill()
      reader.join()


def _read(child: subprocess.Popen, lines: queue.Queue) -> None:
  with child:  # Which closes the pipe, and waits for the child.
    for line in child.stdout or ():
      if line.startswith(_MARK):
        lines.put(line.removeprefix(_MARK))
  lines.put(None)


def _next(lines: queue.Queue, seconds: float) -> str | None:
  try:
    return lines.get(timeout=seconds)
  except queue.Empty:
    return None


def main(argv: Sequence[str]) -> None:
  """Measures rows of a module: `MODULE SETTINGS NAME...`."""
  name, settings, *names = argv
  module = importlib.import_module(name)
  given = module.Settings(**json.loads(settings))
  for each in names:
    figure = module.row_of(given, each)
    print(f'{_MARK}{json.dumps(figure._asdict())}', flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
