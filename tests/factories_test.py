"""Every public factory: what it refuses, and that it says which argument."""

import importlib
import inspect
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import (
  factory_calls,
  factory_calls_local,
  factory_calls_theory,
  factory_values,
)

MODULES = [byzjax] + [
  importlib.import_module(f'byzjax.{module.name}')
  for module in pkgutil.iter_modules(byzjax.__path__)
  if not module.name.startswith('_')
]
CALLS = (
  factory_calls.CALLS | factory_calls_local.CALLS | factory_calls_theory.CALLS
)


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
  assert sorted(FACTORIES) == sorted([*CALLS, *factory_values.NOT_CALLED])


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


def test_the_values_that_are_right_are_of_arguments_that_there_are():
  parameters = {
    name: set(inspect.signature(factory).parameters)
    for name, factory in FACTORIES.items()
  }
  everything = set().union(*parameters.values())
  for which in factory_values.FREE:
    if isinstance(which, tuple):
      factory, argument = which
      assert argument in parameters[factory], which
    else:
      assert which in everything, which
  for table in (factory_values.ZERO_COUNTS, factory_values.NONZERO):
    assert set(table) <= everything, set(table) - everything


def counts_of(name):
  """The whole numbers that the valid call is made with, as NumPy has them."""
  given = CALLS[name].arguments
  for parameter in inspect.signature(FACTORIES[name]).parameters.values():
    value = given.get(parameter.name, parameter.default)
    counts = factory_values.is_count(parameter.annotation)
    if counts and isinstance(value, int) and not isinstance(value, bool):
      yield parameter.name, np.int64(value)


@pytest.mark.parametrize('name', [n for n in CALLS if [*counts_of(n)]])
def test_integers_of_numpy_are_counts(name):
  error = refusal(name, {**CALLS[name].arguments, **dict(counts_of(name))})
  if error is not None:
    raise error


# A forgotten axis: one message in the place of n, and masks and weights of
# another length.

ONE = jax.ShapeDtypeStruct((), 'float32')
MESSAGES = jax.ShapeDtypeStruct((factory_calls.N, factory_calls.D), 'float32')
PARAMS = jax.ShapeDtypeStruct((factory_calls.D,), 'float32')


def made(name):
  return FACTORIES[name](**CALLS[name].arguments)


def of_kind(kind):
  """The factories of the tables of rules, and so on."""
  return sorted(getattr(factory_calls, kind))


@pytest.mark.parametrize('name', of_kind('RULES'))
def test_rules_miss_the_worker_axis(name):
  rule = made(name)

  def update(messages, params, **extra):
    key = jax.random.key(0)
    return rule.update(messages, rule.init(params), params, key=key, **extra)

  # Named after the rule that runs, where a rule is made of others.
  with pytest.raises(ValueError, match='messages'):
    jax.eval_shape(update, ONE, PARAMS)
  with pytest.raises(ValueError, match='messages .*forget jax.vmap'):
    jax.eval_shape(update, PARAMS, PARAMS)
  with pytest.raises(ValueError, match='messages'):
    rule(jnp.float32(1.0), key=jax.random.key(0))
  with pytest.raises((ValueError, TypeError), match='worker_weights'):
    jax.eval_shape(
      lambda x, p: update(x, p, worker_weights=jnp.ones(3)), MESSAGES, PARAMS
    )


@pytest.mark.parametrize('name', of_kind('STAGES'))
def test_stages_miss_the_worker_axis(name):
  stage = made(name)
  with pytest.raises(ValueError, match='messages'):
    jax.eval_shape(lambda x: stage.apply(x, (), key=jax.random.key(0)), ONE)


@pytest.mark.parametrize('name', of_kind('ATTACKS'))
def test_attacks_miss_the_worker_axis(name):
  attack = made(name)

  def apply(messages, is_byzantine):
    return attack.apply(
      messages,
      attack.init(jnp.zeros(factory_calls.D)),
      is_byzantine=is_byzantine,
      key=jax.random.key(0),
    )

  with pytest.raises(ValueError, match='messages'):
    jax.eval_shape(lambda x: apply(x, jnp.arange(3) < 1), ONE)
  for mask in (jnp.arange(3) < 1, jnp.zeros(factory_calls.N), None, 'x', 2):
    with pytest.raises(ValueError, match='is_byzantine'):
      jax.eval_shape(lambda x, mask=mask: apply(x, mask), MESSAGES)
  with pytest.raises(ValueError, match='messages'):
    attack(jnp.float32(1.0), is_byzantine=[True], key=jax.random.key(0))
