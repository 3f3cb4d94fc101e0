r"""How long rounds should be as the learning rate decays: QSR (Gu et al.).

  python -m experiments.qsr.run --num_seeds=5 --check             # digits
  python -m experiments.qsr.run --dataset=fashion_mnist --data_dir=FOLDER

Eight workers take SGD steps with momentum on a cosine learning rate and average
their parameters at the end of every round. All methods take the same number of
local steps; they differ in when they communicate. A part of the training labels
is wrong, so that there is something to generalise from. Then two of the workers
attack, and the spread of honest messages over training is measured.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import data, models
from experiments import report, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 8, 'n.', 1)
flags.DEFINE_integer('num_byzantine', 2, 'f, of the attacked runs.', 1)
flags.DEFINE_integer('total_steps', 4000, 'Local steps of a worker.', 20)
flags.DEFINE_integer('base_steps', 4, 'H of the shortest rounds.', 1)
flags.DEFINE_integer('batch_size', 4, 'Examples per worker and step.', 1)
flags.DEFINE_list('growths', '2.12,2.9', 'alpha over the peak learning rate.')
flags.DEFINE_list(
  'learning_rates', '0.005,0.01,0.02,0.05', 'Peaks of the cosine.'
)
flags.DEFINE_float('attack_learning_rate', 0.02, 'Of attacked runs.', 0.0)
flags.DEFINE_list('radii', '0.01,0.03,0.1,0.3', 'Of centered clipping.')
flags.DEFINE_float('label_noise', 0.2, 'Share of labels drawn anew.', 0.0)
flags.DEFINE_float('momentum', 0.9, 'Of the local steps, kept by workers.')

ATTACKS = {
  'sign flip': lambda: byzjax.sign_flip(scale=5.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0 for 2 of 8.
}
# One worker leans by so little that training is not changed, and by a known
# part of the standard deviation of the others: what it does to the mean tells
# how far apart they are.
PROBE = 0.1


class Lengths(NamedTuple):
  """When workers communicate."""

  name: str
  steps: np.ndarray  # int32[R], local steps of every round


def cosine(step, peak=1.0):
  """The learning rate at a local step, 0 at the last one."""
  share = step / FLAGS.total_steps
  return peak * 0.5 * (1 + jnp.cos(jnp.pi * share))


def all_lengths() -> list[Lengths]:
  """The methods. Lengths depend on alpha over the peak, not on the peak."""
  total, base = FLAGS.total_steps, FLAGS.base_steps
  quadratic = [
    Lengths(
      f'qsr {growth}',
      byzjax.quadratic_synchronization(
        cosine, total_steps=total, base_steps=base, growth=float(growth)
      ),
    )
    for growth in FLAGS.growths
  ]
  as_rare = -(-total // len(quadratic[0].steps))

  def constant(steps):
    return byzjax.constant_synchronization(total_steps=total, base_steps=steps)

  return [
    Lengths('parallel', constant(1)),
    Lengths(f'constant {base}', constant(base)),
    Lengths(f'constant {as_rare}', constant(as_rare)),
    Lengths(
      'post-local',
      byzjax.post_local_synchronization(
        total_steps=total, base_steps=2 * base, switch_step=total // 10
      ),
    ),
    Lengths(
      'linear',
      byzjax.linear_synchronization(
        cosine, total_steps=total, base_steps=base, growth=base + 0.5
      ),
    ),
    *quadratic,
  ]


def noisy(labels, num_classes: int):
  """Labels of which some are drawn anew: the same ones in every run."""
  which, what = jax.random.split(jax.random.key(17))
  drawn = jax.random.randint(what, labels.shape, 0, num_classes)
  wrong = jax.random.uniform(which, labels.shape) < FLAGS.label_noise
  return jnp.where(wrong, drawn, labels)


def rule_of(name: str, radius) -> byzjax.Aggregator:
  if name == 'trimmed mean':
    return byzjax.trimmed_mean(num_byzantine=FLAGS.num_byzantine)
  if name == 'centered clipping':
    return byzjax.centered_clipping(radius=radius)
  return byzjax.mean()


def fit(setting, model, images, labels, key):
  """The loss of the shared parameters on what they are trained on."""
  del images, labels, key
  metrics = models.evaluate(
    setting.graphdef,
    model,
    setting.images,
    noisy(setting.labels, setting.num_classes),
    num_classes=setting.num_classes,
    scale=setting.scale,
  )
  return {'fit_loss': metrics.loss}


def cell(lengths: Lengths, attack: str = 'none', rule: str = 'mean'):
  probing, clipping = attack == 'probe', rule == 'centered clipping'

  def make_round(loss_fn, key, setting, learning_rate, radius):
    del key
    attackers, byzantine = None, 0
    if probing:
      attackers, byzantine = byzjax.alie(z=PROBE), 1
    elif attack != 'none':
      attackers, byzantine = ATTACKS[attack](), FLAGS.num_byzantine
    return byzjax.local_round(
      loss_fn,
      num_workers=FLAGS.num_workers,
      num_local_steps=lengths.steps,
      local_optimizer=optax.sgd(
        lambda step: cosine(step, learning_rate), FLAGS.momentum
      ),
      local_state='keep',
      aggregator=rule_of(rule, radius),
      optimizer=optax.sgd(1.0),
      attack=attackers,
      byzantine=byzantine,
      sampler=data.local_sampler(
        setting.images,
        noisy(setting.labels, setting.num_classes),
        batch_size=FLAGS.batch_size,
        scale=setting.scale,
      ),
    )

  one_rate = [FLAGS.attack_learning_rate]
  return study.Cell(
    make_round,
    {'lengths': lengths.name, 'attack': attack, 'rule': rule},
    {
      'learning_rate': (
        study.floats('learning_rates') if attack == 'none' else one_rate
      ),
      'radius': study.floats('radii') if clipping else [0.0],
    },
    FLAGS.num_workers,
    len(lengths.steps),
    FLAGS.batch_size,
    is_local=True,
    num_evals=200 if probing else 20,
    make_metrics=fit,
  )


def compared() -> list[Lengths]:
  """Constant rounds as short as QSR's shortest, or as many as QSR's; QSR."""
  lengths = all_lengths()
  return [lengths[1], lengths[2], lengths[5]]


def cells() -> list[study.Cell]:
  return (
    [cell(lengths) for lengths in all_lengths()]
    + [cell(lengths, 'probe') for lengths in compared()]
    + [
      cell(lengths, attack, rule)
      for lengths in compared()
      for attack in ATTACKS
      for rule in ('mean', 'trimmed mean', 'centered clipping')
    ]
  )


def end(rows: report.Rows, column: str = 'accuracy') -> np.ndarray:
  """At the last step, per seed: the learning rate is zero there."""
  return report.final(rows, column, tail=1)


def published() -> list[tuple[str, float, float]]:
  """(run, its volume in %, the published one) of the paper's schedules."""
  volumes = []
  for name, peak, total, warmup, base, growth, percent in (
    ('ViT, H 4, alpha 0.0175', 0.008, 93_600, 10_000, 4, 0.0175, 10.4),
    ('ViT, H 8, alpha 0.0175', 0.008, 93_600, 10_000, 8, 0.0175, 6.9),
    ('ResNet, H 2, alpha 0.2', 0.8, 62_400, 1560, 2, 0.2, 39.7),
    ('ResNet, H 4, alpha 0.25', 0.8, 62_400, 1560, 4, 0.25, 20.1),
  ):
    steps = byzjax.quadratic_synchronization(
      optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total, 1e-6),
      total_steps=total,
      warmup_steps=warmup,
      base_steps=base,
      growth=growth,
    )
    volumes.append((name, round(100 * len(steps) / total, 1), percent))
  return volumes


