"""Attacks of Byzantine workers, on messages and on data."""

from byzjax.attacks._adaptive import adaptive
from byzjax.attacks._adaptive_gradient import adaptive_gradient
from byzjax.attacks._alie import alie, alie_factor
from byzjax.attacks._backdoor import backdoor, edge_case
from byzjax.attacks._constant import constant
from byzjax.attacks._drift import drift
from byzjax.attacks._fang import fang
from byzjax.attacks._flip_vote import flip_vote
from byzjax.attacks._gaussian import gaussian
from byzjax.attacks._inner_product_manipulation import (
  inner_product_manipulation,
)
from byzjax.attacks._label_flip import label_flip
from byzjax.attacks._label_poison import label_poison
from byzjax.attacks._mimic import mimic
from byzjax.attacks._min_max import min_max, min_sum
from byzjax.attacks._model_replacement import joint_attack, model_replacement
from byzjax.attacks._neurotoxin import neurotoxin
from byzjax.attacks._random_signs import random_signs
from byzjax.attacks._relocated_orthogonal_perturbation import (
  relocated_orthogonal_perturbation,
)
from byzjax.attacks._replay import replay
from byzjax.attacks._sign_flip import sign_flip
from byzjax.attacks._triggers import (
  Trigger,
  blended_trigger,
  distributed_trigger,
  patch_trigger,
)

__all__ = [
  'Trigger',
  'adaptive',
  'adaptive_gradient',
  'alie',
  'alie_factor',
  'backdoor',
  'blended_trigger',
  'constant',
  'distributed_trigger',
  'drift',
  'edge_case',
  'fang',
  'flip_vote',
  'gaussian',
  'inner_product_manipulation',
  'joint_attack',
  'label_flip',
  'label_poison',
  'mimic',
  'min_max',
  'min_sum',
  'model_replacement',
  'neurotoxin',
  'patch_trigger',
  'random_signs',
  'relocated_orthogonal_perturbation',
  'replay',
  'sign_flip',
]
