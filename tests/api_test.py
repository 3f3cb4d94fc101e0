"""The public names, their documentation and their signatures."""

import inspect
import subprocess
import sys

import pytest

import byzjax

# DESIGN.md 2: names and parameters are a contract.
SIGNATURES = {
  'mean': [],
  'coordinate_median': [],
  'trimmed_mean': ['num_byzantine'],
  'krum': ['num_byzantine', 'num_neighbors'],
  'multi_krum': ['num_byzantine', 'num_selected'],
  'geometric_median': ['num_iterations', 'smoothing'],
  'centered_clipping': ['radius', 'num_iterations', 'quantile'],
  'mean_around_median': ['num_byzantine'],
  'phocas': ['num_byzantine'],
  'bulyan': ['num_byzantine'],
  'minimum_diameter_averaging': ['num_byzantine'],
  'smallest_max_eigenvalue_averaging': ['num_byzantine'],
  'monna': ['num_byzantine', 'reference_worker'],
  'covariance_filter': ['num_byzantine'],
  'divide_and_conquer': ['num_byzantine'],
  'comparative_gradient_elimination': ['num_byzantine'],
  'aksel': ['num_byzantine'],
  'faba': ['num_byzantine'],
  'fl_trust': [],
  'delayed_momentum': ['rule', 'num_workers', 'decay', 'participation'],
  'gas': ['rule', 'num_byzantine', 'num_pieces', 'permutation'],
  'sequential_centered_clipping': ['radius', 'bucket_size', 'clip_means'],
  'clustering': ['linkage'],
  'flame': ['noise'],
  'lasa': ['sparsity', 'max_norm_score', 'max_sign_score', 'like'],
  'fools_gold': ['num_workers', 'reduce', 'confidence'],
  'sign_guard': ['feature', 'method', 'fraction'],
  'clipped_clustering': ['linkage'],
  'majority_vote': [],
  'nearest_neighbor_mixing': ['num_byzantine'],
  'clip_messages': ['max_norm'],
  'adaptive_clipping': ['num_byzantine'],
  'resampling': ['num_samples'],
  'cap_weights': ['weights', 'max_share'],
  'bucketing': ['bucket_size'],
  'sign_flip': ['scale'],
  'inner_product_manipulation': ['epsilon'],
  'alie': ['z'],
  'gaussian': ['std'],
  'constant': ['value'],
  'mimic': [],
  'min_max': [],
  'min_sum': [],
  'fang': [],
  'relocated_orthogonal_perturbation': [],
  'drift': [],
  'flip_vote': [],
  'random_signs': [],
  'replay': ['delay'],
  'adaptive': ['attack', 'aggregator'],
  'adaptive_gradient': ['attack', 'aggregator'],
  'label_flip': ['num_classes'],
  'label_poison': ['num_classes', 'logits_fn', 'seed'],
  'backdoor': ['trigger', 'target', 'fraction', 'source'],
  'edge_case': ['pool', 'target', 'fraction'],
  'patch_trigger': ['size', 'value', 'corner', 'margin'],
  'distributed_trigger': ['length', 'gap', 'value', 'corner', 'margin'],
  'blended_trigger': ['pattern', 'alpha', 'seed'],
  'model_replacement': ['scale'],
  'neurotoxin': ['ratio'],
  'joint_attack': ['data_attack', 'message_attack'],
  'per_worker': ['tx', 'num_workers'],
  'worker_momentum': ['decay'],
  'clip_coordinates': ['fraction', 'threshold'],
  'scale_by_clipped_adam': ['fraction', 'b1', 'b2', 'eps'],
  'normalize_by_global_norm': [],
  'byz_sgdm': ['learning_rate', 'aggregator', 'num_workers'],
  'byz_sgdnm': ['learning_rate', 'aggregator', 'num_workers'],
  'robust_round': [
    'loss_fn',
    'worker',
    'aggregator',
    'optimizer',
    'num_workers',
    'attack',
    'byzantine',
    'mesh',
  ],
  'guard': ['optimizer', 'rule', 'num_microbatches'],
  'robust_reduce': [
    'messages',
    'rule',
    'worker_axis',
    'mesh',
    'specs',
    'state',
    'worker_weights',
    'attack',
    'is_byzantine',
    'key',
  ],
  'random_byzantine': ['num_workers', 'num_byzantine', 'key'],
  'random_participation': ['num_workers', 'num_participants', 'key'],
  'sign_codec': ['zeros'],
  'noisy_sign_codec': ['std'],
  'scaled_sign_codec': ['zeros'],
  'sparsign_codec': ['budget'],
  'qsgd_codec': ['norm'],
  'terngrad_codec': ['clip'],
  'top_k_codec': ['num_kept'],
  'byz_ef21': ['codec', 'rule', 'num_workers'],
  'byz_vr_marina': [
    'loss_fn',
    'optimizer',
    'batch_size',
    'probability',
    'key',
    'codec',
  ],
  'error_feedback': ['codec'],
  'signum_majority_vote': [
    'learning_rate',
    'num_workers',
    'momentum',
    'weight_decay',
  ],
  'sparsign_local_steps': ['loss_fn', 'budget', 'learning_rate'],
  'local_round': [
    'loss_fn',
    'local_optimizer',
    'num_local_steps',
    'aggregator',
    'optimizer',
    'num_workers',
    'local_state',
    'sampler',
    'participation',
    'attack',
    'byzantine',
    'mesh',
  ],
  'fed_avg': ['loss_fn', 'learning_rate', 'num_local_steps', 'num_workers'],
  'fed_prox': ['loss_fn', 'learning_rate', 'mu'],
  'fed_opt': ['loss_fn', 'learning_rate', 'optimizer'],
  'fed_dyn': ['loss_fn', 'learning_rate', 'alpha', 'participation'],
  'scaffold': ['loss_fn', 'learning_rate', 'aggregator', 'optimizer'],
  'from_work': ['work', 'participation', 'attack', 'codec', 'mesh'],
  'diloco': ['loss_fn', 'learning_rate', 'outer_momentum'],
  'constant_synchronization': ['total_steps', 'base_steps'],
  'post_local_synchronization': ['total_steps', 'base_steps', 'switch_step'],
  'linear_synchronization': ['learning_rate', 'growth', 'warmup_steps'],
  'quadratic_synchronization': ['learning_rate', 'growth', 'warmup_steps'],
  'scale_by_preconditioner': ['rule', 'decay', 'lower_bound'],
  'scale_by_delta_sgd': ['initial_step_size', 'gamma', 'damping'],
  'hutchinson_diagonal': ['loss_fn'],
  'saga': ['loss_fn', 'num_examples'],
  'storm': ['loss_fn', 'decay'],
  'differentially_private_gradient': [
    'loss_fn',
    'clip_norm',
    'noise_multiplier',
    'batch_size',
  ],
  'entropy_gradient': [
    'loss_fn',
    'num_steps',
    'gamma',
    'step_size',
    'noise',
    'momentum',
    'averaging',
    'weight_decay',
  ],
  'parle': ['loss_fn', 'learning_rate', 'num_workers', 'gamma', 'rho'],
  'elastic_averaging': ['loss_fn', 'local_optimizer', 'beta', 'alpha'],
  'replicas': ['state'],
  'target_projection': [
    'stages',
    'num_classes',
    'projection_key',
    'residual',
    'projection',
    'scale',
  ],
  'asynchronous_round': [
    'loss_fn',
    'events',
    'optimizer',
    'local_optimizer',
    'incoming',
    'buffer',
    'aggregator',
    'attack',
    'byzantine',
    'broadcast',
    'mesh',
  ],
  'ordered_momentum': ['learning_rate', 'num_workers', 'momentum'],
  'delayed_nesterov': ['learning_rate', 'num_buffered', 'activation'],
  'smega2': ['learning_rate', 'num_workers', 'momentum'],
  'delay_adaptive': ['num_workers'],
  'discount_staleness': ['exponent'],
  'compensate_delay': ['strength'],
  'drop_stale': ['inner', 'max_staleness'],
  'by_sender': ['tx', 'num_workers'],
  'lipschitz_filter': ['inner', 'num_workers', 'num_byzantine'],
  'zeno_plus_plus': ['inner', 'root_gradient'],
  'average_iterates': ['decay'],
  'scale_by_progress': ['schedule'],
  'scale_by_round': ['schedule'],
  'gossip_round': [
    'loss_fn',
    'topology',
    'optimizer',
    'rule',
    'consensus',
    'noise',
    'attack',
    'byzantine',
    'mesh',
  ],
  'd_sgd': ['loss_fn', 'topology', 'learning_rate', 'consensus'],
  'modular_round': [
    'loss_fn',
    'paths',
    'local_optimizer',
    'num_local_steps',
    'optimizer',
    'aggregator',
    'worker',
    'attack',
    'byzantine',
    'mesh',
  ],
  'worker_sharded': ['aggregator', 'axis_name', 'attack'],
  'sanitize': ['messages'],
}
# Rules and attacks name every hyper-parameter at the call.
POSITIONAL = {
  'adaptive', 'adaptive_gradient', 'asynchronous_round', 'average_iterates',
  'backdoor', 'edge_case', 'joint_attack', 'label_poison',
  'by_sender', 'byz_sgdm', 'byz_sgdnm', 'byz_vr_marina', 'cap_weights',
  'compensate_delay',
  'd_sgd', 'delay_adaptive', 'delayed_momentum', 'delayed_nesterov', 'diloco',
  'differentially_private_gradient', 'discount_staleness', 'drop_stale',
  'elastic_averaging', 'entropy_gradient', 'error_feedback',
  'fed_avg', 'fed_dyn', 'fed_opt', 'fed_prox', 'from_work', 'gas',
  'gossip_round', 'guard', 'hutchinson_diagonal',
  'label_flip', 'linear_synchronization', 'lipschitz_filter', 'local_round',
  'modular_round', 'ordered_momentum', 'parle', 'per_worker',
  'quadratic_synchronization', 'random_byzantine', 'random_participation',
  'replicas', 'robust_reduce', 'robust_round', 'saga', 'sanitize',
  'scaffold', 'scale_by_preconditioner', 'scale_by_progress', 'scale_by_round',
  'signum_majority_vote', 'smega2',
  'sparsign_local_steps', 'storm', 'target_projection', 'worker_momentum',
  'worker_sharded', 'zeno_plus_plus',
}  # fmt: skip
KEYWORD_ONLY = SIGNATURES.keys() - POSITIONAL
DEFAULTS = {
  ('krum', 'num_neighbors'): None,
  ('multi_krum', 'num_selected'): None,
  ('geometric_median', 'num_iterations'): 32,
  ('geometric_median', 'smoothing'): 1e-6,
  ('centered_clipping', 'num_iterations'): 1,
  ('alie', 'z'): None,
  ('sign_codec', 'zeros'): 'plus',
  ('scaled_sign_codec', 'zeros'): 'plus',
  ('robust_round', 'attack'): None,
  ('robust_round', 'mesh'): None,
  ('local_round', 'local_state'): 'keep',
  ('scale_by_delta_sgd', 'gamma'): 2.0,
  ('target_projection', 'residual'): 'l2',
  ('ordered_momentum', 'momentum'): 0.9,
  ('delayed_nesterov', 'momentum'): 0.9,
  ('delayed_nesterov', 'activation'): 0.0,
  ('gossip_round', 'attack'): None,
  ('asynchronous_round', 'attack'): None,
}
FIELDS = {
  'RoundState': (
    'step params workers attack aggregator optimizer codec server_codec'
  ),
  'RoundInfo': 'loss aggregation_error bits_up bits_down num_nonfinite',
  'Codec': 'init encode decode bits_per_message constrain',
  'Round': 'init step',
  'GradientEstimator': 'estimate num_gradients name',
  'PreAggregator': 'init apply',
  'Attack': 'init apply',
  'Aggregator': 'init update',
}


