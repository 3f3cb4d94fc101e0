r"""Local SGD with a diagonal preconditioner (SAVIC, Chezhegov et al.).

  python -m experiments.savic.run --check                         # digits
  python -m experiments.savic.run --dataset=mnist --data_dir=FOLDER

Ten workers, each with one main class, take ten local steps between averages.
Steps are divided by a diagonal that moves only at communication: one for all
workers (global), from their averaged statistics, or each worker's own (local).
The problem is made ill-conditioned by a factor of 10^U(-2, 2) for every pixel;
without factors it is the control. A global diagonal is a second channel: under
attack, two of ten send a negative multiple of the honest mean in both: one that
makes the mean of all zero, or a huge one. The median guards neither channel,
the messages alone, or both; a lower bound on the diagonal limits the damage.
Learning rates, bounds and multiples are a grid in one program per cell; rates
and bounds are chosen on validation data.
"""

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import data
from experiments import report, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 10, 'M.', 1)
flags.DEFINE_integer('num_byzantine', 2, 'f, of the attacks.', 1)
flags.DEFINE_integer('rounds', 40, 'Rounds of training.', 1)
flags.DEFINE_integer('local_steps', 10, 'H.', 1)
flags.DEFINE_integer('batch_size', 16, 'Examples per worker and step.', 1)
flags.DEFINE_float('share', 0.5, 'Of the main class at a worker.', 0.0, 1.0)
flags.DEFINE_float('decay', 0.8, 'beta of the diagonal.', 0.0, 1.0)
flags.DEFINE_list('lower_bounds', '1e-3,1e-1', 'alpha, low and high.')

# By powers of ten. Plain steps need the wider range.
RATES = [10.0 ** (k / 2) for k in range(-7, 0)]
PLAIN_RATES = [10.0 ** (k / 2) for k in range(-10, 2)]
METHODS = [
  ('local SGD', '-'),
  *((m, s) for m in ('adam', 'rmsprop', 'oasis') for s in ('global', 'local')),
]
# Method, scope, and who is guarded by the median.
DEFENCES = [
  ('local SGD', '-', 'none'),
  ('local SGD', '-', 'all'),
  ('adam', 'global', 'none'),
  ('adam', 'global', 'messages'),
  ('adam', 'global', 'all'),
  ('adam', 'local', 'all'),
]


def attacks() -> dict[str, float]:
  """The multiple of each attack; 0 stands for no attackers."""
  n, f = FLAGS.num_workers, FLAGS.num_byzantine
  # Of the first, the mean of all rows is zero.
  return {'none': 0.0, 'down': (n - f) / f, 'up': 1e4}


def ill_conditioned(images, partition, seed):
  """Pixels times 10^U(-2, 2), the same factors for all sets of a seed."""
  del partition
  exponents = np.random.default_rng(seed).uniform(-2, 2, images.shape[1:])
  return (images * 10**exponents).astype(np.float32)


def cell(problem, method, scope, guarded='none') -> study.Cell:
  n, f = FLAGS.num_workers, FLAGS.num_byzantine
  scaled = method != 'local SGD'
  attacked = problem == 'ill' and (method, scope, guarded) in DEFENCES

  def make_round(loss_fn, key, setting, learning_rate, lower_bound, multiple):
    del key
    preconditioner = None
    if scaled:
      preconditioner = byzjax.scale_by_preconditioner(
        method, decay=FLAGS.decay, lower_bound=lower_bound
      )
    median, mean = byzjax.coordinate_median(), byzjax.mean()
    side = None
    if scope == 'global':
      side = median if guarded == 'all' else mean
    return byzjax.fed_avg(
      loss_fn,
      learning_rate=learning_rate,
      num_local_steps=FLAGS.local_steps,
      num_workers=n,
      preconditioner=preconditioner,
      preconditioner_scope='local' if scope == 'local' else 'global',
      aggregator=mean if guarded == 'none' else median,
      side_aggregator=side,
      attack=byzjax.sign_flip(scale=multiple),
      byzantine=lambda step: jnp.arange(n) < jnp.where(multiple > 0, f, 0),
      sampler=data.local_sampler(
        setting.images,
        setting.labels,
        batch_size=FLAGS.batch_size,
        scale=setting.scale,
      ),
    )

  return study.Cell(
    make_round,
    {
      'problem': problem,
      'method': method,
      'scope': scope,
      'guarded': guarded,
    },
    {
      'learning_rate': RATES if scaled else PLAIN_RATES,
      'lower_bound': bounds() if scaled else [1.0],
      'multiple': list(attacks().values()) if attacked else [0.0],
    },
    n,
    FLAGS.rounds,
    FLAGS.batch_size,
    f'main_class(share={FLAGS.share})',
    is_local=True,
    make_images=ill_conditioned if problem == 'ill' else None,
  )


def bounds() -> list[float]:
  return study.floats('lower_bounds')


def cells() -> list[study.Cell]:
  return [
    *(cell(p, *method) for p in ('ill', 'even') for method in METHODS),
    *(cell('ill', *defence) for defence in DEFENCES if defence[2] != 'none'),
  ]


def tuned(rows: report.Rows) -> report.Rows:
  """Of the learning rate and bound that are best on the validation split."""
  by_bound = [
    report.tuned(report.select(rows, lower_bound=bound), 'learning_rate')
    for bound in dict.fromkeys(row['lower_bound'] for row in rows)
  ]
  return report.tuned([r for runs in by_bound for r in runs], 'lower_bound')


def rounds_to(rows: report.Rows, losses: np.ndarray) -> np.ndarray:
  """Per seed, the first round with this training loss; the last if none."""
  first = []
  for seed, loss in enumerate(losses):
    own = report.select(rows, seed=seed)
    reached = [r['round'] for r in own if r['train_loss'] <= loss]
    first.append(min(reached, default=FLAGS.rounds))
  return np.array(first)


