"""One valid call of every public factory, and a first use of what it makes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import byzjax

N, D = 11, 3


class Call(NamedTuple):
  """A call of a factory.

  Attributes:
    arguments: by name, all that are needed, and the optional ones whose default
      would not let a wrong value be seen.
    use: what is done with what it makes, at most up to a trace.
  """

  arguments: dict[str, Any] = {}
  use: Callable[[Any], Any] | None = None


def loss_fn(params, batch):
  return jnp.sum(params * batch)


def _messages():
  return jax.ShapeDtypeStruct((N, D), 'float32')


def _params():
  return jax.ShapeDtypeStruct((D,), 'float32')


def rule_once(rule):
  def once(x):
    return rule.update(x, rule.init(x[0]), key=jax.random.key(0))[0]

  return jax.eval_shape(once, _messages())


def trusting_once(rule):
  def once(x):
    return rule.update(x, rule.init(x[0]), trusted=x[0])[0]

  return jax.eval_shape(once, _messages())


def stage_once(stage):
  def once(x):
    return stage.apply(x, stage.init(x[0]), key=jax.random.key(0))[0]

  return jax.eval_shape(once, _messages())


def attack_once(attack):
  def once(x):
    is_byzantine = jnp.arange(N) < 2
    state = attack.init(x[0])
    x, state = attack.apply(
      x,
      state,
      is_byzantine=is_byzantine,
      key=jax.random.key(0),
      aggregator_state=byzjax.mean().init(x[0]),
      num_coordinates=D,
    )
    if attack.observe is not None:
      attack.observe(state, x[0])
    return x

  return jax.eval_shape(once, _messages())


def data_attack_once(attack):
  def once(x):
    labels = jnp.zeros((N, 2), int)
    return attack((x, labels), jnp.arange(N) < 2, jax.random.key(0))

  return jax.eval_shape(once, _messages())


def poison_once(attack):
  def once(images):
    labels = jnp.zeros((N, 2), int)
    return attack((images, labels), jnp.arange(N) < 2, jax.random.key(0))

  return jax.eval_shape(once, jax.ShapeDtypeStruct((N, 2, 8, 8, 1), 'float32'))


def on_images(trigger):
  images = jax.ShapeDtypeStruct((2, 16, 16, 1), 'float32')
  jax.eval_shape(trigger.apply, images)


def codec_once(codec):
  def once(x):
    payload, _ = codec.encode(
      x, codec.init(x), jax.random.key(0), num_coordinates=D
    )
    return codec.decode(payload), codec.bits_per_message(payload, D)

  return jax.eval_shape(once, jax.ShapeDtypeStruct((32,), 'float32'))


def on_params(tx):
  tx = optax.with_extra_args_support(tx)

  def once(x):
    return tx.update(x, tx.init(x), x, gradient_fn=lambda params: params)

  return jax.eval_shape(once, _params())


def on_messages(tx):
  """Stacked gradients go in."""

  def once(x):
    return tx.update(x, tx.init(x[0]), x[0])

  return jax.eval_shape(once, _messages())


def arrival(tx):
  """One message of one worker."""

  def once(x):
    return tx.update(
      x,
      tx.init(x),
      x,
      worker=jnp.int32(0),
      staleness=jnp.int32(1),
      issued_at=jnp.int32(0),
      progress=jnp.int32(1),
      round=jnp.int32(1),
      stale_params=x,
    )

  return jax.eval_shape(once, _params())


F = {'num_byzantine': 2}
RULES = {
  'aksel': F,
  'bulyan': F,
  'centered_clipping': {'radius': 1.0},
  'clipped_clustering': {},
  'clustering': {},
  'comparative_gradient_elimination': F,
  'coordinate_median': {},
  'covariance_filter': F,
  'divide_and_conquer': F,
  'faba': F,
  'from_column': {'column_fn': lambda column: column[0]},
  'from_weights': {'weights_fn': lambda gram: gram.mask / N},
  'flame': {},
  'lasa': {},
  'fools_gold': {'num_workers': N},
  'geometric_median': {},
  'hierarchical': {
    'rule': byzjax.mean(),
    'bucket_rule': byzjax.mean(),
    'num_buckets': 1,
  },
  'krum': F,
  'majority_vote': {},
  'mean': {},
  'mean_around_median': F,
  'minimum_diameter_averaging': F,
  'monna': {'reference_worker': 0, **F},
  'multi_krum': F,
  'phocas': F,
  'sequential_centered_clipping': {'radius': 1.0},
  'sign_guard': {'fraction': 1.0},
  'smallest_max_eigenvalue_averaging': F,
  'trimmed_mean': F,
}
STAGES = {
  'adaptive_clipping': F,
  'bucketing': {'bucket_size': 2},
  'clip_messages': {'max_norm': 1.0},
  'nearest_neighbor_mixing': F,
  'resampling': {'num_samples': 2},
}
SEARCHED = {'attack': byzjax.alie(z=1.0), 'aggregator': byzjax.mean()}
ATTACKS = {
  'adaptive': SEARCHED,
  'adaptive_gradient': SEARCHED,
  'alie': {},
  'constant': {},
  'drift': {},
  'fang': {},
  'flip_vote': {},
  'gaussian': {},
  'inner_product_manipulation': {},
  'mimic': {},
  'min_max': {},
  'min_sum': {},
  'model_replacement': {'scale': 2.0},
  'neurotoxin': {},
  'random_signs': {},
  'relocated_orthogonal_perturbation': {},
  'replay': {'delay': 2, 'num_workers': N},
  'sign_flip': {},
}
CODECS = {
  'error_feedback': {'codec': byzjax.top_k_codec(num_kept=1)},
  'noisy_sign_codec': {'std': 1.0},
  'qsgd_codec': {},
  'scaled_sign_codec': {},
  'sign_codec': {},
  'sparsign_codec': {'budget': 1.0},
  'terngrad_codec': {},
  'top_k_codec': {'num_kept': 1},
}
RATE = {'learning_rate': 0.1}
CALLS = {
  **{name: Call(given, rule_once) for name, given in RULES.items()},
  **{name: Call(given, stage_once) for name, given in STAGES.items()},
  **{name: Call(given, attack_once) for name, given in ATTACKS.items()},
  **{name: Call(given, codec_once) for name, given in CODECS.items()},
  'alie_factor': Call({'num_workers': N, 'num_byzantine': 2}),
  'cap_weights': Call({'weights': jnp.ones(3), 'max_share': 0.5}),
  'delayed_momentum': Call(
    {'rule': byzjax.mean(), 'num_workers': N, 'decay': 0.1}, rule_once
  ),
  'detox': Call({'group_size': 1, 'rule': byzjax.mean()}, rule_once),
  'diagnose': Call({'aggregator': byzjax.mean(), 'messages': jnp.ones((N, D))}),
  'fl_trust': Call({}, trusting_once),
  'gas': Call({'rule': byzjax.mean(), **F}, rule_once),
  'group_vote': Call({'group_size': 1}, stage_once),
  'label_flip': Call({'num_classes': 3}, data_attack_once),
  'label_poison': Call({'num_classes': 3}, data_attack_once),
  'backdoor': Call(
    {'trigger': byzjax.patch_trigger(), 'target': 1}, poison_once
  ),
  'edge_case': Call(
    {'pool': jnp.zeros([3, 8, 8, 1]), 'target': 1}, poison_once
  ),
  'patch_trigger': Call({}, on_images),
  'distributed_trigger': Call({}, on_images),
  'blended_trigger': Call({}, on_images),
  'joint_attack': Call(
    {
      'data_attack': byzjax.label_flip(3),
      'message_attack': byzjax.model_replacement(scale=2.0),
    },
    data_attack_once,
  ),
  'worker_sharded': Call({'aggregator': byzjax.mean(), 'axis_name': 'workers'}),
  # Transforms.
  'guard': Call(
    {
      'optimizer': optax.sgd(0.1),
      'rule': byzjax.mean(),
      'num_microbatches': N,
    },
    on_messages,
  ),
  'average_iterates': Call({}, on_params),
  'by_sender': Call({'tx': optax.trace(0.9), 'num_workers': N}, arrival),
  'byz_sgdm': Call(
    {'aggregator': byzjax.mean(), 'num_workers': N, **RATE}, on_messages
  ),
  'byz_sgdnm': Call(
    {'aggregator': byzjax.mean(), 'num_workers': N, **RATE}, on_messages
  ),
  'clip_coordinates': Call({'threshold': 1.0}, on_params),
  'compensate_delay': Call({'strength': 0.5}, arrival),
  'delay_adaptive': Call({'num_workers': N}, arrival),
  'delayed_nesterov': Call({'num_buffered': 2, **RATE}, arrival),
  'discount_staleness': Call({}, arrival),
  'drop_stale': Call({'inner': optax.sgd(0.1), 'max_staleness': 3}, arrival),
  'lipschitz_filter': Call(
    {'inner': optax.sgd(0.1), 'num_workers': N, 'num_byzantine': 2}, arrival
  ),
  'normalize_by_global_norm': Call({}, on_params),
  'ordered_momentum': Call({'num_workers': N, **RATE}, arrival),
  'per_worker': Call({'tx': optax.trace(0.9), 'num_workers': N}, on_messages),
  'scale_by_clipped_adam': Call({}, on_params),
  'scale_by_delta_sgd': Call({}, on_params),
  'scale_by_preconditioner': Call({'lower_bound': 0.1}, on_params),
  'scale_by_progress': Call({'schedule': lambda progress: 1.0}, arrival),
  'scale_by_round': Call({'schedule': lambda round: 1.0}, arrival),
  'signum_majority_vote': Call({'num_workers': N, **RATE}, on_messages),
  'smega2': Call({'num_workers': N, **RATE}, arrival),
  'worker_momentum': Call({'decay': 0.9}, on_params),
  'zeno_plus_plus': Call(
    {'inner': optax.sgd(0.1), 'root_gradient': lambda w, refresh: w}, arrival
  ),
  # Gradients.
  'entropy_gradient': Call({'loss_fn': loss_fn, 'num_steps': 2, 'gamma': 0.1}),
  'byz_ef21': Call(
    {
      'codec': byzjax.top_k_codec(num_kept=1),
      'rule': byzjax.mean(),
      'num_workers': N,
    },
    lambda made: (codec_once(made.codec), rule_once(made.aggregator)),
  ),
  'byz_vr_marina': Call(
    {
      'loss_fn': loss_fn,
      'optimizer': optax.sgd(0.1),
      'batch_size': 2,
      'probability': 0.5,
      'key': jax.random.key(0),
    },
    lambda made: on_params(made.optimizer),
  ),
  'differentially_private_gradient': Call(
    {
      'loss_fn': loss_fn,
      'clip_norm': 1.0,
      'noise_multiplier': 1.0,
      'batch_size': 2,
    }
  ),
  'hutchinson_diagonal': Call({'loss_fn': loss_fn}),
  'saga': Call({'loss_fn': loss_fn, 'num_examples': 2}),
  'storm': Call({'loss_fn': loss_fn, 'decay': 0.9}),
  'sparsign_local_steps': Call(
    {'loss_fn': loss_fn, 'budget': 1.0, 'learning_rate': 0.1}
  ),
}
