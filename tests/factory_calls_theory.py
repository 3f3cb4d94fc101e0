"""The same for `byzjax.theory`, whose functions take plain numbers."""

from tests.factory_calls import Call, N

COUNTS = {'num_workers': N, 'num_byzantine': 2}
COST = {**COUNTS, 'num_gradients': 1000.0}
DIFFER = {'heterogeneity': 1.0, 'growth': 0.5}
DESCENT = {'num_rounds': 100, 'smoothness': 1.0, 'gap': 1.0}
STEP = {'learning_rate': 0.01}
MARINA = {
  'kappa': 0.5,
  'num_honest': 5,
  'batch_size': 4,
  'probability': 0.5,
  'example_smoothness': 2.0,
  'variance_factor': 1.0,
}
PRIVATE = {'sampling_rate': 0.1, 'num_rounds': 10, 'delta': 1e-5}
GROUPS = {'num_workers': 9, 'num_byzantine': 2, 'group_size': 3}
CALLS = {
  'theory.byz_sgdm_bound': Call({'batch_size': 4.0, **COST}),
  'theory.byz_sgdnm_bound': Call({'batch_size': 4.0, **COST}),
  'theory.clipping_displacement': Call({'radius': 1.0, **COUNTS}),
  'theory.byz_ef21_bound': Call(
    {'kappa': 0.5, 'contraction': 0.5, **STEP, **DESCENT, **DIFFER}
  ),
  'theory.byz_ef21_step_size': Call(
    {'kappa': 0.5, 'contraction': 0.5, 'smoothness': 1.0}
  ),
  'theory.byz_vr_marina_bound': Call(
    {'heterogeneity': 1.0, **MARINA, **STEP, **DESCENT}
  ),
  'theory.byz_vr_marina_step_size': Call({**MARINA, 'smoothness': 1.0}),
  'theory.heterogeneity_error': Call({'kappa': 0.5, **DIFFER}),
  'theory.heterogeneity_lower_bound': Call({**COUNTS, **DIFFER}),
  'theory.robust_descent_bound': Call({'kappa': 0.5, **DESCENT, **DIFFER}),
  'theory.robust_momentum_bound': Call(
    {
      'kappa': 0.5,
      'num_honest': 5,
      'learning_rate': 0.01,
      'decay': 0.9,
      'variance': 1.0,
      **DESCENT,
      **DIFFER,
    }
  ),
  'theory.privacy_noise_variance': Call(
    {
      'clip_norm': 1.0,
      'noise_multiplier': 1.0,
      'batch_size': 2,
      'num_coordinates': 3,
    }
  ),
  'theory.privacy_epsilon': Call({'noise_multiplier': 0.0, **PRIVATE}),
  'theory.privacy_noise_multiplier': Call(
    {'epsilon': 1.0, **PRIVATE, 'sampling_rate': 0.0}
  ),
  'theory.quantile_clipping_error': Call(
    {'start': 1.0, 'deviation': 1.0, **COUNTS}
  ),
  'theory.corrupted_groups_distribution': Call(GROUPS),
  'theory.expected_corrupted_groups': Call(GROUPS),
  'theory.golomb_bits': Call({'density': 0.1}),
  'theory.kappa_bound': Call({'rule': 'multi_krum', **COUNTS}),
  'theory.kappa_lower_bound': Call(COUNTS),
  'theory.max_byzantine': Call({'rule': 'krum', 'num_workers': N}),
  'theory.max_corrupted_groups': Call(GROUPS),
  'theory.optimal_batch_size': Call(COST),
  'theory.resilience_bound': Call({'rule': 'multi_krum', **COUNTS}),
  'theory.sampled_program_size': Call(
    {'num_examples': 10, 'improvement': 0.1, 'failure': 0.1}
  ),
  'theory.sign_error_bound': Call({'signal_to_noise': 1.0}),
  'theory.vote_error_bound': Call(
    {'p_right': 0.5, 'p_wrong': 0.1, 'num_workers': N}
  ),
}
