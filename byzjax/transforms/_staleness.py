"""Stale messages: scaled down, corrected or dropped."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat, round_arguments
from byzjax.transforms import _arrivals


def delay_adaptive(num_workers: int) -> optax.GradientTransformationExtraArgs:
  """Scales down messages that are more than K updates late.

  `g <- g K / max(K, tau)`, where tau is the number of server updates between
  the sending of the parameters and this message. Before `optax.sgd` this is
  delay-adaptive asynchronous SGD. K workers without a barrier are K - 1 updates
  late on average, so only unusual delays change the message.

  `update(updates, state, params, *, staleness)`: `asynchronous_round` passes
  tau as `staleness`; in your own training loop, pass it yourself.

  Args:
    num_workers: K >= 1, a Python int.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: if K is not a positive int; at trace time, if `staleness` is
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

  `g <- (1 + tau)^-a g`, where tau is the number of server updates between the
  sending of the parameters and this message. With tau = 0 it is unchanged.

  FedAsync weights by the same function, but mixes the worker's *model* into the
  server's, which pulls the server back to where the worker started; with
  pseudo-gradients, as here, this does not happen. Kardam's dampening by `1 / (1
  + tau)` is a = 1. To drop messages that are too stale, wrap the whole
  optimizer in `drop_stale`.

  `update(updates, state, params, *, staleness)`: `asynchronous_round` passes
  tau as `staleness`; in your own training loop, pass it yourself.

  Args:
    exponent: a >= 0; may be traced.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: if a is negative; at trace time, if `staleness` is missing.

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
  """Corrects a stale gradient by a first-order Taylor term (DC-ASGD).

  `g <- g + lambda g * g * (w - w_stale)`, coordinate by coordinate: `g * g`
  approximates the diagonal of the Hessian, w are the server's parameters and
  w_stale those at which g was computed. The correction is quadratic in g, so a
  message ten times as long gets a correction a hundred times as long: clip
  first.

  `update(updates, state, params, *, stale_params)`: `asynchronous_round` passes
  w_stale as `stale_params`; in your own training loop, pass it yourself.

  Args:
    strength: lambda >= 0; may be traced.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: if lambda is negative; at trace time, if `params` or
      `stale_params` is missing.

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

  If `tau > max_staleness` the update is zero and the state of `inner` is
  unchanged (a message scaled to zero would still decay a momentum). Around
  `optax.chain(byzjax.discount_staleness(), ...)` this is polynomial weighting
  with a threshold.

  `update(updates, state, params, *, staleness)`: `asynchronous_round` passes
  tau, the number of server updates since the parameters were sent, as
  `staleness`; in your own training loop, pass it yourself. All arguments are
  forwarded to `inner`.

  Args:
    inner: the optimizer that gets the accepted messages.
    max_staleness: the largest accepted tau, at least 0; may be traced.

  Returns:
    An optax transform with the state of `inner`.

  Raises:
    ValueError: if max_staleness is negative; at trace time, if `staleness` is
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
