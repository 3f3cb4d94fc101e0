"""Rounds of training."""

from byzjax.rounds._robust_round import robust_round
from byzjax.rounds._schedules import random_byzantine, random_participation
from byzjax.rounds._worst_case_byzantine import worst_case_byzantine

__all__ = [
  'random_byzantine',
  'random_participation',
  'robust_round',
  'worst_case_byzantine',
]
