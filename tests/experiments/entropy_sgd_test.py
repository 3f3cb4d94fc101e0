"""The variant of Entropy-SGD on MNIST: its network, and how flat it ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import data, models
from experiments.harness import programs, study
from experiments.studies.entropy_sgd import mnistfc
from experiments.studies.entropy_sgd import study as entropy_sgd

KEY = jax.random.key(0)
CONFIG = dataclasses.replace(
  study.variant(entropy_sgd, 'mnist'),
  dataset='digits',
  pooling=1,
  hidden=(5, 4),
  num_seeds=1,
)


def test_without_a_key_the_network_is_a_perceptron():
  model = mnistfc.network(CONFIG, (8, 8, 1), 10, 0)
  graphdef, params = models.split(model)
  assert models.has_dropout(graphdef)
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  y = x.reshape(3, -1)
  for i in range(3):
    layer = params['layers'][i]
    y = y @ np.asarray(layer['kernel'][...]) + np.asarray(layer['bias'][...])
    y = np.maximum(y, 0) if i < 2 else y
  np.testing.assert_allclose(model(x), y, rtol=1e-4, atol=1e-5)
  dropped = model(x, rngs=nnx.Rngs(dropout=KEY))
  assert np.abs(dropped - y).max() > 0.01


def test_the_largest_eigenvalue_is_that_of_the_hessian():
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
  # The largest by size is negative.
  hessian = np.float32(basis @ np.diag([-5, 2, 1, 0.5, 0, 0.1]) @ basis.T)

  def loss(params):
    x = jnp.concatenate([params['a'], params['b'].ravel()])
    return x @ hessian @ x / 2

  params = {'a': jnp.ones(2), 'b': jnp.ones((2, 2))}
  found = jax.jit(lambda p: mnistfc.largest_eigenvalue(loss, p, KEY))(params)
  np.testing.assert_allclose(found, -5, rtol=1e-3)


def test_noise_is_a_share_of_the_norm_of_every_leaf():
  params = {'a': jnp.full((3, 4), 2.0), 'b': jnp.zeros(3)}
  moved = mnistfc.noisy(params, 0.3, KEY)
  apart = jnp.linalg.norm(moved['a'] - params['a'])
  np.testing.assert_allclose(apart, 0.3 * np.sqrt(12 * 4), rtol=1e-5)
  np.testing.assert_array_equal(moved['b'], 0)


def test_all_methods_have_as_many_gradients_on_as_many_examples():
  for cell in mnistfc.define(CONFIG):
    steps = mnistfc.STEPS[cell.labels['method']]
    assert cell.rounds * steps == CONFIG.gradients
    assert cell.batch_size == steps * CONFIG.batch_size
    batch = np.zeros((1, cell.batch_size, 8, 8, 1))
    sliced = cell.make_batch(batch).shape
    expected = (1, steps, CONFIG.batch_size) if steps > 1 else (1, 64)
    assert sliced == (*expected, 8, 8, 1)


def test_a_walk_traces():
  cell = mnistfc.cell(CONFIG, 'entropy 20')
  program = programs.of_images(
    cell, data.load('digits'), programs.Options('mlp', [0])
  )
  assert {*mnistfc.FLAT, 'full_loss'} <= program.trace().keys()


def rows_of(of_method):
  """As if the second rates were the best of every method."""
  return [
    {
      'method': method,
      **values,
      'seed': seed,
      'round': stop,
      **dict.fromkeys(mnistfc.METRICS, 1.0),
      **of_method(method, seed),
      'validation_accuracy': 0.9 - 0.1 * (i != 1),
    }
    for method in mnistfc.STEPS
    for i, values in enumerate(mnistfc.cell(CONFIG, method).values)
    for seed in range(3)
    for stop in (1, 2)
  ]


def test_what_is_flatter_and_lower_is_said_to_be():
  def of_method(method, seed):
    scale = 1.0 if method == 'sgd' else 0.1
    return dict.fromkeys(('full_loss', *mnistfc.FLAT), scale) | {
      'accuracy': 0.97 + 0.001 * seed
    }

  rows = rows_of(of_method)
  kept = mnistfc.keep(rows, CONFIG)
  runs = sum(len(mnistfc.cell(CONFIG, m).values) for m in mnistfc.STEPS)
  # A last row of every run, and the one before it of the best rates.
  assert len(kept) == 3 * runs + 3 * len(mnistfc.STEPS)
  said = mnistfc.summarise(kept, CONFIG)
  assert all(check.holds for check in said.checks), said.checks
  # One decade lower, at least 0 were predicted.
  assert [round(c.value, 6) for c in said.checks] == [0, 1, 1, 1]


def test_what_is_sharper_is_not_reproduced():
  def of_method(method, seed):
    del seed
    sharp = {'accuracy': 0.9, 'full_loss': 2.0, 'sharpness': 9.0}
    return {} if method == 'sgd' else sharp | {mnistfc.FLAT[-1]: 3.0}

  said = mnistfc.summarise(rows_of(of_method), CONFIG)
  assert [c.verdict for c in said.claims] == ['not reproduced'] * 3


def test_parts_are_known():
  config = dataclasses.replace(CONFIG, parts=('nothing',))
  with pytest.raises(ValueError, match='no one of'):
    entropy_sgd.define(config)
