"""Gradient estimators: what a worker computes instead of a gradient."""

from byzjax.gradients._sparsign_steps import sparsign_local_steps

__all__ = ['sparsign_local_steps']
