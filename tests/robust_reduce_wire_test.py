"""What `robust_reduce` sends: read from programs for meshes of any size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import byzjax
from experiments import wire
from tests import tables
from tests.rounds import lowering_test

F = 1


def _lowered(rule, shape, axes, leaves, specs, **options):
  mesh = AbstractMesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
  specs = jax.tree.map(
    lambda s: P(*[a if a in axes else None for a in s]),
    specs,
    is_leaf=lambda s: isinstance(s, P),
  )

  def reduce(messages):
    return byzjax.robust_reduce(
      messages, rule, mesh=mesh, worker_axis='diloco', specs=specs, **options
    )

  traced = jax.jit(reduce).trace(leaves)
  return traced.lower(lowering_platforms=('tpu',)).as_text()


WIDTH = 1 << 16
LEAVES = {'w': P('fsdp', 'tensor'), 'b': P()}
WIRED = ['mean', 'krum', 'coordinate_median', 'geometric_median', 'nnm_krum']
LARGE = [
  ((8,), ('diloco',), 8),
  ((4, 2), ('diloco', 'fsdp'), 8),
  ((2, 4), ('diloco', 'fsdp'), 8),
  ((2, 2, 2), ('diloco', 'fsdp', 'tensor'), 8),
  ((64, 64), ('diloco', 'fsdp'), 64),
]


@pytest.mark.parametrize(
  'name, shape, axes, n',
  [
    pytest.param(
      name,
      shape,
      axes,
      n,
      marks=() if n == 64 or name == 'krum' else pytest.mark.slow,
    )
    for name in WIRED
    for shape, axes, n in LARGE
  ],
)
def test_the_wire_carries_k_plus_1_shares(name, shape, axes, n):
  rule = tables.RULE[name].make(F, 1.0)
  leaves = {
    'w': jax.ShapeDtypeStruct((n, WIDTH, 8), jnp.bfloat16),
    'b': jax.ShapeDtypeStruct((n, WIDTH), jnp.float32),
  }
  text = _lowered(rule, shape, axes, leaves, LEAVES)
  k = n // shape[0]
  split = int(np.prod(shape[1:]))
  share = 2 * 8 * WIDTH // split + 4 * WIDTH / split  # bytes of a message
  sent = 0
  for op, entries, size in lowering_test.collectives(text):
    assert entries <= k * 8 * WIDTH // split
    if op == 'all_to_all':
      sent += size
    elif op != 'all_gather':
      assert op == 'all_reduce' and size <= 4 * 2 * (n + 2) ** 2
  # Numbers in the dtype of their leaf: half of it in bfloat16.
  assert sent == pytest.approx(k * share, rel=1e-3)


def test_bfloat16_travels_as_bfloat16():
  leaves = jax.ShapeDtypeStruct((8, WIDTH), jnp.bfloat16)
  text = _lowered(byzjax.krum(num_byzantine=F), (8,), ('diloco',), leaves, P())
  for op in ('all_to_all', 'all_gather'):
    (line,) = re.findall(rf'"stablehlo.{op}".*', text)
    assert 'bf16' in line and 'f32' not in line


def test_what_the_command_says_is_sent():
  found = wire.row('krum', 8, 2, 'bfloat16')
  assert 0.5 <= found['sent over mean'] < 0.501
  assert found['largest operand'] == 1