def label(method: str, scope: str) -> str:
  return method if scope == '-' else f'{method}, {scope}'


def picture(rows: report.Rows, path) -> None:
  figure, panels = plt.subplots(
    1, 2, figsize=(10, 4), layout='constrained', sharey=True
  )
  titles = {'ill': 'pixels times 10^U(-2, 2)', 'even': 'pixels as they are'}
  for axes, (problem, title) in zip(panels, titles.items()):
    for method, scope in METHODS:
      best = tuned(of(rows, problem, method, scope))
      rounds = sorted({row['round'] for row in best})
      loss = [
        np.mean([r['train_loss'] for r in report.select(best, round=k)])
        for k in rounds
      ]
      style = {'-': 'k-', 'global': '-', 'local': '--'}[scope]
      axes.semilogy(rounds, loss, style, label=label(method, scope))
    axes.set(title=title, xlabel='round')
    axes.grid(alpha=0.3)
  panels[0].set_ylabel('training loss')
  panels[0].legend(fontsize=7)
  report.save(figure, path, dpi=100)
  plt.close(figure)


def of(rows, problem, method, scope, guarded='none', attack='none'):
  return report.select(
    rows,
    problem=problem,
    method=method,
    scope=scope,
    guarded=guarded,
    multiple=attacks()[attack],
  )


def main(argv):
  del argv
  folder, rows = study.run('savic', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  accuracy, loss, rounds = {}, {}, {}
  for problem in ('ill', 'even'):
    base = tuned(of(rows, problem, 'local SGD', '-'))
    goal = report.final(base, 'train_loss')
    for method, scope in METHODS:
      best = tuned(of(rows, problem, method, scope))
      at = label(method, scope), problem
      accuracy[at] = 100 * report.final(best)
      loss[at] = report.final(best, 'train_loss')
      rounds[at] = rounds_to(best, goal)
      print(
        f'{problem}, {at[0]}: learning rate'
        f' {best[0]["learning_rate"]:.2g}, bound {best[0]["lower_bound"]:g}'
      )
  print('\nTest accuracy (%), every pixel times its factor (ill), or not')
  print(report.pivot(accuracy))
  print('\nTraining loss')
  print(report.pivot(loss, digits=3))
  print(f'\nRounds to the last training loss of local SGD ({FLAGS.rounds}: no)')
  print(report.pivot(rounds))
  picture(rows, folder / 'training_loss.png')

  kept, again = attacked_tables(rows)
  print('\nUnder attack, test accuracy (%), learning rates chosen without')
  print(report.pivot(kept))
  print('\nUnder attack, test accuracy (%), learning rates chosen with it')
  print(report.pivot(again))
  study.finish(claims(accuracy, rounds, kept))


def attacked_tables(rows: report.Rows):
  """Accuracy by defence and attack, with rates chosen without it and with."""
  kept, again = {}, {}
  for method, scope, guarded in DEFENCES:
    clean = of(rows, 'ill', method, scope, guarded)
    for bound in dict.fromkeys(row['lower_bound'] for row in clean):
      name = f'{label(method, scope)}, median: {guarded}'
      if method != 'local SGD':
        name += f', bound {bound:g}'
      rate = report.tuned(
        report.select(clean, lower_bound=bound), 'learning_rate'
      )[0]['learning_rate']
      for attack in attacks():
        runs = report.select(
          of(rows, 'ill', method, scope, guarded, attack), lower_bound=bound
        )
        at = name, attack
        kept[at] = 100 * report.final(report.select(runs, learning_rate=rate))
        again[at] = 100 * report.final(report.tuned(runs, 'learning_rate'))
  return kept, again


def claims(accuracy, rounds, kept) -> list[bool]:
  low, high = bounds()[0], bounds()[-1]

  def factor(method, problem):
    return (rounds['local SGD', problem] / rounds[method, problem]).mean()

  def over(method, other):
    return (accuracy[method, 'ill'] - accuracy[other, 'ill']).mean()

  def cost(scope, guarded, bound, attack):
    name = f'adam, {scope}, median: {guarded}, bound {bound:g}'
    return (kept[name, 'none'] - kept[name, attack]).mean()

  return [
    study.claim(
      'ill: local SGD takes this many times the rounds of adam, global',
      factor('adam, global', 'ill'),
      1.5,
    ),
    study.claim(
      'ill: the same of oasis, global', factor('oasis, global', 'ill'), 2
    ),
    study.claim(
      'the factor of adam on ill less that on even',
      factor('adam, global', 'ill') - factor('adam, global', 'even'),
      0,
    ),
    study.claim(
      'ill: adam, global over local', over('adam, global', 'adam, local'), -1
    ),
    study.claim(
      'ill: oasis, global over local', over('oasis, global', 'oasis, local'), -1
    ),
    study.claim(
      f'down costs at bound {low:g}, messages alone guarded',
      cost('global', 'messages', low, 'down'),
      10,
    ),
    study.claim(
      f'what bound {high:g} saves of that',
      cost('global', 'messages', low, 'down')
      - cost('global', 'messages', high, 'down'),
      5,
    ),
    study.claim(
      'up costs, messages alone guarded',
      cost('global', 'messages', low, 'up'),
      10,
    ),
    study.claim(
      'minus the worse of the two costs, both guarded',
      -max(cost('global', 'all', low, a) for a in ('down', 'up')),
      -12,
    ),
    study.claim(
      'minus the worse of the two costs, local scaling',
      -max(cost('local', 'all', low, a) for a in ('down', 'up')),
      -5,
    ),
  ]


if __name__ == '__main__':
  app.run(main)
