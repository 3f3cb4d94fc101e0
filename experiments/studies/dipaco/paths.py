"""Training and scoring of paths: programs that many cells share."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import data, models

RULES = {
  'mean': byzjax.mean,
  'coordinate median': byzjax.coordinate_median,
}


class Shape(NamedTuple):
  """What sets the shape of a program, and so has to be known before it."""

  paths: tuple[tuple[int, ...], ...]
  rule: str
  graphdef: nnx.GraphDef
  batch_size: int
  num_local_steps: int
  prefix: int
  outer: tuple[float, float]  # learning rate and momentum; (1, 0) is no server


class Schedule(NamedTuple):
  """What may differ between runs of one program."""

  rate: jax.Array  # float32[], of AdamW
  total: jax.Array  # float32[], steps after which it is zero
  there: jax.Array  # float32[rounds, P], 0 for paths that are pre-empted
  liars: jax.Array  # bool[P]


def training(
  shape: Shape, documents: jax.Array, schedule: Schedule
) -> byzjax.Round:
  """DiPaCo on the paths; with a single module per level it is DiLoCo."""
  loss_fn = models.next_token_loss(shape.graphdef)
  epsilon, beta = shape.outer
  last = schedule.there.shape[0] - 1

  def rate(step):
    done = jnp.minimum(step / schedule.total, 1)
    return schedule.rate * (1 + jnp.cos(jnp.pi * done)) / 2

  return byzjax.modular_round(
    lambda path, tokens: loss_fn(models.join_levels(path), tokens),
    paths=np.array(shape.paths),
    local_optimizer=optax.adamw(rate, weight_decay=0.1),
    num_local_steps=shape.num_local_steps,
    optimizer=optax.sgd(epsilon, beta, nesterov=True),
    aggregator=RULES[shape.rule](),
    sampler=data.sequence_sampler(documents, batch_size=shape.batch_size),
    attack=byzjax.sign_flip(scale=5.0),
    byzantine=schedule.liars,
    worker_weights=lambda step: schedule.there[jnp.minimum(step, last)],
  )


def modules(shape: Shape, params: Any) -> Any:
  """The network as a modular one, whose modules of a level start equal."""
  counts = (np.array(shape.paths).max(axis=0) + 1).tolist()
  return models.repeat_modules(models.split_levels(params, len(counts)), counts)


def losses(shape: Shape, path_params: Any, documents: jax.Array) -> jax.Array:
  """The loss of every document under every path, `[P, N]`."""
  of = models.document_losses(shape.graphdef, num_prefix=shape.prefix)
  return jax.lax.map(
    lambda path: of(models.join_levels(path), documents), path_params
  )


@functools.cache
def programs(shape: Shape) -> tuple[Any, Any, Any]:
  """`init`, `stretch` and `score`, over runs: leaves `[runs, ...]`."""

  @jax.jit
  @jax.vmap
  def init(params, documents, schedule):
    return training(shape, documents, schedule).init(modules(shape, params))

  @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, 0, None))
  def stretch(state, documents, shards, schedule, key, length):
    step = training(shape, documents, schedule).step

    def one_round(_, carry):
      state, total = carry
      state, info = step(state, shards, key)
      return state, total + info.loss

    state, total = jax.lax.fori_loop(0, length, one_round, (state, 0.0))
    return state, total / length

  score = jax.vmap(functools.partial(losses, shape))
  return init, jax.jit(stretch, donate_argnums=0), jax.jit(score)


@functools.cache
def featurizer(graphdef: nnx.GraphDef, prefix: int) -> Any:
  """What routers see of documents, over runs."""
  return jax.jit(jax.vmap(models.prefix_features(graphdef, num_prefix=prefix)))


def padded(shards: data.Partition, num_documents: int) -> data.Partition:
  """The same shards with rows of one length: one program for all of them."""
  indices = np.asarray(shards.indices)
  missing = num_documents - indices.shape[1]
  # What is behind a shard's size is never drawn.
  return data.Partition(np.pad(indices, ((0, 0), (0, missing))), shards.sizes)
