"""The variant of Noisy Softmax: features of one length, medians, intervals."""

import dataclasses

import numpy as np
import pytest

from byzjax import data
from experiments.harness import programs, study
from experiments.studies.noisy_softmax import normalised
from experiments.studies.noisy_softmax import study as noisy_softmax

CONFIG = dataclasses.replace(
  study.variant(noisy_softmax, 'mnist'), dataset='digits', num_seeds=1, width=6
)


def network(norm):
  cell = normalised.cell(CONFIG, norm)
  return cell.make_model((4, 4, 1), 10, 0)


def test_normalised_features_have_one_length():
  images = np.random.default_rng(0).uniform(size=(5, 4, 4, 1))
  images = images.astype(np.float32)
  lengths = {
    norm: np.linalg.norm(network(norm).features(images), axis=1)
    for norm in normalised.NAMES
  }
  np.testing.assert_allclose(lengths['RMSNorm'], np.sqrt(6), rtol=1e-3)
  assert np.ptp(lengths['none']) > 0.01


def test_the_network_is_what_it_says():
  model = network('none')
  assert model.classifier.bias is None
  images = np.random.default_rng(0).uniform(size=(5, 4, 4, 1))
  images = images.astype(np.float32)
  y = images.reshape(5, -1)
  for layer in model.layers:
    kernel, bias = map(np.asarray, (layer.kernel[...], layer.bias[...]))
    y = np.maximum(y @ kernel + bias, 0)
  expected = y @ np.asarray(model.classifier.kernel[...])
  np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('norm', normalised.NAMES)
def test_a_cell_traces(norm):
  cell = normalised.cell(CONFIG, norm)
  program = programs.of_images(
    cell, data.load('digits'), programs.Options('mlp', [0])
  )
  metrics = program.trace()
  assert {'target_probability', 'length', 'accuracy'} <= metrics.keys()


def test_the_worker_has_few_examples():
  partition = data.random_shards(np.zeros(50, np.int32), 1, seed=0)
  found = normalised.few(partition, 7)
  assert found.indices.shape == (1, 7) and found.sizes.tolist() == [7]


def test_an_interval_of_twenty_numbers_is_from_the_sixth_to_the_fifteenth():
  numbers = np.random.default_rng(0).permutation(20) + 1.0
  assert normalised.median_interval(numbers) == (10.5, 6, 15)


@pytest.mark.parametrize('n', [8, 13, 20])
def test_intervals_have_the_median_in_them_as_often_as_they_should(n):
  draws = np.random.default_rng(n).normal(size=(4000, n))
  found = np.array([normalised.median_interval(x) for x in draws])
  inside = (found[:, 1] <= 0) & (found[:, 2] >= 0)
  assert inside.mean() > 0.94


def rows_of(gain_of):
  """As if the second rate were the best for every amount of noise."""
  rates = CONFIG.learning_rates
  return [
    {
      'norm': norm,
      'square': square,
      'learning_rate': rate,
      'seed': seed,
      'round': 1,
      'accuracy': 0.9 + gain_of(norm, square) / 100 - 0.1 * (i != 1),
      'validation_accuracy': 0.9 + gain_of(norm, square) / 100 - 0.1 * (i != 1),
      'train_loss': 0.1 if square == 0 else 0.2,
      'target_probability': 0.9,
      'early_probability': 0.8 if square == 0 else 0.7,
      'length': 1.0,
    }
    for norm in normalised.NAMES
    for square in CONFIG.squares
    for i, rate in enumerate(rates)
    for seed in range(8)
  ]


def test_every_amount_is_judged_at_its_own_rate():
  def gain_of(norm, square):
    if norm == 'none':
      return -50.0 * (square >= 1)
    return {0.0: 0, 0.5: 1, 1.0: -0.5}.get(square, 0.5)

  said = normalised.summarise(rows_of(gain_of), CONFIG)
  assert len(said.checks) == 7
  assert all(check.holds for check in said.checks), said.checks
  assert said.checks[0].value == pytest.approx(1)
  assert said.checks[2].value == pytest.approx(1.5)


def test_noise_that_gains_nothing_is_not_reproduced():
  rows = rows_of(lambda norm, square: -0.5 * (square > 0))
  said = normalised.summarise(rows, CONFIG)
  verdicts = [claim.verdict for claim in said.claims]
  # Nothing collapses without normalisation either.
  assert verdicts == ['not reproduced', 'reproduced', 'partly']


def test_the_early_probability_is_that_of_the_first_quarter():
  rows = [
    {
      'norm': 'none',
      'seed': 0,
      'round': stop,
      **dict.fromkeys(normalised.METRICS[:3], 0.0),
      'target_probability': stop / 4,
      'length': 1.0,
    }
    for stop in (1, 2, 3, 4)
  ]
  (row,) = normalised.keep(rows, CONFIG)
  assert (row['early_probability'], row['target_probability']) == (0.25, 1)


def test_parts_are_known():
  config = dataclasses.replace(CONFIG, parts=('nothing',))
  with pytest.raises(ValueError, match='no one of'):
    noisy_softmax.define(config)
