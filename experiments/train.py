r"""One training run under attack, or the same run with several rules.

  python -m experiments.train                        # the demonstration
  python -m experiments.train --aggregator=krum --attack='alie(z=1.5)' \
      --num_workers=25 --num_byzantine=5 --output_dir=runs/krum

Names take their hyper-parameters in parentheses, `centered_clipping(radius=1)`;
the number of Byzantine workers is filled in where a rule asks for it. Several
rules, separated by semicolons, run one after the other and end in one table and
one picture, `curve.png`. Each writes `config.json`, `metrics.csv` (a row per
evaluation and seed) and checkpoints. A killed run goes on to the same bits with
`--output_dir=FOLDER --resume`. Several processes: `experiments/distributed.py`.
"""

import contextlib
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tqdm
from absl import app, flags, logging

import byzjax
from byzjax import data, models
from experiments import distributed, lock, output, report, resume, specs

FLAGS = flags.FLAGS

flags.DEFINE_string(
  'dataset',
  'digits',
  'digits (1797 handwritten digits, no download) or any prepared image set of'
  ' --data_dir, such as mnist, fashion_mnist, cifar10.',
)
flags.DEFINE_string(
  'data_dir',
  None,
  'Folder with data sets in TFDS format (array_record); the environment'
  ' variable TFDS_DATA_DIR by default.',
)
flags.DEFINE_string(
  'partition',
  'iid',
  'How examples are divided among workers:'
  f' {specs.describe(specs.PARTITIONS)}. With long_tail=r,'
  ' class k first keeps r^k of its examples. E.g.'
  ' dirichlet_by_class(alpha=0.1), iid(long_tail=0.6).',
)
flags.DEFINE_enum('model', 'mlp', specs.MODELS, 'The network.')
flags.DEFINE_integer('num_workers', 25, 'n, attackers included.', 1)
flags.DEFINE_integer('num_byzantine', 11, 'f, fewer than half of them.', 0)
flags.DEFINE_bool(
  'redraw_byzantine',
  False,
  'Draw the attackers anew in every round instead of the first f workers.',
)
flags.DEFINE_string(
  'attack',
  'inner_product_manipulation(epsilon=0.1)',
  f'What attackers send: {specs.describe(specs.ATTACKS)}. E.g. alie(z=1.5).',
)
flags.DEFINE_string(
  'search',
  'none',
  'What attackers that hold the defence make of that, in every round:'
  f' {specs.describe(specs.SEARCHES)}. strength finds the worst multiple of the'
  ' attack, gradient ascends from it.',
)
flags.DEFINE_string(
  'pre_aggregators',
  '',
  'What messages go through before the rule, separated by commas:'
  f' {specs.describe(specs.PRE_AGGREGATORS)}. E.g. bucketing(bucket_size=2).',
)
flags.DEFINE_string(
  'aggregator',
  'mean; krum; centered_clipping(radius=0.3)',
  'The rule, or several separated by semicolons:'
  f' {specs.describe(specs.AGGREGATORS)}.',
)
flags.DEFINE_integer(
  'num_local_steps',
  0,
  'Steps of SGD that each worker takes in a round, with --local_learning_rate;'
  ' what it sends is how far it came, and --learning_rate=1 averages that. 0:'
  ' workers send gradients.',
  0,
)
flags.DEFINE_float(
  'local_learning_rate', 0.1, 'Of the steps that workers take.', 0.0
)
flags.DEFINE_integer(
  'num_participants', None, 'Workers drawn in a round of local steps.', 1
)
flags.DEFINE_float(
  'momentum', 0.9, 'Decay of the momentum that each worker keeps, in [0, 1].'
)
flags.DEFINE_string(
  'optimizer',
  'sgd',
  'What the server does with the aggregate:'
  f' {specs.describe(specs.OPTIMIZERS)}.',
)
flags.DEFINE_float('learning_rate', 0.5, 'Initial learning rate.', 0.0)
flags.DEFINE_string(
  'schedule',
  'step',
  f'Learning rate over the rounds: {specs.describe(specs.SCHEDULES)}; step is'
  ' step(factor=0.1, at=0.75), a factor from a fraction of the rounds on.',
)
flags.DEFINE_integer('batch_size', 8, 'Examples per worker and round.', 1)
flags.DEFINE_integer('rounds', 400, 'Rounds of training.', 1)
flags.DEFINE_integer(
  'schedule_rounds', None, 'Rounds of --schedule, if not --rounds.', 1
)
flags.DEFINE_integer('eval_every', 20, 'Rounds between evaluations.', 1)
flags.DEFINE_integer('seed', 0, 'The first seed.', 0)
flags.DEFINE_integer(
  'num_seeds', 3, 'Runs with seeds seed, seed + 1, ... in one program.', 1
)
flags.DEFINE_integer(
  'num_devices',
  1,
  'Devices to split the workers over, of all processes; a CPU is split.',
  1,
)
flags.DEFINE_string(
  'worker_map',
  'auto',
  'Per-worker gradients by vmap, map (one by one) or chunks of so many workers;'
  ' auto is map for convolutions on a CPU and vmap otherwise.',
)
flags.DEFINE_string(
  'output_dir', None, 'A new folder; runs/<data set>-<time> by default.'
)
flags.DEFINE_bool(
  'resume',
  False,
  'Continue the run in --output_dir with its flags; --rounds may be larger.',
)


