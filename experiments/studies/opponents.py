"""The attacks and rules that studies of local objectives are tried with."""

from collections.abc import Callable

import byzjax

ATTACKS: dict[str, Callable] = {
  'none': lambda: None,
  'sign flip': byzjax.sign_flip,
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0 for 2 of 10.
}
RULES: dict[str, Callable] = {
  'mean': lambda f: byzjax.mean(),
  'nnm, median': lambda f: byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f), byzjax.coordinate_median()
  ),
}


def mixing_trimmed_mean(f: int) -> byzjax.Aggregator:
  """Nearest-neighbour mixing before a trimmed mean."""
  return byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f),
    byzjax.trimmed_mean(num_byzantine=f),
  )
