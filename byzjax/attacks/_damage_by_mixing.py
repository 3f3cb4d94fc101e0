"""The damage to a coordinate rule behind mixing, in one pass over the messages.

The matrices that mix the messages come from one Gram matrix for all strengths.
Then the mixtures of all strengths are made block by block, where they stay in a
core's cache, and the rule is called on these.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, grams, recipes, reductions, sorting
from byzjax.attacks import _damage, _damage_in_gram_space

# Rules that look at one column at a time.
_BY_COLUMN = (
  'coordinate_median',
  'from_column',
  'mean_around_median',
  'phocas',
  'trimmed_mean',
)
# Units of rounding: by how many inner products may differ that are computed
# around another centre, or in another order; and by how many the messages that
# they are of.
_UNITS, _UNITS_OF_ROWS = 64, 4
# Pairs of opposite perturbations. Of two messages that are equally near, one
# comes first in the one and the other in the other.
_NUM_PAIRS = 3


class Stages(NamedTuple):
  """Linear pre-aggregators, and a rule for every column behind them."""

  mixers: tuple[base.PreAggregator, ...]
  rule: base.Aggregator


def stages_of(
  aggregator: base.Aggregator, scene: _damage.Scene
) -> Stages | None:
  """The stages of such a rule, under an attack of one row; or None."""
  is_one_row = scene.draft.shape[0] == 1
  if not is_one_row or len(scene.rows) > sorting.MAX_NETWORK:
    return None
  if recipes.factory_name(aggregator) != 'pre_aggregate':
    return None
  *mixers, rule = (aggregator.config or {})['stages']
  if recipes.factory_name(rule) not in _BY_COLUMN or not mixers:
    return None
  if not all(mixer.matrix for mixer in mixers):
    return None
  return Stages(tuple(mixers), rule)


def trials(stages: Stages, scene: _damage.Scene) -> _damage.Trials:
  """How to search the strength of an attack on such a rule."""
  gram = _damage_in_gram_space.of_one_row(scene, scene.mean)
  *mixer_keys, rule_key = _keys(scene.key, len(scene.state))

  # A second stage could break ties of its own, which this does not see.
  smooth = _damage.is_continuous(stages.rule) and len(stages.mixers) == 1

  def mixture(strength, noise):
    """`(float[m, n + 3], bool[m])`: mixed messages, and which there are."""
    matrix = _damage_in_gram_space.matrix_of(gram, scene, strength)
    inner, norms = _damage_in_gram_space.products(gram, matrix)
    seen = _damage_in_gram_space.as_gram(gram, inner, norms)
    if smooth:
      seen = _perturbed(seen, noise)
    product = jnp.where(seen.mask[:, None], matrix, 0)
    for mixer, state, key in zip(stages.mixers, scene.state, mixer_keys):
      assert mixer.matrix is not None
      mixing, _ = mixer.matrix(seen, state, key=key)
      seen = grams.mix_gram(seen, mixing)
      product = reductions.matmul(mixing.astype(product.dtype), product)
    return product, seen.mask

  def trials(grid):
    noises = _noises(len(scene.rows), scene.rows.dtype, _NUM_PAIRS * smooth)
    mixed, exists = jax.vmap(
      lambda noise: jax.vmap(lambda strength: mixture(strength, noise))(grid)
    )(noises)
    # Which of several equal messages is a neighbour does not matter.
    near = jnp.abs(mixed - mixed[:1]) <= 1e-5 * jnp.abs(mixed[:1]).max()
    is_sure = jnp.all(near, (0, 2, 3)) & jnp.all(exists == exists[:1], (0, 2))
    usable = jnp.any(scene.is_byzantine & gram.mask)
    draft = jnp.where(usable, scene.draft, scene.mean[None])
    safe = scene._replace(draft=draft)
    values = _distances(stages.rule, safe, rule_key, mixed[0], exists[0])
    return values, is_sure & smooth

  return trials


def _noises(n, dtype, num_pairs):
  """None, and then symmetric ones in opposite pairs: float[1 + 2 k, n, n]."""
  # By NumPy: compiling a generator takes as long as all the rest here.
  noise = np.random.default_rng(0).uniform(-1, 1, (num_pairs, n, n))
  noise = (noise + np.swapaxes(noise, 1, 2)) / 2
  noises = np.concatenate([np.zeros((1, n, n)), noise, -noise])
  return jnp.asarray(noises, dtype)


def _perturbed(gram, noise):
  """The Gram matrix as the rule, or a trial, might round it.

  Each of them rounds around its own centre: the message of median norm, and the
  mean, around which this matrix is.
  """
  eps = jnp.finfo(gram.inner.dtype).eps
  lengths = reductions.sqrt(gram.squared_norms)
  order = jnp.where(gram.mask, lengths, jnp.inf)
  ranks = (order[None] < order[:, None]).sum(axis=1)
  # Any of several equal lengths, and of no others.
  middle = jnp.argmax(
    jnp.where(ranks <= jnp.maximum(gram.mask.sum() - 1, 0) // 2, ranks, -1)
  )
  squared = jnp.diagonal(gram.inner)
  around_row = squared - 2 * gram.inner[middle] + squared[middle]
  radii = reductions.sqrt(jnp.maximum(squared, around_row))
  radii = jnp.where(gram.mask, radii, 0)
  scale = _UNITS * radii[:, None] * radii[None]
  of_rows = lengths[:, None] * radii[None]
  scale += _UNITS_OF_ROWS * (of_rows + of_rows.T)
  return gram._replace(inner=gram.inner + eps * noise * scale)


def _keys(key, count):
  # As `pre_aggregate` splits it.
  return [None] * count if key is None else jax.random.split(key, count)


def _distances(rule, scene, key, mixtures, exists):
  """`|rule(M x) - mu|` for mixtures float[k, m, n + 3]: float[k]."""
  k, m, _ = mixtures.shape
  n = len(scene.rows)
  # The mean is the centre, and the origin is in no mixture. That the product
  # adds the mean, and makes a NaN of what is missing, leaves the rule a plain
  # matrix to read: in its kernel both would cost more than all the rest.
  ones = jnp.ones((k, m, 1), mixtures.dtype)
  mixtures = [mixtures[..., :n], mixtures[..., n + 2 :], ones]
  mixtures = jnp.where(exists[..., None], jnp.concatenate(mixtures, 2), jnp.nan)
  mixtures = jnp.swapaxes(mixtures, 0, 1).reshape(m * k, n + 2)

  def block(take, is_new):
    mean = take(scene.mean)[None]
    honest = jnp.where(scene.is_honest[:, None], take(scene.rows) - mean, 0)
    moved = jnp.concatenate([honest, take(scene.draft) - mean, mean])
    mixed = reductions.matmul(mixtures, moved).reshape(m, -1)
    aggregate, _ = rule.update(mixed, scene.state[-1], key=key)
    y = jnp.where(is_new[None], aggregate.reshape(k, -1) - mean, 0)
    return jnp.einsum('kd,kd->k', y, y, precision=jax.lax.Precision.HIGHEST)

  return jnp.sqrt(_damage.sum_over_blocks(block, scene, m * k))