def spread(rows: report.Rows, lengths: Lengths) -> tuple[np.ndarray, ...]:
  """Local steps done, and how far apart honest messages were, by stretch.

  The norm of their standard deviations, over seeds and the stretch's rounds.
  """
  probes = report.select(rows, lengths=lengths.name, attack='probe')
  rounds = sorted({row['round'] for row in probes})
  per_stretch = [
    np.mean([r['aggregation_error'] for r in report.select(probes, round=k)])
    for k in rounds
  ]
  done = np.cumsum(lengths.steps)[np.array(rounds) - 1]
  return done, np.array(per_stretch) * FLAGS.num_workers / PROBE


def picture(rows, table, spreads, path) -> None:
  figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
  for lengths in all_lengths():
    starts = np.cumsum(lengths.steps) - lengths.steps
    panels[0].semilogy(
      starts, lengths.steps, drawstyle='steps-post', label=lengths.name
    )
    share = len(lengths.steps) / FLAGS.total_steps
    accuracy = table[lengths.name, 'accuracy']
    panels[1].errorbar(
      100 * share, accuracy.mean(), accuracy.std(), marker='o', capsize=3
    )
  panels[0].set(xlabel='local step', ylabel='local steps of the round')
  panels[0].legend(fontsize=7)
  panels[1].set(xlabel='rounds per 100 local steps', ylabel='test accuracy (%)')
  panels[1].set_xscale('log')
  for name, (done, values) in spreads.items():
    panels[2].semilogy(done, values, label=name)
  panels[2].set(xlabel='local step', ylabel='spread of honest messages')
  panels[2].legend()
  for axes in panels:
    axes.grid(alpha=0.3)
  report.save(figure, path, dpi=90)
  plt.close(figure)


