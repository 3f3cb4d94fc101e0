"""Attacks on messages: one row each."""

import jax.numpy as jnp
import numpy as np

import byzjax
from tests import claims, reference

ATTACKS = [
  claims.MessageAttack(
    'sign_flip',
    lambda: byzjax.sign_flip(scale=10.0),
    lambda x, bad: reference.sign_flip(x[~bad], 10.0),
  ),
  claims.MessageAttack(
    'sign_flip_own',
    lambda: byzjax.sign_flip(scale=3.0, own=True),
    lambda x, bad: -3.0 * x,
    own=True,
  ),
  claims.MessageAttack(
    'inner_product_manipulation',
    lambda: byzjax.inner_product_manipulation(epsilon=0.1),
    lambda x, bad: reference.inner_product_manipulation(x[~bad], 0.1),
  ),
  claims.MessageAttack(
    'alie',
    lambda: byzjax.alie(),
    lambda x, bad: reference.alie(
      x[~bad], reference.alie_factor(len(x), int(bad.sum()))
    ),
  ),
  claims.MessageAttack(
    'alie_z_population',
    lambda: byzjax.alie(z=-1.5, ddof=0),
    lambda x, bad: reference.alie(x[~bad], -1.5, ddof=0),
  ),
  claims.MessageAttack(
    'constant',
    lambda: byzjax.constant(value=-100.0),
    lambda x, bad: np.full(x.shape[1], -100.0),
  ),
  claims.MessageAttack(
    'constant_nan',
    lambda: byzjax.constant(value=jnp.nan),
    lambda x, bad: np.full(x.shape[1], np.nan),
  ),
  claims.MessageAttack(
    'constant_inf',
    lambda: byzjax.constant(value=-jnp.inf),
    lambda x, bad: np.full(x.shape[1], -np.inf),
  ),
]
