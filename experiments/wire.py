r"""What a robust reduction sends, for meshes that nobody has here.

  python -m experiments.wire
  python -m experiments.wire --replicas=8,64,1024 --shards=1,64

Lowers `byzjax.robust_reduce` for TPUs on abstract meshes of replicas x shards,
one replica on every group of shards, and counts in the program what leaves a
device. Every row is a multiple of what an all-reduce of float32 sends there,
`2 (p - 1) / p` times 4 bytes for each of the d / shards numbers of a block.
The last column is the largest operand of a collective, as a multiple of that
block: n of them would be all messages.
"""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import AbstractMesh, AxisType

import byzjax

from .harness import specs
from .reporting import tables
from .studies.sign_majority import cost

FLAGS = flags.FLAGS
RULES = ('mean', 'coordinate_median', 'krum', 'geometric_median')
# Numbers in a block: a multiple of all that is padded.
BLOCK = 1 << 20
AXES = 'replicas', 'fsdp'


def row(rule_name: str, replicas: int, shards: int, dtype: str) -> dict:
  """What one program sends."""
  text = lowered(rule_name, replicas, shards, dtype)
  found = cost.collectives(text)
  size = np.dtype(dtype).itemsize
  sent = 0.0
  for op, num_bytes in found:
    # Gathers and sums go over shards too where a rule asks for that.
    sent += num_bytes * cost.PER_BYTE[op](replicas)
  of_mean = 2 * (replicas - 1) / replicas * 4 * BLOCK
  return {
    'rule': rule_name,
    'replicas': replicas,
    'shards': shards,
    'dtype': dtype,
    'sent over mean': round(sent / of_mean, 4),
    'largest operand': round(max(b for _, b in found) / size / BLOCK, 4),
  }


def lowered(rule_name: str, replicas: int, shards: int, dtype: str) -> str:
  """`robust_reduce` of one leaf that is split over all shards: StableHLO."""
  mesh = AbstractMesh((replicas, shards), AXES, axis_types=(AxisType.Auto,) * 2)
  rule = specs.aggregator(rule_name, '', max((replicas - 3) // 4, 0))

  def reduce(x):
    return byzjax.robust_reduce(
      x, rule, mesh=mesh, worker_axis=AXES[0], specs=jax.P(AXES[1])
    )

  x = jax.ShapeDtypeStruct((replicas, shards * BLOCK), jnp.dtype(dtype))
  traced = jax.jit(reduce).trace(x)
  return traced.lower(lowering_platforms=('tpu',)).as_text()


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    meshes = [(int(n), int(s)) for n in FLAGS.replicas for s in FLAGS.shards]
    rows = [
      row(rule, replicas, shards, dtype)
      for replicas, shards in meshes
      for dtype in FLAGS.dtypes
      for rule in FLAGS.rules
    ]
  except (TypeError, ValueError) as error:
    sys.exit(f'wire.py: {error}')
  print(tables.plain(rows))
  print(f'\nUp to {max(math.prod(mesh) for mesh in meshes)} devices.')


if __name__ == '__main__':
  flags.DEFINE_list('rules', list(RULES), 'Names of rules.')
  flags.DEFINE_list('replicas', ['8', '64', '1024'], 'Sizes of the mesh axis.')
  flags.DEFINE_list('shards', ['1', '64'], 'Devices of a replica.')
  flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Of the messages.')
  app.run(main)
