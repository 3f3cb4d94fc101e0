r"""Fixed attacks against attackers that hold the defence.

  python -m experiments.adaptive.run                       # digits, minutes
  python -m experiments.adaptive.run --dataset=mnist --data_dir=FOLDER --check

Every rule meets ALIE, inner-product manipulation (IPM), the same two at the
strength that a line search finds worst in each round, and, where the search
runs on Gram matrices and is cheap, rows that ascend the gradient through the
rule. Prints and writes a table of test accuracies (`table.csv`), and draws it
(`table.png`). --check fails unless a search beats both fixed attacks on at
least four rules.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from absl import app, flags

import byzjax
from byzjax import data, models
from experiments import lock, output, report, specs

FLAGS = flags.FLAGS
flags.DEFINE_string('dataset', 'digits', 'digits, or a set in --data_dir.')
flags.DEFINE_string('data_dir', None, 'Folder with data sets in TFDS format.')
flags.DEFINE_integer('num_workers', 15, 'n, attackers included.', 1)
flags.DEFINE_integer('num_byzantine', 3, 'f.', 0)
flags.DEFINE_list(
  'rules',
  'mean,coordinate_median,trimmed_mean,krum,multi_krum,geometric_median,'
  'centered_clipping(radius=1.0),nnm+trimmed_mean,nnm+geometric_median',
  'Rules; nnm+ puts nearest-neighbour mixing in front.',
)
flags.DEFINE_integer('rounds', 200, 'Rounds of training.', 1)
flags.DEFINE_integer('batch_size', 8, 'Examples per worker and round.', 1)
flags.DEFINE_float('learning_rate', 0.3, 'Of the server.', 0.0)
flags.DEFINE_float('momentum', 0.0, 'Decay of the momentum of each worker.')
flags.DEFINE_integer('num_seeds', 3, 'Seeds 0, 1, ... in one program.', 1)
flags.DEFINE_string('output_dir', 'runs/adaptive', 'A new folder.')
flags.DEFINE_bool('check', False, 'Fail unless the claims hold.')

FIXED = ('alie', 'ipm')
SEARCHED = ('adaptive alie', 'adaptive ipm', 'gradient')
ATTACKS = ('none', *FIXED, *SEARCHED)


def make_rule(text: str) -> byzjax.Aggregator:
  mixed, _, name = text.rpartition('nnm+')
  stages = 'nearest_neighbor_mixing' if 'nnm+' in text else mixed
  return specs.aggregator(name, stages, FLAGS.num_byzantine)


def attacks_on(rule: byzjax.Aggregator) -> dict[str, byzjax.Attack | None]:
  alie = byzjax.alie(z=1.5)
  ipm = byzjax.inner_product_manipulation(epsilon=0.5)
  worst_alie = byzjax.adaptive(alie, rule)
  worst_ipm = byzjax.adaptive(ipm, rule)
  attacks = {
    'none': None,
    'alie': alie,
    'ipm': ipm,
    'adaptive alie': worst_alie,
    'adaptive ipm': worst_ipm,
  }
  if rule.gram_rule is not None:
    attacks['gradient'] = byzjax.adaptive_gradient(worst_ipm, rule, num_steps=5)
  return attacks


def accuracies(rule, attack, dataset: data.Dataset) -> np.ndarray:
  """Test accuracy in percent after the last round, one per seed."""
  images = jnp.asarray(dataset.train_images)
  labels = jnp.asarray(dataset.train_labels)
  test = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
  partition = data.iid(dataset.train_labels, FLAGS.num_workers)
  shape = (images.shape[1], images.shape[2], images.shape[3])
  networks = [
    models.split(models.make('mlp', shape, dataset.num_classes, seed=seed))
    for seed in range(FLAGS.num_seeds)
  ]
  graphdef = networks[0][0]
  training = byzjax.robust_round(
    models.cross_entropy_loss(graphdef),
    num_workers=FLAGS.num_workers,
    worker=byzjax.worker_momentum(FLAGS.momentum),
    attack=attack,
    byzantine=FLAGS.num_byzantine if attack else 0,
    aggregator=rule,
    optimizer=optax.sgd(FLAGS.learning_rate),
  )

  def one_seed(params, seed):
    data_key, round_key = jax.random.split(jax.random.key(seed))

    def one_round(state, _):
      batch = data.sample_batch(
        images,
        labels,
        partition,
        jax.random.fold_in(data_key, state.step),
        FLAGS.batch_size,
        scale=dataset.scale,
      )
      return training.step(state, batch, round_key)[0], None

    state = training.init(params)
    state, _ = jax.lax.scan(one_round, state, length=FLAGS.rounds)
    return models.evaluate(
      graphdef,
      state.params,
      *test,
      num_classes=dataset.num_classes,
      scale=dataset.scale,
    ).accuracy

  params = jax.tree.map(lambda *x: jnp.stack(x), *(p for _, p in networks))
  seeds = jnp.arange(FLAGS.num_seeds)
  return 100 * np.asarray(jax.jit(jax.vmap(one_seed))(params, seeds))


def table(results: dict[str, dict[str, np.ndarray]]) -> str:
  """Mean accuracy of every rule under every attack; `*` marks the worst."""
  width = max(map(len, results))
  lines = [' '.join([f'{"rule":{width}}', *(f'{a:>14}' for a in ATTACKS)])]
  for rule, row in results.items():
    means = {name: cell.mean() for name, cell in row.items()}
    worst, cells = min(means.values()), []
    for name in ATTACKS:
      mean = means.get(name)
      mark = '*' if mean == worst else ' '
      cells.append('- ' if mean is None else f'{mean:.1f}{mark}')
    lines.append(' '.join([f'{rule:{width}}', *(f'{c:>14}' for c in cells)]))
  return '\n'.join(lines)


def beaten(results: dict[str, dict[str, np.ndarray]]) -> list[str]:
  """The rules on which a search does more harm than both fixed attacks."""
  return [
    rule
    for rule, row in results.items()
    if min(row[name].mean() for name in row if name in SEARCHED)
    < min(row[name].mean() for name in FIXED)
  ]


def main(argv):
  del argv
  folder = pathlib.Path(FLAGS.output_dir)
  try:
    output.check_root(folder, resume=False)
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
    lock.take(folder, resume=False)
  except (OSError, ValueError) as error:
    sys.exit(f'adaptive: {error}')
  results: dict[str, dict[str, np.ndarray]] = {}
  start = time.perf_counter()
  for text in tqdm.tqdm(FLAGS.rules, unit='rules'):
    rule = make_rule(text)
    results[text] = {
      name: accuracies(rule, attack, dataset)
      for name, attack in attacks_on(rule).items()
    }
    # A killed run leaves what it has.
    output.write_rows(
      folder / 'table.csv',
      [
        {
          'rule': done,
          'attack': name,
          'seed': seed,
          'accuracy': f'{accuracy:.2f}',
        }
        for done, row in results.items()
        for name, cell in row.items()
        for seed, accuracy in enumerate(cell)
      ],
    )
  report.heatmap(
    {
      (rule, name): cell
      for rule, row in results.items()
      for name, cell in row.items()
    },
    f'{FLAGS.dataset}, {FLAGS.num_byzantine} of {FLAGS.num_workers} Byzantine',
    folder / 'table.png',
  )
  print(
    f'{FLAGS.dataset}: test accuracy (%) after {FLAGS.rounds} rounds,'
    f' {FLAGS.num_byzantine} of {FLAGS.num_workers} Byzantine, momentum'
    f' {FLAGS.momentum}, {FLAGS.num_seeds} seeds,'
    f' {time.perf_counter() - start:.0f} s'
  )
  print(table(results))
  won = beaten(results)
  print(f'a search beats ALIE and IPM on {len(won)} of {len(results)}: {won}')
  if FLAGS.check and len(won) < 4:
    sys.exit('--check: a search must beat both fixed attacks on four rules')


if __name__ == '__main__':
  app.run(main)
