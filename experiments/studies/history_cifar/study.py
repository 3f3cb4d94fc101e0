r"""The official CIFAR-10 runs of Learning from History, epoch by epoch.

  python -m experiments.studies history_cifar --only=f11_IPM_cp_m0.9 --publish \
    --data_dir=DATA --output_dir=DIR --resume
  python -m experiments.studies history_cifar --variant=all --data_dir=DATA

A cell has the name that it has in the logs of the authors,

  fF_ATTACK_RULE_mBETA

F of 25 workers attack. The study itself is the first five epochs of four cells,
which CPUs can do. The variant `all` is every cell for a hundred epochs, with
the mean as a control, and needs a GPU.
"""

import dataclasses
import itertools

import numpy as np

import byzjax

from ...harness.cells import OwnCell, Rows
from ...harness.settings import Settings as Shared
from ...harness.settings import option
from ...reporting import logs, tables
from ...reporting.summary import (
  Check,
  Claim,
  Summary,
  Table,
  claims_about,
  of_what_ran,
)
from . import official, training

PAPER = 'Karimireddy, He, Jaggi 2021, arXiv:2012.10333, run logs of the authors'
FOUR = (
  'f11_IPM_cp_m0.9',
  'f11_IPM_krum_m0.9',
  'f5_ALIE_cp_m0.9',
  'f5_ALIE_cm_m0.9',
)
ATTACKS = {
  'BF': lambda: byzjax.sign_flip(own=True),
  'LF': lambda: byzjax.label_flip(10),
  'IPM': lambda: byzjax.inner_product_manipulation(epsilon=0.1),
  'ALIE': byzjax.alie,
  'NA': lambda: None,
}
RULES = {
  'avg': lambda f: byzjax.mean(),
  'cp': lambda f: byzjax.centered_clipping(radius=100.0),
  'cm': lambda f: byzjax.coordinate_median(),
  'rfa': lambda f: byzjax.geometric_median(
    num_iterations=3, smoothing=0.1, start='zeros'
  ),
  'tm': lambda f: byzjax.trimmed_mean(num_byzantine=f),
  'krum': lambda f: byzjax.krum(num_byzantine=f, distance_power=4),
}
VARIANTS = {
  'all': {'cells': (), 'epochs': 100, 'num_seeds': 3, 'worker_map': 'vmap'}
}
QUICK = {'dataset': 'digits', 'epochs': 1, 'cells': FOUR[:1]}
QUICK_CELLS = FOUR[:1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Shared):
  num_seeds: int = option(1, 'Seeds 0, 1, ... one after another.', low=1)
  cells: tuple[str, ...] = option(FOUR, 'Names of cells; all without any.')
  epochs: int = option(5, 'Of 100; the rate falls after 75.', low=1)
  batch_size: int = option(32, 'Examples per worker and round.', low=2)
  worker_map: str = option('map', 'map, best on CPUs, or vmap.')
  dataset: str = option('cifar10', 'cifar10; or digits, to try the study.')
  data_dir: str | None = option(None, 'Folder with data sets in TFDS format.')


def define(settings: Settings) -> list[OwnCell]:
  attacked = itertools.product(list(ATTACKS)[:-1], RULES, (0.0, 0.9, 0.99))
  alone = (('NA', 'avg', beta) for beta in (0.0, 0.9, 0.99))
  cells = [cell(settings, *parts) for parts in (*attacked, *alone)]
  known = [cell.name for cell in cells]
  if unknown := [name for name in settings.cells if name not in known]:
    raise ValueError(f'--cells: {unknown[0]} is none of {", ".join(known)}')
  names = settings.cells or known
  return [cell for cell in cells if cell.name in names]


def cell(settings: Settings, attack: str, rule: str, beta: float) -> OwnCell:
  run = run_of(settings, attack, rule, beta)
  return OwnCell(
    labels={'cell': run.name},
    rounds=run.rounds * settings.num_seeds,
    make_program=lambda seeds: training.program(run, seeds),
  )


def run_of(
  settings: Settings, attack: str, rule: str, beta: float
) -> training.Run:
  f = {'IPM': 11, 'NA': 0}.get(attack, 5)
  name = f'f{f}_{attack}_{rule}_m{beta}' if f else f'NA_{rule}_m{beta}'
  return training.Run(
    name=name,
    rule=RULES[rule](f),
    attack=ATTACKS[attack](),
    f=f,
    beta=beta,
    epochs=settings.epochs,
    batch_size=settings.batch_size,
    worker_map=settings.worker_map,
    dataset=settings.dataset,
    data_dir=settings.data_dir,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """A row for every epoch; those between were to go on from."""
  del settings
  names = ('cell', 'seed', 'round', 'epoch', 'train_loss', 'clipped')
  return [
    {name: row[name] for name in (*names, 'accuracy')}
    for row in rows
    if not np.isnan(row['accuracy'])
  ]


def summarise(rows: Rows, settings: Settings) -> Summary:
  # Digits are for trying the program: there is nothing to compare them with.
  is_theirs = settings.dataset == 'cifar10'
  name = 'curves.png' if settings.cells else 'all.png'
  lines = {
    'Test accuracy (%) by epoch, beside the official seeds': (
      official.compared(rows) if is_theirs else []
    ),
    'Test accuracy (%), mean of epochs 96 to 100': (
      official.at_the_end(rows) if is_theirs else []
    ),
    'Every epoch': rows,
  }
  return Summary(
    claims=of_what_ran(claims(rows, settings, is_theirs)),
    tables=[
      Table(title, tables.plain(of)) for title, of in lines.items() if of
    ],
    figures={name: lambda: logs.figure(rows, official.FOLDER, 'epoch')},
  )


def claims(rows: Rows, settings: Settings, is_theirs: bool) -> list[Claim]:
  of_cells = tables.split(rows, 'cell')
  # The scorecard has its line from learning_from_history.
  claim = claims_about(
    '',
    PAPER,
    f'CIFAR-10, {settings.num_seeds} seed, {settings.epochs} epochs',
  )

  def last(name: str) -> float:
    """Of the last epoch, in percent."""
    return float(tables.percent(of_cells.get(name, [])).mean())

  def clipped(name: str) -> float:
    shares = [row['clipped'] for row in of_cells.get(name, [])]
    return 100 * float(np.mean(shares or [np.nan]))

  ipm, krum, alie, median = FOUR
  return [
    claim(
      'its official CIFAR-10 runs, epoch by epoch',
      *(
        Check(
          f'{name}: points between the mean over epochs and the official one',
          official.difference(rows, name) if is_theirs else np.nan,
          at_most=3,
        )
        for name in FOUR
      ),
      Check(
        'cells that were run',
        len(of_cells),
        at_least=4,
        why='the others are still to be run',
      ),
      published='curves of 63 cells',
      evidence='L',
    ),
    claim(
      'under IPM by 11 of 25 it learns, and Krum does not',
      Check('points over Krum', last(ipm) - last(krum), at_least=50),
      Check('Krum, % right', last(krum), at_most=15),
      published='after 5 epochs 70.5 and 10.2 %',
      evidence='L',
    ),
    claim(
      'under ALIE by 5 of 25 it leads the median',
      Check('points over the median', last(alie) - last(median), at_least=10),
      published='after 5 epochs 68.5 and 47.7 %',
      evidence='L',
    ),
    claim(
      'at the official radius it hardly ever clips: it is the mean',
      *(
        Check(f'{name}: % of messages clipped', clipped(name), at_most=1)
        for name in (ipm, alie)
      ),
      published='the logs do not tell',
    ),
  ]
