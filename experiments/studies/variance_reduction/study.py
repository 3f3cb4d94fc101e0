r"""Variance reduction against momentum, where some workers lie.

  python -m experiments.studies variance_reduction --data_dir=FOLDER
  python -m experiments.studies variance_reduction --dataset=digits

Byrd-SAGA (Wu et al. 2020) and Byz-VR-MARINA (Gorbunov et al. 2023) send
messages whose noise vanishes, so that attackers have nothing to hide in. All
workers hold the same few images, the loss is a linear layer with an l2 term,
and what is measured is the distance of that loss to its minimum. Every method
computes as many gradients of examples, and has its own step size.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, Table
from .. import linear, pooling

SAGA = 'Wu, Ling, Chen, Giannakis 2020, arXiv:1912.12716'
MARINA = 'Gorbunov, Horvath, Richtarik, Gidel 2023, arXiv:2206.00529'
NOBODY = 'none'
ATTACKS: dict[str, Callable] = {
  NOBODY: lambda: None,
  'alie': lambda: byzjax.alie(z=1.5),
  'foe': lambda: byzjax.inner_product_manipulation(epsilon=0.5),
  'sign flip': lambda: byzjax.sign_flip(scale=10.0),
}
RULES: dict[str, Callable] = {
  'mean': lambda f: byzjax.mean(),
  'geometric median': lambda f: byzjax.geometric_median(),
  'mixing, median': lambda f: byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f), byzjax.coordinate_median()
  ),
}
ROBUST = [*RULES][1:]
PLAIN = ('momentum', 'momentum, cosine')
REDUCED = ('saga', 'marina')
METHODS = (*PLAIN, 'storm', *REDUCED)
REFERENCE = 'whole gradients'
QUICK = {'dataset': 'digits', 'num_examples': 32, 'passes': 4}
QUICK_CELLS = (REFERENCE, 'alie, geometric median, saga')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  dataset: str = option('fashion_mnist', 'Or digits, to try the study.')
  num_workers: int = option(20, 'n.', low=3)
  num_byzantine: int = option(4, 'f.', low=1)
  num_examples: int = option(160, 'That all workers have.', low=8)
  passes: int = option(
    100, 'Gradients of examples by worker, over --num_examples.', low=1
  )
  batch_size: int = option(8, 'Of all methods but SAGA, which takes 1.', low=1)
  weight_decay: float = option(0.01, 'Of the l2 term.', low=0)
  momentum: float = option(0.9, 'Of workers, in momentum and STORM.')
  learning_rates: tuple[float, ...] = option(
    (0.03, 0.1, 0.3, 1.0, 3.0), 'To choose from.'
  )
  reference_rounds: int = option(
    3000, 'Of whole gradients, which find the minimum.', low=1
  )
  pooling: int = option(2, 'Pixels of an image, k x k, that are one.', low=1)
  num_evals: int = option(20, 'Evaluations of a run.', low=4)
  validation: bool = False  # The loss that is minimised is what is compared.

  def rounds(self, method: str) -> int:
    """As many as the budget of gradients is enough for."""
    b = self.batch_size
    probability = b / self.num_examples
    each = {
      'saga': 1.0,
      'storm': 2.0 * b,
      'marina': 2 * b * (1 - probability) + probability * self.num_examples,
    }.get(method, float(b))
    return max(round(self.passes * self.num_examples / each), self.num_evals)


def define(settings: Settings) -> list[Cell]:
  cells = [cell(settings, NOBODY, 'mean', REFERENCE)]
  for attack in ATTACKS:
    for rule in RULES if attack == NOBODY else ROBUST:
      cells += [cell(settings, attack, rule, method) for method in METHODS]
  return cells


def cell(settings: Settings, attack: str, rule: str, method: str) -> Cell:
  is_reference = method == REFERENCE
  rounds = (
    settings.reference_rounds if is_reference else settings.rounds(method)
  )

  def objective(task, params, batch):
    squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
    return task.loss_fn(params, batch) + settings.weight_decay / 2 * squares

  def examples(task):
    few = settings.num_examples
    pixels = task.images[:few].astype(jnp.float32) / task.scale
    return pixels, task.labels[:few]

  def make_round(task, key, learning_rate):
    f = 0 if attack == NOBODY else settings.num_byzantine
    whole = functools.partial(objective, task)
    training = byzjax.robust_round(
      **arguments(settings, method, whole, learning_rate, key, rounds),
      num_workers=settings.num_workers,
      attack=ATTACKS[attack](),
      byzantine=f,
      # A rule that mixes is told f, whether anybody attacks or not.
      aggregator=RULES[rule](settings.num_byzantine),
    )

    def step(state, partition, key):
      del partition
      batch = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (settings.num_workers, *x.shape)),
        examples(task),
      )
      return training.step(state, batch, key)

    return training._replace(step=step)

  def loss(task, params, key):
    del key
    return {'objective': objective(task, params, examples(task))}

  return Cell(
    labels={'attack': attack, 'rule': rule, 'method': method},
    make_round=make_round,
    grid={'learning_rate': (0.3,) if is_reference else settings.learning_rates},
    num_workers=settings.num_workers,
    rounds=rounds,
    batch_size=settings.batch_size,
    is_local=True,
    num_evals=settings.num_evals,
    make_images=functools.partial(centred, settings.pooling),
    make_model=linear.network,
    probe=loss,
  )


def arguments(
  settings: Settings, method: str, loss_fn, rate, key, rounds: int
) -> dict:
  """What a round is given: its loss, its estimator, momentum, optimizer."""
  b, few = settings.batch_size, settings.num_examples

  def of_some(params, batch, key):
    chosen = jax.random.randint(key, (b,), 0, few)
    return loss_fn(params, jax.tree.map(lambda x: x[chosen], batch))

  sgd = optax.sgd(rate)
  if method == 'momentum, cosine':
    sgd = optax.sgd(optax.cosine_decay_schedule(rate, rounds))
  drawn = {'loss_fn': of_some, 'needs_key': True, 'optimizer': sgd}
  if method in PLAIN:
    return drawn | {'worker': byzjax.worker_momentum(settings.momentum)}
  of_all = {'loss_fn': loss_fn, 'optimizer': sgd}
  if method == 'storm':
    storm = byzjax.storm(of_some, decay=settings.momentum, needs_key=True)
    return of_all | {'value_and_grad': storm}
  if method == 'saga':
    saga = byzjax.saga(loss_fn, num_examples=few, fill=False)
    return of_all | {'value_and_grad': saga}
  if method == 'marina':
    marina = byzjax.byz_vr_marina(
      loss_fn, optimizer=sgd, batch_size=b, probability=b / few, key=key
    )
    return of_all | marina._asdict()
  return of_all | {'optimizer': optax.sgd(rate, 0.95, nesterov=True)}


def centred(k: int, images: np.ndarray, *_) -> np.ndarray:
  """Pooled pixels less their mean over all images."""
  small = np.float32(pooling.pooled(images, k))
  return small - small.mean(axis=0)


def keep(rows: Rows, settings: Settings) -> Rows:
  """The runs with the best rates, at every evaluation."""
  del settings
  cells = 'attack', 'rule', 'method'
  best = tables.tuned_each(
    rows, cells, 'learning_rate', by='objective', least=True
  )
  return tables.keep(
    best, tail=1, metrics=('objective',), curves=lambda row: row['seed'] == 0
  )


def gaps(rows: Rows) -> tables.Cells:
  """log10 of the distance to the minimum at the end, by seed."""
  least = minimum(rows)
  return tables.Cells(
    (labels, log_gap(tables.final(runs, 'objective') - least))
    for labels, runs in tables.split_by(rows, 'attack', 'rule', 'method')
    if labels[-1] != REFERENCE
  )


def minimum(rows: Rows) -> float:
  """The least loss that any method found; whole gradients are there for it."""
  return float(tables.column(rows, 'objective').min())


def log_gap(gap: np.ndarray) -> np.ndarray:
  """Not below the rounding of a loss in float32."""
  return np.log10(np.maximum(gap, 1e-7))


def summarise(rows: Rows, settings: Settings) -> Summary:
  of = gaps(rows)
  names = {
    method: f'{method} ({settings.rounds(method)})' for method in METHODS
  }
  table = tables.Cells(
    ((f'{attack}, {rule}', names[method]), values)
    for (attack, rule, method), values in of.items()
  )
  rates = tables.Cells(
    ((f'{attack}, {rule}', method), tables.final(runs, 'learning_rate'))
    for (attack, rule, method), runs in tables.split_by(
      rows, 'attack', 'rule', 'method'
    )
    if method != REFERENCE
  )
  return Summary(
    claims=claims(of, settings),
    tables=[
      Table(
        'log10 of the distance to the minimum (rounds of the method)',
        tables.pivot(table, 2),
      ),
      Table('Learning rates that were chosen', tables.pivot(rates, 2)),
    ],
    figures={'variance_reduction.png': lambda: picture(rows, settings)},
  )


def claims(of: tables.Cells, settings: Settings) -> list[Claim]:
  attacked = [attack for attack in ATTACKS if attack != NOBODY]

  def ahead(method: str, others, attacks, rules) -> float:
    """Powers of ten nearer to the minimum than the best other, the least."""
    return min(
      float(
        np.median(
          min((of[a, r, other] for other in others), key=np.mean)
          - of[a, r, method]
        )
      )
      for a in attacks
      for r in rules
    )

  on = f'{settings.dataset}, {settings.num_examples} images, convex'
  alone = 'momentum', 'storm'
  slow = (
    'under foe, mixing and median: it converges steadily there, but its best'
    ' rate is the smallest of all cells, and the budget ends'
  )
  return [
    Claim(
      '',
      'SAGA behind a geometric median gets nearer than SGD does',
      SAGA,
      on,
      [
        Check(
          'powers of ten nearer than momentum and STORM under attack',
          ahead('saga', alone, attacked, ['geometric median']),
          at_least=1,
        ),
        Check(
          'and than momentum with a cosine',
          ahead('saga', PLAIN[1:], attacked, ['geometric median']),
          at_least=0.5,
        ),
      ],
    ),
    Claim(
      '',
      'Byz-VR-MARINA converges under attack where data are equal',
      MARINA,
      on,
      [
        Check(
          'powers of ten nearer than momentum and STORM under attack',
          ahead('marina', alone, attacked, ROBUST),
          at_least=1,
          why=slow,
        ),
        Check(
          'and than momentum with a cosine',
          ahead('marina', PLAIN[1:], attacked, ROBUST),
          at_least=0.5,
          why=slow,
        ),
        Check(
          'log10 of the distance at the end, the worst attack and rule',
          max(
            float(np.median(of[a, r, 'marina']))
            for a in attacked
            for r in ROBUST
          ),
          at_most=-3,
        ),
      ],
    ),
    Claim(
      '',
      'without attackers variance reduction gains as much behind the mean',
      'not from a paper',
      on,
      [
        Check(
          f'powers of ten that {method} is nearer than momentum, mean',
          ahead(method, PLAIN[:1], [NOBODY], ['mean']),
          at_least=1,
        )
        for method in REDUCED
      ],
    ),
  ]


def picture(rows: Rows, settings: Settings):
  """The distance over passes, seed 0, a panel for every attack."""
  least = minimum(rows)
  figure, axes = pictures.panels(
    len(ROBUST), len(ATTACKS), figsize=(13, 6), sharex=True, sharey=True
  )
  for i, rule in enumerate(ROBUST):
    for j, attack in enumerate(ATTACKS):
      panel = axes[i, j]
      here = tables.select(rows, attack=attack, rule=rule, seed=0)
      for method in METHODS:
        run = tables.select(here, method=method)
        if not run:
          continue
        share = tables.column(run, 'round') / settings.rounds(method)
        gap = 10 ** log_gap(tables.column(run, 'objective') - least)
        panel.semilogy(settings.passes * share, gap, label=method)
      panel.set_title(f'{attack}; {rule}', fontsize=10)
  for panel in axes[-1]:
    panel.set_xlabel('passes over the data')
  for panel in axes[:, 0]:
    panel.set_ylabel('distance to the minimum')
  axes[0, -1].legend(fontsize=8)
  return figure
