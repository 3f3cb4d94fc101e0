"""Local objectives: losses that workers minimise instead of the plain one."""

from byzjax.objectives._fedbr import fedbr
from byzjax.objectives._mixup import mixup
from byzjax.objectives._noisy_softmax import (
  noisy_softmax,
  noisy_softmax_cross_entropy,
)
from byzjax.objectives._pgd import pgd_inputs
from byzjax.objectives._projection import project, projection
from byzjax.objectives._proximal import proximal
from byzjax.objectives._pseudo_data import random_sample_means
from byzjax.objectives._wasserstein import wasserstein, wasserstein_inputs

__all__ = [
  'fedbr',
  'mixup',
  'noisy_softmax',
  'noisy_softmax_cross_entropy',
  'pgd_inputs',
  'project',
  'projection',
  'proximal',
  'random_sample_means',
  'wasserstein',
  'wasserstein_inputs',
]
