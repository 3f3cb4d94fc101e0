"""Data sets, their division among workers, and batches on the device."""

from byzjax.data._augment import random_crop_and_flip
from byzjax.data._long_tail import long_tail
from byzjax.data._partition import (
  Partition,
  dirichlet_by_class,
  dirichlet_by_worker,
  iid,
  label_sorted,
  random_shards,
  restrict,
)
from byzjax.data._redundant_groups import redundant_groups
from byzjax.data._sampling import sample_batch
from byzjax.data._sources import Dataset, load

__all__ = [
  'Dataset',
  'Partition',
  'dirichlet_by_class',
  'dirichlet_by_worker',
  'iid',
  'label_sorted',
  'load',
  'long_tail',
  'random_crop_and_flip',
  'random_shards',
  'redundant_groups',
  'restrict',
  'sample_batch',
]
