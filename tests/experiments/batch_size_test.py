"""Batch size: its runs on Fashion-MNIST beside the paper's numbers."""

import dataclasses

import numpy as np
import pytest

from experiments.harness import study
from experiments.studies.batch_size import published

OF = study.load('batch_size')


def rows_of(config, accuracy):
  """Rows as a run makes them; the second rate is best on validation alone."""
  return [
    {
      **cell.labels,
      'learning_rate': value['learning_rate'],
      'seed': seed,
      'round': cell.rounds,
      'accuracy': accuracy(cell.labels) if i == 1 else 0.99,
      'validation_accuracy': 0.8 if i == 1 else 0.1,
    }
    for cell in OF.define(config)
    for i, value in enumerate(cell.values)
    for seed in config.seeds
  ]


def accuracy(labels):
  """nm 4 points ahead in batches of 32; 512 is best under attack, else 8."""
  gain = 0.04 * (labels['method'] == 'nm' and labels['batch_size'] == 32)
  slope = 1 if labels['num_byzantine'] else -1
  return 0.5 + slope * 0.02 * np.log2(labels['batch_size']) + gain


@pytest.mark.parametrize('name', OF.VARIANTS)
def test_variants_say_what_their_rows_say(name):
  config = study.variant(OF, name)
  rows = study.kept(OF, rows_of(config, accuracy), config)
  # Of the rate that is best on the validation split.
  assert max(row['accuracy'] for row in rows) < 0.99
  said = OF.summarise(rows, config)
  best, gains = (table.text for table in said.tables[:2])
  (line,) = [x for x in best.splitlines() if 'geometric_median, m ' in x]
  assert line.split()[2:5] == ['8', '512', '512']
  line = 'alie, 1' if config.mixing else 'alie, 3'
  (line,) = [
    x for x in gains.splitlines() if x.startswith(f'{line}, geometric_median')
  ]
  paper = ['1.2', '1.2'] if config.mixing else ['6.3', '1.5']
  assert line.split()[3:] == ['4.0', '±', '0.0', '0.0', '±', '0.0', *paper]
  ahead = said.claims[0].checks[0]
  assert ahead.value == pytest.approx(4) and ahead.holds


def test_rates_grow_with_the_batch_from_those_of_32():
  config = OF.Settings(
    learning_rates=(0.1,), nm_learning_rates=(0.3,), rate_growth=0.5
  )
  assert config.rates('m', 32) == (0.1,)
  assert config.rates('nm', 128) == pytest.approx((0.6,))
  plain = dataclasses.replace(config, rate_growth=0.0, nm_learning_rates=())
  assert plain.rates('nm', 512) == (0.1,)


def test_other_attacks_have_batch_sizes_of_their_own():
  config = OF.Settings(batch_sizes=(1, 4), other_batch_sizes=(4,))
  assert config.sizes('alie') == (1, 4)
  assert config.sizes('foe') == (4,)
  plain = dataclasses.replace(config, other_batch_sizes=())
  assert plain.sizes('foe') == (1, 4)


def test_the_paper_has_these_numbers():
  assert published.of('iid', ('alie', 3, 'krum'), 'nm')[1024] == 85.93
  # Without attackers there is one row for all attacks.
  assert published.of('iid', ('alie', 0, 'krum'), 'm')[32] == 91.08
  assert published.of('iid', ('alie', 1, 'krum'), 'nm') == {}
  assert published.of('uneven', ('alie', 1, 'geometric_median'), 'm')[16] == (
    80.46
  )
