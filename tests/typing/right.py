"""A user's file: mypy --strict has nothing to say. Nothing here is run."""

from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import byzjax
from byzjax import asynchrony, data, gossip, objectives, topology


def loss_fn(params: jax.Array, batch: jax.Array) -> jax.Array:
  return jnp.mean((params - batch) ** 2)


def noisy_loss_fn(
  params: jax.Array, batch: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  drawn = jax.random.bernoulli(key, 0.5, params.shape)
  return loss_fn(params * drawn, batch), {'kept': drawn.mean()}


def rules_and_what_goes_with_them() -> None:
  rule = byzjax.krum(num_byzantine=2)
  assert_type(rule, byzjax.Aggregator)
  assert_type(byzjax.alie(z=1.5), byzjax.Attack)
  assert_type(byzjax.sign_codec(), byzjax.Codec)
  assert_type(
    byzjax.pre_aggregate(byzjax.bucketing(bucket_size=2), rule),
    byzjax.Aggregator,
  )
  assert_type(
    byzjax.worker_sharded(rule, 'workers', byzjax.sign_flip(scale=2.0)),
    byzjax.Aggregator,
  )


def a_round_from_init_to_info() -> None:
  training = byzjax.robust_round(
    lambda params, batch: jnp.sum(params * batch),
    num_workers=8,
    worker=byzjax.worker_momentum(0.9),
    byzantine=2,
    attack=byzjax.alie(z=1.5),
    aggregator=byzjax.krum(num_byzantine=2),
    optimizer=optax.sgd(0.1),
  )
  assert_type(training, byzjax.Round)
  state = training.init(jnp.zeros(3))
  assert_type(state, byzjax.RoundState)
  state, info = training.step(state, jnp.ones([8, 3]), jax.random.key(0))
  assert_type(info, byzjax.RoundInfo)
  assert_type(info.loss, jax.Array)


def methods_with_local_steps(mesh: Mesh, images: jax.Array) -> None:
  median = byzjax.coordinate_median()
  rounds = [
    byzjax.local_round(
      loss_fn,
      local_optimizer=optax.adam(0.1),
      num_local_steps=np.array([1, 2, 4]),
      aggregator=median,
      optimizer=optax.sgd(1.0),
      num_workers=8,
      local_state='average',
      side_aggregator=median,
      participation=4,
    ),
    byzjax.fed_avg(
      loss_fn,
      learning_rate=0.1,
      num_local_steps=4,
      num_workers=8,
      aggregator=median,
      attack=byzjax.sign_flip(scale=2.0),
      byzantine=jnp.arange(8) < 2,
      sampler=data.local_sampler(images, images, batch_size=4),
      mesh=mesh,
    ),
    byzjax.fed_prox(
      loss_fn,
      learning_rate=lambda step: 0.1 / (1 + step),
      mu=0.1,
      num_local_steps=lambda step: 1 + step,
      num_workers=8,
      preconditioner=byzjax.scale_by_preconditioner('adam', lower_bound=0.1),
      preconditioner_scope='local',
    ),
    byzjax.fed_opt(
      objectives.proximal(loss_fn, mu=0.1),
      learning_rate=optax.cosine_decay_schedule(0.1, 10),
      optimizer=optax.adam(0.1),
      num_local_steps=4,
      num_workers=8,
      worker_weights=jnp.ones(8),
      codec=byzjax.qsgd_codec(),
    ),
    byzjax.diloco(
      noisy_loss_fn,
      needs_key=True,
      has_aux=True,
      learning_rate=1e-3,
      num_local_steps=100,
      num_workers=8,
      outer_learning_rate=jnp.float32(0.7),
      worker_map='map',
    ),
  ]
  assert_type(rounds, list[byzjax.Round])


def replicas_and_graphs() -> None:
  shared = byzjax.parle(
    loss_fn,
    learning_rate=0.1,
    num_workers=8,
    gamma=lambda step: 0.01 * (1 + step),
    rho=1.0,
    form='released',
    attack=byzjax.gaussian(std=1.0),
    byzantine=lambda step: jnp.arange(8) < 2,
  )
  byzjax.replicas(shared.init(jnp.zeros(3)))
  byzjax.elastic_averaging(
    loss_fn,
    local_optimizer=optax.sgd(0.1),
    num_local_steps=4,
    num_workers=8,
    local_state='reset',
  )
  byzjax.gossip_round(
    loss_fn,
    topology=topology.ring(8),
    optimizer=optax.sgd(0.1),
    rule=gossip.nearest_neighbor_averaging(num_byzantine=1),
    attack=gossip.dissensus(),
    byzantine=1,
  )
  byzjax.d_sgd(
    loss_fn,
    topology=topology.ring(8),
    learning_rate=0.1,
    consensus=0.1,
    attack=gossip.alone(byzjax.sign_flip(scale=2.0)),
    byzantine=1,
  )


def rounds_with_events_and_modules(mesh: Mesh) -> None:
  byzjax.asynchronous_round(
    loss_fn,
    events=asynchrony.simulate([1.0, 1.0, 2.5], num_events=90),
    optimizer=optax.sgd(0.1),
    mesh=mesh,
  )
  byzjax.modular_round(
    lambda params, batch: jnp.sum(params[0]),
    paths=np.zeros((4, 1), int),
    local_optimizer=optax.sgd(0.1),
    num_local_steps=2,
    optimizer=optax.sgd(1.0),
    aggregator=byzjax.mean(),
    worker=byzjax.worker_momentum(0.9),
    mesh=mesh,
  )
