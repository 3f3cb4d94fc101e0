r"""Directional sharpness and coordinate-wise clipping (Pan & Li).

  python -m experiments.sharpness.run --check
  python -m experiments.sharpness.run --text=tiny_shakespeare --data_dir=FOLDER

A small transformer learns the next character of a text, and a small CNN
handwritten digits. Along one trajectory all optimizers see the same gradients,
and the curvature of the loss along the step that each would take is measured;
then along gradients whose largest coordinates are cut, more and more of them.
Each optimizer trains the transformer by itself, too, and at last some workers
attack.
"""

import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt

from experiments import report, study
from experiments.sharpness import measure, tasks
from experiments.sharpness.measure import METHODS, Cell

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(tasks)
flags.adopt_module_key_flags(measure)

# Trajectories: task, method and rate; the slow rate is the published one.
BASES = {
  'text, sgd': ('transformer', 'sgd', 0.3),
  'text, adam': ('transformer', 'adam', 3e-3),
  'slow, sgd': ('transformer', 'sgd', 2e-4),
  'slow, adam': ('transformer', 'adam', 2e-4),
  'cnn, sgd': ('cnn', 'sgd', 0.1),
  'cnn, adam': ('cnn', 'adam', 3e-3),
}
RATES = {
  'sgd': [0.3, 1.0, 3.0],
  'sgd, clip 10%': [0.3, 1.0, 3.0],
  'adam': [1e-3, 3e-3, 1e-2],
  'adam, clip 50%': [3e-3, 1e-2, 3e-2],
}
ATTACKED_RATE = 1.0
FLIP = 'sign flip'
RULES = ('mean', 'nnm, median')
WHOLE = 'p = 0'  # The gradient itself.


def cells() -> list[Cell]:
  return [
    *[Cell('along', task, name, [rate]) for task, name, rate in BASES.values()],
    *[Cell('training', 'transformer', *item) for item in RATES.items()],
    *[
      Cell('attack', 'transformer', name, [ATTACKED_RATE], FLIP, rule)
      for name in ('sgd', 'sgd, clip 10%')
      for rule in RULES
    ],
  ]


def by_direction(rows: report.Rows, column: str) -> dict[str, np.ndarray]:
  """A column of a trajectory, [seeds, steps] for every direction."""
  return {
    name: report.column(report.select(rows, candidate=name), column).reshape(
      -1, len(FLAGS.steps)
    )
    for name in measure.names()
  }


def typical(values: np.ndarray) -> np.ndarray:
  """The median over steps, per seed."""
  return np.median(values, axis=1)


def fall(sharpness: dict, name: str, of: str = 'sgd') -> float:
  """How many times less sharp, in the median over seeds and steps."""
  return float(1 / np.median(sharpness[name] / sharpness[of]))


def picture(along, curves, path) -> None:
  """Sharpness by step, sharpness by what is cut, and training losses."""
  figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(14, 4), layout='constrained'
  )
  steps = [int(step) for step in FLAGS.steps]
  base = 'text, sgd'
  for i, name in enumerate(METHODS):
    middle_of = np.median(along[base][name], axis=0)
    left.plot(steps, middle_of, f'C{i}', marker='.', label=name)
  left.set(xscale='log', yscale='log', xlabel='step', title=base)
  left.set(ylabel='sharpness over that of SGD')
  percent = [100 * p for p in measure.cuts().values()]
  for at, ratios in along.items():
    shown = [np.median(ratios[p] / ratios[WHOLE]) for p in measure.cuts()]
    middle.plot(percent, shown, marker='.', label=at)
  middle.set_xscale('symlog', linthresh=0.1)
  middle.set(xlabel='clipped coordinates of the gradient (%)')
  middle.set(ylabel='sharpness over that of the gradient', ylim=(0, None))
  for name, (x, losses) in curves.items():
    color = f'C{list(METHODS).index(name)}'
    right.plot(x, losses.mean(axis=0), color, label=name)
    right.fill_between(
      x, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.2
    )
  right.set(
    xlabel='step', ylabel='training loss', title='each at its best rate'
  )
  for axes in (left, middle, right):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
  report.save(figure, path, dpi=90)
  plt.close(figure)


def ends(rows: report.Rows) -> dict[float, np.ndarray]:
  """The loss at the end by rate, per seed; what diverged is infinite."""
  losses = {}
  for rate in dict.fromkeys(row['rate'] for row in rows):
    loss = report.final(report.select(rows, rate=rate), 'loss', tail=1)
    losses[rate] = np.where(np.isfinite(loss), loss, np.inf)
  return losses


def best_rate(losses: dict[float, np.ndarray]) -> float:
  return min(losses, key=lambda rate: losses[rate].mean())


