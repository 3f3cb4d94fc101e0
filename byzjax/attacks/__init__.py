"""What Byzantine workers do."""

from byzjax.attacks._adaptive import adaptive
from byzjax.attacks._adaptive_gradient import adaptive_gradient
from byzjax.attacks._alie import alie, alie_factor
from byzjax.attacks._constant import constant
from byzjax.attacks._drift import drift
from byzjax.attacks._fang import fang
from byzjax.attacks._flip_vote import flip_vote
from byzjax.attacks._gaussian import gaussian
from byzjax.attacks._inner_product_manipulation import (
  inner_product_manipulation,
)
from byzjax.attacks._label_flip import label_flip
from byzjax.attacks._mimic import mimic
from byzjax.attacks._min_max import min_max, min_sum
from byzjax.attacks._random_signs import random_signs
from byzjax.attacks._relocated_orthogonal_perturbation import (
  relocated_orthogonal_perturbation,
)
from byzjax.attacks._replay import replay
from byzjax.attacks._sign_flip import sign_flip

__all__ = [
  'adaptive',
  'adaptive_gradient',
  'alie',
  'alie_factor',
  'constant',
  'drift',
  'fang',
  'flip_vote',
  'gaussian',
  'inner_product_manipulation',
  'label_flip',
  'mimic',
  'min_max',
  'min_sum',
  'random_signs',
  'relocated_orthogonal_perturbation',
  'replay',
  'sign_flip',
]
