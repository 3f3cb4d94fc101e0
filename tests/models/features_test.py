import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models


@pytest.mark.parametrize('name, width', [('cnn', 64), ('mlp', 32)])
def test_features_and_classifier_compose_to_the_model(name, width):
  graphdef, params = models.split(models.make(name, (8, 8, 1), 5, seed=0))
  features, classify = models.features_and_classifier(graphdef)
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  z = jax.jit(features)(params, x)
  assert z.shape == (3, width) and z.min() == 0 and z.max() > 0
  logits = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))(params, x)
  np.testing.assert_allclose(classify(params, z), logits, rtol=1e-5, atol=1e-6)


def test_the_classifier_of_each_model_is_one_dense_layer():
  widths = {'cnn': 64, 'dropout_cnn': 128, 'mlp': 32, 'resnet20': 64}
  for name, width in widths.items():
    model = nnx.eval_shape(
      lambda name=name: models.make(name, (8, 8, 1), 5, seed=0)
    )
    graphdef, params = models.split(model)
    features, classify = models.features_and_classifier(graphdef)
    x = jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32)
    z = jax.eval_shape(features, params, x)
    assert z.shape == (3, width)
    assert jax.eval_shape(classify, params, z).shape == (3, 5)
    kernels = str(jax.make_jaxpr(classify)(params, z)).count('dot_general')
    assert kernels == 1


def test_an_mlp_of_one_layer_has_its_inputs_as_features():
  mlp = models.MLP((6, 3), rngs=nnx.Rngs(0))
  features, _ = models.features_and_classifier(models.split(mlp)[0])
  x = jnp.arange(12.0).reshape(2, 3, 2)
  np.testing.assert_array_equal(
    features(models.split(mlp)[1], x), x.reshape(2, 6)
  )


def test_refuses_a_model_that_is_in_one_piece():
  graphdef, params = models.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
  features, classify = models.features_and_classifier(graphdef)
  with pytest.raises(ValueError, match='got Linear without features'):
    features(params, jnp.ones((1, 2)))
  with pytest.raises(ValueError, match='got Linear without classify'):
    classify(params, jnp.ones((1, 2)))


def test_classifier_weights_are_those_of_the_last_layer():
  for name in ('cnn', 'dropout_cnn', 'mlp', 'resnet20'):
    model = nnx.eval_shape(
      lambda name=name: models.make(name, (8, 8, 1), 5, seed=0)
    )
    graphdef, shapes = models.split(model)
    params = jax.tree.map(
      lambda x: np.random.default_rng(x.size).normal(size=x.shape), shapes
    )
    _, classify = models.features_and_classifier(graphdef)
    weights, bias = models.classifier_weights(graphdef)(params)
    z = np.random.default_rng(0).normal(size=(3, weights.shape[0]))
    np.testing.assert_allclose(
      classify(params, z), z @ weights + bias, rtol=1e-4, atol=1e-5
    )


def test_a_classifier_without_bias_has_none():
  mlp = models.MLP((6, 3), rngs=nnx.Rngs(0))
  mlp.layers[-1] = nnx.Linear(6, 3, use_bias=False, rngs=nnx.Rngs(0))
  graphdef, params = models.split(mlp)
  weights, bias = models.classifier_weights(graphdef)(params)
  assert weights.shape == (6, 3) and bias is None


def test_refuses_a_model_without_a_dense_last_layer():
  graphdef, params = models.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match='got Linear with None'):
    models.classifier_weights(graphdef)(params)
