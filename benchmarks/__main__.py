r"""All benchmarks, each in a process of its own; then tables and pictures.

  python -m benchmarks --peer_python=.peer/bin/python
  python -m benchmarks --quick
  python -m benchmarks --only=rules,rounds --budget=120

Each writes `NAME.json` and a picture to --output_dir, which is
`benchmarks/results`, or `runs/benchmarks` with --quick. Then the tables of
`benchmarks/README.md` are made anew. One that fails or takes far more than its
share of the budget is said to have failed, and the others go on.
"""

import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from absl import app, flags

from benchmarks import records


class Benchmark(NamedTuple):
  """A module, and the seconds that it takes on two quiet cores."""

  name: str
  seconds: float
  repeating: float  # Of these, in calls that are timed: what a budget cuts.
  is_peer: bool = False


BENCHMARKS = (
  Benchmark('rules', 150, 90),
  Benchmark('rounds', 50, 25),
  Benchmark('growth', 110, 50),
  Benchmark('devices', 120, 60),
  Benchmark('local_rounds', 60, 35),
  Benchmark('asynchronous', 30, 15),
  Benchmark('gradients', 80, 45),
  Benchmark('guard', 180, 110),
  Benchmark('convex', 25, 12),
  Benchmark('byzfl_rules', 60, 30, is_peer=True),
  Benchmark('byzpy_rules', 60, 30, is_peer=True),
  Benchmark('byzfl_rounds', 180, 110, is_peer=True),
)
# Beyond its seconds a benchmark is ended, for it hangs or the machine is busy.
_PATIENCE = 3.0


def _define() -> None:
  names = [each.name for each in BENCHMARKS]
  flags.DEFINE_list('only', names, 'Which of them.')
  flags.DEFINE_bool('quick', False, 'Toy sizes, to see that they run.')
  flags.DEFINE_float(
    'budget',
    sum(each.seconds for each in BENCHMARKS),
    'Seconds for all on a quiet machine; with fewer, calls are repeated less.',
    0.0,
  )
  flags.DEFINE_string('output_dir', None, 'Folder of the results.')
  flags.DEFINE_string(
    'peer_python', sys.executable, 'Python of the environment of the peers.'
  )


def command(
  each: Benchmark, folder: pathlib.Path, share: float, quick: bool, peer: str
) -> list[str]:
  """What runs a benchmark in `share` of its seconds."""
  python = peer if each.is_peer else sys.executable
  line = [python, '-m', f'benchmarks.{each.name}', f'--output_dir={folder}']
  if quick:
    return [*line, '--quick']
  # What is compiled takes its time; the rest is cut.
  left = each.seconds * share - (each.seconds - each.repeating)
  if share < 1 and each.is_peer:
    line.append(f'--row_seconds={6 * share:.1f}')
  elif share < 1:
    line.append(f'--seconds={max(left, 1.0):.0f}')
  return line


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  given = flags.FLAGS
  default = records.ROOT / 'runs/benchmarks' if given.quick else records.RESULTS
  folder = pathlib.Path(given.output_dir or default).absolute()
  unknown = set(given.only) - {each.name for each in BENCHMARKS}
  if unknown:
    raise app.UsageError(f'--only: unknown {", ".join(sorted(unknown))}')
  chosen = [each for each in BENCHMARKS if each.name in given.only]
  share = min(given.budget / sum(each.seconds for each in chosen), 1.0)
  failed = []
  for each in chosen:
    line = command(each, folder, share, given.quick, given.peer_python)
    start, code = time.monotonic(), ''
    try:
      done = subprocess.run(
        line, cwd=records.ROOT, timeout=_PATIENCE * each.seconds, check=False
      )
      code = f'status {done.returncode}' if done.returncode else ''
    except subprocess.TimeoutExpired:
      code = 'out of time'
    print(f'{each.name}: {time.monotonic() - start:.0f} s\n', flush=True)
    if code:
      failed.append(f'{each.name} ({code})')
  from benchmarks import pictures, tables  # Only now: they need matplotlib.

  pictures.main(folder)
  if folder == records.RESULTS:
    tables.main()
  if failed:
    sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
  _define()
  app.run(main)
