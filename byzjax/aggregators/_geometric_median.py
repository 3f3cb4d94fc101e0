"""The geometric median, by Weiszfeld steps on the Gram matrix."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, reductions, rules


@recipes.factory
def geometric_median(
  *,
  num_iterations: int = 32,
  smoothing: base.Scalar = 1e-6,
  start: str = 'medoid',
) -> base.Aggregator:
  """The point with the least sum of distances to the messages.

  `argmin_z sum_i p_i |z - x_i|`, with p the `worker_weights` (all equal by
  default), by T smoothed Weiszfeld steps `z <- sum_i w_i x_i / sum_i w_i`,
  `w_i = p_i / max(|z - x_i|, nu)`. Each z is a combination of the messages, so
  the steps run on n coefficients and the Gram matrix, and their number does not
  change how often the messages are read.

  Where the steps start decides how far they get: from the mean, a minority of
  f messages far away is forgotten by a factor f / (n - f) a step only. The
  default starts inside the majority: at the message closest to its n/2 nearest,
  with distances below the median distance counted as that. From there 32 steps
  bring messages in general position within rounding of the median; where it is
  itself a message, or close to one, convergence is slower and more steps are
  cheap. The published implementations stop early: RFA takes 8 steps and ByzFL
  3, both with `start='zeros'` and `smoothing=0.1`.

  nu is an absolute distance. As long as all `|z - x_i|` are above it, it does
  nothing. Messages within nu of z count as in a mean: what is minimised is
  `sum_i p_i h(|z - x_i|)` with `h(r) = r^2 / (2 nu)` up to nu and `r - nu / 2`
  beyond. So if *all* messages are that close to each other, as at the end of
  training, or where gradients are divided by a large number, the result is
  their plain mean; and f attackers farther away move it from the mean of n - f
  honest messages by `nu f / (n - f)`, which may be many times the distances
  between these. Where distances may come down to 1e-6, pass a smaller nu:
  with 1e-15, messages of size 1e-8 have the median of messages of size 1.

  Args:
    num_iterations: T >= 1, a Python int or a traced int32[].
    smoothing: nu > 0, a distance, in the units of the messages, well below
      their distances to each other; may be traced.
    start: where the first step measures distances from: the 'medoid', as
      above, the 'mean' of the messages, or 'zeros'.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if T is not a positive int, smoothing is not positive, or start
      is not one of the three.

  References:
    Pillutla, Kakade, Harchaoui, 2019, arXiv:1912.13445 (RFA).

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> corners = jnp.array([[0., 0.], [0., 1.], [1., 0.], [5., 5.]])
    >>> print(byzjax.geometric_median()(corners).round(3))
    [0.5 0.5]
  """
  checks.check_iterations('geometric_median', 'num_iterations', num_iterations)
  checks.check_range(
    'geometric_median', 'smoothing', smoothing, 0, exclusive=True
  )
  if start not in ('medoid', 'mean', 'zeros'):
    raise ValueError(
      "geometric_median needs start to be 'medoid', 'mean' or 'zeros', got"
      f' {start!r}'
    )

  def weights_fn(gram):
    medoid = _medoid(gram)
    # Near a message the distance to it is a difference of inner products that
    # cancels; around that message itself it does not.
    row = gram.inner[medoid]
    inner = gram.inner - row[:, None] - row[None] + row[medoid]
    inner = jnp.where(gram.mask[:, None] & gram.mask[None], inner, 0)
    norms = jnp.diagonal(inner)

    shares = reductions.shares(gram.mask, gram.worker_weights)

    def normalized(squared_distances, least=0.0):
      distances = reductions.sqrt(squared_distances)
      inverse = 1 / jnp.maximum(jnp.maximum(distances, least), smoothing)
      inverse = (shares * inverse).astype(norms.dtype)
      return inverse / jnp.maximum(inverse.sum(), jnp.finfo(norms.dtype).tiny)

    def weiszfeld_step(_, weights):
      projected = reductions.matmul(inner, weights)
      return normalized(
        norms - 2 * projected + reductions.matmul(weights, projected)
      )

    steps = num_iterations - 1
    if start == 'mean':
      weights = weiszfeld_step(0, shares.astype(norms.dtype))
    elif start == 'zeros':
      weights = normalized(gram.squared_norms)
    else:
      # A step from a message itself would give it all the weight.
      weights = normalized(norms, _upper_median(norms, _worker_weights(gram)))
    return jax.lax.fori_loop(0, steps, weiszfeld_step, weights)

  return rules.from_weights(weights_fn, weighted=True, name='geometric_median')


def _worker_weights(gram):
  if gram.worker_weights is None:
    return gram.mask.astype(gram.inner.dtype)
  return gram.worker_weights


def _upper_median(squared: jax.Array, weights: jax.Array) -> jax.Array:
  """The least distance within which there is more than half of the weight."""
  # The upper one: of two messages none is preferred.
  order = jnp.argsort(jnp.where(weights > 0, squared, jnp.inf))
  middle = jnp.argmax(2 * jnp.cumsum(weights[order]) > weights.sum())
  return reductions.sqrt(squared[order[middle]])


def _medoid(gram: base.Gram) -> jax.Array:
  """The index of a message that has a majority close to it.

  The one with the least sum of distances to the nearest half of the workers:
  what a minority sends, however far away, is in no honest message's sum.
  """
  distances = reductions.sqrt(rules.squared_distances(gram))
  weights = _worker_weights(gram)
  taken = rules.nearest(distances, weights, weights.sum() / 2)
  totals = (taken * distances).sum(axis=1)
  return jnp.argmin(jnp.where(gram.mask, totals, jnp.inf))
