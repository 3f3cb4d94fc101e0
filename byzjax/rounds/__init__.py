"""Rounds of training."""

from byzjax.rounds._robust_round import random_byzantine, robust_round

__all__ = ['random_byzantine', 'robust_round']
