r"""WAFL: local steps on the worst inputs near the data (Nguyen et al.).

  python -m experiments.studies wafl --check                      # digits
  python -m experiments.studies wafl --variant=mnist --data_dir=FOLDER

Ten clients, each with a main class, take local steps on the cross entropy
(FedAvg), on that of inputs which ten steps of ascent have moved at a price
gamma (WAFL), or of inputs that PGD has moved inside a box (FedPGD). At the end
the test inputs of a share of clients are moved by PGD. Then two of the clients
attack messages during training, before the mean or a robust rule. The learning
rate is the best of a few on a validation split, at every gamma.

The variant mnist is the experiment of the paper: logistic regression on
standardised pixels, 100 clients with three labels each, of whom ten train in a
round.
"""

import dataclasses

import numpy as np
from matplotlib import pyplot as plt

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, check_known, option
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, claims_about, pivots
from .. import opponents
from . import training

SHARES = (0, 20, 40, 60, 80)  # %, of clients with moved test inputs
QUICK = {
  'rounds': 2,
  'local_steps': 1,
  'gammas': (3.0,),
  'learning_rates': (0.1,),
}
QUICK_CELLS = ('methods, wafl',)
VARIANTS = {
  'mnist': {
    'dataset': 'mnist',
    'linear': True,
    'standardised': True,
    'num_workers': 100,
    'participation': 10,
    'num_byzantine': 10,
    'told': 3,
    'labels_each': 3,
    'local_steps': 17,
    'batch_size': 64,
    'rounds': 200,
    'gammas': (0.05,),
    'attacked_gamma': 0.05,
    'learning_rates': (0.01, 0.03, 0.1),
    'larger_rates': (0.3,),
    'radius': 0.3,
    'pgd_step': 0.01,
    'pgd_steps': 40,
    'num_evals': 2,
    'attacks': ('sign flip x 10',),
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(10, 'n.', low=1)
  num_byzantine: int = option(2, 'f, in the second part.', low=1)
  told: int = option(2, 'f that a robust rule is told.', low=1)
  participation: int = option(0, 'Clients of a round; 0 for all.', low=0)
  partition: str = option('main_class(share=0.7)', 'Of the examples.')
  labels_each: int = option(
    0, 'Labels of a client, in place of --partition.', low=0
  )
  linear: bool = option(False, 'Logistic regression in place of --model.')
  standardised: bool = option(
    False, 'Pixels have mean 0 and deviation 1, and no range.'
  )
  rounds: int = option(60, 'Rounds of training.', low=1)
  local_steps: int = option(10, 'H.', low=1)
  batch_size: int = option(16, 'Examples per worker and step.', low=1)
  ascent_steps: int = option(10, 'K, of WAFL.', low=0)
  gammas: tuple[float, ...] = option(
    (0.1, 0.3, 1.0, 3.0, 10.0, 1e6), 'Prices of moving an input.'
  )
  attacked_gamma: float = option(3.0, 'gamma in the second part.', low=0)
  learning_rates: tuple[float, ...] = option((0.1, 0.3), 'To choose from.')
  larger_rates: tuple[float, ...] = option(
    (), 'And these, at which WAFL diverges, for others.'
  )
  radius: float = option(0.15, 'Of PGD; pixels are from 0 to 1.', low=0)
  pgd_step: float = option(0.0375, 'Step of PGD.', low=0)
  pgd_steps: int = option(10, 'Of PGD.', low=1)
  num_evals: int = option(20, 'Evaluations.', low=1)
  attacks: tuple[str, ...] = option(
    tuple(opponents.ATTACKS), 'In training, of those there are.'
  )


def define(settings: Settings) -> list[Cell]:
  check_known('attacks', settings.attacks, training.ATTACKS)
  methods = [
    training.cell(settings, 'methods', method, 'none', 'mean', settings.gammas)
    for method in ('fedavg', 'fedpgd', 'wafl')
  ]
  return methods + [
    training.cell(
      settings, 'attacks', method, attack, rule, [settings.attacked_gamma]
    )
    for method in ('fedavg', 'wafl')
    for attack in settings.attacks
    for rule in opponents.RULES
    if (attack, rule) != ('none', 'mean')
    # What takes the mean along needs to be shown for one method only.
    and (attack in opponents.ATTACKS or (method, rule) != ('wafl', 'mean'))
  ]


def keep(rows: Rows, settings: Settings) -> Rows:
  compared = ('fedavg', 0.0), ('wafl', max(settings.gammas))
  return tables.keep(
    rows,
    tail=min(3, (settings.num_evals + 1) // 2),
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
  """Accuracy against the share of attacked clients, and against gammas."""
  count = min(len(gammas), 2)
  figure, ((left, *others),) = pictures.panels(
    1, count, sharey=True, figsize=(5.5 * count, 4.6)
  )
  names, shares = tables.axes(table)
  of_method = {name: [table[name, s] for s in shares] for name in names}
  pictures.spread_over(left, SHARES, of_method)
  left.set(xlabel='clients with moved test inputs (%)')
  left.set(ylabel='pooled test accuracy (%)', ylim=(0, 100))
  of_gammas = {
    f'{share} attacked': [table[name_of(gamma), share] for gamma in gammas]
    for share in shares[::2]
  }
  for right in others:
    pictures.spread_over(right, gammas, of_gammas)
    right.set(xlabel='gamma of WAFL', xscale='log')
  for each in (left, *others):
    each.legend(fontsize=8, ncols=3, loc='lower left', bbox_to_anchor=(0, 1))
  return figure


def page_picture(settings: Settings) -> str:
  on_digits = settings.dataset == 'digits'
  return 'accuracy.png' if on_digits else f'{settings.dataset}.png'


def best_at_40(table: tables.Cells, gammas) -> float:
  """The gamma that is best where 40 % of clients are attacked."""
  return max(gammas, key=lambda gamma: table[name_of(gamma), '40 %'].mean())


def less_others(table: tables.Cells, gamma: float) -> tables.Cells:
  """WAFL less others of the same seed."""
  return tables.Cells(
    ((f'less {name}', share), table[name_of(gamma), share] - table[name, share])
    for name in ('fedavg', 'fedpgd')
    for share in tables.axes(table)[1]
  )


def under_attack(rows: Rows) -> tables.Cells:
  """Accuracy after attacks in training, by rule and attack."""
  table = tables.Cells()
  for (rule, attack), both in tables.split_by(
    tables.select(rows, part='attacks'), 'rule', 'attack'
  ):
    at = f'{rule}, {attack}'
    for method in tables.values_of(both, 'method'):
      clean, moved = accuracies(both, method=method)
      table[at, f'{method}, clean'] = clean
      table[at, f'{method}, moved'] = moved
    if (at, 'wafl, moved') in table:
      gain = table[at, 'wafl, moved'] - table[at, 'fedavg, moved']
      table[at, 'gain, moved'] = gain
  return table


def summarise(rows: Rows, settings: Settings) -> Summary:
  gammas, attacked = sorted(settings.gammas), under_attack(rows)
  part = tables.select(rows, part='methods')
  table = by_share(part, gammas)
  best = best_at_40(table, gammas)
  chosen = ', best at 40 %,' if len(gammas) > 1 else ''
  paper = 'Nguyen et al. 2022, arXiv:2206.01432 (figures only)'
  claim = claims_about('WAFL', paper, settings.dataset)
  return Summary(
    claims=[
      *claims_of_methods(claim, table, best, gammas, settings.dataset),
      # One gamma, as in the commands of the authors, has no ends.
      *(claims_of_ends(claim, part, table, gammas) if len(gammas) > 2 else ()),
      claim(
        'behind a robust rule WAFL keeps its gain under attack (ours)',
        *checks_of_attacks(attacked, settings.attacks),
        method='',
      ),
    ],
    tables=pivots(
      [
        ('Pooled test accuracy (%) by the share of clients attacked', table),
        (
          f'Gamma {best:g}{chosen} less others of the same seed',
          less_others(table, best),
        ),
        (
          f'{settings.num_byzantine} of {settings.num_workers} attack in'
          f' training; gamma {settings.attacked_gamma:g}',
          attacked,
        ),
      ]
    ),
    figures={page_picture(settings): lambda: picture(table, gammas)},
  )


def claims_of_methods(
  claim, table: tables.Cells, best: float, gammas, data: str
) -> list[Claim]:
  """Of WAFL at its best gamma, and others."""
  less = less_others(table, best)
  lost = (table['fedavg', '0 %'] - table['fedavg', '80 %']).mean()
  less_lost = (less['less fedavg', '80 %'] - less['less fedavg', '0 %']).mean()
  over_pgd = less['less fedpgd', '80 %'].mean()
  knows = ''
  if data == 'digits':
    knows = 'FedPGD trains on the box of the test, WAFL does not know it'

  def cost(gamma: float) -> float:
    return (table['fedavg', '0 %'] - table[name_of(gamma), '0 %']).mean()

  return [
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
      *(
        Check(f'more at gamma {gamma:g}', cost(gamma) - cost(best), 5)
        for gamma in gammas[:1]
        if len(gammas) > 1
      ),
    ),
  ]


def claims_of_ends(
  claim, rows: Rows, table: tables.Cells, gammas
) -> list[Claim]:
  """Of the smallest and of the largest gamma."""
  first, last, best = (
    table[name_of(gamma), '40 %'].mean()
    for gamma in (gammas[0], gammas[-1], best_at_40(table, gammas))
  )
  apart = largest_difference(rows, gammas[-1])
  return [
    claim(
      'a gamma inside the range is best',
      Check('points over both ends, 40 % attacked', best - max(first, last), 2),
    ),
    claim(
      'WAFL with a large gamma is FedAvg',
      Check('most points apart, any evaluation', apart, at_most=0.5),
    ),
  ]


def checks_of_attacks(attacked: tables.Cells, attacks) -> list[Check]:
  def over_mean(attack: str) -> float:
    rule, mean = (
      attacked[f'{x}, {attack}', 'fedavg, clean']
      for x in ('nnm, median', 'mean')
    )
    return (rule - mean).mean()

  return [
    *(
      Check(
        f'points over FedAvg on moved inputs, {attack}',
        attacked[f'nnm, median, {attack}', 'gain, moved'].mean(),
        5,
      )
      for attack in attacks
    ),
    *(
      Check(
        f'points of the rule over the mean, FedAvg, clean, {attack}',
        over_mean(attack),
        30,
      )
      for attack in attacks
      if attack not in opponents.ATTACKS
    ),
  ]
