"""Stale messages: scaled down, corrected, or dropped."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat, round_arguments
from byzjax.transforms import _arrivals


def delay_adaptive(num_workers: int) -> optax.GradientTransformationExtraArgs:
  """Scales a message down once it is more than K updates late.

  `g <- g K / max(K, tau)`, with tau updates of the server between the sending
  of the parameters and this message. Before `optax.sgd` this is the
  delay-adaptive asynchronous SGD; K workers without a barrier are K - 1 updates
  late on average, so only unusual delays count.

  `update(updates, state, params, *, staleness)`: `asynchronous_round` gives the
  staleness; in a loop of your own pass it to `update`.

  Args:
    num_workers: K >= 1, a Python int.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: if K is not a positive int; at trace time, if the staleness is
      missing.

  References:
    Mishchenko, Bach, Even, Woodworth, 2022, arXiv:2206.07638.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> tx = byzjax.delay_adaptive(4)
    >>> tx.update(jnp.ones(2), tx.init(None), staleness=8)[0]
    Array([0.5, 0.5], dtype=float32)
  """
  name = 'delay_adaptive'
  checks.check_count(name, 'num_workers', num_workers, 1)
  return _scaled(name, lambda tau: num_workers / jnp.maximum(num_workers, tau))


def discount_staleness(
  exponent: base.Scalar = 0.5,
) -> optax.GradientTransformationExtraArgs:
  """Scales a message by a power of its staleness.

  `g <- (1 + tau)^-a g`, with tau updates of the server between the sending of
  the parameters and this message. Nothing happens at tau = 0.

  FedAsync weighs by the same function, but mixes the worker's *model* into the
  server's, which pulls the server back to where the worker began; with a
  pseudo-gradient, as here, it does not. Kardam's dampening by `1 / (1 + tau)`
  is a = 1. To drop what is too stale, put `drop_stale` around the whole
  optimizer.

  `update(updates, state, params, *, staleness)`: `asynchronous_round` gives the
  staleness; in a loop of your own pass it to `update`.

  Args:
    exponent: a >= 0; may be traced.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: if a is negative; at trace time, if the staleness is missing.

  References:
    Xie, Koyejo, Gupta, 2019, arXiv:1903.03934; for pseudo-gradients, Liu et
    al., 2024, arXiv:2401.09135.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> tx = byzjax.discount_staleness()
    >>> tx.update(jnp.ones(2), tx.init(None), staleness=3)[0]
    Array([0.5, 0.5], dtype=float32)
  """
  name = 'discount_staleness'
  checks.check_range(name, 'exponent', exponent, 0)
  return _scaled(name, lambda tau: (1 + tau) ** (-exponent))


def compensate_delay(
  strength: base.Scalar,
) -> optax.GradientTransformationExtraArgs:
  """Moves a stale gradient towards the present by a Taylor step (DC-ASGD).

  `g <- g + lambda g * g * (w - w_stale)`, coordinate by coordinate: `g * g`
  stands for the diagonal of the Hessian, w are the server's parameters and
  w_stale those that g was computed at. It is quadratic in g: what a worker
  makes ten times longer gets a correction a hundred times as long, so clip
  before.

  `update(updates, state, params, *, stale_params)`: `asynchronous_round` gives
  the stale parameters; in a loop of your own pass them to `update`.

  Args:
    strength: lambda >= 0; may be traced.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: if lambda is negative; at trace time, if params or stale_params
      is missing.

  References:
    Zheng, Meng, Wang, Chen, Yu, Ma, Liu, 2016, arXiv:1609.08326.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> tx = byzjax.compensate_delay(0.5)
    >>> w, w_stale = jnp.array([1., 1.]), jnp.array([1., 0.])
    >>> g = jnp.array([2., 2.])
    >>> tx.update(g, tx.init(w), w, stale_params=w_stale)[0]
    Array([2., 4.], dtype=float32)
  """
  name = 'compensate_delay'
  checks.check_range(name, 'strength', strength, 0)

  def update_fn(updates, state, params=None, *, stale_params=None, **extra):
    del extra
    _arrivals.require(name, params=params, stale_params=stale_params)

    def compensate(g, w, stale):
      dtype = flat.compute_dtype(g)
      drift = w.astype(dtype) - stale.astype(dtype)
      x = g.astype(dtype)
      return (x + strength * x * x * drift).astype(g.dtype)

    return jax.tree.map(compensate, updates, params, stale_params), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )


def drop_stale(
  inner: optax.GradientTransformation, *, max_staleness: int | jax.Array
) -> optax.GradientTransformationExtraArgs:
  """Ignores messages that are too many updates late.

  Where `tau > max_staleness` the update is zero, and the state of `inner` stays
  what it was: a momentum behind a message scaled to zero would still decay.
  Around `optax.chain(byzjax.discount_staleness(), ...)` this is the polynomial
  weighting with a threshold.

  `update(updates, state, params, *, staleness)`: `asynchronous_round` gives the
  staleness; in a loop of your own pass it to `update`. All arguments are handed
  to `inner`.

  Args:
    inner: the optimizer of the messages that are taken.
    max_staleness: the largest tau that is taken, at least 0; may be traced.

  Returns:
    An optax transform with the state of `inner`.

  Raises:
    ValueError: if max_staleness is negative; at trace time, if the staleness is
      missing.

  References:
    Liu et al., 2024, arXiv:2401.09135.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> tx = byzjax.drop_stale(optax.sgd(1.0), max_staleness=10)
    >>> w = jnp.zeros(2)
    >>> tx.update(jnp.ones(2), tx.init(w), w, staleness=11)[0]
    Array([0., 0.], dtype=float32)
  """
  name = 'drop_stale'
  round_arguments.check_transform(name, 'inner', inner)
  checks.check_integer(name, 'max_staleness', max_staleness)
  inner = optax.with_extra_args_support(inner)

  def update_fn(updates, state, params=None, *, staleness=None, **extra):
    _arrivals.require(name, staleness=staleness)
    return _arrivals.update_if(
      jnp.asarray(staleness <= max_staleness),
      inner,
      updates,
      state,
      params,
      staleness=staleness,
      **extra,
    )

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _scaled(name, factor_of) -> optax.GradientTransformationExtraArgs:
  """Multiplies by a function of the staleness."""

  def update_fn(updates, state, params=None, *, staleness=None, **extra):
    del params, extra
    _arrivals.require(name, staleness=staleness)

    def scale(g):
      tau = jnp.asarray(staleness, flat.compute_dtype(g))
      return (factor_of(tau) * g.astype(tau.dtype)).astype(g.dtype)

    return jax.tree.map(scale, updates), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )
