r"""The best batch size grows with the number of attackers (Yang, Shi, Li).

  python -m experiments.batch_size.run --check                    # digits
  python -m experiments.batch_size.run --dataset=mnist --data_dir=FOLDER

ByzSGDm (m) and ByzSGDnm (nm), with a fixed number of gradients of honest
workers: twice the batch is half the steps. The learning rate follows a cosine
from the best value of a grid on a validation split, a tenth of the training
examples; the grid and what was chosen are part of the output.
"""

import math

import optax
from absl import app, flags

import byzjax
from experiments import report, specs, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 8, 'n.', 3)
flags.DEFINE_list('num_byzantine', '0,1,3', 'Numbers of attackers.')
flags.DEFINE_list('batch_sizes', '1,4,16,64', 'Examples per worker and step.')
flags.DEFINE_integer(
  'num_gradients', 17920, 'Of all honest workers, in every run.', 1
)
flags.DEFINE_list('learning_rates', '0.05,0.1,0.2,0.5,1', 'To choose from.')
flags.DEFINE_float('momentum', 0.9, 'Decay of worker momentum.')
flags.DEFINE_float('radius', 0.1, 'Of centered clipping.', 0.0)

flags.DEFINE_float('z', 1.5, 'Strength of ALIE; 0.25 shows nothing here.')
flags.DEFINE_list('attacks', 'alie', 'Of alie, foe, bit flip; alie is needed.')

# The attacks that come after the first only meet the most attackers.
ATTACKS = {
  'alie': 'alie',
  'foe': 'inner_product_manipulation(epsilon=0.5)',
  'bit flip': 'sign_flip(scale=10.0)',
}
RULES = ('krum', 'geometric_median', 'coordinate_median', 'centered_clipping')
METHODS = ('m', 'nm')


def rule(name: str, f: int) -> byzjax.Aggregator:
  n = FLAGS.num_workers
  if name == 'centered_clipping':
    return byzjax.centered_clipping(radius=FLAGS.radius)
  if name == 'krum':
    # The paper runs Krum with more attackers than it admits: as many
    # neighbours as f asks for, under the largest f that it does admit.
    allowed = min(f, (n - 3) // 2)
    return byzjax.krum(num_byzantine=allowed, num_neighbors=max(n - f - 2, 1))
  return specs.aggregator(name, '', f)


def cell(
  attack: str, f: int, rule_name: str, method: str, batch_size: int
) -> study.Cell:
  n = FLAGS.num_workers
  steps, rest = divmod(FLAGS.num_gradients, batch_size * (n - f))
  if rest or not steps:
    raise ValueError(
      f'--num_gradients={FLAGS.num_gradients} is no multiple of'
      f' {batch_size} x {n - f}, batch size times honest workers'
    )

  def make_round(loss_fn, key, learning_rate):
    del key
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    stages = [byzjax.normalize_by_global_norm()] if method == 'nm' else []
    return byzjax.robust_round(
      loss_fn,
      num_workers=n,
      worker=byzjax.worker_momentum(FLAGS.momentum),
      attack=specs.build(
        'attack', ATTACKS[attack], specs.ATTACKS, defaults={'z': FLAGS.z}
      ),
      byzantine=f,
      aggregator=rule(rule_name, f),
      optimizer=optax.chain(*stages, optax.scale_by_learning_rate(schedule)),
    )

  return study.Cell(
    make_round,
    {
      'attack': attack,
      'num_byzantine': f,
      'rule': rule_name,
      'method': method,
      'batch_size': batch_size,
    },
    {'learning_rate': study.floats('learning_rates')},
    n,
    steps,
    batch_size,
  )


def cells() -> list[study.Cell]:
  counts = [int(f) for f in FLAGS.num_byzantine]
  unknown = sorted({*FLAGS.attacks} - {*ATTACKS})
  if unknown or 'alie' not in FLAGS.attacks:
    raise ValueError(f'--attacks needs alie, of {[*ATTACKS]}: {unknown}')
  return [
    cell(attack, f, rule_name, method, int(batch_size))
    for attack in FLAGS.attacks
    for f in (counts if attack == 'alie' else [max(counts)])
    for rule_name in RULES
    for method in METHODS
    for batch_size in FLAGS.batch_sizes
  ]


def main(argv):
  del argv
  folder, rows = study.run('batch_size', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  sizes = [int(batch_size) for batch_size in FLAGS.batch_sizes]
  counts = [int(f) for f in FLAGS.num_byzantine]
  table, chosen, mean = {}, {}, {}
  for labels in dict.fromkeys(
    (r['attack'], r['num_byzantine'], r['rule'], r['method']) for r in rows
  ):
    keys = ('attack', 'num_byzantine', 'rule', 'method')
    part = report.select(rows, **dict(zip(keys, labels)))
    attack, f, rule_name, method = labels
    line = f'{attack if f else "none"}, {f}, {rule_name}, {method}'
    for b in sizes:
      best = report.tuned(report.select(part, batch_size=b), 'learning_rate')
      accuracy = 100 * report.final(best)
      table[line, f'B = {b}'] = accuracy
      chosen[line, f'B = {b}'] = best[0]['learning_rate']
      mean[(*labels, b)] = accuracy.mean()
  print(
    f'Test accuracy (%), {FLAGS.num_gradients} gradients of honest workers;'
    f' learning rates {", ".join(FLAGS.learning_rates)}'
  )
  print(report.pivot(table))
  print('\nLearning rates chosen on the validation split')
  for line in dict.fromkeys(line for line, _ in chosen):
    rates = '  '.join(f'{chosen[line, f"B = {b}"]:>6g}' for b in sizes)
    print(f'{line:36}  {rates}')
  report.heatmap(table, 'Attack, f, rule, method', folder / 'table.png')

  def best_size(*labels):
    return max(sizes, key=lambda b: mean[(*labels, b)])

  few, many, small = min(counts), max(counts), min(sizes)
  claims = []
  moved = [
    math.log2(best_size('alie', many, name, 'm'))
    - math.log2(best_size('alie', few, name, 'm'))
    for name in RULES
  ]
  claims.append(
    study.claim(
      f'doublings of the best batch from f={few} to f={many}, mean over rules',
      sum(moved) / len(moved),
      1,
    )
  )
  for name in RULES:
    plain = {b: mean['alie', many, name, 'm', b] for b in sizes}
    normalized = {b: mean['alie', many, name, 'nm', b] for b in sizes}
    line = f'alie, {many}, {name}, m'
    top = max(sizes, key=plain.__getitem__)
    rate = chosen[line, f'B = {top}']
    # Small steps can make up for small batches; so this is at one step size.
    at_rate = report.select(
      rows, attack='alie', num_byzantine=many, rule=name, learning_rate=rate
    )
    at_step = {
      (method, b): 100
      * report.final(report.select(at_rate, method=method, batch_size=b)).mean()
      for method in METHODS
      for b in (top, small)
    }
    steep = name in ('krum', 'coordinate_median')
    if steep:
      claims.append(
        study.claim(
          f'{line}, step {rate:g}: batch {top} over batch {small}',
          at_step['m', top] - at_step['m', small],
          20,
        )
      )
    claims.append(
      study.claim(
        f'{line}, step {rate:g}, batch {small}: nm over m',
        at_step['nm', small] - at_step['m', small],
        20 if steep else 3,
      )
    )
    claims.append(
      study.claim(
        f'{line}: nm over m, each at its best batch and step',
        max(normalized.values()) - max(plain.values()),
        -1.5,  # Less means nothing with three seeds of a small test set.
      )
    )
  study.finish(claims)


if __name__ == '__main__':
  app.run(main)
