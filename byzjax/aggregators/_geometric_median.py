"""The geometric median, by Weiszfeld steps on the Gram matrix."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, grams, recipes, reductions, rules


@recipes.factory
def geometric_median(
  *,
  num_iterations: int = 32,
  smoothing: base.Scalar = 1e-6,
  start: str = 'medoid',
) -> base.Aggregator:
  """The point with the smallest sum of distances to the messages (RFA).

  `argmin_z sum_i p_i |z - x_i|`, with p the `worker_weights` (all equal by
  default), by T smoothed Weiszfeld steps `z <- sum_i w_i x_i / sum_i w_i`, `w_i
  = p_i / max(|z - x_i|, nu)`. Each z is a linear combination of the messages,
  so the steps run on its n coefficients and the Gram matrix: more steps do not
  read the messages more often.

  Convergence depends on the start. From the mean, the influence of f distant
  messages shrinks only by a factor f / (n - f) per step. The default, 'medoid',
  starts at the message with the smallest sum of distances to its n/2 nearest,
  which a majority surrounds (in the first step, distances below the median
  distance count as the median). From there 32 steps reach the median up to
  rounding if the messages are in general position; if the median is at or near
  a message, convergence is slower, and more steps are cheap. Published
  implementations stop early: RFA takes 8 steps and ByzFL 3, both with
  `start='zeros'` and `smoothing=0.1`.

  nu is an absolute distance, and has no effect while all `|z - x_i|` exceed it.
  Messages within nu of z count as in a mean: the steps minimise `sum_i p_i h(|z
  - x_i|)` with `h(r) = r^2 / (2 nu)` up to nu and `r - nu / 2` beyond. So if
  *all* messages are that close to each other, as at the end of training or for
  gradients divided by a large number, the result is their plain mean; and f
  Byzantine messages farther away move it from the mean of n - f honest messages
  by `nu f / (n - f)`, which may be many times the distances between the honest
  ones. If distances may reach 1e-6, pass a smaller nu: 1e-15 suits messages of
  size 1e-8.

  Args:
    num_iterations: T >= 1, the number of steps, a Python int or traced int32[].
    smoothing: nu > 0, a distance in the units of the messages, well below their
      distances to each other; may be traced.
    start: the point from which the first step measures distances: 'medoid' (see
      above), 'mean' (of the messages) or 'zeros'.

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
  distances = reductions.sqrt(grams.squared_distances(gram))
  weights = _worker_weights(gram)
  taken = rules.nearest(distances, weights, weights.sum() / 2)
  totals = (taken * distances).sum(axis=1)
  return jnp.argmin(jnp.where(gram.mask, totals, jnp.inf))
