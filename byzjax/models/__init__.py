"""Small models, and the step from a model object to pure functions."""

from byzjax.models._cnn import CNN
from byzjax.models._conv import Conv, max_pool
from byzjax.models._evaluate import Metrics, evaluate
from byzjax.models._functional import (
  cross_entropy_loss,
  features_and_classifier,
  split,
)
from byzjax.models._make import make
from byzjax.models._mlp import MLP
from byzjax.models._resnet import ResNet20

__all__ = [
  'CNN',
  'Conv',
  'MLP',
  'Metrics',
  'ResNet20',
  'cross_entropy_loss',
  'evaluate',
  'features_and_classifier',
  'make',
  'max_pool',
  'split',
]
