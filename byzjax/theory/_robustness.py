"""Robustness bounds of aggregation rules: kappa, lambda, breakdown."""

import math

from byzjax._src import base, checks
from byzjax.theory import _bounds, _names


def kappa_lower_bound(num_workers: int, num_byzantine: int) -> float:
  """A lower bound on the kappa of any rule: `f / (n - 2f)`.

  Proof: let n - f messages be 0 and f be 1. If the zeros are honest, the
  aggregate must be 0. If instead f of the zeros are Byzantine, the honest mean
  is f / (n - f), so the error is that, and V is `f (n - 2f) / (n - f)^2`.

  Args:
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f < n/2`.

  Returns:
    The bound, as a float.

  Raises:
    ValueError: if an argument is not an int in its range.

  References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2023,
    arXiv:2302.01772.

  Example:
    >>> import byzjax
    >>> byzjax.theory.kappa_lower_bound(9, 3)
    1.0
  """
  checks.check_count('kappa_lower_bound', 'num_workers', num_workers, 1)
  checks.check_count('kappa_lower_bound', 'num_byzantine', num_byzantine)
  checks.check_majority('kappa_lower_bound', num_workers, num_byzantine)
  return num_byzantine / (num_workers - 2 * num_byzantine)


def kappa_bound(
  rule: str | base.Aggregator,
  num_workers: int,
  num_byzantine: int,
  *,
  num_neighbors: int | None = None,
  num_selected: int | None = None,
) -> float | None:
  """The smallest proved kappa for which a rule is (f, kappa)-robust.

  That is, `|aggregate - xbar|^2 <= kappa / |S| sum_{i in S} |x_i - xbar|^2` for
  all n messages and all sets S of n - f of them, with xbar the mean over S.
  With h = n - f and r = f / (n - 2f):

  ================================= ========================== =========
  rule                              bound                      published
  ================================= ========================== =========
  trimmed_mean                      r                          6r (1+r)
  coordinate_median, n odd          (n-1) / (n+1-2f)           4 (1+r)^2
  coordinate_median, n even         (n-2) / (n+2-2f)           4 (1+r)^2
  the same, middle='lower'          n / (n-2f)
  geometric_median                  floor(n/2)/(ceil(n/2)-f)   4 (1+r)^2
  krum, n - f - 1 neighbours        (sqrt(2+2r) + sqrt(r))^2   6 (1+r)
  smallest_max_eigenvalue_averaging 4r                         4r (1+r)
  nearest_neighbor_mixing + X       8f/h (kappa_X + 1)         the same
  adaptive_clipping + X             kappa_X + k/(h-k), k below +2r
  ================================= ========================== =========

  The column "published" is from the first two references and the last. The
  bounds here are no larger and hold for all n > 2f; their proofs are in the
  source code, together with those for `krum` with k neighbours, `multi_krum`,
  `minimum_diameter_averaging`, `mean_around_median`, `phocas`, `aksel`,
  `bulyan` and `covariance_filter`. No rule has a smaller kappa than the trimmed
  mean, and the kappas of the two medians cannot be improved. In the last row k
  = floor(2 f h / n).

  For an `Aggregator`, its arguments decide which proof applies; without one the
  result is None. All arguments are covered except a `distance_power` other than
  2, `krum` and `multi_krum` with k < f or k >= n - f neighbours, more than n -
  f selected messages, and `bulyan(first_stage='multi_krum')`. The kappa of
  `geometric_median` is that of the exact median. It is returned only if the
  steps come close to it: at least 32 steps from the medoid, with a smoothing of
  at most 1e-6 (messages no farther apart than the smoothing are averaged, and
  have no such bound). A name stands for the default arguments with
  `num_byzantine=f`. All bounds are for rules without worker weights.

  Args:
    rule: an `Aggregator`, or its name: 'krum', or with pre-aggregators as in
      'nearest_neighbor_mixing + krum'.
    num_workers: n, a Python int.
    num_byzantine: f, a Python int that the rule tolerates (see `max_byzantine`)
      and was made for.
    num_neighbors: k of `krum` and `multi_krum`, for a name only; None for
      `n - f - 2`.
    num_selected: m of `multi_krum`, for a name only; None for `n - f`.

  Returns:
    The bound, as a float; inf if there is none, because the aggregate of equal
    honest messages is not always that message; None if nothing is known.

  Raises:
    ValueError: if the name is unknown, an argument is not an int in its range,
      or f is more than the rule tolerates or not the f that it was made for.

  References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2023,
    arXiv:2302.01772; Allouah, Guerraoui, Gupta, Pinot, Stephan, 2023,
    arXiv:2302.04787; Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, 2025,
    arXiv:2405.14432.

  Example:
    >>> import byzjax
    >>> byzjax.theory.kappa_bound('trimmed_mean', 9, 3)
    1.0
    >>> byzjax.theory.kappa_bound(byzjax.krum(num_byzantine=3), 9, 3)
    12.996...
  """
  n, f = num_workers, num_byzantine
  parts = _parts('kappa_bound', rule, n, f, num_neighbors, num_selected)
  return _bounds.kappa_of(parts, n, f) if _names.are_known(parts) else None


