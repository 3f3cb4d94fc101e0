"""Gradient estimators: what a worker computes instead of a gradient."""

from byzjax.gradients._byz_vr_marina import (
  ByzVrMarina,
  MarinaServerState,
  MarinaWorkerState,
  byz_vr_marina,
)
from byzjax.gradients._entropy_gradient import entropy_gradient
from byzjax.gradients._hutchinson import hutchinson_diagonal
from byzjax.gradients._private_gradient import differentially_private_gradient
from byzjax.gradients._saga import SagaState, saga
from byzjax.gradients._sparsign_steps import sparsign_local_steps
from byzjax.gradients._stages import RecurrentStage, Stage
from byzjax.gradients._storm import StormState, storm
from byzjax.gradients._target_projection import target_projection

__all__ = [
  'ByzVrMarina',
  'MarinaServerState',
  'MarinaWorkerState',
  'RecurrentStage',
  'SagaState',
  'Stage',
  'StormState',
  'byz_vr_marina',
  'differentially_private_gradient',
  'entropy_gradient',
  'hutchinson_diagonal',
  'saga',
  'sparsign_local_steps',
  'storm',
  'target_projection',
]
