"""ByzSGDm and ByzSGDnm: the named optimizers for stacked gradients."""

import optax

from byzjax._src import base, checks
from byzjax.transforms._normalize_by_global_norm import (
  normalize_by_global_norm,
)
from byzjax.transforms._per_worker import per_worker
from byzjax.transforms._worker_momentum import worker_momentum


def byz_sgdm(
  learning_rate: optax.ScalarOrSchedule,
  *,
  aggregator: base.Aggregator,
  num_workers: int,
  momentum: base.Scalar = 0.9,
) -> optax.GradientTransformationExtraArgs:
  """SGD on a robust aggregate of the workers' momenta (ByzSGDm).

  `m_t^i = beta m_{t-1}^i + (1 - beta) g_t^i` (`m_0^i = g_0^i`),
  `u_t = Agg(m_t^1, ..., m_t^n)`, `w_{t+1} = w_t - eta_t u_t`.

  Args:
    learning_rate: eta > 0, or a schedule of it.
    aggregator: the rule Agg.
    num_workers: n, a Python int.
    momentum: beta in [0, 1].

  Returns:
    An optax optimizer that takes stacked gradients, leaves `[n, *shape]`, and
    returns updates with leaves `[*shape]`.

  Raises:
    ValueError: if n or beta is out of range; at trace time, if the rule raises.

  References:
    Karimireddy, He, Jaggi, 2021, arXiv:2012.10333; Yang, Shi, Li, 2023,
    arXiv:2305.13856.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> optimizer = byzjax.byz_sgdm(
    ...   0.5, aggregator=byzjax.coordinate_median(), num_workers=3)
    >>> state = optimizer.init(jnp.zeros(1))
    >>> optimizer.update(jnp.array([[1.], [2.], [99.]]), state)[0]
    Array([-1.], dtype=float32)
  """
  _check('byz_sgdm', learning_rate, aggregator, momentum)
  return optax.chain(
    per_worker(worker_momentum(momentum), num_workers),
    aggregator,
    optax.scale_by_learning_rate(learning_rate),
  )


def byz_sgdnm(
  learning_rate: optax.ScalarOrSchedule,
  *,
  aggregator: base.Aggregator,
  num_workers: int,
  momentum: base.Scalar = 0.9,
) -> optax.GradientTransformationExtraArgs:
  """SGD in the direction of a robust aggregate of momenta (ByzSGDnm).

  `byz_sgdm` with `w_{t+1} = w_t - eta_t u_t / |u_t|`: every step has length
  eta, whatever the Byzantine workers send. The state of the rule holds u before
  normalisation.

  Args:
    learning_rate: eta > 0, the length of a step, or a schedule of it.
    aggregator: the rule Agg.
    num_workers: n, a Python int.
    momentum: beta in [0, 1].

  Returns:
    An optax optimizer that takes stacked gradients, leaves `[n, *shape]`, and
    returns updates with leaves `[*shape]`.

  Raises:
    ValueError: if n or beta is out of range; at trace time, if the rule raises.

  References:
    Yang, Shi, Li, 2023, arXiv:2305.13856.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> optimizer = byzjax.byz_sgdnm(
    ...   0.5, aggregator=byzjax.coordinate_median(), num_workers=3)
    >>> state = optimizer.init(jnp.zeros(1))
    >>> optimizer.update(jnp.array([[1.], [2.], [99.]]), state)[0]
    Array([-0.5], dtype=float32)
  """
  _check('byz_sgdnm', learning_rate, aggregator, momentum)
  return optax.chain(
    per_worker(worker_momentum(momentum), num_workers),
    aggregator,
    normalize_by_global_norm(),
    optax.scale_by_learning_rate(learning_rate),
  )


def _check(name, learning_rate, aggregator, momentum):
  checks.check_rate(name, 'learning_rate', learning_rate)
  checks.check_kind(name, 'aggregator', aggregator, base.Aggregator)
  checks.check_range(name, 'momentum', momentum, 0, 1)
