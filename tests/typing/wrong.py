"""A user's file in which mypy --strict reports each marked line, and no other.

Nothing here is run. optax has no types, and neither has what it is the base of:
of a rule or a transform in a wrong slot only byzjax says so, when it runs.
"""

from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import asynchrony, topology

SGD = optax.sgd(0.1)
RULE = byzjax.mean()
ATTACK = byzjax.alie(z=1.5)
RING = topology.ring(8)


def loss_fn(params: jax.Array, batch: jax.Array) -> jax.Array:
  return jnp.mean((params - batch) ** 2)


def rules_and_what_goes_with_them() -> None:
  byzjax.krum(num_byzantines=2)  # error: no such argument
  byzjax.krum(2)  # error: by name only
  byzjax.krum(num_byzantine='2')  # error: a number
  byzjax.alie(z='big')  # error: a number
  byzjax.qsgd_codec(norm=2)  # error: a name of a norm
  byzjax.worker_sharded(ATTACK, 'workers')  # error: an attack as a rule
  byzjax.worker_sharded(RULE, 0)  # error: an axis has a name
  print(byzjax.krumm)  # error: no such name


def rounds(state: byzjax.RoundState) -> None:
  assert_type(state.params, object)  # error: parameters are any pytree
  byzjax.robust_round(
    loss_fn,
    num_workers=8,
    aggregator=ATTACK,  # error: an attack as a rule
    optimizer=SGD,
  )
  byzjax.robust_round(
    loss_fn,
    num_workers=8,
    aggregator=RULE,
    optimizer=SGD,
    attack=byzjax.sign_codec(),  # error: a codec as an attack
  )
  byzjax.local_round(
    loss_fn,
    local_optimizer=SGD,
    num_local_steps=4,
    aggregator=RULE,
    optimizer=SGD,
    num_workers=8,
    local_state='forget',  # error: keep, reset or average
  )
  byzjax.gossip_round(
    loss_fn,
    topology=np.eye(8),  # error: a matrix is no topology
    optimizer=SGD,
  )
  byzjax.gossip_round(
    loss_fn,
    topology=RING,
    optimizer=SGD,
    local_state='average',  # error: keep or reset
    codec=ATTACK,  # error: an attack as a codec
  )
  byzjax.asynchronous_round(
    loss_fn,
    events=[0, 1, 2],  # error: a list is no simulation
    optimizer=SGD,
  )
  byzjax.asynchronous_round(
    loss_fn,
    events=asynchrony.simulate([1.0, 2.0], num_events=9),
    optimizer=SGD,
    codec=ATTACK,  # error: an attack as a codec
    mesh=8,  # error: a mesh, not its size
  )
  byzjax.modular_round(
    loss_fn,
    paths=4,  # error: an array of paths
    local_optimizer=SGD,
    num_local_steps=2,
    optimizer=SGD,
  )
  byzjax.modular_round(
    loss_fn,
    paths=np.zeros((4, 1), int),
    local_optimizer=SGD,
    num_local_steps=2,
    optimizer=SGD,
    byzantine_chain='no',  # error: whether
    mesh=8,  # error: a mesh, not its size
  )


def what_contradicts_a_method() -> None:
  byzjax.fed_avg(  # error: learning_rate says it
    loss_fn,
    learning_rate=0.1,
    num_local_steps=4,
    num_workers=8,
    local_optimizer=SGD,
  )
  byzjax.fed_prox(  # error: mu would be lost
    loss_fn,
    learning_rate=0.1,
    mu=0.1,
    num_local_steps=4,
    num_workers=8,
    value_and_grad=jax.value_and_grad(loss_fn),
  )
  byzjax.fed_opt(  # error: local SGD has none
    loss_fn,
    learning_rate=0.1,
    optimizer=SGD,
    num_local_steps=4,
    num_workers=8,
    local_state='keep',
  )
  byzjax.diloco(  # error: Nesterov momentum it is
    loss_fn,
    learning_rate=0.1,
    num_local_steps=4,
    num_workers=8,
    optimizer=SGD,
  )
  byzjax.parle(  # error: the aggregate is the new center
    loss_fn,
    learning_rate=0.1,
    num_workers=8,
    batches_per_epoch=10,
    optimizer=SGD,
  )
  byzjax.elastic_averaging(  # error: beta says how far the center moves
    loss_fn,
    local_optimizer=SGD,
    num_local_steps=4,
    num_workers=8,
    optimizer=SGD,
  )
  byzjax.d_sgd(  # error: learning_rate says it
    loss_fn,
    topology=RING,
    learning_rate=0.1,
    consensus=0.1,
    optimizer=SGD,
  )
  byzjax.d_sgd(  # error: it takes one step a round
    loss_fn,
    topology=RING,
    learning_rate=0.1,
    consensus=0.1,
    num_local_steps=4,
  )


def wrong_types() -> None:
  byzjax.fed_avg(
    loss_fn,
    learning_rate='0.1',  # error: a number or a schedule
    num_local_steps=4,
    num_workers=8,
  )
  byzjax.fed_avg(  # error: no num_workers
    loss_fn,
    learning_rate=0.1,
    num_local_steps=4,
  )
  byzjax.fed_prox(
    loss_fn,
    learning_rate=0.1,
    mu=None,  # error: a number
    num_local_steps=4,
    num_workers=8,
  )
  byzjax.fed_opt(
    loss_fn,
    learning_rate=0.1,
    optimizer=SGD,
    num_local_steps=4.0,  # error: a whole number
    num_workers=8,
  )
  byzjax.diloco(
    loss_fn,
    learning_rate=0.1,
    num_local_steps=4,
    num_workers=8,
    aggregator=byzjax.krum,  # error: a factory, not a rule
  )
  byzjax.parle(
    loss_fn,
    learning_rate=0.1,
    num_workers=8,
    batches_per_epoch=10,
    form='code',  # error: paper or released
  )
  byzjax.elastic_averaging(
    loss_fn,
    local_optimizer=SGD,
    num_local_steps=lambda step: 4,  # error: the same in every round
    num_workers=8,
  )
  byzjax.d_sgd(
    loss_fn,
    topology=RING,
    learning_rate=0.1,
    consensus=0.1,
    attack='dissensus',  # error: an attack, not its name
  )
  byzjax.elastic_averaging(
    loss_fn,
    local_optimizer=SGD,
    num_local_steps=4,
    num_workers=8,
    needs_key=jax.random.key(0),  # error: whether, not which
  )
  byzjax.replicas()  # error: of a state
