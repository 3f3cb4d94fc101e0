r"""Noisy Softmax: a cross entropy that does not saturate (Chen, Deng, Du).

  python -m experiments.noisy_softmax.run --check                 # digits
  python -m experiments.noisy_softmax.run --dataset=mnist --data_dir=FOLDER

Workers hold few examples each, which the model soon knows by heart, and send
gradients of the cross entropy with noise in the target logit, to SGD with
momentum on the workers. First without attackers: how much noise, and what kind
of it. Then two workers attack, before a robust rule, with and without momentum.
All amounts of noise are one program, and differ in nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import data, models, objectives
from experiments import opponents, report, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 10, 'n.', 1)
flags.DEFINE_integer('num_byzantine', 2, 'f, in the second part.', 1)
flags.DEFINE_integer('examples', 20, 'Of each worker.', 1)
flags.DEFINE_integer('rounds', 400, 'Rounds of training.', 1)
flags.DEFINE_integer('batch_size', 10, 'Examples per worker and round.', 1)
flags.DEFINE_list(
  'squares', '0,0.01,0.05,0.1,0.5,1', 'Of alpha; 0 is no noise.'
)
flags.DEFINE_list('attacked_squares', '0,0.01,0.1', 'In the second part.')
flags.DEFINE_float('learning_rate', 0.3, 'Of the server, for all.', 0.0)
flags.DEFINE_float('momentum', 0.9, 'Of the workers.', 0.0, 1.0)

KINDS: dict[str, tuple[Any, Any]] = {  # amplitude and direction of noise
  'annealed': ('annealed', 'lower'),
  'norms': ('norms', 'lower'),
  'constant': ('constant', 'lower'),
  'both': ('annealed', 'both'),
  'raise': ('annealed', 'raise'),
}


def few(partition: data.Partition) -> data.Partition:
  """The first examples of every worker."""
  indices, sizes = map(jnp.asarray, partition)
  return data.Partition(
    indices[:, : FLAGS.examples], jnp.minimum(sizes, FLAGS.examples)
  )


def watched(attack: byzjax.Attack | None) -> byzjax.Attack:
  """The attack; its state ends with the deviation of the honest messages.

  It is `sqrt(mean_i |m_i - m|^2)` over honest i, m their mean.
  """

  def init(params):
    return attack.init(params) if attack else (), jnp.zeros([])

  def apply(messages, state, *, is_byzantine, **knowledge):
    shares = ~is_byzantine / jnp.sum(~is_byzantine)
    apart = messages - (shares @ messages)[None]
    deviation = jnp.sqrt(shares @ jnp.sum(jnp.square(apart), axis=1))
    own, _ = state
    if attack is not None:
      messages, own = attack.apply(
        messages, own, is_byzantine=is_byzantine, **knowledge
      )
    return messages, (own, deviation)

  return byzjax.Attack(init, apply)


def on_training_examples(setting, params, images, labels, key):
  """Without noise, on the examples that workers have."""
  del images, labels, key
  chosen = few(setting.partition).indices.reshape(-1)
  inputs = setting.images[chosen].astype(jnp.float32) / setting.scale
  features, classify = models.features_and_classifier(setting.graphdef)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    classify(params, features(params, inputs)), setting.labels[chosen]
  )
  return {
    'clean_loss': losses.mean(),
    'target_probability': jnp.exp(-losses).mean(),
  }


def cell(
  kind: str,
  *,
  part: str,
  attack: str = 'none',
  rule: str = 'mean',
  squares: list[float],
  momenta: list[float],
) -> study.Cell:
  amplitude, direction = KINDS[kind]

  def make_round(loss_fn, key, setting, square, momentum):
    del loss_fn
    features, _ = models.features_and_classifier(setting.graphdef)
    objective = objectives.noisy_softmax(
      features,
      models.classifier_weights(setting.graphdef),
      alpha=jnp.sqrt(square),
      amplitude=amplitude,
      direction=direction,
    )
    training = byzjax.robust_round(
      objective,
      worker=byzjax.worker_momentum(momentum),
      aggregator=opponents.RULES[rule](FLAGS.num_byzantine),
      optimizer=optax.sgd(FLAGS.learning_rate),
      num_workers=FLAGS.num_workers,
      attack=watched(opponents.ATTACKS[attack]()),
      byzantine=0 if attack == 'none' else FLAGS.num_byzantine,
    )

    def step(state, partition, round_key):
      batch = data.sample_batch(
        setting.images,
        setting.labels,
        few(partition),
        jax.random.fold_in(key, state.step),
        FLAGS.batch_size,
        scale=setting.scale,
      )
      state, info = training.step(state, batch, round_key)
      return state, info._replace(aggregation_error=state.attack[-1])

    return training._replace(step=step)

  return study.Cell(
    make_round,
    {'part': part, 'kind': kind, 'attack': attack, 'rule': rule},
    {'square': squares, 'momentum': momenta},
    FLAGS.num_workers,
    FLAGS.rounds,
    FLAGS.batch_size,
    'random_shards',
    is_local=True,
    make_metrics=on_training_examples,
  )


def cells() -> list[study.Cell]:
  return [
    cell(
      kind,
      part='kinds',
      squares=study.floats('squares'),
      momenta=[FLAGS.momentum],
    )
    for kind in KINDS
  ] + [
    cell(
      'annealed',
      part='attacks',
      attack=attack,
      rule=rule,
      squares=study.floats('attacked_squares'),
      momenta=[0.0, FLAGS.momentum],
    )
    for attack, rule in [
      ('sign flip', 'mean'),
      *((attack, 'nnm, median') for attack in opponents.ATTACKS),
    ]
  ]


def by_square(rows: report.Rows) -> dict[float, report.Rows]:
  """The runs of every amount of noise."""
  squares = dict.fromkeys(row['square'] for row in rows)
  return {square: report.select(rows, square=square) for square in squares}


def early(rows: report.Rows, column: str) -> np.ndarray:
  """Per seed, at a quarter of the rounds."""
  first = [row for row in rows if row['round'] <= FLAGS.rounds // 4]
  return report.final(first, column, tail=1)


def throughout(rows: report.Rows, column: str) -> np.ndarray:
  """Per seed, over all rounds."""
  return report.final(rows, column, tail=len(rows))


def picture(annealed, gains, path) -> None:
  """Target probability over rounds; gain by amount and kind of noise."""
  figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4), layout='constrained'
  )
  for square, rows in annealed.items():
    rounds = sorted({row['round'] for row in rows})
    means = [
      report.column(report.select(rows, round=r), 'target_probability').mean()
      for r in rounds
    ]
    left.plot(rounds, means, label=f'alpha² = {square:g}')
  left.set(xlabel='round', ylabel='target probability, training', ylim=(0, 1))
  positive = [square for square in annealed if square > 0]
  for kind in KINDS:
    at = [gains[kind, square] for square in positive]
    right.errorbar(
      positive,
      [gain.mean() for gain in at],
      [gain.std() / np.sqrt(gain.size) for gain in at],
      marker='.',
      label=kind,
    )
  right.axhline(0, color='gray', linewidth=1)
  right.set(xlabel='alpha²', xscale='log', ylim=(-10, 3))
  right.set(ylabel='gain in test accuracy (points)')
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  report.save(figure, path, dpi=100)
  plt.close(figure)


def main(argv):
  del argv
  folder, rows = study.run('noisy_softmax', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  part = report.select(rows, part='kinds')
  by_kind = {k: by_square(report.select(part, kind=k)) for k in KINDS}
  annealed = by_kind['annealed']
  plain = annealed[0.0]
  accuracy = 100 * report.final(plain)
  gains = {
    (kind, square): 100 * report.final(best) - accuracy
    for kind, of_kind in by_kind.items()
    for square, best in of_kind.items()
  }
  print('Annealed noise: test accuracy, target probability in training')
  table = {}
  for square, best in annealed.items():
    at = f'alpha² {square:g}'
    table[at, 'accuracy'] = 100 * report.final(best)
    table[at, 'gain'] = gains['annealed', square]
    table[at, 'p early, %'] = 100 * early(best, 'target_probability')
    table[at, 'p at end, %'] = 100 * report.final(best, 'target_probability')
  print(report.pivot(table))
  print('\nLosses on training examples at the end, and the deviation of honest')
  print('messages over all rounds')
  table = {}
  for square, best in annealed.items():
    at = f'alpha² {square:g}'
    table[at, 'with noise'] = report.final(best, 'train_loss')
    table[at, 'without'] = report.final(best, 'clean_loss')
    table[at, 'deviation'] = throughout(best, 'aggregation_error')
  print(report.pivot(table, digits=3))

  print('\nKinds of noise: gain in test accuracy over none, points')
  print(
    report.pivot(
      {
        (kind, f'alpha² {square:g}'): gain
        for (kind, square), gain in gains.items()
        if square > 0
      }
    )
  )
  picture(annealed, gains, folder / 'noise.png')

  attacks = report.select(rows, part='attacks')
  accuracies, deviations = {}, {}
  finals: dict[tuple, np.ndarray] = {}
  spreads: dict[tuple, np.ndarray] = {}
  for rule, attack, momentum in dict.fromkeys(
    (r['rule'], r['attack'], r['momentum']) for r in attacks
  ):
    of_attack = by_square(
      report.select(attacks, rule=rule, attack=attack, momentum=momentum)
    )
    row = f'{rule}, {attack}, momentum {momentum:g}'
    for square, best in of_attack.items():
      run = rule, attack, momentum, square
      finals[run] = 100 * report.final(best)
      spreads[run] = throughout(best, 'aggregation_error')
      accuracies[row, f'alpha² {square:g}'] = finals[run]
      deviations[row, f'alpha² {square:g}'] = spreads[run]
    accuracies[row, 'last - first'] = finals[run] - finals[*run[:3], 0.0]
  print(f'\n{FLAGS.num_byzantine} of {FLAGS.num_workers} attack: test accuracy')
  print(report.pivot(accuracies))
  print('\nAnd the deviation of honest messages over all rounds')
  print(report.pivot(deviations, digits=2))

  positive = [square for square in annealed if square > 0]
  small, much = positive[0], max(annealed)
  noise = max(study.floats('attacked_squares'))

  def best_of(kind):
    return max(gains[kind, square].mean() for square in positive)

  def times(column, of=report.final):
    return of(annealed[noise], column).mean() / of(plain, column).mean()

  early_p = [early(annealed[s], 'target_probability') for s in (0.0, noise)]
  rule = 'nnm, median'

  def cost(attack, momentum):
    with_noise, without = (
      finals[rule, attack, momentum, square] for square in (noise, 0.0)
    )
    return (without - with_noise).mean()

  study.finish(
    [
      study.claim(
        f'training loss, alpha² {noise:g}, times that without noise',
        times('train_loss'),
        1.5,
      ),
      study.claim(
        f'target probability at a quarter, none over alpha² {noise:g}',
        100 * (early_p[0] - early_p[1]).mean(),
        5,
      ),
      study.claim(
        f'test accuracy, alpha² {small:g} over none',
        gains['annealed', small].mean(),
        0.2,
      ),
      study.claim(
        f'and over alpha² {much:g}',
        (gains['annealed', small] - gains['annealed', much]).mean(),
        5,
      ),
      study.claim(
        'none over raise, at the best alpha of it', -best_of('raise'), 0
      ),
      *[
        study.claim(f'{kind}, at its best alpha, over none', best_of(kind), 0)
        for kind in ('norms', 'constant')
      ],
      study.claim(
        'annealed over all others, each at its best alpha',
        best_of('annealed') - max(best_of(k) for k in KINDS if k != 'annealed'),
        -0.5,
      ),
      study.claim(
        f'deviation of messages, alpha² {noise:g}, times that without noise',
        times('aggregation_error', throughout),
        1.1,
      ),
      study.claim(
        f'{rule}, alie, alpha² {noise:g}: deviation without over with momentum',
        spreads[rule, 'alie', 0.0, noise].mean()
        / spreads[rule, 'alie', FLAGS.momentum, noise].mean(),
        1.5,
      ),
      study.claim(
        f'{rule}, alie: cost of alpha² {noise:g}, without over with momentum',
        cost('alie', 0.0) - cost('alie', FLAGS.momentum),
        2,
      ),
      *[
        study.claim(
          f'{rule}, {attack}, momentum: alpha² {noise:g} over none',
          -cost(attack, FLAGS.momentum),
          -1,
        )
        for attack in opponents.ATTACKS
      ],
    ]
  )


if __name__ == '__main__':
  app.run(main)
