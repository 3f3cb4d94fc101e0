"""What the rows of the study say."""

from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, Table

SHARDS = ('even', 'skewed')
ORDERS = ('curriculum', 'random', 'vanilla', 'anti')
CLIENT_ORDERS = ('curriculum', 'uniform', 'random', 'anti')
EXTREMES = ('curriculum', 'anti')
SCORES = ('global', 'local', 'expert')
PACINGS = ('linear', 'exponential')
FULL_AT, SHARES = (0.1, 0.5, 0.8), (0.05, 0.2, 0.8)
CLAIMS = (
  'uniform',
  'curriculum',
  'curriculum, claims',
  'curriculum, claims, pool 2f + 1',
  'curriculum, claims, pool 4f',
)
PAPER = (
  'Vahidian, Kadaveru, Baek, Wang, Kungurtsev, Chen, Shah, Lin 2022,'
  ' arXiv:2212.12712'
)
ATTACKS = {'none': 0.0, 'label flip': 1.0, 'sign flip': 2.0}


def accuracy(rows, row: str, column: str) -> tables.Cells:
  """Per seed, in percent, by names that are filled in from labels of rows."""
  groups: dict = {}
  for each in rows:
    at = row.format(**each), column.format(**each)
    groups.setdefault(at, []).append(each)
  return tables.Cells((at, tables.percent(runs)) for at, runs in groups.items())


def summarise(rows, settings) -> Summary:
  names = {number: name for name, number in ATTACKS.items()}
  rows = [{**row, 'attack': names[row['attack']]} for row in rows]
  noise, n = settings.noises[-1], settings.num_workers

  def of(part, row, column):
    return accuracy(tables.select(rows, part=part), row, column)

  orders = of('order', '{order}', '{shards}, {noise:.0%}')
  noisy = [r for r in rows if r['part'] in ('order', 'scores')]
  noisy = [
    r for r in tables.select(noisy, noise=noise) if r['order'] in EXTREMES
  ]
  scores = accuracy(noisy, '{score}, {order}', '{shards}')
  pacing = of(
    'pacing',
    '{order}, {pacing}, from {initial_share:.0%}',
    'full at {full_at:.0%}',
  )
  attacks = of('attacks', '{order}, {rule}', '{attack}')
  uneven = of('uneven', '{clients}', 'uneven clients')
  clients = of('clients', '{clients}', '{attack}')
  differences = {
    (f'curriculum - {other}', column): orders['curriculum', column] - values
    for (other, column), values in orders.items()
    if other != 'curriculum'
  }
  shown = {
    'Orders, by shards and share of wrong labels': orders | differences,
    'Scores, with wrong labels': scores,
    'Pacing, even shards, with wrong labels': pacing,
    f'{settings.num_byzantine} of {n} clients attack, even shards, with wrong'
    ' labels': attacks,
    'Order of clients that hold no to many wrong labels': uneven,
    f'{settings.num_claiming} of {n} clients attack,'
    f' {settings.num_participants} in a round, median': clients,
  }
  return Summary(
    claims=[
      *about_orders(settings, orders, scores, pacing),
      *about_clients(settings, attacks, uneven, clients),
    ],
    tables=[
      Table(f'{title}: test accuracy (%)', tables.pivot(table))
      for title, table in shown.items()
      if table
    ],
    figures={'orders.png': lambda: picture(orders)},
  )


def about(settings, published: str = '') -> dict[str, str]:
  """What claims share: those of the paper, with a number, and our own."""
  return {
    'method': 'curricula' if published else '',
    'paper': PAPER,
    'data': settings.dataset,
    'published': published or 'not in the paper',
    'evidence': 'N' if published else '',
  }


def over(table, column, *pairs) -> list[Check]:
  """Points of one row over another: (row, row, at least, why)."""
  return [
    Check(f'{column}: points of {one} over {other}', gap, least, why=why)
    for one, other, least, why in pairs
    for gap in [(table[one, column] - table[other, column]).mean()]
  ]


