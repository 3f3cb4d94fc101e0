r"""signSGD with majority vote against sign inverters (Bernstein et al.).

  python -m experiments.sign_majority.run --check                 # digits
  python -m experiments.sign_majority.run --dataset=mnist --data_dir=FOLDER

Seven workers send the sign of their momentum, one bit per coordinate, packed;
the server sends back the majority, packed. 0 to 4 of them lie: inverters send
the opposite of their own sign, random ones draw it, and omniscient ones vote
against the honest majority wherever that decides. Attacks act on what has been
encoded, and can only send signs. The mean of unpacked momenta is the control.
"""

import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import byzjax
from experiments import report, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 7, 'n.', 1)
flags.DEFINE_integer('rounds', 800, 'Rounds of training.', 1)
flags.DEFINE_integer('batch_size', 16, 'Examples per worker and round.', 1)
flags.DEFINE_float('learning_rate', 1e-3, 'What a coordinate moves.', 0.0)
flags.DEFINE_float('control_learning_rate', 0.5, 'Of the mean.', 0.0)
flags.DEFINE_float('momentum', 0.9, 'Decay of worker momentum.')

ATTACKS = {
  'invert': lambda: byzjax.sign_flip(own=True),
  'random': byzjax.random_signs,
  'omniscient': byzjax.flip_vote,
}
METHODS = ('vote', 'mean')


def cell(method: str, attack: str, f: int) -> study.Cell:
  n = FLAGS.num_workers
  vote = method == 'vote'

  def make_round(loss_fn, key, learning_rate):
    del key
    return byzjax.robust_round(
      loss_fn,
      num_workers=n,
      worker=byzjax.worker_momentum(FLAGS.momentum),
      attack=ATTACKS[attack](),
      # A schedule, for this study goes beyond the half that a count may be.
      byzantine=lambda step: jnp.arange(n) < f,
      codec=byzjax.sign_codec() if vote else None,
      aggregator=byzjax.majority_vote() if vote else byzjax.mean(),
      server_codec=byzjax.sign_codec() if vote else None,
      optimizer=optax.sgd(learning_rate),
    )

  rate = FLAGS.learning_rate if vote else FLAGS.control_learning_rate
  return study.Cell(
    make_round,
    {'method': method, 'attack': attack, 'num_byzantine': f},
    {'learning_rate': [rate]},
    n,
    FLAGS.rounds,
    FLAGS.batch_size,
  )


def cells() -> list[study.Cell]:
  most = (FLAGS.num_workers + 1) // 2
  return [
    cell(method, attack, f)
    for method in METHODS
    for attack in ATTACKS
    for f in range(most + 1)
  ]


def main(argv):
  del argv
  folder, rows = study.run('sign_majority', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  n = FLAGS.num_workers
  table = {
    (f'{method}, {attack}', f'{f} of {n}'): 100
    * report.final(
      report.select(rows, method=method, attack=attack, num_byzantine=f)
    )
    for method, attack, f in dict.fromkeys(
      (row['method'], row['attack'], row['num_byzantine']) for row in rows
    )
  }
  bits = {
    method: np.mean(
      [r['bits_up'] + r['bits_down'] for r in rows if r['method'] == method]
    )
    for method in METHODS
  }
  print('Test accuracy (%) by attack and number of attackers')
  print(report.pivot(table))
  print(
    f'bits per round, up and down: {bits["vote"]:.0f} for the vote,'
    f' {bits["mean"]:.0f} for the mean'
  )
  report.heatmap(table, 'Majority vote', folder / 'table.png')

  def loss(attack, f):
    clean = table[f'vote, {attack}', f'0 of {n}'].mean()
    return clean - table[f'vote, {attack}', f'{f} of {n}'].mean()

  minority, majority = (n - 1) // 2, (n + 1) // 2
  study.finish(
    [
      study.claim(f'{minority} inverters cost', -loss('invert', minority), -2),
      study.claim(f'{majority} inverters cost', loss('invert', majority), 60),
      study.claim(
        f'{majority} random signs cost', -loss('random', majority), -2
      ),
      study.claim('float32 bits per bit', bits['mean'] / bits['vote'], 32),
    ]
  )


if __name__ == '__main__':
  app.run(main)
