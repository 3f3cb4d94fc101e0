r"""Curricula in federated learning: easy data first (Vahidian et al.).

  python -m experiments.studies curriculum --check                # digits
  python -m experiments.studies curriculum --variant=fashion_mnist \
      --data_dir=FOLDER
  python -m experiments.studies curriculum --variant=cifar10 --data_dir=FOLDER
  python -m experiments.studies curriculum --variant=cifar10_skewed \
      --data_dir=FOLDER
  python -m experiments.studies curriculum --parts=order --noises=0 \
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

The variants (module `notebook`) are a part of their own: the authors' runs on
Fashion-MNIST and CIFAR-10 with small CNNs, as near to them as minutes allow.

Learning rates, noise, pacing and attacks are numbers of one program per cell.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import byzjax
from byzjax import data

from ...harness.cells import Cell, Rows, Task
from ...harness.settings import ImageSettings, option
from ...reporting import tables
from ...reporting.summary import Summary
from . import claims as said
from . import clients as of_clients
from . import notebook

PARTS = ('order', 'scores', 'pacing', 'attacks', 'clients')
RULES = {'mean': byzjax.mean, 'median': byzjax.coordinate_median}
FIXED = ('noise', 'attack', 'full_at', 'initial_share')  # Not chosen from.
QUICK = {'rounds': 2, 'local_steps': 4, 'learning_rates': (0.03,)}
QUICK_CELLS = ('order, even, vanilla', 'order, even, curriculum')
NOTEBOOK = {
  'parts': (notebook.PART,),
  'pooling': 2,
  'num_workers': 100,
  'num_participants': 10,
  'num_byzantine': 10,
  'min_pool': 32,
}
CIFAR10 = {
  **NOTEBOOK,
  'dataset': 'cifar10',
  'num_train': 50000,
  'rounds': 30,
  'local_steps': 90,
  'learning_rates': (0.003, 0.01, 0.03),
}
VARIANTS = {
  'fashion_mnist': {
    **NOTEBOOK,
    'dataset': 'fashion_mnist',
    'rounds': 30,
    'local_steps': 36,
    'learning_rates': (0.01, 0.03, 0.1),
  },
  'cifar10': {**CIFAR10, 'skew': math.inf},
  'cifar10_skewed': {**CIFAR10, 'skew': 0.05},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  parts: tuple[str, ...] = option(PARTS, 'What to run.')
  num_workers: int = option(20, 'n clients.', low=1)
  num_participants: int = option(5, 'm of them in a round.', low=1)
  num_byzantine: int = option(2, 'f, in the part attacks.', low=1)
  num_claiming: int = option(4, 'f, in the part clients.', low=1)
  rounds: int = option(30, 'Rounds of training.', low=1)
  local_steps: int = option(35, 'T, about five passes.', low=1)
  batch_size: int = option(10, 'Examples per client and step.', low=1)
  min_pool: int = option(10, 'Examples in a pool, at least.', low=1)
  momentum: float = option(0.9, 'Of the local steps.', low=0)
  learning_rates: tuple[float, ...] = option(
    (0.01, 0.03, 0.1), 'To choose from.'
  )
  noises: tuple[float, ...] = option(
    (0.0, 0.3), 'Shares of wrong training labels.'
  )
  skew: float = option(0.2, 'Of the Dirichlet distribution; inf: even.', low=0)
  pooling: int = option(1, 'k x k pixels are one, in the notebook.', low=1)
  num_train: int = option(20000, 'Images of the notebook.', low=100)
  attacked_rounds: int = option(15, 'Of the notebook, attacked.', low=1)


def pool_of(clients: str, f: int) -> int:
  """How many clients are in a pool at least."""
  sizes = {'2f + 1': 2 * f + 1, '4f': 4 * f}
  return sizes.get(clients.partition('pool ')[2], 1)


def loss_per_example_of(graphdef):
  def loss_per_example(params, images, labels):
    logits = nnx.merge(graphdef, params)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

  return loss_per_example


class Kind(NamedTuple):
  """What a cell is, in the names of its labels."""

  part: str
  shards: str = 'even'
  order: Any = 'vanilla'
  score: Any = 'global'
  pacing: Any = 'linear'
  clients: Any = 'uniform'
  rule: str = 'mean'


def cell(settings: Settings, kind: Kind, **grid) -> Cell:
  expert = None
  if kind.score == 'expert':
    expert = of_clients.expert_params(
      settings.dataset, settings.data_dir, settings.model
    )
  return Cell(
    labels=kind._asdict(),
    make_round=functools.partial(round_of, settings, kind, expert),
    grid={
      'learning_rate': settings.learning_rates,
      'noise': settings.noises[-1:],
      'attack': [0.0],
      'full_at': [0.8],
      'initial_share': [0.2],
      **grid,
    },
    num_workers=settings.num_workers,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    # All clients hold equally many examples, and take as many steps.
    partition='random_shards'
    if kind.shards == 'even'
    else f'dirichlet_by_worker(alpha={settings.skew})',
    is_local=True,
    num_evals=10,
  )


def round_of(
  settings: Settings,
  kind: Kind,
  expert: Any,
  task: Task,
  key: jax.Array,
  learning_rate: jax.Array,
  noise: jax.Array,
  attack: jax.Array,
  **pools: jax.Array,
) -> byzjax.Round:
  """Local SGD of clients, of which the number `attack` says what some do."""
  f = settings.num_byzantine
  if kind.part == 'clients':
    f = settings.num_claiming

  def attackers(*names):
    active = sum(attack == said.ATTACKS[name] for name in names)
    return jnp.where(active, f, 0)

  labels = of_clients.labels_of(
    task,
    key,
    noise=noise,
    flipped=attackers('label flip'),
    uneven=kind.part == 'uneven',
  )
  liars = jnp.arange(settings.num_workers) < attackers(
    'label flip', 'sign flip'
  )
  return byzjax.local_round(
    task.loss_fn,
    local_optimizer=optax.sgd(learning_rate, settings.momentum),
    local_state='reset',
    optimizer=optax.sgd(1.0),
    num_local_steps=settings.local_steps,
    num_workers=settings.num_workers,
    participation=participation(settings, kind, task, labels, f, liars),
    sampler=sampler_of(settings, kind, task, labels, expert, pools),
    aggregator=RULES[kind.rule](),
    attack=byzjax.sign_flip(scale=10.0),
    byzantine=lambda step: (
      jnp.arange(settings.num_workers) < attackers('sign flip')
    ),
  )


def sampler_of(
  settings: Settings, kind: Kind, task: Task, labels, expert, pools
) -> byzjax.LocalSampler:
  """In which order a client takes its examples."""
  size = settings.batch_size
  if kind.order == 'vanilla':
    return data.local_sampler(
      task.images, labels, batch_size=size, scale=task.scale, shuffled=True
    )
  return data.curriculum(
    task.images,
    labels,
    **pools,
    loss_per_example=loss_per_example_of(task.graphdef),
    scale=task.scale,
    batch_size=size,
    num_local_steps=settings.local_steps,
    order=kind.order,
    score=kind.score,
    expert_params=expert,
    pacing=kind.pacing,
    min_pool=settings.min_pool,
  )


def participation(
  settings: Settings, kind: Kind, task: Task, labels, f: int, liars
) -> int | byzjax.Participation:
  """Which clients take part: any of them, or those of a curriculum."""
  if kind.clients == 'uniform':
    return settings.num_participants
  claims = 'claims' in kind.clients
  drawn = data.client_curriculum(
    num_workers=settings.num_workers,
    num_participants=settings.num_participants,
    total_rounds=settings.rounds,
    score=data.worker_loss(
      task.images,
      labels,
      loss_per_example=loss_per_example_of(task.graphdef),
      scale=task.scale,
    ),
    order='curriculum' if claims else kind.clients,
    min_pool=pool_of(kind.clients, f),
  )
  return of_clients.claiming(drawn, liars) if claims else drawn


def define(settings: Settings) -> list[Cell]:
  if settings.parts == (notebook.PART,):
    return notebook.define(settings, loss_per_example_of)
  if unknown := set(settings.parts) - set(PARTS):
    raise ValueError(f'--parts: {sorted(unknown)} none of {PARTS}')
  if 'scores' in settings.parts and 'order' not in settings.parts:
    raise ValueError('--parts: scores are compared with those of order')
  rates, attacks = settings.learning_rates, list(said.ATTACKS.values())
  made = functools.partial(cell, settings)
  all_cells = {
    'order': [
      made(Kind('order', shards, order), noise=settings.noises)
      for shards in said.SHARDS
      for order in said.ORDERS
    ],
    'scores': [
      made(Kind('scores', shards, order, score))
      for shards in said.SHARDS
      for score in said.SCORES[1:]
      for order in said.EXTREMES
    ],
    'pacing': [
      made(
        Kind('pacing', order=order, pacing=pacing),
        learning_rate=rates[len(rates) // 2 :][:1],
        full_at=said.FULL_AT,
        initial_share=said.SHARES,
      )
      for pacing in said.PACINGS
      for order in said.EXTREMES
    ],
    'attacks': [
      made(Kind('attacks', order=order, rule=rule), attack=attacks)
      for rule in RULES
      for order in ('vanilla', 'curriculum')
    ],
    'clients': [
      *(made(Kind('uneven', clients=who)) for who in said.CLIENT_ORDERS),
      *(
        made(Kind('clients', clients=who, rule='median'), attack=attacks)
        for who in said.CLAIMS
      ),
    ],
  }
  return [cell for part in settings.parts for cell in all_cells[part]]


def keep(rows: Rows, settings: Settings) -> Rows:
  """At the learning rates that are best on the validation split."""
  if settings.parts == (notebook.PART,):
    return notebook.keep(rows)
  last = tables.keep(rows, metrics=('accuracy', 'validation_accuracy'))
  return tables.tuned_each(last, (*Kind._fields, *FIXED), 'learning_rate')


def summarise(rows: Rows, settings: Settings) -> Summary:
  of = notebook if settings.parts == (notebook.PART,) else said
  return of.summarise(rows, settings)
