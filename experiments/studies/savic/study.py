r"""Local SGD with a diagonal preconditioner (SAVIC, Chezhegov et al.).

  python -m experiments.studies savic --check                     # digits
  python -m experiments.studies savic --variant=cifar10 --data_dir=FOLDER
  python -m experiments.studies savic --dataset=mnist --data_dir=FOLDER

Ten workers, each with one main class, take ten local steps between averages.
Steps are divided by a diagonal that moves only at communication: one for all
workers (global), from their averaged statistics, or each worker's own (local).
The problem is made ill-conditioned by a factor of 10^U(-2, 2) for every pixel;
without factors it is the control. A global diagonal is a second channel: under
attack, two of ten send a negative multiple of the honest mean in both: one that
makes the mean of all zero, or a huge one. The median guards neither channel,
the messages alone, or both; a lower bound on the diagonal limits the damage.
Learning rates, bounds and multiples are a grid in one program per cell; rates
and bounds are chosen on validation data.

The variant cifar10 (module `classes`) is another part: the images that the
paper trains on, a small CNN, and three shares of the main class.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

import byzjax

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, claims_about, pivots
from . import classes
from .training import training

# By powers of ten. Plain steps need the wider range.
RATES = [10.0 ** (k / 2) for k in range(-7, 0)]
PLAIN_RATES = [10.0 ** (k / 2) for k in range(-10, 2)]
PROBLEMS = {'ill': 'pixels times 10^U(-2, 2)', 'even': 'pixels as they are'}
METHODS = [
  ('local SGD', '-'),
  *((m, s) for m in ('adam', 'rmsprop', 'oasis') for s in ('global', 'local')),
]
# Method, scope, and who is guarded by the median.
DEFENCES = [
  ('local SGD', '-', 'none'),
  ('local SGD', '-', 'all'),
  ('adam', 'global', 'none'),
  ('adam', 'global', 'messages'),
  ('adam', 'global', 'all'),
  ('adam', 'local', 'all'),
]
SOURCE = (
  'Chezhegov, Skorik, Khachaturov, Shalagin, Avetisyan, Takac, Kholodov,'
  ' Beznosikov 2024, arXiv:2406.00846'
)
VARIANTS = {
  'cifar10': {
    'dataset': 'cifar10',
    'model': 'cnn',
    'shares': (0.3, 0.5, 0.7),
    'pooling': 4,
    'rounds': 50,
    'batch_size': 8,
  }
}
QUICK = {'rounds': 4, 'lower_bounds': (1e-3,)}
QUICK_CELLS = ('even, local SGD', 'even, adam, global')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(10, 'M.', low=1)
  num_byzantine: int = option(2, 'f, of the attacks.', low=1)
  rounds: int = option(40, 'Rounds of training.', low=1)
  local_steps: int = option(10, 'H.', low=1)
  batch_size: int = option(16, 'Examples per worker and step.', low=1)
  share: float = option(0.5, 'Of the main class at a worker.', low=0)
  shares: tuple[float, ...] = option(
    (), 'Of the main class, if this is the part on main classes.'
  )
  pooling: int = option(1, 'k x k pixels are one, in that part.', low=1)
  decay: float = option(0.8, 'beta of the diagonal.', low=0)
  lower_bounds: tuple[float, ...] = option((1e-3, 1e-1), 'alpha, low and high.')


def attacks(settings: Settings) -> dict[str, float]:
  """The multiple of each attack; 0 stands for no attackers."""
  n, f = settings.num_workers, settings.num_byzantine
  # Of the first, the mean of all rows is zero.
  return {'none': 0.0, 'down': (n - f) / f, 'up': 1e4}


def ill_conditioned(images, partition, seed):
  """Pixels times 10^U(-2, 2), the same factors for all sets of a seed."""
  del partition
  exponents = np.random.default_rng(seed).uniform(-2, 2, images.shape[1:])
  return (images * 10**exponents).astype(np.float32)


def cell(settings: Settings, problem, method, scope, guarded='none') -> Cell:
  n = settings.num_workers
  scaled = method != 'local SGD'
  attacked = problem == 'ill' and (method, scope, guarded) in DEFENCES

  def make_round(task, key, learning_rate, lower_bound, multiple):
    del key
    median, mean = byzjax.coordinate_median(), byzjax.mean()
    side = None
    if scope == 'global':
      side = median if guarded == 'all' else mean
    return training(
      settings,
      task,
      method=method,
      scope=scope,
      learning_rate=learning_rate,
      lower_bound=lower_bound,
      multiple=multiple,
      aggregator=mean if guarded == 'none' else median,
      side=side,
    )

  return Cell(
    labels={
      'problem': problem,
      'method': method,
      'scope': scope,
      'guarded': guarded,
    },
    make_round=make_round,
    grid={
      'learning_rate': RATES if scaled else PLAIN_RATES,
      'lower_bound': settings.lower_bounds if scaled else [1.0],
      'multiple': list(attacks(settings).values()) if attacked else [0.0],
    },
    num_workers=n,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    partition=f'main_class(share={settings.share})',
    is_local=True,
    make_images=ill_conditioned if problem == 'ill' else None,
  )


def define(settings: Settings) -> list[Cell]:
  if settings.shares:
    return classes.define(settings)
  return [
    *(cell(settings, p, *method) for p in PROBLEMS for method in METHODS),
    *(cell(settings, 'ill', *d) for d in DEFENCES if d[2] != 'none'),
  ]


def best_of(rows: Rows, problem: str, method: str, scope: str) -> Rows:
  """Without attackers, at the rate and bound best on the validation split."""
  runs = tables.select(
    rows,
    problem=problem,
    method=method,
    scope=scope,
    guarded='none',
    multiple=0.0,
  )
  return tables.tuned(runs, 'lower_bound', 'learning_rate')


def reached(rows: Rows, goals: np.ndarray, rounds: int) -> np.ndarray:
  """Per seed, the first round with this training loss; the last if none."""
  return np.array(
    [
      min((r['round'] for r in own if r['train_loss'] <= goal), default=rounds)
      for own, goal in zip(tables.split(rows, 'seed').values(), goals)
    ]
    or [np.nan]
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """At the rates that are best with an attack or without any, by bound.

  Of those that are compared without attackers, also the first row as good as
  the last of local SGD.
  """
  if settings.shares:
    return classes.keep(rows)
  metrics = ('accuracy', 'validation_accuracy', 'train_loss')
  last = []
  for _, runs in tables.split_by(
    tables.keep(rows, metrics=metrics),
    'problem',
    'method',
    'scope',
    'guarded',
    'lower_bound',
  ):
    clean = tables.tuned(tables.select(runs, multiple=0.0), 'learning_rate')
    for under in tables.split(runs, 'multiple').values():
      best = tables.tuned(under, 'learning_rate')
      rates = {best[0]['learning_rate'], clean[0]['learning_rate']}
      last += [row for row in under if row['learning_rate'] in rates]
  firsts: dict = {}
  of_run = tables.runs(rows)
  for problem in PROBLEMS:
    goals = tables.final(best_of(last, problem, *METHODS[0]), 'train_loss')
    for method in METHODS:
      best = best_of(last, problem, *method)
      for row, goal in zip(best, goals):
        run = tables.identity(row)
        early = [r for r in of_run[run][:-1] if r['train_loss'] <= goal]
        firsts[run] = [{k: r[k] for k in row} for r in early[:1]]
  return [
    r for row in last for r in (*firsts.get(tables.identity(row), []), row)
  ]


def label(method: str, scope: str) -> str:
  return method if scope == '-' else f'{method}, {scope}'


def attacked_tables(rows: Rows, settings: Settings):
  """Accuracy by defence and attack, with rates chosen without it and with."""
  without, by_attack = tables.Cells(), tables.Cells()
  for method, scope, guarded in DEFENCES:
    runs = tables.select(
      rows, problem='ill', method=method, scope=scope, guarded=guarded
    )
    for bound, of_bound in tables.split(runs, 'lower_bound').items():
      name = f'{label(method, scope)}, median: {guarded}'
      if method != 'local SGD':
        name += f', bound {bound:g}'
      clean = tables.tuned(
        tables.select(of_bound, multiple=0.0), 'learning_rate'
      )
      rate = clean[0]['learning_rate']
      for attack, multiple in attacks(settings).items():
        under = tables.select(of_bound, multiple=multiple)
        without[name, attack] = tables.percent(
          tables.select(under, learning_rate=rate)
        )
        by_attack[name, attack] = tables.percent(
          tables.tuned(under, 'learning_rate')
        )
  return without, by_attack


def summarise(rows: Rows, settings: Settings) -> Summary:
  if settings.shares:
    return classes.summarise(rows, settings, SOURCE)
  chosen, accuracy, loss, rounds = {}, {}, {}, {}
  for problem in PROBLEMS:
    base = best_of(rows, problem, *METHODS[0])
    goals = tables.final(base, 'train_loss')
    for method in METHODS:
      best = best_of(rows, problem, *method)
      at = label(*method), problem
      for name in ('learning_rate', 'lower_bound'):
        chosen[at[0], f'{problem}, {name}'] = tables.final(best, name)[:1]
      accuracy[at] = tables.percent(best)
      loss[at] = tables.final(best, 'train_loss')
      rounds[at] = reached(best, goals, settings.rounds)
  without, by_attack = attacked_tables(rows, settings)
  shown = [
    ('Chosen on the validation split, without attackers', chosen, 4),
    ('Test accuracy (%), every pixel times its factor or not', accuracy, 1),
    ('Training loss', loss, 3),
    (
      'Rounds to the last training loss of local SGD'
      f' ({settings.rounds} if it is not reached)',
      rounds,
      1,
    ),
    ('Attacked, accuracy (%), rates chosen without attack', without, 1),
    ('Attacked, accuracy (%), rates chosen for each attack', by_attack, 1),
  ]
  return Summary(
    claims=claims(settings, accuracy, rounds, without),
    tables=pivots(shown),
    figures={'rounds.png': lambda: picture(rounds)},
  )


def claims(settings: Settings, accuracy, rounds, attacked) -> list[Claim]:
  claim = claims_about('SAVIC', SOURCE, settings.dataset)

  def factor(method, problem='ill'):
    others = rounds['local SGD', problem] / rounds[f'{method}, global', problem]
    return others.mean()

  def over(method):
    mine, own = (accuracy[f'{method}, {x}', 'ill'] for x in ('global', 'local'))
    return (mine - own).mean()

  return [
    claim(
      'a preconditioner makes local SGD faster where scales differ',
      Check(
        'rounds of local SGD over adam, global',
        factor('adam'),
        2,
        why='three seeds; decay and bounds are from one first look',
      ),
      Check('rounds of local SGD over oasis, global', factor('oasis'), 2),
      Check(
        'the factor of adam, less the same on even pixels',
        factor('adam') - factor('adam', 'even'),
        0,
      ),
    ),
    claim(
      'one diagonal for all is as good as one for each worker',
      *(
        Check(f'points of {x}, global over local', over(x), -1)
        for x in ('adam', 'oasis')
      ),
    ),
    *claims_of_attacks(claim, settings.lower_bounds, attacked),
  ]


def claims_of_attacks(claim, bounds: Sequence[float], attacked) -> list[Claim]:
  low, high = bounds[0], bounds[-1]
  ours = {'method': '', 'published': 'not in the paper'}

  def cost(attack, guarded='messages', bound=low, scope='global'):
    name = f'adam, {scope}, median: {guarded}, bound {bound:g}'
    return np.mean(attacked[name, 'none'] - attacked[name, attack])

  return [
    claim(
      'guarding messages alone is worth nothing: the diagonal is open',
      Check(f'points that down costs at bound {low:g}', cost('down'), 10),
      Check(
        f'points that bound {high:g} saves of that',
        cost('down') - cost('down', bound=high),
        5,
      ),
      Check(f'points that up costs at bound {low:g}', cost('up'), 10),
      **ours,
    ),
    claim(
      'the median on both channels, or a local diagonal, holds',
      *(
        Check(
          f'points that the worse attack costs, {scope} diagonal',
          max(cost(x, 'all', scope=scope) for x in ('down', 'up')),
          at_most=5,
          why='clients differ, and local SGD with the median loses as much',
        )
        for scope in ('global', 'local')
      ),
      **ours,
    ),
  ]


def picture(rounds):
  """How many rounds it takes to come as far as local SGD."""
  figure, (axes,) = pictures.panels(1, 2, sharey=True)
  for panel, (problem, title) in zip(axes, PROBLEMS.items()):
    bars = {name: x for (name, at), x in rounds.items() if at == problem}
    pictures.bars(panel, bars, 'rounds to the last loss of local SGD')
    panel.set_title(title)
  axes[1].invert_yaxis()  # Shared, and so turned around twice.
  return figure
