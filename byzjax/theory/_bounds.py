"""The proved kappa of a rule for given arguments, n and f."""

import math
from collections.abc import Callable
from typing import Any

import jax

from byzjax.theory import _kappa, _names

Config = dict[str, Any]
Bound = Callable[[Config, int, int], float | None]
# From here on the steps of `geometric_median` are close to the exact median.
_WEISZFELD_STEPS = 32
_SMOOTHING = 1e-6


def kappa_of(parts: list[_names.Part], n: int, f: int) -> float | None:
  """The kappa of a rule behind its stages; None if nothing is known."""
  *stages, last = parts
  bound = _RULES.get(last.name)
  kappa = None if bound is None else bound(last.config or {}, n, f)
  for stage in reversed(stages):
    kappa = _behind(stage, n, f, kappa)
  return kappa


def neighbors_of(config: Config, n: int, f: int) -> int:
  """k of `krum` and `multi_krum`."""
  return config['num_neighbors'] or n - f - 2


def _krum(config, n, f):
  k = neighbors_of(config, n, f)
  if config['distance_power'] != 2 or not f <= k < n - f:
    return None
  return _kappa.krum(n, f, k)


def _multi_krum(config, n, f):
  m = config['num_selected'] or n - f
  if m > n - f or _krum(config, n, f) is None:
    return None
  return _kappa.multi_krum(n, f, neighbors_of(config, n, f), m)


def _bulyan(config, n, f):
  # Means of messages, which 'multi_krum' selects, are no part of S.
  if config['first_stage'] != 'krum':
    return None
  selected = config['num_selected'] or n - 2 * f
  averaged = config['num_averaged'] or selected - 2 * f
  if not 2 * f < selected <= n or averaged > selected - f:
    return None
  if config['second_stage'] == 'mean_around_median':
    center = _median(config, selected, f)
    second = _kappa.nearest_to_center(selected, f, averaged, center)
  else:
    trimmed = (selected - averaged) // 2
    if trimmed < f:
      return None
    second = _kappa.trimmed_mean(selected, f, trimmed)
  return _kappa.bulyan(n, f, selected, second)


def _median(config, n, f):
  if config['middle'] == 'lower':
    return _kappa.lower_median(n, f)
  return _kappa.coordinate_median(n, f)


def _around_median(name):
  """The mean of some messages, or values, closest to the median."""

  def bound(config, n, f):
    count = config[name] or n - f
    if count > n - f:
      return None
    return _kappa.nearest_to_center(n, f, count, _median(config, n, f))

  return bound


def _phocas(config, n, f):
  del config
  return _kappa.nearest_to_center(n, f, n - f, _kappa.trimmed_mean(n, f))


def _geometric_median(config, n, f):
  close = (
    config['start'] == 'medoid'
    and _number(config['num_iterations'], 0) >= _WEISZFELD_STEPS
    and _number(config['smoothing'], math.inf) <= _SMOOTHING
  )
  return _kappa.geometric_median(n, f) if close else None


def _divide_and_conquer(config, n, f):
  del n
  if not _names.Part('divide_and_conquer', config).is_default():
    return None
  return math.inf if f > 1 else 0.0 if f == 0 else None


def _elimination(config, n, f):
  # The sum of equal messages is not the message, unless there is one only.
  if config['reduce'] == 'sum' and n - f > 1:
    return math.inf
  return math.inf if f > 0 else 0.0


def _of_n_and_f(bound) -> Bound:
  return lambda config, n, f: bound(n, f)


def _none(config, n, f):
  del config, n, f
  return math.inf


def _none_within(name):
  """Clips to a length that is an argument; without one nothing is said."""

  def bound(config, n, f):
    del n, f
    is_finite = _number(config.get(name, 0), math.inf) < math.inf
    return math.inf if is_finite else None

  return bound


def _centered_clipping(config, n, f):
  # A radius that follows the messages has a bound, but no kappa is proved.
  if config.get('quantile') is not None:
    return None
  return _none_within('radius')(config, n, f)


def _number(value, otherwise):
  """A float, or something else where the value is traced."""
  return otherwise if isinstance(value, jax.core.Tracer) else float(value)


_RULES: dict[str, Bound] = {
  'aksel': _around_median('num_selected'),
  'bulyan': _bulyan,
  'centered_clipping': _centered_clipping,
  'clipped_clustering': _none,
  'clustering': _none,
  'comparative_gradient_elimination': _elimination,
  'coordinate_median': _median,
  'covariance_filter': _of_n_and_f(_kappa.covariance_filter),
  'divide_and_conquer': _divide_and_conquer,
  'fl_trust': _none,
  'flame': _none,
  'fools_gold': _none,
  'geometric_median': _geometric_median,
  'krum': _krum,
  'lasa': _none,
  'majority_vote': _none,
  'mean': lambda config, n, f: 0.0,
  'mean_around_median': _around_median('num_kept'),
  'minimum_diameter_averaging': _of_n_and_f(_kappa.minimum_diameter_averaging),
  'multi_krum': _multi_krum,
  'phocas': _phocas,
  'sequential_centered_clipping': _none_within('radius'),
  'sign_guard': _none,
  'smallest_max_eigenvalue_averaging': _of_n_and_f(
    _kappa.smallest_max_eigenvalue_averaging
  ),
  'trimmed_mean': _of_n_and_f(_kappa.trimmed_mean),
}
_BEHIND = {
  'adaptive_clipping': _kappa.adaptive_clipping,
  'nearest_neighbor_mixing': _kappa.nearest_neighbor_mixing,
}


def _behind(stage, n, f, kappa):
  if stage.name == 'clip_messages':
    return _none_within('max_norm')(stage.config, n, f)
  if kappa is None or stage.name not in _BEHIND:
    return None
  return kappa if kappa == math.inf else _BEHIND[stage.name](n, f, kappa)
