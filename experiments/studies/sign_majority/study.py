r"""signSGD with majority vote against sign inverters (Bernstein et al.).

  python -m experiments.studies sign_majority --check              # digits
  python -m experiments.studies sign_majority --dataset=mnist --data_dir=FOLDER

Seven workers send the sign of their momentum, one bit per coordinate, packed;
the server sends back the majority, packed. 0 to 4 of them lie: inverters send
the opposite of their own sign, random ones draw it, and omniscient ones vote
against the honest majority wherever that decides. Attacks act on what has been
encoded, and can only send signs. The mean of unpacked momenta is the control.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from experiments.harness.cells import Cell, Rows
from experiments.harness.settings import ImageSettings, option
from experiments.reporting import pictures, tables
from experiments.reporting.summary import Check, Claim, Summary, Table

ATTACKS = {
  'invert': lambda: byzjax.sign_flip(own=True),
  'random': byzjax.random_signs,
  'omniscient': byzjax.flip_vote,
}
METHODS = ('vote', 'mean')
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


def define(settings: Settings) -> list[Cell]:
  most = (settings.num_workers + 1) // 2
  return [
    cell(settings, method, attack, f)
    for method in METHODS
    for attack in ATTACKS
    for f in range(most + 1)
  ]


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
  del settings
  return tables.keep(rows, metrics=('accuracy', 'bits_up', 'bits_down'))


def summarise(rows: Rows, settings: Settings) -> Summary:
  n = settings.num_workers
  minority, majority = (n - 1) // 2, (n + 1) // 2
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

  def lost(attack: str, f: int) -> float:
    clean = table[f'vote, {attack}', f'0 of {n}'].mean()
    return clean - table[f'vote, {attack}', f'{f} of {n}'].mean()

  source = 'Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019, arXiv:1810.05291'
  about = {'method': 'signSGD with majority vote', 'data': settings.dataset}
  return Summary(
    claims=[
      Claim(
        says='a minority of sign inverters costs little, a majority everything',
        paper=source,
        published='converges with 0 to 3 of 7 inverters (43 %), ImageNet',
        evidence='P',
        checks=[
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
        ],
        **about,
      ),
      Claim(
        says='random signs cost little, also those of more than half',
        paper=source,
        checks=[
          Check(
            f'points lost to {majority} of {n} random signs',
            lost('random', majority),
            at_most=2,
          )
        ],
        **about,
      ),
      Claim(
        says='one bit per coordinate both ways: 32 times less than float32',
        paper=source,
        published='32 x',
        evidence='C',
        checks=[
          Check(
            'bits of the mean over bits of the vote',
            bits['mean'] / bits['vote'],
            at_least=32,
          )
        ],
        **about,
      ),
    ],
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
