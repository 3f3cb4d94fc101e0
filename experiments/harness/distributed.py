"""One program in several processes: who this one is, and what ends them all.

Every process runs the same command. On TPU pods, under SLURM and under Open
MPI, `--distributed` finds the others; anywhere else each process is told:

  python -m experiments.train --coordinator_address=HOST:PORT \
      --num_processes=2 --process_id=0 ...   # and 1 in the other

Process 0 is at HOST, and the only one that prints and writes text. A process
that fails ends the others, for they cannot go on without its devices.

Cells of a study or a grid need no others. There, `--num_processes` and
`--process_id` alone divide the cells among processes that see one folder.
"""

import ctypes
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

FLAGS = flags.FLAGS
flags.DEFINE_bool(
  'distributed',
  False,
  'One of several processes, which the cluster (TPU pod, SLURM, Open MPI) tells'
  ' which.',
)
flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0, the same everywhere.'
)
flags.DEFINE_integer('num_processes', None, 'Processes in all.', 1)
flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.', 0)
flags.DEFINE_integer(
  'heartbeat_seconds',
  100,
  'After how long a process that says nothing counts as dead.',
  1,
)

# What the libraries that connect processes say when one of them is gone.
_LOST = (
  'barrier',
  'connection',
  'coordination',
  'gloo',
  'heartbeat',
  'nccl',
  'socket',
)

_GONE = (
  'another process is gone, and may have said why; this one ends too. Start all'
  ' of them again with --resume.'
)


def run(main: Callable[[list[str]], Any]) -> None:
  """`app.run(main)`, in one of the processes of the flags."""
  app.run(lambda argv: _run_one_of_several(main, argv))


def initialize() -> bool:
  """Joins the other processes, if the flags say that there are some.

  Raises:
    ValueError: if the flags do not say enough, or nobody answers.
  """
  logging.set_verbosity(logging.WARNING)  # Meeting is talkative.
  given: dict[str, Any] = {
    name: FLAGS[name].value
    for name in ('coordinator_address', 'num_processes', 'process_id')
  }
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if not FLAGS.distributed:
    if len(missing) == len(given) or given['num_processes'] == 1:
      return False
    if missing:
      raise ValueError(f'several processes need {" and ".join(missing)}, too')
    check_process_id()
    print(
      f'Process {FLAGS.process_id} of {FLAGS.num_processes} waits for the'
      f' others at {FLAGS.coordinator_address}',
      file=sys.stderr,
      flush=True,
    )
  # It would catch SIGTERM for programs that ask it, and this one does not.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **given, heartbeat_timeout_seconds=FLAGS.heartbeat_seconds
    )
  except (RuntimeError, ValueError) as error:
    hint = ''
    if FLAGS.distributed and missing:
      hint = f'; where no cluster says it, give {", ".join(missing)}'
    raise ValueError(f'the processes did not meet: {error}{hint}') from error
  return True


def check_process_id() -> None:
  """Raises ValueError unless it is one of the processes."""
  process: Any = FLAGS['process_id'].value
  num_processes: Any = FLAGS['num_processes'].value
  if process >= num_processes:
    raise ValueError(
      f'--process_id={process} must be less than'
      f' --num_processes={num_processes}'
    )


def share() -> tuple[int, int]:
  """Which share of jobs is of this process: `(i, of how many)`.

  Raises:
    ValueError: if the flags say something else.
  """
  # By name, for a queue may run where no flags were parsed.
  process: Any = FLAGS['process_id'].value
  num_processes: Any = FLAGS['num_processes'].value
  if FLAGS['coordinator_address'].value or FLAGS['distributed'].value:
    raise ValueError(
      'cells do not talk to each other: --num_processes and --process_id are'
      ' all that divides them among processes (under SLURM, $SLURM_NTASKS and'
      ' $SLURM_PROCID)'
    )
  if process is None and num_processes in (None, 1):
    return 0, 1
  if process is None or num_processes is None:
    raise ValueError('--num_processes and --process_id go together')
  check_process_id()
  return process, num_processes


