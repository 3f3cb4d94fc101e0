"""What `--resume` takes from the folder of a run: flags, rows and states."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from . import output

FLAGS = flags.FLAGS


def adopt(folder: pathlib.Path, program: str, names: Iterable[str]) -> None:
  """Sets the flags that the command line does not, as the run has them.

  Raises:
    ValueError: if there is no run of the program in the folder.
  """
  output.check_root(folder, resume=True)
  config = output.read_config(folder)
  output.check_program(folder, config, program)
  for name in sorted(({*names} & {*config}) - {'program'}):
    flag, value = FLAGS[name], config[name]
    if flag.present or not flag.using_default_value:
      continue
    try:
      flag.value = None if value is None else flag.parser.parse(value)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f'--resume: {folder / "config.json"} is damaged: {name} is {value!r}'
      ) from error


def restore(
  folder: pathlib.Path,
  like: Any,
  stops: Sequence[int],
  num_runs: int,
  file: str,
) -> tuple[int, Any, list[dict]] | None:
  """The newest checkpoint as `(round, states, rows up to it)`, if there is one.

  `stops` are the rounds that the run is evaluated in. What is of another round,
  the last of a run that was shorter, does not count, and neither does one whose
  rows were lost.

  Raises:
    ValueError: if a checkpoint is there and its rows are not, or if one of them
      is damaged.
  """
  rows = output.rows_up_to(folder / file, stops, num_runs)
  last = rows[-1]['round'] if rows else -1
  steps = [step for step in output.steps(folder) if step in stops]
  if steps and steps[0] > last:
    raise ValueError(
      f'--resume: there is a checkpoint of round {steps[0]}, but'
      f' {folder / file} has no rows of it; to begin anew, delete'
      f' {folder / "checkpoints"}'
    )
  restored = output.restore_checkpoint(
    folder, like, lambda step: step in steps and step <= last
  )
  if restored is None:
    return None
  done, states = restored
  return done, states, rows[: (stops.index(done) + 1) * num_runs]


def check(configs: Mapping[pathlib.Path, dict[str, Any]]) -> None:
  """Raises ValueError unless the runs in the folders can go on with the flags.

  With more rounds the learning rate goes on as the last of its schedule, which
  is zero for a cosine, and for the local steps of qsr.
  """
  for folder, config in configs.items():
    if not (folder / 'config.json').exists():
      continue  # A rule that was not begun.
    output.check_same(folder, config, 'rounds')
    rounds, planned = config['rounds'], config['schedule_rounds']
    for flag, ends in (('schedule', 'cosine'), ('method', 'qsr')):
      text = config.get(flag, '')
      if rounds > planned and text.startswith(ends):
        raise ValueError(
          f'--rounds={rounds}: the learning rate of the run in {folder}, with'
          f' --{flag}={text}, is zero from round {planned} on'
        )
