"""From the text of a grid to its cells: what is traced, what is queued.

A defence is a chain, pre-aggregators and then a rule: `'bucketing(bucket_size=
2), krum'`. An attack may be followed by searches, which hold the defence:
`'alie, strength'`. A list in place of a value is a grid of its own: of real
numbers, one program runs all of them; of anything else, each has a program.
"""

import dataclasses
import itertools
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

import byzjax
from byzjax import data

from ..harness import backdoors, programs, specs
from ..harness.cells import Cell, Task
from . import texts
from .settings import Grid

Known = Mapping[str, Callable]
_SEARCHES = {k: v for k, v in specs.SEARCHES.items() if k != 'none'}
# For numbers alone, which are compared with their ranges before any is traced.
_NOTHING: Any = None
_NO_TASK = Task(
  graphdef=_NOTHING,
  loss_fn=lambda *_: 0.0,
  needs_key=False,
  images=_NOTHING,
  labels=_NOTHING,
  partition=_NOTHING,
  scale=1.0,
  num_classes=10,
)


class Stage(NamedTuple):
  """A name and its hyper-parameters."""

  flag: str
  name: str
  known: Known
  given: Mapping[str, Any]
  lists: Mapping[str, Sequence[float]]  # Real numbers, for one program.

  def text(self, values: Mapping[str, Any]) -> str:
    return texts.call(self.name, {**self.given, **values})

  def build(self, *args, defaults, values: Mapping[str, Any]) -> Any:
    # Numbers go into the text, which errors repeat; tracers cannot.
    numbers = {k: v for k, v in values.items() if isinstance(v, float)}
    tracers = {k: v for k, v in values.items() if k not in numbers}
    return specs.build(
      self.flag,
      self.text(numbers),
      self.known,
      *args,
      defaults=defaults,
      values=tracers,
    )


class Chain(NamedTuple):
  """A defence or an attack."""

  title: str  # Without what is chosen from lists.
  stages: tuple[Stage, ...]

  def axes(self, slot: str) -> dict[str, Sequence[float]]:
    return {
      f'{slot}.{i}.{key}': numbers
      for i, stage in enumerate(self.stages)
      for key, numbers in stage.lists.items()
    }

  def texts(self, slot: str, values: Mapping[str, Any]) -> list[str]:
    return [
      stage.text(_of(slot, i, values)) for i, stage in enumerate(self.stages)
    ]


def _wrong_with_lists(grid: Grid) -> list[str]:
  """What is wrong with entries and numbers before any is built."""
  problems = []
  for name in ('attacks', 'aggregators', 'pre_aggregators', 'partitions',
               'num_byzantine', 'momenta', 'learning_rates'):  # fmt: skip
    given = getattr(grid, name)
    given = grid.entries(name) if isinstance(given, str) else given
    if not given or len(set(given)) < len(given):
      problems.append(f'--{name} is empty or has an entry twice: {given}')
  if any(f < 1 for f in grid.num_byzantine):
    problems.append(
      '--num_byzantine must be at least 1; without attackers is the attack none'
    )
  if any(not rate >= 0 for rate in grid.learning_rates):
    problems.append(f'--learning_rates must be >= 0, got {grid.learning_rates}')
  for f in grid.assumed_byzantine:
    if f < 0 or grid.assumed_byzantine.count(f) > 1:
      problems.append(f'--assumed_byzantine is negative or there twice: {f}')
  return problems


