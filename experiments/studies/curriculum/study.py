r"""Curricula in federated learning: easy data first (Vahidian et al.).

  python -m experiments.curriculum.run --check                    # digits
  python -m experiments.curriculum.run --parts=order --noises=0 \
      --dataset=cifar10 --data_dir=FOLDER --num_workers=100

FedAvg with momentum; in every round some clients take part, rank their own
examples by a loss and take local steps on a growing pool of them: the easiest
first (`curriculum`), the hardest first (`anti`), a random order with the same
pools (`random`), or all of them from the start (`vanilla`). Digits are easy:
in the harder variant a share of the training labels is wrong. The parts are

  order    the four orders, on even and on skewed shards
  scores   scores of the received, of the client's own and of a fixed model
  pacing   how fast the pool grows
  attacks  clients with flipped labels or flipped signs, for mean and median
  clients  whole clients in the order of their loss, which attackers may claim

Learning rates, noise, pacing and attacks are numbers of one program per cell.
"""

import functools

import jax.numpy as jnp
import optax
from absl import app, flags
from flax import nnx

import byzjax
from byzjax import data
from experiments import study
from experiments.cell import split_validation
from experiments.curriculum import clients as of_clients
from experiments.curriculum import tables
from experiments.curriculum.tables import ATTACKS

FLAGS = flags.FLAGS
PARTS = ('order', 'scores', 'pacing', 'attacks', 'clients')
flags.DEFINE_list('parts', ','.join(PARTS), 'What to run.')
flags.DEFINE_integer('num_workers', 20, 'n clients.', 1)
flags.DEFINE_integer('num_participants', 5, 'm of them in a round.', 1)
flags.DEFINE_integer('num_byzantine', 2, 'f, in the part attacks.', 1)
flags.DEFINE_integer('num_claiming', 4, 'f, in the part clients.', 1)
flags.DEFINE_integer('rounds', 30, 'Rounds of training.', 1)
flags.DEFINE_integer('local_steps', 35, 'T, about five passes.', 1)
flags.DEFINE_integer('batch_size', 10, 'Examples per client and step.', 1)
flags.DEFINE_integer('min_pool', 10, 'Examples in a pool, at least.', 1)
flags.DEFINE_float('momentum', 0.9, 'Of the local steps.', 0.0, 1.0)
flags.DEFINE_list('learning_rates', '0.01,0.03,0.1', 'To choose from.')
flags.DEFINE_list('noises', '0,0.3', 'Shares of wrong training labels.')
flags.DEFINE_float('skew', 0.2, 'Of the Dirichlet distribution.', 0.0)

RULES = {'mean': byzjax.mean, 'median': byzjax.coordinate_median}


@functools.cache
def expert_params():
  dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
  return of_clients.train_expert(split_validation(dataset)[0], FLAGS.model)


def pool_of(clients: str, f: int) -> int:
  """How many clients are in a pool at least."""
  sizes = {'2f + 1': 2 * f + 1, '4f': 4 * f}
  return sizes.get(clients.partition('pool ')[2], 1)


def loss_per_example_of(graphdef):
  def loss_per_example(params, images, labels):
    logits = nnx.merge(graphdef, params)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

  return loss_per_example


