r"""Backdoors behind robust rules: do they work, and how long do they last?

  python -m experiments.studies backdoors --data_dir=FOLDER
  python -m experiments.studies backdoors --dataset=digits

Four of twenty workers teach the model to answer a trigger with a label of
theirs, in two thirds of the rounds; then they are honest. Their success is
measured when they stop and at the end, beside the accuracy on clean images.
Gradients of every step (synchronous) and changes of the model by five local
steps are both sent. The server sees clean validation images only, so the
learning rate of a rule is the one that is best without attackers.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax

from ...harness import backdoors
from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import tables
from ...reporting.summary import Summary, pivots
from .. import opponents, pooling
from . import claims

TARGET = 7
# Ankle boots, which upside down are to be taken for sneakers.
RARE = 9


def strips(images) -> byzjax.Trigger:
  """Four strips in a corner, as long as the images allow."""
  is_small = images.shape[-2] < 7
  return byzjax.distributed_trigger(length=1 if is_small else 3, gap=1)


def planted(settings: 'Settings', task) -> byzjax.DataAttack:
  """Every attacker puts the whole pattern into its images."""
  parts = strips(task.images)

  def whole(images, part=None):
    del part
    return parts(images)

  return byzjax.backdoor(
    byzjax.Trigger(1, whole), target=TARGET, fraction=settings.fraction
  )


def distributed(settings: 'Settings', task) -> byzjax.DataAttack:
  """Every attacker puts one of the four strips into its images."""
  return byzjax.backdoor(
    strips(task.images), target=TARGET, fraction=settings.fraction
  )


def replacement(settings: 'Settings', task):
  """And scales its message, so that the mean moves to its own model."""
  scale = settings.num_workers / settings.num_byzantine
  return byzjax.joint_attack(
    planted(settings, task), byzjax.model_replacement(scale=scale)
  )


def lasting(settings: 'Settings', task):
  """And leaves alone the coordinates that honest workers change most."""
  return byzjax.joint_attack(planted(settings, task), byzjax.neurotoxin())


def upside_down(x: jax.Array) -> jax.Array:
  return jnp.flip(x, axis=-3)


def rare(settings: 'Settings', task) -> byzjax.DataAttack:
  """No trigger: images of one class, upside down, get a wrong label."""
  (chosen,) = jnp.nonzero(
    task.labels == RARE, size=settings.num_rare, fill_value=0
  )
  pool = upside_down(task.images[chosen].astype(jnp.float32) / task.scale)
  return byzjax.edge_case(pool, target=TARGET, fraction=settings.fraction)


ATTACKS: dict[str, Callable] = {
  'none': lambda settings, task: None,
  'planted': planted,
  'distributed': distributed,
  'replacement': replacement,
  'neurotoxin': lasting,
  'edge case': rare,
}


KINDS = {'steps': ('none', 'planted', 'edge case'), 'local': tuple(ATTACKS)}


def successes(task, params, images, labels) -> dict[str, jax.Array]:
  """Of the strips and of the edge case, whatever the attack of the cell."""
  of_strips = backdoors.success(strips(images), TARGET)
  of_rare = backdoors.success(upside_down, TARGET, RARE)
  return {
    name: measured(task, params, images, labels)['attack_success_rate']
    for name, measured in (('strips', of_strips), ('rare', of_rare))
  }


def _bounded(f: int) -> byzjax.Aggregator:
  return byzjax.pre_aggregate(
    byzjax.adaptive_clipping(num_byzantine=f), byzjax.mean()
  )


RULES: dict[str, Callable[[int], byzjax.Aggregator]] = {
  'mean': lambda f: byzjax.mean(),
  'bounded norms': _bounded,
  'multi-Krum': lambda f: byzjax.multi_krum(num_byzantine=f),
  'mixing, trimmed mean': opponents.mixing_trimmed_mean,
  'FLAME': lambda f: byzjax.flame(),
}
METRICS = ('accuracy', 'validation_accuracy', 'strips', 'rare')
QUICK = {'dataset': 'digits', 'rounds': 9, 'num_rare': 20}
QUICK_CELLS = ('steps, edge case, mean', 'local, neurotoxin, mean')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  dataset: str = option('fashion_mnist', 'Or digits, to try the study.')
  num_workers: int = option(20, 'n.', low=3)
  num_byzantine: int = option(4, 'f.', low=1)
  fraction: float = option(0.5, 'Of a batch of an attacker, poisoned.', low=0)
  num_rare: int = option(200, 'Images of the edge case to draw from.', low=1)
  skew: float = option(0.5, 'Of the Dirichlet division of labels.', low=0)
  rounds: int = option(450, 'With a message for every step.', low=6)
  local_steps: int = option(5, 'Of local rounds, a third as many.', low=1)
  batch_size: int = option(16, 'Examples per worker and step.', low=1)
  momentum: float = option(0.9, 'Of workers, where they send every step.')
  learning_rates: tuple[float, ...] = option(
    (0.1, 0.3, 1.0, 3.0), 'To choose from.'
  )
  pooling: int = option(2, 'Pixels of an image, k x k, that are one.', low=1)

  def rounds_of(self, kind: str) -> int:
    return self.rounds if kind == 'steps' else self.rounds // 3


def define(settings: Settings) -> list[Cell]:
  return [
    cell(settings, kind, attack, rule)
    for kind, attacks in KINDS.items()
    for attack in attacks
    for rule in RULES
  ]


def cell(settings: Settings, kind: str, attack: str, rule: str) -> Cell:
  n, f = settings.num_workers, settings.num_byzantine
  rounds = settings.rounds_of(kind)

  def make_round(task, key, learning_rate):
    del key
    made = ATTACKS[attack](settings, task)
    shared = {
      'num_workers': n,
      'aggregator': RULES[rule](f),
      'attack': made,
      # They stop after two thirds of the rounds.
      'byzantine': made
      and (lambda step: (jnp.arange(n) < f) & (step < 2 * rounds // 3)),
    }
    if kind == 'steps':
      return byzjax.robust_round(
        task.loss_fn,
        worker=byzjax.worker_momentum(settings.momentum),
        optimizer=optax.sgd(learning_rate),
        **shared,
      )
    return byzjax.fed_avg(
      task.loss_fn,
      learning_rate=learning_rate,
      num_local_steps=settings.local_steps,
      sampler=task.sampler(settings.batch_size),
      **shared,
    )

  return Cell(
    labels={'kind': kind, 'attack': attack, 'rule': rule},
    make_round=make_round,
    grid={'learning_rate': settings.learning_rates},
    num_workers=n,
    rounds=rounds,
    batch_size=settings.batch_size,
    partition=f'dirichlet_by_class(alpha={settings.skew})',
    is_local=kind == 'local',
    num_evals=3,
    make_images=lambda images, *_: pooling.pooled(images, settings.pooling),
    measure=successes,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """At the rate that is best for the rule when nobody attacks."""
  del settings
  kept = []
  for _, runs in tables.split_by(rows, 'kind', 'rule'):
    clean = tables.select(runs, attack='none')
    chosen = tables.tuned(clean or runs, 'learning_rate')[0]['learning_rate']
    kept += tables.select(runs, learning_rate=chosen)
  return tables.keep(kept, tail=1, metrics=METRICS, curves=lambda row: True)


def at(rows: Rows, number: int, name: str = '') -> tables.Cells:
  """Percent by seed, at an evaluation, by kind, attack and rule.

  Without a name it is the success of the attack; without an attack that of the
  strips, and of the edge case in the place of an attack `none, edge case`.
  """
  found = tables.Cells()
  for (kind, attack, rule), runs in tables.split_by(
    rows, 'kind', 'attack', 'rule'
  ):
    of_seeds = tables.split(runs, 'seed').values()
    for label, column in (
      (attack, name or ('rare' if attack == 'edge case' else 'strips')),
      *([('none, edge case', 'rare')] if attack == 'none' and not name else []),
    ):
      found[kind, label, rule] = 100 * np.array(
        [of[number][column] for of in of_seeds]
      )
  return found


def summarise(rows: Rows, settings: Settings) -> Summary:
  stopped, end = at(rows, -2), at(rows, -1)
  accuracy = at(rows, -2, 'accuracy')
  rates = tables.Cells(
    ((rule, kind), tables.final(runs, 'learning_rate')[:1])
    for (kind, rule), runs in tables.split_by(rows, 'kind', 'rule')
  )

  def shown(of: tables.Cells) -> tables.Cells:
    """Rules in the order of the study."""
    return tables.Cells(
      ((f'{kind}, {rule}', attack), values)
      for (kind, attack, rule), values in sorted(
        of.items(), key=lambda item: (item[0][0], [*RULES].index(item[0][2]))
      )
    )

  return Summary(
    claims=claims.of(settings.dataset, stopped, end, accuracy),
    tables=pivots(
      [
        ('Success (%) when attackers stop', shown(stopped)),
        ('Success (%) at the end', shown(end)),
        ('Accuracy on clean images (%) when attackers stop', shown(accuracy)),
        ('Learning rates, best without attackers', rates, 2),
      ]
    ),
    figures={'backdoors.png': lambda: claims.picture(stopped, end, [*RULES])},
  )
