"""The variants of the study of DETOX: their cells, and the times they say."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.harness import study
from experiments.studies.detox import study as detox
from experiments.studies.detox import timing


@pytest.mark.parametrize('name', detox.VARIANTS)
def test_with_and_without_groups_a_step_sees_as_many_examples(name):
  config = study.variant(detox, name)
  seen = {}
  for cell in detox.define(config):
    if isinstance(cell, detox.Cell):
      examples = cell.num_workers * cell.batch_size
      seen.setdefault(cell.labels['rule'], set()).add(examples)
  assert list(seen) == list(config.rules)
  for rule, examples in seen.items():
    size = detox.batch_size(config, rule)
    assert examples == {config.num_workers * size}


def test_the_first_dimension_is_that_of_the_network():
  config = study.variant(detox, 'fashion_mnist')
  model = detox.network(config, (28, 28, 1), 10, 0)
  _, params = detox.models.split(model)
  size = sum(x.size for x in jax.tree.leaves(params))
  assert size == config.timed_sizes[0]


def test_a_pair_is_timed():
  config = dataclasses.replace(detox.Settings(), timed_sizes=(8,))
  for cell in detox.timed(config)[:2]:
    (row,) = cell.make_rows(range(3))
    assert min(row[k] for k in ('seconds', 'seconds_groups', 'faster')) > 0


def test_seconds_to_an_accuracy():
  def rows(groups, accuracies):
    return [
      {
        **dict(zip(timing.KEYS, ('none', 'random', 'mean', groups))),
        **{'learning_rate': 0.1, 'seed': 0, 'round': 10 * (i + 1)},
        **{'accuracy': x, 'validation_accuracy': x},
      }
      for i, x in enumerate(accuracies)
    ]

  costs = {('mean', '-'): (1.0, 2.0), ('mean', 'D'): (3.0, 1.0)}
  found = [*rows('-', [0.5, 0.8]), *rows('D', [0.5, 0.6])]
  series = timing.curves(found, 'none', costs)
  assert timing.reached(series['mean']) == 60
  assert timing.reached(series['D-mean']) == np.inf


@pytest.mark.parametrize(
  ('flag', 'value'),
  [('attacks', 'loud'), ('placements', 'best'), ('rules', 'krum:4')],
)
def test_unknown_names_are_refused(flag, value):
  config = dataclasses.replace(detox.Settings(), **{flag: (value,)})
  with pytest.raises(ValueError, match=f'--{flag}: .* is none of'):
    detox.define(config)
