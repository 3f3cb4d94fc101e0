"""The main program that all benchmarks share.

A benchmark is a module with `Settings`, a frozen dataclass whose fields become
flags, `QUICK`, toy sizes of them, and `measure(settings)`, which yields a
`records.Run` for each table. Nothing is a flag until its main runs.
"""

import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from absl import app, flags, logging

from benchmarks import records, tables
from experiments.grid import environment


def option(default: Any, text: str) -> Any:
  """A field of `Settings`, which is a flag of this default and help."""
  return dataclasses.field(default=default, metadata={'help': text})


def split_cpu(num_devices: int) -> None:
  """Makes so many devices of a CPU, if JAX has not begun and has fewer."""
  if num_devices > max(1, getattr(jax.config, 'jax_num_cpu_devices', -1)):
    jax.config.update('jax_num_cpu_devices', num_devices)


def run(
  name: str,
  settings: type,
  quick: Any,
  measure: Callable[[Any], Iterable[records.Run]],
  peers: Sequence[str] = (),
) -> None:
  """Flags of the settings; then measures, prints and perhaps writes."""
  _define(settings)
  flags.DEFINE_bool('quick', False, 'Toy sizes, to see that it runs.')
  flags.DEFINE_string(
    'output_dir', None, f'Where to write {name}.json; nowhere by default.'
  )

  def main(argv):
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments {argv[1:]}')
    given = _given(settings)
    start = quick if flags.FLAGS.quick else settings()
    folder = flags.FLAGS.output_dir
    record(
      name,
      measure(dataclasses.replace(start, **given)),
      pathlib.Path(folder) if folder else None,
      command=_command(name),
      quick=flags.FLAGS.quick,
      peers=peers,
    )

  app.run(main)


def record(
  name: str,
  runs: Iterable[records.Run],
  folder: pathlib.Path | None,
  *,
  command: str,
  quick: bool,
  peers: Sequence[str] = (),
) -> records.Record:
  """Prints each table as it is done, and writes all so far."""
  logging.set_verbosity(logging.WARNING)
  start, before = time.monotonic(), records.load()
  done: list[records.Run] = []
  made = None
  for each in runs:
    done.append(each)
    print(tables.table(name, each), '\n', flush=True)
    made = records.Record(
      name,
      command,
      environment.commit('benchmarks'),
      quick,
      records.date(),
      f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      records.machine(),
      records.versions(peers),
      before,
      records.load(),
      round(time.monotonic() - start, 1),
      list(done),
    )
    if folder:
      records.write(made, folder)
  if made is None:
    raise ValueError(f'{name} measured nothing')
  return made


def _define(settings: type) -> None:
  for field in dataclasses.fields(settings):
    default: Any = field.default
    text = field.metadata['help']
    if isinstance(default, bool):
      flags.DEFINE_bool(field.name, default, text)
    elif isinstance(default, int):
      flags.DEFINE_integer(field.name, default, text)
    elif isinstance(default, float):
      flags.DEFINE_float(field.name, default, text)
    elif isinstance(default, tuple):
      flags.DEFINE_list(field.name, list(map(str, default)), text)
    else:
      flags.DEFINE_string(field.name, default, text)


def _given(settings: type) -> dict[str, Any]:
  """What the command line says, lists as tuples of the default's type."""
  given = {}
  for field in dataclasses.fields(settings):
    flag: Any = flags.FLAGS[field.name]
    if not flag.present:
      continue
    value = flag.value
    if isinstance(field.default, tuple):
      kind = type(field.default[0]) if field.default else str
      value = tuple(kind(x) for x in value)
    given[field.name] = value
  return given


def _command(name: str) -> str:
  """The command line, without where its results went."""
  kept = [a for a in sys.argv[1:] if not a.startswith('--output_dir')]
  return shlex.join(['python', '-m', f'benchmarks.{name}', *kept])
