r"""tpSGD: layers that learn from local targets (Lomnitz et al.).

  python -m experiments.tpsgd.run --check                          # digits
  python -m experiments.tpsgd.run --dataset=mnist --data_dir=FOLDER

Networks with tanh learn by backpropagation (bp), by target projection with the
residuals l2 and l1, and by direct random target projection (drtp), all by SGD
with momentum; or only their last layer learns (frozen). First perceptrons of
several depths, a convolutional and a recurrent network, each with one worker.
Then two of ten workers attack, before the mean or a robust rule. The learning
rate, and what hidden layers have of it, are the best of a few on a validation
split, for every network and method, and under every attack.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx
from matplotlib import pyplot as plt

import byzjax
from byzjax import data, models
from experiments import report, study

FLAGS = flags.FLAGS
flags.DEFINE_list('depths', '1,2,4,8', 'Hidden layers of the perceptrons.')
flags.DEFINE_integer('width', 64, 'Of hidden layers.', 1)
flags.DEFINE_integer('rounds', 400, 'Steps of training, of one worker.', 1)
flags.DEFINE_integer('batch_size', 64, 'Examples per step, of one worker.', 1)
flags.DEFINE_list('learning_rates', '0.1,0.3,1', 'To choose from.')
flags.DEFINE_list('shares', '0.01,0.1,1', 'Of them, for hidden layers.')
flags.DEFINE_float('momentum', 0.9, 'Decay of the momentum of a worker.')
flags.DEFINE_float('scale', 0.5, 'Of the random signs of l2 and l1.', 0.0)
flags.DEFINE_integer('num_workers', 10, 'n, in the second part.', 1)
flags.DEFINE_integer('num_byzantine', 2, 'f, in the second part.', 1)
flags.DEFINE_integer('attacked_rounds', 200, 'In the second part.', 1)
flags.DEFINE_integer('attacked_batch_size', 16, 'In the second part.', 1)

METHODS = ('bp', 'l2', 'l1', 'drtp', 'frozen')
ATTACKED = 'mlp 2'
ATTACKED_METHODS = METHODS[:3]
ATTACKS: dict[str, Callable] = {
  'none': lambda: None,
  'sign flip': lambda: byzjax.sign_flip(scale=10.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0 for 2 of 10.
}
RULES: dict[str, Callable] = {
  'mean': lambda f: byzjax.mean(),
  'nnm, median': lambda f: byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f), byzjax.coordinate_median()
  ),
}


def network(name: str, shape, num_classes: int, seed: int) -> nnx.Module:
  kind, *depth = name.split()
  rngs = nnx.Rngs(seed)
  if kind == 'cnn':
    return models.CNN(shape, num_classes, activation=jnp.tanh, rngs=rngs)
  if kind == 'rnn':
    steps = math.prod(shape[1:])  # A row of the image.
    return models.RNN((steps, FLAGS.width, FLAGS.width, num_classes), rngs=rngs)
  hidden = [FLAGS.width] * int(depth[0])
  sizes = (math.prod(shape), *hidden, num_classes)
  return models.MLP(sizes, activation=jnp.tanh, rngs=rngs)


def stages(name: str):
  dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
  shape = dataset.train_images.shape[1:]
  model = nnx.eval_shape(lambda: network(name, shape, dataset.num_classes, 0))
  return models.stages(models.split(model)[0]), dataset.num_classes


def estimator(method: str, name: str):
  """What stands for the gradient; None is the gradient."""
  if method in ('bp', 'frozen'):
    return None
  layers, num_classes = stages(name)
  is_drtp = method == 'drtp'
  return byzjax.target_projection(
    layers,
    num_classes=num_classes,
    projection_key=jax.random.key(0),
    residual=method,
    projection='he_uniform' if is_drtp else 'signs',
    scale=1.0 if is_drtp else FLAGS.scale,
  )


def optimizer(name: str, learning_rate, share) -> optax.GradientTransformation:
  """SGD with a rate of its own for the last layer."""
  last = stages(name)[0][-1]

  def labels(params):
    leaves, treedef = jax.tree.flatten(params)
    places = jax.tree.unflatten(treedef, range(len(leaves)))
    outer = jax.tree.leaves(last.owns(places))
    names = ['last' if i in outer else 'hidden' for i in range(len(leaves))]
    return jax.tree.unflatten(treedef, names)

  rates = {'last': learning_rate, 'hidden': share * learning_rate}
  return optax.partition({k: optax.sgd(v) for k, v in rates.items()}, labels)


def cell(name: str, method: str, attack='', rule='mean') -> study.Cell:
  n, f = (FLAGS.num_workers, FLAGS.num_byzantine) if attack else (1, 0)

  def make_round(loss_fn, key, learning_rate, share):
    del key
    return byzjax.robust_round(
      loss_fn,
      value_and_grad=estimator(method, name),
      num_workers=n,
      worker=byzjax.worker_momentum(FLAGS.momentum),
      aggregator=RULES[rule](f),
      optimizer=optimizer(name, learning_rate, share),
      attack=ATTACKS[attack]() if attack else None,
      byzantine=0 if attack in ('', 'none') else f,
    )

  return study.Cell(
    make_round,
    {
      'part': 'attacks' if attack else 'networks',
      'network': name,
      'method': method,
      'attack': attack or 'none',
      'rule': rule,
    },
    {
      'learning_rate': study.floats('learning_rates'),
      'share': [0.0] if method == 'frozen' else study.floats('shares'),
    },
    n,
    FLAGS.attacked_rounds if attack else FLAGS.rounds,
    FLAGS.attacked_batch_size if attack else FLAGS.batch_size,
    make_model=functools.partial(network, name),
  )


def perceptrons() -> list[str]:
  return [f'mlp {depth}' for depth in FLAGS.depths]


def cells() -> list[study.Cell]:
  return [
    cell(name, method)
    for name in (*perceptrons(), 'cnn', 'rnn')
    for method in METHODS
  ] + [
    cell(ATTACKED, method, attack, rule)
    for method in ATTACKED_METHODS
    for attack in ATTACKS
    for rule in RULES
    if (attack, rule) != ('none', 'mean')
  ]


def accuracy(rows: report.Rows) -> np.ndarray:
  """Test accuracy (%) per seed at the best learning rate and share."""
  both = [row | {'rates': (row['learning_rate'], row['share'])} for row in rows]
  return 100 * report.final(report.tuned(both, 'rates'))


def picture(table, depths, attacks, path) -> None:
  """Accuracy against depth, and under attacks."""
  figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4), layout='constrained'
  )
  for method in METHODS:
    at = [table[f'mlp {depth}', method] for depth in depths]
    means, spread = [x.mean() for x in at], [x.std() for x in at]
    left.errorbar(depths, means, spread, marker='.', label=method)
  for i, method in enumerate(ATTACKED_METHODS):
    heights = [attacks[row, method].mean() for row in rows_of(attacks)]
    places = np.arange(len(heights)) + (i - 1) / 4
    right.bar(places, heights, 0.25, label=method)
  left.set(xlabel='hidden layers', ylabel='test accuracy (%)', xticks=depths)
  right.set(ylabel='test accuracy (%)', ylim=(0, 100))
  names = [row.replace('nnm, median', 'nnm') for row in rows_of(attacks)]
  right.set_xticks(range(len(names)), names, rotation=15)
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  report.save(figure, path, dpi=100)
  plt.close(figure)


def rows_of(table) -> list[str]:
  return list(dict.fromkeys(row for row, _ in table))


def main(argv):
  del argv
  folder, rows = study.run('tpsgd', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  table = {
    (name, method): accuracy(
      report.select(rows, part='networks', network=name, method=method)
    )
    for name in (*perceptrons(), 'cnn', 'rnn')
    for method in METHODS
  }
  gaps = {
    (name, f'bp less {method}'): table[name, 'bp'] - table[name, method]
    for name in rows_of(table)
    for method in METHODS[1:-1]
  }
  print('Test accuracy (%), and how far behind backpropagation, paired by seed')
  print(report.pivot(table | gaps))

  part = report.select(rows, part='attacks')
  attacks = {
    (f'{attack}, {rule}', method): accuracy(
      report.select(part, attack=attack, rule=rule, method=method)
    )
    for attack, rule in dict.fromkeys((r['attack'], r['rule']) for r in part)
    for method in ATTACKED_METHODS
  }
  f, n = FLAGS.num_byzantine, FLAGS.num_workers
  print(f'\n{f} of {n} attack, {ATTACKED}')
  print(report.pivot(attacks))
  depths = [int(depth) for depth in FLAGS.depths]
  picture(table, depths, attacks, folder / 'accuracy.png')

  def gap(name, method):
    return gaps[name, f'bp less {method}'].mean()

  shallow, deep = perceptrons()[0], perceptrons()[-1]
  robust = {
    (attack, method): attacks[f'{attack}, nnm, median', method].mean()
    for attack in ATTACKS
    for method in ATTACKED_METHODS
  }
  study.finish(
    [
      *[
        study.claim(f'{name}: {method} over bp', -gap(name, method), -5)
        for name in (shallow, 'cnn', 'rnn')
        for method in ('l2', 'l1')
      ],
      *[
        study.claim(
          f'{method}: gap at {deep} over gap at {shallow}',
          gap(deep, method) - gap(shallow, method),
          0,
        )
        for method in ('l2', 'l1')
      ],
      study.claim(
        f'{shallow}: distance of l1 and l2',
        -abs(gap(shallow, 'l1') - gap(shallow, 'l2')),
        -3,
      ),
      study.claim(
        f'{shallow}: l2 over drtp', gap(shallow, 'drtp') - gap(shallow, 'l2'), 0
      ),
      *[
        study.claim(
          f'{name}: l2 over frozen',
          (table[name, 'l2'] - table[name, 'frozen']).mean(),
          0,
        )
        for name in (shallow, deep, 'cnn', 'rnn')
      ],
      *[
        study.claim(
          f'{method}, {attack}, nnm and median, over no attack',
          robust[attack, method] - robust['none', method],
          -5,
        )
        for attack in ('sign flip', 'alie')
        for method in ('l2', 'l1')
      ],
      *[
        study.claim(
          f'{method}, sign flip: nnm and median over the mean',
          robust['sign flip', method]
          - attacks['sign flip, mean', method].mean(),
          20,
        )
        for method in ('l2', 'l1')
      ],
    ]
  )


if __name__ == '__main__':
  app.run(main)
