"""Attacks on messages: one row each."""

import functools

import jax.numpy as jnp
import numpy as np

import byzjax
from tests import claims, reference, reference_attacks

_shifted = reference_attacks.shifted

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
  claims.MessageAttack(
    'mimic_worker',
    lambda: byzjax.mimic(worker=3),
    lambda x, bad: x[~bad][3],
  ),
  claims.MessageAttack(
    'min_max',
    lambda: byzjax.min_max(),
    lambda x, bad: _shifted(x[~bad], reference_attacks.min_max_allows),
  ),
  claims.MessageAttack(
    'min_max_unit',
    lambda: byzjax.min_max(deviation='unit'),
    lambda x, bad: _shifted(x[~bad], reference_attacks.min_max_allows, 'unit'),
  ),
  claims.MessageAttack(
    'min_max_sign',
    lambda: byzjax.min_max(deviation='sign'),
    lambda x, bad: _shifted(x[~bad], reference_attacks.min_max_allows, 'sign'),
  ),
  claims.MessageAttack(
    'min_sum',
    lambda: byzjax.min_sum(ddof=0),
    lambda x, bad: _shifted(
      x[~bad], reference_attacks.min_sum_allows, 'std', 0
    ),
  ),
  claims.MessageAttack(
    'min_sum_max_unit',
    lambda: byzjax.min_sum(deviation='unit', bound='max'),
    lambda x, bad: _shifted(
      x[~bad],
      functools.partial(reference_attacks.min_sum_allows, bound='max'),
      'unit',
    ),
  ),
  claims.MessageAttack(
    'flip_vote',
    lambda: byzjax.flip_vote(scale=2.0),
    lambda x, bad: reference_attacks.flip_vote(x[~bad], 2.0),
  ),
]
