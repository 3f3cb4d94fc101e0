"""The study of Delta-SGD: its other data sets, and a rate that falls."""

import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data
from experiments.harness import study
from experiments.studies import pooling
from experiments.studies.delta_sgd import images
from experiments.studies.delta_sgd import study as delta_sgd

IMAGES = study.variant(delta_sgd, 'images')


def some(name, data_dir):
  """As many pixels as there are, and few of them."""
  del data_dir
  rng = np.random.default_rng(0)
  shape = (16, 16, 3) if name == 'cifar10' else (28, 28, 1)

  def draw(count):
    labels = np.arange(count, dtype=np.int32) % 10
    return rng.integers(0, 256, (count, *shape), np.uint8), labels

  return data.Dataset(name, *draw(400), *draw(20), num_classes=10, scale=255.0)


@pytest.mark.parametrize(
  'part', ['delta-sgd, mnist, none', 'sgd, cifar10, none', 'sgd, mnist, sign']
)
def test_a_cell_on_another_data_set_traces(part, monkeypatch):
  monkeypatch.setattr(images, 'load', some)
  (cell, *_) = [x for x in delta_sgd.define(IMAGES) if part in x.name]
  program = study.program_of(cell, IMAGES, None)
  assert {'accuracy', 'validation_accuracy'} <= set(program.trace())
  named = images.named([run | {'round': 1} for run in program.runs])
  found = {row['task'] for row in named}
  # Attackers are on the first task alone.
  alphas = IMAGES.alphas[:1] if 'sign' in part else IMAGES.alphas
  dataset = cell.labels['task']
  assert found == {images.name(dataset, alpha) for alpha in alphas}
  assert found <= set(delta_sgd.tasks(IMAGES))


def test_rates_of_all_methods_are_by_three_or_two_and_one_setting_is_alone():
  for settings in (delta_sgd.Settings(), IMAGES):
    found = delta_sgd.methods(settings)
    assert len(found.pop(delta_sgd.MINE).learning_rates) == 1
    assert all(len(method.learning_rates) >= 3 for method in found.values())


def test_a_rate_falls_by_rounds_whatever_a_client_did():
  method = delta_sgd.methods(delta_sgd.Settings(rounds=100))['sgd, decaying']
  optimizer = method.optimizer(1.0)

  def step(round):
    gradient = jnp.ones(())
    state = optimizer.init(gradient)
    return float(-optimizer.update(gradient, state, round=round)[0])

  steps = [step(round) for round in (0, 49, 50, 74, 75, 99)]
  np.testing.assert_allclose(steps, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_colours_are_at_half_the_size():
  pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
  found = pooling.pooled(pixels, 2)
  assert found.shape == (2, 2, 2, 3) and found.dtype == np.uint8
  expected = np.round(pixels[1, 2:, :2, 1].mean())
  assert found[1, 1, 0, 1] == expected


def rows_of(settings, accuracy):
  """What every cell would keep, if `accuracy` were so."""
  return [
    {
      **cell.labels,
      'partition': images.PARTITION.format(alpha),
      'learning_rate': rate,
      'seed': seed,
      'round': 100,
      'accuracy': accuracy(cell.labels, rate),
      'validation_accuracy': accuracy(cell.labels, rate),
    }
    for cell in delta_sgd.define(settings)
    for alpha in settings.alphas[: 1 if cell.labels['attack'] != 'none' else 2]
    for rate in delta_sgd.methods(settings)[
      cell.labels['method']
    ].learning_rates
    for seed in range(3)
  ]


def verdicts(accuracy):
  rows = delta_sgd.keep(rows_of(IMAGES, accuracy), IMAGES)
  said = delta_sgd.summarise(rows, IMAGES)
  return [claim.verdict for claim in said.claims]


def test_methods_that_fail_elsewhere_reproduce_the_claim():
  def accuracy(labels, rate):
    if labels['attack'] != 'none':
      return 0.9 if labels['rule'] == 'trimmed mean' else 0.1
    if labels['method'] == delta_sgd.MINE or labels['task'] == 'mnist':
      return 0.9
    return 0.5

  assert verdicts(accuracy) == ['reproduced', 'reproduced']


def test_delta_sgd_that_fails_somewhere_does_not():
  def accuracy(labels, rate):
    if labels['method'] == delta_sgd.MINE and labels['task'] == 'cifar10':
      return 0.1
    return 0.9

  assert verdicts(accuracy) == ['not reproduced', 'not reproduced']
