r"""A vote of redundant groups in front of robust rules (Rajput et al.).

  python -m experiments.studies detox --check                     # digits
  python -m experiments.studies detox --variant=fashion_mnist --data_dir=FOLDER
  python -m experiments.studies detox --variant=mnist --data_dir=FOLDER

Training with a rule X on all messages, and with D-X, the same rule on the votes
of groups whose workers compute the same gradient. Both use the same examples
per step, so that the batches of a group are as large as those of its workers
together. One more cell counts how many groups attackers capture.

The variant fashion_mnist gives every rule a batch size at which it learns when
nobody attacks, and measures what aggregation takes. The variant mnist is the
script that the authors ship, as far as it says what it does.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import data, models, theory

from ...harness import specs
from ...harness.cells import Cell, OwnCell, Rows
from ...harness.settings import ImageSettings, check_known, option
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, Table, claims_about
from . import checks, timing

RULES = ('mean', 'median_of_means', 'multi_krum', 'bulyan')
ATTACKS = {
  'none': lambda z: None,
  'alie': lambda z: byzjax.alie(z=z),
  '-100 mean': lambda z: byzjax.sign_flip(scale=100.0),
  'constant -100': lambda z: byzjax.constant(value=-100.0),
}
PLACEMENTS = ('random', 'worst')
KEYS = timing.KEYS
METRICS = (
  *('accuracy', 'validation_accuracy', 'captured', 'error'),
  *('seconds', 'seconds_groups', 'faster'),
)
DRAWS = 20_000
PAPER = 'Rajput, Wang, Charles, Papailiopoulos 2019, arXiv:1907.12205'
QUICK = {'num_workers': 9, 'num_byzantine': 1, 'rounds': 4}
QUICK_CELLS = ('none, random, mean, D',)
VARIANTS = {
  'fashion_mnist': {
    'dataset': 'fashion_mnist',
    # Without attack Bulyan needs more examples; the mean is its control.
    'rules': (*RULES[:3], 'mean:16', 'bulyan:16'),
    'placements': ('random',),
    'batch_size': 4,
    'rounds': 150,
    'learning_rates': (0.03, 0.06, 0.12),
    # Of the network, and of ResNet-18 for CIFAR-10.
    'timed_sizes': (25_450, 11_173_962),
  },
  'mnist': {
    'dataset': 'mnist',
    'num_workers': 9,
    'num_byzantine': 2,
    'attacks': ('none', 'constant -100'),
    'placements': ('random',),
    'rules': RULES[:2],
    'batch_size': 4,
    'rounds': 60,
    'learning_rates': (0.003, 0.01, 0.03),
    'hidden': (800, 500),
    'num_evals': 2,
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(45, 'n.', low=5)
  num_byzantine: int = option(5, 'f.', low=0)
  group_size: int = option(3, 'r, odd; divides n.', low=1)
  rounds: int = option(300, 'Rounds of training.', low=1)
  batch_size: int = option(2, 'Examples per worker without groups.', low=1)
  learning_rates: tuple[float, ...] = option((0.05, 0.2), 'To choose from.')
  momentum: float = option(0.9, 'Of the server.')
  z: float = option(1.5, 'Strength of ALIE.', low=0)
  attacks: tuple[str, ...] = option(tuple(ATTACKS), 'Of those there are.')
  placements: tuple[str, ...] = option(PLACEMENTS, 'random, worst.')
  rules: tuple[str, ...] = option(
    RULES, 'Of those there are; mean:16 has its own batch size, 16.'
  )
  hidden: tuple[int, ...] = option(
    (), 'Hidden layers of an MLP in place of --model.'
  )
  num_evals: int = option(20, 'Evaluations.', low=1)
  timed_sizes: tuple[int, ...] = option(
    (), 'Dimensions at which aggregation is timed; that of the network first.'
  )


def plain(name: str, n: int, f: int) -> byzjax.Aggregator:
  """A rule on n messages of which f are not to be trusted."""
  if name == 'median_of_means':
    # As many buckets as it takes for most of them to be clean.
    return byzjax.hierarchical(
      byzjax.coordinate_median(),
      bucket_rule=byzjax.mean(),
      num_buckets=min(2 * f + 1, n),
    )
  return specs.aggregator(name, '', f)


def redundant(name: str, n: int, f: int, r: int) -> byzjax.Aggregator:
  """D-X: X on the votes, of which the most that f can capture are bad."""
  captured = theory.max_corrupted_groups(n, f, r)
  # Two buckets, of which the smaller must be large enough for Krum.
  if name == 'multi_krum' and n // r // 2 >= 2 * captured + 3:
    return byzjax.detox(
      group_size=r,
      rule=byzjax.mean(),
      bucket_rule=byzjax.multi_krum(num_byzantine=captured),
      num_buckets=2,
    )
  return byzjax.detox(group_size=r, rule=plain(name, n // r, captured))


def batch_size(settings: Settings, rule: str) -> int:
  """Examples per worker without groups, of `rule` or `rule:size`."""
  return int(rule.partition(':')[2] or settings.batch_size)


def define(settings: Settings) -> list[Cell | OwnCell]:
  check_known('attacks', settings.attacks, ATTACKS)
  check_known('placements', settings.placements, PLACEMENTS)
  check_known('rules', [r.partition(':')[0] for r in settings.rules], RULES)
  training = [
    cell(settings, attack, placement, rule, groups)
    for attack in settings.attacks
    for placement in settings.placements
    if attack != 'none' or placement == 'random'
    for rule in settings.rules
    for groups in (False, True)
  ]
  return [*training, counting(settings), *timed(settings)]


def timed(settings: Settings) -> list[OwnCell]:
  """Seconds of aggregation by every rule, and of a gradient."""
  n, f = settings.num_workers, settings.num_byzantine
  r = settings.group_size

  def labels(what: str, name: str) -> dict[str, str]:
    return dict(zip(KEYS, ('time', what, name, 'both')))

  rules = [
    timing.aggregation(
      labels(f'd = {size}', name),
      plain(name, n, f),
      redundant(name, n, f, r),
      byzjax.random_byzantine(n, f, jax.random.key(0))(jnp.array(0)),
      r,
      size,
    )
    for size in settings.timed_sizes
    for name in dict.fromkeys(x.partition(':')[0] for x in settings.rules)
  ]
  gradients = [
    timing.gradient(
      labels('gradient', f'{size} examples'),
      settings.dataset,
      settings.data_dir,
      functools.partial(network, settings),
      size,
      r,
    )
    for size in sorted({batch_size(settings, x) for x in settings.rules})
    if settings.timed_sizes
  ]
  return [*rules, *gradients]


def network(settings: Settings, shape, num_classes: int, seed: int):
  """The network that is trained, for images of one shape."""
  if not settings.hidden:
    return models.make(settings.model, shape, num_classes, seed=seed)
  sizes = (math.prod(shape), *settings.hidden, num_classes)
  return models.MLP(sizes, rngs=nnx.Rngs(seed))


def cell(
  settings: Settings, attack: str, placement: str, rule: str, groups: bool
) -> Cell:
  n, f = settings.num_workers, settings.num_byzantine
  r, name = settings.group_size, rule.partition(':')[0]

  def make_round(task, key, learning_rate):
    worst = placement == 'worst'
    return byzjax.robust_round(
      task.loss_fn,
      num_workers=n,
      attack=ATTACKS[attack](settings.z),
      byzantine=byzjax.worst_case_byzantine(n, f, r)
      if worst
      else byzjax.random_byzantine(n, f, key),
      aggregator=redundant(name, n, f, r) if groups else plain(name, n, f),
      optimizer=optax.sgd(learning_rate, settings.momentum),
    )

  def make_batch(batch):
    return data.redundant_groups(batch, r) if groups else batch

  return Cell(
    labels=dict(zip(KEYS, (attack, placement, rule, 'D' if groups else '-'))),
    make_round=make_round,
    grid={'learning_rate': settings.learning_rates},
    num_workers=n // r if groups else n,
    rounds=settings.rounds,
    batch_size=batch_size(settings, rule) * (r if groups else 1),
    num_evals=settings.num_evals,
    make_batch=make_batch,
    make_model=functools.partial(network, settings),
  )


def counting(settings: Settings) -> OwnCell:
  """Captured groups over random placements, through the vote itself."""
  labels = dict(zip(KEYS, ('count', 'random', 'group_vote', 'D')))

  def make_rows(seeds):
    del seeds
    n, f = settings.num_workers, settings.num_byzantine
    vote = byzjax.group_vote(group_size=settings.group_size)

    def captured(key):
      bad = byzjax.random_byzantine(n, f, key)(jnp.array(0))
      sent = jnp.where(bad, 1.0, 0.0)[:, None]
      votes, _ = vote.apply(sent, vote.init(sent[0]))
      return jnp.sum(votes == 1.0)

    keys = jax.random.split(jax.random.key(0), DRAWS)
    counts = np.asarray(jax.jit(jax.vmap(captured))(keys))
    run = {**labels, 'learning_rate': 0.0, 'seed': 0, 'round': DRAWS}
    error = float(counts.std() / np.sqrt(DRAWS))
    return [{**run, 'captured': float(counts.mean()), 'error': error}]

  return OwnCell(labels=labels, make_rows=make_rows)


def keep(rows: Rows, settings: Settings) -> Rows:
  keep_some = functools.partial(
    tables.keep,
    rows,
    metrics=METRICS,
    tail=min(3, (settings.num_evals + 1) // 2),
  )
  kept = keep_some()
  if not settings.timed_sizes:
    return kept
  # Curves over time, of the rates that were chosen.
  chosen = {
    tables.identity(row)
    for row in timing.tuned(kept)
    if row['attack'] in timing.DRAWN
  }
  return keep_some(curves=lambda row: tables.identity(row) in chosen)


def accuracies(rows: Rows) -> tables.Cells:
  """By rule, and attack with placement, at the best rates."""
  table = tables.Cells()
  for (attack, placement, rule, groups), runs in tables.split_by(
    [row for row in rows if row['attack'] in ATTACKS], *KEYS
  ):
    line = f'{attack}, {placement}' if attack != 'none' else 'none'
    name = f'D-{rule}' if groups == 'D' else rule
    table[name, line] = tables.percent(tables.tuned(runs, 'learning_rate'))
  return table


def counted(rows: Rows, settings: Settings) -> tuple[float, float, float]:
  """Captured groups, their standard error, and what the formula says."""
  count = tables.select(rows, attack='count')
  captured, error = (
    tables.final(count, name).mean() for name in ('captured', 'error')
  )
  sizes = settings.num_workers, settings.num_byzantine, settings.group_size
  return captured, error, theory.expected_corrupted_groups(*sizes)


def summarise(rows: Rows, settings: Settings) -> Summary:
  table = accuracies(rows)
  captured, error, expected = counted(rows, settings)
  costs: timing.Costs = {}
  if settings.timed_sizes:
    batch_sizes = {rule: batch_size(settings, rule) for rule in settings.rules}
    costs = timing.of_round(rows, settings.timed_sizes[0], batch_sizes)
  name = 'training' if settings.dataset == 'digits' else settings.dataset
  figures = {f'{name}.png': lambda: pictures.heatmap(table, 'DETOX')}
  found = [
    Table(
      'Test accuracy (%) by rule, attack and placement of attackers',
      tables.pivot(table),
    ),
    Table(
      f'Captured groups in {DRAWS} random placements',
      f'{captured:.4f} ± {error:.4f}, formula {expected:.4f}',
    ),
  ]
  if settings.timed_sizes:
    figures['time.png'] = lambda: timing.picture(rows, costs)
    found += [
      timing.aggregation_table(rows, settings.timed_sizes),
      timing.round_table(rows, costs),
    ]
  return Summary(claims_of(rows, settings, table, costs), found, figures)


def claims_of(
  rows: Rows, settings: Settings, table: tables.Cells, costs: timing.Costs
) -> list[Claim]:
  claim = claims_about('DETOX', PAPER, settings.dataset)
  captured, error, expected = counted(rows, settings)
  claims = [
    claim(
      'under ALIE a rule gains much by a vote of groups in front of it',
      *checks.gains(table, settings),
    ),
    claim(
      'with the vote, rules withstand reversed and constant messages',
      *checks.withstands(table, settings),
    ),
    claim(
      'attackers that are placed at random capture few groups',
      Check(
        'standard errors between the count and the formula',
        abs(captured - expected) / error,
        at_most=4,
      ),
      published=f'{expected:.4f} of'
      f' {settings.num_workers // settings.group_size} groups',
      evidence='C',
    ),
    claim(
      'votes are several times faster to aggregate',
      *checks.faster(rows, settings),
    ),
    claim(
      'so training gets to an accuracy several times sooner',
      *checks.sooner(rows, costs),
    ),
  ]
  # What is tested nowhere else is on the page of the digits.
  told = claims[:4] if settings.dataset == 'digits' else []
  return [claim for claim in claims if claim.checks or claim in told]