def test_all_is_sorted_and_complete():
  assert byzjax.__all__ == sorted(byzjax.__all__)
  assert len(set(byzjax.__all__)) == len(byzjax.__all__)
  public = {
    name
    for name, value in vars(byzjax).items()
    if not name.startswith('_') and not inspect.ismodule(value)
  }
  assert public == set(byzjax.__all__)


NAMESPACES = (
  byzjax.asynchrony,
  byzjax.convex,
  byzjax.gossip,
  byzjax.topology,
)
DOCUMENTED = [(byzjax, name) for name in byzjax.__all__] + [
  (module, name) for module in NAMESPACES for name in module.__all__
]


@pytest.mark.parametrize('module', NAMESPACES, ids=lambda m: m.__name__)
def test_namespaces_are_sorted(module):
  assert module.__all__ == sorted(module.__all__)


@pytest.mark.parametrize(
  'module, name', DOCUMENTED, ids=[name for _, name in DOCUMENTED]
)
def test_every_name_is_documented(module, name):
  value = getattr(module, name)
  assert value.__doc__ and value.__doc__.strip()
  if inspect.isfunction(value):
    sections = ['Args:'] if inspect.signature(value).parameters else []
    for section in [*sections, 'Returns:', 'Example:', '>>> ']:
      assert section in value.__doc__, section
    for parameter in inspect.signature(value).parameters:
      assert f'{parameter}:' in value.__doc__, parameter


