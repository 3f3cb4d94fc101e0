"""Redundant groups: how many have a Byzantine majority at random positions."""

import fractions
import math

from byzjax._src import checks, groups


def max_corrupted_groups(
  num_workers: int, num_byzantine: int, group_size: int
) -> int:
  """The maximum number of groups in which f workers can have a majority.

  `min(floor(f / ((r + 1) / 2)), n / r)`; `worst_case_byzantine` attains it.

  Args:
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f <= n`.
    group_size: r >= 1, an odd Python int that divides n.

  Returns:
    The number, an int.

  Raises:
    ValueError: if an argument is not an int in its range.

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205.

  Example:
    >>> import byzjax
    >>> byzjax.theory.max_corrupted_groups(45, 5, 3)
    2
  """
  _check('max_corrupted_groups', num_workers, num_byzantine, group_size)
  majority = (group_size + 1) // 2
  return min(num_byzantine // majority, num_workers // group_size)


def expected_corrupted_groups(
  num_workers: int, num_byzantine: int, group_size: int
) -> float:
  """The expected number of groups with a Byzantine majority.

  `n / r P[X >= (r + 1) / 2]` for Byzantine workers at random positions, where X
  is hypergeometric: r draws from n workers of which f are Byzantine. Exact up
  to the final rounding.

  Args:
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f <= n`.
    group_size: r >= 1, an odd Python int that divides n.

  Returns:
    The expectation, a float.

  Raises:
    ValueError: if an argument is not an int in its range.

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205, which gives
    an upper bound.

  Example:
    >>> import byzjax
    >>> round(byzjax.theory.expected_corrupted_groups(45, 5, 3), 4)
    0.4334
  """
  n, f, r = num_workers, num_byzantine, group_size
  _check('expected_corrupted_groups', n, f, r)
  ways = sum(
    math.comb(f, k) * math.comb(n - f, r - k)
    for k in range((r + 1) // 2, r + 1)
  )
  return float(fractions.Fraction(n // r * ways, math.comb(n, r)))


def corrupted_groups_distribution(
  num_workers: int, num_byzantine: int, group_size: int
) -> tuple[float, ...]:
  """The distribution of the number of groups with a Byzantine majority.

  For Byzantine workers at random positions, by counting: of the `C(n, f)` sets
  of Byzantine workers, the number with a majority in k groups is the
  coefficient of `s^k t^f` in `(sum_x C(r, x) t^x s^[x > r/2])^(n/r)`.

  Args:
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f <= n`.
    group_size: r >= 1, an odd Python int that divides n.

  Returns:
    The probabilities of 0, 1, ..., `max_corrupted_groups(n, f, r)` such groups,
    floats.

  Raises:
    ValueError: if an argument is not an int in its range.

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205.

  Example:
    >>> import byzjax
    >>> [round(p, 4)
    ...  for p in byzjax.theory.corrupted_groups_distribution(45, 5, 3)]
    [0.5973, 0.372, 0.0307]
  """
  n, f, r = num_workers, num_byzantine, group_size
  _check('corrupted_groups_distribution', n, f, r)
  most = max_corrupted_groups(n, f, r)
  # ways[k, t]: sets of t attackers with a majority in k of the groups so far.
  ways = {(0, 0): 1}
  for _ in range(n // r):
    longer: dict[tuple[int, int], int] = {}
    for (k, t), count in ways.items():
      for x in range(min(r, f - t) + 1):
        place = (k + (2 * x > r), t + x)
        longer[place] = longer.get(place, 0) + count * math.comb(r, x)
    ways = longer
  total = math.comb(n, f)
  return tuple(
    float(fractions.Fraction(ways.get((k, f), 0), total))
    for k in range(most + 1)
  )


def _check(name, num_workers, num_byzantine, group_size):
  groups.check_groups(name, group_size, num_workers)
  checks.check_count(name, 'num_byzantine', num_byzantine)
  if num_byzantine > num_workers:
    raise ValueError(
      f'{name} needs num_byzantine <= num_workers, got {num_byzantine} and'
      f' {num_workers}'
    )
