"""The geometric median, by Weiszfeld steps on the Gram matrix."""

import jax
import jax.numpy as jnp

from byzjax._src import base, reductions, rules


def geometric_median(
  *,
  num_iterations: int = 32,
  smoothing: base.Scalar = 1e-6,
  start: str = 'mean',
) -> base.Aggregator:
  """The point with the least sum of distances to the messages.

  `argmin_z sum_i |z - x_i|`, by T smoothed Weiszfeld steps
  `z <- sum_i w_i x_i / sum_i w_i`, `w_i = 1 / max(|z - x_i|, nu)`. Each z is a
  combination of the messages, so the steps run on n coefficients and the Gram
  matrix, and their number does not change how often the messages are read.

  The published implementations stop early: RFA takes 8 steps and ByzFL 3, both
  with `start='zeros'` and `smoothing=0.1`. Eight steps are far from the median
  when a third of the messages is far away. The default of 32 brings messages
  in general position within rounding of it; where the median is itself a
  message, or close to one, convergence is slower and more steps are cheap.

  Args:
    num_iterations: T >= 1, a Python int.
    smoothing: nu > 0, a distance, in the units of the messages; may be traced.
    start: where the first step measures distances from: the 'mean' of the
      messages, or 'zeros'.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if T is not a positive int, smoothing is not positive, or start
      is neither 'mean' nor 'zeros'.

  References:
    Pillutla, Kakade, Harchaoui, 2019, arXiv:1912.13445 (RFA).

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> corners = jnp.array([[0., 0.], [0., 1.], [1., 0.], [5., 5.]])
    >>> print(byzjax.geometric_median()(corners).round(3))
    [0.5 0.5]
  """
  base.check_count('geometric_median', 'num_iterations', num_iterations, 1)
  base.check_range(
    'geometric_median', 'smoothing', smoothing, 0, exclusive=True
  )
  if start not in ('mean', 'zeros'):
    raise ValueError(
      f"geometric_median needs start to be 'mean' or 'zeros', got {start!r}"
    )

  def weights_fn(gram):
    inner = _around_medoid(gram)
    norms = jnp.diagonal(inner)

    def normalized(squared_distances):
      distances = jnp.sqrt(jnp.maximum(squared_distances, 0))
      inverse = 1 / jnp.maximum(distances, smoothing)
      inverse = jnp.where(gram.mask, inverse.astype(norms.dtype), 0)
      return inverse / jnp.maximum(inverse.sum(), jnp.finfo(norms.dtype).tiny)

    def weiszfeld_step(_, weights):
      projected = reductions.matmul(inner, weights)
      return normalized(
        norms - 2 * projected + reductions.matmul(weights, projected)
      )

    if start == 'zeros':
      weights, steps = normalized(gram.squared_norms), num_iterations - 1
    else:
      uniform = gram.mask / jnp.maximum(gram.mask.sum(), 1)
      weights, steps = uniform.astype(norms.dtype), num_iterations
    return jax.lax.fori_loop(0, steps, weiszfeld_step, weights)

  return rules.from_weights(weights_fn)


def _around_medoid(gram: base.Gram) -> jax.Array:
  """Inner products around the message with the least sum of distances.

  Near a message the median's distance to it is a difference of inner products
  that cancels; around that message itself it does not.
  """
  distances = jnp.sqrt(rules.squared_distances(gram))
  totals = jnp.where(gram.mask, distances.sum(axis=1), jnp.inf)
  medoid = jnp.argmin(totals)
  row = gram.inner[medoid]
  moved = gram.inner - row[:, None] - row[None] + row[medoid]
  usable = gram.mask[:, None] & gram.mask[None]
  return jnp.where(usable, moved, 0)
