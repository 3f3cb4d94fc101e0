"""Checks of arguments, with errors that name the violated condition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_whole(value: Any) -> bool:
  """Whether this is an int, of Python or of NumPy, and no bool."""
  return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_count(rule: str, name: str, value: Any, minimum: int = 0) -> None:
  """Raises ValueError unless `value` is an int of at least `minimum`."""
  if is_whole(value) and value >= minimum:
    return
  hint = ''
  if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer):
    hint = ' (with optax.inject_hyperparams, name it among the static_args)'
  raise ValueError(
    f'{rule} needs {name} to be a Python int (it sets shapes) of at least'
    f' {minimum}, got {value!r}{hint}'
  )


def check_integer(rule: str, name: str, value: Any, minimum: int = 0) -> None:
  """Raises ValueError unless `value` is an int or an integer array []."""
  if isinstance(value, jax.Array) and not value.shape:
    if jnp.issubdtype(value.dtype, jnp.integer):
      check_range(rule, name, value, minimum)
      return
  check_count(rule, name, value, minimum)


def check_whole(rule: str, name: str, value: Any, minimum: int = 0) -> None:
  """Raises ValueError unless `value` is an int or an array of integers."""
  is_array = isinstance(value, (jax.Array, np.ndarray))
  whole = jnp.issubdtype(value.dtype, jnp.integer) if is_array else None
  if not (whole or is_whole(value)):
    raise ValueError(
      f'{rule} needs {name} to be an int or an array of integers, got {value!r}'
    )
  if not isinstance(value, jax.core.Tracer) and not np.all(value >= minimum):
    raise ValueError(f'{rule} needs {name} >= {minimum}, got {value}')


def check_flag(rule: str, name: str, value: Any) -> None:
  """Raises ValueError unless `value` is True or False."""
  if not isinstance(value, (bool, np.bool_)):
    raise ValueError(f'{rule} needs {name} to be True or False, got {value!r}')


def check_choice(rule: str, name: str, value: Any, choices: Any) -> None:
  """Raises ValueError unless `value` is one of the strings in `choices`."""
  if not isinstance(value, str) or value not in choices:
    raise ValueError(
      f'{rule} needs {name} to be one of {", ".join(choices)}, got {value!r}'
    )


def check_text(rule: str, name: str, value: Any) -> None:
  """Raises TypeError unless `value` is a string."""
  if not isinstance(value, str):
    raise TypeError(f'{rule} needs {name} to be a string, got {value!r}')


def check_function(rule: str, name: str, value: Any) -> None:
  """Raises TypeError unless `value` can be called."""
  if not callable(value):
    raise TypeError(f'{rule} needs {name} to be a function, got {value!r}')


def check_kind(
  rule: str, name: str, value: Any, kind: type, *, optional: bool = False
) -> None:
  """Raises TypeError unless `value` is of this type, or None if optional."""
  if not isinstance(value, kind) and not (optional and value is None):
    raise TypeError(
      f'{rule} needs {name} to be of type {kind.__name__}'
      f'{" or None" if optional else ""}, got {value!r}'
    )


def check_sequence(rule: str, name: str, value: Any) -> None:
  """Raises TypeError unless `value` is a list, a tuple or an array [m, ...]."""
  if not isinstance(value, (list, tuple, np.ndarray, jax.Array)) or (
    isinstance(value, (np.ndarray, jax.Array)) and not value.ndim
  ):
    raise TypeError(
      f'{rule} needs {name} to be a list or a tuple, got {value!r}'
    )


def check_pair(rule: str, name: str, value: Any) -> None:
  """Raises TypeError unless `value` is a tuple, or a list, of two."""
  if not isinstance(value, (list, tuple)) or len(value) != 2:
    raise TypeError(f'{rule} needs {name} to be a pair, got {value!r}')


def check_rate(rule: str, name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a number >= 0 or a schedule of it."""
  if not callable(value):
    check_range(rule, name, value, 0)


