"""The bytes that cross devices in a round, read from the program."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

import byzjax
from tests.rounds import problem
from tests.rounds.lowering_test import WIDTH, collectives


def _bytes(num_devices, **kwargs):
  def loss_fn(params, batch):
    return jnp.mean((params - batch) ** 2)

  rounds = byzjax.robust_round(
    loss_fn,
    aggregator=byzjax.majority_vote(),
    optimizer=optax.sgd(0.1),
    num_workers=num_devices,
    attack=byzjax.sign_flip(scale=1.0),
    byzantine=3,
    mesh=AbstractMesh(
      (num_devices,), ('workers',), axis_types=(AxisType.Auto,)
    ),
    **kwargs,
  )
  state = jax.eval_shape(
    rounds.init, jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
  )
  batch = jax.ShapeDtypeStruct((num_devices, WIDTH), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  traced = jax.jit(rounds.step).trace(state, batch, key)
  lowered = traced.lower(lowering_platforms=('tpu',))
  ops = collectives(lowered.as_text())
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
  def loss_fn(params, batch):
    return jnp.mean((params - batch) ** 2)

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
