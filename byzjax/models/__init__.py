"""Small models, and pure functions of their parameters."""

from byzjax._src.paths import (
  BestPaths,
  best_paths,
  grid_paths,
  keep_best,
  repeat_modules,
  select_path,
)
from byzjax.models._cnn import CNN
from byzjax.models._conv import Conv, max_pool
from byzjax.models._documents import (
  document_losses,
  next_token_loss,
  prefix_features,
)
from byzjax.models._dropout_cnn import DropoutCNN
from byzjax.models._evaluate import Metrics, evaluate
from byzjax.models._functional import (
  classifier_weights,
  cross_entropy_loss,
  features_and_classifier,
  has_dropout,
  split,
)
from byzjax.models._layers import mlp_layers, mlp_params
from byzjax.models._levels import join_levels, split_levels
from byzjax.models._make import make
from byzjax.models._mlp import MLP
from byzjax.models._resnet import ResNet20
from byzjax.models._rnn import RNN
from byzjax.models._stages import stages
from byzjax.models._transformer import Transformer

__all__ = [
  'BestPaths',
  'CNN',
  'Conv',
  'DropoutCNN',
  'MLP',
  'Metrics',
  'RNN',
  'ResNet20',
  'Transformer',
  'best_paths',
  'classifier_weights',
  'cross_entropy_loss',
  'document_losses',
  'evaluate',
  'features_and_classifier',
  'grid_paths',
  'has_dropout',
  'join_levels',
  'keep_best',
  'make',
  'max_pool',
  'mlp_layers',
  'mlp_params',
  'next_token_loss',
  'prefix_features',
  'repeat_modules',
  'select_path',
  'split',
  'split_levels',
  'stages',
]
