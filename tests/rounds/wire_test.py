"""The bytes that cross devices in a round, read from the program."""

import jax
import jax.numpy as jnp
import optax
import pytest

import byzjax
from tests.rounds import problem
from tests.rounds.lowering_test import WIDTH, collectives, loss_fn, lowered


def _bytes(num_devices, **codecs):
  attack = byzjax.sign_flip(scale=1.0)
  rule = byzjax.majority_vote()
  ops = collectives(lowered(rule, num_devices, num_devices, attack, **codecs))
  moved = [(name, size) for name, _, size in ops if name != 'all_reduce']
  summed = sum(size for name, _, size in ops if name == 'all_reduce')
  assert summed < 4 * 8 * num_devices
  return sorted(moved)


@pytest.mark.parametrize('num_devices', [8, 64, 256])
def test_signs_on_the_wire_are_one_thirty_second(num_devices):
  floats = _bytes(num_devices)
  signs = _bytes(
    num_devices, codec=byzjax.sign_codec(), server_codec=byzjax.sign_codec()
  )
  assert floats == [
    ('all_gather', 4 * WIDTH // num_devices),
    ('all_to_all', 4 * WIDTH),
  ]
  assert signs == [(name, size // 32) for name, size in floats]


def test_the_compiled_program_moves_words():
  rounds = byzjax.robust_round(
    loss_fn,
    aggregator=byzjax.majority_vote(),
    optimizer=optax.sgd(0.1),
    num_workers=8,
    codec=byzjax.sign_codec(),
    server_codec=byzjax.sign_codec(),
    mesh=problem.mesh(8),
  )
  arguments = rounds.init(jnp.zeros(4096)), jnp.ones((8, 4096)), problem.KEY
  text = jax.jit(rounds.step).lower(*arguments).compile().as_text()
  exchanged = [
    line.split(' = ')[1] for line in text.splitlines() if ' all-to-all(' in line
  ]
  gathered = [
    line.split(' = ')[1] for line in text.splitlines() if ' all-gather(' in line
  ]
  assert len(exchanged) == len(gathered) == 1
  # A word of each of 4096 / 32 goes to the device that has its coordinates.
  words = exchanged[0].split(' all-to-all(')[0]
  assert words.count('u32[1,1,16]') + words.count('u32[1,16]') == 8
  assert gathered[0].startswith('u32[128]')
