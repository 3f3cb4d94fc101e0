import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models

GRAPHDEF, PARAMS = models.split(models.MLP((4, 5, 3, 2), rngs=nnx.Rngs(0)))


def test_layers_are_the_network_and_give_its_parameters_back():
  layers = models.mlp_layers(PARAMS)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
  hidden = x
  for kernel, bias in layers[:-1]:
    hidden = jax.nn.relu(hidden @ kernel + bias[None])
  logits = nnx.merge(GRAPHDEF, PARAMS)(x)
  expected = hidden @ layers[-1][0] + layers[-1][1][None]
  np.testing.assert_allclose(logits, expected, rtol=1e-5)
  again = models.mlp_params(layers)
  assert jax.tree.structure(again) == jax.tree.structure(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, again, PARAMS)


def test_more_than_ten_layers_stay_in_order():
  layers = [(np.ones((i, i + 1)), np.ones(i + 1)) for i in range(2, 15)]
  found = models.mlp_layers(models.mlp_params(layers))
  assert [bias.shape[0] for _, bias in found] == [*range(3, 16)]


def test_other_parameters_are_refused():
  for path in [('layers', 0, 'scale'), ('head', 'kernel')]:
    params = nnx.from_flat_state([(path, nnx.Param(jnp.ones(2)))])
    with pytest.raises(ValueError, match='mlp_layers needs .* of an MLP'):
      models.mlp_layers(params)
  with pytest.raises(ValueError, match='got dict'):
    models.mlp_layers({'layers': {}})
