"""Tables and claims of the study, part by part."""

import numpy as np
from matplotlib import pyplot as plt

from experiments import report, study

SHARDS = ('even', 'skewed')
RULES = ('mean', 'median')
ORDERS = ('curriculum', 'random', 'vanilla', 'anti')
CLIENT_ORDERS = ('curriculum', 'uniform', 'random', 'anti')
EXTREMES = ('curriculum', 'anti')
SCORES = ('global', 'local', 'expert')
PACINGS = ('linear', 'exponential')
FULL_AT, SHARES = [0.1, 0.5, 0.8], [0.05, 0.2, 0.8]
CLAIMS = (
  'uniform',
  'curriculum',
  'curriculum, claims',
  'curriculum, claims, pool 2f + 1',
  'curriculum, claims, pool 4f',
)
ATTACKS = {'none': 0.0, 'label flip': 1.0, 'sign flip': 2.0}


def accuracy(rows: report.Rows, **labels) -> np.ndarray:
  """In percent, per seed, at the learning rate of the validation split."""
  runs = report.select(rows, **labels)
  return 100 * report.final(report.tuned(runs, 'learning_rate'))


def show(title: str, table) -> None:
  print(f'\n{title}: test accuracy (%)')
  print(report.pivot(table))


def order_part(rows: report.Rows, noises, path) -> list[bool]:
  table, curves = {}, {}
  for noise in noises:
    for shards in SHARDS:
      column = f'{shards}, {noise:.0%}'
      for order in ORDERS:
        labels = {'order': order, 'shards': shards, 'noise': noise}
        table[order, column] = accuracy(rows, part='order', **labels)
        curves[order, column] = report.tuned(
          report.select(rows, part='order', **labels), 'learning_rate'
        )
      for other in ORDERS[1:]:
        table[f'curriculum - {other}', column] = (
          table['curriculum', column] - table[other, column]
        )
  show('Orders, by shards and share of wrong labels', table)
  picture(curves, path)
  even, skewed = (f'{shards}, {noises[-1]:.0%}' for shards in SHARDS)

  def gap(one, other, column):
    return (table[one, column] - table[other, column]).mean()

  pairs = [
    ('curriculum', 'vanilla', even, -2),
    ('curriculum', 'random', even, -2),
    ('vanilla', 'anti', even, 1),
    ('random', 'anti', even, 1),
    ('curriculum', 'vanilla', skewed, 1),
  ]
  return [
    *(
      study.claim(f'{column}: {one} over {other}', gap(one, other, column), x)
      for one, other, column, x in pairs
    ),
    study.claim(
      'vanilla over anti, skewed less even',
      gap('vanilla', 'anti', skewed) - gap('vanilla', 'anti', even),
      0,
    ),
  ]


def picture(curves, path) -> None:
  columns = list(dict.fromkeys(column for _, column in curves))
  figure, panels = plt.subplots(
    1,
    len(columns),
    figsize=(3.2 * len(columns), 3.2),
    layout='constrained',
    squeeze=False,
  )
  for column, axes in zip(columns, panels[0]):
    for order in ORDERS:
      rows = curves[order, column]
      rounds = sorted({row['round'] for row in rows})
      at = [report.select(rows, round=k) for k in rounds]
      values = [100 * np.mean([r['accuracy'] for r in a]) for a in at]
      axes.plot(rounds, values, label=order)
    axes.set(title=f'{column} wrong labels', xlabel='round')
    axes.grid(alpha=0.3)
  panels[0][0].set_ylabel('test accuracy (%)')
  panels[0][0].legend(fontsize=7)
  report.save(figure, path, dpi=90)
  plt.close(figure)


def scores_part(rows: report.Rows, noise: float) -> list[bool]:
  table = {
    (f'{score}, {order}', shards): accuracy(
      rows,
      part='order' if score == 'global' else 'scores',
      shards=shards,
      order=order,
      score=score,
      noise=noise,
    )
    for score in SCORES
    for order in EXTREMES
    for shards in SHARDS
  }
  show('Scores, with wrong labels', table)

  def gap(score):
    best, worst = (table[f'{score}, {order}', 'skewed'] for order in EXTREMES)
    return (best - worst).mean()

  return [
    study.claim(
      'skewed: curriculum over anti, global less twice local scores',
      gap('global') - 2 * abs(gap('local')),
      0,
    )
  ]


def pacing_part(rows: report.Rows) -> list[bool]:
  table = {
    (f'{order}, {pacing}, from {share:.0%}', f'full at {a:.0%}'): accuracy(
      rows,
      part='pacing',
      order=order,
      pacing=pacing,
      full_at=a,
      initial_share=share,
    )
    for pacing in PACINGS
    for order in EXTREMES
    for share in SHARES
    for a in FULL_AT
  }
  show('Pacing, even shards, with wrong labels', table)

  def gap(a):
    best, worst = (
      table[f'{order}, linear, from 20%', f'full at {a}'] for order in EXTREMES
    )
    return (best - worst).mean()

  return [
    study.claim(
      'curriculum over anti, full at 80% less full at 10%',
      gap('80%') - gap('10%'),
      1,
    )
  ]


def attacked(rows, part, names, **labels):
  """Accuracy of rows with these names under each attack."""
  return {
    (', '.join(name.values()), attack): accuracy(
      rows, part=part, attack=number, **name, **labels
    )
    for name in names
    for attack, number in ATTACKS.items()
  }


def attacks_part(rows: report.Rows, who: str) -> list[bool]:
  table = attacked(
    rows,
    'attacks',
    [
      {'order': order, 'rule': rule}
      for rule in RULES
      for order in ('vanilla', 'curriculum')
    ],
  )
  show(f'{who} attack, even shards, with wrong labels', table)

  def median(order, attack):
    return table[f'{order}, median', attack].mean()

  flips = [median('curriculum', attack) for attack in list(ATTACKS)[1:]]
  return [
    study.claim(
      'curriculum, median: minus what the worse attack costs',
      min(flips) - median('curriculum', 'none'),
      -5,
    ),
    study.claim(
      'median, sign flip: curriculum over vanilla',
      median('curriculum', 'sign flip') - median('vanilla', 'sign flip'),
      -2,
    ),
  ]


def clients_part(rows: report.Rows, who: str) -> list[bool]:
  uneven = {
    (clients, 'accuracy'): accuracy(rows, part='uneven', clients=clients)
    for clients in CLIENT_ORDERS
  }
  show('Order of clients that hold no to many wrong labels', uneven)
  table = attacked(rows, 'clients', [{'clients': c} for c in CLAIMS])
  show(f'{who}, median', table)
  best, uniform, _, worst = (uneven[c, 'accuracy'] for c in CLIENT_ORDERS)
  _, honest, claims, pool, large = (table[c, 'sign flip'] for c in CLAIMS)
  return [
    study.claim(
      'uneven clients: curriculum over uniform', (best - uniform).mean(), 0
    ),
    study.claim(
      'uneven clients: curriculum over anti', (best - worst).mean(), 0
    ),
    study.claim(
      'sign flip: what claims of a low loss cost', (honest - claims).mean(), 10
    ),
    study.claim(
      'sign flip: what pools of 2f + 1 save', (pool - claims).mean(), 5
    ),
    study.claim(
      'sign flip: what pools of 4f save beyond', (large - pool).mean(), 5
    ),
  ]
