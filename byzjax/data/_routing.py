"""Routers: which path of a modular network a document is assigned to.

Routing is done once per document, before training, from features of its
beginning. All routers here are linear in the features: so is the nearest of
several centres, and the best pair of centres of two halves of the features.
"""

import importlib
from typing import Any, NamedTuple

import numpy as np

from byzjax._src import checks
from byzjax.data import _partition
from byzjax.data._partition import Partition


class Router(NamedTuple):
  """A linear router: path scores `z W + b`; the highest score wins."""

  weights: np.ndarray  # float64 [d, P]
  bias: np.ndarray  # float64 [P]


def path_scores(router: Router, features: np.ndarray) -> np.ndarray:
  """The score of every path for each document.

  Args:
    router: a `Router` of d features.
    features: real numbers `[N, d]`.

  Returns:
    float64 `[N, P]`.

  Raises:
    ValueError: if features is not a finite matrix with d columns.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> router = data.Router(np.array([[1., -1.]]), np.array([0., 3.]))
    >>> data.path_scores(router, np.array([[2.]]))
    array([[2., 1.]])
  """
  features = check_features('path_scores', features)
  if features.shape[1] != router.weights.shape[0]:
    raise ValueError(
      f'path_scores needs features [N, {router.weights.shape[0]}], got the'
      f' shape {list(features.shape)}'
    )
  return features @ router.weights + router.bias


def route(router: Router, features: np.ndarray) -> np.ndarray:
  """The best path of each document; ties go to the lowest index.

  Args:
    router: a `Router` of d features.
    features: real numbers `[N, d]`.

  Returns:
    int32 `[N]`, in `[0, P)`.

  Raises:
    ValueError: as for `path_scores`.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> router = data.Router(np.array([[1., -1.]]), np.array([0., 3.]))
    >>> data.route(router, np.array([[2.], [0.], [1.5]]))
    array([0, 1, 0], dtype=int32)
  """
  return np.argmax(path_scores(router, features), axis=1).astype(np.int32)


def top_paths(
  router: Router, features: np.ndarray, num_paths: int = 2
) -> np.ndarray:
  """The best k paths of each document, for overlapping training shards.

  Args:
    router: a `Router` of d features, to P paths.
    features: real numbers `[N, d]`.
    num_paths: k, a Python int from 1 to P.

  Returns:
    int32 `[N, k]`, the best path first; ties go to the lowest index.

  Raises:
    ValueError: as for `path_scores`, or if k is out of range.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> router = data.Router(np.array([[1., -1., 0.]]), np.zeros(3))
    >>> data.top_paths(router, np.array([[2.], [-1.]])).tolist()
    [[0, 2], [1, 2]]
  """
  checks.check_count('top_paths', 'num_paths', num_paths, 1)
  scores = path_scores(router, features)
  if num_paths > scores.shape[1]:
    raise ValueError(
      f'top_paths needs num_paths <= {scores.shape[1]}, the paths of the'
      f' router, got {num_paths}'
    )
  order = np.argsort(-scores, axis=1, kind='stable')
  return order[:, :num_paths].astype(np.int32)


def routed_shards(paths: np.ndarray, num_paths: int) -> Partition:
  """The shards of documents of all paths, from the path(s) of each document.

  Args:
    paths: int `[N]` from `route`, or `[N, k]` from `top_paths`, which gives
      overlapping shards; in `[0, P)`.
    num_paths: P, a Python int of at least 1.

  Returns:
    A `Partition` of P shards, in the original order of the documents; its
    `sizes` can be the `worker_weights` of `modular_round`.

  Raises:
    ValueError: if an entry is out of range, or a path has no document.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> data.routed_shards(np.array([1, 0, 1]), 2).sizes
    array([1, 2], dtype=int32)
  """
  name = 'routed_shards'
  checks.check_count(name, 'num_paths', num_paths, 1)
  paths = np.asarray(paths)
  if not np.issubdtype(paths.dtype, np.integer) or paths.ndim not in (1, 2):
    raise ValueError(
      f'{name} needs paths to be integers [N] or [N, k], got'
      f' {paths.dtype}{list(paths.shape)}'
    )
  paths = paths.reshape(paths.shape[0], -1)
  if paths.size and not 0 <= paths.min() <= paths.max() < num_paths:
    raise ValueError(
      f'{name} needs paths in [0, {num_paths}), got {paths.min()} to'
      f' {paths.max()}'
    )
  shards = [
    np.flatnonzero((paths == path).any(axis=1)) for path in range(num_paths)
  ]
  empty = [path for path, shard in enumerate(shards) if not shard.size]
  if empty:
    raise ValueError(
      f'{name} needs a document for every path, got none for {empty}'
    )
  return _partition.from_shards(name, shards)


def check_features(name: str, features: np.ndarray) -> np.ndarray:
  """The features in float64, or a ValueError."""
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or not features.size or not np.isfinite(features).all():
    raise ValueError(
      f'{name} needs features to be finite numbers [num_documents, d], got the'
      f' shape {list(features.shape)}'
      + ('' if np.isfinite(features).all() else ' with NaN or inf')
    )
  return features


def sklearn_module(name: str, module: str) -> Any:
  """A module of scikit-learn, which takes a while to import."""
  try:
    return importlib.import_module(f'sklearn.{module}')
  except ImportError as error:
    raise ValueError(
      f'{name} needs scikit-learn, which is not installed: '
      "pip install 'byzjax[data]'."
    ) from error