@pytest.mark.parametrize('name', SIGNATURES)
def test_signatures(name):
  parameters = inspect.signature(getattr(byzjax, name)).parameters
  assert [p for p in SIGNATURES[name] if p not in parameters] == []
  kinds = {p.kind for p in parameters.values()}
  if name in KEYWORD_ONLY:
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}
  for (factory, parameter), default in DEFAULTS.items():
    if factory == name:
      assert parameters[parameter].default == default


@pytest.mark.parametrize('name', FIELDS)
def test_fields(name):
  fields = getattr(byzjax, name)._fields
  assert set(FIELDS[name].split()) <= set(fields)


def test_import_is_light():
  heavy = ['flax', 'tensorflow_datasets', 'matplotlib', 'sklearn']
  code = f'import sys, byzjax; print([m for m in {heavy} if m in sys.modules])'
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'


def test_packages_are_imported_when_they_are_used():
  code = """
import sys, byzjax
late = ['analysis', 'convex', 'data', 'models']
assert not [name for name in late if f'byzjax.{name}' in sys.modules]
for name in late:
  assert name in dir(byzjax) and getattr(byzjax, name).__all__
"""
  subprocess.run([sys.executable, '-c', code], check=True)


def test_a_name_that_is_not_there_says_which_one_is_near():
  with pytest.raises(AttributeError, match="no 'krumm'; did you mean 'krum'"):
    _ = byzjax.krumm
  assert not hasattr(byzjax, 'flower_strategies')
