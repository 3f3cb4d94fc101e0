"""The two builders of pre-aggregators: linear ones, and scalings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, calls, flat, grams, nonfinite, reductions
from byzjax._src.message_rows import Rows


def from_matrix(
  name: str,
  matrix_fn: Callable[[base.Gram, jax.Array | None], jax.Array],
  *,
  weighted: bool = False,
) -> base.PreAggregator:
  """A linear pre-aggregator from `(gram, key) -> M [m, n]`."""

  def matrix_with_state(gram, state, *, key=None):
    return matrix_fn(gram, key), state

  def apply(messages, state, *, key=None, axis_name=None, worker_weights=None):
    x, layout = flat.ravel_rows(name, messages)
    given = calls.relative_weights(
      name, worker_weights, len(x), supported=weighted
    )
    gram, center = grams.gram_of(x, weights=given, axis_name=axis_name)
    mixed = reductions.mix(matrix_fn(gram, key), x, center, gram.mask)
    return layout.unravel_rows(mixed), state

  return base.PreAggregator(
    optax.init_empty_state,
    apply,
    matrix=matrix_with_state,
    weighted=weighted,
    name=name,
  )


def from_factors(
  name: str, factors_fn: Callable[[jax.Array, jax.Array], jax.Array]
) -> base.PreAggregator:
  """A pre-aggregator `y_i = s_i x_i`, `s = factors_fn(squared norms, mask)`.

  Masked messages stay masked.
  """

  def factors_with_state(squared_norms, mask, state, *, key=None):
    del key
    factors = factors_fn(jnp.where(mask, squared_norms, 0), mask)
    return jnp.where(mask, factors, 1).astype(squared_norms.dtype), state

  def apply(messages, state, *, key=None, axis_name=None, worker_weights=None):
    x, layout = flat.ravel_rows(name, messages)
    given = calls.relative_weights(name, worker_weights, len(x), supported=True)
    rows, state, _ = scale(
      factors_with_state, Rows(x), state, key, axis_name, given
    )
    return layout.unravel_rows(rows.written()), state

  return base.PreAggregator(
    optax.init_empty_state,
    apply,
    factors=factors_with_state,
    weighted=True,
    name=name,
  )


def scale(
  factors_fn: Callable[..., tuple[jax.Array, base.State]],
  rows: Rows,
  state: base.State,
  key: jax.Array | None,
  axis_name: base.AxisName,
  weights: jax.Array | None = None,
) -> tuple[Rows, base.State, jax.Array]:
  """`s_i x_i` for every message, NaN where it is masked; and the factors s.

  Workers of weight 0 count as messages of length 0, whatever they sent.
  """
  norms = reductions.squared_norms(rows, axis_name=axis_name)
  mask = nonfinite.usable_norms(norms)
  seen, known = norms, mask
  if weights is not None:
    seen = jnp.where(weights > 0, norms, 0)
    known = mask | (weights <= 0)
  factors, state = factors_fn(seen, known, state, key=key)
  return rows.scaled(factors, mask), state, factors
