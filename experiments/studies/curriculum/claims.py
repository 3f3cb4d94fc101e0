"""What the rows of the study say, part by part."""

from experiments.reporting import pictures, tables
from experiments.reporting.summary import Check, Claim, Summary, Table

SHARDS = ('even', 'skewed')
RULES = ('mean', 'median')
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
ATTACKS = {'none': 0.0, 'label flip': 1.0, 'sign flip': 2.0}
PAPER = (
  'Vahidian, Kadaveru, Baek, Wang, Kungurtsev, Chen, Shah, Lin 2022,'
  ' arXiv:2212.12712'
)


def summarise(rows, settings) -> Summary:
  parts = {
    'order': orders,
    'scores': scores,
    'pacing': pacing,
    'attacks': attacks,
    'clients': clients,
  }
  claims, shown = [], []
  for part in settings.parts:
    more, texts = parts[part](rows, settings)
    claims += more
    shown += texts.items()
  by_order = order_table(rows, settings)
  return Summary(
    claims=claims,
    tables=[
      Table(f'{title}: test accuracy (%)', tables.pivot(table))
      for title, table in shown
      if table
    ],
    figures={'orders.png': lambda: picture(by_order)},
  )


def about(settings, published='not in the paper'):
  """What claims share: those of the paper, with a number, and our own."""
  is_paper = published != 'not in the paper'
  return {
    'method': 'curricula' if is_paper else '',
    'paper': PAPER,
    'data': settings.dataset,
    'published': published,
    'evidence': 'N' if is_paper else '',
  }


def accuracy(rows, **labels):
  return tables.percent(tables.select(rows, **labels))


def over(table, column, *pairs):
  """Points of one row over another, as checks: (row, row, at least, why)."""
  return [
    Check(
      f'{column}: points of {one} over {other}',
      (table[one, column] - table[other, column]).mean(),
      *needed,
    )
    for one, other, *needed in pairs
  ]


def order_table(rows, settings):
  return tables.Cells(
    (
      (order, f'{shards}, {noise:.0%}'),
      accuracy(rows, part='order', order=order, shards=shards, noise=noise),
    )
    for noise in settings.noises
    for shards in SHARDS
    for order in ORDERS
  )


def orders(rows, settings):
  table = order_table(rows, settings)
  even, skewed = (f'{shards}, {settings.noises[-1]:.0%}' for shards in SHARDS)
  shown = dict(table)
  for column in tables.axes(table)[1]:
    for other in ORDERS[1:]:
      gap = table['curriculum', column] - table[other, column]
      shown[f'curriculum - {other}', column] = gap

  def harm(column):
    return (table['vanilla', column] - table['anti', column]).mean()

  first = 'it is ahead in the first rounds only'
  claims = [
    Claim(
      says='easy examples first end above any other order',
      checks=over(
        table,
        even,
        ('curriculum', 'vanilla', 1, None, first),
        ('curriculum', 'random', 1, None, first),
        ('vanilla', 'anti', 1),
        ('random', 'anti', 1),
      ),
      **about(
        settings,
        'CIFAR-10, even: curriculum 56.15, random 51.23, anti 44.78',
      ),
    ),
    Claim(
      says='and more so under label skew, where hard ones first harm more',
      checks=[
        *over(table, skewed, ('curriculum', 'vanilla', 1)),
        Check(
          'points of vanilla over anti, skewed less even',
          harm(skewed) - harm(even),
          0,
        ),
      ],
      **about(
        settings,
        'CIFAR-10, 2 classes each: curriculum 47.55, vanilla 41.48, anti 34.24',
      ),
    ),
  ]
  return claims, {'Orders, by shards and share of wrong labels': shown}


def scores(rows, settings):
  table = tables.Cells(
    (
      (f'{score}, {order}', shards),
      accuracy(
        rows,
        part='order' if score == 'global' else 'scores',
        shards=shards,
        order=order,
        score=score,
        noise=settings.noises[-1],
      ),
    )
    for score in SCORES
    for order in EXTREMES
    for shards in SHARDS
  )

  def gap(score):
    best, worst = (table[f'{score}, {order}', 'skewed'] for order in EXTREMES)
    return (best - worst).mean()

  claims = [
    Claim(
      says='under skew the own model of a client cannot tell what is easy',
      checks=[
        Check(
          'skewed: points of curriculum over anti, by scores of the received'
          ' model less twice those of the own',
          gap('global') - 2 * abs(gap('local')),
          0,
        )
      ],
      **about(
        settings,
        'CIFAR-10, 2 classes each: received 47.55 and 34.24, own 43.16 and'
        ' 41.58',
      ),
    )
  ]
  return claims, {'Scores, with wrong labels': table}


