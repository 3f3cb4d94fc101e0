"""Models as rows of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import byzjax
from byzjax import models

MODELS = {
  'mlp': lambda: models.MLP((64, 7, 6, 5), rngs=nnx.Rngs(0)),
  'one layer': lambda: models.MLP((64, 5), rngs=nnx.Rngs(0)),
  'cnn': lambda: models.CNN(
    (8, 8, 1), 5, activation=jnp.tanh, rngs=nnx.Rngs(0)
  ),
  'rnn': lambda: models.RNN((8, 7, 6, 5), rngs=nnx.Rngs(0)),
}


def run(stages, params, h):
  """The stages one after another; recurrent ones layer by layer."""
  for stage in stages:
    if isinstance(stage, byzjax.RecurrentStage):
      state, states = stage.init(params, h.shape[0]), []
      for t in range(h.shape[1]):
        state = stage.apply(params, h[:, t], state)
        states.append(state)
      last, h = state, jnp.stack(states, axis=1)
    else:
      y = stage.apply(params, last if h.ndim == 3 else h)
      h = y if stage.after is None else stage.after(y)
  return h


@pytest.mark.parametrize('name', MODELS)
def test_stages_compose_to_the_model(name):
  graphdef, shapes = models.split(nnx.eval_shape(MODELS[name]))
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: np.float32(random.normal(size=p.shape) / 4), shapes
  )
  stages = models.stages(graphdef)
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  sequence = x[..., 0] if name == 'rnn' else x
  logits = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))(params, x)
  found = jax.jit(lambda p, x: run(stages, p, x))(params, sequence)
  np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_belongs_to_one_stage(name):
  graphdef, params = models.split(nnx.eval_shape(MODELS[name]))
  leaves, treedef = jax.tree.flatten(params)
  numbers = jax.tree.unflatten(treedef, range(len(leaves)))
  stages = models.stages(graphdef)
  owned = [jax.tree.leaves(stage.owns(numbers)) for stage in stages]
  assert sorted(sum(owned, [])) == list(range(len(leaves)))
  assert all(owned)


def test_refuses_models_that_are_no_row_of_layers():
  model = nnx.eval_shape(lambda: models.make('resnet20', (8, 8, 1), 5, seed=0))
  with pytest.raises(ValueError, match='an MLP, a CNN or an RNN, got ResNet20'):
    models.stages(models.split(model)[0])


@pytest.mark.parametrize('name', ['mlp', 'cnn'])
def test_the_activation_is_the_one_asked_for(name):
  make = {
    'mlp': lambda f: models.MLP((64, 7, 5), activation=f, rngs=nnx.Rngs(0)),
    'cnn': lambda f: models.CNN((8, 8, 1), 5, activation=f, rngs=nnx.Rngs(0)),
  }[name]
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  seen = []

  def record(z):
    seen.append(z.shape)
    return jnp.tanh(z)

  model = nnx.eval_shape(lambda: make(record))
  z = jax.eval_shape(lambda m: m.features(x), model)
  # The batch is the last axis between convolutions.
  sizes = {'mlp': [(3, 7)], 'cnn': [(16, 8, 8, 3), (32, 4, 4, 3), (3, 64)]}
  assert seen == sizes[name] and z.shape == seen[-1]
