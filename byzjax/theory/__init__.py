"""Theory: bounds from the papers, and their proofs, as plain Python floats."""

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

__all__ = [
  'byz_sgdm_bound',
  'byz_sgdnm_bound',
  'clipping_displacement',
  'corrupted_groups_distribution',
  'expected_corrupted_groups',
  'golomb_bits',
  'kappa_bound',
  'kappa_lower_bound',
  'max_byzantine',
  'max_corrupted_groups',
  'optimal_batch_size',
  'quantile_clipping_error',
  'resilience_bound',
  'sampled_program_size',
  'sign_error_bound',
  'vote_error_bound',
]
