"""Krum and multi-Krum: the messages with the closest neighbours."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, grams, recipes, rules


def krum_scores(
  gram: base.Gram, num_neighbors: int, distance_power: int = 2
) -> jax.Array:
  """`s_i = sum over the k nearest others of |x_i - x_j|^p`: float[n].

  Up to a common factor for p other than 2. Masked messages score +inf, and
  every other message less.
  """
  n = gram.mask.shape[0]
  distances = grams.squared_distances(gram)
  others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
  nearest = jnp.sort(others, axis=1)[:, :num_neighbors]
  if distance_power != 2:
    # In units of the best score, so that the power neither over- nor underflows
    # where scores are close.
    unit = nearest.sum(axis=1).min()
    unit = jnp.where(unit > 0, unit, 1)
    nearest = unit * (nearest / unit) ** (distance_power / 2)
  # Even an overflowing score is better than that of a masked message.
  scores = jnp.minimum(nearest.sum(axis=1), jnp.finfo(nearest.dtype).max)
  return jnp.where(gram.mask, scores, jnp.inf)


@recipes.factory
def krum(
  *,
  num_byzantine: int,
  num_neighbors: int | None = None,
  distance_power: int = 2,
) -> base.Aggregator:
  """The message with the smallest sum of distances to its neighbours (Krum).

  `aggregate = x_i` with `i = argmin_i sum_{j in N_k(i)} |x_i - x_j|^2`, where
  `N_k(i)` are the k nearest *other* messages. Ties go to the lowest index; the
  chosen message is returned bit for bit.

  Implementations differ in k and in the power of the distance: `k = n - f - 2`
  and power 2 is the paper, krum (the Python package) and Flower, and the
  default; `k = n - f - 1` is ByzFL, ByzPy and Garfield (which uses power 1);
  power 4 is the official code of centered clipping, and Blades.

  Args:
    num_byzantine: f, a Python int >= 0.
    num_neighbors: k, in `1 ... n - 1`; None for `n - f - 2`.
    distance_power: p >= 1 in `|x_i - x_j|^p`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if an argument is not an int in its range; at trace time unless
      `n >= 2f + 3`, or, when `num_neighbors` is given, `n > 2f` and `k < n`.

  References:
    Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, arXiv:1703.02757.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.krum(num_byzantine=1)(jnp.array([0., 1., 2., 3., 100.]))
    Array(1., dtype=float32)
  """
  return _krum('krum', num_byzantine, num_neighbors, 1, distance_power)


@recipes.factory
def multi_krum(
  *,
  num_byzantine: int,
  num_selected: int | None = None,
  num_neighbors: int | None = None,
  distance_power: int = 2,
) -> base.Aggregator:
  """The mean of the m messages with the lowest Krum scores.

  `aggregate = (1/m) sum_{i in S} x_i`, where S holds the m messages with the
  lowest scores of `krum`. Ties go to the lowest index.

  Implementations differ in m: ByzFL takes `n - f` (the default), Garfield and
  DETOX `n - f - 2`. The official code of centered clipping returns the sum, not
  the mean.

  Args:
    num_byzantine: f, a Python int >= 0.
    num_selected: m, in `1 ... n`; None for `n - f`.
    num_neighbors: k, as in `krum`.
    distance_power: p, as in `krum`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: as `krum`, and if m is not an int in `1 ... n`.

  References:
    Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, arXiv:1703.02757.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.multi_krum(num_byzantine=1)(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  if num_selected is not None:
    checks.check_count('multi_krum', 'num_selected', num_selected, 1)
  return _krum(
    'multi_krum', num_byzantine, num_neighbors, num_selected, distance_power
  )


def _krum(name, num_byzantine, num_neighbors, num_selected, distance_power):
  checks.check_count(name, 'num_byzantine', num_byzantine)
  checks.check_count(name, 'distance_power', distance_power, 1)
  if num_neighbors is not None:
    checks.check_count(name, 'num_neighbors', num_neighbors, 1)

  def weights_fn(gram):
    n = gram.mask.shape[0]
    _check_krum(name, n, num_byzantine, num_neighbors)
    selected = n - num_byzantine if num_selected is None else num_selected
    if selected > n:
      raise ValueError(
        f'{name} needs num_selected <= num_workers, got {selected} and {n}'
      )
    scores = krum_scores(
      gram, num_neighbors or n - num_byzantine - 2, distance_power
    )
    order = jnp.argsort(scores, stable=True)[:selected]
    # With fewer usable messages than `selected`, average those there are.
    chosen = jnp.zeros(n, bool).at[order].set(True) & gram.mask
    weights = chosen / jnp.maximum(chosen.sum(), 1)
    return base.AggregationInfo(weights, scores=scores)

  rule = rules.gram_rule_of(
    weights_fn, selects=True, selects_one=num_selected == 1
  )
  return rules.from_gram_rule(rule, name)


def _check_krum(name, n, num_byzantine, num_neighbors):
  if num_neighbors is None:
    if n < 2 * num_byzantine + 3:
      raise ValueError(
        f'{name} needs num_workers >= 2 * num_byzantine + 3, got {n} and'
        f' {num_byzantine}'
      )
    return
  checks.check_majority(name, n, num_byzantine)
  if num_neighbors > n - 1:
    raise ValueError(
      f'{name} needs num_neighbors <= num_workers - 1, got {num_neighbors}'
      f' and {n}'
    )
