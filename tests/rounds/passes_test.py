"""What a compiled round reads and writes, and what it computes at all."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import hlo
from tests.rounds import problem

N, F, BATCH, SIZES = 16, 3, 8, (800, 128, 4)
SIZE = 800 * 128 + 128 * 4
KEY = jax.random.key(0)


def _loss(params, batch):
  x, y = batch
  return jnp.mean(jnp.square(jnp.tanh(x @ params['a']) @ params['b'] - y))


def _lowered(make, batch_axes, rule, byzantine, attack, **options):
  """Three rounds as one program, lowered."""
  training = make(
    _loss,
    aggregator=rule,
    optimizer=optax.sgd(0.1),
    num_workers=N,
    worker=byzjax.worker_momentum(0.9),
    attack=attack(),
    byzantine=byzantine,
    **options,
  )
  params = {'a': jnp.zeros(SIZES[:2]), 'b': jnp.zeros(SIZES[1:])}
  lead = (N, *batch_axes, BATCH)
  batch = jnp.zeros((*lead, SIZES[0])), jnp.zeros((*lead, SIZES[2]))

  def rounds(state, batch):
    def step(state, _):
      return training.step(state, batch, KEY)

    return jax.lax.scan(step, state, length=3)

  return jax.jit(rounds).lower(training.init(params), batch)


def _rounds(rule, byzantine=F, attack=byzjax.alie):
  return _lowered(byzjax.robust_round, (), rule, byzantine, attack)


def _local_rounds(rule):
  return _lowered(
    byzjax.local_round, (2,), rule, F, byzjax.alie,
    local_optimizer=optax.sgd(0.1), num_local_steps=2,
  )  # fmt: skip


# The gradients are written, copied into rows (2) and added to the momentum (3).
# Then the honest mean, the spread around it and the rule read once each; Krum
# has norms and distances to read for. What 3 of 16 do not compute is not moved.
# Local steps write where each worker ended, and what it moved by (1).
RULES = {
  'mean': (byzjax.mean(), 8.0),
  'trimmed_mean': (byzjax.trimmed_mean(num_byzantine=F), 8.0),
  'krum': (byzjax.krum(num_byzantine=F), 9.1),
}


@pytest.mark.parametrize('kind, more', [(_rounds, 0), (_local_rounds, 0.9)])
@pytest.mark.parametrize('rule, most', RULES.values(), ids=RULES)
def test_how_often_a_round_reads_and_writes_its_messages(
  rule, most, kind, more
):
  compiled = kind(rule).compile()
  num_bytes = 4 * N * SIZE
  assert hlo.passes(compiled.as_text(), num_bytes) <= most + more
  # Gradients, their flat form and the next momentum.
  assert compiled.memory_analysis().temp_size_in_bytes < 3 * num_bytes


def _workers_that_compute(text):
  """From the products of their examples with the parameters `a`."""
  examples = rf'tensor<(\d+)x{BATCH}x{SIZES[0]}xf32>'
  products = re.findall(
    rf'dot_general .*\({examples}, tensor<{SIZES[0]}x{SIZES[1]}', text
  )
  return {int(count) for count in products}


@pytest.mark.parametrize(
  'byzantine, attack, num_workers',
  [
    (F, byzjax.alie, N - F),
    (np.arange(N) % 5 == 1, byzjax.alie, N - 3),
    (F, lambda: byzjax.sign_flip(scale=2.0, own=True), N),
    (lambda step: jnp.arange(N) < F, byzjax.alie, N),
    (0, byzjax.alie, N),
  ],
  ids=['first', 'mask', 'own', 'schedule', 'nobody'],
)
def test_gradients_that_are_overwritten_unread_are_not_computed(
  byzantine, attack, num_workers
):
  lowered = _rounds(byzjax.mean(), byzantine, attack)
  assert _workers_that_compute(lowered.as_text()) == {num_workers}


@pytest.mark.parametrize('worker_map', ['vmap', 'map'])
def test_what_is_not_computed_makes_no_difference(worker_map):
  attack = byzjax.alie()
  mask = np.arange(problem.N) % 5 == 1
  known, schedule = (
    problem.training(
      aggregator=byzjax.trimmed_mean(num_byzantine=4),
      worker=byzjax.worker_momentum(0.9),
      attack=attack,
      byzantine=byzantine,
      worker_map=worker_map,
    )
    for byzantine in (mask, lambda step: jnp.asarray(mask))
  )
  batches = problem.batches(4)
  states, infos = zip(
    *(problem.scan(rounds, batches) for rounds in (known, schedule))
  )
  for a, b in zip(*(jax.tree.leaves(s.params) for s in states)):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(infos[0].loss, infos[1].loss, rtol=1e-6)
  honest = [jax.tree.map(lambda x: x[~mask], s.workers) for s in states]
  for a, b in zip(*map(jax.tree.leaves, honest)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
