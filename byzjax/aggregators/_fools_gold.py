"""FoolsGold: downweights workers whose messages are too similar."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  kept_rows,
  nonfinite,
  recipes,
  reductions,
)
from byzjax.aggregators import _clustering

_REDUCES = ('mean', 'mean_of_all', 'sum')


class FoolsGoldState(NamedTuple):
  """State of `fools_gold`: the sum of each worker's messages, `[n, ...]`."""

  history: base.Messages


def trust(
  cosines: jax.Array,
  mask: jax.Array,
  confidence: base.Scalar = 1.0,
  epsilon: base.Scalar = 0.0,
) -> jax.Array:
  """The weight of each worker, from the cosines between them: float[n].

  Args:
    cosines: float[n, n]; the diagonal is not read.
    mask: bool[n], the workers to compare. The others get weight 0.
    confidence, epsilon: see `fools_gold`.
  """
  n = mask.shape[0]
  others = mask[:, None] & mask[None] & ~jnp.eye(n, dtype=bool)
  cosines = jnp.where(others, cosines, 0)
  most = cosines.max(axis=1) + epsilon
  # Honest workers that are like a sybil by chance are less so than sybils.
  pardoned = most[:, None] < most[None]
  ratio = most[:, None] / jnp.where(pardoned, most[None], 1)
  cosines = jnp.where(pardoned, cosines * ratio, cosines)
  trusted = jnp.clip(1 - cosines.max(axis=1), 0, 1)
  # Rounding would be lifted to 1 where everybody has a twin.
  rounding = 16 * jnp.finfo(cosines.dtype).eps
  trusted = jnp.where(mask & (trusted > rounding), trusted, 0)
  most = trusted.max()
  trusted = jnp.where(most > 0, trusted / jnp.where(most > 0, most, 1), mask)
  trusted = jnp.where(trusted >= 1, 0.99, trusted)
  odds = trusted / (1 - trusted) + epsilon
  gate = confidence * (jnp.log(jnp.where(odds > 0, odds, 1)) + 0.5)
  return jnp.where(mask & (odds > 0), jnp.clip(gate, 0, 1), 0)


def _divided(
  weights: jax.Array, mask: jax.Array, given: jax.Array | None, reduce: str
) -> jax.Array:
  """Over what `reduce` says; times the weights that workers were given."""
  counts = mask.astype(weights.dtype)
  if given is not None:
    given = given / jnp.maximum(given.max(), jnp.finfo(given.dtype).tiny)
    weights, counts = weights * given, counts * given
  if reduce == 'mean':
    return reductions.shares(mask, weights)
  if reduce == 'sum':
    if given is None:
      return weights
    weights = weights * mask.sum()
  # Of a masked worker the share is lost.
  total = len(counts) if given is None else counts.sum()
  return weights / jnp.where(total > 0, total, 1)


def _trusted(
  gram: base.Gram, reduce: str, confidence: base.Scalar, epsilon: base.Scalar
) -> base.AggregationInfo:
  """Weights of the messages, from inner products of what is compared."""
  gram = jax.lax.stop_gradient(gram)
  mask, given = gram.mask, gram.worker_weights
  if given is not None:
    mask = mask & (given > 0)
  cosines = 1 - _clustering.cosine_distances(gram)
  weights = trust(cosines, mask, confidence, epsilon)
  weights = _divided(weights, mask, given, reduce)
  others = mask[:, None] & mask[None] & ~jnp.eye(len(mask), dtype=bool)
  scores = jnp.where(others, cosines, 0).max(axis=1)
  return base.AggregationInfo(
    weights,
    gram.mask,
    kept=weights > 0,
    scores=jnp.where(mask, scores, jnp.inf),
  )


def _added(
  history: jax.Array, rows: calls.Rows, present: jax.Array, axis_name
) -> tuple[jax.Array, jax.Array]:
  """The history with the messages of those present, and its squared norms."""
  x = jax.lax.stop_gradient(rows.written()).astype(history.dtype)
  grown = history + jnp.where(present[:, None], x, 0)
  norms = reductions.squared_norms(grown, axis_name=axis_name)
  stays = ~nonfinite.usable_norms(norms)
  grown = jnp.where(stays[:, None], history, grown)
  return grown, reductions.squared_norms(grown, axis_name=axis_name)


