"""A discriminative router, trained on the scores of paths."""

import numpy as np

from byzjax._src import checks
from byzjax.data import _routing
from byzjax.data._routing import Router

# Finite, so that no sum of it with anything is NaN.
_NEVER = -1e30
_CALIBRATION_SWEEPS = 200


def discriminative_router(
  features: np.ndarray,
  scores: np.ndarray,
  *,
  regularization: float = 1.0,
  calibrate: bool = True,
) -> Router:
  r"""Trains a router to the path that will score best on a document.

  .. math::
    y_i = \arg\max_p S_{ip}, \qquad
    W, b = \text{logistic regression of } y \text{ on } z, \qquad
    b' : \ |\{i : \arg\max_p (z_i W + b')_p = p\}| = |\{i : y_i = p\}|

  Without the last step, `calibrate`, paths that are rarely the best are
  predicted even more rarely, and may disappear. The scores come from the paths
  themselves: a Byzantine path that does well on these documents attracts
  others.

  Args:
    features: z, real numbers `[N, d]`, of documents on which no path is
      trained.
    scores: S, real numbers `[N, P]`: the log-likelihood of document i under
      path p. Ties go to the lowest path; NaN is the worst score.
    regularization: strength of the squared penalty on W, > 0; 1 / C of
      scikit-learn. It applies to features divided by their standard deviations.
    calibrate: whether to fit the bias to the frequencies of the labels.

  Returns:
    A `Router` to P paths; a path that is never the best is never chosen.

  Raises:
    ValueError: if features is not a finite matrix, scores has another number of
      rows, the regularization is not positive, or scikit-learn is not
      installed.

  References:
    Douillard, Feng, Rusu, Kuncoro, Donchev, Chhaparia, Gog, Ranzato, Shen,
    Szlam, 2024, arXiv:2403.10616.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> z = np.array([[0., 1.], [0., 2.], [9., 9.], [8., 9.]])
    >>> scores = np.array([[-3., -4.], [-3., -5.], [-6., -1.], [-6., -2.]])
    >>> data.route(data.discriminative_router(z, scores), z)
    array([0, 0, 1, 1], dtype=int32)
  """
  name = 'discriminative_router'
  features = _routing.check_features(name, features)
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or scores.shape[0] != features.shape[0]:
    raise ValueError(
      f'{name} needs scores [{features.shape[0]}, num_paths], a row for each'
      f' document, got the shape {list(scores.shape)}'
    )
  checks.check_flag(name, 'calibrate', calibrate)
  checks.check_range(name, 'regularization', regularization, 0, exclusive=True)
  labels = np.argmax(np.where(np.isnan(scores), -np.inf, scores), axis=1)
  best, counts = np.unique(labels, return_counts=True)
  num_features, num_paths = features.shape[1], scores.shape[1]
  weights = np.zeros((num_features, num_paths))
  bias = np.full(num_paths, _NEVER)
  bias[best] = 0.0
  if best.size == 1:
    return Router(weights, bias)
  linear_model = _routing.sklearn_module(name, 'linear_model')
  center, deviation = features.mean(axis=0), features.std(axis=0)
  deviation = np.where(deviation > 0, deviation, 1.0)
  model = linear_model.LogisticRegression(
    C=1.0 / regularization, max_iter=2000
  ).fit((features - center) / deviation, labels)
  coefficients, intercepts = model.coef_, model.intercept_
  if best.size == 2:  # scikit-learn gives the difference of two classes.
    coefficients = np.concatenate([-coefficients, coefficients]) / 2
    intercepts = np.concatenate([-intercepts, intercepts]) / 2
  weights[:, best] = (coefficients / deviation).T
  bias[best] = intercepts - center @ weights[:, best]
  if calibrate:
    bias[best] += _calibration(features @ weights[:, best] + bias[best], counts)
  return Router(weights, bias)


def _calibration(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """What to add to the scores `[N, P]` so that path p wins `counts[p]` times.

  One path at a time gets the bias with which it wins exactly that often, given
  those of the others. The best of all that were met is returned.
  """
  num_paths = counts.size
  bias = np.zeros(num_paths)

  def misses(bias):
    won = np.argmax(scores + bias, axis=1)
    return np.abs(np.bincount(won, minlength=num_paths) - counts).sum()

  best, least = bias.copy(), misses(bias)
  for sweep in range(_CALIBRATION_SWEEPS):
    if least == 0:
      break
    path = sweep % num_paths
    others = np.delete(scores + bias, path, axis=1).max(axis=1)
    needed = np.sort(others - scores[:, path])  # to win each document
    wins = counts[path]
    bias[path] = (needed[wins - 1] + needed[wins]) / 2
    if (missed := misses(bias)) < least:
      best, least = bias.copy(), missed
  return best