def cell(
  part,
  shards='even',
  order='vanilla',
  score='global',
  pacing='linear',
  clients='uniform',
  rule='mean',
  **grid,
) -> study.Cell:
  expert = expert_params() if score == 'expert' else None
  n, m, size = FLAGS.num_workers, FLAGS.num_participants, FLAGS.batch_size
  f = FLAGS.num_claiming if part == 'clients' else FLAGS.num_byzantine

  def make_round(loss_fn, key, setting, learning_rate, noise, attack, **pools):
    def attackers(*names):
      active = sum(attack == ATTACKS[name] for name in names)
      return jnp.where(active, f, 0)

    labels = of_clients.labels_of(
      setting,
      key,
      noise=noise,
      flipped=attackers('label flip'),
      uneven=part == 'uneven',
    )
    examples = setting.images, labels
    loss_per_example = loss_per_example_of(setting.graphdef)
    if order == 'vanilla':
      sampler = data.local_sampler(
        *examples, batch_size=size, scale=setting.scale, shuffled=True
      )
    else:
      sampler = data.curriculum(
        *examples,
        **pools,
        loss_per_example=loss_per_example,
        scale=setting.scale,
        batch_size=size,
        num_local_steps=FLAGS.local_steps,
        order=order,
        score=score,
        expert_params=expert,
        pacing=pacing,
        min_pool=FLAGS.min_pool,
      )
    drawn = None
    if clients != 'uniform':
      drawn = data.client_curriculum(
        num_workers=n,
        num_participants=m,
        total_rounds=FLAGS.rounds,
        score=data.worker_loss(
          *examples, loss_per_example=loss_per_example, scale=setting.scale
        ),
        order='curriculum' if 'claims' in clients else clients,
        min_pool=pool_of(clients, f),
      )
      if 'claims' in clients:
        liars = jnp.arange(n) < attackers('label flip', 'sign flip')
        drawn = of_clients.claiming(drawn, liars)
    return byzjax.local_round(
      loss_fn,
      local_optimizer=optax.sgd(learning_rate, FLAGS.momentum),
      local_state='reset',
      optimizer=optax.sgd(1.0),
      num_local_steps=FLAGS.local_steps,
      num_workers=n,
      participation=drawn or m,
      sampler=sampler,
      aggregator=RULES[rule](),
      attack=byzjax.sign_flip(scale=10.0),
      byzantine=lambda step: jnp.arange(n) < attackers('sign flip'),
    )

  return study.Cell(
    make_round,
    {
      'part': part,
      'shards': shards,
      'order': order,
      'score': score,
      'pacing': pacing,
      'clients': clients,
      'rule': rule,
    },
    {
      'learning_rate': study.floats('learning_rates'),
      'noise': study.floats('noises')[-1:],
      'attack': [0.0],
      'full_at': [0.8],
      'initial_share': [0.2],
      **grid,
    },
    n,
    FLAGS.rounds,
    size,
    # All clients hold equally many examples, and take as many steps.
    'random_shards'
    if shards == 'even'
    else f'dirichlet_by_worker(alpha={FLAGS.skew})',
    is_local=True,
    num_evals=10,
  )


def cells() -> list[study.Cell]:
  if unknown := set(FLAGS.parts) - set(PARTS):
    raise ValueError(f'--parts: {sorted(unknown)} none of {PARTS}')
  if 'scores' in FLAGS.parts and 'order' not in FLAGS.parts:
    raise ValueError('--parts: scores are compared with those of order')
  noises, rates = study.floats('noises'), study.floats('learning_rates')
  attacks = list(ATTACKS.values())
  all_cells = {
    'order': [
      cell('order', shards, order, noise=noises)
      for shards in tables.SHARDS
      for order in tables.ORDERS
    ],
    'scores': [
      cell('scores', shards, order, score)
      for shards in tables.SHARDS
      for score in tables.SCORES[1:]
      for order in tables.EXTREMES
    ],
    'pacing': [
      cell(
        'pacing',
        order=order,
        pacing=pacing,
        learning_rate=rates[len(rates) // 2 :][:1],
        full_at=tables.FULL_AT,
        initial_share=tables.SHARES,
      )
      for pacing in tables.PACINGS
      for order in tables.EXTREMES
    ],
    'attacks': [
      cell('attacks', order=order, rule=rule, attack=attacks)
      for rule in RULES
      for order in ('vanilla', 'curriculum')
    ],
    'clients': [
      *(cell('uneven', clients=clients) for clients in tables.CLIENT_ORDERS),
      *(
        cell('clients', clients=clients, rule='median', attack=attacks)
        for clients in tables.CLAIMS
      ),
    ],
  }
  return [cell for part in FLAGS.parts for cell in all_cells[part]]


def main(argv):
  del argv
  folder, rows = study.run('curriculum', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  noises, n, f = study.floats('noises'), FLAGS.num_workers, FLAGS.num_claiming
  summaries = {
    'order': lambda: tables.order_part(rows, noises, folder / 'orders.png'),
    'scores': lambda: tables.scores_part(rows, noises[-1]),
    'pacing': lambda: tables.pacing_part(rows),
    'attacks': lambda: tables.attacks_part(
      rows, f'{FLAGS.num_byzantine} of {n} clients'
    ),
    'clients': lambda: tables.clients_part(
      rows, f'{f} of {n} clients attack, {FLAGS.num_participants} in a round'
    ),
  }
  study.finish([c for p in PARTS if p in FLAGS.parts for c in summaries[p]()])


if __name__ == '__main__':
  app.run(main)