def about_orders(settings, orders, scores, pacing) -> list[Claim]:
  even, skewed = (f'{x}, {settings.noises[-1]:.0%}' for x in SHARDS)
  first = 'it is ahead in the first rounds only'

  def gap(table, column, rows='{}', names=EXTREMES):
    best, worst = (table[rows.format(name), column] for name in names)
    return (best - worst).mean()

  def harm(column):
    return gap(orders, column, names=('vanilla', 'anti'))

  slow, fast = (
    gap(pacing, f'full at {at}', '{}, linear, from 20%')
    for at in ('80%', '10%')
  )
  received = gap(scores, 'skewed', 'global, {}')
  own = gap(scores, 'skewed', 'local, {}')
  return [
    Claim(
      says='easy examples first end above any other order',
      checks=over(
        orders,
        even,
        ('curriculum', 'vanilla', 1, first),
        ('curriculum', 'random', 1, first),
        ('vanilla', 'anti', 1, ''),
        ('random', 'anti', 1, ''),
      ),
      **about(
        settings, 'CIFAR-10, even: curriculum 56.15, random 51.23, anti 44.78'
      ),
    ),
    Claim(
      says='they help more under label skew, and hard ones first harm more',
      checks=[
        *over(orders, skewed, ('curriculum', 'vanilla', 1, '')),
        Check(
          'vanilla over anti, skewed less even', harm(skewed) - harm(even), 0
        ),
      ],
      **about(
        settings,
        'CIFAR-10, 2 classes each: curriculum 47.55, vanilla 41.48, anti 34.24',
      ),
    ),
    Claim(
      says='under skew the own model of a client cannot tell what is easy',
      checks=[
        Check(
          'curriculum over anti, received model less twice the own',
          received - 2 * abs(own),
          0,
        )
      ],
      **about(
        settings,
        'CIFAR-10, 2 classes each, curriculum and anti: received model 47.55'
        ' and 34.24, own 43.16 and 41.58',
      ),
    ),
    Claim(
      says='the slower the pool grows, the more its order matters',
      checks=[
        Check(
          'curriculum over anti, full at 80% less full at 10%', slow - fast, 1
        )
      ],
      **about(
        settings,
        'CIFAR-10, even, curriculum and anti: full at 80% 56.10 and 44.44, at'
        ' 10% 54.05 and 50.21',
      ),
    ),
  ]


def about_clients(settings, attacks, uneven, clients) -> list[Claim]:
  none, *under = (attacks['curriculum, median', x].mean() for x in ATTACKS)
  _, honest, claimed, pool, large = CLAIMS
  few = 'within the spread of three seeds'
  return [
    Claim(
      says='easy clients first end above other orders of clients',
      checks=over(
        uneven,
        'uneven clients',
        ('curriculum', 'uniform', 0, few),
        ('curriculum', 'anti', 1, few),
      ),
      **about(
        settings, 'CIFAR-10, even: curriculum 59.92, random 55.28, anti 47.24'
      ),
    ),
    Claim(
      says='the median protects clients that train by a curriculum',
      checks=[
        Check(
          'points that the worse attack costs', none - min(under), at_most=5
        ),
        *over(
          attacks,
          'sign flip',
          ('curriculum, median', 'vanilla, median', 1, 'no order helps'),
        ),
      ],
      **about(settings),
    ),
    Claim(
      says='attackers that claim a low loss win the small early pools',
      checks=over(
        clients,
        'sign flip',
        (honest, claimed, 10, ''),
        (pool, claimed, 5, ''),
        (large, pool, 5, ''),
      ),
      **about(settings),
    ),
  ]


def picture(orders):
  """Accuracy of the four orders, a panel for each kind of shards."""
  columns = tables.axes(orders)[1]
  figure, (axes,) = pictures.panels(1, len(columns), figsize=(13, 2.6))
  for panel, column in zip(axes, columns):
    bars = {order: orders[order, column] for order in ORDERS}
    pictures.bars(panel, bars, 'test accuracy (%)')
    panel.set_title(f'{column} wrong labels')
  return figure
