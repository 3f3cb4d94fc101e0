r"""Centered clipping and worker momentum against attacks (Karimireddy et al.).

  python -m experiments.learning_from_history.run --check        # digits
  python -m experiments.learning_from_history.run --parts=attacks \
      --dataset=mnist --data_dir=FOLDER --rounds=600

Four parts: rules that fail on a long tail without any attacker (failure);
attacks x rules x momentum, with the mean as control (attacks), among them the
drift that is the same in every round; and the radius of centered clipping over
four decades (radius).

Momenta are averages, `m <- beta m + (1 - beta) g`, as in the paper. With
--sum_momentum they sum, as in the official code: learning rate and radius are
then those of sums.
"""

import optax
from absl import app, flags

import byzjax
from experiments import report, specs, study

FLAGS = flags.FLAGS
flags.DEFINE_list('parts', 'failure,attacks,radius', 'Which parts to run.')
flags.DEFINE_integer('num_workers', 25, 'n.', 5)
flags.DEFINE_integer('rounds', 400, 'Rounds; 15/4 as many for failure.', 1)
flags.DEFINE_integer('batch_size', 8, 'Examples per worker and round.', 1)
flags.DEFINE_float('learning_rate', 0.5, 'Times 0.1 after 75 % of rounds.', 0.0)
flags.DEFINE_list('momenta', '0,0.9,0.99', 'Decays of worker momentum.')
flags.DEFINE_float('radius', 1.0, 'Of centered clipping, in attacks.', 0.0)
flags.DEFINE_list('radii', '0.1,0.3,1,3,10,100,1000', 'Radii in part radius.')
flags.DEFINE_bool('sum_momentum', False, 'Momenta sum, as in official code.')

PARTS = ('failure', 'attacks', 'radius')
RULES = (
  'mean',
  'krum',
  'coordinate_median',
  'geometric_median',
  'trimmed_mean',
  'centered_clipping',
)
# Name: (attack as for train.py, whether nearly half of the workers take part).
ATTACKS = {
  'none': ('none', False),
  'none, many': ('none', True),  # What rules lose by expecting many.
  'ipm 0.1, many': ('inner_product_manipulation(epsilon=0.1)', True),
  'alie': ('alie', False),
  'alie 1.5': ('alie(z=1.5)', False),
  'alie, many': ('alie', True),
  'bit flip': ('sign_flip(own=True)', False),
  'label flip': ('label_flip', False),
  '-10 mean': ('sign_flip(scale=10.0)', False),
  'constant 1e6': ('constant(value=1e6)', False),
  'constant inf': ('constant(value=inf)', False),
  'drift': ('drift', False),
  'drift, many': ('drift', True),
}
LOUD = ('none', '-10 mean', '-10 mean, many', 'ipm 5', 'ipm 0.1, many')
RADIUS_ATTACKS = {
  **ATTACKS,
  '-10 mean, many': ('sign_flip(scale=10.0)', True),
  'ipm 5': ('inner_product_manipulation(epsilon=5.0)', False),
}


def num_byzantine(many: bool) -> int:
  """5 or 11 of 25; Krum admits no more."""
  n = FLAGS.num_workers
  return (n - 3) // 2 if many else n // 5


def rule(name: str, f: int, radius, num_iterations: int = 1):
  if name == 'centered_clipping':
    return byzjax.centered_clipping(
      radius=radius, num_iterations=num_iterations
    )
  return specs.aggregator(name, '', f)


def cell(
  part: str,
  rule_name: str,
  attack: str = 'none',
  partition: str = 'iid',
  radii=None,
  momenta=None,
  num_classes: int = 10,
) -> study.Cell:
  failure = part == 'failure'
  text, many = RADIUS_ATTACKS[attack]
  f = 0 if failure else num_byzantine(many)
  num_workers = FLAGS.num_workers - failure  # 24 divide into even shards.
  rounds = FLAGS.rounds * 15 // 4 if failure else FLAGS.rounds

  def make_round(loss_fn, key, momentum, radius):
    del key
    scale = 1 / (1 - momentum) if FLAGS.sum_momentum else 1.0
    schedule = optax.piecewise_constant_schedule(
      FLAGS.learning_rate * scale, {int(0.75 * rounds): 0.1}
    )
    return byzjax.robust_round(
      loss_fn,
      num_workers=num_workers,
      worker=byzjax.worker_momentum(momentum),
      attack=specs.build(
        'attack', text, specs.ATTACKS, defaults={'num_classes': num_classes}
      ),
      byzantine=0 if text == 'none' else f,
      aggregator=rule(rule_name, f, radius / scale, 3 if failure else 1),
      optimizer=optax.sgd(schedule),
    )

  return study.Cell(
    make_round,
    {'part': part, 'partition': partition, 'attack': attack, 'rule': rule_name},
    {
      'momentum': momenta or study.floats('momenta'),
      'radius': radii or [FLAGS.radius],
    },
    num_workers,
    rounds,
    FLAGS.batch_size,
    partition,
  )