def check_key(rule: str, name: str, value: Any) -> None:
  """Raises TypeError unless `value` is a key of jax.random."""
  is_array = isinstance(value, (jax.Array, np.ndarray))
  if is_array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
    return
  if not is_array or value.dtype != np.uint32 or not value.shape:
    raise TypeError(
      f'{rule} needs {name} to be a key such as jax.random.key(0), got'
      f' {value!r}'
    )


def check_iterations(rule: str, name: str, value: Any) -> None:
  """Raises ValueError unless `value` is an int >= 1 or an integer array []."""
  check_integer(rule, name, value, 1)


def check_real(
  rule: str, name: str, value: Any, *, array: bool = False
) -> None:
  """Raises ValueError unless `value` is a real number; it may be traced.

  With `array` it may be an array.
  """
  if isinstance(value, (int, float, jax.Array, np.ndarray, np.generic)):
    kind = jnp.result_type(value)
    real = jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(
      kind, jnp.integer
    )
    if real and (array or not jnp.shape(value)):
      return
    if real:
      raise ValueError(
        f'{rule} needs {name} to be one real number, got an array of shape'
        f' {list(jnp.shape(value))}'
      )
  raise ValueError(
    f'{rule} needs {name} to be a real number, got {value!r} of type'
    f' {type(value).__name__}'
  )


def check_reals(rule: str, name: str, values: Any) -> None:
  """Raises ValueError unless these are real numbers [m], or None."""
  if values is None:
    return
  if not isinstance(values, (jax.Array, np.ndarray)):
    if not isinstance(values, (list, tuple)) or not values:
      raise ValueError(
        f'{rule} needs {name} to be a tuple of real numbers, got {values!r}'
      )
    for value in values:
      check_range(rule, name, value)
  elif values.ndim != 1 or values.dtype.kind not in 'fiu':
    raise ValueError(
      f'{rule} needs {name} to be a tuple of real numbers, or float[m], got'
      f' {values.dtype}{list(values.shape)}'
    )


def check_range(
  rule: str,
  name: str,
  value: Any,
  minimum: float = -np.inf,
  maximum: float = np.inf,
  *,
  exclusive: bool = False,
  array: bool = False,
) -> None:
  """Raises ValueError unless `value` is a real number in a range.

  With `array` it may be an array.

  Of a traced value only type and shape are checked.
  """
  check_real(rule, name, value, array=array)
  if isinstance(value, jax.core.Tracer):
    return
  if minimum == -np.inf and np.any(np.isnan(value)):
    raise ValueError(f'{rule} needs {name} to be a number, got {value}')
  low = value > minimum if exclusive else value >= minimum
  if not np.all(low & (value <= maximum)):
    upper = '' if maximum == np.inf else f' and {name} <= {maximum}'
    relation = '>' if exclusive else '>='
    raise ValueError(
      f'{rule} needs {name} {relation} {minimum}{upper}, got {value}'
    )


def check_momentum(rule: str, name: str, value: Any) -> None:
  """Raises ValueError unless `value` is in [0, 1): with 1 nothing is forgotten.

  Of a traced value only type and shape are checked.
  """
  check_range(rule, name, value, 0, 1)
  if not isinstance(value, jax.core.Tracer) and value == 1:
    raise ValueError(f'{rule} needs {name} < 1, got {value}')


def check_worker_weights(
  rule: str, weights: Any, n: int, *, may_be_zero: bool = False
) -> None:
  """Raises ValueError unless the weights are float[n], finite and >= 0.

  All-zero weights are an error unless `may_be_zero`. The values of traced
  weights are not checked.
  """
  is_array = isinstance(weights, (jax.Array, np.ndarray))
  if not is_array and not isinstance(weights, (list, tuple)):
    raise TypeError(
      f'{rule} needs worker_weights to be float[{n}], one entry per message,'
      f' got {weights!r}'
    )
  shape = jnp.shape(weights) if is_array else np.shape(weights)
  if shape != (n,):
    raise ValueError(
      f'{rule} needs worker_weights to be float[{n}], one entry per message,'
      f' got the shape {list(shape)}'
    )
  kind = weights.dtype if is_array else np.asarray(weights).dtype
  if jnp.issubdtype(kind, jnp.complexfloating):
    raise ValueError(f'{rule} needs worker_weights to be real, got {kind}')
  if isinstance(weights, jax.core.Tracer):
    return
  values = np.asarray(weights, float)
  if not (np.isfinite(values) & (values >= 0)).all() or not (
    may_be_zero or values.any()
  ):
    raise ValueError(
      f'{rule} needs worker_weights to be finite, >= 0 and not all zero, got'
      f' {weights}'
    )


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


