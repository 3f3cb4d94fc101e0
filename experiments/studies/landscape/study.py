"""Dropout stability and connected solutions (Shevchenko and Mondelli).

  python -m experiments.landscape.run --num_seeds=5 --check

Pairs of networks of growing width, with one hidden layer and with two, each
from initial weights and batches of its own: how much the loss changes when
hidden units are dropped, and how far it rises between the two networks, on the
path that is constructed from their parts, on the straight line, and on the
straight line to the second network in its best order of units. Then the same
between solutions with and without attackers, and between the local models of
honest workers, of which the average is taken, too.
"""

import numpy as np
from absl import app, flags

from experiments import report, study
from experiments.landscape import measure, tables

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(measure)
flags.DEFINE_list('widths', '50,100,200,400,800,1600', 'One hidden layer.')
flags.DEFINE_list('deep_widths', '50,100,200,400', 'Two hidden layers.')
flags.DEFINE_list('standard_widths', '50,200,800', 'Without the scaling.')
flags.DEFINE_integer('worker_width', 400, 'Width in these parts.', 2)


def cells() -> list[measure.Cell]:
  sweep = [
    measure.Cell('width', 1, 'mean-field', width)
    for width in measure.numbers('widths')
  ]
  sweep += [
    measure.Cell('width', 2, 'mean-field', width)
    for width in measure.numbers('deep_widths')
  ]
  sweep += [
    measure.Cell('width', 1, 'standard', width)
    for width in measure.numbers('standard_widths')
  ]
  shape = (1, 'mean-field', FLAGS.worker_width)
  return [
    *sweep,
    *[measure.Cell('attack', *shape, attack) for attack in measure.ATTACKS],
    *[measure.Cell('local', *shape, start) for start in measure.STARTS],
  ]


def main(argv):
  del argv
  folder, rows = study.run('landscape', cells, measure.run_cell)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  sweep = report.select(rows, part='width')
  for depth, scaling in dict.fromkeys(
    (r['depth'], r['scaling']) for r in sweep
  ):
    mine = report.select(sweep, depth=depth, scaling=scaling)
    print(f'\n{depth} hidden, {scaling}: loss, and how far it rises on the way')
    print(report.pivot(tables.by_width(mine), digits=3))
    print(f'\n{depth} hidden, {scaling}: |change| of the loss by units kept')
    print(report.pivot(tables.by_kept(mine), digits=3))
  print('\nFrom attack-free to robust training under attack: rise on the way')
  attacks = tables.by_attack(report.select(rows, part='attack'), measure.STARTS)
  print(report.pivot(attacks, digits=3))
  print('\nLocal models: rise within pairs, and of the average over their mean')
  local = tables.by_steps(report.select(rows, part='local'))
  print(report.pivot(local, digits=3))
  tables.picture(sweep, folder / 'landscape.png')

  claims = []
  for depth in (1, 2):
    mine = report.select(sweep, depth=depth, scaling='mean-field')
    widths = sorted({row['width'] for row in mine})
    few, many = widths[0], widths[-1]
    root = round((many / few) ** 0.5, 1)
    table, half = tables.by_width(mine), 'half kept'
    trained = [table[f'width {w}', 'trained'].mean() for w in widths]
    fall = {
      what: (table[f'width {few}', what] / table[f'width {many}', what]).mean()
      for what in (half, 'constructed')
    }
    wide = {way: table[f'width {many}', way] for way in tables.WAYS}
    less = wide['straight'] - wide['constructed']
    claims += [
      study.claim(
        f'{depth} hidden: change at half kept, width {few} over {many}',
        fall[half],
        root,
      ),
      study.claim(
        f'{depth} hidden: rise on constructed path, width {few} over {many}',
        fall['constructed'],
        root,
      ),
      study.claim(
        f'{depth} hidden: lowest over highest trained loss of all widths, %',
        100 * min(trained) / max(trained),
        70,
      ),
      study.claim(
        f'{depth} hidden: straight over constructed, width {many}, thousandths',
        1000 * less.mean(),
        0,
      ),
    ]
  one = report.select(sweep, depth=1, scaling='mean-field')
  kept = tables.by_kept(one)
  at_50 = [v.mean() for (_, m), v in kept.items() if m == '50 kept']
  claims += [
    study.claim(
      '1 hidden, 50 kept: least over largest change of all widths, %',
      100 * min(at_50) / max(at_50),
      50,
    ),
    study.claim(
      'on no constructed path a loss above those at breakpoints, millionths',
      -1e6 * tables.excess(rows, FLAGS.points),
      -20,
    ),
  ]
  right = [
    (local[row, 'straight'].mean() > 0.01) == (local[row, 'average'].mean() > 0)
    for row in dict.fromkeys(row for row, _ in local)
  ]
  claims.append(
    study.claim(
      'local models: rows in which a rise on the straight line says whether'
      ' the average is worse, %',
      100 * float(np.mean(right)),
      100,
    )
  )
  study.finish(claims)


if __name__ == '__main__':
  app.run(main)
