r"""Magnitude-aware sparsified signs on heterogeneous data (Jin et al.).

  python -m experiments.studies magnitude_sign --check            # digits
  python -m experiments.studies magnitude_sign --variant=fashion_mnist \
      --data_dir=FOLDER

sparsign sends the sign of a coordinate with a probability that grows with its
size: a vote on such messages follows the sum of gradients, where a vote on
signs follows the number of workers. Server error feedback keeps what the way
down loses. The learning rate is the best of three on a validation split.

The variant counts rounds and bits to a test accuracy, with both signs of zero;
see target.py.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

import byzjax
from byzjax import gradients

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import palette, pictures, tables
from ...reporting.summary import Check, Summary, claims_about, pivots
from . import target
from .target import PAPER, abstain

PARTS = ('end', 'target')
QUICK = {'num_workers': 10, 'rounds': 4, 'factors': (1.0,)}
QUICK_CELLS = ('uncompressed, 0.2',)
VARIANTS = {
  'fashion_mnist': {
    'part': 'target',
    'dataset': 'fashion_mnist',
    'num_workers': 100,
    'batch_size': 32,
    'rounds': 120,
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  part: str = option(PARTS[0], 'end; target: rounds and bits to an accuracy.')
  num_workers: int = option(40, 'n.', low=1)
  alpha: float = option(0.1, 'Of the Dirichlet distribution.', low=0)
  rounds: int = option(300, 'Rounds of training.', low=1)
  batch_size: int = option(16, 'Examples per worker and step.', low=1)
  local_steps: int = option(5, 'tau, for the local method.', low=1)
  num_kept: int = option(24, 'Coordinates that top-k keeps of 2410.', low=1)
  factors: tuple[float, ...] = option((0.3, 1.0, 3.0), 'Of learning rates.')
  participation: tuple[float, ...] = option((1.0, 0.2), 'Shares of workers.')
  target: float = option(0.74, 'Test accuracy, in part target.', low=0)
  local_taus: tuple[int, ...] = option((5, 10), 'tau, in part target.')
  local_rounds: int = option(30, 'With local steps, in part target.', low=1)
  times_rounds: int = option(
    3, 'So many times the rounds if few take part, in part target.', low=1
  )
  num_evals: int = option(
    60, 'Of runs without local steps, in part target.', low=1
  )


class Method(NamedTuple):
  """How messages go up, what they become, and how it goes down."""

  learning_rate: float
  codec: byzjax.Codec | None
  rule: Callable[[], byzjax.Aggregator] = byzjax.mean
  server_codec: byzjax.Codec | None = None
  local: bool = False


def methods(settings: Settings) -> dict[str, Method]:
  sign, scaled = byzjax.sign_codec(), byzjax.scaled_sign_codec()
  noisy, qsgd = byzjax.noisy_sign_codec(std=0.01), byzjax.qsgd_codec(norm='l2')
  top = byzjax.error_feedback(byzjax.top_k_codec(num_kept=settings.num_kept))
  one, ten = (byzjax.sparsign_codec(budget=budget) for budget in (1.0, 10.0))
  # A budget with which every sign is sent, but of zeros.
  all_signs = byzjax.sparsign_codec(budget=1e30)
  vote, server = byzjax.majority_vote, byzjax.error_feedback(scaled)

  return {
    'uncompressed': Method(0.3, None),
    'sign': Method(3e-3, sign, vote, sign),
    'sign, zeros abstain': Method(3e-3, all_signs, abstain),
    'noisy sign': Method(3e-3, noisy, vote, sign),
    'scaled sign': Method(0.3, scaled),
    'qsgd, 1 bit': Method(0.3, qsgd),
    'terngrad': Method(0.3, byzjax.terngrad_codec()),
    'top k, feedback': Method(0.3, top),
    'sparsign 1': Method(3e-3, one, abstain),
    'sparsign 10': Method(3e-3, ten, abstain),
    'sparsign 1, server feedback': Method(0.1, one, server_codec=server),
    'sparsign 10, server feedback': Method(0.1, ten, server_codec=server),
    'sparsign 10, local steps, server feedback': Method(
      0.1, one, server_codec=server, local=True
    ),
  }


def define(settings: Settings) -> list[Cell]:
  if settings.part not in PARTS:
    raise ValueError(f'--part: {settings.part} is none of {PARTS}')
  if settings.part == 'target':
    return target.define(settings)
  return [
    cell(settings, name, method, share)
    for share in settings.participation
    for name, method in methods(settings).items()
  ]


def cell(settings: Settings, name: str, method: Method, share: float) -> Cell:
  n, tau = settings.num_workers, settings.local_steps
  taking_part = round(share * n)

  def make_round(task, key, learning_rate):
    local = weights = None
    if method.local:
      # The steps that workers take on their own are those of the server's sign.
      local = gradients.sparsign_local_steps(
        task.loss_fn, budget=10.0, learning_rate=3e-3
      )
    if taking_part < n:
      weights = byzjax.random_participation(n, taking_part, key)
    return byzjax.robust_round(
      task.loss_fn,
      num_workers=n,
      worker_weights=weights,
      value_and_grad=local,
      codec=method.codec,
      aggregator=method.rule(),
      server_codec=method.server_codec,
      optimizer=optax.sgd(learning_rate),
    )

  def by_step(batch):
    """[n, tau B, ...] as [n, tau, B, ...]."""
    split = (n, tau, settings.batch_size)
    return jax.tree.map(lambda x: x.reshape(*split, *x.shape[2:]), batch)

  rates = [factor * method.learning_rate for factor in settings.factors]
  return Cell(
    labels={'method': name, 'participation': share},
    make_round=make_round,
    grid={'learning_rate': rates},
    num_workers=n,
    rounds=settings.rounds,
    batch_size=settings.batch_size * (tau if method.local else 1),
    partition=f'dirichlet_by_worker(alpha={settings.alpha})',
    make_batch=by_step if method.local else (lambda batch: batch),
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """Accuracy at the end, bits of the whole run."""
  if settings.part == 'target':
    return target.keep(rows, settings)
  last = tables.keep(rows, metrics=('accuracy', 'validation_accuracy'))
  whole = tables.keep(rows, tail=settings.rounds, metrics=('bits_up',))
  return [{**a, 'bits_up': b['bits_up']} for a, b in zip(last, whole)]


def summarise(rows: Rows, settings: Settings) -> Summary:
  if settings.part == 'target':
    return target.summarise(rows, settings)
  table, bits = tables.Cells(), tables.Cells()
  for (name, share), runs in tables.split_by(rows, 'method', 'participation'):
    best = tables.tuned(runs, 'learning_rate')
    every = tables.select(rows, method='uncompressed', participation=share)
    table[name, f'{share:.0%}'] = tables.percent(best)
    unit = tables.final(every, 'bits_up').mean() / 32
    bits[name, f'{share:.0%}'] = tables.final(best, 'bits_up') / unit
  few = f'{min(settings.participation):.0%}'

  def gain(name, other, share):
    return table[name, share].mean() - table[other, share].mean()

  claim = claims_about('magnitude-aware signs', PAPER, settings.dataset)
  return Summary(
    claims=[
      claim(
        'on uneven data a vote on sparse signs beats a vote on signs',
        Check(
          'all workers: points of sparsign 10 over signs, zeros abstain',
          gain('sparsign 10', 'sign, zeros abstain', '100%'),
          at_least=1,
        ),
      ),
      claim(
        'sparse signs take less than a bit per coordinate',
        Check(
          'all workers: bits per coordinate of sparsign 10',
          bits['sparsign 10', '100%'].mean(),
          at_most=0.576,
        ),
      ),
      claim(
        'error feedback on the server helps when few workers take part',
        Check(
          f'{few} of workers: points by server feedback, sparsign 10',
          gain('sparsign 10, server feedback', 'sparsign 10', few),
          at_least=1,
          why='few votes are empty at a budget of 10; at a budget of 1, where'
          ' many are, it gains more, see the table',
        ),
      ),
      claim('local steps save rounds'),
    ],
    tables=pivots(
      [
        ('Test accuracy (%) by participation', table),
        ('Bits per coordinate of a message', bits, 3),
      ]
    ),
    figures={'accuracy_against_bits.png': lambda: picture(table, bits)},
  )


def picture(table, bits):
  """Accuracy against bits, a panel for every participation."""
  names, shares = tables.axes(table)
  figure, axes = pictures.panels(1, len(shares), figsize=(10, 5.5), sharey=True)
  colours = palette.colours(names)
  for share, panel in zip(shares, axes[0]):
    for name in names:
      x, y = bits[name, share].mean(), table[name, share]
      style = {'fmt': 'o', 'capsize': 3, 'color': colours[name], 'label': name}
      panel.errorbar(x, y.mean(), y.std(), **style)
    panel.set(xscale='log', xlabel='bits per coordinate of a message')
    panel.set_title(f'{share} of workers in a round')
  axes[0, 0].set_ylabel('test accuracy (%)')
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside lower center', ncols=3)
  return figure
