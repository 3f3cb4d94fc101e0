r"""FedBR: less local bias in features and classifiers (Guo, Tang, Lin).

  python -m experiments.studies fedbr --check                     # digits
  python -m experiments.studies fedbr --variant=mnist --data_dir=FOLDER

Ten clients, all in every round, hold few classes each and images at angles of
their own; they take local steps of plain SGD, whatever the objective: cross
entropy (FedAvg), with a spring (FedProx), with the two terms of FedBR, and with
each of them alone. Pseudo-data are blurred examples, made before the first
round. Then two clients attack messages, of which the projection is a part,
before the mean or a robust rule. At last the first comparison again, over more
rounds. Learning rates and weights are chosen on a validation split.

The variant mnist has more pixels, more features and longer rounds, FedBR and
its components without attack, and one attack.
"""

import dataclasses
import functools

import numpy as np

import byzjax
from byzjax import objectives

from ...harness.cells import Cell, Rows, basic_metrics
from ...harness.settings import ImageSettings, check_known, option
from ...reporting import tables
from ...reporting.summary import Summary, Table
from .. import opponents
from . import claims, clients, measure

METHODS = ('fedavg', 'fedprox', 'fedbr', 'fedbr, mixed')
WEIGHTS = ('proximal_weight', 'contrast_weight', 'pseudo_weight')
CHOSEN = ('learning_rate', *WEIGHTS)
KEPT = ('accuracy', 'validation_accuracy', 'relative_error')
QUICK = {'rounds': 4, 'local_steps': 2, 'learning_rates': (0.3,)}
QUICK_CELLS = ('methods, 0.1, fedavg', 'methods, 0.1, fedbr, none')
VARIANTS = {
  'mnist': {
    'dataset': 'mnist',
    'hidden': 100,
    'parts': ('methods', 'attacks'),
    # FedBR without its terms is FedAvg.
    'methods': ('fedbr',),
    'concentrations': (0.1,),
    'attacks': ('sign flip',),
    'rules': ('nnm, median',),
    'rounds': 24,
    'local_steps': 50,
    'learning_rates': (0.1, 0.3, 1.0),
    'pseudo_weights': (0.0, 1.0),
    'num_evals': 12,
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(10, 'n.', low=1)
  num_byzantine: int = option(2, 'f, in the second part.', low=1)
  rounds: int = option(40, 'Rounds of training.', low=1)
  long: int = option(4, 'Times the rounds, in the third part.', low=1)
  hidden: int = option(0, 'Features of an MLP in place of --model.', low=0)
  parts: tuple[str, ...] = option(('methods', 'attacks', 'long'), 'Of these.')
  methods: tuple[str, ...] = option(METHODS, 'Without attack, of these.')
  attacks: tuple[str, ...] = option(
    tuple(opponents.ATTACKS), 'On messages, of those there are.'
  )
  rules: tuple[str, ...] = option(
    tuple(opponents.RULES), 'Under attack, of those there are.'
  )
  num_evals: int = option(20, 'Evaluations.', low=4)
  local_steps: int = option(20, 'H.', low=1)
  batch_size: int = option(16, 'Examples per worker and step.', low=1)
  concentrations: tuple[float, ...] = option(
    (0.1, 10.0), 'Of labels, over all classes: skewed and mild.'
  )
  learning_rates: tuple[float, ...] = option((0.3, 1.0), 'To choose from.')
  proximal_weights: tuple[float, ...] = option(
    (0.01, 0.1, 1.0), 'To choose from.'
  )
  contrast_weights: tuple[float, ...] = option((0.0, 0.5), 'mu, 0 is without.')
  pseudo_weights: tuple[float, ...] = option(
    (0.0, 0.1, 1.0), 'lambda, 0 is without.'
  )


def weight_grid(settings: Settings, method: str, part: str):
  """What to choose the weights from; zero is without a term."""
  grid: dict[str, tuple[float, ...]] = {name: (0.0,) for name in WEIGHTS}
  if method == 'fedprox':
    grid['proximal_weight'] = settings.proximal_weights
  if 'fedbr' in method:
    for name in WEIGHTS[1:]:
      values = getattr(settings, f'{name}s')
      positive = tuple(v for v in values if v > 0)
      # The components alone are looked at without attackers.
      whole = part == 'attacks' or 'mixed' in method
      grid[name] = positive if whole else values
      if part == 'long':
        grid[name] = (0.0, min(positive))
  return grid


def cell(
  settings: Settings,
  method: str,
  concentration: float,
  part: str = 'methods',
  attack: str = 'none',
  rule: str = 'mean',
) -> Cell:
  n, size = settings.num_workers, settings.batch_size
  data_of = settings.dataset, settings.data_dir
  own_sizes = functools.partial(
    clients.sizes, *data_of, settings.model, settings.hidden
  )
  f = 0 if attack == 'none' else settings.num_byzantine
  has_projection = 'fedbr' in method

  def make_round(task, key, learning_rate, **weights):
    return byzjax.fed_avg(
      clients.objective(method, task, key, size, f, learning_rate, weights),
      learning_rate=learning_rate,
      num_local_steps=settings.local_steps,
      num_workers=n,
      aggregator=opponents.RULES[rule](settings.num_byzantine),
      attack=measure.measured(opponents.ATTACKS[attack](), own_sizes()[0]),
      byzantine=f,
      sampler=task.sampler(size),
    )

  def make_params(params, key):
    # The sizes of the paper, which are 512, 256 and 128, in proportion.
    _, width = own_sizes()
    head = objectives.projection(
      key, num_features=width, width=width // 2, out=width // 4
    )
    return {'model': params, 'projection': head} if has_projection else params

  def metrics(state, info):
    return {**basic_metrics(state, info), 'relative_error': state.attack[-1]}

  return Cell(
    labels={
      'part': part,
      'concentration': concentration,
      'method': method,
      'attack': attack,
      'rule': rule,
    },
    make_round=make_round,
    grid={
      'learning_rate': settings.learning_rates,
      **weight_grid(settings, method, part),
    },
    num_workers=n,
    rounds=settings.rounds * (settings.long if part == 'long' else 1),
    batch_size=size,
    partition=f'dirichlet_total(concentration={concentration})',
    is_local=True,
    num_evals=settings.num_evals,
    make_images=clients.rotated,
    make_model=functools.partial(
      clients.network, settings.model, settings.hidden
    ),
    make_params=make_params,
    model_of=lambda params: params['model'] if has_projection else params,
    metrics=metrics,
  )


def define(settings: Settings) -> list[Cell]:
  check_known('parts', settings.parts, Settings().parts)
  check_known('methods', settings.methods, METHODS)
  check_known('attacks', settings.attacks, opponents.ATTACKS)
  check_known('rules', settings.rules, opponents.RULES)
  cells_of = {
    'methods': of_methods,
    'attacks': of_attacks,
    'long': lambda settings: [
      cell(settings, 'fedbr', settings.concentrations[0], 'long')
    ],
  }
  return [x for part in settings.parts for x in cells_of[part](settings)]


def of_methods(settings: Settings) -> list[Cell]:
  return [
    cell(settings, method, concentration)
    for concentration in settings.concentrations
    for method in settings.methods
    if method != 'fedbr, mixed' or concentration == settings.concentrations[0]
  ]


def of_attacks(settings: Settings) -> list[Cell]:
  skewed = settings.concentrations[0]
  return [
    cell(settings, method, skewed, 'attacks', attack, rule)
    for method in ('fedavg', 'fedbr')
    for attack in settings.attacks
    for rule in settings.rules
    if (attack, rule) != ('none', 'mean')
  ]


def using(rows: Rows, contrast: bool, pseudo: bool) -> Rows:
  """The runs of FedBR with or without each of its terms."""
  return [
    row
    for row in tables.select(rows, method='fedbr')
    if (row['contrast_weight'] > 0, row['pseudo_weight'] > 0)
    == (contrast, pseudo)
  ]


def by_method(rows: Rows) -> dict[str, Rows]:
  """The best runs of every method, and of each part of FedBR alone.

  FedBR without its parts is FedAvg, where there is no other.
  """
  of = {method: tables.select(rows, method=method) for method in METHODS}
  of['fedavg'] = of['fedavg'] or using(rows, False, False)
  of['fedbr'] = using(rows, True, True)
  of['component 1'] = using(rows, False, True)
  of['component 2'] = using(rows, True, False)
  return {m: tables.tuned(runs, *CHOSEN) for m, runs in of.items() if runs}


def rounds_to(rows: Rows, accuracy: float, rounds: int) -> np.ndarray:
  """Per seed, the first evaluation that is as good, or all rounds."""
  return np.array(
    [
      min(
        (r['round'] for r in own if r['accuracy'] >= accuracy), default=rounds
      )
      for own in tables.split(rows, 'seed').values()
    ]
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """The best runs of every method, with errors that are means over rounds.

  Of the first part there are also the row after a quarter of the rounds and the
  first that is good enough.
  """
  runs = tables.runs(rows)
  marks: dict[tuple, set[int]] = {}
  for (part, *_), of in tables.split_by(
    tables.keep(rows, tail=tail(settings)),
    'part',
    'concentration',
    'attack',
    'rule',
  ):
    best = by_method(of)
    for run in (tables.identity(r) for rows in best.values() for r in rows):
      marks[run] = set()
      if part == 'methods':
        goal = goal_of(best)
        good = [r['round'] for r in runs[run] if r['accuracy'] >= goal]
        marks[run] = {settings.rounds // 4, *good[:1]}
  kept = tables.keep(
    [row for row in rows if tables.identity(row) in marks],
    tail=tail(settings),
    metrics=KEPT,
    curves=lambda row: row['round'] in marks[tables.identity(row)],
  )
  for row in kept:
    own = runs[tables.identity(row)]
    row[KEPT[-1]] = float(np.mean(tables.column(own, KEPT[-1])))
  return kept


def tail(settings: Settings) -> int:
  """Evaluations that the last row is the mean of."""
  return min(3, settings.num_evals // 2)


def goal_of(best: dict[str, Rows]) -> float:
  """0.95 of the final accuracy of FedAvg."""
  return 0.95 * tables.final(best['fedavg']).mean()


def summarise(rows: Rows, settings: Settings) -> Summary:
  compared = tables.select(rows, part='methods')
  chosen, table = {}, tables.Cells()
  for concentration in settings.concentrations:
    best = by_method(tables.select(compared, concentration=concentration))
    at = f'{concentration:g}'
    for method, runs in best.items():
      for name in CHOSEN:
        chosen[f'{at}, {method}', name] = tables.final(runs, name)[:1]
      early = [row for row in runs if row['round'] <= settings.rounds // 4]
      table[method, f'{at}: early'] = tables.percent(early)
      table[method, f'{at}: end'] = tables.percent(runs)
      table[method, f'{at}: gain'] = tables.percent(runs) - tables.percent(
        best['fedavg']
      )
      table[method, f'{at}: rounds'] = rounds_to(
        runs, goal_of(best), settings.rounds
      )
  attacked, long = tables.Cells(), tables.Cells()
  for (rule, attack), of in tables.split_by(
    tables.select(rows, part='attacks'), 'rule', 'attack'
  ):
    for method, runs in by_method(of).items():
      at = f'{rule}, {attack}'
      attacked[at, f'{method}: %'] = tables.percent(runs)
      attacked[at, f'{method}: error'] = tables.percent(runs, 'relative_error')
  for method, runs in by_method(tables.select(rows, part='long')).items():
    long[method, 'end'] = tables.percent(runs)
    long[method, 'gain'] = long[method, 'end'] - long['fedavg', 'end']
  who = f'{settings.num_byzantine} of {settings.num_workers} attack'
  shown = [
    ('Chosen on the validation split, by concentration', chosen, 2),
    (
      'Accuracy (%) at a quarter of the rounds and at the end, gain over'
      ' FedAvg, rounds to 0.95 of its accuracy, by concentration',
      table,
      1,
    ),
    (f'{who}: accuracy, and error of the rule in % of |m|', attacked, 1),
    (f'{settings.long} times the rounds: accuracy (%) and gain', long, 1),
  ]
  name = 'accuracy.png'
  if settings.dataset != 'digits':
    name = f'{settings.dataset}.png'
  return Summary(
    claims=claims.of_tables(settings, table, attacked, long),
    tables=[Table(t, tables.pivot(x, digits)) for t, x, digits in shown if x],
    figures={name: lambda: claims.picture(settings, table, long)},
  )
