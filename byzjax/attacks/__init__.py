"""What Byzantine workers do."""

from byzjax.attacks._alie import alie, alie_factor
from byzjax.attacks._constant import constant
from byzjax.attacks._gaussian import gaussian
from byzjax.attacks._inner_product_manipulation import (
  inner_product_manipulation,
)
from byzjax.attacks._label_flip import label_flip
from byzjax.attacks._sign_flip import sign_flip

__all__ = [
  'alie',
  'alie_factor',
  'constant',
  'gaussian',
  'inner_product_manipulation',
  'label_flip',
  'sign_flip',
]
