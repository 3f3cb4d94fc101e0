"""Signum with a vote, SGD and Adam under inverters, each at its own rate.

An inverter sends its own message with the sign turned. To a mean of n messages
such f leave (n - 2f) / n of the honest direction: for f < n / 2 it is shorter,
but still points the right way, and a larger rate, or Adam, can make up for it.
So inverters of their own size say little for a vote. The control that does is
the same inverter ten times as loud: a vote cannot see how loud it is.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import byzjax

from ...harness.cells import Cell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, claims_about, pivots

# A factor of about 3 between neighbours.
RATES = {
  'signum': (1e-3, 3e-3, 1e-2, 3e-2),
  'SGD': (0.03, 0.1, 0.3, 1.0, 3.0),
  'Adam': (1e-3, 3e-3, 1e-2, 3e-2),
}
# How many times as long as its own message an inverter's is.
SIZES = {'invert': 1.0, 'invert x 10': 10.0}
OWN, LOUD = SIZES
KEYS = ('method', 'attack', 'num_byzantine')


def define(settings: Any) -> list[Cell]:
  """Every method with 0 to a majority of inverters, and with a loud one."""
  most = settings.num_workers // 2 + 1
  return [
    cell(settings, method, attack, f)
    for method in RATES
    for attack, f in [*((OWN, f) for f in range(most + 1)), (LOUD, 1)]
  ]


def cell(settings: Any, method: str, attack: str, f: int) -> Cell:
  n, vote = settings.num_workers, method == 'signum'

  def make_round(task, key, learning_rate):
    del key

    def rate(step):
      # To zero, so that no method is judged by the noise of its last steps.
      return learning_rate * (1 - step / settings.rounds)

    adam = method == 'Adam'
    return byzjax.robust_round(
      task.loss_fn,
      num_workers=n,
      worker=None if adam else byzjax.worker_momentum(settings.momentum),
      attack=byzjax.sign_flip(scale=SIZES[attack], own=True),
      # A schedule, for this study goes beyond the half that a count may be.
      byzantine=lambda step: jnp.arange(n) < f,
      codec=byzjax.sign_codec() if vote else None,
      aggregator=byzjax.majority_vote() if vote else byzjax.mean(),
      server_codec=byzjax.sign_codec() if vote else None,
      optimizer=optax.adam(rate) if adam else optax.sgd(rate),
    )

  return Cell(
    labels=dict(zip(KEYS, (method, attack, f))),
    make_round=make_round,
    grid={'learning_rate': RATES[method]},
    num_workers=n,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    num_evals=1,
  )


def keep(rows: Rows, settings: Any) -> Rows:
  del settings
  return tables.keep(
    rows, tail=1, metrics=('accuracy', 'validation_accuracy', 'train_loss')
  )


def summarise(rows: Rows, settings: Any, about: Mapping[str, str]) -> Summary:
  """Claims and tables; `about` has the method and the paper of the claims."""
  n = settings.num_workers
  best, fixed, chosen = tables.Cells(), tables.Cells(), tables.Cells()
  rates: dict[str, float] = {}
  for (method, attack, f), runs in tables.split_by(rows, *KEYS):
    tuned = tables.tuned(runs, 'learning_rate')
    rate = rates.setdefault(method, tuned[0]['learning_rate'])
    line = f'{f} of {n} {attack}' if f else 'no attacker'
    best[line, method] = tables.percent(tuned)
    chosen[line, method] = tables.final(tuned, 'learning_rate')[:1]
    fixed[line, method] = tables.percent(
      tables.select(runs, learning_rate=rate)
    )

  return Summary(
    claims=claims_of(best, n, claims_about(**about, data=settings.dataset)),
    tables=pivots(
      [
        ('Test accuracy (%), the rate chosen anew for every line', best),
        ('Test accuracy (%), the rate chosen without attackers', fixed),
        (
          'The rate that was chosen for every line, on the validation split',
          chosen,
          4,
        ),
      ]
    ),
    figures={
      f'{settings.dataset}.png': lambda: pictures.heatmap(
        best, 'Inverters, each method at its best rate'
      )
    },
  )


def claims_of(best: tables.Cells, n: int, claim) -> list[Claim]:
  """Of `n` workers, each method at its best rate."""
  minority, majority = (n - 1) // 2, n // 2 + 1
  clean = {name: best['no attacker', name].mean() for name in RATES}

  def points(method: str, f: int, attack: str = OWN, **bound) -> Check:
    line = f'{f} of {n} {attack}'
    lost = clean[method] - best[line, method].mean()
    return Check(f'points {method} loses to {line}', lost, **bound)

  loud, own = (best[f'1 of {n} {attack}', 'signum'] for attack in (LOUD, OWN))
  return [
    claim(
      'a minority of sign inverters costs little, a majority everything',
      points('signum', minority, at_most=3),
      points('signum', majority, at_least=60),
      published='converges with 0 to 3 of 7 inverters (43 %), ImageNet',
      evidence='P',
    ),
    claim(
      'without attackers, signum is as good as SGD and as Adam',
      *(
        Check(
          f'points of {other} over signum',
          clean[other] - clean['signum'],
          at_most=1,
        )
        for other in ('SGD', 'Adam')
      ),
      published='CIFAR-10, ResNet-20, one machine: signum 91.2 %, SGD 91.7,'
      ' Adam 91.6',
      evidence='K',
    ),
    claim(
      'a vote does not see how loud an inverter is; a mean does',
      Check(
        f'most points between 1 of {n} {OWN} and {LOUD}, signum, of a seed',
        np.abs(loud - own).max(),
        at_most=0,
      ),
      *(points(other, 1, LOUD, at_least=60) for other in ('SGD', 'Adam')),
    ),
    claim(
      'the control: inverters of their own size cost a mean little, too',
      *(points(other, minority, at_most=5) for other in ('SGD', 'Adam')),
    ),
  ]