def make_cells(grid: Grid, num_classes: int) -> list[Cell]:
  """All programs: f by f, defence by defence, attack by attack.

  The last is the control: the mean, and nobody attacks.

  Raises:
    ValueError: with everything that is wrong with the texts and numbers.
  """
  problems = _wrong_with_lists(grid)

  def attempt(function, *args, **kwargs):
    try:
      return function(*args, **kwargs)
    except ValueError as error:
      if str(error) not in problems:
        problems.append(str(error))
      return []

  for momentum in grid.momenta:
    attempt(byzjax.worker_momentum, momentum)
  fronts, rules = grid.entries('pre_aggregators'), grid.entries('aggregators')
  by_text = [
    attempt(_defence, text)
    for front, rule in itertools.product(fronts, rules)
    for text in attempt(
      texts.told, texts.behind(front, rule), grid.assumed_byzantine
    )
  ]
  defences = [chain for chains in by_text for chain in chains]
  attacks = [
    chain
    for text in grid.entries('attacks')
    for chain in attempt(_attack, text)
  ]
  for title in _repeated(chains[0].title for chains in by_text if chains):
    problems.append(
      f'--aggregators: {title} is there twice; to choose from values, write a'
      ' list, as in centered_clipping(radius=[0.1, 1.0])'
    )
  for text in _repeated(text for chain in attacks for text in _each(chain)):
    problems.append(f'--attacks: {text} is there twice')
  alone = [stage for chain in defences for stage in chain.stages]
  # Searches are no stage alone: what they say is about a defence, too.
  alone += [chain.stages[0] for chain in attacks]
  for stage in alone:
    filled = {'num_byzantine': max(grid.num_byzantine, default=1),
              'num_classes': num_classes}  # fmt: skip
    for values in _one_by_one(stage.lists):
      attempt(stage.build, defaults=filled, values=values)
  if problems:
    raise ValueError('\n'.join(problems))
  control, nobody = _defence('mean'), _attack('none')
  queue = [
    (defence, attack, f)
    for f in grid.num_byzantine
    for defence in defences
    for attack in attacks
  ]
  queue += [(control[0], nobody[0], 0)]
  return [_cell(grid, *place) for place in queue]


def refused(
  cells: Iterable[Cell], dataset: data.Dataset, model: str
) -> dict[str, list[Cell]]:
  """The cells that cannot run, by what is said against them."""
  by_reason: dict[str, list[Cell]] = {}
  for cell in cells:
    try:
      for values in _one_by_one(cell.grid):
        cell.make_round(_NO_TASK, None, **values)
      _trace(cell, dataset, model)
    except ValueError as error:
      by_reason.setdefault(str(error), []).append(cell)
  return by_reason


def _trace(cell: Cell, dataset: data.Dataset, model: str) -> None:
  # What refuses looks at shapes, so one start and few examples will do.
  few = slice(20 * cell.num_workers)
  dataset = dataset._replace(
    train_images=dataset.train_images[few],
    train_labels=dataset.train_labels[few],
  )
  cell = dataclasses.replace(cell, partition='iid')
  options = programs.Options(model, range(1))
  programs.of_images(cell, dataset, options).trace()


def check_partitions(grid: Grid, dataset: data.Dataset) -> None:
  """Raises ValueError if a partition leaves a worker without examples."""
  labels = programs.split_validation(dataset)[0].train_labels
  for text, seed in itertools.product(grid.entries('partitions'), grid.seeds):
    specs.partition(text, labels, grid.num_workers, seed)


def _cell(grid: Grid, defence: Chain, attack: Chain, f: int) -> Cell:
  worker_map = specs.worker_map(grid.model)

  def make_round(task, key, **values):
    del key
    filled = {'num_byzantine': f, 'num_classes': task.num_classes}
    *front, rule = (
      stage.build(defaults=filled, values=_of('defence', i, values))
      for i, stage in enumerate(defence.stages)
    )
    if front:
      rule = byzjax.pre_aggregate(*front, rule)
    lies = None
    for i, stage in enumerate(attack.stages):
      held = (lies, rule) if i else ()
      lies = stage.build(
        *held, defaults=filled, values=_of('attack', i, values)
      )
    return byzjax.robust_round(
      task.loss_fn,
      needs_key=task.needs_key,
      num_workers=grid.num_workers,
      worker=byzjax.worker_momentum(values['momentum']),
      attack=lies,
      byzantine=0 if lies is None else f,
      aggregator=rule,
      optimizer=specs.optimizer(
        grid.optimizer, grid.schedule, values['learning_rate'], grid.rounds
      ),
      worker_map=worker_map,
    )

  def describe(values):
    *front, rule = defence.texts('defence', values)
    return {
      'defence': defence.title,
      'attack': ', '.join(attack.texts('attack', values)),
      'pre_aggregators': ', '.join(front) or 'none',
      'aggregator': rule,
      'momentum': values['momentum'],
      'learning_rate': values['learning_rate'],
    }

  axes = {**defence.axes('defence'), **attack.axes('attack')}
  return Cell(
    # With their lists, for a name; `describe` has what a row is.
    labels={
      'defence': ', '.join(_lists(defence.stages)),
      'attack': ', '.join(_lists(attack.stages)),
      'num_byzantine': f,
    },
    make_round=make_round,
    grid={
      **axes,
      'momentum': grid.momenta,
      'learning_rate': grid.learning_rates,
    },
    num_workers=grid.num_workers,
    rounds=grid.rounds,
    batch_size=grid.batch_size,
    partition=grid.entries('partitions'),
    num_evals=grid.num_evals,
    measure=backdoors.measure(attack.stages[0].text({})),
    describe=describe,
  )


