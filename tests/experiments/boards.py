"""Rows of a board, made up."""

from experiments.grid import board, settings

SUITE = settings.of_suite('leaderboard')
IID, SKEWED = SUITE.entries('partitions')


def raw(accuracies, *, defence='krum(num_byzantine=4)', partition=IID, f=4,
        rate=0.1, loss=1.0, success=None):  # fmt: skip
  """`{attack: [accuracy of each seed]}`, over four evaluations."""
  return [
    {
      'defence': defence,
      'attack': attack,
      'num_byzantine': f,
      'partition': partition,
      'pre_aggregators': 'none',
      'aggregator': defence,
      'momentum': 0.9,
      'learning_rate': rate,
      'seed': seed,
      'round': t,
      'accuracy': accuracy,
      'loss': loss if t == 4 else 1.0,
      'validation_accuracy': accuracy,
      **({'attack_success_rate': success} if success is not None else {}),
      'commit': 'g1',
      'jax': '0.1',
      'device': 'cpu',
    }
    for attack, of_seeds in accuracies.items()
    for t in (1, 2, 3, 4)
    for seed, accuracy in enumerate(of_seeds)
  ]


def text(rows):
  """Rows as a file has them."""
  return [{k: str(v) for k, v in row.items()} for row in rows]


TITLES = {
  'mean': ([90, 91, 90], [30, 31, 30]),
  'krum(num_byzantine=2)': ([85, 86, 85], [50, 51, 50]),
  'krum(num_byzantine=4)': ([84, 85, 84], [70, 71, 70]),
  'krum(num_byzantine=6)': ([83, 84, 83], [69, 70, 69]),
  'flame': ([88, 89, 88], [70, 70, 71]),
}


def made(attacks=('none', 'alie(z=1.5), strength')):
  rows = [
    row
    for title, of_attacks in TITLES.items()
    for partition, less in ((IID, 0), (SKEWED, 10))
    for attack, of_seeds in zip(attacks, of_attacks)
    for row in raw(
      {attack: [(a - less) / 100 for a in of_seeds]},
      defence=title,
      partition=partition,
    )
  ]
  for partition, accuracy in ((IID, 0.92), (SKEWED, 0.9)):
    rows += raw(
      {'none': [accuracy] * 3}, defence='mean', partition=partition, f=0
    )
  return text(board.chosen(rows, 10))
