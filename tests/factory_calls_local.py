"""The same for what is not a rule, an attack, a codec or a transform."""

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from byzjax import asynchrony, convex, data, gossip
from tests.factory_calls import Call, D, N, loss_fn
from tests.factory_calls_rounds import (
  EVENTS,
  RING,
  ROUNDS,
  SGD,
  STEPS,
  SYNC,
  round_once,
  squares,
)
from tests.factory_calls_theory import COUNTS, GROUPS

KEY = jax.random.key(0)


def modular_once(training):
  def once(params, x):
    return training.step(training.init(params), x, jax.random.key(0))

  params = tuple(jax.ShapeDtypeStruct((2, D), 'float32') for _ in range(2))
  x = jax.ShapeDtypeStruct((2, STEPS, D), 'float32')
  return jax.eval_shape(once, params, x)


def estimate_once(estimator):
  def once(x):
    return estimator(x[0], x, jax.random.key(0))

  return jax.eval_shape(once, jax.ShapeDtypeStruct((STEPS, D), 'float32'))


def mixed_once(rule):
  def once(x):
    return gossip.mix(rule, RING, x)

  return jax.eval_shape(once, jax.ShapeDtypeStruct((N, D), 'float32'))


def lied_once(attack):
  def once(x):
    is_byzantine = jnp.arange(N) < 2
    return gossip.mix(
      gossip.plain(),
      RING,
      x,
      attack=attack,
      is_byzantine=is_byzantine,
      key=jax.random.key(0),
    )

  return jax.eval_shape(once, jax.ShapeDtypeStruct((N, D), 'float32'))


def scheduled_once(schedule):
  jax.eval_shape(schedule, jax.ShapeDtypeStruct((), 'int32'))


