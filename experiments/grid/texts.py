"""Texts of defences: what is in front, and how many attackers they assume."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..harness import specs


def call(name: str, given: Mapping[str, Any]) -> str:
  arguments = ', '.join(f'{key}={value!r}' for key, value in given.items())
  return f'{name}({arguments})' if given else name


def behind(front: str, rule: str) -> str:
  """A rule behind pre-aggregators, or alone."""
  return rule if front == 'none' else f'{front}, {rule}'


def kinds(text: str) -> tuple[list[str], list[Mapping[str, Callable]]]:
  """Flags and known names of the stages of a defence.

  Which of two flags a stage comes from is not worth telling apart.
  """
  front = len(specs.split_top(text, ',')) - 1
  return (
    ['pre_aggregators'] * front + ['aggregators'],
    [specs.PRE_AGGREGATORS] * front + [specs.AGGREGATORS],
  )


def told(text: str, assumed: Sequence[int]) -> list[str]:
  """The defence with each assumed number, if a stage asks for f.

  Raises:
    ValueError: if a name is unknown.
  """
  calls = [
    specs.parse(part, 'aggregators') for part in specs.split_top(text, ',')
  ]

  def asks(flag, name, given, known):
    factory = specs.factory_of(flag, name, known)
    takes = inspect.signature(factory).parameters
    return 'num_byzantine' in takes and 'num_byzantine' not in given

  asked = [
    asks(flag, *of, known) for of, flag, known in zip(calls, *kinds(text))
  ]
  if not assumed or not any(asked):
    return [text]
  return [
    ', '.join(
      call(name, {**given, 'num_byzantine': f} if wants else given)
      for (name, given), wants in zip(calls, asked)
    )
    for f in assumed
  ]
