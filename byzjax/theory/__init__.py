"""Theory: bounds from the papers, as plain Python floats."""

from byzjax.theory._batch_size import (
  byz_sgdm_bound,
  byz_sgdnm_bound,
  optimal_batch_size,
)
from byzjax.theory._compression import (
  golomb_bits,
  sign_error_bound,
  vote_error_bound,
)
from byzjax.theory._convergence import (
  heterogeneity_error,
  heterogeneity_lower_bound,
  privacy_noise_variance,
  robust_descent_bound,
  robust_momentum_bound,
)
from byzjax.theory._privacy import (
  privacy_epsilon,
  privacy_noise_multiplier,
)
from byzjax.theory._redundancy import (
  corrupted_groups_distribution,
  expected_corrupted_groups,
  max_corrupted_groups,
)
from byzjax.theory._robustness import (
  clipping_displacement,
  kappa_bound,
  kappa_lower_bound,
  max_byzantine,
  quantile_clipping_error,
  resilience_bound,
)
from byzjax.theory._sampled_program import sampled_program_size
from byzjax.theory._variance_reduction import (
  byz_ef21_bound,
  byz_ef21_step_size,
  byz_vr_marina_bound,
  byz_vr_marina_step_size,
)

__all__ = [
  'byz_ef21_bound',
  'byz_ef21_step_size',
  'byz_sgdm_bound',
  'byz_sgdnm_bound',
  'byz_vr_marina_bound',
  'byz_vr_marina_step_size',
  'clipping_displacement',
  'corrupted_groups_distribution',
  'expected_corrupted_groups',
  'golomb_bits',
  'heterogeneity_error',
  'heterogeneity_lower_bound',
  'kappa_bound',
  'kappa_lower_bound',
  'max_byzantine',
  'max_corrupted_groups',
  'optimal_batch_size',
  'privacy_epsilon',
  'privacy_noise_multiplier',
  'privacy_noise_variance',
  'quantile_clipping_error',
  'resilience_bound',
  'robust_descent_bound',
  'robust_momentum_bound',
  'sampled_program_size',
  'sign_error_bound',
  'vote_error_bound',
]
