"""The forms that a loss may have, and the errors for other forms."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from byzjax._src import checks


def check_flags(name: str, needs_key: Any, has_aux: Any) -> None:
  """Raises ValueError unless both are bools."""
  checks.check_flag(name, 'needs_key', needs_key)
  checks.check_flag(name, 'has_aux', has_aux)


def check_signature(name: str, loss_fn: Any, needs_key: bool) -> None:
  """Raises unless the loss can be called with the arguments it will get."""
  given = '(params, batch_i, key_i)' if needs_key else '(params, batch_i)'
  if not callable(loss_fn):
    raise TypeError(
      f'{name} needs loss_fn to be a function {given} or an Objective, got'
      f' {loss_fn!r}'
    )
  try:
    signature = inspect.signature(loss_fn)
  except (TypeError, ValueError):  # Of what is not written in Python.
    return
  try:
    signature.bind(*[None] * (3 if needs_key else 2))
  except TypeError:
    hint = '' if needs_key else ' (needs_key=True gives it a key, too)'
    raise ValueError(
      f'{name} needs loss_fn to take {given}{hint}, got one that takes'
      f' {signature}'
    ) from None


def split_value(
  name: str, argument: str, value: Any, has_aux: bool | None
) -> tuple[jax.Array, Any]:
  """A result as `(loss, aux or None)`; ValueError if it has another form.

  `has_aux` is None for functions that never have an auxiliary output.
  """
  if not has_aux:
    if isinstance(value, tuple):
      hint = ''
      if has_aux is not None:
        hint = ': where it gives (loss, aux), pass has_aux=True'
      raise ValueError(
        f'{name} needs {argument} to give a scalar loss, got'
        f' {form(value)}{hint}'
      )
    loss, aux = value, None
  elif isinstance(value, tuple) and len(value) == 2:
    loss, aux = value
  else:
    raise ValueError(
      f'{name} needs {argument} to give (loss, aux) where has_aux=True, got'
      f' {form(value)}'
    )
  if not _is_real_scalar(loss):
    raise ValueError(
      f'{name} needs {argument} to give a real scalar as loss, got {form(loss)}'
    )
  return loss, aux


def _is_real_scalar(x: Any) -> bool:
  try:
    return jnp.shape(x) == () and jnp.issubdtype(
      jnp.result_type(x), jnp.floating
    )
  except TypeError:
    return False


def form(x: Any) -> str:
  """A short description of a value, for errors."""
  if isinstance(x, tuple):
    return f'a tuple of {len(x)}'
  if hasattr(x, 'dtype') and hasattr(x, 'shape'):
    return f'{x.dtype}{list(x.shape)}'
  return type(x).__name__
