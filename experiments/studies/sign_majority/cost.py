"""What leaves a device in a round: a vote against an all-reduce of the mean.

Read from programs, one worker on every device. Which collectives there are is
written down by `shard_map` and not left to a compiler, so that a program can be
read before it is compiled, for machines that are not there.

A collective over p devices with an operand of b bytes on each sends, from every
device, b (p - 1) / p if it is an all-to-all, b (p - 1) if it is an all-gather,
and 2 b (p - 1) / p if it is an all-reduce, which is the least there is.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AbstractMesh, AxisType

import byzjax
from byzjax import models

from ...harness.cells import OwnCell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import Check, Summary, Table, claims_about

VOTE, MEAN, SUM = 'vote', 'all-reduce mean', 'vote, sum of int8'
SIZES = ('CNN on MNIST', 'million')
DEVICES = (2, 4, 8, 64, 256)
AXIS = 'workers'
KEYS = ('program', 'size', 'num_workers')
BITS = dict(f32=32, bf16=16, i32=32, ui32=32, i8=8, i1=8)
PER_BYTE = {
  'all_to_all': lambda p: (p - 1) / p,
  'all_gather': lambda p: p - 1,
  'all_reduce': lambda p: 2 * (p - 1) / p,
}


def define() -> list[OwnCell]:
  return [
    cell(name, size, p)
    for name in (VOTE, MEAN, SUM)
    for size in SIZES
    for p in DEVICES
  ]


def cell(name: str, size: str, p: int) -> OwnCell:
  labels = dict(zip(KEYS, (name, size, p)))

  def make_rows(seeds) -> Rows:
    del seeds
    loss_fn, params, batch = problem(size, p)
    found = dict.fromkeys(PER_BYTE, 0.0)
    for op, num_bytes in collectives(lowered(name, loss_fn, params, batch, p)):
      found[op] += num_bytes * PER_BYTE[op](p)
    d = sum(x.size for x in jax.tree.leaves(params))
    sent = {'sent': sum(found.values()), 'formula': formula(name, d, p)}
    about = {**labels, 'seed': 0, 'round': 1, 'num_coordinates': d}
    return [about | found | sent]

  return OwnCell(labels=labels, make_rows=make_rows)


def formula(name: str, d: int, p: int) -> float:
  """Bytes of the messages that leave a device, both ways."""
  bits = {VOTE: 1, MEAN: 32, SUM: 8}[name]
  if name == VOTE:
    d += -d % (32 * p)  # Whole words of 32 signs on every device.
  return 2 * (p - 1) / p * bits * d / 8


def problem(size: str, p: int):
  """A loss, and the shapes of its parameters and of a batch `[p, ...]`."""
  x: Any
  one: Any
  if size == 'million':
    x = one = jnp.zeros(1_000_000)
    loss_fn = _distance
  else:
    graph, x = models.split(models.make('cnn', (28, 28, 1), 10, seed=0))
    one = jnp.zeros((8, 28, 28, 1)), jnp.zeros(8, jnp.int32)
    loss_fn = models.cross_entropy_loss(graph)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((p, *x.shape), x.dtype), one
  )
  return loss_fn, jax.eval_shape(lambda: x), batch


def _distance(x, target):
  return jnp.mean((x - target) ** 2)


def lowered(name: str, loss_fn, params, batch, p: int) -> str:
  """One round over p devices, lowered for TPUs: StableHLO."""
  mesh = AbstractMesh((p,), (AXIS,), axis_types=(AxisType.Auto,))
  if name == VOTE:
    rounds = byzjax.robust_round(
      loss_fn,
      num_workers=p,
      worker=byzjax.worker_momentum(0.9),
      codec=byzjax.sign_codec(),
      aggregator=byzjax.majority_vote(),
      server_codec=byzjax.sign_codec(),
      optimizer=optax.sgd(1e-3),
      mesh=mesh,
    )
    state = jax.eval_shape(rounds.init, params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.jit(rounds.step).trace(state, batch, key)
  else:
    step = jax.shard_map(
      functools.partial(_reduced, name, loss_fn),
      mesh=mesh,
      in_specs=(jax.P(), jax.P(AXIS)),
      out_specs=(jax.P(), jax.P()),
    )
    traced = jax.jit(step).trace(params, batch)
  return traced.lower(lowering_platforms=('tpu',)).as_text()


def _reduced(name: str, loss_fn, params, batch):
  """A step of one device, by an all-reduce of gradients or of their signs."""
  one = jax.tree.map(lambda x: x[0], batch)
  own = lax.pcast(params, AXIS, to='varying')
  loss, gradient = jax.value_and_grad(loss_fn)(own, one)
  if name == MEAN:
    update = lax.pmean(gradient, AXIS)
  else:
    signs = jax.tree.map(lambda g: jnp.sign(g).astype(jnp.int8), gradient)
    update = jax.tree.map(jnp.sign, lax.psum(signs, AXIS))
  params = jax.tree.map(lambda w, u: w - 1e-3 * u, params, update)
  return params, lax.pmean(loss, AXIS)


def collectives(stablehlo: str) -> list[tuple[str, int]]:
  """Every collective of a program, and the bytes of its operand on a device.

  Raises:
    ValueError: if one is of a kind whose bytes are not counted here.
  """
  kinds = (*PER_BYTE, 'reduce_scatter', 'collective_permute')
  # The body of a reduction is a region, over several lines.
  pattern = (
    rf'"stablehlo\.({"|".join(kinds)})"'
    r'.*?: \(((?:tensor<[^>]*>(?:, )?)+)\) ->'
  )
  found = []
  for op, operands in re.findall(pattern, stablehlo, re.DOTALL):
    if op not in PER_BYTE:
      raise ValueError(f'collectives: no bytes are known for {op!r}')
    size = 0
    for shape in re.findall(r'tensor<([^>]*)>', operands):
      *dimensions, dtype = shape.split('x')
      size += math.prod(map(int, dimensions)) * BITS[dtype] // 8
    found.append((op, size))
  return found


def summarise(rows: Rows, about: Mapping[str, str]) -> Summary:
  """Claims and tables; `about` has the method and the paper of the claims."""
  sent = tables.Cells(
    (keys, tables.final(of, 'sent').mean())
    for keys, of in tables.split_by(rows, *KEYS)
  )
  pairs = [(size, p) for size in SIZES for p in DEVICES]
  shown = tables.Cells()
  for row in rows:
    line = f'{row["size"]}, {row["num_workers"]}', row['program']
    shown[line] = np.array([row['sent'] / 1000])
  ratio = tables.Cells()
  for size, p in pairs:
    for name in (VOTE, SUM):
      ratio[f'{size}, {p}', name] = sent[MEAN, size, p] / sent[name, size, p]
  off = [abs(row['sent'] / row['formula'] - 1) for row in rows]

  # Of no method: the scorecard has what training shows.
  claim = claims_about('', about['paper'], 'programs')
  return Summary(
    claims=[
      claim(
        'a vote sends at most a sixteenth of the bytes of a mean',
        Check(
          'bytes of an all-reduce of float32 over bytes of the vote, the least'
          ' over workers and sizes',
          min(ratio[f'{size}, {p}', VOTE] for size, p in pairs),
          at_least=16,
        ),
        published='32 x, sent and received',
        evidence='C',
      ),
      claim(
        'an epoch takes a quarter less time',
        published='25 % less than SGD with NCCL, 7 to 15 machines',
        evidence='P',
      ),
    ],
    tables=[
      Table(
        'Kilobytes that leave a device in a round, read from the program',
        tables.pivot(shown),
      ),
      Table(
        'How many times less than the all-reduce of float32',
        tables.pivot(ratio, 2),
      ),
      Table(
        'All that is sent over the formula of the messages, percent more',
        f'at most {100 * max(off, default=np.nan):.2f}',
      ),
    ],
    figures={'cost.png': lambda: picture(sent)},
  )


def picture(sent: tables.Cells):
  """Kilobytes by number of workers."""
  figure, axes = pictures.panels(1, len(SIZES))
  for axis, size in zip(axes[0], SIZES):
    series = {
      name: [np.atleast_1d(sent[name, size, p] / 1000) for p in DEVICES]
      for name in (MEAN, SUM, VOTE)
    }
    pictures.spread_over(axis, DEVICES, series)
    axis.set(title=size, xlabel='workers', xscale='log', yscale='log')
  axes[0, 0].set_ylabel('kilobytes that leave a device')
  axes[0, 0].legend()
  return figure
