r"""The best batch size grows with the number of attackers (Yang, Shi, Li).

  python -m experiments.studies batch_size --check                # digits
  python -m experiments.studies batch_size --variant=fashion_mnist \
      --data_dir=FOLDER

ByzSGDm (m) and ByzSGDnm (nm), with a fixed number of gradients of honest
workers: twice the batch is half the steps. The learning rate follows a cosine
from the best value of a grid on a validation split, a tenth of the training
examples; the grid and what was chosen are part of the output. A rate of nm is
the length of a step and one of m is not, so each can have a grid of its own.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import optax

import byzjax

from ...harness import specs
from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import pictures, tables
from ...reporting.summary import Summary, Table
from . import claims, published

# The attacks that come after the first only meet the most attackers.
ATTACKS = {
  'alie': lambda z: byzjax.alie(z=z),
  'foe': lambda z: byzjax.inner_product_manipulation(epsilon=0.5),
  'bit flip': lambda z: byzjax.sign_flip(scale=10.0),
}
RULES = ('krum', 'geometric_median', 'coordinate_median', 'centered_clipping')
KEYS = ('attack', 'num_byzantine', 'rule', 'method', 'batch_size')
QUICK = {
  'num_byzantine': (0, 3),
  'batch_sizes': (4,),
  'other_batch_sizes': (),
  'num_gradients': 160,
  'learning_rates': (0.2,),
}
QUICK_CELLS = ('alie, 3, krum, nm, 4',)
_FASHION_MNIST = {
  'dataset': 'fashion_mnist',
  'batch_sizes': (8, 32, 128, 512),
  'num_gradients': 286720,  # The multiple of 512 x 8, x 7, x 5 near 300,000.
  'learning_rates': (0.05, 0.1, 0.2, 0.5),
  'nm_learning_rates': (0.05, 0.1, 0.2, 0.5),
  'rate_growth': 0.5,
  'num_evals': 1,
}
VARIANTS = {
  'fashion_mnist': {
    **_FASHION_MNIST,
    'attacks': tuple(ATTACKS),
    'other_batch_sizes': (32, 128, 512),
  },
  'fashion_mnist_uneven': {
    **_FASHION_MNIST,
    'partition': 'dirichlet_by_worker(alpha=0.3)',
    'mixing': True,
    'rules': ('geometric_median', 'coordinate_median'),
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(8, 'n.', low=3)
  num_byzantine: tuple[int, ...] = option((0, 1, 3), 'Numbers of attackers.')
  batch_sizes: tuple[int, ...] = option(
    (1, 4, 16, 64), 'Examples per worker and step.'
  )
  num_gradients: int = option(
    17920, 'Of all honest workers, in every run.', low=1
  )
  learning_rates: tuple[float, ...] = option(
    (0.05, 0.1, 0.2, 0.5, 1.0), 'To choose from.'
  )
  nm_learning_rates: tuple[float, ...] = option(
    (),
    'For nm alone, whose rate is the length of a step; those of'
    ' --learning_rates if none.',
  )
  rate_growth: float = option(
    0.0,
    'Rates are for batches of 32; others have (batch / 32) to this power times'
    ' as much.',
  )
  momentum: float = option(0.9, 'Decay of worker momentum.')
  radius: float = option(0.1, 'Of centered clipping.', low=0)
  z: float = option(1.5, 'Strength of ALIE; 0.25 shows nothing here.')
  attacks: tuple[str, ...] = option(
    ('alie',), 'Of alie, foe, bit flip; alie is needed.'
  )
  other_batch_sizes: tuple[int, ...] = option(
    (), 'Under attacks other than alie; those of --batch_sizes if none.'
  )
  rules: tuple[str, ...] = option(RULES, 'Which of them.')
  partition: str = option('iid', 'How examples are divided among workers.')
  mixing: bool = option(False, 'Mixes nearest neighbours in front of the rule.')
  num_evals: int = option(
    20, 'Evaluations of a run; the last 3 are averaged.', low=1
  )

  def sizes(self, attack: str) -> tuple[int, ...]:
    """The batch sizes that an attack is run with."""
    other = self.other_batch_sizes if attack != 'alie' else ()
    return other or self.batch_sizes

  def rates(self, method: str, batch_size: int) -> tuple[float, ...]:
    """The learning rates that a method is tried with."""
    of_nm = self.nm_learning_rates if method == 'nm' else ()
    growth = (batch_size / published.SMALLEST) ** self.rate_growth
    return tuple(growth * rate for rate in of_nm or self.learning_rates)


def define(settings: Settings) -> list[Cell]:
  unknown = sorted({*settings.attacks} - {*ATTACKS})
  if unknown or 'alie' not in settings.attacks:
    raise ValueError(f'--attacks needs alie, of {[*ATTACKS]}: {unknown}')
  return [
    cell(settings, case, method, batch_size)
    for case in cases(settings)
    for method in published.METHODS
    for batch_size in settings.sizes(case[0])
  ]


def cases(settings: Settings) -> list[published.Case]:
  counts = settings.num_byzantine
  return [
    (attack, f, rule_name)
    for attack in settings.attacks
    for f in (counts if attack == 'alie' else [max(counts)])
    for rule_name in settings.rules
  ]


def rule(settings: Settings, name: str, f: int) -> byzjax.Aggregator:
  plain = rule_alone(settings, name, f)
  if not settings.mixing:
    return plain
  mixing = byzjax.nearest_neighbor_mixing(num_byzantine=f)
  return byzjax.pre_aggregate(mixing, plain)


def rule_alone(settings: Settings, name: str, f: int) -> byzjax.Aggregator:
  n = settings.num_workers
  if name == 'centered_clipping':
    return byzjax.centered_clipping(radius=settings.radius)
  if name == 'krum':
    # The paper runs Krum with more attackers than it admits: as many
    # neighbours as f asks for, under the largest f that it does admit.
    allowed = min(f, (n - 3) // 2)
    return byzjax.krum(num_byzantine=allowed, num_neighbors=max(n - f - 2, 1))
  return specs.aggregator(name, '', f)


def cell(
  settings: Settings, case: published.Case, method: str, batch_size: int
) -> Cell:
  (attack, f, rule_name), n = case, settings.num_workers
  steps, rest = divmod(settings.num_gradients, batch_size * (n - f))
  if rest or not steps:
    raise ValueError(
      f'--num_gradients={settings.num_gradients} is no multiple of'
      f' {batch_size} x {n - f}, batch size times honest workers'
    )

  def make_round(task, key, learning_rate):
    del key
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    stages = [byzjax.normalize_by_global_norm()] if method == 'nm' else []
    return byzjax.robust_round(
      task.loss_fn,
      num_workers=n,
      worker=byzjax.worker_momentum(settings.momentum),
      attack=ATTACKS[attack](settings.z),
      byzantine=f,
      aggregator=rule(settings, rule_name, f),
      optimizer=optax.chain(*stages, optax.scale_by_learning_rate(schedule)),
    )

  labels = {'attack': attack, 'num_byzantine': f, 'rule': rule_name}
  return Cell(
    labels={**labels, 'method': method, 'batch_size': batch_size},
    make_round=make_round,
    grid={'learning_rate': settings.rates(method, batch_size)},
    num_workers=n,
    rounds=steps,
    batch_size=batch_size,
    partition=settings.partition,
    num_evals=settings.num_evals,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """The runs with the learning rate that is chosen for each cell."""
  del settings
  last = tables.keep(rows, metrics=('accuracy', 'validation_accuracy'))
  best = tables.tuned_each(last, KEYS, 'learning_rate')
  return tables.keep(best, metrics=('accuracy',))


def summarise(rows: Rows, settings: Settings) -> Summary:
  table, mean = tables.Cells(), tables.Cells()
  chosen: dict[str, list[str]] = {}
  for labels, runs in tables.split_by(rows, *KEYS):
    attack, f, rule_name, method, b = labels
    line = f'{attack if f else "none"}, {f}, {rule_name}, {method}'
    table[line, f'B = {b}'] = tables.percent(runs)
    mean[labels] = tables.percent(runs)
    chosen.setdefault(line, []).append(f'{runs[0]["learning_rate"]:>6g}')
  is_even = settings.partition == 'iid'
  beside_paper = published.SMALLEST in settings.batch_sizes
  said = claims.even if is_even else claims.uneven
  if beside_paper:
    suffix = '' if is_even else '_uneven'
    name = f'{settings.dataset}{suffix}.png'
    figure = functools.partial(picture, mean, settings)
  else:
    name = 'table.png'
    figure = functools.partial(
      pictures.heatmap, table, 'Attack, f, rule, method'
    )
  return Summary(
    claims=said(mean, settings),
    tables=[
      *(_beside_paper(mean, settings) if beside_paper else ()),
      Table(
        f'Test accuracy (%), {settings.num_gradients} gradients of honest'
        ' workers',
        tables.pivot(table),
      ),
      Table(
        'Learning rates chosen on the validation split',
        '\n'.join(f'{k:36}  {"  ".join(v)}' for k, v in chosen.items()),
      ),
    ],
    figures={name: figure},
  )


def _beside_paper(mean: tables.Cells, settings: Settings) -> list[Table]:
  data = 'iid' if settings.partition == 'iid' else 'uneven'
  all_cases = cases(settings)
  alie = [case for case in all_cases if case[0] == 'alie']
  best = published.best_sizes(mean, alie, settings.batch_sizes, data)
  gains = published.gains(mean, all_cases, settings.sizes, data)
  return [
    Table('The best batch by number of attackers, ALIE', tables.pivot(best, 0)),
    Table('Points of nm over m; attack, f, rule', tables.pivot(gains)),
  ]


def picture(mean: tables.Cells, settings: Settings):
  """Accuracy over batch size under ALIE, by rule, method and attackers."""
  sizes, names = settings.batch_sizes, settings.rules
  figure, axes = pictures.panels(
    2, len(names), figsize=(3.4 * len(names), 6), sharey=True
  )
  for (i, j), panel in np.ndenumerate(axes):
    method, name = published.METHODS[i], names[j]
    series: dict[str, Sequence] = {
      f'f = {f}': [mean['alie', f, name, method, b] for b in sizes]
      for f in settings.num_byzantine
    }
    pictures.spread_over(panel, sizes, series)
    panel.set_xscale('log', base=2)
    panel.set_xticks(sizes, list(map(str, sizes)))
    panel.set(title=f'{name}, {method}', xlabel='batch of a worker')
  axes[0, 0].legend()
  for panel in axes[:, 0]:
    panel.set_ylabel('test accuracy (%)')
  return figure
