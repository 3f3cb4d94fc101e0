"""What the largest coordinates carry of the sharpness, by a dense Hessian."""

import jax.numpy as jnp
import numpy as np

from experiments.studies.sharpness import measure


def test_carried_is_that_of_a_dense_hessian():
  rng = np.random.default_rng(0)
  root = rng.normal(size=(20, 20))
  hessian = (root @ root.T / 20).astype(np.float32)
  g = rng.normal(size=20).astype(np.float32)

  def loss_fn(params, batch):
    flat = jnp.concatenate([params['a'].ravel(), params['b']])
    return batch * flat @ hessian @ flat / 2

  params = {'a': jnp.ones((3, 4)), 'b': jnp.ones(8)}
  task = measure.Task(lambda seed: params, loss_fn, None, None, jnp.array(1.0))
  fractions = (0.0, 0.04, 0.1, 0.25, 0.5, 1.0)
  settings = measure.Settings(fractions=fractions)
  found = measure.carried(settings, task, params, jnp.array(g))
  order = np.argsort(-np.abs(g))
  expected = []
  for count in (0, 0, 2, 5, 10, 20):
    part = np.zeros(20)
    part[order[:count]] = g[order[:count]]
    expected.append(part @ hessian @ part / (g @ hessian @ g))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
