r"""How long rounds should be as the learning rate decays: QSR (Gu et al.).

  python -m experiments.studies qsr --check                      # digits
  python -m experiments.studies qsr --dataset=fashion_mnist --data_dir=FOLDER

Eight workers take SGD steps with momentum on a cosine learning rate and average
their parameters at the end of every round. All methods take the same number of
local steps; they differ in when they communicate. A part of the training labels
is wrong, so that there is something to generalise from. Then two of the workers
attack, and the spread of honest messages over training is measured.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, models
from experiments.harness.cells import Cell, Rows, even_stops
from experiments.harness.settings import ImageSettings, option
from experiments.reporting import palette, pictures, tables
from experiments.reporting.summary import Check, Claim, Summary, Table

# One worker leans by so little that training is hardly changed, and by a known
# part of the standard deviation of the others: what it does to the mean tells
# how far apart they are.
PROBE = 0.1
PROBE_EVALS = 200
ATTACKS: dict[str, Callable] = {
  'sign flip': lambda: byzjax.sign_flip(scale=5.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0 for 2 of 8.
}
INSTRUMENTS: dict[str, tuple[Callable, int]] = {
  'none': (lambda: None, 0),
  'probe': (lambda: byzjax.alie(z=PROBE), 1),
}
RULES = {
  'mean': lambda f, radius: byzjax.mean(),
  'trimmed mean': lambda f, radius: byzjax.trimmed_mean(num_byzantine=f),
  'centered clipping': lambda f, radius: byzjax.centered_clipping(
    radius=radius
  ),
}
SHARES = (10, 25, 50, 75, 90, 100)  # % of the steps
# The peak, steps, warm-up, H, alpha, and the volume in % that the paper has.
PUBLISHED = {
  'ViT, H 4, alpha 0.0175': (0.008, 93_600, 10_000, 4, 0.0175, 10.4),
  'ViT, H 8, alpha 0.0175': (0.008, 93_600, 10_000, 8, 0.0175, 6.9),
  'ResNet, H 2, alpha 0.2': (0.8, 62_400, 1560, 2, 0.2, 39.7),
  'ResNet, H 4, alpha 0.25': (0.8, 62_400, 1560, 4, 0.25, 20.1),
}
KEPT = ('accuracy', 'validation_accuracy', 'fit_loss', 'aggregation_error')
QUICK = {'total_steps': 40, 'learning_rates': (0.01,)}
QUICK_CELLS = ('constant 4, none', 'qsr 2.12, probe')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_seeds: int = option(5, 'Seeds 0, 1, ... in one program.', low=1)
  num_workers: int = option(8, 'n.', low=1)
  num_byzantine: int = option(2, 'f, of the attacked runs.', low=1)
  total_steps: int = option(4000, 'Local steps of a worker.', low=20)
  base_steps: int = option(4, 'H of the shortest rounds.', low=1)
  batch_size: int = option(4, 'Examples per worker and step.', low=1)
  growths: tuple[float, ...] = option((2.12, 2.9), 'alpha over the peak rate.')
  learning_rates: tuple[float, ...] = option(
    (0.005, 0.01, 0.02, 0.05), 'Peaks of the cosine.'
  )
  attack_learning_rate: float = option(0.02, 'Of attacked runs.', low=0)
  radii: tuple[float, ...] = option((0.01, 0.03, 0.1, 0.3), 'Of clipping.')
  label_noise: float = option(0.2, 'Share of labels drawn anew.', low=0)
  momentum: float = option(0.9, 'Of the local steps, kept by workers.')


def cosine(settings: Settings, peak, step):
  """The learning rate at a local step, 0 at the last one."""
  share = step / settings.total_steps
  return peak * 0.5 * (1 + jnp.cos(jnp.pi * share))


@functools.cache
def all_lengths(settings: Settings) -> dict[str, np.ndarray]:
  """Local steps of every round, by method; alpha is over the peak rate."""
  total, base = settings.total_steps, settings.base_steps
  eta = functools.partial(cosine, settings, 1.0)

  def made(rule, *rate, base_steps=base, **options):
    return rule(*rate, total_steps=total, base_steps=base_steps, **options)

  quadratic = {
    f'qsr {growth:g}': made(
      byzjax.quadratic_synchronization, eta, growth=growth
    )
    for growth in settings.growths
  }
  constant = byzjax.constant_synchronization
  as_rare = -(-total // len(next(iter(quadratic.values()))))
  return {
    'parallel': made(constant, base_steps=1),
    f'constant {base}': made(constant),
    f'constant {as_rare}': made(constant, base_steps=as_rare),
    'post-local': made(
      byzjax.post_local_synchronization,
      base_steps=2 * base,
      switch_step=total // 10,
    ),
    'linear': made(byzjax.linear_synchronization, eta, growth=base + 0.5),
    **quadratic,
  }


def compared(settings: Settings) -> list[str]:
  """Constant rounds as short as QSR's shortest, or as many as QSR's; QSR."""
  names = list(all_lengths(settings))
  return [names[1], names[2], names[5]]


def examples(settings: Settings, task):
  """Images and labels, some of them drawn anew: the same in every run."""
  labels = task.labels
  which, what = jax.random.split(jax.random.key(17))
  drawn = jax.random.randint(what, labels.shape, 0, task.num_classes)
  wrong = jax.random.uniform(which, labels.shape) < settings.label_noise
  return task.images, jnp.where(wrong, drawn, labels)


def cell(settings: Settings, lengths: str, attack='none', rule='mean') -> Cell:
  steps = all_lengths(settings)[lengths]
  if attack in ATTACKS:
    make_attack, f = ATTACKS[attack], settings.num_byzantine
  else:
    make_attack, f = INSTRUMENTS[attack]

  def make_round(task, key, learning_rate, radius):
    del key
    return byzjax.local_round(
      task.loss_fn,
      num_workers=settings.num_workers,
      num_local_steps=steps,
      local_optimizer=optax.sgd(
        functools.partial(cosine, settings, learning_rate), settings.momentum
      ),
      local_state='keep',
      aggregator=RULES[rule](settings.num_byzantine, radius),
      optimizer=optax.sgd(1.0),
      attack=make_attack(),
      byzantine=f,
      sampler=data.local_sampler(
        *examples(settings, task),
        batch_size=settings.batch_size,
        scale=task.scale,
      ),
    )

  def fit(task, params, key):
    """The loss of the shared parameters on what they are trained on."""
    del key
    metrics = models.evaluate(
      task.graphdef,
      params,
      *examples(settings, task),
      num_classes=task.num_classes,
      scale=task.scale,
    )
    return {'fit_loss': metrics.loss}

  rates, one = settings.learning_rates, (settings.attack_learning_rate,)
  return Cell(
    labels={'lengths': lengths, 'attack': attack, 'rule': rule},
    make_round=make_round,
    grid={
      'learning_rate': rates if attack == 'none' else one,
      'radius': settings.radii if rule == 'centered clipping' else [0.0],
    },
    num_workers=settings.num_workers,
    rounds=len(steps),
    batch_size=settings.batch_size,
    is_local=True,
    num_evals=PROBE_EVALS if attack == 'probe' else 20,
    probe=fit,
  )


def define(settings: Settings) -> list[Cell]:
  few = compared(settings)
  return [
    *(cell(settings, lengths) for lengths in all_lengths(settings)),
    *(cell(settings, lengths, 'probe') for lengths in few),
    *(
      cell(settings, x, a, rule) for x in few for a in ATTACKS for rule in RULES
    ),
  ]


def marks(settings: Settings, lengths: str) -> list[int]:
  """The evaluations at which `SHARES` of all local steps were first done."""
  steps = all_lengths(settings)[lengths]
  stops = np.array(even_stops(len(steps), PROBE_EVALS))
  goals = np.array(SHARES) / 100 * settings.total_steps
  done = np.cumsum(steps)[stops - 1]
  return stops[np.searchsorted(done, goals - 1e-6)].tolist()


def keep(rows: Rows, settings: Settings) -> Rows:
  """The last evaluation, where the learning rate is 0, and the spreads."""
  of = {lengths: marks(settings, lengths) for lengths in compared(settings)}

  def is_mark(row):
    return row['attack'] == 'probe' and row['round'] in of[row['lengths']]

  kept = tables.keep(rows, tail=1, metrics=KEPT, curves=is_mark)
  # Rates are chosen by a mean over the last three evaluations.
  tails = {tables.identity(row): row for row in tables.keep(rows)}
  return [
    {**row, chosen: tails[tables.identity(row)][chosen]}
    for chosen in ['validation_accuracy']
    for row in kept
  ]


@functools.cache
def published() -> dict[str, tuple[float, float]]:
  """Rounds in % of the local steps, and what the paper says, by schedule."""
  volumes = {}
  for name, (peak, total, warmup, base, growth, percent) in PUBLISHED.items():
    steps = byzjax.quadratic_synchronization(
      optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total, 1e-6),
      total_steps=total,
      warmup_steps=warmup,
      base_steps=base,
      growth=growth,
    )
    volumes[name] = round(100 * len(steps) / total, 1), percent
  return volumes


def spreads(rows: Rows, settings: Settings) -> tables.Cells:
  """How far apart honest messages were, by (share of the steps, lengths).

  The norm of their standard deviations: a mean over seeds and over the rounds
  since the evaluation before.
  """
  factor = settings.num_workers / PROBE
  probes = tables.select(rows, attack='probe')
  return tables.Cells(
    ((f'{share} %', lengths), factor * np.mean(tables.column(at, KEPT[-1])))
    for lengths in compared(settings)
    for share, stop in zip(SHARES, marks(settings, lengths))
    if (at := tables.select(probes, lengths=lengths, round=stop))
  )


def summarise(rows: Rows, settings: Settings) -> Summary:
  total = settings.total_steps
  share = {k: 100 * len(v) / total for k, v in all_lengths(settings).items()}
  qsr = compared(settings)[-1]
  plain = tables.select(rows, attack='none')
  best = {
    x: tables.tuned(tables.select(plain, lengths=x), 'learning_rate')
    for x in share
  }
  ends = tables.Cells((x, tables.percent(runs)) for x, runs in best.items())
  table, against = {}, {}
  for name in share:
    table[name, 'accuracy'] = ends[name]
    table[name, 'training loss'] = tables.final(best[name], 'fit_loss')
    table[name, 'rounds, %'] = np.array(share[name])
    peak = tables.final(best[name], 'learning_rate')
    table[name, '1000 x rate'] = 1000 * peak[0]
    if name == qsr:
      continue
    against[name, 'tuned'] = ends[qsr] - ends[name]
    for rate in settings.learning_rates:
      mine, theirs = (
        tables.percent(tables.select(plain, lengths=x, learning_rate=rate))
        for x in (qsr, name)
      )
      against[name, f'rate {rate:g}'] = mine - theirs
  spread = spreads(rows, settings)
  attacked = tables.Cells(
    ((f'{x}, {rule} {radius or ""}'.strip(), attack), tables.percent(runs))
    for (x, rule, radius, attack), runs in tables.split_by(
      rows, 'lengths', 'rule', 'radius', 'attack'
    )
    if attack in ATTACKS
  )
  volumes = {
    (name, column): np.array(value)
    for name, values in published().items()
    for column, value in zip(('here', 'published'), values)
  }
  who = f'{settings.num_byzantine} of {settings.num_workers} attack'
  what = 'test accuracy (%) at peak rate'
  shown = [
    ('Rounds of the published schedules, in % of the local steps', volumes, 1),
    (f'No attackers: accuracy (%) and loss at step {total}', table, 2),
    (f'Test accuracy of {qsr} less that of others, by seed', against, 2),
    ('Spread of messages, at this share of the local steps', spread, 3),
    (f'{who}, {what} {settings.attack_learning_rate:g}', attacked, 1),
  ]
  return Summary(
    claims=claims(settings, share, against, spread, attacked),
    tables=[Table(t, tables.pivot(cells, k)) for t, cells, k in shown if cells],
    figures={'qsr.png': lambda: picture(settings, share, ends, spread)},
  )


def claims(settings, share, against, spread, attacked) -> list[Claim]:
  constant, _, qsr = compared(settings)
  source = 'Gu, Lyu, Arora, Zhang, Huang 2023, arXiv:2310.14423'
  about = {'paper': source, 'data': settings.dataset}
  ours = {'method': '', 'published': 'not in the paper', **about}
  more = 100 * share[constant] / share[qsr]
  volumes = published().values()
  agree = sum(volume == percent for volume, percent in volumes)
  falls = (spread['10 %', x] / spread['90 %', x] for x in (constant, qsr))
  gain = np.subtract(
    *(attacked[f'{qsr}, {rule}', 'sign flip'] for rule in list(RULES)[1::-1])
  )
  return [
    Claim(
      'QSR',
      'tests better than averaging after every step',
      published='ViT-B on ImageNet: +1.16 points, 20.2 h and not 26.7',
      evidence='A',
      **about,
    ),
    Claim(
      'QSR',
      'communicates far less than constant rounds and tests no worse',
      published='ViT-B on ImageNet, H 4: 79.32 constant, 80.98 QSR',
      evidence='T',
      checks=[
        Check(f'rounds of {constant} per 100 of {qsr}', more, 110),
        *(
          Check(f'accuracy of {qsr} less {x}, own rates', gap.mean(), -0.5)
          for x in (constant, 'parallel')
          for gap in [against[x, 'tuned']]
        ),
      ],
      **about,
    ),
    Claim(
      'QSR',
      'how often its schedules communicate',
      published=', '.join(f'{percent} %' for _, percent in volumes),
      evidence='C',
      checks=[Check('published volumes that agree', agree, len(volumes))],
      **about,
    ),
    Claim(
      says='honest messages stay apart, where those of constant rounds do not',
      checks=[
        Check(
          'fall of the spread from 10 to 90 % of the steps:'
          f' {constant} over {qsr}',
          np.mean(np.divide(*falls)),
          2,
        )
      ],
      **ours,
    ),
    Claim(
      says='a robust rule protects the few long rounds',
      checks=[
        Check(f'{qsr}, sign flip: trimmed mean over mean', gain.mean(), 30)
      ],
      **ours,
    ),
  ]


def picture(settings: Settings, share, ends, spread):
  """Lengths of rounds, accuracy by communication, spread over training."""
  figure, ((left, middle, right),) = pictures.panels(1, 3)
  colours = palette.colours(list(share))
  for name, steps in all_lengths(settings).items():
    style = {'color': colours[name], 'label': name}
    starts = np.cumsum(steps) - steps
    left.semilogy(starts, steps, drawstyle='steps-post', **style)
    middle.errorbar(
      share[name], ends[name].mean(), ends[name].std(), fmt='o', **style
    )
  for name in compared(settings):
    values = [np.mean(spread[f'{at} %', name]) for at in SHARES]
    right.semilogy(SHARES, values, 'o-', color=colours[name], label=name)
  left.set(xlabel='local step', ylabel='local steps of the round')
  middle.set(xlabel='rounds per 100 local steps', xscale='log')
  middle.set_ylabel('test accuracy (%)')
  right.set(xlabel='% of the local steps', ylabel='spread of honest messages')
  left.legend(fontsize='small')
  right.legend(fontsize='small')
  return figure