@recipes.factory
def fools_gold(
  *,
  num_workers: int | None,
  reduce: str = 'mean',
  confidence: base.Scalar = 1.0,
  epsilon: base.Scalar = 0.0,
) -> base.Aggregator:
  """Downweights workers whose summed messages are similar (FoolsGold).

  A defence against sybils: many Byzantine workers that push in one direction.
  Let `H_i` be the sum of the messages of worker i over all rounds, and `c_ij =
  cos(H_i, H_j)` for `i != j`, `c_ii = 0`::

      v_i = max_j c_ij
      c_ij <- c_ij v_i / v_j                    where v_i < v_j
      a_i = 1 - max_j c_ij,  in [0, 1],  and divided by the largest
      a_i <- kappa (ln(a_i / (1 - a_i)) + 1/2),  in [0, 1]

  where an a_i of 1 counts as 0.99. The aggregate is `sum_i a_i x_i / sum_i
  a_i`, over the messages x_i of this round. f is not an input. In the first
  round the norms of the messages do not affect the weights; later, long
  messages count more in the history.

  The method assumes that honest workers differ from each other, because each
  has its own distribution of data. Honest workers with the same distribution
  look like sybils, and a single Byzantine worker is never detected. If every
  message has another one in the same direction, all a_i are zero; then all
  workers get the same weight.

  Masked messages, and workers of weight zero, are not compared and do not enter
  the history. A history that would overflow its dtype is not updated.

  Implementations differ. The official ones sum the messages without dividing
  (`reduce='sum'`); one has no epsilon, the other 1e-5 (in v, and added to the
  odds). FLPoison has 1e-6, and clips messages to norm 1 first (as
  `clip_messages` does). FL-Byzantine-Library divides by the sum, as here, keeps
  a history of ten rounds, and gives perfect sybils, whose a is exactly zero,
  the weight 1. The code for DBA divides by n (`reduce='mean_of_all'`). The
  paper can also weight coordinates by the last layer, which is off by default
  there and not implemented here.

  Args:
    num_workers: n, a Python int: the history takes n times the memory of the
      parameters. None compares the messages of the current round only, and has
      no state.
    reduce: what the weighted sum is divided by: 'mean', the sum of the weights;
      'mean_of_all', the number of workers; 'sum', nothing, so the aggregate is
      up to n times as long and needs a smaller learning rate.
    confidence: kappa > 0, the steepness of the logit function; may be traced.
    epsilon: >= 0, added to v and to the odds `a / (1 - a)`; may be traced.

  Returns:
    An `Aggregator` with a `FoolsGoldState`, or without state: leaves `[n,
    *shape] -> [*shape]`. With `worker_weights` p, `p_i a_i` replaces `a_i`,
    with p in units of its mean. `inspect` reports the weights, and as `scores`
    the v_i before c_ij is rescaled.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if there are
      not `num_workers` messages.

  References:
    Fung, Yoon, Beschastnikh, 2018, arXiv:1808.04866.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> x = jnp.array([[1., 0.], [0., 1.], [-3., -3.], [-4., -4.]])
    >>> byzjax.fools_gold(num_workers=4)(x)
    Array([0.5, 0.5], dtype=float32)
  """
  name = 'fools_gold'
  if num_workers is not None:
    checks.check_count(name, 'num_workers', num_workers, 1)
  checks.check_choice(name, 'reduce', reduce, _REDUCES)
  checks.check_range(name, 'confidence', confidence, 0, exclusive=True)
  checks.check_range(name, 'epsilon', epsilon, 0)

  def info_of(gram):
    return _trusted(gram, reduce, confidence, epsilon)

  def compared(rows, norms, mask, call):
    gram = _clustering.gram_of_directions(rows, norms, mask, call.axis_name)
    return gram._replace(worker_weights=call.worker_weights)

  def aggregate(rows, state, call):
    norms = reductions.squared_norms(rows, axis_name=call.axis_name)
    mask = nonfinite.usable_norms(norms)
    past = rows, norms
    if num_workers is not None:
      if rows.shape[0] != num_workers:
        raise ValueError(
          f'{name} needs num_workers={num_workers} messages, got'
          f' {rows.shape[0]}'
        )
      history, layout = flat.ravel_rows(name, state.history)
      found, wanted = [*history.shape], [*rows.shape]
      checks.check_remembered(name, found, wanted, 'messages {}')
      present = mask
      if call.worker_weights is not None:
        present &= call.worker_weights > 0
      grown, norms = _added(history, rows, present, call.axis_name)
      state = FoolsGoldState(layout.unravel_rows(grown))
      past = calls.Rows(grown), norms
    info = info_of(compared(*past, mask, call))
    info = info._replace(weights=info.weights.astype(rows.dtype))
    return reductions.combine(info.weights, rows), state, info

  options = {'weighted': True, 'takes_norms': True}
  # No function of the Gram matrix: angles would lose too many digits.
  if num_workers is None:
    return calls.from_rows(name, aggregate, **options)

  def init(params):
    return FoolsGoldState(kept_rows.zeros(params, num_workers))

  return calls.from_rows(name, aggregate, init=init, **options)
