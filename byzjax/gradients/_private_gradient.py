"""Per-example clipping and Gaussian noise: the gradient of DP-SGD."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax._src import base, checks, flat, local

_NAME = 'differentially_private_gradient'
_LARGEST = float(np.finfo(np.float64).max)  # No inf: inf * 0 has no meaning.


def differentially_private_gradient(
  loss_fn: local.LossFn | local.Objective,
  *,
  clip_norm: base.Scalar,
  noise_multiplier: base.Scalar,
  batch_size: int | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
) -> local.GradientEstimator:
  r"""Clips per-example gradients and adds Gaussian noise to the sum (DP-SGD).

  .. math::
    \tilde g = \frac{1}{B} \Big( \sum_s \nabla \ell_s(w)
      \min\big(1, C / |\nabla \ell_s(w)|\big)
      + z C \, \mathcal{N}(0, I) \Big)

  Every worker draws its own noise in every round. Followed by `worker_momentum`
  and a robust rule this is SAFE-DSHB: clip, average, add noise, momentum, rule.
  Computations after the noise cannot weaken the privacy of an honest worker
  under any attack: momentum, codec, rule and the server's step only get noisy
  gradients. `theory.privacy_epsilon` gives the privacy of a run.

  The guarantee of `theory.privacy_epsilon` is for *Poisson* sampling: each
  example is in a batch with probability B / N, independently. Draw batches with
  `data.poisson_batch` and pass `batch_size`. Without `batch_size`, B is the
  number of examples in the batch; the guarantee does not hold for batches of
  fixed size.

  Clipping and noise are `optax.contrib.differentially_private_aggregate`. An
  example whose gradient is not finite counts as zero. The noise is float32 from
  `jax.random` and has no protection against attacks on floating-point noise.
  The loss that a round reports is not private.

  Args:
    loss_fn: the loss, `(params, batch_i) -> scalar`, or an `Objective`. It is
      called with batches of one example, so it must be a mean over examples.
    clip_norm: C > 0, finite, the bound on per-example norms; may be traced.
    noise_multiplier: z >= 0, the standard deviation of the noise in units of C;
      may be traced.
    batch_size: B >= 1, a Python int, for batches with a mask of the examples
      that are present: `batch_i = (examples, present bool[m])`, as from
      `data.poisson_batch`. The sum is divided by B, for any number of examples
      present. None for plain batches, which are divided by their size.
    needs_key: whether the loss takes a key, `loss_fn(params, batch_i, key)`;
      every example gets its own.
    has_aux: whether the loss is `(loss, aux)`; aux is then the mean over the
      examples, in float.

  Returns:
    A `GradientEstimator`, for `value_and_grad` of every round that accepts one:
    batch leaves are `[m, ...]`. The gradient is shaped like params, leaves in
    their dtypes; clipping and noise are float32 at least. It needs the memory
    of m gradients for each worker.

  Raises:
    ValueError: if an argument is out of range; at trace time, if the leaves of
      the batch differ in their numbers of rows, `present` is not bool[m], or
      the loss does not fit the flags.

  References:
    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, 2016,
    arXiv:1607.00133; with a robust rule, Allouah, Guerraoui, Gupta, Pinot,
    Stephan, 2023, arXiv:2302.04787.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> estimator = byzjax.differentially_private_gradient(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, clip_norm=1.0,
    ...   noise_multiplier=0.0)
    >>> batch = jnp.array([[100.], [-0.5]])
    >>> loss, gradient = estimator(jnp.zeros(1), batch, jax.random.key(0))
    >>> print(gradient)  # Of -100, clipped to -1, and of 0.5.
    [-0.25]
  """
  checks.check_range(_NAME, 'clip_norm', clip_norm, 0, _LARGEST, exclusive=True)
  checks.check_range(_NAME, 'noise_multiplier', noise_multiplier, 0, _LARGEST)
  if batch_size is not None:
    checks.check_count(_NAME, 'batch_size', batch_size, 1)
  of_loss = local.as_estimator(
    loss_fn, name=_NAME, needs_key=needs_key, has_aux=has_aux
  )

  def estimate(params, batch, context):
    examples, present = _split(batch, batch_size)
    loss_key, noise_key = jax.random.split(context.key)

    def of_example(example, key):
      one = jax.tree.map(lambda x: x[None], example)
      found = local.estimate(of_loss, params, one, context._replace(key=key))
      wide = jax.tree.map(
        lambda g: g.astype(flat.compute_dtype(g)), found.gradient
      )
      return found._replace(gradient=wide)

    keys = jax.random.split(loss_key, present.size)
    found = jax.vmap(of_example)(examples, keys)
    gradients = _counted(found.gradient, present)
    tx = optax.contrib.differentially_private_aggregate(
      clip_norm, noise_multiplier, noise_key
    )
    mean, _ = tx.update(gradients, tx.init(params))
    factor = 1.0 if batch_size is None else present.size / batch_size
    gradient = jax.tree.map(
      lambda g, p: (g * factor).astype(jnp.result_type(p)), mean, params
    )
    loss = _mean(found.loss, present)
    aux = None
    if of_loss.has_aux:
      local.zeros_of_mean(_NAME, jax.eval_shape(lambda: found.aux))
      aux = jax.tree.map(lambda x: _mean(x, present), found.aux)
    return local.joined(of_loss, loss, aux), gradient

  return local.GradientEstimator(estimate, name=_NAME, has_aux=of_loss.has_aux)


def _split(batch: Any, batch_size: int | None) -> tuple[Any, jax.Array]:
  """The examples, leaves `[m, ...]`, and who of them is there, bool[m]."""
  if batch_size is None:
    rows = checks.num_workers(f'{_NAME}: batch', batch)
    return batch, jnp.ones(rows, bool)
  if not isinstance(batch, tuple) or len(batch) != 2:
    raise ValueError(
      f'{_NAME} with batch_size={batch_size} needs batches to be (examples,'
      f' present), as of byzjax.data.poisson_batch, got a'
      f' {type(batch).__name__}'
    )
  examples, present = batch
  rows = checks.num_workers(f'{_NAME}: batch', examples)
  shape, dtype = jnp.shape(present), jnp.result_type(present)
  if shape != (rows,) or dtype != jnp.bool_:
    raise ValueError(
      f'{_NAME} needs present to be bool[{rows}], one entry per example, got'
      f' {dtype}{list(shape)}'
    )
  return examples, jnp.asarray(present)


def _counted(gradients: base.Params, present: jax.Array) -> base.Params:
  """Gradients `[m, ...]`, zero where absent or not finite."""
  for leaf in jax.tree.leaves(gradients):
    finite = jnp.isfinite(leaf).reshape(leaf.shape[0], -1)
    present &= jnp.all(finite, axis=1)
  return _where(present, gradients)


def _where(rows: jax.Array, tree: Any) -> Any:
  """The leaves `[m, ...]`, zero in all other rows."""
  return jax.tree.map(
    lambda x: jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), x, 0), tree
  )


def _mean(x: jax.Array, present: jax.Array) -> jax.Array:
  """The mean over the rows that are present, in float; 0 if none is."""
  total = jnp.sum(_where(present, x).astype(flat.compute_dtype(x)), axis=0)
  return total / jnp.maximum(jnp.sum(present), 1)
