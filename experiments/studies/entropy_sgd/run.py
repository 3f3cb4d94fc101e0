r"""Entropy-SGD and its kin at equal gradients (Chaudhari et al.).

  python -m experiments.entropy_sgd.run --check                   # digits

Workers send gradients to a server with Nesterov momentum (SGD), or how far the
mean of a walk of L steps is from where it began (Entropy-SGD): at equal numbers
of gradients the latter has L times fewer rounds. Parle and elastic averaging
keep a replica on every worker. Then three of eleven workers attack, before the
mean or a robust rule. Learning rates are the best of a few on a validation
split, for every method.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import data, models
from experiments import report, study
from experiments.cell import split_validation

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 11, 'n.', 1)
flags.DEFINE_integer('num_byzantine', 3, 'f, in the second part.', 1)
flags.DEFINE_integer('gradients', 1200, 'Of every worker, in all.', 1)
flags.DEFINE_integer('batch_size', 12, 'Examples per worker and gradient.', 1)
flags.DEFINE_float('gamma', 0.03, 'Of Entropy-SGD, in the first round.')
flags.DEFINE_float('scoping', 1e-3, 'Growth of gamma in a round.')
flags.DEFINE_list('sgd_rates', '0.003,0.01,0.03,0.1,0.3,1', 'To choose from.')
flags.DEFINE_list('entropy_rates', '0.5,1,2', 'To choose from.')
flags.DEFINE_list('replica_rates', '0.03,0.1,0.3', 'Of Parle and EASGD.')

# Steps between two messages.
STEPS = {'sgd': 1, 'entropy 5': 5, 'entropy 20': 20, 'easgd': 5, 'parle': 20}
# Of cells that do not measure these: all cells have the same columns.
NO_METRICS = dict.fromkeys(
  ('full_loss', 'gradient', 'walk', 'large_batch'), jnp.nan
)
ATTACKS: dict[str, Callable] = {
  'none': lambda: None,
  'sign flip': lambda: byzjax.sign_flip(scale=3.0),
  'alie': lambda: byzjax.alie(z=1.5),
}
RULES: dict[str, Callable] = {
  'mean': lambda f: byzjax.mean(),
  'nnm, median': lambda f: byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f), byzjax.coordinate_median()
  ),
  'median': lambda f: byzjax.coordinate_median(),
}


def entropy(loss_fn, num_steps: int) -> byzjax.GradientEstimator:
  return byzjax.entropy_gradient(
    loss_fn,
    num_steps=num_steps,
    gamma=optax.exponential_decay(FLAGS.gamma, 1, 1 + FLAGS.scoping),
  )


def slices(num_steps: int):
  """Leaves `[n, L B, ...] -> [n, L, B, ...]`."""

  def make_batch(batch):
    return jax.tree.map(
      lambda x: x.reshape(x.shape[0], num_steps, -1, *x.shape[2:]), batch
    )

  return make_batch


def agreement(messages) -> jax.Array:
  """The cosine of the angle between two messages, mean over all pairs."""
  n = FLAGS.num_workers
  rows = jnp.concatenate(
    [x.reshape(n, -1) for x in jax.tree.leaves(messages)], axis=1
  )
  rows /= jnp.linalg.norm(rows, axis=1, keepdims=True)
  return (jnp.sum(rows.sum(axis=0) ** 2) - n) / (n * (n - 1))


def metrics_of(num_steps: int):
  """The loss on all training examples, and how honest messages agree."""

  def make_metrics(setting, params, images, labels, key):
    del images, labels
    loss_fn = models.cross_entropy_loss(setting.graphdef)
    full = models.evaluate(
      setting.graphdef,
      params,
      setting.images,
      setting.labels,
      num_classes=setting.num_classes,
      scale=setting.scale,
    )
    if num_steps == 1:
      return NO_METRICS | {'full_loss': full.loss}
    keys = jax.random.split(key, FLAGS.num_workers + 1)
    batch = data.sample_batch(
      setting.images,
      setting.labels,
      setting.partition,
      keys[0],
      num_steps * FLAGS.batch_size,
      scale=setting.scale,
    )
    first = jax.tree.map(lambda x: x[:, : FLAGS.batch_size], batch)
    gradients = jax.vmap(jax.grad(loss_fn), (None, 0))
    walk = entropy(loss_fn, num_steps)
    _, walks = jax.vmap(lambda *one: walk(*one), (None, 0, 0))(
      params, slices(num_steps)(batch), keys[1:]
    )
    return {
      'full_loss': full.loss,
      'gradient': agreement(gradients(params, first)),
      'walk': agreement(walks),
      'large_batch': agreement(gradients(params, batch)),
    }

  return make_metrics


def cell(method: str, *, part='methods', attack='none', rule='mean'):
  n, f = FLAGS.num_workers, 0 if attack == 'none' else FLAGS.num_byzantine
  num_steps = STEPS[method]

  def make_round(loss_fn, key, setting=None, *, learning_rate):
    del key
    shared = dict(
      num_workers=n,
      aggregator=RULES[rule](FLAGS.num_byzantine),
      attack=ATTACKS[attack](),
      byzantine=f,
    )
    if method == 'sgd':
      optimizer = optax.sgd(learning_rate, momentum=0.9, nesterov=True)
      return byzjax.robust_round(loss_fn, optimizer=optimizer, **shared)
    if setting is None:
      return byzjax.robust_round(
        loss_fn,
        optimizer=optax.sgd(learning_rate),
        value_and_grad=entropy(loss_fn, num_steps),
        **shared,
      )
    shared |= dict(
      num_local_steps=num_steps,
      sampler=data.local_sampler(
        setting.images,
        setting.labels,
        batch_size=FLAGS.batch_size,
        scale=setting.scale,
      ),
    )
    if method == 'easgd':
      optimizer = optax.sgd(learning_rate, momentum=0.9, nesterov=True)
      return byzjax.elastic_averaging(
        loss_fn, local_optimizer=optimizer, **shared
      )
    own = n * FLAGS.batch_size
    return byzjax.parle(
      loss_fn,
      learning_rate=learning_rate,
      batches_per_epoch=max(len(setting.labels) // own, 1),
      **shared,
    )

  is_local = method in ('easgd', 'parle')
  rates = 'replica' if is_local else method.split()[0]
  texts: list[str] = getattr(FLAGS, f'{rates}_rates')
  is_entropy = method.startswith('entropy')
  return study.Cell(
    make_round,
    {'part': part, 'method': method, 'attack': attack, 'rule': rule},
    {'learning_rate': [float(text) for text in texts]},
    n,
    FLAGS.gradients // num_steps,
    FLAGS.batch_size * (1 if is_local else num_steps),
    make_batch=slices(num_steps) if is_entropy else lambda batch: batch,
    is_local=is_local,
    make_metrics=(lambda *_: NO_METRICS)
    if part == 'attacks'
    else metrics_of(num_steps if is_entropy else 1),
  )


def cells() -> list[study.Cell]:
  if FLAGS.gradients % 20:
    raise ValueError(
      'entropy_sgd needs gradients to be a multiple of 20 (the longest walk),'
      f' got {FLAGS.gradients}'
    )
  attacked = [
    (method, attack, rule)
    for method in ('sgd', 'entropy 5')
    for attack in ATTACKS
    for rule in ('mean', 'nnm, median')
  ] + [
    (method, attack, rule)
    for method in ('parle', 'easgd')
    for attack in ('none', 'sign flip')
    for rule in ('mean', 'median')
  ]
  return [cell(method) for method in STEPS] + [
    cell(method, part='attacks', attack=attack, rule=rule)
    for method, attack, rule in attacked
    if (attack, rule) != ('none', 'mean')
  ]


def num_examples() -> int:
  """For training."""
  dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
  return len(split_validation(dataset)[0].train_labels)


def epochs(rows: report.Rows) -> np.ndarray:
  """Effective ones: gradients of all workers, in passes over the examples."""
  examples = [
    row['round'] * STEPS[row['method']] * FLAGS.num_workers * FLAGS.batch_size
    for row in rows
  ]
  return np.array(examples) / num_examples()


def curve(rows: report.Rows, name: str) -> np.ndarray:
  """Of every seed: [num_seeds, evaluations]."""
  seeds = sorted({row['seed'] for row in rows})
  return np.stack(
    [report.column(report.select(rows, seed=seed), name) for seed in seeds]
  )


def rises(rows: report.Rows) -> np.ndarray:
  """By how many decades the training loss goes up, added up; by seed."""
  steps = np.diff(np.log10(curve(rows, 'full_loss')), axis=1)
  return np.maximum(steps, 0).sum(axis=1)


def picture(methods: dict[str, report.Rows], path) -> None:
  """Training loss and test error over effective epochs."""
  figure, panels = plt.subplots(
    1, 2, figsize=(11, 4), layout='constrained', sharex=True
  )
  for name, rows in methods.items():
    seeds = sorted({row['seed'] for row in rows})
    x = epochs(report.select(rows, seed=seeds[0]))
    error = 100 * (1 - curve(rows, 'accuracy'))
    for axes, y in zip(panels, (curve(rows, 'full_loss'), error)):
      (line,) = axes.plot(x, y.mean(axis=0), label=name)
      axes.fill_between(
        x, y.min(axis=0), y.max(axis=0), alpha=0.2, color=line.get_color()
      )
  for axes, label in zip(panels, ('training loss', 'test error (%)')):
    axes.set(xlabel='effective epochs', ylabel=label, yscale='log')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  report.save(figure, path, dpi=100)
  plt.close(figure)


def main(argv):
  del argv
  folder, rows = study.run('entropy_sgd', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  part = report.select(rows, part='methods')
  methods = {
    name: report.tuned(report.select(part, method=name), 'learning_rate')
    for name in STEPS
  }
  picture(methods, folder / 'curves.png')
  last = epochs(methods['sgd'])[-1]
  print(f'Equal gradients: {last:.0f} effective epochs')
  table = {}
  for name, best in methods.items():
    rate = f'{name}, rate {best[0]["learning_rate"]:g}'
    table[rate, 'test accuracy (%)'] = 100 * report.final(best)
    table[rate, '-lg train loss'] = -np.log10(report.final(best, 'full_loss'))
    table[rate, '-lg test loss'] = -np.log10(report.final(best, 'loss'))
    table[rate, 'rises (decades)'] = rises(best)
  print(report.pivot(table, 2))

  def less(name, column):
    values = [report.final(methods[m], column) for m in (name, 'sgd')]
    return 100 * (values[0] - values[1])

  print('\nEntropy-SGD less SGD of the same seed')
  print(
    report.pivot(
      {
        (name, 'accuracy'): less(name, 'accuracy')
        for name in ('entropy 5', 'entropy 20')
      }
    )
  )

  print('\nCosine of two honest messages, mean over the training')
  cosines = {
    (name, column): curve(methods[name], column).mean(axis=1)
    for name in ('entropy 5', 'entropy 20')
    for column in ('gradient', 'walk', 'large_batch')
  }
  print(report.pivot(cosines, 2))

  f, n = FLAGS.num_byzantine, FLAGS.num_workers
  print(f'\nTest accuracy (%), {f} of {n} attack')
  accuracy = {}
  for r in rows:
    label = f'{r["method"]}, {r["rule"]}'
    if (label, r['attack']) not in accuracy and r['method'] != 'entropy 20':
      those = report.select(
        rows, method=r['method'], attack=r['attack'], rule=r['rule']
      )
      best = report.tuned(those, 'learning_rate')
      accuracy[label, r['attack']] = 100 * report.final(best)
  print(report.pivot(accuracy))

  def gain(method, attack, rule):
    robust = accuracy[f'{method}, {rule}', attack]
    return (robust - accuracy[f'{method}, mean', attack]).mean()

  def lost(method, attack, rule):
    harm = (
      accuracy[f'{method}, mean', 'none']
      - (accuracy[f'{method}, {rule}', attack])
    )
    return -harm.mean()

  def decades(name, column):
    values = [report.final(methods[m], column) for m in ('sgd', name)]
    return np.log10(values[0] / values[1]).mean()

  entropies = ('entropy 5', 'entropy 20')
  study.finish(
    [
      study.claim(f'{m}: accuracy less SGD', less(m, 'accuracy').mean(), -0.5)
      for m in entropies
    ]
    + [
      study.claim(
        f'{m}: decades of training loss below SGD', decades(m, 'full_loss'), 0
      )
      for m in entropies
    ]
    + [
      study.claim(
        f'{m}: rises of SGD less its own (1 / 100)',
        100 * (rises(methods['sgd']) - rises(methods[m])).mean(),
        0,
      )
      for m in entropies
    ]
    + [
      study.claim(
        f'{m}: cosine of walks less that of gradients (1 / 100)',
        100 * (cosines[m, 'walk'] - cosines[m, 'gradient']).mean(),
        1,
      )
      for m in entropies
    ]
    + [
      study.claim(
        f'sign flip, {m}: {rule} over the mean', gain(m, 'sign flip', rule), 20
      )
      for m, rule in (
        ('sgd', 'nnm, median'),
        ('entropy 5', 'nnm, median'),
        ('parle', 'median'),
        ('easgd', 'median'),
      )
    ]
    + [
      study.claim(
        f'{attack}, entropy 5, nnm and median: less no attack',
        lost('entropy 5', attack, 'nnm, median'),
        -3,
      )
      for attack in ('sign flip', 'alie')
    ]
  )


if __name__ == '__main__':
  app.run(main)
