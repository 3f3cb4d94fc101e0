"""Messages and attackers for the tests of attacks."""

import jax
import numpy as np

import byzjax
from tests import tables
from tests.rounds import problem

N, SIZE = tables.NUM_WORKERS, tables.SIZE
KEY = jax.random.key(5)
BAD = np.arange(N) % 4 == 1  # three of eleven, not the first ones


def messages(num_rounds, seed=0):
  """[T, n, d]; workers that differ most along a direction of their own."""
  random = np.random.default_rng(seed)
  own = 2 * random.normal(size=(N, 1)) * random.normal(size=SIZE)
  noise = random.normal(size=(num_rounds, N, SIZE))
  return np.float32(random.normal(size=SIZE) + own + noise)


ATTACKS = {
  'mimic': byzjax.mimic(num_warmup_rounds=3),
  'mimic_worker': byzjax.mimic(worker=2),
  'min_max': byzjax.min_max(),
  'min_sum': byzjax.min_sum(),
  'fang': byzjax.fang(),
  'relocated_orthogonal_perturbation': byzjax.relocated_orthogonal_perturbation(
    z=1.0
  ),
  'drift': byzjax.drift(),
  'drift_gradient': byzjax.drift(direction='gradient'),
  'flip_vote': byzjax.flip_vote(),
  'random_signs': byzjax.random_signs(),
  'replay': byzjax.replay(delay=2),
  'replay_own': byzjax.replay(delay=2, own=True, num_workers=problem.N),
}
