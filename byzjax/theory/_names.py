"""The known rules, their parts, and the largest f that each tolerates."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from byzjax import aggregators
from byzjax._src import base, checks, recipes

# The most messages that may be Byzantine, of n.
MAX_BYZANTINE: dict[str, Callable[[int], int]] = {
  'mean': lambda n: 0,
  'krum': lambda n: (n - 3) // 2,
  'multi_krum': lambda n: (n - 3) // 2,
  'bulyan': lambda n: (n - 3) // 4,
  'fl_trust': lambda n: n - 1,
} | dict.fromkeys(
  [
    'aksel',
    'centered_clipping',
    'clipped_clustering',
    'clustering',
    'comparative_gradient_elimination',
    'coordinate_median',
    'covariance_filter',
    'divide_and_conquer',
    'faba',
    'flame',
    'fools_gold',
    'geometric_median',
    'lasa',
    'majority_vote',
    'mean_around_median',
    'minimum_diameter_averaging',
    'monna',
    'phocas',
    'sequential_centered_clipping',
    'sign_guard',
    'smallest_max_eigenvalue_averaging',
    'trimmed_mean',
  ],
  lambda n: (n - 1) // 2,
)
# After these a rule must stand f of n, as without them.
STAGES = ('adaptive_clipping', 'clip_messages', 'nearest_neighbor_mixing')
# After these it must stand f of fewer messages, or more of n; how many depends
# on an argument: n and f behind the stage, from n, f and its arguments.
SPREADING: dict[str, Callable[[int, int, dict[str, Any]], tuple[int, int]]] = {
  'bucketing': lambda n, f, given: (-(-n // given['bucket_size']), f),
  'group_vote': lambda n, f, given: (
    n // given['group_size'],
    f // ((given['group_size'] + 1) // 2),
  ),
  'resampling': lambda n, f, given: (n, f * given['num_samples']),
}


class Part(NamedTuple):
  """A rule, or a pre-aggregator before it.

  Attributes:
    name: name of the factory.
    config: its arguments, as far as they are known; None if no factory of
      byzjax made it.
  """

  name: str
  config: dict[str, Any] | None

  def is_known(self) -> bool:
    """Whether there is anything to say about it."""
    return self.config is not None and _is_name(self.name)

  def is_default(self) -> bool:
    """Whether nothing is set that need not be."""
    config = self.config or {}
    return self.is_known() and all(
      type(config[name]) is type(default) and config[name] == default
      for name, default in _defaults(self.name).items()
    )


def rule_name(rule: str | base.Aggregator) -> str:
  """The name of a rule, or the name itself."""
  return rule if isinstance(rule, str) else rule.name


def parts_of(
  function: str, rule: str | base.Aggregator, f: int | None = None
) -> list[Part]:
  """The stages in order, and the rule last.

  A name stands for the default arguments, with `num_byzantine=f`; those that a
  name does not tell are missing.
  """
  if isinstance(rule, str):
    parts: list[Part] = []
    for name in rule.split(' + '):
      # A name does not tell which f a rule is made for behind these.
      spread = any(part.name in SPREADING for part in parts)
      parts.append(_part_of_name(name, None if spread else f))
    return parts
  if isinstance(rule, base.Aggregator):
    return _parts_of_object(rule)
  raise ValueError(
    f'{function} needs rule to be an Aggregator or its name, got {rule!r}'
  )


def _part_of_name(name, f):
  if not _is_name(name):
    return Part(name, None)
  config = _defaults(name)
  if f is not None and 'num_byzantine' in _parameters(name):
    config['num_byzantine'] = f
  return Part(name, config)


def _parts_of_object(rule):
  recipe = recipes.recipe_of(rule)
  if recipe is None:
    return [Part(rule.name, None)]
  # Not by its own name, which whoever makes one by `from_weights` may choose.
  name, config = recipe.factory.__name__, recipes.config_in(recipe)
  if name != 'pre_aggregate':
    return [Part(name, config)]
  stages = rule.config['stages']
  return [part for stage in stages for part in _parts_of_object(stage)]


def _is_name(name):
  return name in MAX_BYZANTINE or name in (*STAGES, *SPREADING)


def required(name: str) -> list[str]:
  """The arguments without a default, of a factory."""
  return [key for key in _parameters(name) if key not in _defaults(name)]


def _parameters(name):
  return inspect.signature(getattr(aggregators, name)).parameters


def _defaults(name):
  return {
    parameter.name: parameter.default
    for parameter in _parameters(name).values()
    if parameter.default is not inspect.Parameter.empty
  }


def are_known(parts: list[Part]) -> bool:
  """Whether there is anything to say about the rule and its stages."""
  *stages, last = parts
  in_order = last.name in MAX_BYZANTINE and not any(
    stage.name in MAX_BYZANTINE for stage in stages
  )
  return in_order and all(part.is_known() for part in parts)


def check_name(function: str, rule: str | base.Aggregator) -> None:
  """Raises ValueError for a name that is not that of known parts."""
  if isinstance(rule, str) and not are_known(parts_of(function, rule)):
    raise ValueError(
      f'{function} needs rule to be, or to end after pre-aggregators in, one of'
      f' {sorted(MAX_BYZANTINE)}, got {rule!r}'
    )


def behind(stage: Part, n: int, f: int) -> tuple[int, int] | None:
  """How many messages leave a stage, and how many of them f attackers spoil.

  None if that depends on an argument that a name does not tell.
  """
  if stage.name in STAGES:
    return n, f
  try:
    return SPREADING[stage.name](n, f, stage.config or {})
  except KeyError:
    return None


def depends(parts: list[Part]) -> Part | None:
  """The first stage that spreads messages nobody knows how."""
  return next((stage for stage in parts[:-1] if not behind(stage, 1, 0)), None)


def most_byzantine(
  function: str, rule: str | base.Aggregator, parts: list[Part], n: int
) -> int:
  """The largest f for n messages; ValueError if the rule takes no n at all.

  As without stages, if it depends on what is not known of them.
  """
  checks.check_count(function, 'num_workers', n, 1)
  most = max_of(parts if depends(parts) is None else parts[-1:], n)
  if most < 0:
    raise ValueError(
      f'{function} needs num_workers >= 3 for {rule_name(rule)}, got {n}'
      if len(parts) == 1
      else f'{function} needs more workers than {n} for {rule_name(rule)}'
    )
  return most


def max_of(parts: list[Part], n: int) -> int:
  """The largest f that the rule behind its stages stands; -1 if there is none.

  How the stages spread messages must be known.
  """
  *stages, last = parts

  def stands(f):
    there: Any = (n, f)
    for stage in stages:
      there = behind(stage, *there)
    return there[1] <= _most_of(last, there[0])

  return max(filter(stands, range(n + 1)), default=-1)


def _most_of(part, n):
  # With its neighbours given Krum asks for a majority only.
  is_krum = part.name in ('krum', 'multi_krum')
  if is_krum and part.config.get('num_neighbors') is not None:
    return (n - 1) // 2
  return MAX_BYZANTINE[part.name](n)


def check_byzantine(
  function: str,
  rule: str | base.Aggregator,
  parts: list[Part],
  n: int,
  f: int,
) -> None:
  """Raises ValueError unless f is what the rule stands, and was made for."""
  checks.check_count(function, 'num_byzantine', f)
  check_made_for(function, parts, n, f)
  most = most_byzantine(function, rule, parts, n)
  if f > most:
    raise ValueError(
      f'{function} needs num_byzantine <= {most}, the most that'
      f' {rule_name(rule)} tolerates of {n} messages, got {f}'
    )


def check_made_for(function: str, parts: list[Part], n: int, f: int) -> None:
  """Raises ValueError if a rule or a stage was made for another f."""
  there: tuple[int, int] | None = n, f
  for i, part in enumerate(parts):
    if there is None or part.config is None:
      return
    made_for = part.config.get('num_byzantine', there[1])
    if made_for != there[1]:
      stages = ' + '.join(stage.name for stage in parts[:i])
      spread = (
        '' if there[1] == f else f', which corrupt {there[1]} after {stages}'
      )
      raise ValueError(
        f'{function} needs num_byzantine to be what the rule was made for:'
        f' {part.name} has num_byzantine={made_for}, got {f}{spread}'
      )
    if part.name not in MAX_BYZANTINE:
      there = behind(part, *there) if part.is_known() else None
