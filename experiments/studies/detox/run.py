r"""A vote of redundant groups in front of robust rules (Rajput et al.).

  python -m experiments.detox.run --check                         # digits
  python -m experiments.detox.run --parts=training --dataset=mnist \
      --data_dir=FOLDER

Three parts: training with a rule X on all messages, and with D-X, the same rule
on the votes of groups whose workers compute the same gradient (training); how
many groups attackers capture, against the formula (groups); and what the
aggregation costs (time). Both trainings use the same examples per step, so that
the batches of a group are as large as those of its workers together.
"""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import byzjax
from benchmarks import timing
from byzjax import data, theory
from experiments import report, specs, study

FLAGS = flags.FLAGS
flags.DEFINE_list('parts', 'training,groups,time', 'Which parts to run.')
flags.DEFINE_integer('num_workers', 45, 'n.', 5)
flags.DEFINE_integer('num_byzantine', 5, 'f.', 0)
flags.DEFINE_integer('group_size', 3, 'r, odd; divides n.', 1)
flags.DEFINE_integer('rounds', 300, 'Rounds of training.', 1)
flags.DEFINE_integer('batch_size', 2, 'Examples per worker without groups.', 1)
flags.DEFINE_list('learning_rates', '0.05,0.2', 'To choose from.')
flags.DEFINE_float('momentum', 0.9, 'Of the server.')
flags.DEFINE_float('z', 1.5, 'Strength of ALIE.', 0.0)
flags.DEFINE_integer('num_coordinates', 100_000, 'd, in part time.', 1)

RULES = ('mean', 'median_of_means', 'multi_krum', 'bulyan')
ATTACKS = {
  'none': 'none',
  'alie': 'alie',
  '-100 mean': 'sign_flip(scale=100.0)',
  'constant -100': 'constant(value=-100.0)',
}


def plain(name: str, n: int, f: int) -> byzjax.Aggregator:
  """A rule on n messages of which f are not to be trusted."""
  if name == 'median_of_means':
    # As many buckets as it takes for most of them to be clean.
    buckets = min(2 * f + 1, n)
    return byzjax.hierarchical(
      byzjax.coordinate_median(),
      bucket_rule=byzjax.mean(),
      num_buckets=buckets,
    )
  return specs.aggregator(name, '', f)


