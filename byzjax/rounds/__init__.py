"""Training rounds: synchronous, local, gossip and asynchronous."""

from byzjax.rounds._asynchronous_round import asynchronous_round
from byzjax.rounds._d_sgd import d_sgd
from byzjax.rounds._diloco import diloco
from byzjax.rounds._elastic_averaging import elastic_averaging
from byzjax.rounds._fed_avg import fed_avg
from byzjax.rounds._fed_dyn import fed_dyn
from byzjax.rounds._fed_opt import fed_opt
from byzjax.rounds._fed_prox import fed_prox
from byzjax.rounds._from_work import from_work
from byzjax.rounds._gossip_round import gossip_round
from byzjax.rounds._local_round import local_round
from byzjax.rounds._modular_round import modular_round
from byzjax.rounds._parle import parle
from byzjax.rounds._replicas import replicas
from byzjax.rounds._robust_round import robust_round
from byzjax.rounds._scaffold import scaffold
from byzjax.rounds._schedules import random_byzantine, random_participation
from byzjax.rounds._synchronization import (
  constant_synchronization,
  linear_synchronization,
  post_local_synchronization,
  quadratic_synchronization,
)
from byzjax.rounds._work import Cohort, Work, WorkContext, WorkerOutput
from byzjax.rounds._worst_case_byzantine import worst_case_byzantine

__all__ = [
  'Cohort',
  'Work',
  'WorkContext',
  'WorkerOutput',
  'asynchronous_round',
  'constant_synchronization',
  'd_sgd',
  'diloco',
  'elastic_averaging',
  'fed_avg',
  'fed_dyn',
  'fed_opt',
  'fed_prox',
  'from_work',
  'gossip_round',
  'linear_synchronization',
  'local_round',
  'modular_round',
  'parle',
  'post_local_synchronization',
  'quadratic_synchronization',
  'random_byzantine',
  'random_participation',
  'replicas',
  'robust_round',
  'scaffold',
  'worst_case_byzantine',
]
