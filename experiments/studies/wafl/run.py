r"""WAFL: local steps on the worst inputs near the data (Nguyen et al.).

  python -m experiments.wafl.run --check                          # digits
  python -m experiments.wafl.run --dataset=mnist --data_dir=FOLDER

Ten clients, each with a main class, take local steps on the cross entropy
(FedAvg), on that of inputs which ten steps of ascent have moved at a price
gamma (WAFL), or of inputs that PGD has moved inside a box (FedPGD). At the end
the test inputs of a share of clients are moved by PGD. Then two of the clients
attack messages during training, before the mean or a robust rule. The learning
rate is the best of a few on a validation split, at every gamma.
"""

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import data, models, objectives
from experiments import opponents, report, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 10, 'n.', 1)
flags.DEFINE_integer('num_byzantine', 2, 'f, in the second part.', 1)
flags.DEFINE_string('partition', 'main_class(share=0.7)', 'Of the examples.')
flags.DEFINE_integer('rounds', 60, 'Rounds of training.', 1)
flags.DEFINE_integer('local_steps', 10, 'H.', 1)
flags.DEFINE_integer('batch_size', 16, 'Examples per worker and step.', 1)
flags.DEFINE_integer('ascent_steps', 10, 'K, of WAFL.', 0)
flags.DEFINE_list('gammas', '0.1,0.3,1,3,10,1e6', 'Prices of moving an input.')
flags.DEFINE_float('attacked_gamma', 3.0, 'gamma in the second part.', 0.0)
flags.DEFINE_list('learning_rates', '0.1,0.3', 'To choose from.')
flags.DEFINE_float('radius', 0.15, 'Of PGD; pixels are from 0 to 1.', 0.0)
flags.DEFINE_integer('pgd_steps', 10, 'Of PGD, at a quarter of the radius.', 1)

SHARES = (0, 20, 40, 60, 80)  # %, of clients with moved test inputs


def moved(loss_fn, params, batch):
  """The inputs of a batch, moved by PGD inside the box."""
  return objectives.pgd_inputs(
    loss_fn,
    params,
    batch,
    epsilon=FLAGS.radius,
    step_size=FLAGS.radius / 4,
    num_steps=FLAGS.pgd_steps,
    value_range=(0, 1),
  )


def attacked_accuracy(setting, params, images, labels, key):
  """On test inputs that were moved against this very model."""
  del key
  loss_fn = models.cross_entropy_loss(setting.graphdef)
  inputs = images.astype(jnp.float32) / setting.scale
  metrics = models.evaluate(
    setting.graphdef,
    params,
    moved(loss_fn, params, (inputs, labels)),
    labels,
    num_classes=setting.num_classes,
    scale=1.0,
  )
  return {'attacked_accuracy': metrics.accuracy}


def cell(
  method: str, *, part: str = 'methods', attack='none', rule='mean', gammas
) -> study.Cell:
  n, f = FLAGS.num_workers, 0 if attack == 'none' else FLAGS.num_byzantine

  def local_loss(loss_fn, gamma):
    if method == 'wafl':
      return objectives.wasserstein(
        loss_fn, gamma=gamma, num_ascent_steps=FLAGS.ascent_steps
      )
    if method == 'fedpgd':
      return lambda params, batch: loss_fn(
        params, (moved(loss_fn, params, batch), batch[1])
      )
    return loss_fn

  def make_round(loss_fn, key, setting, learning_rate, gamma):
    del key
    return byzjax.fed_avg(
      local_loss(loss_fn, gamma),
      learning_rate=learning_rate,
      num_local_steps=FLAGS.local_steps,
      num_workers=n,
      aggregator=opponents.RULES[rule](FLAGS.num_byzantine),
      attack=opponents.ATTACKS[attack](),
      byzantine=f,
      sampler=data.local_sampler(
        setting.images,
        setting.labels,
        batch_size=FLAGS.batch_size,
        scale=setting.scale,
      ),
    )

  if method != 'wafl':
    gammas = [0.0]  # A column that only WAFL has a use for.
  return study.Cell(
    make_round,
    {'part': part, 'method': method, 'attack': attack, 'rule': rule},
    {'learning_rate': study.floats('learning_rates'), 'gamma': gammas},
    n,
    FLAGS.rounds,
    FLAGS.batch_size,
    FLAGS.partition,
    is_local=True,
    make_metrics=attacked_accuracy,
  )


def cells() -> list[study.Cell]:
  gammas = study.floats('gammas')
  return [
    cell(method, gammas=gammas) for method in ('fedavg', 'fedpgd', 'wafl')
  ] + [
    cell(
      method,
      part='attacks',
      attack=attack,
      rule=rule,
      gammas=[FLAGS.attacked_gamma],
    )
    for method in ('fedavg', 'wafl')
    for attack in opponents.ATTACKS
    for rule in opponents.RULES
    if (attack, rule) != ('none', 'mean')
  ]


def accuracies(rows: report.Rows) -> dict[str, np.ndarray]:
  """Accuracy (%) on clean and moved inputs, per seed, at the best rate."""
  best = report.tuned(rows, 'learning_rate')
  return {
    'clean': 100 * report.final(best),
    'moved': 100 * report.final(best, 'attacked_accuracy'),
  }


