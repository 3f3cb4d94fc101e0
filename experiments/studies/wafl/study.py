r"""WAFL: local steps on the worst inputs near the data (Nguyen et al.).

  python -m experiments.studies wafl --check                      # digits
  python -m experiments.studies wafl --dataset=mnist --data_dir=FOLDER

Ten clients, each with a main class, take local steps on the cross entropy
(FedAvg), on that of inputs which ten steps of ascent have moved at a price
gamma (WAFL), or of inputs that PGD has moved inside a box (FedPGD). At the end
the test inputs of a share of clients are moved by PGD. Then two of the clients
attack messages during training, before the mean or a robust rule. The learning
rate is the best of a few on a validation split, at every gamma.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import byzjax
from byzjax import data, models, objectives
from experiments.harness.cells import Cell, Rows
from experiments.harness.settings import ImageSettings, option
from experiments.reporting import pictures, tables
from experiments.reporting.summary import Check, Claim, Summary, Table
from experiments.studies import opponents

SHARES = (0, 20, 40, 60, 80)  # %, of clients with moved test inputs
QUICK = {
  'rounds': 2,
  'local_steps': 1,
  'gammas': (3.0,),
  'learning_rates': (0.1,),
}
QUICK_CELLS = ('methods, wafl',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(10, 'n.', low=1)
  num_byzantine: int = option(2, 'f, in the second part.', low=1)
  partition: str = option('main_class(share=0.7)', 'Of the examples.')
  rounds: int = option(60, 'Rounds of training.', low=1)
  local_steps: int = option(10, 'H.', low=1)
  batch_size: int = option(16, 'Examples per worker and step.', low=1)
  ascent_steps: int = option(10, 'K, of WAFL.', low=0)
  gammas: tuple[float, ...] = option(
    (0.1, 0.3, 1.0, 3.0, 10.0, 1e6), 'Prices of moving an input.'
  )
  attacked_gamma: float = option(3.0, 'gamma in the second part.', low=0)
  learning_rates: tuple[float, ...] = option((0.1, 0.3), 'To choose from.')
  radius: float = option(0.15, 'Of PGD; pixels are from 0 to 1.', low=0)
  pgd_steps: int = option(10, 'Of PGD, at a quarter of the radius.', low=1)


def define(settings: Settings) -> list[Cell]:
  methods = [
    cell(settings, 'methods', method, 'none', 'mean', settings.gammas)
    for method in ('fedavg', 'fedpgd', 'wafl')
  ]
  return methods + [
    cell(settings, 'attacks', method, attack, rule, [settings.attacked_gamma])
    for method in ('fedavg', 'wafl')
    for attack in opponents.ATTACKS
    for rule in opponents.RULES
    if (attack, rule) != ('none', 'mean')
  ]


def cell(settings: Settings, part, method, attack, rule, gammas) -> Cell:
  f = settings.num_byzantine

  def moved(loss_fn, params, batch):
    """The inputs of a batch, moved by PGD inside the box."""
    return objectives.pgd_inputs(
      loss_fn, params, batch, epsilon=settings.radius,
      step_size=settings.radius / 4, num_steps=settings.pgd_steps,
      value_range=(0, 1),
    )  # fmt: skip

  def local_loss(loss_fn, gamma):
    if method == 'wafl':
      return objectives.wasserstein(
        loss_fn, gamma=gamma, num_ascent_steps=settings.ascent_steps
      )
    if method == 'fedpgd':
      return lambda params, batch: loss_fn(
        params, (moved(loss_fn, params, batch), batch[1])
      )
    return loss_fn

  def make_round(task, key, learning_rate, gamma):
    del key
    return byzjax.fed_avg(
      local_loss(task.loss_fn, gamma),
      learning_rate=learning_rate,
      num_local_steps=settings.local_steps,
      num_workers=settings.num_workers,
      aggregator=opponents.RULES[rule](f),
      attack=opponents.ATTACKS[attack](),
      byzantine=0 if attack == 'none' else f,
      sampler=data.local_sampler(
        task.images,
        task.labels,
        batch_size=settings.batch_size,
        scale=task.scale,
      ),  # fmt: skip
    )

  def attacked_accuracy(task, params, images, labels):
    """On inputs that were moved against this very model."""
    loss_fn = models.cross_entropy_loss(task.graphdef)
    inputs = images.astype(jnp.float32) / task.scale
    inputs = moved(loss_fn, params, (inputs, labels))
    scores = models.evaluate(
      task.graphdef, params, inputs, labels, num_classes=task.num_classes,
      scale=1.0,
    )  # fmt: skip
    return {'attacked_accuracy': scores.accuracy}

  return Cell(
    labels={'part': part, 'method': method, 'attack': attack, 'rule': rule},
    make_round=make_round,
    grid={
      'learning_rate': settings.learning_rates,
      # A column that only WAFL has a use for.
      'gamma': gammas if method == 'wafl' else [0.0],
    },
    num_workers=settings.num_workers,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    partition=settings.partition,
    is_local=True,
    measure=attacked_accuracy,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  compared = ('fedavg', 0.0), ('wafl', max(settings.gammas))
  return tables.keep(
    rows,
    metrics=('accuracy', 'attacked_accuracy', 'validation_accuracy'),
    # FedAvg and the largest gamma are compared at every evaluation.
    curves=lambda row: (
      row['part'] == 'methods' and (row['method'], row['gamma']) in compared
    ),
  )


def accuracies(rows: Rows, **labels) -> tuple[np.ndarray, np.ndarray]:
  """Accuracy (%) on clean and moved inputs, per seed, at the best rate."""
  best = tables.tuned(tables.select(rows, **labels), 'learning_rate')
  return tables.percent(best), tables.percent(best, 'attacked_accuracy')


def by_share(rows: Rows, gammas) -> tables.Cells:
  """Accuracy over clients of which a share has moved inputs.

  All clients are tested on the same examples, so that it does not matter which
  of them are attacked, and this is the mean over all choices.
  """
  labels: dict = {name: {'method': name} for name in ('fedavg', 'fedpgd')}
  labels |= {name_of(g): {'method': 'wafl', 'gamma': g} for g in gammas}
  table = tables.Cells()
  for name, of_method in labels.items():
    clean, moved = accuracies(rows, **of_method)
    for share in SHARES:
      mixed = (1 - share / 100) * clean + share / 100 * moved
      table[name, f'{share} %'] = mixed
  return table


def name_of(gamma: float) -> str:
  return f'wafl, gamma {gamma:g}'


def largest_difference(rows: Rows, gamma: float) -> float:
  """Between WAFL and FedAvg, over all rates, seeds and evaluations; points."""

  def scores(**labels):
    return {
      (row['learning_rate'], row['seed'], row['round'], name): row[name]
      for row in tables.select(rows, **labels)
      for name in ('accuracy', 'attacked_accuracy')
    }

  fedavg, wafl = scores(method='fedavg'), scores(method='wafl', gamma=gamma)
  common = fedavg.keys() & wafl.keys()
  return 100 * max((abs(fedavg[k] - wafl[k]) for k in common), default=np.nan)


def picture(table: tables.Cells, gammas) -> plt.Figure:
  """Accuracy against the share of attacked clients, and against gamma."""
  figure, axes = pictures.panels(1, 2, sharey=True, figsize=(11, 4.6))
  left, right = axes[0]
  names, shares = tables.axes(table)
  of_method = {name: [table[name, s] for s in shares] for name in names}
  pictures.spread_over(left, SHARES, of_method)
  left.set(xlabel='clients with moved test inputs (%)')
  left.set(ylabel='pooled test accuracy (%)', ylim=(0, 100))
  of_gammas = {
    f'{share} attacked': [table[name_of(gamma), share] for gamma in gammas]
    for share in shares[::2]
  }
  pictures.spread_over(right, gammas, of_gammas)
  right.set(xlabel='gamma of WAFL', xscale='log')
  for each in (left, right):
    each.legend(fontsize=8, ncols=3, loc='lower left', bbox_to_anchor=(0, 1))
  return figure


def summarise(rows: Rows, settings: Settings) -> Summary:
  gammas, attacked = sorted(settings.gammas), tables.Cells()
  part = tables.select(rows, part='methods')
  table = by_share(part, gammas)
  at_40 = {gamma: table[name_of(gamma), '40 %'].mean() for gamma in gammas}
  best = max(at_40, key=lambda gamma: at_40[gamma])
  less = {
    (f'less {other}', share): table[name_of(best), share] - table[other, share]
    for other in ('fedavg', 'fedpgd')
    for share in tables.axes(table)[1]
  }
  for (rule, attack), both in tables.split_by(
    tables.select(rows, part='attacks'), 'rule', 'attack'
  ):
    at = f'{rule}, {attack}'
    for method in ('fedavg', 'wafl'):
      clean, moved = accuracies(both, method=method)
      attacked[at, f'{method}, clean'] = clean
      attacked[at, f'{method}, moved'] = moved
    gain = attacked[at, 'wafl, moved'] - attacked[at, 'fedavg, moved']
    attacked[at, 'gain, moved'] = gain

  def cost(gamma: float) -> float:
    return (table['fedavg', '0 %'] - table[name_of(gamma), '0 %']).mean()

  def claim(says: str, *checks: Check, method: str = 'WAFL') -> Claim:
    paper = 'Nguyen et al. 2022, arXiv:2206.01432 (figures only)'
    return Claim(method, says, paper, settings.dataset, checks)

  lost = (table['fedavg', '0 %'] - table['fedavg', '80 %']).mean()
  less_lost = (less['less fedavg', '80 %'] - less['less fedavg', '0 %']).mean()
  over_pgd = less['less fedpgd', '80 %'].mean()
  over_ends = at_40[best] - max(at_40[gammas[0]], at_40[gammas[-1]])
  apart = largest_difference(part, gammas[-1])
  knows = 'FedPGD trains on the box of the test, WAFL does not know it'
  return Summary(
    claims=[
      claim(
        'moved test inputs of 80 % of clients cost WAFL less than FedAvg',
        Check('points they cost FedAvg', lost, 20),
        Check(f'less for WAFL, gamma {best:g}', less_lost, 10),
      ),
      claim(
        'WAFL is more robust than related methods',
        Check('points over FedPGD, 80 % attacked', over_pgd, 0, why=knows),
      ),
      claim(
        'the price in clean accuracy is small, and grows as gamma shrinks',
        Check(f'points lost, gamma {best:g}', cost(best), at_most=5),
        Check(f'more at gamma {gammas[0]:g}', cost(gammas[0]) - cost(best), 5),
      ),
      claim(
        'a gamma inside the range is best',
        Check('points over both ends, 40 % attacked', over_ends, 2),
      ),
      claim(
        'WAFL with a large gamma is FedAvg',
        Check('most points apart, any evaluation', apart, at_most=0.5),
      ),
      claim(
        'behind a robust rule WAFL keeps its gain under attack (ours)',
        *(
          Check(
            f'points over FedAvg on moved inputs, {attack}',
            attacked[f'nnm, median, {attack}', 'gain, moved'].mean(), 5,
          )
          for attack in opponents.ATTACKS
        ),
        method='',
      ),
    ],
    tables=[
      Table(title, tables.pivot(x))
      for title, x in (
        ('Pooled test accuracy (%) by the share of clients attacked', table),
        (f'Gamma {best:g}, best at 40 %, less others of the same seed', less),
        (
          f'{settings.num_byzantine} of {settings.num_workers} attack in'
          f' training; gamma {settings.attacked_gamma:g}', attacked,
        ),
      )
      if x
    ],
    figures={'accuracy.png': lambda: picture(table, gammas)},
  )  # fmt: skip
