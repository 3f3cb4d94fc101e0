"""Rules of the wider field, without a cluster analysis: one row each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from byzjax.aggregators import _sequential_centered_clipping as scc
from tests import claims, reference, reference_trust


def faba_ball(honest, v0, f):
  """`(3 + q) / (1 - q)` honest radii R, with q = f / (n - 2f + 1).

  With b bad and a honest messages left, the mean m and the mean h of the honest
  ones differ by `|m - h| <= (b / a) D`, D the largest distance to m. If an
  honest message goes, D is its own distance, at most `2 R + (b / a) D`, and `b
  / a <= q` as fewer than f have gone before. So `D <= 2 R / (1 - q)` when the
  last honest one goes. All that is averaged in the end is within D of that m,
  which is within q D of h, and h within R of the honest mean. If no honest
  message goes, all f others do.
  """
  del v0
  center = honest.mean(axis=0)
  q = f / (len(honest) - f + 1)
  radius = np.linalg.norm(honest - center, axis=1).max()
  return center, (3 + q) / (1 - q) * radius


def trusting(rule: byzjax.Aggregator) -> byzjax.Aggregator:
  """The rule with the trusted gradient as its state."""

  def inspect(messages, state, params=None, **extra):
    aggregate, _, info = rule.inspect(
      messages, (), params, trusted=state, **extra
    )
    return aggregate, state, info

  def init(params):
    return jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), params)

  update = dataclasses.replace(rule.update, function=inspect, recipe=None)
  return byzjax.Aggregator(init, update)


def _sequential(clip_means):
  def oracle(x, v0, f, key):
    del f
    # Sorted by cosine, as v0 is not zero.
    order = np.argsort([row @ v0 / np.linalg.norm(row) for row in x])
    buckets = np.zeros(len(x), int)
    buckets[order] = scc.draw_buckets(key, len(x), 3)[1]
    groups = [np.flatnonzero(buckets == b) for b in range(-(-len(x) // 3))]
    return reference_trust.sequential_clipping(x, v0, 2.0, groups, clip_means)

  return claims.Rule(
    'sequential_centered_clipping' + '_of_means' * clip_means,
    lambda f, unit: byzjax.sequential_centered_clipping(
      radius=2.0 * unit, clip_means=clip_means
    ),
    oracle,
    5,
    lambda honest, v0, f: (v0, 2.0 * -(-(len(honest) + f) // 3)),
    start=lambda state, v0: byzjax.CenteredClippingState(v0),
    translation=False,  # cosines
    permutation=False,  # in distribution only
    remembers=True,
  )


def _gas(size, rule):
  def oracle(x, v0, f, key):
    del v0
    order = jax.random.permutation(jax.random.split(key)[0], x.shape[1])
    order = np.asarray(order)
    pieces = [order[i : i + size] for i in range(0, x.shape[1], size)]
    return reference_trust.gas(x, f, pieces, lambda piece: rule(piece, f))

  return oracle


RULES = [
  claims.Rule(
    'gas_multi_krum',
    lambda f, unit: byzjax.gas(
      # Four pieces of ceil(12 / 5) are all.
      byzjax.multi_krum(num_byzantine=f),
      num_byzantine=f,
      num_pieces=5,
    ),
    _gas(3, reference.multi_krum),
    4,
    None,
    rotation=False,
  ),
  claims.Rule(
    'gas_coordinate_median',
    lambda f, unit: byzjax.gas(
      byzjax.coordinate_median(), num_byzantine=f, num_pieces=3
    ),
    _gas(4, lambda piece, f: reference.coordinate_median(piece)),
    5,
    None,
    rotation=False,
  ),
  *(_sequential(clip_means) for clip_means in (False, True)),
  claims.Rule(
    'faba',
    lambda f, unit: byzjax.faba(num_byzantine=f),
    lambda x, v0, f, key: reference_trust.faba(x, f),
    3,
    faba_ball,
  ),
  claims.Rule(
    'fl_trust',
    lambda f, unit: trusting(byzjax.fl_trust()),
    lambda x, v0, f, key: reference_trust.fl_trust(x, v0),
    5,
    # Never longer than the trusted gradient.
    lambda honest, v0, f: (np.zeros(len(v0)), np.linalg.norm(v0)),
    start=lambda state, v0: v0,
    translation=False,
  ),
]
