"""The command line: `byzjax doctor`, `byzjax train ...`.

Also `python -m byzjax`. `doctor` prints versions, devices and data sets, and
runs a short training under attack as a self-test. The other commands are
programs of the extra `[experiments]`; `--help` after a name lists its flags.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import runpy
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

import byzjax
from byzjax.data import _sources

PACKAGES = ('jax', 'jaxlib', 'optax', 'flax', 'numpy')
EXTRAS = {
  'data': ('tensorflow-datasets', 'array_record', 'pillow', 'scikit-learn'),
  'experiments': ('absl-py', 'matplotlib', 'orbax-checkpoint', 'bokeh', 'tqdm'),
}
PROGRAMS = {
  'train': 'trains a network under attack',
  'grid': 'trains with many attacks, rules and kinds of data',
  'studies': 'runs the study of a paper',
  'diloco': 'trains a language model on a mesh of replicas',
  'report': 'makes one HTML file of the folders of runs',
  'scorecard': 'compares results with the claims of the papers',
}
_TRUE = (1.0, -2.0, 3.0)


def version(package: str) -> str:
  """The version of a package, or that it is missing."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'


def installed() -> list[str]:
  """A line for Python, each package, and each extra."""
  lines = [f'byzjax {byzjax.__version__}, Python {platform.python_version()}']
  lines += [f'  {package} {version(package)}' for package in PACKAGES]
  for extra, packages in EXTRAS.items():
    missing = [p for p in packages if version(p) == 'not installed']
    what = f'without {", ".join(missing)}' if missing else 'complete'
    lines.append(f'  extra [{extra}]: {what}')
  return lines


def devices() -> list[str]:
  """The default backend and its devices."""
  kinds = [device.device_kind for device in jax.devices()]
  return [f'{jax.default_backend()}: {len(kinds)} x {kinds[0]}']


def data_sets() -> list[str]:
  """The folder of data sets, and those that it holds."""
  folder = _sources._folder(None)
  held = ', '.join(sorted(_sources._prepared(folder))) or 'nothing'
  variable = _sources._ENVIRONMENT_VARIABLE
  said = 'set' if os.environ.get(variable) else 'not set'
  return [f'data: {folder} holds {held} ({variable} is {said})']


def distance(rule: byzjax.Aggregator) -> float:
  """Distance to the true parameters after training, 3 of 10 Byzantine."""
  true = jnp.array(_TRUE)
  x = jax.random.normal(jax.random.key(0), (10, 32, 3))
  training = byzjax.robust_round(
    lambda params, batch: jnp.mean((batch[0] @ params - batch[1]) ** 2),
    num_workers=10,
    attack=byzjax.sign_flip(scale=10.0),
    byzantine=3,
    aggregator=rule,
    optimizer=optax.sgd(0.1),
  )

  @jax.jit
  def train(state):
    def body(state, _):
      return training.step(state, (x, x @ true), jax.random.key(1))[0], None

    return jax.lax.scan(body, state, length=100)[0]

  params = train(training.init(jnp.zeros(3))).params
  return float(jnp.linalg.norm(jnp.nan_to_num(params - true, nan=jnp.inf)))


def self_test() -> list[str]:
  """Trains with the mean, which must fail, and two rules, which must succeed.

  Raises:
    RuntimeError: if a rule fails, or if the mean does not.
  """
  begin = time.perf_counter()
  rules = {
    'mean': byzjax.mean(),
    'krum': byzjax.krum(num_byzantine=3),
    'trimmed_mean': byzjax.trimmed_mean(num_byzantine=3),
  }
  lines = []
  for name, rule in rules.items():
    far = distance(rule)
    if (far < 0.01) == (name == 'mean'):
      raise RuntimeError(
        f'self-test: {name} ends {far:g} from the true parameters'
      )
    lines.append(f'  {name} ends {far:.2g} from the true parameters')
  seconds = time.perf_counter() - begin
  head = 'self-test, 3 of 10 workers are Byzantine:'
  return [head, *lines, f'  passed in {seconds:.1f} s']


def run(program: str, arguments: Sequence[str]) -> None:
  """Runs a program of the experiments, as `python -m` does."""
  package = f'{byzjax.__name__}.experiments'
  if importlib.util.find_spec(package) is None:
    # A clone has them beside the library.
    package = 'experiments'
    sys.path.insert(0, str(pathlib.Path(byzjax.__file__).parents[1]))
  try:
    importlib.import_module(package)
  except ImportError as error:
    sys.exit(f'byzjax {program}: {error}')
  sys.argv = [program, *arguments]
  runpy.run_module(f'{package}.{program}', run_name='__main__', alter_sys=True)


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads the command line."""
  arguments = sys.argv[1:] if arguments is None else arguments
  if arguments and arguments[0] in PROGRAMS:
    run(arguments[0], arguments[1:])
    return
  parser = argparse.ArgumentParser(
    prog='byzjax',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest='command', required=True)
  commands.add_parser('doctor', help='prints what is installed, and tests it')
  for name, says in PROGRAMS.items():
    commands.add_parser(name, help=says)
  parser.parse_args(arguments)
  for part in (installed, devices, data_sets, self_test):
    print('\n'.join(part()), flush=True)


if __name__ == '__main__':
  main()
