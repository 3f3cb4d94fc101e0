r"""The best batch size grows with the number of attackers (Yang, Shi, Li).

  python -m experiments.studies batch_size --check                # digits
  python -m experiments.studies batch_size --dataset=mnist --data_dir=FOLDER

ByzSGDm (m) and ByzSGDnm (nm), with a fixed number of gradients of honest
workers: twice the batch is half the steps. The learning rate follows a cosine
from the best value of a grid on a validation split, a tenth of the training
examples; the grid and what was chosen are part of the output.
"""

import dataclasses
import math

import optax

import byzjax
from experiments.harness import specs
from experiments.harness.cells import Cell, Rows
from experiments.harness.settings import ImageSettings, option
from experiments.reporting import pictures, tables
from experiments.reporting.summary import Check, Claim, Summary, Table

# The attacks that come after the first only meet the most attackers.
ATTACKS = {
  'alie': lambda z: byzjax.alie(z=z),
  'foe': lambda z: byzjax.inner_product_manipulation(epsilon=0.5),
  'bit flip': lambda z: byzjax.sign_flip(scale=10.0),
}
RULES = ('krum', 'geometric_median', 'coordinate_median', 'centered_clipping')
METHODS = ('m', 'nm')
KEYS = ('attack', 'num_byzantine', 'rule', 'method', 'batch_size')
# Points of nm over m in batches of one, where attackers are most.
GAINS = dict(zip(RULES, (20, 3, 20, 3)))
PAPER = 'Yang, Shi, Li 2023, arXiv:2305.13856, 3 of 8 attackers, ALIE'
QUICK = {
  'num_byzantine': (0, 3),
  'batch_sizes': (4,),
  'num_gradients': 160,
  'learning_rates': (0.2,),
}
QUICK_CELLS = ('alie, 3, krum, nm, 4',)


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
  momentum: float = option(0.9, 'Decay of worker momentum.')
  radius: float = option(0.1, 'Of centered clipping.', low=0)
  z: float = option(1.5, 'Strength of ALIE; 0.25 shows nothing here.')
  attacks: tuple[str, ...] = option(
    ('alie',), 'Of alie, foe, bit flip; alie is needed.'
  )


def define(settings: Settings) -> list[Cell]:
  unknown = sorted({*settings.attacks} - {*ATTACKS})
  if unknown or 'alie' not in settings.attacks:
    raise ValueError(f'--attacks needs alie, of {[*ATTACKS]}: {unknown}')
  counts = settings.num_byzantine
  return [
    cell(settings, attack, f, rule_name, method, batch_size)
    for attack in settings.attacks
    for f in (counts if attack == 'alie' else [max(counts)])
    for rule_name in RULES
    for method in METHODS
    for batch_size in settings.batch_sizes
  ]


def rule(settings: Settings, name: str, f: int) -> byzjax.Aggregator:
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
  settings: Settings,
  attack: str,
  f: int,
  rule_name: str,
  method: str,
  batch_size: int,
) -> Cell:
  n = settings.num_workers
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
    grid={'learning_rate': settings.learning_rates},
    num_workers=n,
    rounds=steps,
    batch_size=batch_size,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """The runs with the learning rate that is chosen for each cell."""
  del settings
  last = tables.keep(rows, metrics=('accuracy', 'validation_accuracy'))
  cells = tables.split_by(last, *KEYS)
  best = [row for _, of in cells for row in tables.tuned(of, 'learning_rate')]
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
  few, many = min(settings.num_byzantine), max(settings.num_byzantine)
  small = min(settings.batch_sizes)

  def by_size(f: int, name: str, method: str) -> dict[int, float]:
    sizes = settings.batch_sizes
    return {b: mean['alie', f, name, method, b].mean() for b in sizes}

  def best_size(f: int, name: str) -> int:
    of_method = by_size(f, name, 'm')
    return max(of_method, key=of_method.__getitem__)

  moved = [
    math.log2(best_size(many, name) / best_size(few, name)) for name in RULES
  ]
  plain = {name: by_size(many, name, 'm') for name in RULES}
  normalized = {name: by_size(many, name, 'nm') for name in RULES}
  small_steps = 'with the rate tuned, small steps make up for small batches'

  def claim(says: str, published: str, *checks: Check) -> Claim:
    about = 'ByzSGDnm', says, PAPER, settings.dataset
    return Claim(*about, checks, published, 'P')

  return Summary(
    claims=[
      claim(
        'normalised momentum (nm) is ahead of momentum (m) in small batches',
        'batch 32: geometric median 63.11 to 69.45, coordinate median 33.11 to'
        ' 61.28 %',
        *(
          Check(
            f'{name}, batch {small}: points of nm over m, own rates',
            normalized[name][small] - plain[name][small],
            at_least=gain,
            why=small_steps,
          )
          for name, gain in GAINS.items()
        ),
      ),
      claim(
        'and not behind it where each has its best batch and rate',
        'geometric median 87.62 to 89.13, coordinate median 83.25 to 86.03 %',
        *(
          Check(
            f'{name}: points of nm over m',
            max(normalized[name].values()) - max(plain[name].values()),
            # Less means nothing with three seeds of a small test set.
            at_least=-1.5,
          )
          for name in RULES
        ),
      ),
      claim(
        'the best batch grows with the number of attackers',
        '32 without attackers, 256 to 1024 with 3 of 8',
        Check(
          f'doublings from {few} to {many} attackers, mean over rules',
          sum(moved) / len(moved),
          at_least=1,
        ),
      ),
      claim(
        'with many attackers small batches lose much',
        'm, batch 32 and the best: Krum 38.55 and 83.45, coordinate median'
        ' 33.11 and 83.25 %',
        *(
          Check(
            f'{name}, m: points of the best batch over {small}, own rates',
            max(plain[name].values()) - plain[name][small],
            at_least=20,
            why=small_steps,
          )
          for name in ('krum', 'coordinate_median')
        ),
      ),
    ],
    tables=[
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
    figures={
      'table.png': lambda: pictures.heatmap(table, 'Attack, f, rule, method')
    },
  )
