"""The MNIST variant of the study of WAFL, on digits: clients, pixels, tests."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data, models
from experiments.harness import study
from experiments.studies.wafl import clients, training
from experiments.studies.wafl import study as wafl


@pytest.fixture
def config():
  paper = study.variant(wafl, 'mnist')
  return dataclasses.replace(paper, dataset='digits', num_seeds=1)


@pytest.fixture
def digits():
  return data.load('digits')


def test_a_client_holds_its_labels_and_each_example_has_one_client():
  labels = np.random.default_rng(0).integers(10, size=3000)
  found = clients.few_labels(labels, 20, 1, each=3)
  own = [x[:size] for x, size in zip(found.indices, found.sizes)]
  assert sorted(np.concatenate(own)) == list(range(3000))
  for i, examples in enumerate(own):
    assert set(labels[examples]) == {(i + j) % 10 for j in range(3)}
  assert found.sizes.max() > 2 * found.sizes.min()
  other = clients.few_labels(labels, 20, 2, each=3)
  assert list(other.sizes) != list(found.sizes)


@pytest.mark.parametrize(('num_workers', 'each'), [(5, 3), (20, 0), (20, 11)])
def test_classes_without_clients_are_refused(num_workers, each):
  labels = np.arange(1000) % 10
  with pytest.raises(ValueError, match='do not hold all of 10 classes'):
    clients.few_labels(labels, num_workers, 0, each=each)


def test_all_cells_trace(config):
  cells = wafl.define(config)
  dataset = study.dataset_of(cells, config)
  assert [cell.name for cell in cells if cell.labels['part'] == 'attacks'] == [
    'attacks, fedavg, sign flip x 10, mean',
    'attacks, fedavg, sign flip x 10, nnm, median',
    'attacks, wafl, sign flip x 10, nnm, median',
  ]
  for cell in cells:
    metrics = study.program_of(cell, config, dataset).trace()
    assert metrics['attacked_accuracy'].shape == ()


def test_pixels_that_vary_are_standardised(config, digits):
  pixels = jnp.asarray(digits.train_images, jnp.float32) / digits.scale
  seen = np.asarray(training.seen(config, pixels))
  np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-4)
  deviation = seen.std(axis=0)
  varies = digits.train_images.std(axis=0) > 0
  assert 0 < varies.mean() < 1
  np.testing.assert_allclose(deviation[varies], 1, atol=1e-2)
  np.testing.assert_allclose(deviation[~varies], 0, atol=1e-6)
  plain = dataclasses.replace(config, standardised=False)
  assert training.seen(plain, pixels) is pixels


def test_moved_inputs_are_inside_the_box_and_hurt(config, digits):
  model = training.logistic_regression((8, 8, 1), 10, 0)
  graphdef, params = models.split(model)
  task = types.SimpleNamespace(
    graphdef=graphdef, scale=digits.scale, num_classes=10
  )
  examples = jnp.asarray(digits.test_images), jnp.asarray(digits.test_labels)

  def scores(**changed):
    settings = dataclasses.replace(config, **changed)
    return training.scores(settings, task, params, *examples)

  loss_fn = models.cross_entropy_loss(graphdef)
  inputs = training.seen(config, examples[0] / digits.scale)
  moved = training.moved(
    config, loss_fn, params, (inputs, examples[1]), 0.01, 40
  )
  distance = jnp.abs(moved - inputs).max()
  np.testing.assert_allclose(distance, config.radius, rtol=1e-4)
  assert loss_fn(params, (moved, examples[1])) > loss_fn(
    params, (inputs, examples[1])
  )
  still, far = scores(radius=0.0), scores()
  np.testing.assert_allclose(still['attacked_accuracy'], still['accuracy'])
  assert far['accuracy'] == still['accuracy']
  assert far['attacked_accuracy'] < far['accuracy']


def test_with_a_huge_gamma_wafl_descends_the_loss_of_fedavg(config, digits):
  graphdef, params = models.split(
    training.logistic_regression((8, 8, 1), 10, 0)
  )
  loss_fn = models.cross_entropy_loss(graphdef)
  batch = digits.test_images[:20] / digits.scale, digits.test_labels[:20]
  losses = {
    name: training.local_loss(config, name, loss_fn, gamma)(params, batch)
    for name, gamma in (('fedavg', 0.0), ('wafl', 1e6), ('fedpgd', 0.0))
  }
  np.testing.assert_allclose(losses['wafl'], losses['fedavg'], rtol=1e-4)
  assert losses['fedpgd'] > losses['fedavg']
  assert all(map(jnp.isfinite, jax.tree.leaves(losses)))


def test_an_unknown_attack_is_refused(config):
  with pytest.raises(ValueError, match='--attacks: loud is none of none,'):
    wafl.define(dataclasses.replace(config, attacks=('loud',)))