def joins(folder: pathlib.Path) -> bool:
  """Whether this process continues what process 0 began, after waiting."""
  if share()[0] == 0:
    return False
  if not (folder / 'config.json').exists():
    print(f'Waiting for process 0 to begin {folder}', file=sys.stderr)
  while not (folder / 'config.json').exists():
    time.sleep(0.2)
  return True


def split_cpu(num_devices: int) -> None:
  """Makes this process's share of the devices of a CPU, if it has fewer."""
  here = num_devices // (FLAGS.num_processes or 1)
  if here > max(1, getattr(jax.config, 'jax_num_cpu_devices', -1)):
    jax.config.update('jax_num_cpu_devices', here)


def make_mesh(num_devices: int) -> jax.sharding.Mesh | None:
  """A mesh of the axis `workers`, over all processes alike.

  Raises:
    ValueError: if there are fewer devices, or no fair share for a process.
  """
  num_processes = jax.process_count()
  if num_devices == num_processes == 1:
    return None
  if num_devices % num_processes:
    raise ValueError(
      f'--num_devices={num_devices}, of all processes together, must be a'
      f' multiple of the {num_processes} processes'
    )
  each = num_devices // num_processes
  devices = []
  for process in range(num_processes):
    own = [d for d in jax.devices() if d.process_index == process]
    if len(own) < each:
      where = f'process {process}' if num_processes > 1 else 'this machine'
      raise ValueError(
        f'--num_devices={num_devices} is more than the {len(own)} devices of'
        f' {where}'
        + (f' times {num_processes} processes' if num_processes > 1 else '')
      )
    devices += own[:each]
  # All of them go in the order that suits the network.
  some = None if num_devices == jax.device_count() else devices
  auto = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((num_devices,), ('workers',), auto, devices=some)


def replicate(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
  """The same arrays on all devices of all processes.

  One process hands its own on as they are: jit puts them where they are needed,
  and a sampler that holds them inside a `shard_map` could not take them with
  the mesh in their type.
  """
  if mesh is None or jax.process_count() == 1:
    return tree
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def say(text: str) -> None:
  """Prints, once."""
  if jax.process_index() == 0:
    print(text, flush=True)


def wait_for_all(name: str) -> None:
  """Returns when all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def process_0_first(action: Callable[..., None], *arguments: Any) -> None:
  """Does it in process 0, and then in the others."""
  if jax.process_index() == 0:
    action(*arguments)
  wait_for_all('process 0 is done')
  if jax.process_index() > 0:
    action(*arguments)
  wait_for_all('the others are done')


def _run_one_of_several(main: Callable[[list[str]], Any], argv: list[str]):
  try:
    is_one_of_several = initialize()
  except ValueError as error:
    sys.exit(str(error))
  if not is_one_of_several:
    return main(argv)
  handler = _end_at_an_abort()
  try:
    main(argv)
    wait_for_all('end')
    return None
  except app.UsageError:
    raise
  except SystemExit as end:
    if not end.code:
      return None
    message = str(end)
  except jax.errors.JaxRuntimeError as error:
    said = str(error)
    message = traceback.format_exc()
    if any(word in said.lower() for word in _LOST):
      message = f'{_GONE} ({said.splitlines()[0]})'
  except BaseException:
    message = traceback.format_exc()
  _end(message)
  del handler


def _end(message: str) -> None:
  """At once: a plain exit waits for those that are gone, and then aborts."""
  sys.stdout.flush()
  me = f'process {jax.process_index()} of {jax.process_count()}'
  os.write(2, f'\n{me}: {message}\n'.encode())
  os._exit(1)


def _end_at_an_abort() -> Any:
  """The handler of SIGABRT, which must be kept.

  When a process is missed for too long, or process 0 is, JAX aborts. It has no
  other way, and Python's own handlers would not run any more.
  """
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(
    lambda _: _end(f'aborted, as is said above; most likely {_GONE}')
  )
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)
  return handler