X = np.array([[1.0, 2.0, 1.0], [-1.0, 1.0, 1.0], [0.5, -1.0, 1.0]])
Y = np.array([1.0, -1.0, 1.0])
X, Y = jnp.asarray(X, 'float32'), jnp.asarray(Y, 'float32')
PATTERNS = convex.sample_arrangements(X, 4, KEY)
PROGRAM = {
  'x': X,
  'y': Y,
  'arrangements': PATTERNS,
  'beta': 0.1,
  'rho': 0.1,
  'num_iterations': 1,
}
BLOCKS = jnp.zeros((2, PATTERNS.shape[1], 3))
LAYERS = [(jnp.ones((3, 4)), jnp.ones(4)), (jnp.ones((4, 2)), jnp.ones(2))]
IMAGES = np.zeros((24, 4, 4, 1), np.uint8)
LABELS = np.arange(24) % 4
PARTITION = data.iid(LABELS, 4)
FEATURES = np.random.default_rng(0).normal(size=(24, 3))
PACING = {'pacing': 'linear', 'full_at': 0.8, 'initial_share': 0.2}
SHARDED = {'labels': LABELS, 'num_workers': 4}
PER_EXAMPLE = {
  'images': IMAGES,
  'labels': LABELS,
  'loss_per_example': lambda params, images, labels: jnp.zeros(len(labels)),
}
SOFTMAX = {
  'features': lambda params, x: x,
  'classifier': lambda params: (params, None),
  'alpha': 0.1,
}
SEARCH = {'aggregator': byzjax.mean(), 'num_workers': 3, 'key': KEY}
BATCH = (jnp.ones((2, 3)), jnp.ones(2))
PGD = {
  'loss_fn': lambda params, batch: jnp.sum(batch[0] @ params),
  'params': jnp.ones(3),
  'batch': BATCH,
}
CALLS = {
  **{name: Call(given, round_once) for name, given in ROUNDS.items()},
  'asynchronous_round': Call(
    {'loss_fn': squares, 'events': EVENTS, 'optimizer': SGD}, round_once
  ),
  'constant_synchronization': Call({'total_steps': 8, 'base_steps': 2}),
  'linear_synchronization': Call({**SYNC, 'growth': 1.0}),
  'modular_round': Call(
    {
      'loss_fn': lambda path, x: sum(jnp.sum((p - x) ** 2) for p in path),
      'paths': np.array([[0, 0], [1, 1]]),
      'local_optimizer': SGD,
      'num_local_steps': STEPS,
      'optimizer': SGD,
    },
    modular_once,
  ),
  'post_local_synchronization': Call(
    {'total_steps': 8, 'base_steps': 2, 'switch_step': 2}
  ),
  'quadratic_synchronization': Call({**SYNC, 'growth': 1.0}),
  'random_byzantine': Call({**COUNTS, 'key': KEY}, scheduled_once),
  'random_participation': Call(
    {'num_workers': N, 'num_participants': 2, 'key': KEY}
  ),
  'target_projection': Call(
    {
      'stages': [
        byzjax.Stage('out', lambda weights, h: h @ weights['out'], jnp.tanh)
      ],
      'num_classes': 3,
      'projection_key': KEY,
    }
  ),
  'worst_case_byzantine': Call(GROUPS),
  # Analysis.
  'analysis.attack_success_rate': Call(
    {
      'logits_fn': lambda params, images: images[:, 0, :, 0],
      'params': jnp.zeros([]),
      'images': jnp.zeros([2, 8, 8, 1]),
      'labels': jnp.zeros([2], int),
      'trigger': byzjax.patch_trigger(),
      'target': 1,
    }
  ),
  'analysis.breakdown_point': Call(
    {**SEARCH, 'num_draws': 1}
  ),
  'analysis.certificate': Call({'rule': 'krum', **COUNTS}),
  'analysis.directional_sharpness': Call({'loss_fn': loss_fn}),
  'analysis.draw_units': Call({'key': KEY, 'layers': LAYERS}),
  'analysis.dropout_stability': Call(
    {
      'loss_fn': lambda layers: jnp.sum(layers[0][0]),
      'layers': LAYERS,
      'num_draws': 1,
      'key': KEY,
    }
  ),
  'analysis.dropout_path': Call(
    {
      'layers_a': LAYERS,
      'layers_b': LAYERS,
      'keep': [np.arange(2)],
    }
  ),
  'analysis.empirical_kappa': Call(
    {**SEARCH, 'num_byzantine': 1, 'num_draws': 1, 'num_steps': 1}
  ),
  'analysis.loss_along_direction': Call({'loss_fn': loss_fn}),
  'analysis.loss_along_path': Call(
    {
      'path': jnp.ones((2, 3)),
      'loss_fn': lambda params: jnp.sum(params),
      'points_per_segment': 2,
    }
  ),
  'analysis.match_permutation': Call(
    {'layers_a': LAYERS, 'layers_b': LAYERS, 'num_sweeps': 1}
  ),
  # Asynchrony.
  'asynchrony.by_arrival': Call({'events': EVENTS, 'num_rows': 2}),
  'asynchrony.by_distinct_workers': Call({'events': EVENTS, 'num_rows': 2}),
  'asynchrony.by_worker': Call({'events': EVENTS, 'num_rows': N}),
  'asynchrony.dynamic_local_updates': Call(
    {'seconds_per_step': [1.0, 2.0], 'num_local_steps': 4}
  ),
  'asynchrony.events_from_trace': Call(
    {'workers': [0, 1, 0], 'times': [1.0, 2.0, 3.0]}
  ),
  'asynchrony.schedule': Call({'events': EVENTS}),
  'asynchrony.stack_schedules': Call(
    {'schedules': [asynchrony.schedule(EVENTS)]}
  ),
  'asynchrony.seconds_per_step': Call({'level': 'slight', 'num_workers': 4}),
  'asynchrony.simulate': Call(
    {'seconds_per_step': [1.0, 2.0], 'num_events': 4}
  ),
  # Convex programs.
  'convex.admm': Call(PROGRAM),
  'convex.consensus_admm': Call(
    {**PROGRAM, 'x': X[None], 'y': Y[None], 'arrangements': PATTERNS[None],
     'aggregator': byzjax.mean()}
  ),
  'convex.network_objective': Call(
    {'network': convex.recover_network(BLOCKS), 'x': X, 'y': Y, 'beta': 0.1}
  ),
  'convex.objective': Call(
    {'blocks': BLOCKS, 'x': X, 'y': Y, 'arrangements': PATTERNS, 'beta': 0.1}
  ),
  'convex.robust_admm': Call({**PROGRAM, 'epsilon': 0.1}),
  'convex.sample_arrangements': Call({'x': X, 'num_samples': 2, 'key': KEY}),
  'convex.sampled_program': Call(
    {
      'x': X,
      'y': Y,
      'vectors': jnp.ones((2, 3)),
      'beta': 0.1,
      'rho': 0.1,
      'num_iterations': 1,
    }
  ),
  'convex.violation': Call(
    {'blocks': BLOCKS, 'x': X, 'arrangements': PATTERNS}
  ),
  'convex.zero_threshold': Call(
    {'x': X, 'y': Y, 'arrangements': PATTERNS, 'num_iterations': 1}
  ),
  # Data.
  'data.client_curriculum': Call(
    {
      'num_workers': 4,
      'num_participants': 2,
      'total_rounds': 8,
      'score': lambda params, round: jnp.zeros(4),
    }
  ),
  'data.cluster_documents': Call({'features': FEATURES, 'num_paths': 2}),
  'data.curriculum': Call(
    {**PER_EXAMPLE, 'batch_size': 2, 'num_local_steps': 8.0, 'min_pool': 2}
  ),
  'data.dirichlet_by_class': Call({**SHARDED, 'alpha': 1.0}),
  'data.dirichlet_by_worker': Call({**SHARDED, 'alpha': 1.0}),
  'data.dirichlet_total': Call({**SHARDED, 'concentration': 1.0}),
  'data.discriminative_router': Call(
    {'features': FEATURES, 'scores': np.abs(FEATURES[:, :2])}
  ),
  'data.documents': Call({'tokens': np.arange(20), 'length': 4}),
  'data.held_out_workers': Call({'partition': PARTITION, 'num_held_out': 1}),
  'data.hold_out': Call({'partition': PARTITION, 'share': 0.5}),
  'data.iid': Call(SHARDED),
  'data.label_sorted': Call(SHARDED),
  'data.local_sampler': Call(
    {'images': IMAGES, 'labels': LABELS, 'batch_size': 2}
  ),
  'data.long_tail': Call({'labels': LABELS, 'ratio': 0.5}),
  'data.main_class': Call({**SHARDED, 'share': 0.5}),
  'data.pool_size': Call(
    {'step': 1, 'num_examples': 8, 'total_steps': 8, **PACING}
  ),
  'data.poisson_batch': Call(
    {
      'images': IMAGES,
      'labels': LABELS,
      'partition': PARTITION,
      'key': KEY,
      'batch_size': 2,
      'max_size': 4,
    }
  ),
  'data.product_cluster_documents': Call(
    {'features': FEATURES, 'num_modules': (2, 2)}
  ),
  'data.random_crop_and_flip': Call({'images': IMAGES, 'key': KEY}),
  'data.random_shards': Call(SHARDED),
  'data.redundant_groups': Call({'batch': jnp.ones((2, 3)), 'group_size': 3}),
  'data.rotation_shift': Call(
    {
      'partition': data.random_shards(LABELS, 4),
      'angles': [0.0, 90.0],
      'concentration': 1.0,
    }
  ),
  'data.routed_shards': Call({'paths': np.arange(6) % 2, 'num_paths': 2}),
  'data.sample_batch': Call(
    {
      'images': IMAGES,
      'labels': LABELS,
      'partition': PARTITION,
      'key': KEY,
      'batch_size': 2,
    }
  ),
  'data.sequence_sampler': Call(
    {'documents': jnp.ones((4, 6), int), 'batch_size': 2}
  ),
  'data.shuffled_batch': Call(
    {
      'images': IMAGES,
      'labels': LABELS,
      'partition': PARTITION,
      'key': KEY,
      'batch_size': 2,
      'step': 3,
    }
  ),
  'data.worker_loss': Call(PER_EXAMPLE),
  # Gossip.
  'gossip.aggregate': Call({'rule_for': lambda m: byzjax.mean()}, mixed_once),
  'gossip.alone': Call({'attack': byzjax.sign_flip(own=True)}, lied_once),
  'gossip.clipped': Call({}, mixed_once),
  'gossip.dissensus': Call({}, lied_once),
  'gossip.mix': Call(
    {'rule': gossip.plain(), 'topology': RING, 'messages': jnp.ones((N, D))}
  ),
  'gossip.nearest_neighbor_averaging': Call({'num_byzantine': 1}, mixed_once),
  'gossip.plain': Call({}, mixed_once),
  'gossip.trimmed': Call({'num_byzantine': 1}, mixed_once),
  # Models.
  'models.grid_paths': Call({'num_modules': (2, 2)}),
  # Objectives.
  'objectives.fedbr': Call(
    {
      'features': lambda params, x: x,
      'classify': lambda params, x: x,
      'pseudo_inputs': jnp.ones((2, 3)),
      'ascent_step_size': 0.1,
    }
  ),
  'objectives.mixup': Call({'loss_fn': squares}),
  'objectives.noisy_softmax': Call(SOFTMAX),
  'objectives.noisy_softmax_cross_entropy': Call(
    {
      'features': jnp.ones((2, 3)),
      'weights': jnp.ones((3, 4)),
      'bias': None,
      'labels': jnp.zeros(2, int),
      'alpha': 0.1,
      'key': KEY,
    }
  ),
  'objectives.pgd_inputs': Call(
    {**PGD, 'epsilon': 0.1, 'step_size': 0.1, 'num_steps': 1}
  ),
  'objectives.projection': Call({'key': KEY, 'num_features': 3, 'width': 2}),
  'objectives.proximal': Call({'loss_fn': squares, 'mu': 0.1}),
  'objectives.random_sample_means': Call(
    {
      'images': IMAGES,
      'partition': PARTITION,
      'key': KEY,
      'num_pseudo': 2,
      'num_averaged': 2,
    }
  ),
  'objectives.wasserstein': Call({'loss_fn': squares, 'gamma': 1.0}),
  'objectives.wasserstein_inputs': Call(
    {**PGD, 'gamma': 1.0, 'num_ascent_steps': 1}
  ),
  # Topology.
  'topology.chain': Call({'num_nodes': 4}),
  'topology.complete': Call({'num_nodes': 4}),
  'topology.dumbbell': Call({'clique_size': 3}),
  'topology.erdos_renyi': Call({'num_nodes': 4, 'probability': 0.9, 'seed': 0}),
  'topology.exponential': Call({'num_nodes': 4}),
  'topology.from_adjacency': Call({'adjacency': np.ones((2, 2)) - np.eye(2)}),
  'topology.laplacian': Call({'topology': RING}),
  'topology.laplacian_weights': Call({'topology': RING}),
  'topology.lazy': Call({'topology': RING}),
  'topology.ring': Call({'num_nodes': 4}),
  'topology.spectral_gap': Call({'topology': RING}),
  'topology.star': Call({'num_nodes': 4}),
  'topology.torus': Call({'rows': 2, 'columns': 2}),
}  # fmt: skip
