"""Passes over examples without replacement, from the number of the step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PassState(NamedTuple):
  """How far a worker has come; also its plan of a round.

  Attributes:
    key: uint32[...], the data of the key of all passes.
    first: int32[], batches before this round; 0 where the key is yet to come.
    drawn: int32[], batches of this round.
  """

  key: jax.Array
  first: jax.Array
  drawn: jax.Array


def places(
  key: jax.Array,
  step: jax.Array | int,
  width: int,
  size: jax.Array,
  batch_size: int,
  batches_per_pass: int | None = None,
) -> jax.Array:
  """Which of the first `size` of `width` places batch `step` has: int32[B]."""
  length = -(-size // batch_size)
  if batches_per_pass is not None:
    length = jnp.minimum(length, batches_per_pass)
  number, position = step // length, step % length
  drawn = jax.random.uniform(jax.random.fold_in(key, number), (width,))
  order = jnp.argsort(jnp.where(jnp.arange(width) < size, drawn, 2.0))
  return order[(position * batch_size + jnp.arange(batch_size)) % size]


def begin() -> PassState:
  """Of a worker that has not drawn anything."""
  zero = jnp.zeros([], jnp.int32)
  return PassState(jax.random.key_data(jax.random.key(0)), zero, zero)


def start(state: PassState, key: jax.Array) -> PassState:
  """The plan of a round; the first round's key is that of all."""
  words = jnp.where(state.first == 0, jax.random.key_data(key), state.key)
  return PassState(words, state.first, jnp.zeros_like(state.drawn))


def take(
  plan: PassState,
  step: jax.Array,
  key: jax.Array,
  width: int,
  size: jax.Array,
  batch_size: int,
) -> tuple[jax.Array, PassState]:
  """The places of the step of this round, and the plan after it.

  `key` only tells of which kind keys are.
  """
  own = jax.random.wrap_key_data(plan.key, impl=jax.random.key_impl(key))
  chosen = places(own, plan.first + step, width, size, batch_size)
  return chosen, plan._replace(drawn=plan.drawn + 1)


def end(plan: PassState) -> PassState:
  """What is kept for the next round."""
  zero = jnp.zeros_like(plan.drawn)
  return PassState(plan.key, plan.first + plan.drawn, zero)