def _parts(function, rule, n, f, num_neighbors, num_selected):
  """The parts of a rule that stands f and is made for it, checked."""
  checks.check_count(function, 'num_workers', n, 1)
  checks.check_count(function, 'num_byzantine', f)
  _names.check_name(function, rule)
  parts = _names.parts_of(function, rule, f)
  for name, value in [
    ('num_neighbors', num_neighbors),
    ('num_selected', num_selected),
  ]:
    if value is None:
      continue
    checks.check_count(function, name, value, 1)
    config = parts[-1].config
    if not isinstance(rule, str) or not config or name not in config:
      raise ValueError(
        f'{function} takes {name} only with the name of a rule that has this'
        f' argument (an Aggregator has its own), got {value} for'
        f' {_names.rule_name(rule)!r}'
      )
    config[name] = value
  if _names.are_known(parts):
    _names.check_byzantine(function, rule, parts, n, f)
  return parts


def resilience_bound(
  rule: str | base.Aggregator,
  num_workers: int,
  num_byzantine: int,
  num_coordinates: int | None = None,
  *,
  num_neighbors: int | None = None,
  num_selected: int | None = None,
) -> float | None:
  """The smallest proved lambda for which a rule is (f, lambda)-resilient.

  That is, `|aggregate - xbar| <= lambda max_{i, j in S} |x_i - x_j|` for all n
  messages and all sets S of n - f of them, with xbar the mean over S. With h =
  n - f and D the largest distance, `V <= D^2 (h - 1) / (2h)`, so every kappa
  gives the lambda `sqrt(kappa (h - 1) / (2h))`. Some rules have a smaller one:

  - `minimum_diameter_averaging`: 2f/h, because the chosen set and S differ in
    at most f messages, and its diameter is no larger.
  - `krum` with k neighbours: `(h-1)/h + sqrt(k / (k+1-f))`, because the score
    of an honest message is at most k D^2, so that the chosen message has an
    honest neighbour at a distance of at most D times the root.
  - `geometric_median`: `(h-1) / sqrt(n (n - 2f))`, by lemma 2.1 of Minsker.
  - with d coordinates, `sqrt(d)` times the bound for one coordinate: f/h for
    `trimmed_mean`, 2f/h for `mean_around_median` and n/(2h) for
    `coordinate_median`.

  Args:
    rule: an `Aggregator`, or its name, as in `kappa_bound`.
    num_workers: n, a Python int.
    num_byzantine: f, a Python int that the rule tolerates.
    num_coordinates: d, a Python int; None for a bound that holds for any d.
    num_neighbors: as in `kappa_bound`.
    num_selected: as in `kappa_bound`.

  Returns:
    The bound, as a float; inf if there is none, None if nothing is known.

  Raises:
    ValueError: as for `kappa_bound`, or if d is not a positive int.

  References:
    Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2022, arXiv:2205.12173, for
    the definition, and bounds that are no smaller; Minsker, 2015,
    arXiv:1308.1334.

  Example:
    >>> import byzjax
    >>> byzjax.theory.resilience_bound('minimum_diameter_averaging', 9, 3)
    1.0
  """
  name = 'resilience_bound'
  n, f, d = num_workers, num_byzantine, num_coordinates
  if d is not None:
    checks.check_count(name, 'num_coordinates', d, 1)
  parts = _parts(name, rule, n, f, num_neighbors, num_selected)
  if not _names.are_known(parts):
    return None
  kappa = _bounds.kappa_of(parts, n, f)
  if kappa is None or kappa == math.inf:
    return kappa
  h = n - f
  candidates = [math.sqrt(kappa * (h - 1) / (2 * h))]
  # What is special to the last rule says nothing of what is in front of it.
  if len(parts) == 1:
    candidates += _special(parts[0], n, f, d)
  return min(candidates)


