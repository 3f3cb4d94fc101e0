"""What was predicted of DETOX, and what its tables say of it."""

from typing import Any

from ...harness.cells import Rows
from ...reporting import tables
from ...reporting.summary import Check
from . import timing

LOUD = ('-100 mean', 'constant -100')


def ahead(table: tables.Pivot, one: str, other: str, line: str) -> float:
  return table[one, line].mean() - table[other, line].mean()


def more(table: tables.Pivot, one: str, other: str, line: str) -> float:
  """How far one is ahead under an attack, and was not without it."""
  return ahead(table, one, other, line) - ahead(table, one, other, 'none')


def gains(table: tables.Pivot, settings: Any) -> list[Check]:
  """What groups give a rule under ALIE, more than without attack."""
  why = '{} learns badly without attack too, and groups help it there as much'
  return [
    Check(
      f'points that D- adds to {rule}, more than without attack',
      more(table, f'D-{rule}', rule, 'alie, random'),
      at_least=20,
      why=why.format(rule) if settings.dataset == 'digits' else '',
    )
    for rule in settings.rules
    if 'alie' in settings.attacks and rule.partition(':')[0] != 'mean'
  ]


def withstands(table: tables.Pivot, settings: Any) -> list[Check]:
  """Loud attacks: a robust rule against the mean, and against no attack."""
  digits = settings.dataset == 'digits'
  loud = [attack for attack in LOUD if attack in settings.attacks]
  last = settings.rules[-1]
  mean = 'mean' + last[len(last.partition(':')[0]) :]
  return [
    *(
      Check(
        f'{attack}: points of D-median_of_means over the mean'
        f'{"" if digits else ", more than without attack"}',
        (ahead if digits else more)(
          table, 'D-median_of_means', 'mean', f'{attack}, random'
        ),
        at_least=20,
        why='such a constant hardly harms the mean here' if digits else '',
      )
      for attack in loud
    ),
    *(
      Check(
        f'{attack}: points of D-{last} below D-{mean} without attack',
        (
          table[f'D-{mean}', 'none'] - table[f'D-{last}', f'{attack}, random']
        ).mean(),
        at_most=3,
        why='Bulyan learns badly from so few examples without attackers too'
        if digits
        else '',
      )
      for attack in loud
    ),
  ]


def faster(rows: Rows, settings: Any) -> list[Check]:
  """Aggregation alone, at the largest dimension."""
  return [
    Check(
      f'times that D-{name} is faster than {name}, d = {size}',
      timing.measured(rows, f'd = {size}', name, 'faster'),
      at_least=2,
    )
    for size in settings.timed_sizes[-1:]
    for name in ('multi_krum', 'bulyan')
  ]


def sooner(rows: Rows, costs: timing.Costs) -> list[Check]:
  """Seconds to an accuracy, without attack: all rules get there."""
  series = timing.curves(rows, 'none', costs)
  return [
    Check(
      f'seconds of {rule} to {timing.TARGET:.0%} over those of D-{rule},'
      ' without attack',
      timing.reached(series[rule]) / timing.reached(series[f'D-{rule}']),
      at_least=2,
    )
    for rule, groups in costs
    if groups == '-' and rule.partition(':')[0] in ('multi_krum', 'bulyan')
  ]
