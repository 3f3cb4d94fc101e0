"""Routers of documents by k-means, before any path is trained."""

import itertools
from collections.abc import Sequence

import numpy as np

from byzjax._src import checks
from byzjax.data import _routing
from byzjax.data._routing import Router


def cluster_documents(
  features: np.ndarray, num_paths: int, *, seed: int = 0
) -> Router:
  r"""A router to the nearest of P centres, found by k-means.

  .. math::
    \mathrm{path}(z) = \arg\min_p |z - c_p|^2
      = \arg\max_p \, (2 z \cdot c_p - |c_p|^2)

  Args:
    features: z, real numbers `[N, d]`, such as from `models.prefix_features`.
    num_paths: P, a Python int from 1 to N.
    seed: the seed of the initial centres.

  Returns:
    A `Router` to P paths.

  Raises:
    ValueError: if features is not a finite matrix, P is out of range, or
      scikit-learn is not installed.

  References:
    Gururangan, Li, Lewis, Shi, Althoff, Smith, Zettlemoyer, 2023,
    arXiv:2303.14177.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> z = np.array([[0., 1.], [0., 2.], [9., 9.]])
    >>> paths = data.route(data.cluster_documents(z, 2), z)
    >>> bool(paths[0] == paths[1] != paths[2])
    True
  """
  name = 'cluster_documents'
  features = _routing.check_features(name, features)
  checks.check_count(name, 'num_paths', num_paths, 1)
  checks.check_count(name, 'seed', seed)
  return _nearest(_centers(name, features, num_paths, seed))


def product_cluster_documents(
  features: np.ndarray, num_modules: Sequence[int], *, seed: int = 0
) -> Router:
  r"""A router by k-means on each part of the features, one module per level.

  .. math::
    \mathrm{path}(z)_l = \arg\min_e |z_{[l]} - c_{l e}|^2, \qquad
    l = 1 \dots L

  for z cut into L parts of (nearly) equal size; the tuple of modules is one of
  the rows of `models.grid_paths(num_modules)`.

  Args:
    features: z, real numbers `[N, d]`, with `d >= L`.
    num_modules: `(K_1, ..., K_L)`, each from 1 to N.
    seed: the seed of the initial centres.

  Returns:
    A `Router` to `K_1 ... K_L` paths.

  Raises:
    ValueError: if features is not a finite matrix, a number is out of range, or
      scikit-learn is not installed.

  References:
    Douillard, Feng, Rusu, Kuncoro, Donchev, Chhaparia, Gog, Ranzato, Shen,
    Szlam, 2024, arXiv:2403.10616.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> z = np.array([[0., 0.], [0., 9.], [9., 0.], [9., 9.]])
    >>> paths = data.route(data.product_cluster_documents(z, (2, 2)), z)
    >>> sorted(paths.tolist())
    [0, 1, 2, 3]
  """
  name = 'product_cluster_documents'
  features = _routing.check_features(name, features)
  checks.check_count(name, 'seed', seed)
  checks.check_sequence(name, 'num_modules', num_modules)
  if not num_modules or len(num_modules) > features.shape[1]:
    raise ValueError(
      f'{name} needs num_modules to have 1 to {features.shape[1]} entries, at'
      f' most one per feature, got {tuple(num_modules)}'
    )
  parts = np.array_split(features, len(num_modules), axis=1)
  routers = []
  for part, count in zip(parts, num_modules):
    checks.check_count(name, 'num_modules', count, 1)
    routers.append(_nearest(_centers(name, part, count, seed)))
  # The sum of the levels' scores is highest where each of them is.
  columns = list(itertools.product(*(range(count) for count in num_modules)))
  return Router(
    np.stack(
      [
        np.concatenate([r.weights[:, e] for r, e in zip(routers, path)])
        for path in columns
      ],
      axis=1,
    ),
    np.array(
      [sum(r.bias[e] for r, e in zip(routers, path)) for path in columns]
    ),
  )


def _centers(
  name: str, features: np.ndarray, count: int, seed: int
) -> np.ndarray:
  """The centres of k-means, `[count, d]`."""
  if count > features.shape[0]:
    raise ValueError(
      f'{name} needs as many documents as clusters, got {features.shape[0]} for'
      f' {count}'
    )
  cluster = _routing.sklearn_module(name, 'cluster')
  return (
    cluster.KMeans(count, n_init=10, random_state=seed)
    .fit(features)
    .cluster_centers_
  )


def _nearest(centers: np.ndarray) -> Router:
  return Router(2.0 * centers.T, -np.square(centers).sum(axis=1))
