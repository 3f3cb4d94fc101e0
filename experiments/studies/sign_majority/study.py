r"""signSGD with majority vote against sign inverters (Bernstein et al.).

  python -m experiments.studies sign_majority --check              # digits
  python -m experiments.studies sign_majority --dataset=mnist --data_dir=FOLDER
  python -m experiments.studies sign_majority --variant=quadratic --check
  python -m experiments.studies sign_majority --variant=mnist --data_dir=FOLDER
  python -m experiments.studies sign_majority --variant=cost --check

Seven workers send the sign of their momentum, one bit per coordinate, packed;
the server sends back the majority, packed. 0 to 4 of them lie: inverters send
the opposite of their own sign, random ones draw it, and omniscient ones vote
against the honest majority wherever that decides. Attacks act on what has been
encoded, and can only send signs. The mean of unpacked momenta is the control.

Variants: `quadratic` is the toy of the paper, 1000 coordinates, gradients with
noise of variance one, 27 workers without momentum. `mnist` (module `tuned`) has
signum, SGD and Adam, each at its own rate. `cost` (module `cost`) reads from
programs what a round sends.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax

from ...harness.cells import Cell, OwnCell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import pictures, tables
from ...reporting.summary import (
  Check,
  Claim,
  Summary,
  Table,
  claims_about,
  pivots,
)
from . import cost, tuned

ATTACKS = {
  'invert': lambda: byzjax.sign_flip(own=True),
  'random': byzjax.random_signs,
  'omniscient': byzjax.flip_vote,
}
METHODS = ('vote', 'mean')
METHOD = 'signSGD with majority vote'
PAPER = 'Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019, arXiv:1810.05291'
PARTS = ('network', 'quadratic', 'tuned', 'cost')
VARIANTS = {
  'quadratic': {'parts': ('quadratic',)},
  'mnist': {
    'parts': ('tuned',),
    'dataset': 'mnist',
    'model': 'cnn',
    'rounds': 150,
    'batch_size': 8,
  },
  'cost': {'parts': ('cost',)},
}
SIZE, HONEST = 1000, (1, 3, 9)
SHARES = (0, 3, 6, 9, 11, 12, 13, 14)
QUICK = {'rounds': 4}
QUICK_CELLS = ('vote, invert, 3', 'mean, invert, 3')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(7, 'n.', low=1)
  rounds: int = option(800, 'Rounds of training.', low=1)
  batch_size: int = option(16, 'Examples per worker and round.', low=1)
  learning_rate: float = option(1e-3, 'What a coordinate moves.', low=0)
  control_learning_rate: float = option(0.5, 'Of the mean.', low=0)
  momentum: float = option(0.9, 'Decay of worker momentum.')
  parts: tuple[str, ...] = option(PARTS[:1], ', '.join(PARTS))
  quadratic_workers: int = option(27, 'n of the quadratic.', low=1)
  quadratic_rounds: int = option(6000, 'Rounds on the quadratic.', low=20)
  quadratic_rate: float = option(5e-3, 'What a coordinate moves there.', low=0)


def define(settings: Settings) -> list[Cell | OwnCell]:
  for part in settings.parts:
    if part not in PARTS:
      raise ValueError(f'--parts: {part} is none of {PARTS}')
  most = (settings.num_workers + 1) // 2
  n = settings.quadratic_workers
  cells: list[Cell | OwnCell] = []
  if 'network' in settings.parts:
    cells += [
      cell(settings, method, attack, f)
      for method in METHODS
      for attack in ATTACKS
      for f in range(most + 1)
    ]
  if 'quadratic' in settings.parts:
    cells += [quadratic_cell(settings, few, 0) for few in HONEST]
    cells += [quadratic_cell(settings, n, f) for f in SHARES]
  if 'tuned' in settings.parts:
    cells += tuned.define(settings)
  if 'cost' in settings.parts:
    cells += cost.define()
  return cells


def quadratic_cell(settings: Settings, n: int, f: int) -> OwnCell:
  """Inverters among n workers that descend |x|^2 / 2 with noise."""
  rounds = settings.quadratic_rounds

  def losses(key):
    """`|x|^2 / 2` per coordinate after every round, from N(0, 1)."""
    start_key, noise_key = jax.random.split(key)
    vote = byzjax.robust_round(
      lambda x, noise: x @ x / 2 + x @ noise,
      num_workers=n,
      attack=byzjax.sign_flip(own=True),
      byzantine=lambda step: jnp.arange(n) < f,
      codec=byzjax.sign_codec(),
      aggregator=byzjax.majority_vote(),
      server_codec=byzjax.sign_codec(),
      optimizer=optax.sgd(settings.quadratic_rate),
    )

    def one_round(state, t):
      noise = jax.random.normal(jax.random.fold_in(noise_key, t), (n, SIZE))
      state, _ = vote.step(state, noise, key)
      return state, jnp.mean(state.params**2) / 2

    state = vote.init(jax.random.normal(start_key, (SIZE,)))
    return jax.lax.scan(one_round, state, jnp.arange(rounds))[1]

  labels = {'num_workers': n, 'num_byzantine': f}

  def make_rows(seeds) -> Rows:
    curves = jax.jit(jax.vmap(lambda seed: losses(jax.random.key(seed))))(
      jnp.array(seeds)
    )
    length = rounds // 20
    return [
      {**labels, 'seed': seed, 'round': stop, 'loss': float(curve[stop - 1])}
      for seed, curve in zip(seeds, np.asarray(curves))
      for stop in range(length, rounds + 1, length)
    ]

  return OwnCell(labels=labels, rounds=rounds, make_rows=make_rows)


def cell(settings: Settings, method: str, attack: str, f: int) -> Cell:
  n, vote = settings.num_workers, method == 'vote'

  def make_round(task, key, learning_rate):
    del key
    return byzjax.robust_round(
      task.loss_fn,
      num_workers=n,
      worker=byzjax.worker_momentum(settings.momentum),
      attack=ATTACKS[attack](),
      # A schedule, for this study goes beyond the half that a count may be.
      byzantine=lambda step: jnp.arange(n) < f,
      codec=byzjax.sign_codec() if vote else None,
      aggregator=byzjax.majority_vote() if vote else byzjax.mean(),
      server_codec=byzjax.sign_codec() if vote else None,
      optimizer=optax.sgd(learning_rate),
    )

  rate = settings.learning_rate if vote else settings.control_learning_rate
  return Cell(
    labels={'method': method, 'attack': attack, 'num_byzantine': f},
    make_round=make_round,
    grid={'learning_rate': [rate]},
    num_workers=n,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  if settings.parts == ('tuned',):
    return tuned.keep(rows, settings)
  if settings.parts == ('cost',):
    return rows
  if 'loss' in rows[0] and 'method' not in rows[0]:
    return tables.keep(rows, tail=5, curves=lambda row: row['seed'] == 0)
  return tables.keep(rows, metrics=('accuracy', 'bits_up', 'bits_down'))


def summarise(rows: Rows, settings: Settings) -> Summary:
  if settings.parts == ('quadratic',):
    return summarise_quadratic(rows, settings)
  about = {'method': METHOD, 'paper': PAPER}
  if settings.parts == ('tuned',):
    return tuned.summarise(rows, settings, about)
  if settings.parts == ('cost',):
    return cost.summarise(rows, about)
  n = settings.num_workers
  table = tables.Cells(
    ((f'{method}, {attack}', f'{f} of {n}'), tables.percent(runs))
    for (method, attack, f), runs in tables.split_by(
      rows, 'method', 'attack', 'num_byzantine'
    )
  )
  bits = {
    method: np.mean(
      tables.final(of_method, 'bits_up') + tables.final(of_method, 'bits_down')
    )
    for method, of_method in tables.split(rows, 'method').items()
  }

  return Summary(
    claims=claims_of(table, bits, settings),
    tables=[
      Table(
        'Test accuracy (%) by attack and number of attackers',
        tables.pivot(table),
      ),
      Table(
        'Bits per round, up and down',
        '\n'.join(f'{method:5} {value:8.0f}' for method, value in bits.items()),
      ),
    ],
    figures={'table.png': lambda: pictures.heatmap(table, 'Majority vote')},
  )


def claims_of(table: tables.Cells, bits, settings: Settings) -> list[Claim]:
  claim = claims_about(METHOD, PAPER, settings.dataset)
  n = settings.num_workers
  minority, majority = (n - 1) // 2, (n + 1) // 2

  def lost(attack: str, f: int) -> float:
    clean = table[f'vote, {attack}', f'0 of {n}'].mean()
    return clean - table[f'vote, {attack}', f'{f} of {n}'].mean()

  return [
    claim(
      'a minority of sign inverters costs little, a majority everything',
      Check(
        f'points lost to {minority} of {n} inverters',
        lost('invert', minority),
        at_most=2.5,
      ),
      Check(
        f'points lost to {majority} of {n} inverters',
        lost('invert', majority),
        at_least=60,
      ),
      published='converges with 0 to 3 of 7 inverters (43 %), ImageNet',
      evidence='P',
    ),
    claim(
      'random signs cost little, also those of more than half',
      Check(
        f'points lost to {majority} of {n} random signs',
        lost('random', majority),
        at_most=2,
      ),
    ),
    claim(
      'one bit per coordinate both ways: 32 times less than float32',
      Check(
        'bits of the mean over bits of the vote',
        bits['mean'] / bits['vote'],
        at_least=32,
      ),
      published='32 x',
      evidence='C',
    ),
  ]


def summarise_quadratic(rows: Rows, settings: Settings) -> Summary:
  n, start = settings.quadratic_workers, 0.5
  claim = claims_about(METHOD, PAPER, 'quadratic, 1000 numbers')
  found = tables.Cells(
    (labels, tables.final(runs, 'loss'))
    for labels, runs in tables.split_by(rows, 'num_workers', 'num_byzantine')
  )
  minority = [found[n, f].mean() for f in SHARES if 2 * f < n]
  lines = tables.Cells(
    (
      (f'{f} of {workers}', 'last loss, thousandths of the first'),
      1000 * losses / start,
    )
    for (workers, f), losses in found.items()
  )
  return Summary(
    claims=[
      claim(
        'it converges with any share of inverters below one half',
        Check(
          f'percent of the first loss that is left, the worst of up to'
          f' {SHARES[-2]} of {n} inverters',
          100 * max(minority) / start,
          at_most=10,
        ),
        Check(
          f'the same with {SHARES[-1]} of {n}',
          100 * found[n, SHARES[-1]].mean() / start,
          at_least=100,
        ),
        published='27 workers, below 50 %',
        evidence='P',
      ),
      claim(
        'more workers, a lower floor of the error',
        Check(
          f'floor of one worker over that of {n}',
          found[1, 0].mean() / found[n, 0].mean(),
          at_least=3,
        ),
        published='a figure',
        evidence='P',
      ),
    ],
    tables=pivots([('Inverters among workers', lines, 2)]),
    figures={'quadratic.png': lambda: picture_of_quadratic(rows)},
  )


def picture_of_quadratic(rows: Rows):
  """The loss of a seed by round, with most of the attackers."""
  figure, axes = pictures.panels()
  series = {
    f'{f} of {workers} invert': runs
    for (workers, f), runs in tables.split_by(
      tables.select(rows, seed=0), 'num_workers', 'num_byzantine'
    )
    if f in (0, *SHARES[-4:])
  }
  pictures.curves(axes[0, 0], series, y='loss')
  axes[0, 0].set(xlabel='round', ylabel='loss per coordinate', yscale='log')
  axes[0, 0].legend()
  return figure
