"""The damage to a coordinate rule behind mixing, in one pass over the messages.

The matrices that mix the messages come from one Gram matrix for all strengths.
Then the mixtures of all strengths are made block by block, where they stay in a
core's cache, and the rule is called on these.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, recipes, reductions, rules
from byzjax.attacks import _damage, _damage_in_gram_space

# Rules that look at one column at a time; what they do changes smoothly with
# what they are given for the first two.
_CONTINUOUS = ('trimmed_mean', 'coordinate_median')
_BY_COLUMN = (*_CONTINUOUS, 'mean_around_median', 'phocas', 'from_column')


class Stages(NamedTuple):
  """Linear pre-aggregators, and a rule for every column behind them."""

  mixers: tuple[base.PreAggregator, ...]
  rule: base.Aggregator
  is_continuous: bool


def stages_of(
  aggregator: base.Aggregator, scene: _damage.Scene
) -> Stages | None:
  """The stages of such a rule, under an attack of one row; or None."""
  if scene.draft.shape[0] > 1 or _name(aggregator) != 'pre_aggregate':
    return None
  *mixers, rule = aggregator.config['stages']
  if _name(rule) not in _BY_COLUMN or not mixers:
    return None
  if not all(mixer.matrix for mixer in mixers):
    return None
  return Stages(tuple(mixers), rule, _name(rule) in _CONTINUOUS)


def _name(aggregator):
  recipe = recipes.recipe_of(aggregator)
  return None if recipe is None else recipe.factory.__name__


def trials(stages: Stages, scene: _damage.Scene) -> _damage.Trials:
  """How to search the strength of an attack on such a rule."""
  gram = _damage_in_gram_space.of_one_row(scene, scene.mean)
  *mixer_keys, rule_key = _keys(scene.key, len(scene.state))

  def mixture(strength, noise=None):
    """`(float[m, n + 3], bool[m])`: mixed messages, and which there are."""
    matrix = _damage_in_gram_space.matrix_of(gram, scene, strength)
    inner, norms = _damage_in_gram_space.grams(gram, matrix)
    seen = _damage_in_gram_space.as_gram(gram, inner, norms)
    if noise is not None:
      seen = _damage_in_gram_space.perturbed(seen, noise, is_centered=False)
    product = jnp.where(seen.mask[:, None], matrix, 0)
    for mixer, state, key in zip(stages.mixers, scene.state, mixer_keys):
      assert mixer.matrix is not None
      mixing, _ = mixer.matrix(seen, state, key=key)
      seen = rules.mix_gram(seen, mixing)
      product = reductions.matmul(mixing.astype(product.dtype), product)
    return product, seen.mask

  def evaluate(grid):
    return _distances(stages.rule, scene, rule_key, *jax.vmap(mixture)(grid))

  def is_sure(strength, other, promised):
    del promised
    draws = _damage_in_gram_space.noises(len(scene.rows), gram.inner.dtype)
    pair = jnp.stack([strength, other])
    expected, exists = jax.vmap(mixture)(pair)
    mixed, are = jax.vmap(lambda e: jax.vmap(lambda s: mixture(s, e))(pair))(
      draws
    )
    # Which of several equal messages is a neighbour does not matter.
    same = jnp.abs(mixed - expected[None]) <= 1e-5 * jnp.abs(expected).max()
    return jnp.all(same) & jnp.all(are == exists[None])

  return _damage.Trials(evaluate, is_sure if stages.is_continuous else None)


def _keys(key, count):
  # As `pre_aggregate` splits it.
  return [None] * count if key is None else jax.random.split(key, count)


def _distances(rule, scene, key, mixtures, exists):
  """`|rule(M x) - mu|` for mixtures float[k, m, n + 3]: float[k]."""
  k, m, _ = mixtures.shape
  n = len(scene.rows)
  # The mean is the centre, and the origin is in no mixture.
  mixtures = jnp.concatenate([mixtures[..., :n], mixtures[..., n + 2 :]], -1)
  mixtures = jnp.swapaxes(mixtures, 0, 1).reshape(m * k, n + 1)
  exists = exists.T.reshape(m * k, 1)

  def block(take, is_new):
    mean = take(scene.mean)[None]
    honest = jnp.where(scene.is_honest[:, None], take(scene.rows) - mean, 0)
    moved = jnp.concatenate([honest, take(scene.draft) - mean])
    mixed = reductions.matmul(mixtures, moved) + mean
    mixed = jnp.where(exists, mixed, jnp.nan).reshape(m, -1)
    aggregate, _ = rule.update(mixed, scene.state[-1], key=key)
    y = jnp.where(is_new[None], aggregate.reshape(k, -1) - mean, 0)
    return jnp.einsum('kd,kd->k', y, y, precision=jax.lax.Precision.HIGHEST)

  total = _damage.sum_over_blocks(block, scene, m * k)
  return jnp.sqrt(total)
