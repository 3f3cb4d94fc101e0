"""Rounds and bits until a test accuracy, with both signs of zero.

Few or all workers take part. Only those that do compute, so a round draws its
own workers and batches. Every method has a grid of rates of its own; with
local steps one of local rates, too.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, gradients

from ...harness.cells import Cell, Rows
from ...reporting import palette, pictures, tables
from ...reporting.summary import Check, Claim, Summary, claims_about, pivots

TAIL = 5  # Evaluations that final accuracies are the mean of.
BUDGET = 10.0  # Of the signs along which workers step on their own.
PAPER = 'Jin, He, Zhong, Zhang, Quek, Dai 2023, arXiv:2302.09634'
OURS = 'the sign of zero is a question of ours, not of the paper'
FEEDBACK = 'sparsign 10, server feedback'
LOCAL = 'local steps {}, server feedback'
SPARSE = ('sparsign 1', 'sparsign 10', FEEDBACK)
SCALED = ('scaled sign', 'scaled sign, zeros abstain')


class Method(NamedTuple):
  """How messages go up, what they become, how it goes down; and the rates."""

  rates: tuple[float, ...]
  codec: byzjax.Codec | None
  rule: Callable[[], byzjax.Aggregator] = byzjax.mean
  server_codec: byzjax.Codec | None = None
  num_local_steps: int = 1
  local_rates: tuple[float, ...] = (0.0,)


def abstain() -> byzjax.Aggregator:
  return byzjax.majority_vote(zeros='abstain')


def methods(settings) -> dict[str, Method]:
  sign, scaled = byzjax.sign_codec(), byzjax.scaled_sign_codec()
  noisy, qsgd = byzjax.noisy_sign_codec(std=0.01), byzjax.qsgd_codec(norm='l2')
  sign_abstains = byzjax.sign_codec(zeros='abstain')
  scaled_abstains = byzjax.scaled_sign_codec(zeros='abstain')
  one, ten = (byzjax.sparsign_codec(budget=budget) for budget in (1.0, 10.0))
  vote, feedback = byzjax.majority_vote, byzjax.error_feedback
  plus, votes = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2)
  means, fed = (0.1, 0.3, 1.0), (0.03, 0.1, 0.3)
  return {
    'uncompressed': Method((0.1, 0.2, 0.4), None),
    'sign': Method(plus, sign, vote, sign),
    'sign, zeros abstain': Method(votes, sign_abstains, abstain),
    'noisy sign': Method(votes, noisy, vote, sign),
    SCALED[0]: Method(means, scaled),
    SCALED[1]: Method(means, scaled_abstains),
    'qsgd, 1 bit': Method((0.03, 0.1, 0.3), qsgd),
    'sparsign 1': Method(votes, one, abstain),
    'sparsign 10': Method(votes, ten, abstain),
    FEEDBACK: Method(fed, ten, server_codec=feedback(scaled)),
    f'{FEEDBACK}, zeros abstain': Method(
      fed, ten, server_codec=feedback(scaled_abstains)
    ),
  } | {
    # A budget of one sends the sign of whatever is not zero in the sum.
    LOCAL.format(tau): Method(
      (0.02, 0.06),
      one,
      server_codec=feedback(scaled),
      num_local_steps=tau,
      local_rates=(1e-3, 3e-3, 1e-2),
    )
    for tau in settings.local_taus
  }


def define(settings) -> list[Cell]:
  return [
    cell(settings, name, method, share)
    for share in settings.participation
    for name, method in methods(settings).items()
  ]


def cell(settings, name: str, method: Method, share: float) -> Cell:
  n, tau = settings.num_workers, method.num_local_steps
  taking_part = round(share * n)
  per_round = tau * settings.batch_size

  def make_round(task, key, learning_rate, local_rate):
    del key
    numbers = jnp.arange(len(task.labels))

    def loss_fn(params, chosen):
      pixels = task.images[chosen].astype(jnp.float32) / task.scale
      return task.loss_fn(params, (pixels, task.labels[chosen]))

    local = gradients.sparsign_local_steps(
      loss_fn, budget=BUDGET, learning_rate=local_rate
    )
    inner = byzjax.robust_round(
      loss_fn,
      num_workers=taking_part,
      value_and_grad=local if tau > 1 else None,
      codec=method.codec,
      aggregator=method.rule(),
      server_codec=method.server_codec,
      optimizer=optax.sgd(learning_rate),
    )

    def step(state, partition, key):
      # Not the key of the round: that one is folded and split.
      own = jax.random.fold_in(jax.random.split(key)[1], state.step)
      who, which = jax.random.split(own)
      ids = jax.random.permutation(who, n)[:taking_part]
      shards = jax.tree.map(lambda x: x[ids], partition)
      # The labels of examples that are their own labels.
      _, chosen = data.sample_batch(
        numbers[:, None], numbers, shards, which, per_round
      )
      if tau > 1:
        chosen = chosen.reshape(taking_part, tau, -1)
      return inner.step(state, chosen, key)

    return byzjax.Round(inner.init, step)

  rounds = settings.rounds if tau == 1 else settings.local_rounds
  # Equally many rounds apart, so that local steps do not gain by finer counts.
  num_evals = max(settings.num_evals * rounds // settings.rounds, 1)
  if taking_part < n:
    rounds *= settings.times_rounds
  return Cell(
    labels={'method': name, 'participation': share},
    make_round=make_round,
    grid={'learning_rate': method.rates, 'local_rate': method.local_rates},
    num_workers=n,
    rounds=rounds,
    batch_size=per_round,
    partition=f'dirichlet_by_worker(alpha={settings.alpha})',
    num_evals=num_evals,
    is_local=True,
  )


def keep(rows: Rows, settings) -> Rows:
  """The ends of runs, with the rounds and bits that they took to the target."""
  metrics = 'accuracy', 'validation_accuracy'
  last = tables.keep(rows, tail=TAIL, metrics=metrics)
  return [
    row | until(run, settings)
    for row, run in zip(last, tables.runs(rows).values())
  ]


def until(run: Rows, settings) -> dict[str, float]:
  """When a run first has the accuracy, inf if never; and its bits.

  Bits are sent by all workers, per worker of all, taking part or not.
  """
  rounds = tables.column(run, 'round')
  sent = tables.column(run, 'bits_up') * np.diff(rounds, prepend=0)
  megabits = np.cumsum(sent) / settings.num_workers / 1e6

  def first(counted, name):
    there = tables.column(run, name) >= settings.target
    return float(counted[there.argmax()]) if there.any() else np.inf

  return {
    'rounds_to': first(rounds, 'accuracy'),
    'megabits_to': first(megabits, 'accuracy'),
    'validation_rounds_to': first(rounds, 'validation_accuracy'),
    'bits_up': float(sent.sum() / rounds[-1]),
  }


class Found(NamedTuple):
  """What is said of every method and share of workers."""

  accuracy: tables.Cells
  rounds: tables.Cells  # inf where a seed does not reach the target
  megabits: tables.Cells
  bits: tables.Cells  # per coordinate of a message
  rates: tables.Cells


def find(rows: Rows) -> Found:
  """Final accuracy at the rates best for it, the others at the fastest."""
  found = Found(*(tables.Cells() for _ in Found._fields))
  rates = 'learning_rate', 'local_rate'
  for (name, share), runs in tables.split_by(rows, 'method', 'participation'):
    at = name, f'{share:.0%}'
    best = tables.tuned(runs, *rates)
    fast = tables.tuned(runs, *rates, by='validation_rounds_to', least=True)
    found.accuracy[at] = tables.percent(best)
    found.rounds[at] = tables.final(fast, 'rounds_to')
    found.megabits[at] = tables.final(fast, 'megabits_to')
    full = tables.select(rows, method='uncompressed', participation=share)
    unit = tables.final(full, 'bits_up').mean() / 32
    found.bits[at] = tables.final(best, 'bits_up') / unit
    for goal, chosen in (('end', best), ('fast', fast)):
      for kind, rate in zip(('server', 'local'), rates):
        if chosen[0][rate] > 0:
          column = f'{share:.0%}, {goal}, {kind}'
          found.rates[name, column] = tables.final(chosen, rate)[:1]
  return found


def over(a: float, b: float) -> float:
  """a / b; inf if the target is reached in neither."""
  return np.inf if np.isinf(a) else a / b


def summarise(rows: Rows, settings) -> Summary:
  found = find(rows)
  goal = f'{settings.target:.0%}'
  few = f'{min(settings.participation):.0%}'
  return Summary(
    claims=claims(found, settings.dataset, goal, few),
    tables=pivots(
      [
        ('Test accuracy (%) by participation', found.accuracy),
        (
          f'Rounds to {goal}, where all seeds reach it',
          tables.reached(found.rounds),
        ),
        (
          f'Megabits that a worker sends until {goal}, mean over all workers',
          tables.reached(found.megabits),
          2,
        ),
        ('Bits per coordinate of a message', found.bits, 3),
        (
          f'Rates that were chosen, for the end and for {goal}',
          found.rates,
          4,
        ),
      ]
    ),
    figures={'fashion_mnist.png': lambda: picture(found, goal)},
  )


def gain(found: Found, name: str, other: str, share: str) -> float:
  """Points of one over another."""
  mine, its = found.accuracy[name, share], found.accuracy[other, share]
  return mine.mean() - its.mean()


def bits_over(found: Found, names: Sequence[str], share: str) -> float:
  """Bits of the best sparse signs over those of the best of others."""
  mine, its = (
    min(found.megabits[name, share].mean() for name in each)
    for each in (SPARSE, names)
  )
  return over(mine, its)


def claims(found: Found, dataset: str, goal: str, few: str) -> list[Claim]:
  """The claims, with thresholds that were predicted before the run."""
  claim = claims_about('magnitude-aware signs', PAPER, dataset)
  return [
    claim(
      'on uneven data a vote on sparse signs beats a vote on signs',
      *(
        Check(
          f'{share} of workers: points of sparsign 10 over signs, zeros'
          ' abstain',
          gain(found, 'sparsign 10', 'sign, zeros abstain', share),
          at_least=1,
        )
        for share in ('100%', few)
      ),
    ),
    claim(
      'zeros that are sent as +1 cost accuracy',
      *checks_of_zeros(found),
      paper=OURS,
    ),
    claim(
      'sparse signs come close to what is not compressed',
      Check(
        '100% of workers: points lost by sparsign 10 with server feedback',
        gain(found, 'uncompressed', FEEDBACK, '100%'),
        at_most=2,
      ),
    ),
    claim(
      f'sparse signs need fewest bits to {goal}', *checks_of_bits(found, few)
    ),
    claim(
      'error feedback on the server helps when few workers take part',
      Check(
        f'{few} of workers: points by server feedback, sparsign 10',
        gain(found, FEEDBACK, 'sparsign 10', few),
        at_least=1,
        why='the rate that was chosen is the least of its grid; at 74 % it'
        ' saves a fifth of the rounds',
      ),
    ),
    claim('local steps save rounds', *checks_of_rounds(found, goal, few)),
  ]


def checks_of_zeros(found: Found) -> list[Check]:
  return [
    Check(
      f'100% of workers: points of {name}, zeros abstain, over {name}',
      gain(found, f'{name}, zeros abstain', name, '100%'),
      at_least=points,
    )
    for name, points in (('sign', 5), ('scaled sign', 2))
  ]


def checks_of_bits(found: Found, few: str) -> list[Check]:
  return [
    Check(
      f'{few} of workers: bits of the best sparse signs over the best scaled',
      bits_over(found, SCALED, few),
      at_most=0.5,
    ),
    Check(
      f'{few} of workers: the same over qsgd',
      bits_over(found, ['qsgd, 1 bit'], few),
      at_most=1,
      why='qsgd sends 0.03 bits a coordinate, and takes twice the rounds',
    ),
  ]


def checks_of_rounds(found: Found, goal: str, few: str) -> list[Check]:
  return [
    Check(
      f'{share} of workers: rounds to {goal} with 10 local steps over one',
      over(
        found.rounds[LOCAL.format(10), share].mean(),
        found.rounds[FEEDBACK, share].mean(),
      ),
      at_most=0.7,
    )
    for share in ('100%', few)
  ]


def picture(found: Found, goal: str):
  """Rounds against bits until the target, a panel for every participation."""
  names, shares = tables.axes(found.rounds)
  figure, axes = pictures.panels(1, len(shares), figsize=(10, 5.5), sharey=True)
  colours = palette.colours(names)
  for share, panel in zip(shares, axes[0]):
    for name in names:
      x, y = found.megabits[name, share], found.rounds[name, share]
      # What does not get there keeps its place in the legend.
      there = np.isfinite(x) & np.isfinite(y)
      style = {'color': colours[name], 'label': name, 'marker': 'o'}
      panel.plot(x[there], y[there], linestyle='', **style)
    panel.set(xscale='log', yscale='log')
    panel.set_xlabel(f'megabits that a worker sends until {goal}')
    panel.set_title(f'{share} of workers in a round')
  axes[0, 0].set_ylabel(f'rounds to {goal}')
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside lower center', ncols=3)
  return figure
