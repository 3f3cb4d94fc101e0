"""The tables of all rules and all attacks.

Every property test of `tests/` runs over these tables, so a row is a claim: an
oracle, the equivariances, and how much the method stands. A new method adds one
row to the file of its kind.
"""

from tests import (
  attack_rows,
  coordinate_rows,
  defence_rows,
  filter_rows,
  rule_rows,
  subset_rows,
  trust_rows,
)
from tests.claims import (
  NUM_WORKERS,
  SHAPES,
  SIZE,
  MessageAttack,
  Rule,
  random_messages,
  to_matrix,
  to_tree,
)

__all__ = [
  'ATTACKS',
  'NUM_WORKERS',
  'RULE',
  'RULES',
  'SHAPES',
  'SIZE',
  'MessageAttack',
  'Rule',
  'random_messages',
  'to_matrix',
  'to_tree',
]

RULES = (
  rule_rows.RULES
  + coordinate_rows.RULES
  + subset_rows.RULES
  + filter_rows.RULES
  + trust_rows.RULES
  + defence_rows.RULES
)
RULE = {rule.name: rule for rule in RULES}
# Of the pieces of `gas`, a rule that reads coordinates must have all of them.
ON_A_MESH = [name for name in RULE if name != 'gas_coordinate_median']
ATTACKS = attack_rows.ATTACKS
