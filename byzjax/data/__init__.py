"""Data sets, their division among workers, and batches on the device."""

from byzjax.data._augment import random_crop_and_flip
from byzjax.data._client_curriculum import client_curriculum
from byzjax.data._curriculum import curriculum
from byzjax.data._discriminative_router import discriminative_router
from byzjax.data._document_clusters import (
  cluster_documents,
  product_cluster_documents,
)
from byzjax.data._hold_out import held_out_workers, hold_out
from byzjax.data._local_sampler import local_sampler
from byzjax.data._long_tail import long_tail
from byzjax.data._main_class import main_class
from byzjax.data._pacing import pool_size
from byzjax.data._partition import (
  Partition,
  dirichlet_by_class,
  dirichlet_by_worker,
  iid,
  label_sorted,
  random_shards,
  restrict,
)
from byzjax.data._poisson_batch import poisson_batch
from byzjax.data._redundant_groups import redundant_groups
from byzjax.data._rotate import rotate, rotation_shift
from byzjax.data._routing import (
  Router,
  path_scores,
  route,
  routed_shards,
  top_paths,
)
from byzjax.data._sampling import sample_batch, shuffled_batch
from byzjax.data._sequence_sampler import sequence_sampler
from byzjax.data._sources import Dataset, load
from byzjax.data._text import Text, documents, load_text
from byzjax.data._total_dirichlet import dirichlet_total
from byzjax.data._words import words
from byzjax.data._worker_loss import worker_loss

__all__ = [
  'Dataset',
  'Partition',
  'Router',
  'Text',
  'client_curriculum',
  'cluster_documents',
  'curriculum',
  'dirichlet_by_class',
  'dirichlet_by_worker',
  'dirichlet_total',
  'discriminative_router',
  'documents',
  'held_out_workers',
  'hold_out',
  'iid',
  'label_sorted',
  'load',
  'load_text',
  'local_sampler',
  'long_tail',
  'main_class',
  'path_scores',
  'poisson_batch',
  'pool_size',
  'product_cluster_documents',
  'random_crop_and_flip',
  'random_shards',
  'redundant_groups',
  'restrict',
  'rotate',
  'rotation_shift',
  'route',
  'routed_shards',
  'sample_batch',
  'sequence_sampler',
  'shuffled_batch',
  'top_paths',
  'words',
  'worker_loss',
]
