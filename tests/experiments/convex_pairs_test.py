"""Arrangements of the study on convex programs: their balance, and its rows."""

import jax
import numpy as np

from experiments.studies.convex import pairs, study


def test_balance_counts_patterns_of_nearly_all_or_none():
  active = np.zeros((4, 20), bool)
  active[1, :1] = True  # 5 %
  active[2, :10] = True
  active[3, :] = True
  assert pairs.balance(active) == {'patterns': 4, 'unbalanced': 75}


def test_a_value_of_the_program_is_that_of_its_network():
  settings = study.Settings(num_samples=6, num_examples=30, num_iterations=1000)
  with jax.enable_x64(True):
    found = pairs.fitted(settings, 'digits', 'pairs', 0)
  assert 2 <= found['patterns'] <= 7
  np.testing.assert_allclose(found['objective'], found['program'], rtol=0.02)