def _special(part, n, f, d):
  """What is known of a rule, of which a kappa is, apart from that."""
  h, config = n - f, part.config
  if part.name == 'minimum_diameter_averaging':
    return [2 * f / h]
  if part.name == 'krum':
    k = _bounds.neighbors_of(config, n, f)
    return [(h - 1) / h + math.sqrt(k / (k + 1 - f))]
  if part.name == 'geometric_median':
    return [(h - 1) / math.sqrt(n * (n - 2 * f))]
  for_one = {
    'coordinate_median': n / (2 * h),
    'mean_around_median': 2 * f / h,
    'trimmed_mean': f / h,
  }
  if d is None or config.get('num_kept') not in (None, h):
    return []
  return [math.sqrt(d) * for_one[name] for name in for_one if name == part.name]


def max_byzantine(rule: str | base.Aggregator, num_workers: int) -> int | None:
  """The largest number of Byzantine messages for which a rule is defined.

  `krum` and `multi_krum` need `n >= 2f + 3`, `bulyan` needs `n >= 4f + 3`,
  `mean` tolerates none, and all others need `n > 2f`, because with half of the
  messages Byzantine it is impossible to tell which half. That a rule accepts an
  f does not mean that it tolerates any f messages: see `kappa_bound` and
  `byzjax.analysis.breakdown_point`.

  Args:
    rule: an `Aggregator`, or its name, as in `kappa_bound`. Of an `Aggregator`
      all arguments count except its own `num_byzantine`.
    num_workers: n, a Python int.

  Returns:
    The largest f, a Python int. None if it is not known: for a rule that no
    factory of byzjax made, and for names after `bucketing`, `resampling` or
    `group_vote`, because the number of corrupted messages depends on the
    arguments of these.

  Raises:
    ValueError: if the rule is unknown, or does not accept n messages at all.

  References:
    Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, arXiv:1703.02757; El Mhamdi,
    Guerraoui, Rouault, 2018, arXiv:1802.07927.

  Example:
    >>> import byzjax
    >>> [byzjax.theory.max_byzantine(rule, 15) for rule in ('krum', 'bulyan')]
    [6, 3]
  """
  name = 'max_byzantine'
  checks.check_count(name, 'num_workers', num_workers, 1)
  _names.check_name(name, rule)
  parts = _names.parts_of(name, rule)
  if not _names.are_known(parts) or _names.depends(parts):
    return None
  return _names.most_byzantine(name, rule, parts, num_workers)


