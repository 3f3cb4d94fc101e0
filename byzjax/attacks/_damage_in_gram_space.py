"""The damage to rules that work on a Gram matrix: n x n numbers per trial.

Every vector of a scene is a combination of a few known ones, so one Gram matrix
of these is all that trials read, whatever the number of coordinates.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, grams, nonfinite, reductions
from byzjax.attacks import _damage


def is_possible(
  aggregator: base.Aggregator, scene: _damage.Scene, num_rounds: int
) -> bool:
  """Whether trials need no more than the Gram matrix of the scene."""
  one_round = _damage.is_one_round(scene, num_rounds)
  return aggregator.gram_rule is not None and one_round


class GramScene(NamedTuple):
  """A scene in which every vector is a combination of known ones, z.

  They are the n rows, the honest mean, the origin, and where all attackers
  send one row, that row minus the mean. `c + M (z - c)` are the messages for a
  matrix M, c the centre of the rule; of the last z, c is not subtracted.

  Attributes:
    inner: float[m, m], the Gram matrix of all z around c; m = n + 2 or n + 3.
    mask: bool[n], the rows that are usable.
    identity: float[n, m], the M of the rows as they are; without those that are
      not usable, and without the attackers' if they send one row.
  """

  inner: jax.Array
  mask: jax.Array
  identity: jax.Array


Objective = Callable[[jax.Array, jax.Array], jax.Array]


def center_of(aggregator: base.Aggregator, scene: _damage.Scene) -> jax.Array:
  """The centre that the Gram matrix of the scene is taken around: float[d]."""
  rule = aggregator.gram_rule
  if rule is None or rule.center is None:
    return scene.mean
  return rule.center(scene.state)


def of_rows(scene: _damage.Scene, center: jax.Array) -> GramScene:
  """The scene of rows that differ, and the z that it stands on."""
  rows = scene.draft
  vectors = vectors_of(scene)
  gram, _ = grams.gram_of(vectors, center, axis_name=scene.axis_name)
  n = rows.shape[0]
  mask = gram.mask[:n]
  identity = jnp.where(mask[:, None], jnp.eye(n, n + 2, dtype=rows.dtype), 0)
  return GramScene(gram.inner, mask, identity)


def vectors_of(scene: _damage.Scene) -> jax.Array:
  """The rows, the mean and the origin: float[n + 2, d]."""
  extra = jnp.stack([scene.mean, jnp.zeros_like(scene.mean)])
  return jnp.concatenate([scene.draft, extra])


def messages(
  gram: GramScene, scene: _damage.Scene, center: jax.Array, matrix: jax.Array
) -> jax.Array:
  """`c + M (z - c)`: float[n, d]; rows of M that are zero give NaN."""
  usable = jnp.concatenate([gram.mask, jnp.ones(2, bool)])
  return reductions.mix(matrix, vectors_of(scene), center, usable)


def of_one_row(scene: _damage.Scene, center: jax.Array) -> GramScene:
  """The scene of attackers who all send the same."""
  n = len(scene.rows)
  direction = scene.draft[0] - scene.mean
  norm = reductions.squared_norms(direction[None], axis_name=scene.axis_name)[0]
  usable = nonfinite.usable_norms(norm)
  direction = jnp.where(usable, direction, 0)
  extra = jnp.stack([scene.mean - center, -center, direction])
  inner = reductions.centered_gram(
    scene.rows,
    center,
    scene.is_honest,
    beside=extra,
    axis_name=scene.axis_name,
  )
  identity = jnp.eye(n, n + 3, dtype=inner.dtype)
  identity = jnp.where(scene.is_honest[:, None], identity, 0)
  mask = scene.is_honest | (scene.is_byzantine & usable)
  return GramScene(inner, mask, identity)


def matrix_of(
  gram: GramScene, scene: _damage.Scene, strength: jax.Array
) -> jax.Array:
  """The M of the messages at a strength: `mu + s (a - mu)` for attackers."""
  n = gram.mask.shape[0]
  mean = jnp.zeros_like(gram.identity[:1]).at[0, n].set(1)
  if scene.draft.shape[0] == 1:
    moved = mean.at[0, n + 2].set(strength)
  else:
    moved = mean + strength * (gram.identity - mean)
  moves = (scene.is_byzantine & gram.mask)[:, None]
  return jnp.where(moves, moved, gram.identity)


def products(gram: GramScene, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The inner products of messages and mean, and the norms of the messages."""
  n, m = matrix.shape
  mean = jnp.zeros((1, m), matrix.dtype).at[0, n].set(1)
  inner = quadratic(jnp.concatenate([matrix, mean]), gram.inner)
  from_origin = matrix - jnp.zeros_like(mean).at[0, n + 1].set(1)
  norms = jnp.diagonal(quadratic(from_origin, gram.inner))
  return inner, norms


def as_gram(gram: GramScene, inner: jax.Array, norms: jax.Array) -> base.Gram:
  """What the rule sees of messages: the arguments are those of `products`."""
  n = gram.mask.shape[0]
  usable = gram.mask & nonfinite.usable_norms(norms)
  both = usable[:, None] & usable[None]
  return base.Gram(
    jnp.where(both, inner[:n, :n], 0), jnp.where(usable, norms, 0), usable
  )


def objective(
  aggregator: base.Aggregator,
  scene: _damage.Scene,
  gram: GramScene,
) -> Objective:
  """`(inner, norms) -> float[]`: how far from the mean the aggregate is."""
  rule = aggregator.gram_rule
  assert rule is not None

  def distance(inner, norms):
    seen = as_gram(gram, inner, norms)
    info, _ = rule.weights(seen, scene.state, key=scene.key)
    assert info.weights is not None
    weights = jnp.where(seen.mask, info.weights, 0).astype(inner.dtype)
    toward = jnp.append(weights, -1)
    return reductions.sqrt(toward @ reductions.matmul(inner, toward))

  return distance


def trials(
  aggregator: base.Aggregator, scene: _damage.Scene, batch_size: int | None
) -> _damage.Trials:
  """How to search the strength of an attack on a Gram rule."""
  center = center_of(aggregator, scene)
  one_row = scene.draft.shape[0] == 1
  gram = of_one_row(scene, center) if one_row else of_rows(scene, center)

  damage = objective(aggregator, scene, gram)

  def trial(strength):
    return damage(*products(gram, matrix_of(gram, scene, strength)))

  return _damage.one_by_one(trial, aggregator, batch_size)


def quadratic(a: jax.Array, inner: jax.Array) -> jax.Array:
  """`A K A^T`."""
  return reductions.matmul(reductions.matmul(a, inner), a.T)
