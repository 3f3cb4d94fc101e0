"""Theory: bounds from the papers, and their proofs, as plain Python floats."""

from byzjax.theory._robustness import (
  clipping_displacement,
  kappa_bound,
  kappa_lower_bound,
  max_byzantine,
  resilience_bound,
)

__all__ = [
  'clipping_displacement',
  'kappa_bound',
  'kappa_lower_bound',
  'max_byzantine',
  'resilience_bound',
]
