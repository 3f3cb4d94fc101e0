"""Rounds for meshes larger than any here: lowered for TPUs, not run.

The collectives of a round are chosen by its `shard_map`, not by a compiler, so
they can be read before it is compiled.
"""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

import byzjax
from tests import tables

F = 3
# A multiple of 32 on each of 256 devices: nothing is padded.
WIDTH = 32 * 256 * 64
BITS = dict(f64=64, f32=32, bf16=16, i32=32, ui32=32, i8=8, i1=8)


def loss_fn(params, batch):
  return jnp.mean((params - batch) ** 2)


def lowered(rule, num_workers, num_devices, attack=None, **options):
  rounds = byzjax.robust_round(
    loss_fn,
    aggregator=rule,
    optimizer=optax.sgd(0.1),
    num_workers=num_workers,
    worker=byzjax.worker_momentum(0.9),
    attack=byzjax.alie(z=1.0) if attack is None else attack,
    byzantine=F,
    mesh=AbstractMesh(
      (num_devices,), ('workers',), axis_types=(AxisType.Auto,)
    ),
    **options,
  )
  state = jax.eval_shape(
    rounds.init, jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
  )
  batch = jax.ShapeDtypeStruct((num_workers, WIDTH), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  traced = jax.jit(rounds.step).trace(state, batch, key)
  return traced.lower(lowering_platforms=('tpu',)).as_text()


def collectives(stablehlo):
  """`[(name, entries of the operand, bytes of it), ...]`, per device."""
  names = 'all_to_all all_gather all_reduce reduce_scatter collective_permute'
  pattern = (
    rf'"stablehlo\.({"|".join(names.split())})"'
    r'.*?: \(((?:tensor<[^>]*>(?:, )?)+)\) ->'
  )
  ops = []
  # The body of a reduction is a region, over several lines.
  for match in re.finditer(pattern, stablehlo, re.DOTALL):
    entries, size = 0, 0
    for shape in re.findall(r'tensor<([^>]*)>', match[2]):
      *dimensions, dtype = shape.split('x')
      count = math.prod(int(n) for n in dimensions)
      entries += count
      size += count * BITS[dtype] // 8
    ops.append((match[1], entries, size))
  return ops


def _assert_cheap(ops, num_workers, num_devices):
  n, p, k = num_workers, num_devices, num_workers // num_devices
  on_the_wire = 0
  for name, entries, size in ops:
    assert entries * (p if name == 'all_gather' else 1) < n * WIDTH
    if name == 'all_to_all':
      on_the_wire += size * (p - 1) / p
    elif name == 'all_gather':
      on_the_wire += size * (p - 1)
    else:
      # Sums of n x n numbers or less, whatever d is.
      assert name == 'all_reduce' and size <= 4 * 2 * (n + 2) ** 2
  assert on_the_wire == (k + 1) * 4 * WIDTH * (p - 1) / p


# Of `gas` every piece has a Gram matrix of its own.
@pytest.mark.parametrize(
  'name', [name for name in tables.ON_A_MESH if not name.startswith('gas')]
)
def test_64_workers_on_64_devices(name):
  rule = tables.RULE[name]
  f = min(F, rule.num_byzantine)
  ops = collectives(lowered(rule.make(f, 1.0), 64, 64))
  _assert_cheap(ops, 64, 64)


@pytest.mark.parametrize(
  'name', ['mean', 'krum', 'centered_clipping', 'nnm_krum']
)
@pytest.mark.parametrize('num_devices', [256, 1024])
def test_1024_workers(name, num_devices):
  ops = collectives(lowered(tables.RULE[name].make(F, 1.0), 1024, num_devices))
  _assert_cheap(ops, 1024, num_devices)


@pytest.mark.parametrize('search', [byzjax.adaptive, byzjax.adaptive_gradient])
def test_an_attacker_that_searches_sends_no_more(search):
  rule = byzjax.krum(num_byzantine=F)
  attack = search(byzjax.alie(z=1.0), rule)
  ops = collectives(lowered(rule, 64, 64, attack))
  _assert_cheap(ops, 64, 64)


def test_the_reading_of_collectives_sees_a_gather_of_all_messages():
  mesh = AbstractMesh((64,), ('workers',), axis_types=(AxisType.Auto,))

  def gather(x):
    return jnp.sum(jax.lax.all_gather(x, 'workers', tiled=True), axis=0)

  sharded = jax.shard_map(
    gather,
    mesh=mesh,
    in_specs=jax.P('workers'),
    out_specs=jax.P(),
    check_vma=False,
  )
  x = jax.ShapeDtypeStruct((64, WIDTH), jnp.float32)
  text = jax.jit(sharded).trace(x).lower(lowering_platforms=('tpu',)).as_text()
  ops = collectives(text)
  assert ops == [('all_gather', WIDTH, 4 * WIDTH)]
  with pytest.raises(AssertionError):
    _assert_cheap(ops, 64, 64)
