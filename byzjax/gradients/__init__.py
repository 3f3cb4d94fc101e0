"""Gradient estimators: what a worker computes instead of a gradient."""

from byzjax.gradients._hutchinson import hutchinson_diagonal
from byzjax.gradients._sparsign_steps import sparsign_local_steps

__all__ = ['hutchinson_diagonal', 'sparsign_local_steps']
