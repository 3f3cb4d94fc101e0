import math
import re

import numpy as np
import pytest

import byzjax
from experiments.harness import specs


@pytest.mark.parametrize(
  'text, expected',
  [
    ('krum', ('krum', {})),
    (' krum() ', ('krum', {})),
    ('alie(z=-1.5, ddof=0)', ('alie', {'z': -1.5, 'ddof': 0})),
    (
      'centered_clipping(radius=inf)',
      ('centered_clipping', {'radius': math.inf}),
    ),
    (
      "geometric_median(start='zeros')",
      ('geometric_median', {'start': 'zeros'}),
    ),
  ],
)
def test_parse(text, expected):
  assert specs.parse(text) == expected


def test_parse_nan():
  assert math.isnan(specs.parse('constant(value=nan)')[1]['value'])


@pytest.mark.parametrize(
  'text',
  ['', 'krum(3)', 'a.b(c=1)', 'f(x=__import__("os"))', 'f(x=y)', 'f(', '1 + 1'],
)
def test_parse_refuses(text):
  with pytest.raises(ValueError, match=r'expected name or name\(key=value'):
    specs.parse(text)


def test_unknown_names_list_the_known_ones():
  message = (
    "--attack: unknown name 'labelflip', did you mean 'label_flip'?; known are"
    ' alie, backdoor'
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    specs.build('attack', 'labelflip', specs.ATTACKS)


def test_a_function_of_ones_own_is_named_by_its_module():
  assert specs.parse('a.b:f(x=1)') == ('a.b:f', {'x': 1})
  text = 'byzjax.aggregators:multi_krum(num_selected=2)'
  rule = specs.aggregator(f'bucketing(bucket_size=2), {text}', '', 1)
  assert 'multi_krum(num_byzantine=1, num_selected=2,' in repr(rule)
  for name in ('byzjax.aggregators:krumm', 'nowhere:krum', 'math:pi'):
    with pytest.raises(ValueError, match=f'--aggregator={name}: '):
      specs.aggregator(name, '', 1)


def test_wrong_arguments_name_the_flag():
  with pytest.raises(
    ValueError, match=r'--aggregator=krum\(radius=1\): .*radius'
  ):
    specs.aggregator('krum(radius=1)', '', 2)


def test_what_is_no_call_names_the_flag():
  with pytest.raises(ValueError, match=r'^--aggregator=krum\(2\): expected'):
    specs.aggregator('krum(2)', '', 2)
  with pytest.raises(ValueError, match=r'^--partition=iid\(3\): expected'):
    specs.partition('iid(3)', np.zeros(8, int), 2, 0)


def test_split_top_ignores_separators_in_parentheses():
  assert specs.split_top('a; b(c=1;d=2) ;;', ';') == ['a', 'b(c=1;d=2)']


def test_aggregator_fills_in_the_number_of_byzantine_workers():
  # With f = 2 five messages are too few for Krum, so f has arrived.
  rule = specs.aggregator('krum', 'nearest_neighbor_mixing', 2)
  assert isinstance(rule, byzjax.Aggregator)
  with pytest.raises(ValueError, match=r'krum needs .* got 5 and 2'):
    rule(np.ones((5, 3)))
