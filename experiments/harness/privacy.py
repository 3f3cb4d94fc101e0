"""What a run of `--method=dp_sgd(...)` promises to the examples of workers."""

import inspect
from typing import Any

import numpy as np

from byzjax import data, theory

from . import methods, programs, specs

METHOD = 'dp_sgd'


def line(config: Any, dataset: data.Dataset) -> str:
  """Epsilon of the worker and the seed with the fewest examples; '' if none.

  Raises:
    ValueError: if an example belongs to several workers, who would each send
      something of it, or if delta is no probability.
  """
  name, given = specs.parse(config.method, 'method')
  if name != METHOD:
    return ''
  if config.validation:
    dataset, *_ = programs.split_validation(dataset)
  parts = [
    specs.partition(
      config.partition, dataset.train_labels, config.num_workers, seed
    )
    for seed in config.seeds
  ]
  for part in parts:
    _check(config.partition, part)
  smallest = min(int(np.min(part.sizes)) for part in parts)
  default = inspect.signature(methods.dp_sgd).parameters['noise_multiplier']
  told = (
    f'at delta={config.delta:g}, for workers of {smallest} examples or more'
  )
  try:
    epsilon = theory.privacy_epsilon(
      noise_multiplier=given.get('noise_multiplier', default.default),
      sampling_rate=min(1.0, config.batch_size / smallest),
      num_rounds=config.rounds,
      delta=config.delta,
    )
  except ImportError as error:
    return f'epsilon is not known {told}: {error}'
  return f'epsilon={epsilon:.4g} {told}'


def _check(text: str, part: data.Partition) -> None:
  rows = zip(np.asarray(part.indices), np.asarray(part.sizes))
  held = np.concatenate([indices[:size] for indices, size in rows])
  if len(np.unique(held)) < len(held):
    raise ValueError(
      f'--method={METHOD} needs every example at one worker, who counts for it,'
      f' got --partition={text}: give --partition=random_shards'
    )
