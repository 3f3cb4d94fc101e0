"""The guide shows what the committed rows of the chaos run say."""

import csv

from experiments import chaos
from tests import markdown

ROWS = markdown.ROOT / 'experiments' / 'chaos.csv'


def rows():
  with ROWS.open() as file:
    read = list(csv.DictReader(file))
  numbers = ('round', 'loss', 'goodput', 'train_loss')
  return [row | {name: float(row[name]) for name in numbers} for row in read]


def test_the_table_of_the_guide_is_that_of_the_rows():
  page = (markdown.ROOT / 'docs' / 'guides' / 'diloco.md').read_text()
  assert f'```text\n{chaos.table(rows())}\n```' in page


def test_what_the_guide_says_of_the_table_is_so():
  last = {(row['fault'], row['rule']): row['loss'] for row in rows()}
  mean, *rules = dict.fromkeys(rule for _, rule in last)
  for fault in chaos.FAULTS:
    for rule in rules:
      assert last[fault, rule] < last['none', rule] + 0.1
  assert not last['nan', mean] < 1e6 < last['lie', mean]
  assert 1.05 < last['flip', mean] - last['none', mean] < 1.07
  assert 0.2 < last['lag', mean] - last['none', mean] < 0.22
