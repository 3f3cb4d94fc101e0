"""The study's own network: batch statistics, running averages, data order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models
from experiments.reporting import logs
from experiments.studies.history_cifar import network, official, study, training

ROUNDS = 2


@pytest.fixture
def small(monkeypatch):
  """One block in place of nine, which compiles in seconds."""
  monkeypatch.setattr(network, 'BLOCKS', ((16, 32),))
  training.graph_of.cache_clear()
  yield
  training.graph_of.cache_clear()


def run_of(*parts, batch_size):
  config = study.Settings(dataset='digits', batch_size=batch_size)
  return study.run_of(config, *parts)


def arrays_of(run):
  of = training.dataset_of(run.dataset, None)
  parts = (of.train_images, of.train_labels, of.test_images, of.test_labels)
  return training.Arrays(*map(jnp.asarray, parts))


def first_statistics(kernel, images):
  """Of the first convolution in NumPy: mean and unbiased variance."""
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = images.shape[1:3]
  y = sum(
    padded[:, i : i + height, j : j + width] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )
  return y.mean((0, 1, 2)), y.var((0, 1, 2), ddof=1)


@pytest.mark.slow
def test_running_statistics_are_those_of_numpy(small):
  run = run_of('IPM', 'cp', 0.9, batch_size=2)
  key, arrays = jax.random.key(0), arrays_of(run)
  state = jax.jit(functools.partial(training.first_state, run))(key)
  step = jax.jit(functools.partial(training.one_round, run))
  of_batch = jax.jit(
    lambda params, images: nnx.merge(training.graph_of('digits'), params)(
      images
    )[1]
  )
  expected = jax.tree.map(np.asarray, network.first_statistics())
  for number in range(ROUNDS):
    params = state.round.params
    images, _, computes = training.batch_of(run, jnp.int32(number), key, arrays)
    assert computes.tolist() == [False] * 11 + [True] * 14
    for worker in range(11, 25):
      new = jax.tree.map(np.asarray, of_batch(params, images[worker]))
      kernel = np.asarray(params['conv']['kernel'][...], np.float64)
      new[0] = first_statistics(kernel, np.asarray(images[worker], np.float64))
      expected = jax.tree.map(lambda old, s: 0.9 * old + 0.1 * s, expected, new)
    state = step(state, key, arrays)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5),
    state.running,
    expected,
  )
  assert int(state.round.step) == ROUNDS
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.round.params))
  share = training.accuracy('digits', state, arrays)
  assert 0 <= float(share) <= 1


def test_the_network_has_the_known_number_of_parameters():
  def make():
    model = network.ResNet20((32, 32, 3), 10, rngs=nnx.Rngs(0))
    return models.split(model)[1]

  params = jax.eval_shape(make)
  assert sum(p.size for p in jax.tree.leaves(params)) == 272474
  assert len(network.first_statistics()) == 21


def first_pass():
  graph, params = training.model_of('digits')
  images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
  model, first = nnx.merge(graph, params), network.first_statistics()
  return first, model(images), model(images, first)


@pytest.mark.slow
def test_the_first_pass_is_finite():
  first, *passes = jax.jit(first_pass)()
  for logits, statistics in passes:
    assert logits.shape == (2, 10)
    assert jnp.isfinite(logits).all()
    assert jax.tree.map(jnp.shape, statistics) == jax.tree.map(jnp.shape, first)


def test_known_statistics_are_used():
  layer = network.BatchNorm(2)
  x = np.arange(16.0, dtype=np.float32).reshape(2, 2, 2, 2)
  mean, variance = np.array([1.0, -2.0]), np.array([4.0, 9.0])
  y, _ = layer(jnp.asarray(x), (jnp.asarray(mean), jnp.asarray(variance)))
  by_channel = (2, 1, 1, 1)
  right = (x - mean.reshape(by_channel)) / np.sqrt(
    variance.reshape(by_channel) + 1e-5
  )
  np.testing.assert_allclose(y, right, rtol=1e-5)


def test_examples_are_dealt_out_once_in_an_epoch():
  run = run_of('ALIE', 'cm', 0.9, batch_size=7)
  key, count = jax.random.key(0), 1400
  assert run.rounds_per_epoch == 10
  dealt = np.stack(
    [training.chosen_examples(key, i, run, count) for i in range(10)]
  )
  np.testing.assert_array_equal(dealt[:, :5], dealt[:, 5:10])
  assert sorted(dealt[:, 5:].ravel()) == list(range(count))


def test_rounds_of_an_epoch_are_the_official_ones():
  cells = {c.name: c.rounds for c in study.define(study.Settings(epochs=1))}
  assert set(cells) == set(study.FOUR)
  assert cells['f11_IPM_cp_m0.9'] == 111
  assert cells['f5_ALIE_cm_m0.9'] == 78
  every = study.define(study.Settings(cells=()))
  assert {cell.name for cell in every} >= set(logs.means(official.FOLDER))
  assert set(logs.means(official.FOLDER)) == set(logs.curves(official.FOLDER))


def test_a_cell_that_is_not_known_is_refused():
  with pytest.raises(ValueError, match='f11_IPM_cp_m0.5 is none of'):
    study.define(study.Settings(cells=('f11_IPM_cp_m0.5',)))