def _defence(text: str) -> list[Chain]:
  """The rule behind its pre-aggregators."""
  return _chains(text, *texts.kinds(text))


def _attack(text: str) -> list[Chain]:
  parts = specs.split_top(text, ',')
  searches = [_SEARCHES] * (len(parts) - 1)
  chains = _chains(text, ['attacks'] * len(parts), [specs.ATTACKS, *searches])
  if chains[0].stages[0].name == 'none' and len(parts) > 1:
    raise ValueError(f'--attacks={text}: there is nothing to search for')
  return chains


def _chains(
  text: str, flags: Sequence[str], known: Sequence[Known]
) -> list[Chain]:
  """A chain for every choice of what cannot be traced."""
  parts = specs.split_top(text, ',')
  stages = [_stages(*each) for each in zip(flags, parts, known)]
  return [Chain(_title(text), each) for each in itertools.product(*stages)]


def _stages(flag: str, text: str, known: Known) -> list[Stage]:
  name, given = specs.parse(text, flag)
  factory = specs.factory_of(flag, name, known)
  lists: dict[str, Sequence[float]] = {}
  queued = {}
  for key, value in given.items():
    if not isinstance(value, list):
      continue
    if not value or len(set(map(repr, value))) < len(value):
      raise ValueError(f'--{flag}={text}: {key} is empty or has a value twice')
    numbers = all(type(v) in (int, float) for v in value)
    if numbers and _is_real(factory, key):
      lists[key] = tuple(map(float, value))
    else:
      queued[key] = value
  fixed = {k: v for k, v in given.items() if not isinstance(v, list)}
  return [
    Stage(flag, name, known, {**fixed, **dict(zip(queued, choice))}, lists)
    for choice in itertools.product(*queued.values())
  ]


def _one_by_one(lists: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
  """Every number once, beside the first ones of the others.

  Numbers, and not tracers, are compared with their ranges.
  """
  first = {key: numbers[0] for key, numbers in lists.items()}
  return [first] + [
    {**first, key: number}
    for key, numbers in lists.items()
    for number in numbers[1:]
  ]


def _each(attack: Chain) -> list[str]:
  """The attack with each of its numbers."""
  axes = attack.axes('attack')
  return [
    ', '.join(attack.texts('attack', dict(zip(axes, numbers))))
    for numbers in itertools.product(*axes.values())
  ]


def _repeated(texts: Iterable[str]) -> list[str]:
  return [text for text, count in Counter(texts).items() if count > 1]


def _is_real(factory: Callable, key: str) -> bool:
  """Whether an argument is a real number, which may be traced."""
  annotation = typing.get_type_hints(factory).get(key)
  return {float, jax.Array} <= set(typing.get_args(annotation))


def _title(text: str) -> str:
  calls = (specs.parse(part) for part in specs.split_top(text, ','))
  return ', '.join(
    texts.call(
      name, {k: v for k, v in given.items() if not isinstance(v, list)}
    )
    for name, given in calls
  )


def _lists(stages: Sequence[Stage]) -> list[str]:
  """The stages with the numbers that their program runs for."""
  return [s.text({k: list(v) for k, v in s.lists.items()}) for s in stages]


def _of(slot: str, i: int, values: Mapping[str, Any]) -> dict[str, Any]:
  """What `values` has for a stage: `{'attack.0.z': 1.0}` -> `{'z': 1.0}`."""
  start = f'{slot}.{i}.'
  return {k[len(start) :]: v for k, v in values.items() if k.startswith(start)}