def pacing(rows, settings):
  table = tables.Cells(
    (
      (f'{order}, {pacing}, from {share:.0%}', f'full at {full:.0%}'),
      accuracy(
        rows,
        part='pacing',
        order=order,
        pacing=pacing,
        full_at=full,
        initial_share=share,
      ),
    )
    for pacing in PACINGS
    for order in EXTREMES
    for share in SHARES
    for full in FULL_AT
  )

  def gap(full):
    best, worst = (
      table[f'{order}, linear, from 20%', f'full at {full}']
      for order in EXTREMES
    )
    return (best - worst).mean()

  claims = [
    Claim(
      says='the slower the pool grows, the more its order matters',
      checks=[
        Check(
          'points of curriculum over anti, full at 80% less full at 10%',
          gap('80%') - gap('10%'),
          1,
        )
      ],
      **about(
        settings,
        'CIFAR-10, even: full at 80% 56.10 and 44.44, at 10% 54.05 and 50.21',
      ),
    )
  ]
  return claims, {'Pacing, even shards, with wrong labels': table}


def attacked(rows, part, names, **labels):
  """Accuracy of rows with these names under each attack."""
  return tables.Cells(
    (
      (', '.join(name.values()), attack),
      accuracy(rows, part=part, attack=number, **name, **labels),
    )
    for name in names
    for attack, number in ATTACKS.items()
  )


def attacks(rows, settings):
  names = [
    {'order': order, 'rule': rule}
    for rule in RULES
    for order in ('vanilla', 'curriculum')
  ]
  table = attacked(rows, 'attacks', names)
  own = [table['curriculum, median', attack].mean() for attack in ATTACKS]
  pair = ('curriculum, median', 'vanilla, median', 1, None, 'no order helps')
  claims = [
    Claim(
      says='the median protects clients that train by a curriculum',
      checks=[
        Check(
          'points that the worse attack costs', own[0] - min(own[1:]), at_most=5
        ),
        *over(table, 'sign flip', pair),
      ],
      **about(settings),
    )
  ]
  who = f'{settings.num_byzantine} of {settings.num_workers} clients attack'
  return claims, {f'{who}, even shards, with wrong labels': table}


def clients(rows, settings):
  uneven = tables.Cells(
    ((order, 'accuracy'), accuracy(rows, part='uneven', clients=order))
    for order in CLIENT_ORDERS
  )
  table = attacked(rows, 'clients', [{'clients': c} for c in CLAIMS])
  _, honest, claimed, pool, large = CLAIMS
  who = (
    f'{settings.num_claiming} of {settings.num_workers} clients attack,'
    f' {settings.num_participants} in a round, median'
  )
  noise = 'within the spread of three seeds'
  claims = [
    Claim(
      says='easy clients first end above other orders of clients',
      checks=over(
        uneven,
        'accuracy',
        ('curriculum', 'uniform', 0),
        ('curriculum', 'anti', 1, None, noise),
      ),
      **about(
        settings, 'CIFAR-10, even: curriculum 59.92, random 55.28, anti 47.24'
      ),
    ),
    Claim(
      says='attackers that claim a low loss win the small early pools',
      checks=over(
        table,
        'sign flip',
        (honest, claimed, 10),
        (pool, claimed, 5),
        (large, pool, 5),
      ),
      **about(settings),
    ),
  ]
  shown = {'Order of clients that hold no to many wrong labels': uneven}
  return claims, {**shown, who: table}


def picture(table):
  """Accuracy of the four orders, a panel for each kind of shards."""
  columns = tables.axes(table)[1]
  figure, (axes,) = pictures.panels(1, len(columns), figsize=(13, 2.6))
  for panel, column in zip(axes, columns):
    bars = {order: table[order, column] for order in ORDERS}
    pictures.bars(panel, bars, 'test accuracy (%)')
    panel.set_title(f'{column} wrong labels')
  return figure