def redundant(name: str, n: int, f: int, r: int) -> byzjax.Aggregator:
  """D-X: X on the votes, of which the most that f can capture are bad."""
  captured = theory.max_corrupted_groups(n, f, r)
  # Two buckets, of which the smaller must be large enough for Krum.
  if name == 'multi_krum' and n // r // 2 >= 2 * captured + 3:
    return byzjax.detox(
      group_size=r,
      rule=byzjax.mean(),
      bucket_rule=byzjax.multi_krum(num_byzantine=captured),
      num_buckets=2,
    )
  return byzjax.detox(group_size=r, rule=plain(name, n // r, captured))


def cell(attack: str, placement: str, name: str, groups: bool) -> study.Cell:
  n, f, r = FLAGS.num_workers, FLAGS.num_byzantine, FLAGS.group_size

  def make_round(loss_fn, key, learning_rate):
    return byzjax.robust_round(
      loss_fn,
      num_workers=n,
      attack=specs.build(
        'attack', ATTACKS[attack], specs.ATTACKS, defaults={'z': FLAGS.z}
      ),
      byzantine=byzjax.worst_case_byzantine(n, f, r)
      if placement == 'worst'
      else byzjax.random_byzantine(n, f, key),
      aggregator=redundant(name, n, f, r) if groups else plain(name, n, f),
      optimizer=optax.sgd(learning_rate, FLAGS.momentum),
    )

  return study.Cell(
    make_round,
    {
      'attack': attack,
      'placement': placement,
      'rule': name,
      'groups': 'D' if groups else '-',
    },
    {'learning_rate': study.floats('learning_rates')},
    n // r if groups else n,
    FLAGS.rounds,
    FLAGS.batch_size * (r if groups else 1),
    make_batch=(lambda batch: data.redundant_groups(batch, r))
    if groups
    else (lambda batch: batch),
  )


def cells() -> list[study.Cell]:
  return [
    cell(attack, placement, name, groups)
    for attack in ATTACKS
    for placement in ('random', 'worst')
    if attack != 'none' or placement == 'random'
    for name in RULES
    for groups in (False, True)
  ]


def training() -> list[bool]:
  """Accuracy with a rule and with votes in front of it; the claims about it."""
  folder, rows = study.run('detox', cells)
  if FLAGS.only:
    return []  # Tables and claims are about all cells.
  table = {}
  for case in cells():
    runs = report.select(rows, **case.labels)
    best = report.tuned(runs, 'learning_rate')
    attack, placement, name, groups = case.labels.values()
    line = f'{attack}, {placement}' if attack != 'none' else 'none'
    column = f'D-{name}' if groups == 'D' else name
    table[column, line] = 100 * report.final(best)
  print('Test accuracy (%) by rule, attack and placement of attackers')
  print(report.pivot(table))
  report.heatmap(table, 'DETOX', folder / 'training.png')

  def gain(name, line):
    return table[f'D-{name}', line].mean() - table[name, line].mean()

  claims = [
    study.claim(f'alie, random: D-{name} over {name}', gain(name, line), 20)
    for line in ('alie, random',)
    for name in RULES
    if name != 'mean'
  ]
  line = '-100 mean, random'
  control = table['mean', line].mean()
  for name in RULES[1:]:
    claims.append(
      study.claim(
        f'{line}: D-{name} over mean',
        table[f'D-{name}', line].mean() - control,
        20,
      )
    )
    lost = table[f'D-{name}', 'none'] - table[f'D-{name}', line]
    claims.append(study.claim(f'{line}: D-{name} loses', -lost.mean(), -3))
  return claims


def groups() -> list[bool]:
  """Captured groups over random placements, through the vote itself."""
  n, f, r = FLAGS.num_workers, FLAGS.num_byzantine, FLAGS.group_size
  vote = byzjax.group_vote(group_size=r)
  draws = 20_000

  def captured(key):
    bad = byzjax.random_byzantine(n, f, key)(jnp.array(0))
    sent = jnp.where(bad, 1.0, 0.0)[:, None]
    votes, _ = vote.apply(sent, vote.init(sent[0]))
    return jnp.sum(votes == 1.0)

  keys = jax.random.split(jax.random.key(0), draws)
  counts = np.asarray(jax.jit(jax.vmap(captured))(keys))
  expected = theory.expected_corrupted_groups(n, f, r)
  error = counts.std() / np.sqrt(draws)
  print(
    f'\nCaptured groups, n={n} f={f} r={r}, {draws} random placements:'
    f' {counts.mean():.4f} ± {error:.4f}, formula {expected:.4f}; most'
    f' {counts.max()}, bound {theory.max_corrupted_groups(n, f, r)}'
  )
  deviation = abs(counts.mean() - expected) / error
  return [
    study.claim(
      'minus the deviation from the formula, in standard errors', -deviation, -4
    )
  ]


def times() -> list[bool]:
  """Milliseconds of aggregation; not a claim, for they depend on machines."""
  r = FLAGS.group_size
  sizes = [n for n in (15, 45, 90) if n % r == 0]
  table = {}
  for n in sizes:
    f = n // 9
    x = jax.random.normal(jax.random.key(0), (n // r, FLAGS.num_coordinates))
    x = data.redundant_groups(x, r)
    rules = {}
    for name in RULES:
      rules[name] = plain(name, n, f)
      rules[f'D-{name}'] = redundant(name, n, f, r)
    calls = {
      name: timing.compiled(
        lambda x, rule=rule: rule(x, key=jax.random.key(1)), x
      ).call
      for name, rule in rules.items()
    }
    for name, times in timing.interleaved(calls, 7).items():
      table[name, f'n = {n}'] = 1e3 * np.array([statistics.median(times.wall)])
  print(f'\nMilliseconds of one aggregation, d={FLAGS.num_coordinates}, f=n/9')
  print(report.pivot(table))
  return []


def main(argv):
  del argv
  parts = {'training': training, 'groups': groups, 'time': times}
  if unknown := sorted({*FLAGS.parts} - {*parts}):
    raise app.UsageError(f'--parts: {unknown} are none of {[*parts]}')
  claims = []
  for part, of_part in parts.items():
    # Read late: the training may find the flag in the folder that it continues.
    if part in FLAGS.parts:
      claims += of_part()
  study.finish(claims)


if __name__ == '__main__':
  app.run(main)