def main(argv):
  del argv
  folder, rows = study.run('qsr', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  total, n = FLAGS.total_steps, FLAGS.num_workers
  constant, _, qsr = compared()

  print('Rounds of the published schedules, in % of the local steps')
  volumes = published()
  for name, volume, percent in volumes:
    print(f'{name:24} {volume:5.1f}, published {percent}')

  table: dict[tuple[str, str], np.ndarray] = {}
  rates = {}
  for lengths in all_lengths():
    runs = report.select(rows, lengths=lengths.name, attack='none', rule='mean')
    best = report.tuned(runs, 'learning_rate')
    rates[lengths.name] = best[0]['learning_rate']
    bits = end(best, 'bits_up') * len(lengths.steps) / n
    table |= {
      (lengths.name, 'accuracy'): 100 * end(best),
      (lengths.name, 'training loss'): end(best, 'fit_loss'),
      (lengths.name, 'rounds, %'): np.array(100 * len(lengths.steps) / total),
      (lengths.name, 'MB a worker'): bits / 8e6,
    }
  print(
    f'\nNo attackers: test accuracy (%) and training loss at local step {total}'
  )
  print(report.pivot(table, digits=2))
  print('peak learning rates:', rates)
  print('last rounds of', qsr.name + ':', qsr.steps[-5:].tolist())

  against = {}
  for other in all_lengths():
    if other.name == qsr.name:
      continue
    against[other.name, 'tuned'] = (
      table[qsr.name, 'accuracy'] - table[other.name, 'accuracy']
    )
    for rate in map(float, FLAGS.learning_rates):
      of_rate = report.select(
        rows, attack='none', rule='mean', learning_rate=rate
      )
      mine, theirs = (
        end(report.select(of_rate, lengths=x)) for x in (qsr.name, other.name)
      )
      against[other.name, f'rate {rate:g}'] = 100 * (mine - theirs)
  print(f'\nTest accuracy of {qsr.name} less that of others, paired by seed')
  print(report.pivot(against, digits=2))

  spreads = {lengths.name: spread(rows, lengths) for lengths in compared()}
  quarters = {
    (name, f'to {part} %'): values[
      np.searchsorted(done, part / 100 * total - 1e-6)
    ]
    for name, (done, values) in spreads.items()
    for part in (10, 25, 50, 75, 90, 100)
  }
  print('\nSpread of honest messages, where this share of the steps was done')
  print(report.pivot(quarters, digits=3).replace(' ± 0.000', ' ' * 8))

  print(
    f'\n{FLAGS.num_byzantine} of {n} attack, peak learning rate'
    f' {FLAGS.attack_learning_rate}: test accuracy (%)'
  )
  attacked = {}
  for lengths in compared():
    rate = FLAGS.attack_learning_rate
    of_lengths = report.select(rows, lengths=lengths.name, learning_rate=rate)
    for attack in ATTACKS:
      for rule in ('mean', 'trimmed mean'):
        runs = report.select(of_lengths, attack=attack, rule=rule)
        attacked[f'{lengths.name}, {rule}', attack] = 100 * end(runs)
      for radius in map(float, FLAGS.radii):
        runs = report.select(
          of_lengths, attack=attack, rule='centered clipping', radius=radius
        )
        attacked[f'{lengths.name}, clipping {radius:g}', attack] = 100 * end(
          runs
        )
  print(report.pivot(attacked))
  picture(rows, table, spreads, folder / 'qsr.png')

  def fall(name):
    return quarters[name, 'to 10 %'] / quarters[name, 'to 90 %']

  study.finish(
    [
      study.claim(
        'published volumes that agree',
        sum(volume == percent for _, volume, percent in volumes),
        len(volumes),
      ),
      study.claim(
        f'rounds of {constant.name} per 100 of {qsr.name}',
        100 * len(constant.steps) / len(qsr.steps),
        110,
      ),
      study.claim(
        f'test accuracy, {qsr.name} less {constant.name}',
        against[constant.name, 'tuned'].mean(),
        -0.5,
      ),
      study.claim(
        f'test accuracy, {qsr.name} less parallel',
        against['parallel', 'tuned'].mean(),
        -0.5,
      ),
      study.claim(
        'fall of the spread from 10 to 90 % of the steps:'
        f' {constant.name} over {qsr.name}',
        fall(constant.name) / fall(qsr.name),
        2,
      ),
      study.claim(
        f'{qsr.name}, sign flip: trimmed mean over mean',
        (
          attacked[f'{qsr.name}, trimmed mean', 'sign flip']
          - attacked[f'{qsr.name}, mean', 'sign flip']
        ).mean(),
        30,
      ),
    ]
  )


if __name__ == '__main__':
  app.run(main)