def byzantine_mask(name: str, is_byzantine: Any, n: int) -> jax.Array:
  """The mask as an array, or a ValueError unless it is bool[n]."""
  try:
    mask = jnp.asarray(is_byzantine)
  except (TypeError, ValueError):
    mask = None
  if mask is None or mask.shape != (n,) or mask.dtype != jnp.bool_:
    got = repr(is_byzantine) if mask is None else f'{mask.dtype}{[*mask.shape]}'
    raise ValueError(
      f'{name} needs is_byzantine to be bool[{n}], one entry per message, got'
      f' {got}'
    )
  return mask


def check_messages(name: str, messages: Any, params: Any = None) -> None:
  """Raises ValueError unless leaves are `[n, *param_shape]`.

  Without `params` only the leading axis is checked.
  """
  num_workers(f'{name}: messages', messages)
  if params is None:
    return
  treedef: Any = jax.tree.structure(messages)
  wanted: Any = jax.tree.structure(params)
  if treedef != wanted:
    raise ValueError(
      f'{name} needs messages with the structure of the parameters, {wanted},'
      f' got {treedef}'
    )
  leaves = jax.tree.leaves_with_path(messages)
  for (path, leaf), param in zip(leaves, jax.tree.leaves(params)):
    if jnp.shape(leaf)[1:] != jnp.shape(param):
      raise ValueError(
        f'{name} needs messages with leaves [n, *param_shape], a row for every'
        f' worker, got {name_of(path)} of shape {list(jnp.shape(leaf))} for a'
        f' parameter of shape {list(jnp.shape(param))}: did you forget jax.vmap'
        ' over the workers?'
      )


def check_stacked(name: str, messages: Any) -> None:
  """Raises ValueError for a list of n messages, one tree for every worker."""
  if type(messages) not in (list, tuple) or len(messages) < 2:
    return
  first = signature(messages[0])
  if all(signature(message) == first for message in messages[1:]):
    raise ValueError(
      f'{name} needs one tree of messages with leaves [n, *shape], got a'
      f' {type(messages).__name__} of {len(messages)} trees that are all alike:'
      ' stack them by byzjax.stack(messages). (Are they parameters of equal'
      ' shapes, with a row for every worker? Put them into a dict.)'
    )


def check_trusted(
  name: str, trusted: Any, row: Any, argument: str = 'trusted'
) -> None:
  """Raises ValueError unless `trusted` has the form of one message."""
  found, wanted = signature(trusted), signature(row)
  if found != wanted:
    raise ValueError(
      f'{name} needs {argument} to be like one message, with leaves of the'
      f' shapes {wanted[1]} in {wanted[0]}, got {found[1]} in {found[0]}'
    )


def check_remembered(
  rule: str, found: Any, wanted: Any, of: str = '{} coordinates'
) -> None:
  """Raises ValueError unless a state has the sizes that messages need."""
  if found != wanted:
    raise ValueError(
      f'{rule} needs the state that its init(params) returns, for'
      f' {of.format(wanted)}, got one for {found}'
    )


def signature(tree: Any) -> tuple[Any, list[list[int]]]:
  """The structure of a tree, and the shapes of its leaves."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, [list(jnp.shape(leaf)) for leaf in leaves]


def name_of(path: Any) -> str:
  """The name of a leaf in errors, from its path."""
  return f'the leaf {jax.tree_util.keystr(path)}' if path else 'a leaf'
