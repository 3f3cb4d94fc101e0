"""Calls of a rule by its factory, compiled once per choice of options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def _compiled(make, **options):
  rule = make(**options)
  return rule.init, jax.jit(
    lambda x, state, key: rule.inspect(x, state, key=key)
  )


def inspect(make, x, state=None, key=None, **options):
  init, update = _compiled(make, **options)
  x = jnp.asarray(x, jnp.float32)
  state = init(x[0]) if state is None else state
  return update(x, state, key)


def aggregate(make, x, **options):
  return np.float64(inspect(make, x, **options)[0])


def kept(make, x, **options):
  return np.flatnonzero(inspect(make, x, **options)[2].kept).tolist()
