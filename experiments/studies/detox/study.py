r"""A vote of redundant groups in front of robust rules (Rajput et al.).

  python -m experiments.studies detox --check                     # digits
  python -m experiments.studies detox --dataset=mnist --data_dir=FOLDER

Training with a rule X on all messages, and with D-X, the same rule on the votes
of groups whose workers compute the same gradient. Both use the same examples
per step, so that the batches of a group are as large as those of its workers
together. One more cell counts how many groups attackers capture.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, theory
from experiments.harness import specs
from experiments.harness.cells import Cell, OwnCell, Rows
from experiments.harness.settings import ImageSettings, option
from experiments.reporting import pictures, tables
from experiments.reporting.summary import Check, Claim, Summary, Table

RULES = ('mean', 'median_of_means', 'multi_krum', 'bulyan')
ATTACKS = {
  'none': lambda z: None,
  'alie': lambda z: byzjax.alie(z=z),
  '-100 mean': lambda z: byzjax.sign_flip(scale=100.0),
  'constant -100': lambda z: byzjax.constant(value=-100.0),
}
LOUD = ('-100 mean', 'constant -100')
KEYS = ('attack', 'placement', 'rule', 'groups')
DRAWS = 20_000
PAPER = 'Rajput, Wang, Charles, Papailiopoulos 2019, arXiv:1907.12205'
QUICK = {'num_workers': 9, 'num_byzantine': 1, 'rounds': 4}
QUICK_CELLS = ('none, random, mean, D',)


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


def define(settings: Settings) -> list[Cell | OwnCell]:
  training = [
    cell(settings, attack, placement, name, groups)
    for attack in ATTACKS
    for placement in ('random', 'worst')
    if attack != 'none' or placement == 'random'
    for name in RULES
    for groups in (False, True)
  ]
  return [*training, counting(settings)]


def cell(
  settings: Settings, attack: str, placement: str, name: str, groups: bool
) -> Cell:
  n, f = settings.num_workers, settings.num_byzantine
  r = settings.group_size

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
    labels=dict(zip(KEYS, (attack, placement, name, 'D' if groups else '-'))),
    make_round=make_round,
    grid={'learning_rate': settings.learning_rates},
    num_workers=n // r if groups else n,
    rounds=settings.rounds,
    batch_size=settings.batch_size * (r if groups else 1),
    make_batch=make_batch,
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
  del settings
  metrics = ('accuracy', 'validation_accuracy', 'captured', 'error')
  return tables.keep(rows, metrics=metrics)


def summarise(rows: Rows, settings: Settings) -> Summary:
  table = tables.Cells()
  for (attack, placement, rule, groups), runs in tables.split_by(
    [row for row in rows if row['attack'] in ATTACKS], *KEYS
  ):
    line = f'{attack}, {placement}' if attack != 'none' else 'none'
    name = f'D-{rule}' if groups == 'D' else rule
    table[name, line] = tables.percent(tables.tuned(runs, 'learning_rate'))
  count = tables.select(rows, attack='count')
  captured, error = (
    tables.final(count, name).mean() for name in ('captured', 'error')
  )
  sizes = settings.num_workers, settings.num_byzantine, settings.group_size
  expected = theory.expected_corrupted_groups(*sizes)

  def ahead(one: str, other: str, line: str) -> float:
    return table[one, line].mean() - table[other, line].mean()

  def more(name: str) -> float:
    """What groups gain under ALIE and not without it."""
    pair = f'D-{name}', name
    return ahead(*pair, 'alie, random') - ahead(*pair, 'none')

  def claim(says: str, *checks: Check, **published) -> Claim:
    about = 'DETOX', says, PAPER, settings.dataset
    return Claim(*about, checks, **published)

  bulyan = 'Bulyan learns badly from so few examples without attackers too'
  return Summary(
    claims=[
      claim(
        'under ALIE a rule gains much by a vote of groups in front of it',
        *(
          Check(
            f'points that D- adds to {name}, more than without attack',
            more(name),
            at_least=20,
            why=f'{name} learns badly without attack too, and groups help it'
            ' there as much',
          )
          for name in RULES[1:]
        ),
      ),
      claim(
        'with the vote, rules withstand reversed and constant messages',
        *(
          Check(
            f'{attack}: points of D-median_of_means over the mean',
            ahead('D-median_of_means', 'mean', f'{attack}, random'),
            at_least=20,
            why='such a constant hardly harms the mean here',
          )
          for attack in LOUD
        ),
        *(
          Check(
            f'{attack}: points of D-bulyan below D-mean without attack',
            (
              table['D-mean', 'none'] - table['D-bulyan', f'{attack}, random']
            ).mean(),
            at_most=3,
            why=bulyan,
          )
          for attack in LOUD
        ),
      ),
      claim(
        'attackers that are placed at random capture few groups',
        Check(
          'standard errors between the count and the formula',
          abs(captured - expected) / error,
          at_most=4,
        ),
        published=f'{expected:.4f} of {sizes[0] // sizes[2]} groups',
        evidence='C',
      ),
      claim('votes are several times faster to aggregate'),
    ],
    tables=[
      Table(
        'Test accuracy (%) by rule, attack and placement of attackers',
        tables.pivot(table),
      ),
      Table(
        f'Captured groups in {DRAWS} random placements',
        f'{captured:.4f} ± {error:.4f}, formula {expected:.4f}',
      ),
    ],
    figures={'training.png': lambda: pictures.heatmap(table, 'DETOX')},
  )
