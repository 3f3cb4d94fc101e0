"""Records how the factories made an object: its hyper-parameters.

Rules, attacks, pre-aggregators and codecs are named tuples of functions. The
second of these functions carries the *recipe*: the factory, and the arguments
of the call. So the tuple stays a tuple (`_replace`, `jax.tree.map` and `copy`
work), has `config` and `repr`, and is pickled as the call that makes it again.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec('P')
T = TypeVar('T')
# Modules that users see as such: `byzjax.gossip.clipped`, but `byzjax.krum`.
_NAMESPACES = ('gossip', 'objectives', 'asynchrony')


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
  """One call of a factory.

  Attributes:
    factory: the public function.
    arguments: of the call, with defaults.
    others: the other functions of the tuple; if one of them is replaced, the
      recipe is no longer valid.
  """

  factory: Callable[..., Any]
  arguments: inspect.BoundArguments
  others: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
  """A function with the recipe of the tuple that it belongs to."""

  function: Callable[..., Any]
  recipe: Recipe | None = None

  def __call__(self, *args, **kwargs):
    return self.function(*args, **kwargs)

  @property
  def config(self) -> dict[str, Any] | None:
    """The hyper-parameters, by name."""
    return config_in(self.recipe)

  def __repr__(self) -> str:
    return show_recipe(self.recipe, f'<byzjax function {self.function!r}>')

  def __reduce__(self):
    if self.recipe is None:
      return type(self), (self.function,)
    return rebuild, _call_of(self.recipe)


def factory(make: Callable[P, T]) -> Callable[P, T]:
  """Decorates a public factory, so that its results have their `config`.

  NumPy integers among the arguments become Python ints, which set shapes and do
  not change the dtype of arrays in products.
  """
  signature = inspect.signature(make)

  @functools.wraps(make)
  def recording(*args: P.args, **kwargs: P.kwargs) -> T:
    args = tuple(map(_as_int, args))  # type: ignore[assignment]
    kwargs = {k: _as_int(v) for k, v in kwargs.items()}  # type: ignore[assignment]
    made = make(*args, **kwargs)
    arguments = signature.bind(*args, **kwargs)
    arguments.apply_defaults()
    return _with_recipe(made, Recipe(recording, arguments))

  return recording


def config_of(made: tuple) -> dict[str, Any] | None:
  """The hyper-parameters of the call that made the tuple, or None."""
  return config_in(recipe_of(made))


def config_in(recipe: Recipe | None) -> dict[str, Any] | None:
  """The hyper-parameters of a recipe, by name."""
  return None if recipe is None else dict(recipe.arguments.arguments)


def recipe_of(made: tuple) -> Recipe | None:
  """The recipe of a tuple, if it is still as the factory made it."""
  recipe = getattr(made[1], 'recipe', None)
  if recipe is None or len(recipe.others) != len(made) - 1:
    return None
  same = all(a is b for a, b in zip(recipe.others, _others(made)))
  return recipe if same else None


def factory_name(made: tuple) -> str | None:
  """Of the factory that made the tuple as it is; None if that is not known."""
  recipe = recipe_of(made)
  return None if recipe is None else recipe.factory.__name__


def show(made: tuple, name: str) -> str:
  """The call that makes the tuple, or a name if the call is not known."""
  return show_recipe(recipe_of(made), f'<byzjax {name}>')


def show_recipe(recipe: Recipe | None, otherwise: str) -> str:
  """`byzjax.krum(num_byzantine=2, ...)`."""
  if recipe is None:
    return otherwise
  arguments = recipe.arguments
  positional = inspect.Parameter.VAR_POSITIONAL
  shown: list[str] = []
  for parameter in arguments.signature.parameters.values():
    value = arguments.arguments[parameter.name]
    if parameter.kind == positional:
      shown += map(show_value, value)
    else:
      shown.append(f'{parameter.name}={show_value(value)}')
  module = recipe.factory.__module__.split('.')
  scope = module[:2] if module[1:2] and module[1] in _NAMESPACES else module[:1]
  name = '.'.join([*scope, recipe.factory.__name__])
  return f'{name}({", ".join(shown)})'


def reduce(made: tuple) -> tuple[Any, ...]:
  """What `__reduce__` returns: the call again, or the tuple of functions."""
  recipe = recipe_of(made)
  if recipe is None:
    return type(made), tuple(made)
  return rebuild, _call_of(recipe)


def rebuild(make: Callable[..., T], args: tuple, kwargs: dict[str, Any]) -> T:
  """Calls a factory again, for a pickle."""
  return make(*args, **kwargs)


def _call_of(recipe):
  return recipe.factory, recipe.arguments.args, recipe.arguments.kwargs


def _as_int(value: Any) -> Any:
  return int(value) if isinstance(value, np.integer) else value


def _others(made):
  return (made[0], *made[2:])


def _with_recipe(made, recipe):
  if isinstance(made, types.FunctionType):  # a data attack
    return Recorded(made, recipe)
  if not hasattr(made, 'config'):
    return made
  function = made[1]
  if not hasattr(function, 'recipe'):
    function = Recorded(function)
  recipe = dataclasses.replace(recipe, others=_others(made))
  function = dataclasses.replace(function, recipe=recipe)
  return type(made)(made[0], function, *made[2:])


def show_value(value: Any) -> str:
  """An argument as short text."""
  if isinstance(value, jax.core.Tracer):
    return f'<traced {value.dtype}{list(value.shape)}>'
  if isinstance(value, (jax.Array, np.ndarray)):
    if value.ndim:
      return f'<{value.dtype}{list(value.shape)}>'
    return str(value)
  if isinstance(value, tuple) and not hasattr(value, '_fields'):
    inner = ', '.join(map(show_value, value))
    return f'({inner},)' if len(value) == 1 else f'({inner})'
  if isinstance(value, types.FunctionType):
    return value.__name__
  return repr(value)
