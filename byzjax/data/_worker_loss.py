"""The loss of a model on a worker's own examples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byzjax._src import base, checks
from byzjax.data import _examples
from byzjax.data._partition import Partition

LossPerExample = Callable[[base.Params, jax.Array, jax.Array], jax.Array]


def worker_loss(
  images: jax.Array,
  labels: jax.Array,
  *,
  loss_per_example: LossPerExample,
  scale: float = 1.0,
  score_batch_size: int = 256,
) -> Callable[[base.Params, Partition], jax.Array]:
  r"""The mean loss over all examples of a worker, for `client_curriculum`.

  .. math::
    \frac{1}{|S_i|} \sum_{j \in S_i} \ell(w; x_j / s, y_j)

  The padding of a partition does not count.

  Args:
    images: all examples `[N, ...]`.
    labels: integers `[N]`.
    loss_per_example: `(params, images float32[k, ...], labels int32[k]) ->
      float[k]`.
    scale: largest pixel value s > 0.
    score_batch_size: k, number of examples per forward pass, to bound memory.

  Returns:
    `(params, data_i) -> float32[]` for data_i = `Partition(indices int32[m],
    sizes int32[])`. Use `jax.vmap` to map it over workers.

  Raises:
    ValueError: if images and labels have different lengths, the scale is not
      positive, or the batch size is not an int of at least 1.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> from byzjax import data
    >>> score = data.worker_loss(
    ...   np.zeros([4, 2]), np.array([1, 3, 50, 60]),
    ...   loss_per_example=lambda params, images, labels: params * labels)
    >>> mine = data.Partition(jnp.array([0, 1, 0]), jnp.array(2))
    >>> print(score(2.0, mine))
    4.0
  """
  name = 'worker_loss'
  losses = example_losses(
    name, images, labels, loss_per_example, scale, score_batch_size
  )

  def mean(params, data_i):
    indices, size = data_i
    own = jnp.arange(indices.shape[0]) < size
    return jnp.where(own, losses(params, indices), 0).sum() / size

  return mean


def example_losses(
  function: str,
  images: jax.Array,
  labels: jax.Array,
  loss_per_example: LossPerExample,
  scale: float,
  score_batch_size: int,
) -> Callable[[base.Params, jax.Array], jax.Array]:
  """`(params, indices int32[m]) -> float32[m]`, a few examples at a time."""
  _examples.check(function, images, labels)
  checks.check_function(function, 'loss_per_example', loss_per_example)
  checks.check_range(function, 'scale', scale, 0, exclusive=True)
  checks.check_count(function, 'score_batch_size', score_batch_size, 1)
  images, labels = jnp.asarray(images), jnp.asarray(labels)

  def of_batch(params, indices):
    batch = _examples.take(images, labels, indices, scale)
    losses = loss_per_example(params, *batch)
    if jnp.shape(losses) != indices.shape:
      raise ValueError(
        f'{function} needs loss_per_example to return one number for each of'
        f' {indices.size} examples, got the shape {list(jnp.shape(losses))}'
      )
    return losses.astype(jnp.float32)

  def of_all(params, indices):
    size = indices.shape[0]
    if size <= score_batch_size:
      return of_batch(params, indices)
    num_batches = -(-size // score_batch_size)
    places = jnp.arange(num_batches * score_batch_size) % size
    batches = indices[places].reshape(num_batches, score_batch_size)
    return jax.lax.map(lambda b: of_batch(params, b), batches).ravel()[:size]

  return of_all
