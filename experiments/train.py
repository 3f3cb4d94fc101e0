r"""One training run under attack, or the same run with several rules.

  python -m experiments.train                        # the demonstration
  python -m experiments.train --aggregator=krum --attack='alie(z=1.5)' \
      --num_workers=25 --num_byzantine=5 --output_dir=runs/krum

Names take their hyper-parameters in parentheses, `centered_clipping(radius=1)`;
the number of Byzantine workers is filled in where a rule asks for it. Several
rules and attacks, separated by semicolons, run one after the other: each rule
under each attack. They end in a table for each attack and in one picture,
`curve.png`; under the tables is the command of each row. Each writes
`config.json`, `metrics.csv` (a row per evaluation and seed) and checkpoints. A
killed run goes on to the same bits with `--output_dir=FOLDER --resume`. Several
processes: `experiments/harness/distributed.py`.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import tqdm
from absl import app, flags, logging

import byzjax
from byzjax import data

from .harness import (
  backdoors,
  dipaco,
  distributed,
  lock,
  loop,
  methods,
  output,
  privacy,
  programs,
  resume,
  run_arguments,
  settings,
  specs,
)
from .harness.cells import Cell, Program, Rows
from .harness.settings import ImageSettings, option
from .reporting import curves, summary, tables

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  """Everything that a run is made of; each is a flag."""

  partition: str = option(
    'iid',
    'How examples are divided among workers:'
    f' {specs.describe(specs.PARTITIONS)}. With long_tail=r,'
    ' class k first keeps r^k of its examples. E.g.'
    ' dirichlet_by_class(alpha=0.1), iid(long_tail=0.6).',
  )
  validation: bool = option(
    False, 'Keep a tenth of the training examples apart, as grids do.'
  )
  num_workers: int = option(25, 'n, attackers included.', low=1)
  num_byzantine: int = option(11, 'f, fewer than half of them.', low=0)
  redraw_byzantine: bool = option(
    False,
    'Draw the attackers anew in every round instead of the first f workers.',
  )
  attack: str = option(
    'inner_product_manipulation(epsilon=0.1)',
    'What attackers send, or several attacks separated by semicolons:'
    f' {specs.describe(specs.ATTACKS)}. E.g. alie(z=1.5).',
  )
  search: str = option(
    'none',
    'What attackers that hold the defence make of that, in every round, or'
    ' several, separated by commas:'
    f' {specs.describe(specs.SEARCHES)}. strength finds the worst multiple of'
    ' the attack, gradient ascends from it.',
  )
  pre_aggregators: str = option(
    '',
    'What messages go through before every rule, separated by commas:'
    f' {specs.describe(specs.PRE_AGGREGATORS)}. E.g. bucketing(bucket_size=2).',
  )
  aggregator: str = option(
    'mean; krum; nearest_neighbor_mixing, trimmed_mean',
    'The rule, or several separated by semicolons:'
    f' {specs.describe(specs.AGGREGATORS)}; perhaps behind pre-aggregators and'
    ' a comma.',
  )
  method: str = option(
    'robust',
    f'How workers train: {specs.describe(methods.METHODS)}. robust sends'
    ' gradients; asynchronous methods count messages as rounds; the examples of'
    ' dipaco go to the workers of their path.',
  )
  num_local_steps: int = option(
    0, 'Steps between two messages, of methods that have some.', low=0
  )
  codec: str = option(
    'none', f'How messages are sent: {specs.describe(specs.CODECS)}.'
  )
  server_codec: str = option('none', 'The same of the aggregate.')
  topology: str = option(
    'ring', f'Of gossip: {specs.describe(specs.TOPOLOGIES)}.'
  )
  speeds: str = option(
    '1', 'Seconds of a job, worker by worker and over again: 1,1,5.'
  )
  local_learning_rate: float | None = option(
    None, 'Of local steps; none is 0.003 for AdamW, else 0.1.', low=0
  )
  num_participants: int | None = option(
    None, 'Workers drawn in a round of local steps.', low=1
  )
  momentum: float = option(
    0.9, 'Decay of the momentum that each worker keeps, in [0, 1].'
  )
  delta: float = option(
    1e-5, 'Of the privacy of --method=dp_sgd, whose epsilon is printed.', low=0
  )
  optimizer: str = option(
    'sgd',
    'What the server does with the aggregate:'
    f' {specs.describe(specs.OPTIMIZERS)}.',
  )
  learning_rate: float = option(0.5, 'Initial learning rate.', low=0)
  schedule: str = option(
    'step',
    f'Learning rate over the rounds: {specs.describe(specs.SCHEDULES)}; step is'
    ' step(factor=0.1, at=0.75), a factor from a fraction of the rounds on.',
  )
  batch_size: int = option(8, 'Examples per worker and round.', low=1)
  rounds: int = option(400, 'Rounds of training.', low=1)
  schedule_rounds: int | None = option(
    None, 'Rounds of --schedule, if not --rounds.', low=1
  )
  eval_every: int = option(20, 'Rounds between evaluations.', low=1)
  seed: int = option(0, 'The first seed.', low=0)
  num_devices: int = option(
    1,
    'Devices to split the workers over, of all processes; a CPU is split.',
    low=1,
  )
  worker_map: str = option(
    'auto',
    'Per-worker gradients by vmap, map (one by one) or chunks of so many'
    ' workers; auto is map for convolutions on a CPU and vmap otherwise.',
  )

  @property
  def seeds(self) -> range:
    return range(self.seed, self.seed + self.num_seeds)


def cell_of(config: Settings, mesh: jax.sharding.Mesh | None = None) -> Cell:
  """The run of one rule: what workers, attackers and the server do.

  Raises:
    ValueError: if a flag is not for the method of the run.
  """
  name = run_arguments.check(config)
  steps = max(config.num_local_steps, 1)
  attack, _ = specs.parse(config.attack)
  is_fixed = attack != 'none' and not config.redraw_byzantine
  num_liars = config.num_byzantine if is_fixed else 0
  model_of = functools.partial(methods.model_of, name, num_liars)

  def make_round(task, key):
    arguments = run_arguments.make(config, task, key, mesh)
    return methods.build(config.method, arguments)

  return Cell(
    labels={},
    make_round=make_round,
    num_workers=config.num_workers,
    rounds=config.rounds,
    batch_size=config.batch_size * (steps if name in methods.CORRECTED else 1),
    partition=config.partition,
    is_local=methods.takes_examples(name),
    model_of=model_of,
    measure=backdoors.measure(config.attack, model_of),
    metrics=metrics,
  )


def metrics(state, info: byzjax.RoundInfo) -> dict[str, jax.Array]:
  """Columns of `metrics.csv`, averaged over the rounds since the last row."""
  del state
  return {
    'train_loss': info.loss,
    'aggregation_error': info.aggregation_error,
    'num_nonfinite': info.num_nonfinite,
  }


def program_of(config: Settings, dataset: data.Dataset) -> Program:
  """The program of one rule; traced, so that what refuses says so here."""
  mesh = distributed.make_mesh(config.num_devices)
  options = programs.Options(
    config.model, config.seeds, config.augment, config.validation, mesh
  )
  stops = [*range(0, config.rounds, config.eval_every), config.rounds]
  cell = cell_of(config, mesh)
  if specs.parse(config.method)[0] == 'dipaco':
    cell = dipaco.routed(cell, config, dataset)
  program = programs.of_images(cell, dataset, options, stops)
  program.trace()
  return program


class Run(NamedTuple):
  """One rule under one attack."""

  config: Settings
  program: Program
  folder: pathlib.Path
  begun: tuple[int, Any, Rows]  # Rounds done, states and rows.
  privacy: str = ''  # What is promised to the examples of workers.


def train(run: Run) -> Rows:
  """Runs the rounds that are left and returns all rows of metrics."""
  with tqdm.tqdm(
    None,
    run.config.aggregator,
    run.config.rounds,
    initial=run.begun[0],
    unit='rounds',
    disable=jax.process_index() > 0,
  ) as bar:

    def show(rounds, rows):
      del rounds  # Of a run that goes on they count those before, too.
      loss = tables.column(rows, 'loss').mean()
      accuracy = tables.column(rows, 'accuracy').mean()
      bar.set_postfix_str(f'loss={loss:.3f}, accuracy={accuracy:.1%}', False)
      bar.update(rows[0]['round'] - bar.n)

    return loop.run(
      run.program,
      run.folder,
      file='metrics.csv',
      save_seconds=0,
      begun=run.begun,
      advance=show,
    )


def command(config: Settings) -> str:
  """The line that makes a run again."""
  if config.schedule_rounds == config.rounds:
    config = dataclasses.replace(config, schedule_rounds=None)
  return summary.command('train', *settings.arguments(config))


def title_of(config: Settings) -> str:
  return (
    f'{config.num_byzantine} of {config.num_workers} workers send'
    f' {config.attack}'
  )


def say(runs: Sequence[Run], results: Sequence[Rows], root) -> None:
  """Prints tables and what makes each of their rows again; draws curves."""
  by_attack: dict[str, dict[str, Rows]] = {}
  for run, rows in zip(runs, results):
    of_attack = by_attack.setdefault(title_of(run.config), {})
    of_attack[run.config.aggregator] = rows
  config = runs[0].config
  for title, of_rules in by_attack.items():
    print(f'\n{title}; {config.rounds} rounds, {config.num_seeds} seeds')
    print(curves.table(of_rules))
  for promise in sorted({run.privacy for run in runs} - {''}):
    print(f'\nPrivacy of the examples of honest workers: {promise}')
  print('\nThe command of each row:')
  print('\n'.join(command(run.config) for run in runs))
  curves.picture(by_attack, config.dataset, root / 'curve.png')


def of_folder(config: Settings) -> dict[str, Any]:
  """What `config.json` has."""
  values = dataclasses.asdict(config)
  values['schedule_rounds'] = config.schedule_rounds or config.rounds
  return {'program': 'train', **values}


def read_settings(root: pathlib.Path) -> Settings:
  """The settings of the flags, or of the run that goes on."""
  if FLAGS.resume:
    if not FLAGS.output_dir:
      raise ValueError('--resume needs --output_dir, the folder to continue')
    names = [field.name for field in dataclasses.fields(Settings)]
    resume.adopt(root, 'train', names)
  config = settings.read(Settings)
  distributed.split_cpu(config.num_devices)  # Before JAX looks for devices.
  several = run_arguments.several(config)
  if jax.process_count() > 1 and not FLAGS.output_dir:
    raise ValueError('several processes need --output_dir, which all see')
  texts = {flag: '; '.join(given) for flag, given in several.items()}
  return dataclasses.replace(config, **texts)


def runs_of(
  config: Settings, root: pathlib.Path
) -> dict[pathlib.Path, Settings]:
  """The settings of every rule under every attack, and their folders.

  A run that is alone writes to the folder itself, several to a folder each,
  which has the name of what they differ in.
  """
  several, made = run_arguments.several(config), {}
  for pair in itertools.product(*several.values()):
    names = [text for text, all_ in zip(pair, several.values()) if all_[1:]]
    folder = root / output.slug('; '.join(names)) if names else root
    values: dict[str, Any] = dict(zip(several, pair))
    made[folder] = dataclasses.replace(config, **values)
  return made


def open_runs(
  config: Settings, root: pathlib.Path, held: contextlib.ExitStack
) -> list[Run]:
  """Checks all, then locks and makes the folders; as long as `held` is open."""
  alone = runs_of(config, root)
  configs = {root: of_folder(config)}
  configs |= {folder: of_folder(one) for folder, one in alone.items()}

  def take():
    held.callback(lock.release, lock.take(*configs, resume=FLAGS.resume))

  output.check_root(root, resume=FLAGS.resume)
  if FLAGS.resume:
    resume.check(configs)
    take()
  dataset = data.load(config.dataset, config.data_dir)
  promises = [privacy.line(one, dataset) for one in alone.values()]
  made = [program_of(one, dataset) for one in alone.values()]
  distributed.wait_for_all('checked')
  if not FLAGS.resume:
    take()
  for folder, values in configs.items():
    distributed.process_0_first(output.open_folder, folder, values, 'rounds')
  return [
    Run(one, program, folder, beginning(program, folder), promise)
    for (folder, one), program, promise in zip(alone.items(), made, promises)
  ]


def beginning(program: Program, folder: pathlib.Path) -> tuple[int, Any, Rows]:
  """Rounds done, states and rows, as a checkpoint has them or at round 0."""
  if FLAGS.resume:
    return loop.beginning(program, folder, 'metrics.csv')
  return 0, program.start(), []


def define_flags() -> None:
  """The flags of the command line."""
  settings.define(Settings)
  flags.DEFINE_string(
    'output_dir', None, 'A new folder; runs/<data set>-<time> by default.'
  )
  flags.DEFINE_bool(
    'resume',
    False,
    'Continue the run in --output_dir with its flags; --rounds may be larger.',
  )


def main(argv):
  logging.set_verbosity(logging.WARNING)  # Checkpointing is talkative.
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  root = pathlib.Path(
    FLAGS.output_dir or time.strftime(f'runs/{FLAGS.dataset}-%Y%m%d-%H%M%S')
  )
  with contextlib.ExitStack() as held:
    try:
      config = read_settings(root)
      runs = open_runs(config, root, held)
    except (OSError, ValueError) as error:
      sys.exit(f'train.py: {error}')
    distributed.say(f'Writing to {root}')
    results = [train(run) for run in runs]
    if jax.process_index() == 0:
      say(runs, results, root)


if __name__ == '__main__':
  define_flags()
  flags.adopt_module_key_flags(settings)
  distributed.run(main)
