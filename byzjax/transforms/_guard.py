"""An optimizer that tolerates devices which compute wrong numbers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat, injected, reductions

_NAME = 'guard'


class GuardState(NamedTuple):
  """State of `guard`.

  Attributes:
    optimizer: the state of the wrapped optimizer.
    aggregator: the state of the rule.
    num_suspect: int32[n], in how many steps each message was not finite or far
      from the aggregate. A large count indicates a faulty device.
    num_skipped: int32[], steps in which no message was finite.
  """

  optimizer: base.State
  aggregator: base.State
  num_suspect: jax.Array
  num_skipped: jax.Array


def guard(
  optimizer: optax.GradientTransformation,
  *,
  rule: base.Aggregator,
  num_microbatches: int,
  factor: base.Scalar = 10.0,
) -> optax.GradientTransformationExtraArgs:
  r"""Protects ordinary data-parallel training from silent data corruption.

  .. math::
    g = \mathrm{rule}(g_1, \ldots, g_n), \qquad
    u = \mathrm{optimizer}(g), \qquad
    i \text{ is suspect} \iff |g_i - g| > c \, \mathrm{median}_j |g_j - g|

  A device with a flipped bit ruins a mean of gradients in one step. Here the
  gradients of n microbatches are the messages, one or more for each device, so
  a robust rule excludes the wrong one, and a counter shows which one it was. If
  no message is finite, neither the parameters nor the optimizer state change.

  With `byzjax.mean()` as the rule only NaN and inf are excluded. Wrong finite
  numbers need `coordinate_median`, `trimmed_mean` or a similar rule. A median
  of microbatches has more noise than their mean.

  Args:
    optimizer: an optax optimizer, such as `optax.adamw(1e-3)`.
    rule: an `Aggregator`. If gradients are split over a mesh, use
      `robust_reduce` before an ordinary optimizer instead.
    num_microbatches: n, a Python int, at least 1.
    factor: c > 0, the distance at which a message is suspect; it affects only
      the counter.

  Returns:
    An optax optimizer whose `update` takes gradients with leaves `[n, *shape]`,
    one for every microbatch, and whose state is a `GuardState`. It passes `key`
    to the rule and other keywords to the optimizer.

  Raises:
    ValueError: if n or the factor is out of range; at trace time, if gradients
      have another number of rows, or if the rule raises.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> optimizer = byzjax.guard(
    ...   optax.sgd(0.5), rule=byzjax.coordinate_median(), num_microbatches=4)
    >>> def loss_fn(w, x):
    ...   return jnp.mean((w[None] - x) ** 2)
    >>> params, x = jnp.zeros(2), jnp.ones([8, 2])
    >>> state = optimizer.init(params)
    >>> microbatches = x.reshape(4, 2, 2)
    >>> gradients = jax.vmap(jax.grad(loss_fn), (None, 0))(params, microbatches)
    >>> gradients = gradients.at[2, 0].mul(2.0**100)  # a flipped bit
    >>> updates, state = optimizer.update(gradients, state, params)
    >>> print(updates, state.num_suspect)
    [0.5 0.5] [0 0 1 0]
  """
  if not isinstance(optimizer, optax.GradientTransformation):
    raise TypeError(
      f'{_NAME} needs optimizer to be an optax transform, got {optimizer!r}'
    )
  rule = injected.as_aggregator(_NAME, rule, 'rule')
  checks.check_count(_NAME, 'num_microbatches', num_microbatches, 1)
  checks.check_range(_NAME, 'factor', factor, 0, exclusive=True)
  inner = optax.with_extra_args_support(optimizer)

  def init(params):
    return GuardState(
      inner.init(params),
      rule.init(params),
      jnp.zeros(num_microbatches, jnp.int32),
      jnp.zeros([], jnp.int32),
    )

  def update(gradients, state, params=None, *, key=None, **extra: Any):
    n = checks.num_workers(f'{_NAME}: gradients', gradients)
    if n != num_microbatches:
      raise ValueError(
        f'{_NAME} needs gradients with leaves [num_microbatches, *shape],'
        f' {num_microbatches} rows, got {n}'
      )
    aggregate, rule_state = rule.update(
      gradients, state.aggregator, params, key=key
    )
    is_finite, suspect = _suspects(gradients, aggregate, factor)
    usable = jnp.any(is_finite)
    updates, inner_state = inner.update(
      aggregate, state.optimizer, params, **extra
    )
    updates = jax.tree.map(lambda x: jnp.where(usable, x, 0), updates)

    def kept(new, old):
      return jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, old)

    return updates, GuardState(
      kept(inner_state, state.optimizer),
      kept(rule_state, state.aggregator),
      state.num_suspect + suspect,
      state.num_skipped + ~usable,
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _suspects(
  gradients: base.Messages, aggregate: base.Aggregate, factor: base.Scalar
) -> tuple[jax.Array, jax.Array]:
  """Which messages are finite, and which are not or are far: bool[n]."""
  rows, layout = flat.ravel_rows(_NAME, gradients)
  squared = reductions.squared_norms(rows, center=layout.ravel(aggregate))
  is_finite = reductions.finite_rows(rows)
  # A finite row may be too far for its square.
  distances = jnp.where(jnp.isfinite(squared), jnp.sqrt(squared), jnp.inf)
  # The lower median, for half of them may be lost.
  middle = jnp.sort(distances)[(distances.shape[0] - 1) // 2]
  # The median itself is infinite if most of them are not finite.
  return is_finite, ~is_finite | (distances > factor * middle)
