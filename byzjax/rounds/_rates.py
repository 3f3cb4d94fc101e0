"""Numbers that may change from round to round."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from byzjax._src import base, checks

# A number, or `step -> number`. The alias of optax has no types to check.
ScalarOrSchedule: TypeAlias = base.Scalar | Callable[[jax.Array], base.Scalar]


def check_rate(name: str, argument: str, value: Any) -> None:
  """Raises ValueError for a negative number; schedules are not looked at."""
  if not callable(value):
    checks.check_range(name, argument, value, 0)


def rate_at(value: ScalarOrSchedule, step: jax.Array) -> base.Scalar:
  """The number of this round."""
  return value(step) if callable(value) else value
