"""The test oracle of the rules in `trust_rows.py`.

In the manner of `reference.py`: NumPy float64, loops over workers, nothing from
byzjax, each function its formula.
"""

import numpy as np

from tests import reference
from tests.reference import norm


def faba(x, f):
  """The mean, after the row farthest from the mean of those left goes, f times.

  Of tied rows the lowest index. Xia, Tao, Hao, Li, 2019, IJCAI.
  """
  left = [np.asarray(row, np.float64) for row in x]
  for _ in range(f):
    mean = reference.mean(np.array(left))
    distances = [norm(row - mean) for row in left]
    left.pop(distances.index(max(distances)))
  return reference.mean(np.array(left))


def fl_trust(x, trusted, weights=None):
  """`sum_i t_i |g| / |x_i| x_i / sum_i t_i`, `t_i = max(cos(x_i, g), 0)`.

  Cao, Fang, Liu, Gong, 2021, arXiv:2012.13995.
  """
  total, result = 0.0, np.zeros(len(trusted))
  for i, row in enumerate(np.asarray(x, np.float64)):
    product = norm(row) * norm(trusted)
    if product == 0:
      continue
    trust = max(float(row @ trusted) / product, 0.0)
    trust *= 1.0 if weights is None else weights[i]
    total += trust
    result = result + trust * norm(trusted) / norm(row) * row
  return result / total if total > 0 else np.zeros(len(trusted))


def sequential_clipping(x, center, radius, buckets, clip_means=False):
  """`v <- v + (1/|B|) sum_{i in B} clip(x_i - v)`, bucket after bucket.

  Or `clip` of the mean. Ozfatura, Ozfatura, Kupcu, Gunduz, 2022,
  arXiv:2208.09894.
  """

  def clip(vector):
    length = norm(vector)
    return vector if length <= radius else radius / length * vector

  v = np.asarray(center, np.float64)
  for bucket in buckets:
    apart = np.asarray(x, np.float64)[bucket] - v
    if clip_means:
      v = v + clip(reference.mean(apart))
    else:
      v = v + reference.mean(np.array([clip(row) for row in apart]))
  return v


def gas(x, f, pieces, rule):
  """The mean of the n - f rows of least `sum_q |x_i^q - rule(x^q)|`.

  Ties go to the lowest index. Liu, Chen, Lyu, Wu, Wu, Chen, 2023,
  arXiv:2302.06079.
  """
  x = np.asarray(x, np.float64)
  scores = np.zeros(len(x))
  for piece in pieces:
    part = x[:, list(piece)]
    answer = rule(part)
    scores += [norm(row - answer) for row in part]
  return reference.mean(x[np.argsort(scores, kind='stable')[: len(x) - f]])