class Run(NamedTuple):
  """Everything that one rule needs: two compiled functions and a state."""

  chunk: Callable  # (states, length) -> (states, mean RoundInfo [num_seeds])
  evaluate: Callable  # states -> Metrics [num_seeds]
  states: byzjax.RoundState  # leaves [num_seeds, ...]


def make_run(rule: str, dataset: data.Dataset) -> Run:
  """The program of one rule from the flags, checked by tracing it."""
  if FLAGS.num_participants and not FLAGS.num_local_steps:
    raise ValueError('--num_participants needs --num_local_steps')
  # --- Data: one partition per seed, padded to a common width.
  seeds = _seeds()
  partitions = specs.stack(
    [
      specs.partition(
        FLAGS.partition, dataset.train_labels, FLAGS.num_workers, seed
      )
      for seed in seeds
    ]
  )
  images = jnp.asarray(dataset.train_images)
  labels = jnp.asarray(dataset.train_labels)
  mesh = distributed.make_mesh(FLAGS.num_devices)

  # --- Model: one initialisation per seed.
  image_shape = (images.shape[1], images.shape[2], images.shape[3])
  networks = [
    models.split(
      models.make(FLAGS.model, image_shape, dataset.num_classes, seed=seed)
    )
    for seed in seeds
  ]
  graphdef = networks[0][0]
  needs_key = models.has_dropout(graphdef)
  learning_rate = specs.build(
    'schedule',
    FLAGS.schedule,
    specs.SCHEDULES,
    FLAGS.learning_rate,
    FLAGS.schedule_rounds or FLAGS.rounds,
  )
  aggregator = specs.aggregator(
    rule, FLAGS.pre_aggregators, FLAGS.num_byzantine
  )
  optimizer = specs.build(
    'optimizer', FLAGS.optimizer, specs.OPTIMIZERS, learning_rate
  )
  attack = specs.build(
    'attack',
    FLAGS.attack,
    specs.ATTACKS,
    defaults={'num_classes': dataset.num_classes},
  )
  attack = specs.build(
    'search', FLAGS.search, specs.SEARCHES, attack, aggregator
  )

  def training_under(byzantine, images, labels) -> byzjax.Round:
    loss_fn = models.cross_entropy_loss(graphdef, needs_key=needs_key)
    shared = {
      'needs_key': needs_key,
      'num_workers': FLAGS.num_workers,
      'worker': byzjax.worker_momentum(FLAGS.momentum),
      'attack': attack,
      'byzantine': byzantine,
      'aggregator': aggregator,
      'optimizer': optimizer,
      'worker_map': specs.worker_map(FLAGS.model, FLAGS.worker_map),
      'mesh': mesh,
    }
    if not FLAGS.num_local_steps:
      return byzjax.robust_round(loss_fn, **shared)
    sampler = data.local_sampler(
      images, labels, batch_size=FLAGS.batch_size, scale=dataset.scale
    )
    return byzjax.fed_opt(
      loss_fn,
      learning_rate=FLAGS.local_learning_rate,
      num_local_steps=FLAGS.num_local_steps,
      participation=FLAGS.num_participants,
      sampler=sampler,
      **shared,
    )

  @functools.partial(jax.jit, static_argnums=4, donate_argnums=0)
  def chunk(states, partitions, images, labels, length):
    def one_seed(state, partition, key):
      data_key, round_key, byzantine_key = jax.random.split(key, 3)
      byzantine = FLAGS.num_byzantine
      if FLAGS.redraw_byzantine:
        byzantine = byzjax.random_byzantine(
          FLAGS.num_workers, byzantine, byzantine_key
        )
      training = training_under(byzantine, images, labels)

      def one_round(state, _):
        if FLAGS.num_local_steps:
          return training.step(state, partition, round_key)
        batch = data.sample_batch(
          images,
          labels,
          partition,
          jax.random.fold_in(data_key, state.step),
          FLAGS.batch_size,
          scale=dataset.scale,
        )
        return training.step(state, batch, round_key)

      state, infos = jax.lax.scan(one_round, state, length=length)
      return state, jax.tree.map(lambda x: jnp.mean(x, axis=0), infos)

    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    return jax.vmap(one_seed)(states, partitions, keys)

  @jax.jit
  def evaluate(states, images, labels):
    return jax.vmap(
      lambda params: models.evaluate(
        graphdef,
        params,
        images,
        labels,
        num_classes=dataset.num_classes,
        scale=dataset.scale,
      )
    )(states.params)

  first_round = training_under(FLAGS.num_byzantine, images, labels)
  states = byzjax.stack([first_round.init(params) for _, params in networks])
  arrays = distributed.replicate((partitions, images, labels), mesh)
  # So a rule that refuses these messages says so before anything is written.
  jax.eval_shape(lambda s: chunk(s, *arrays, FLAGS.eval_every), states)
  test = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
  test = distributed.replicate(test, mesh)
  return Run(
    lambda states, length: chunk(states, *arrays, length),
    lambda states: evaluate(states, *test),
    states,
  )


