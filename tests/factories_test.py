"""Every public factory: what it refuses, and that it says which argument."""

import importlib
import inspect
import pkgutil
import re

import pytest

import byzjax
from tests import factory_calls, factory_calls_local, factory_values

MODULES = [byzjax] + [
  importlib.import_module(f'byzjax.{module.name}')
  for module in pkgutil.iter_modules(byzjax.__path__)
  if not module.name.startswith('_')
]
CALLS = factory_calls.CALLS | factory_calls_local.CALLS


def factories():
  """All public functions; those of the flat namespace by their name alone."""
  found = {}
  for module in MODULES:
    for name in getattr(module, '__all__', ()):
      value = getattr(module, name)
      if inspect.isfunction(value) and value not in found.values():
        scope = module.__name__.split('.')[1:]
        found['.'.join([*scope, name])] = value
  return found


FACTORIES = factories()


def refusal(name, arguments):
  """The error of the call, or of a first use of what it makes; or None."""
  call = CALLS[name]
  try:
    made = FACTORIES[name](**arguments)
    if call.use is not None:
      call.use(made)
  except Exception as error:
    return error
  return None


def test_every_factory_has_a_call():
  assert sorted(FACTORIES) == sorted([*CALLS, *factory_calls_local.NOT_CALLED])


@pytest.mark.parametrize('name', CALLS)
def test_the_valid_call_is_valid(name):
  error = refusal(name, CALLS[name].arguments)
  if error is not None:
    raise error


@pytest.mark.parametrize('name', CALLS)
def test_wrong_values_are_refused_by_name(name):
  faults = []
  for parameter in inspect.signature(FACTORIES[name]).parameters.values():
    for value in factory_values.wrong_values_of(name, parameter):
      arguments = {**CALLS[name].arguments, parameter.name: value}
      error = refusal(name, arguments)
      named = re.search(rf'\b{parameter.name}\b', str(error))
      if not isinstance(error, (ValueError, TypeError)) or not named:
        faults.append(f'{parameter.name}={value!r}: {error!r:.150}')
  assert not faults, '\n'.join(faults)
