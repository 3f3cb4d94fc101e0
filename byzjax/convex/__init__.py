"""Convex: two-layer ReLU networks trained to a global optimum.

Training a network of one output with weight decay is a convex program over
blocks, one pair for every activation pattern. Nothing here needs a round;
`consensus_admm` solves it with Byzantine workers, through any rule.
"""

from byzjax.convex._admm import admm
from byzjax.convex._arrangements import arrangements, sample_arrangements
from byzjax.convex._consensus import ConsensusState, consensus_admm
from byzjax.convex._iteration import AdmmHistory, AdmmState
from byzjax.convex._problem import (
  objective,
  predict,
  violation,
  zero_threshold,
)
from byzjax.convex._recover import (
  Network,
  network_objective,
  network_outputs,
  recover_network,
)
from byzjax.convex._robust import robust_admm
from byzjax.convex._sampled_program import (
  SampledProgramState,
  sampled_network,
  sampled_program,
)

__all__ = [
  'AdmmHistory',
  'AdmmState',
  'ConsensusState',
  'Network',
  'SampledProgramState',
  'admm',
  'arrangements',
  'consensus_admm',
  'network_objective',
  'network_outputs',
  'objective',
  'predict',
  'recover_network',
  'robust_admm',
  'sample_arrangements',
  'sampled_network',
  'sampled_program',
  'violation',
  'zero_threshold',
]