def beginning(run: Run, folder: pathlib.Path) -> tuple[int, Any, list[dict]]:
  """Rounds done, states and rows, as a checkpoint has them or at round 0."""
  if FLAGS.resume:
    rounds = [*range(0, FLAGS.rounds, FLAGS.eval_every), FLAGS.rounds]
    if restored := resume.restore(folder, run.states, rounds, _seeds()):
      return restored
  return 0, run.states, _rows(0, run, run.states, None)


def train(name: str, run: Run, start, folder: pathlib.Path) -> list[dict]:
  """Runs the rounds that are left and returns all rows of metrics."""
  begun, states, rows = start
  total, quiet = FLAGS.rounds, jax.process_index() > 0
  with tqdm.tqdm(
    None, name, total, initial=begun, unit='rounds', disable=quiet
  ) as bar:
    for done in range(begun, total, FLAGS.eval_every):
      length = min(FLAGS.eval_every, total - done)
      states, info = run.chunk(states, length)
      rows += _rows(done + length, run, states, info)
      # Rows go first: a resumed run cuts those that its checkpoint lacks.
      output.write_metrics(folder, rows)
      output.save_checkpoint(folder, done + length, states)
      last = rows[-FLAGS.num_seeds :]
      loss = report.column(last, 'loss').mean()
      accuracy = report.column(last, 'accuracy').mean()
      bar.set_postfix_str(f'loss={loss:.3f}, accuracy={accuracy:.1%}', False)
      bar.update(length)
  return rows


def _seeds() -> range:
  return range(FLAGS.seed, FLAGS.seed + FLAGS.num_seeds)


def _rows(done: int, run: Run, states, info) -> list[dict]:
  metrics, info = jax.device_get((run.evaluate(states), info))
  return output.metric_rows(done, _seeds(), metrics, info)


def _config(rules: Sequence[str]) -> dict[str, Any]:
  own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
  values = {f.name: f.value for f in own}
  del values['output_dir'], values['resume']
  values['schedule_rounds'] = FLAGS.schedule_rounds or FLAGS.rounds
  return {'program': 'train', **values, 'aggregator': '; '.join(rules)}


def main(argv):
  logging.set_verbosity(logging.WARNING)  # Checkpointing is talkative.
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  with contextlib.ExitStack() as held:
    _main(held)


def _main(held: contextlib.ExitStack):
  root = pathlib.Path(
    FLAGS.output_dir or time.strftime(f'runs/{FLAGS.dataset}-%Y%m%d-%H%M%S')
  )
  try:
    if FLAGS.resume:
      if not FLAGS.output_dir:
        raise ValueError('--resume needs --output_dir, the folder to continue')
      resume.adopt(root, 'train', _config(()))
    distributed.split_cpu(FLAGS.num_devices)
    rules = specs.split_top(FLAGS.aggregator, ';')
    # One rule writes to the folder itself, several to a folder each.
    folders = [root / output.slug(r) if rules[1:] else root for r in rules]
    configs = {root: _config(rules)}
    configs |= {f: _config([r]) for f, r in zip(folders, rules)}
    if not rules:
      raise ValueError('--aggregator names no rule')
    if jax.process_count() > 1 and not FLAGS.output_dir:
      raise ValueError('several processes need --output_dir, which all see')
    if len(set(folders)) < len(folders):
      raise ValueError(f'--aggregator names a rule twice: {rules}')
    output.check_root(root, resume=FLAGS.resume)
    if FLAGS.resume:
      resume.check(configs)
      held.callback(lock.release, lock.take(*configs, resume=True))
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
    runs = [make_run(rule, dataset) for rule in rules]
    distributed.wait_for_all('checked')
    if not FLAGS.resume:
      held.callback(lock.release, lock.take(*configs, resume=False))
    for folder, config in configs.items():
      distributed.process_0_first(output.open_folder, folder, config, 'rounds')
    starts = [beginning(run, folder) for run, folder in zip(runs, folders)]
  except (OSError, ValueError) as error:
    sys.exit(f'train.py: {error}')

  distributed.say(f'Writing to {root}')
  results = {}
  for rule, run, start, folder in zip(rules, runs, starts, folders):
    results[rule] = train(rule, run, start, folder)
  if jax.process_index() > 0:
    return
  title = f'{FLAGS.num_byzantine} of {FLAGS.num_workers} workers send'
  title += f' {FLAGS.attack}'
  print(f'\n{title}; {FLAGS.rounds} rounds, {FLAGS.num_seeds} seeds')
  print(report.table(results, FLAGS.num_seeds))
  report.picture(
    results, FLAGS.num_seeds, f'{FLAGS.dataset}: {title}', root / 'curve.png'
  )


if __name__ == '__main__':
  distributed.run(main)
