"""Groups of workers that compute the same: workers j r .. j r + r - 1."""

from typing import Any

from byzjax._src import checks


def check_group_size(name: str, group_size: Any) -> None:
  """Raises ValueError unless r is an odd int, so that votes never tie."""
  checks.check_count(name, 'group_size', group_size, 1)
  if group_size % 2 == 0:
    raise ValueError(f'{name} needs group_size to be odd, got {group_size}')


def check_groups(name: str, group_size: Any, num_workers: Any) -> None:
  """Raises ValueError unless n workers are a whole number of groups."""
  check_group_size(name, group_size)
  checks.check_count(name, 'num_workers', num_workers, 1)
  if num_workers % group_size:
    raise ValueError(
      f'{name} needs group_size to divide num_workers, got {group_size} and'
      f' {num_workers}'
    )
