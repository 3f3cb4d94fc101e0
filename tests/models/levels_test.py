"""Levels, paths and documents of a transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models

GRAPHDEF, PARAMS = models.split(
  models.Transformer(
    7, num_layers=3, width=8, num_heads=2, length=9, rngs=nnx.Rngs(0)
  )
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (4, 10)))


def same(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize('num_levels', [1, 2, 3])
def test_levels_are_joined_to_what_was_split(num_levels):
  levels = models.split_levels(PARAMS, num_levels)
  assert len(levels) == num_levels
  same(models.join_levels(levels), PARAMS)
  sizes = [sum(x.size for x in jax.tree.leaves(level)) for level in levels]
  assert sum(sizes) == sum(x.size for x in jax.tree.leaves(PARAMS))


def test_every_path_through_equal_modules_is_the_model():
  levels = models.split_levels(PARAMS, 2)
  modular = models.repeat_modules(levels, (2, 3))
  for path in models.grid_paths((2, 3)):
    same(models.join_levels(models.select_path(modular, path)), PARAMS)


def test_a_path_has_the_modules_that_it_names():
  modular = ({'a': jnp.arange(6.0).reshape(2, 3)}, jnp.array([7.0, 8.0, 9.0]))
  first, second = models.select_path(modular, np.array([1, 2]))
  np.testing.assert_array_equal(first['a'], [3, 4, 5])
  assert second == 9
  paths = models.grid_paths((2, 3))
  assert paths.shape == (6, 2)
  assert len(set(map(tuple, paths.tolist()))) == 6
  for level, count in enumerate((2, 3)):
    np.testing.assert_array_equal(
      np.bincount(paths[:, level]), [6 // count] * count
    )
  everything = models.select_path(modular, paths)
  assert everything[0]['a'].shape == (6, 3)
  for i, path in enumerate(paths):
    same(
      jax.tree.map(lambda x, i=i: x[i], everything),
      models.select_path(modular, path),
    )


def test_losses_of_documents_average_to_the_loss():
  losses = jax.jit(models.document_losses(GRAPHDEF, num_prefix=3))
  found = losses(PARAMS, TOKENS)
  assert found.shape == (4,)
  assert len(set(found.tolist())) == 4
  others = losses(PARAMS, TOKENS.at[1:].set(0))
  np.testing.assert_allclose(found[0], others[0], rtol=1e-5)
  mean = jax.jit(models.next_token_loss(GRAPHDEF, num_prefix=3))(PARAMS, TOKENS)
  np.testing.assert_allclose(mean, found.mean(), rtol=1e-6)


def test_features_are_of_the_prefix_alone():
  features = jax.jit(models.prefix_features(GRAPHDEF, num_prefix=4))
  z = features(PARAMS, TOKENS)
  assert z.shape == (4, 8)
  np.testing.assert_array_equal(z, features(PARAMS, TOKENS.at[:, 4:].set(0)))
  other = features(PARAMS, TOKENS.at[:, 3].set((TOKENS[:, 3] + 1) % 7))
  assert np.all(np.abs(other - z).max(axis=1) > 1e-6)
  hidden_states = jax.jit(models.features_and_classifier(GRAPHDEF)[0])
  hidden = hidden_states(PARAMS, TOKENS[:, :9])
  np.testing.assert_allclose(z, hidden[:, :4].mean(axis=1), 1e-5, 1e-6)
  whole = jax.jit(models.prefix_features(GRAPHDEF))(PARAMS, TOKENS)
  np.testing.assert_allclose(whole, hidden.mean(axis=1), 1e-5, 1e-6)


def test_the_best_of_each_path_is_kept():
  history = np.array([[3.0, 1.0, 2.0], [2.0, 4.0, np.nan], [2.0, 0.5, 1.0]])
  params = np.arange(9.0).reshape(3, 3)
  state = models.best_paths({'w': jnp.full((3, 1), -1.0)})
  for row, losses in zip(params, history):
    path_params = {'w': jnp.asarray(row)[:, None]}
    state = jax.jit(models.keep_best)(state, path_params, jnp.asarray(losses))
  np.testing.assert_array_equal(state.losses, [2.0, 0.5, 1.0])
  # Path 0 has its best in the second round, and the tie keeps it.
  np.testing.assert_array_equal(state.params['w'][:, 0], [3.0, 7.0, 8.0])


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: models.split_levels(PARAMS, 4), 'num_levels <= num_layers, got 4'),
    (lambda: models.split_levels({'a': 1}, 1), 'those of a Transformer'),
    (lambda: models.grid_paths(()), 'at least one level'),
    (lambda: models.grid_paths((2, 0)), 'num_modules to be a Python int'),
    (lambda: models.repeat_modules([1.0], (1, 2)), 'got 2 for 1'),
    (
      lambda: models.prefix_features(GRAPHDEF, num_prefix=0),
      'num_prefix to be a Python int',
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=f'needs .*{message}'):
    call()
