"""Which group of the documentation has which public name.

Names come to their group by themselves: by the package that they are defined in
and by what they return. A name that no group takes is an error. This needs no
Sphinx; `names.py` does.
"""

import functools
import importlib
import inspect
import pkgutil
import typing
from typing import Any, NamedTuple

import byzjax

# Packages whose names are public as `byzjax.name`; all others are namespaces of
# their own, and each is one group.
FLAT = {
  'aggregators',
  'attacks',
  'compression',
  'gradients',
  'rounds',
  'transforms',
}


class Group(NamedTuple):
  """Names of one kind.

  Attributes:
    package: whose names come here.
    returns: if only those come that return this; the others are left to the
      group of the whole package.
    names: that come here wherever they are defined.
  """

  package: str | None = None
  returns: Any = None
  names: tuple[str, ...] = ()


GROUPS = {
  'rules': Group('aggregators'),
  'pre_aggregators': Group(
    'aggregators', byzjax.PreAggregator, ('pre_aggregate',)
  ),
  'own_rules': Group(
    names=('from_column', 'from_weights', 'sanitize', 'squared_distances')
  ),
  'attacks': Group('attacks'),
  'codecs': Group('compression'),
  'transforms': Group('transforms'),
  'gradients': Group('gradients', names=('GradientEstimator',)),
  'rounds': Group('rounds', byzjax.Round),
  'own_rounds': Group(
    names=('from_work', 'Work', 'WorkerOutput', 'WorkContext', 'Cohort')
  ),
  'schedules': Group('rounds'),
  'sharding': Group(
    names=('robust_reduce', 'worker_sharded', 'WorkerShardedState')
  ),
  'types': Group('_src'),
}

# What an alias stands for cannot be read off it.
ALIASES = {
  'byzjax.Aggregate': (
    'A pytree whose leaves are `[*param_shape]`: what a rule returns and an'
    ' optimizer takes.'
  ),
  'byzjax.Messages': (
    'A pytree whose leaves are `[n, *param_shape]`: what the server receives,'
    ' one row per worker.'
  ),
}


def namespaces() -> list[str]:
  """The public packages of byzjax that keep their names to themselves."""
  packages = {module.name for module in pkgutil.iter_modules(byzjax.__path__)}
  return sorted(name for name in packages - FLAT if not name.startswith('_'))


@functools.cache
def groups() -> dict[str, list[str]]:
  """All public names, in full (`byzjax.krum`), by group; functions first.

  Returns:
    The groups of `GROUPS`, and one for each namespace.

  Raises:
    ValueError: if no group takes a name, or a group names what is not public.
  """
  result: dict[str, list[str]] = {group: [] for group in GROUPS}
  for group, (_, _, names) in GROUPS.items():
    if missing := set(names) - set(byzjax.__all__):
      raise ValueError(f'docs/groups.py: {group} has no public {missing}')
  for name in byzjax.__all__:
    result[_group_of(name)].append(f'byzjax.{name}')
  for namespace in namespaces():
    module = importlib.import_module(f'byzjax.{namespace}')
    result[namespace] = [
      f'byzjax.{namespace}.{name}' for name in module.__all__
    ]
  return {
    group: sorted(names, key=lambda name: inspect.isclass(value_of(name)))
    for group, names in result.items()
  }


def value_of(name: str) -> Any:
  """What a full name stands for."""
  module, _, attribute = name.rpartition('.')
  return getattr(importlib.import_module(module), attribute)


def _group_of(name: str) -> str:
  value = getattr(byzjax, name)
  if f'byzjax.{name}' in ALIASES:
    return 'types'
  package = value.__module__.split('.')[1]
  returns = None
  if inspect.isfunction(value):
    returns = typing.get_type_hints(value).get('return')

  # By name, by what it returns, by package: in this order.
  for group, (_, _, names) in GROUPS.items():
    if name in names:
      return group
  for group, (home, kind, _) in GROUPS.items():
    if home == package and kind is not None and kind is returns:
      return group
  for group, (home, kind, _) in GROUPS.items():
    if home == package and kind is None:
      return group
  raise ValueError(
    f'docs/groups.py: no group takes byzjax.{name}, which is defined in'
    f' {value.__module__}; add a group to GROUPS, or the name to one'
  )
