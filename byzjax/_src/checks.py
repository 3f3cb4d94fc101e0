"""Checks of arguments, with errors that name the rule that is broken."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_count(rule: str, name: str, value: Any, minimum: int = 0) -> None:
  """Raises ValueError unless `value` is a Python int of at least `minimum`."""
  if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
    raise ValueError(
      f'{rule} needs {name} to be a Python int (it sets shapes) of at least'
      f' {minimum}, got {value!r}'
    )


def check_range(
  rule: str,
  name: str,
  value: Any,
  minimum: float,
  maximum: float = np.inf,
  *,
  exclusive: bool = False,
) -> None:
  """Raises ValueError if a concrete number is NaN or outside of a range."""
  if isinstance(value, jax.core.Tracer):
    return
  number = np.asarray(value)
  low = number > minimum if exclusive else number >= minimum
  if not np.all(low & (number <= maximum)):
    upper = '' if maximum == np.inf else f' and {name} <= {maximum}'
    relation = '>' if exclusive else '>='
    raise ValueError(
      f'{rule} needs {name} {relation} {minimum}{upper}, got {value}'
    )


def check_worker_weights(rule: str, weights: Any, n: int) -> None:
  """Raises ValueError unless the weights are float[n], and none is negative."""
  shape = jnp.shape(weights)
  if shape != (n,):
    raise ValueError(
      f'{rule} needs worker_weights to be float[{n}], one entry per message,'
      f' got the shape {list(shape)}'
    )
  check_range(rule, 'worker_weights', weights, 0)


def check_majority(rule: str, n: int, f: int) -> None:
  """Raises ValueError unless honest workers are in the majority: `n > 2 f`."""
  if n <= 2 * f:
    raise ValueError(
      f'{rule} needs num_workers > 2 * num_byzantine, got {n} and {f}'
    )


def num_workers(name: str, messages: Any) -> int:
  """The common leading axis of all leaves, or a ValueError that names them."""
  leaves = jax.tree.leaves_with_path(messages)
  shapes = {
    jax.tree_util.keystr(path) or 'leaf': jnp.shape(leaf)
    for path, leaf in leaves
  }
  if not shapes:
    raise ValueError(f'{name} must have at least one leaf, got {messages}')
  lengths = {shape[:1] for shape in shapes.values()}
  if len(lengths) > 1 or lengths in ({()}, {(0,)}):
    raise ValueError(
      f'{name} must have leaves that share a leading worker axis of at least'
      f' one row, got the shapes {shapes}'
    )
  return lengths.pop()[0]