def main(argv):
  del argv
  folder, rows = study.run('sharpness', cells, measure.run_cell)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  along, of_sgd, gains = {}, {}, {}
  held: dict[tuple[str, str], np.ndarray] = {}
  for at, (task, method, rate) in BASES.items():
    mine = report.select(
      rows, part='along', task=task, method=method, rate=rate
    )
    sharpness = by_direction(mine, 'sharpness')
    reference = np.abs(sharpness['sgd'])
    along[at] = {name: s / reference for name, s in sharpness.items()}
    of_sgd[at] = reference
    gains[at] = by_direction(mine, 'gain')
    shares = by_direction(mine, 'held')
    held |= {(p, at): 100 * typical(shares[p]) for p in measure.cuts()}

  print('Sharpness of the next step over that of SGD, median over steps')
  print(
    report.pivot(
      {
        (name, at): typical(ratios[name])
        for at, ratios in along.items()
        for name in METHODS
      }
      | {('sgd itself', at): typical(values) for at, values in of_sgd.items()},
      digits=2,
    )
  )
  print('\nBest decrease of the loss along it, thousandths, median over steps')
  print(
    report.pivot(
      {
        (name, at): 1000 * typical(values[name])
        for at, values in gains.items()
        for name in METHODS
      }
    )
  )
  print('\nSharpness of the clipped gradient over that of the gradient')
  print(
    report.pivot(
      {
        (p, at): typical(ratios[p] / ratios[WHOLE])
        for at, ratios in along.items()
        for p in measure.cuts()
      },
      digits=2,
    )
  )
  print('\nShare of |g|^2 that the largest coordinates hold (%)')
  print(report.pivot(held))

  training = report.select(rows, part='training')
  by_rate = {name: ends(report.select(training, method=name)) for name in RATES}
  print('\nTraining loss of the transformer at the end, by rate')
  print(
    report.pivot(
      {
        (name, f'{rate:g}'): loss
        for name, losses in by_rate.items()
        for rate, loss in sorted(losses.items())
      },
      digits=3,
    )
  )
  best = {name: best_rate(losses) for name, losses in by_rate.items()}
  loss = {name: by_rate[name][best[name]] for name in RATES}
  curves = {}
  for name, rate in best.items():
    mine = report.select(training, method=name, rate=rate)
    curves[name] = (
      report.column(mine, 'step')[: FLAGS.num_evals],
      report.column(mine, 'loss').reshape(-1, FLAGS.num_evals),
    )
  picture(along, curves, folder / 'sharpness.png')

  print(
    f'\nTraining loss at rate {ATTACKED_RATE:g}, {FLAGS.num_byzantine} of'
    f' {FLAGS.num_workers} workers flip signs'
  )
  attacked = {}
  for cell in cells():
    if cell.part == 'attack':
      mine = report.select(
        rows, part='attack', method=cell.method, rule=cell.rule
      )
      attacked[cell.method, cell.rule] = ends(mine)[ATTACKED_RATE]
  print(report.pivot(attacked, digits=3))
  text = [at for at in along if at.startswith('text')]  # At tuned rates.
  images = [at for at in along if at.startswith('cnn')]

  def least(name, places=text, of='sgd'):
    return min(fall(along[at], name, of) for at in places)

  print('\nTimes that sharpness falls are medians over seeds and steps, the')
  print('least of the trajectories but the slow ones; losses are in hundredths')
  study.finish(
    [
      study.claim('transformer: from SGD to Adam', least('adam'), 10),
      study.claim(
        'transformer: from SGD to SGD, clip 10%', least('sgd, clip 10%'), 2
      ),
      study.claim(
        'the fall from SGD to Adam on the transformer over that on the CNN',
        least('adam') / least('adam', images),
        2,
      ),
      study.claim(
        'transformer: by clipping 1 % of the gradient',
        least('p = .01', text, WHOLE),
        1.25,
      ),
      study.claim(
        'transformer: by clipping 10 % of the gradient',
        least('p = .1', text, WHOLE),
        1.5,
      ),
      study.claim(
        'transformer: by clipping, of Adam',
        least('adam, clip 50%', of='adam'),
        1,
      ),
      study.claim(
        'loss of SGD less SGD, clip 10%',
        100 * (loss['sgd'] - loss['sgd, clip 10%']).mean(),
        0,
      ),
      study.claim(
        'loss of SGD, clip 10% less Adam',
        100 * (loss['sgd, clip 10%'] - loss['adam']).mean(),
        0,
      ),
      study.claim(
        'best rate of SGD, clip 10% over that of SGD',
        best['sgd, clip 10%'] / best['sgd'],
        3,
      ),
      study.claim(
        'loss of Adam less Adam, clip 50%',
        100 * (loss['adam'] - loss['adam, clip 50%']).mean(),
        0,
      ),
      study.claim(
        'loss behind the mean less nnm and median, attacked, SGD, clip 10%',
        100
        * (
          attacked['sgd, clip 10%', 'mean']
          - attacked['sgd, clip 10%', 'nnm, median']
        ).mean(),
        20,
      ),
    ]
  )


if __name__ == '__main__':
  app.run(main)
