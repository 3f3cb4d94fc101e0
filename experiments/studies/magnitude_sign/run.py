r"""Magnitude-aware sparsified signs on heterogeneous data (Jin et al.).

  python -m experiments.magnitude_sign.run --check                # digits
  python -m experiments.magnitude_sign.run --dataset=fashion_mnist \
      --data_dir=FOLDER

Classes are divided unevenly among workers (Dirichlet), and all workers or a
fifth of them take part in a round. sparsign sends the sign of a coordinate with
a probability that grows with its size; a vote on such messages follows the sum
of gradients, where a vote on signs follows the number of workers. Server error
feedback keeps what the way down loses. Bits are counted exactly, positions in
Golomb code. The learning rate is the best of three on a validation split.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import gradients
from experiments import report, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 40, 'n.', 1)
flags.DEFINE_float('alpha', 0.1, 'Of the Dirichlet distribution.', 0.0)
flags.DEFINE_integer('rounds', 300, 'Rounds of training.', 1)
flags.DEFINE_integer('batch_size', 16, 'Examples per worker and step.', 1)
flags.DEFINE_integer('local_steps', 5, 'tau, for the local method.', 1)
flags.DEFINE_list('factors', '0.3,1,3', 'Of the learning rate of a method.')
flags.DEFINE_list('participation', '1.0,0.2', 'Shares of workers in a round.')


class Method(NamedTuple):
  """How messages go up, what they become, and how it goes down."""

  learning_rate: float
  codec: byzjax.Codec | None
  rule: Callable[[], byzjax.Aggregator]
  server_codec: byzjax.Codec | None = None
  local: bool = False


def vote():
  return byzjax.majority_vote(zeros='abstain')


def methods(num_coordinates: int) -> dict[str, Method]:
  sign, scaled = byzjax.sign_codec(), byzjax.scaled_sign_codec()
  feedback = byzjax.error_feedback(scaled)
  kept = max(num_coordinates // 100, 1)
  return {
    'uncompressed': Method(0.3, None, byzjax.mean),
    'sign': Method(3e-3, sign, byzjax.majority_vote, sign),
    'noisy sign': Method(
      3e-3, byzjax.noisy_sign_codec(std=0.01), byzjax.majority_vote, sign
    ),
    'scaled sign': Method(0.3, scaled, byzjax.mean),
    'qsgd, 1 bit': Method(0.3, byzjax.qsgd_codec(norm='l2'), byzjax.mean),
    'terngrad': Method(0.3, byzjax.terngrad_codec(), byzjax.mean),
    'top 1 %, feedback': Method(
      0.3,
      byzjax.error_feedback(byzjax.top_k_codec(num_kept=kept)),
      byzjax.mean,
    ),
    'sparsign 1': Method(3e-3, byzjax.sparsign_codec(budget=1.0), vote),
    'sparsign 10': Method(3e-3, byzjax.sparsign_codec(budget=10.0), vote),
    'sparsign 1, server feedback': Method(
      0.1, byzjax.sparsign_codec(budget=1.0), byzjax.mean, feedback
    ),
    'sparsign 10, server feedback': Method(
      0.1, byzjax.sparsign_codec(budget=10.0), byzjax.mean, feedback
    ),
    'sparsign 10, local steps, server feedback': Method(
      0.1,
      byzjax.sparsign_codec(budget=1.0),
      byzjax.mean,
      feedback,
      local=True,
    ),
  }


def cell(name: str, method: Method, share: float) -> study.Cell:
  n, tau = FLAGS.num_workers, FLAGS.local_steps
  taking_part = round(share * n)

  def make_round(loss_fn, key, learning_rate):
    local = None
    if method.local:
      # The steps that workers take on their own are those of the server's sign.
      local = gradients.sparsign_local_steps(
        loss_fn, budget=10.0, learning_rate=3e-3
      )
    weights = None
    if taking_part < n:
      weights = byzjax.random_participation(n, taking_part, key)
    return byzjax.robust_round(
      loss_fn,
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
    split = (n, tau, FLAGS.batch_size)
    return jax.tree.map(lambda x: x.reshape(*split, *x.shape[2:]), batch)

  return study.Cell(
    make_round,
    {'method': name, 'participation': share},
    {
      'learning_rate': [
        float(factor) * method.learning_rate for factor in FLAGS.factors
      ]
    },
    n,
    FLAGS.rounds,
    FLAGS.batch_size * (tau if method.local else 1),
    f'dirichlet_by_worker(alpha={FLAGS.alpha})',
    make_batch=by_step if method.local else (lambda batch: batch),
  )


def picture(rows: report.Rows, path) -> None:
  """Accuracy against all bits sent up, a panel for every participation."""
  shares = list(dict.fromkeys(row['participation'] for row in rows))
  figure, panels = plt.subplots(
    1,
    len(shares),
    figsize=(6 * len(shares), 5),
    layout='constrained',
    sharey=True,
    squeeze=False,
  )
  for share, axes in zip(shares, panels[0]):
    runs = report.select(rows, participation=share)
    axes.set_prop_cycle(color=plt.get_cmap('tab20')(np.arange(20)))
    for name in dict.fromkeys(row['method'] for row in runs):
      best = report.tuned(report.select(runs, method=name), 'learning_rate')
      rounds = sorted({row['round'] for row in best})
      steps = np.diff([0, *rounds])
      at = [report.select(best, round=r) for r in rounds]
      bits = np.cumsum(
        [s * np.mean([r['bits_up'] for r in a]) for s, a in zip(steps, at)]
      )
      accuracy = [100 * np.mean([r['accuracy'] for r in a]) for a in at]
      axes.semilogx(bits, accuracy, label=name)
    axes.set(xlabel='bits sent up', ylim=(0, 100))
    axes.set_title(f'{share:.0%} of workers in a round')
    axes.grid(alpha=0.3)
  panels[0][0].set_ylabel('test accuracy (%)')
  panels[0][0].legend(fontsize=7)
  report.save(figure, path, dpi=120)
  plt.close(figure)


def cells() -> list[study.Cell]:
  return [
    cell(name, method, float(share))
    for share in FLAGS.participation
    for name, method in methods(study.num_parameters()).items()
  ]


def main(argv):
  del argv
  folder, rows = study.run('magnitude_sign', cells)
  shares = study.floats('participation')
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  num_coordinates = study.num_parameters()
  table, bits = {}, {}
  for share in shares:
    for name in methods(num_coordinates):
      runs = report.select(rows, method=name, participation=share)
      best = report.tuned(runs, 'learning_rate')
      taking_part = round(share * FLAGS.num_workers)
      table[name, f'{share:.0%}'] = 100 * report.final(best)
      bits[name, f'bits, {share:.0%}'] = report.final(
        best, 'bits_up', tail=len(best)
      ) / (taking_part * num_coordinates)
  print(f'Dirichlet {FLAGS.alpha}: test accuracy (%) by participation')
  print(report.pivot(table))
  print('\nBits per coordinate of a message')
  print(report.pivot(bits, digits=3))
  picture(rows, folder / 'accuracy_against_bits.png')

  def gain(name, other, share):
    return (table[name, share] - table[other, share]).mean()

  few = f'{min(shares):.0%}'
  study.finish(
    [
      study.claim(
        'all workers: sparsign 10 over sign',
        gain('sparsign 10', 'sign', '100%'),
        1,
      ),
      # 0.576 bits are what a tenth of the coordinates costs in this code.
      study.claim(
        'all workers: 0.576 less the bits of sparsign 10, times 1000',
        1000 * (0.576 - bits['sparsign 10', 'bits, 100%'].mean()),
        0,
      ),
      study.claim(
        f'{few} of workers: server feedback over sparsign 1',
        gain('sparsign 1, server feedback', 'sparsign 1', few),
        1,
      ),
    ]
  )


if __name__ == '__main__':
  app.run(main)
