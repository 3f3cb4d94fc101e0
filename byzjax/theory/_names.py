"""Names of rules: how a composed one is taken apart, and what each stands."""

from collections.abc import Callable

from byzjax._src import base

# The most messages that may be Byzantine, of n.
MAX_BYZANTINE: dict[str, Callable[[int], int]] = {
  'mean': lambda n: 0,
  'krum': lambda n: (n - 3) // 2,
  'multi_krum': lambda n: (n - 3) // 2,
  'bulyan': lambda n: (n - 3) // 4,
} | dict.fromkeys(
  [
    'aksel',
    'centered_clipping',
    'clipped_clustering',
    'clustering',
    'comparative_gradient_elimination',
    'coordinate_median',
    'covariance_filter',
    'divide_and_conquer',
    'geometric_median',
    'majority_vote',
    'mean_around_median',
    'minimum_diameter_averaging',
    'monna',
    'phocas',
    'smallest_max_eigenvalue_averaging',
    'trimmed_mean',
  ],
  lambda n: (n - 1) // 2,
)
# After these a rule must stand f of n, as without them.
STAGES = ('adaptive_clipping', 'clip_messages', 'nearest_neighbor_mixing')
# After these it must stand f of fewer messages, or more of n; how many depends
# on an argument that the name does not have.
SPREADING = ('bucketing', 'group_vote', 'resampling')


def rule_name(rule: str | base.Aggregator) -> str:
  """The name of a rule, or the name itself."""
  return rule if isinstance(rule, str) else rule.name


def split(rule: str | base.Aggregator) -> tuple[list[str], str]:
  """The names of the pre-aggregators, in order, and that of the rule."""
  *stages, last = rule_name(rule).split(' + ')
  return stages, last


def is_known(rule: str | base.Aggregator) -> bool:
  """Whether there is anything to say about the rule and its stages."""
  stages, last = split(rule)
  return last in MAX_BYZANTINE and all(
    stage in STAGES + SPREADING for stage in stages
  )


def check_known(function: str, rule: str | base.Aggregator) -> None:
  """Raises ValueError unless the rule and its pre-aggregators are known."""
  if not is_known(rule):
    raise ValueError(
      f'{function} needs rule to be, or to end after pre-aggregators in, one of'
      f' {sorted(MAX_BYZANTINE)}, got {rule_name(rule)!r}'
    )


def most_byzantine(function: str, rule: str | base.Aggregator, n: int) -> int:
  """The largest f for n messages; ValueError if the rule takes no n at all."""
  check_known(function, rule)
  base.check_count(function, 'num_workers', n, 1)
  most = MAX_BYZANTINE[split(rule)[1]](n)
  if most < 0:
    raise ValueError(
      f'{function} needs num_workers >= 3 for {rule_name(rule)}, got {n}'
    )
  return most


def check_byzantine(
  function: str, rule: str | base.Aggregator, n: int, f: int, most: int
) -> None:
  """Raises ValueError unless f is a count of at most `most`."""
  base.check_count(function, 'num_byzantine', f)
  if f > most:
    raise ValueError(
      f'{function} needs num_byzantine <= {most}, the most that'
      f' {rule_name(rule)} stands of {n} messages, got {f}'
    )