def pooled(result: dict[str, np.ndarray], share: float) -> np.ndarray:
  """Over clients of which a share (%) has moved inputs.

  All clients are tested on the same examples, so that it does not matter which
  of them are attacked, and this is the mean over all choices.
  """
  return (1 - share / 100) * result['clean'] + share / 100 * result['moved']


def drop(result: dict[str, np.ndarray]) -> float:
  """What attacks on the largest share of clients cost."""
  return (pooled(result, SHARES[0]) - pooled(result, SHARES[-1])).mean()


def picture(methods: dict[str, dict], gammas, path) -> None:
  """Accuracy against the share of attacked clients, and against gamma."""
  figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4), layout='constrained', sharey=True
  )
  for name, result in methods.items():
    style = '-' if name.startswith('wafl') else '--'
    means = [pooled(result, share).mean() for share in SHARES]
    left.plot(SHARES, means, style, marker='.', label=name)
  left.set(xlabel='clients with moved test inputs (%)')
  left.set(ylabel='pooled test accuracy (%)', ylim=(0, 100))
  for share in SHARES[::2]:
    at = [pooled(methods[name_of(gamma)], share) for gamma in gammas]
    right.errorbar(
      gammas,
      [x.mean() for x in at],
      [x.std() for x in at],
      marker='.',
      label=f'{share} % attacked',
    )
  right.set(xlabel='gamma', xscale='log')
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  report.save(figure, path, dpi=100)
  plt.close(figure)


def name_of(gamma: float) -> str:
  return f'wafl, gamma {gamma:g}'


def largest_difference(rows: report.Rows, gamma: float) -> float:
  """Between WAFL and FedAvg, over all rates, seeds and evaluations; points."""
  fedavg = report.select(rows, part='methods', method='fedavg')
  wafl = report.select(rows, part='methods', method='wafl', gamma=gamma)
  return 100 * max(
    np.abs(report.column(fedavg, name) - report.column(wafl, name)).max()
    for name in ('accuracy', 'attacked_accuracy')
  )


def main(argv):
  del argv
  folder, rows = study.run('wafl', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  gammas = sorted(study.floats('gammas'))
  part = report.select(rows, part='methods')
  methods = {
    name: accuracies(report.select(part, method=name))
    for name in ('fedavg', 'fedpgd')
  }
  wafl = report.select(part, method='wafl')
  for gamma in gammas:
    methods[name_of(gamma)] = accuracies(report.select(wafl, gamma=gamma))
  print('Pooled test accuracy (%) by the share of clients that are attacked')
  print(
    report.pivot(
      {
        (name, f'{share} %'): pooled(result, share)
        for name, result in methods.items()
        for share in SHARES
      }
    )
  )
  picture(methods, gammas, folder / 'accuracy.png')

  at_40 = {
    gamma: pooled(methods[name_of(gamma)], 40).mean() for gamma in gammas
  }
  best = max(at_40, key=lambda gamma: at_40[gamma])
  print(f'\nGamma {best:g}, the best at 40 %, less others of the same seed')
  print(
    report.pivot(
      {
        (f'less {other}', f'{share} %'): pooled(methods[name_of(best)], share)
        - pooled(methods[other], share)
        for other in ('fedavg', 'fedpgd')
        for share in SHARES
      }
    )
  )

  f, n = FLAGS.num_byzantine, FLAGS.num_workers
  print(f'\n{f} of {n} attack in training; gamma {FLAGS.attacked_gamma:g}')
  table, gains = {}, {}
  part = report.select(rows, part='attacks')
  for rule, attack in dict.fromkeys((r['rule'], r['attack']) for r in part):
    both = report.select(part, rule=rule, attack=attack)
    results = {
      method: accuracies(report.select(both, method=method))
      for method in ('fedavg', 'wafl')
    }
    at = f'{rule}, {attack}'
    for method, result in results.items():
      for inputs, accuracy in result.items():
        table[at, f'{method}, {inputs}'] = accuracy
    gains[rule, attack] = results['wafl']['moved'] - results['fedavg']['moved']
    table[at, 'gain, moved'] = gains[rule, attack]
  print(report.pivot(table))

  def cost(gamma):
    clean = methods['fedavg']['clean'] - methods[name_of(gamma)]['clean']
    return clean.mean()

  study.finish(
    [
      study.claim('0 to 80 % cost FedAvg', drop(methods['fedavg']), 20),
      study.claim(
        f'and WAFL, gamma {best:g}, less by',
        drop(methods['fedavg']) - drop(methods[name_of(best)]),
        10,
      ),
      study.claim(f'its clean cost, gamma {best:g}', -cost(best), -5),
      study.claim(
        f'clean cost, gamma {gammas[0]:g} over gamma {best:g}',
        cost(gammas[0]) - cost(best),
        5,
      ),
      study.claim(
        '40 %: the best gamma over the smallest and the largest',
        at_40[best] - max(at_40[gammas[0]], at_40[gammas[-1]]),
        2,
      ),
      study.claim(
        f'gamma {gammas[-1]:g} from FedAvg at any evaluation',
        -largest_difference(rows, gammas[-1]),
        -0.5,
      ),
      *[
        study.claim(
          f'moved inputs, nnm and median, {attack}: WAFL over FedAvg',
          gains['nnm, median', attack].mean(),
          5,
        )
        for attack in opponents.ATTACKS
      ],
    ]
  )


if __name__ == '__main__':
  app.run(main)