def cells() -> list[study.Cell]:
  queue = []
  for part in FLAGS.parts:
    if part not in PARTS:
      raise ValueError(f'--parts: {part} is none of {PARTS}')
  if 'failure' in FLAGS.parts:
    queue += [
      cell('failure', name, partition=shards, radii=[10.0], momenta=[0.0])
      for shards in ('iid(long_tail=0.6)', 'label_sorted(long_tail=0.6)')
      for name in RULES
      if name != 'trimmed_mean'  # Of nothing: the mean.
    ]
  if 'attacks' in FLAGS.parts:
    queue += [
      cell('attacks', name, attack) for attack in ATTACKS for name in RULES
    ]
  if 'radius' in FLAGS.parts:
    radii = study.floats('radii')
    for attack in LOUD:
      for name in ('mean', 'coordinate_median', 'geometric_median'):
        queue.append(cell('radius', name, attack, momenta=[0.0, 0.9]))
      queue.append(
        cell(
          'radius', 'centered_clipping', attack, radii=radii, momenta=[0.0, 0.9]
        )
      )
  return queue


def accuracy(rows, column: str = 'accuracy', **labels):
  return 100 * report.final(report.select(rows, **labels), column)


def failure(folder, rows) -> list[bool]:
  """Class-balanced accuracy without attackers; the claims about it."""
  table = {
    (rule_name, partition): accuracy(
      rows, 'balanced_accuracy', rule=rule_name, partition=partition
    )
    for partition in dict.fromkeys(row['partition'] for row in rows)
    for rule_name in dict.fromkeys(row['rule'] for row in rows)
  }
  print('\nNo attacker, long tail: class-balanced accuracy (%)')
  print(report.pivot(table))
  title = 'No attacker, long tail: class-balanced'
  report.heatmap(table, title, folder / 'failure.png')
  claims = []
  for partition in dict.fromkeys(row['partition'] for row in rows):
    mean = table['mean', partition].mean()
    clipped = table['centered_clipping', partition].mean()
    gap = f'{partition}: minus |mean - centered clipping|'
    claims.append(study.claim(gap, -abs(mean - clipped), -1))
    for name in ('krum', 'coordinate_median', 'geometric_median'):
      needed = 15 if partition.startswith('iid') else 40
      if needed == 15 and name == 'geometric_median':
        needed = 5  # It is the mildest of them.
      loss = mean - table[name, partition].mean()
      claims.append(study.claim(f'{partition}: {name} loses', loss, needed))
  return claims


def attacks(folder, rows) -> list[bool]:
  """Accuracy by attack and momentum; the claims about it."""
  table = {
    (f'{attack}, {momentum:g}', name): accuracy(
      rows, rule=name, attack=attack, momentum=momentum
    )
    for attack in ATTACKS
    for momentum in dict.fromkeys(row['momentum'] for row in rows)
    for name in RULES
  }
  print('\nTest accuracy (%) by attack and momentum')
  print(report.pivot(table))
  report.heatmap(table, 'Attack, momentum', folder / 'attacks.png')

  def mean(attack, momentum, name):
    return table[f'{attack}, {momentum}', name].mean()

  history_free = ('krum', 'coordinate_median', 'geometric_median')
  medians = ('coordinate_median', 'geometric_median', 'trimmed_mean')
  robust = (*history_free, 'trimmed_mean')
  ipm, alie = 'ipm 0.1, many', 'alie, many'
  claims = [
    study.claim(
      f'{ipm}: centered clipping beats the best other without momentum',
      mean(ipm, 0, 'centered_clipping') - max(mean(ipm, 0, r) for r in robust),
      30,
    )
  ]
  for name in medians:
    gain = mean(ipm, 0.9, name) - mean(ipm, 0, name)
    claims.append(study.claim(f'{ipm}: {name} gains by momentum', gain, 40))
  for name in robust:
    gain = mean(alie, 0.9, name) - mean(alie, 0, name)
    claims.append(study.claim(f'{alie}: {name} gains by momentum', gain, 20))
  for name in robust:
    without, later = (
      mean('none, many', m, name) - mean('drift, many', m, name)
      for m in (0, 0.9)
    )
    claims.append(study.claim(f'drift, many: {name} loses', without, 5))
    claims.append(
      study.claim(
        f'drift, many: {name} loses less with momentum', without - later, 5
      )
    )
  return claims


def radius(folder, rows) -> list[bool]:
  """Accuracy by radius of centered clipping; the claims about it."""
  table = {}
  for attack in LOUD:
    for momentum in (0, 0.9):
      runs = report.select(rows, attack=attack, momentum=momentum)
      line = f'{attack}, {momentum}'
      for name in ('mean', 'coordinate_median', 'geometric_median'):
        table[line, name] = accuracy(runs, rule=name)
      clipped = report.select(runs, rule='centered_clipping')
      for value in dict.fromkeys(row['radius'] for row in clipped):
        table[line, f'radius {value:g}'] = accuracy(clipped, radius=value)
  print('\nTest accuracy (%) by radius of centered clipping')
  print(report.pivot(table))
  report.heatmap(table, 'Attack, momentum', folder / 'radius.png')
  line = '-10 mean, 0'
  best = max(
    cell.mean()
    for (row, column), cell in table.items()
    if row == line and column.startswith('radius')
  )
  return [
    study.claim(
      f'{line}: the best radius beats {other}',
      best - table[line, other].mean(),
      70,
    )
    for other in ('mean', 'radius 100')
  ]


def main(argv):
  del argv
  folder, rows = study.run('learning_from_history', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  claims = []
  for part, summary in [
    ('failure', failure),
    ('attacks', attacks),
    ('radius', radius),
  ]:
    if runs := report.select(rows, part=part):
      claims += summary(folder, runs)
  study.finish(claims)


if __name__ == '__main__':
  app.run(main)