def clipping_displacement(
  radius: float, num_workers: int, num_byzantine: int, num_iterations: int = 1
) -> float:
  """How far f messages can move `centered_clipping`: `2 f tau L / n`.

  This bounds the distance between its results for any two choices of f of the n
  messages; half of it if the result would otherwise be at the centre. Proof:
  each of the L steps is the mean of n non-expansive maps `v -> v + clip(x_i -
  v)`, and a change of x_i changes one of these by at most 2 tau.

  Args:
    radius: tau >= 0.
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f <= n`.
    num_iterations: L >= 1, a Python int.

  Returns:
    The bound, as a float.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Karimireddy, He, Jaggi, 2021, arXiv:2012.10333, for the rule.

  Example:
    >>> import byzjax
    >>> byzjax.theory.clipping_displacement(1.0, 10, 2, num_iterations=3)
    1.2
  """
  name = 'clipping_displacement'
  checks.check_range(name, 'radius', radius, 0)
  checks.check_count(name, 'num_workers', num_workers, 1)
  checks.check_count(name, 'num_byzantine', num_byzantine)
  checks.check_count(name, 'num_iterations', num_iterations, 1)
  if num_byzantine > num_workers:
    raise ValueError(
      f'{name} needs num_byzantine <= num_workers, got {num_byzantine} and'
      f' {num_workers}'
    )
  return 2 * num_byzantine * float(radius) * num_iterations / num_workers


def quantile_clipping_error(
  start: float,
  deviation: float,
  num_workers: int,
  num_byzantine: int,
  *,
  quantile: float = 0.5,
  radius: float = 1.0,
  num_iterations: int = 1,
) -> float:
  r"""The distance of `centered_clipping(quantile=...)` to the honest mean.

  .. math::
    E_{l + 1} = \frac{(1 + c) f}{n} E_l
      + \frac{c f + 2 (n - k)}{n} R, \qquad k = \lceil q n \rceil

  It is at most E_L, with `E_0 = |v - mean|` at the start, R the largest `|x_i -
  mean|` of honest messages, c the factor `radius` and q the quantile, if f of n
  messages are Byzantine, `f < k <= n - f` and c >= 1. If `(1 + c) f < n` the
  error decreases geometrically to a multiple of R, from any start.

  Proof: the k-th smallest distance is at most that of the k-th honest message,
  E + R, so a Byzantine message pulls by at most c (E + R). It is at least that
  of the (k - f)-th honest message, so an honest message, which is between E - R
  and E + R away, loses at most 2 R by clipping, and at most n - k are clipped.
  Apart from this, n - f of the n terms point to the honest mean; the others
  contribute at most f E / n.

  Args:
    start: E_0 >= 0, in the units of the messages.
    deviation: R >= 0, in the same units.
    num_workers: n, a Python int.
    num_byzantine: f, a Python int >= 0.
    quantile: q, with `f < ceil(q n) <= n - f`.
    radius: c >= 1.
    num_iterations: L >= 1, a Python int.

  Returns:
    The bound on `|aggregate - honest mean|`, a float in the units of E and R.

  Raises:
    ValueError: if an argument is not in its range, or f Byzantine workers could
      control the quantile.

  References:
    Proved above; Karimireddy, He, Jaggi, 2021, arXiv:2012.10333, for the rule.

  Example:
    >>> import byzjax
    >>> byzjax.theory.quantile_clipping_error(8.0, 0.0, 10, 2)
    3.2
  """
  name = 'quantile_clipping_error'
  n, f = num_workers, num_byzantine
  checks.check_range(name, 'start', start, 0)
  checks.check_range(name, 'deviation', deviation, 0)
  checks.check_count(name, 'num_workers', n, 1)
  checks.check_count(name, 'num_byzantine', f)
  checks.check_range(name, 'quantile', quantile, 0, 1)
  checks.check_range(name, 'radius', radius, 1)
  checks.check_count(name, 'num_iterations', num_iterations, 1)
  k = math.ceil(quantile * n * (1 - 1e-6))  # As the rule counts.
  if not f < k <= n - f:
    raise ValueError(
      f'{name} needs num_byzantine < ceil(quantile num_workers) <= num_workers'
      f' - num_byzantine, got {f}, {k} and {n - f}'
    )
  error = float(start)
  for _ in range(num_iterations):
    error *= (1 + radius) * f / n
    error += (radius * f + 2 * (n - k)) / n * deviation
  return error
