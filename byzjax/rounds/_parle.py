"""Parle: Entropy-SGD on every worker, and a spring between them."""

from typing import Any, Literal

import jax
import optax

from byzjax._src import base, round_arguments
from byzjax.aggregators import mean
from byzjax.rounds import _replicas
from byzjax.rounds._worker_gradients import LossFn

_NAME = 'parle'


def parle(
  loss_fn: LossFn,
  *,
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  num_local_steps: int = 25,
  gamma: optax.ScalarOrSchedule | None = None,
  rho: optax.ScalarOrSchedule | None = None,
  batches_per_epoch: int | None = None,
  momentum: base.Scalar = 0.9,
  averaging: base.Scalar = 0.25,
  local_state: Literal['keep', 'reset'] = 'reset',
  aggregator: base.Aggregator | None = None,
  **arguments: Any,
) -> base.Round:
  r"""Parle: replicas that run Entropy-SGD, on springs to their average.

  With N the step of Nesterov momentum (:math:`m \leftarrow \beta m + g`, then
  :math:`g + \beta m`), worker i begins a round with its outer step, takes L
  inner steps from there, and sends :math:`w - z_i`:

  .. math::
    x_i &\leftarrow x_i - \eta N[(x_i - z_i) + \rho (x_i - w)], \quad y = x_i \\
    y &\leftarrow y - \eta N[\nabla \ell_i(y) + \gamma (y - x_i)], \quad
    z_i \leftarrow (1 - a) z_i + a y \quad (L \text{ times}) \\
    w &\leftarrow w - \mathrm{Agg}(w - z_1, \dots, w - z_n)

  So w is the aggregate of the z_i, the mean of them with `mean()`. The paper's
  outer step ends a round, where w has just been made of what all sent; it is
  here the first thing of the next round. The z_i are never reset, as in the
  released code: a share :math:`(1 - a)^L` of the last round is left in them.

  With one worker and rho = 0 this is Entropy-SGD without noise (exactly so if
  averaging is 1, else up to that share; and gamma acts inside of the inner
  momentum); with gamma = 0 and L = 1 it is elastic SGD; with both, SGD.

  Args:
    loss_fn: as for `local_round`; the anchor of an `Objective` is w.
    learning_rate: eta >= 0 of both steps, or a schedule of the round.
    num_workers: n, a Python int.
    num_local_steps: L >= 1, a Python int.
    gamma: >= 0, or a schedule of the round; None for the released code's, from
      0.01 by a factor :math:`1 + 1 / (2 b)` in every round up to 1, b being
      `batches_per_epoch`.
    rho: >= 0, or a schedule of the round; None for `0.01 L n` with the same
      growth, up to 10.
    batches_per_epoch: b >= 1, a Python int; not used if gamma and rho are
      given.
    momentum: beta in [0, 1), of both steps; may be traced.
    averaging: a in [0, 1], the weight of the new y; may be traced.
    local_state: whether the momentum of the inner steps begins anew in every
      round, 'reset', as that of Entropy-SGD does, or 'keep', as in the released
      code of Parle.
    aggregator: the rule on :math:`w - z_i`; None for `mean()`.
    **arguments: of `local_round`: attack, byzantine, codec, server_codec,
      sampler, value_and_grad, worker_map, mesh, axis_name.

  Returns:
    A `Round`. `state.params` is w, `state.workers.average` the z_i, and
    `replicas(state)` has the x_i: their mean is the paper's master.

  Raises:
    ValueError: if an argument is out of range, and as `local_round`.

  References:
    Chaudhari, Baldassi, Zecchina, Soatto, Talwalkar, Oberman, 2017,
    arXiv:1707.00424.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> training = byzjax.parle(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, num_workers=3,
    ...   num_local_steps=4, learning_rate=0.1, batches_per_epoch=10)
    >>> state, step = training.init(jnp.zeros(1)), jax.jit(training.step)
    >>> for _ in range(60):
    ...   state, _ = step(state, jnp.ones([3, 4, 8, 1]), jax.random.key(0))
    >>> bool(jnp.abs(state.params - 1)[0] < 0.01)
    True
  """
  base.check_count(_NAME, 'num_workers', num_workers, 1)
  base.check_count(_NAME, 'num_local_steps', num_local_steps, 1)
  if gamma is None or rho is None:
    base.check_count(_NAME, 'batches_per_epoch', batches_per_epoch, 1)
    assert batches_per_epoch is not None
    growth = 1 + 0.5 / batches_per_epoch
    if gamma is None:
      gamma = optax.exponential_decay(0.01, 1, growth, end_value=1.0)
    if rho is None:
      first = 0.01 * num_local_steps * num_workers
      rho = optax.exponential_decay(first, 1, growth, end_value=10.0)
  for argument, value in (
    ('learning_rate', learning_rate),
    ('gamma', gamma),
    ('rho', rho),
  ):
    if not callable(value):
      base.check_range(_NAME, argument, value, 0)
  base.check_range(_NAME, 'momentum', momentum, 0, 1)
  base.check_range(_NAME, 'averaging', averaging, 0, 1)
  round_arguments.check_choice(
    _NAME, 'local_state', local_state, ('keep', 'reset')
  )
  keeps = local_state == 'keep'

  def nesterov(rate):
    tx = optax.sgd(rate, momentum, nesterov=True)
    return optax.with_extra_args_support(tx)

  def init(params, layout):
    x = layout.ravel(params)
    inner = nesterov(0.0).init(params) if keeps else ()
    return _replicas.ReplicaRows(x, x, base.zeros_like(x), inner)

  def work(walk, layout, params, row, round):
    rate, strength, spring = (
      value(round) if callable(value) else value
      for value in (learning_rate, gamma, rho)
    )
    w, x = layout.ravel(params), row.params
    g = (x - row.average) + spring * (x - w)
    m = (momentum * row.momentum + g).astype(x.dtype)
    x = (x - rate * (g + momentum * m)).astype(x.dtype)

    first, inner = layout.unravel(x), nesterov(rate)

    def force(y):
      return jax.tree.map(
        lambda a, b: (strength * (a - b)).astype(a.dtype), y, first
      )

    end = walk(
      x,
      _averaging(inner, layout, averaging),
      (row.optimizer if keeps else inner.init(first), row.average),
      force,
    )
    state, z = end.optimizer
    row = _replicas.ReplicaRows(x, z, m, state if keeps else ())
    return end, w - z, row

  return _replicas.build(
    _NAME,
    _replicas.Method(init, work, optax.sgd(1.0)),
    loss_fn,
    num_local_steps=num_local_steps,
    num_workers=num_workers,
    aggregator=mean() if aggregator is None else aggregator,
    **arguments,
  )


def _averaging(
  inner: optax.GradientTransformationExtraArgs, layout, averaging: base.Scalar
) -> optax.GradientTransformationExtraArgs:
  """The transform; its state has an average of where it led, float[d]."""

  def update_fn(updates, state, params=None, **extra):
    inner_state, z = state
    updates, inner_state = inner.update(updates, inner_state, params, **extra)
    y = layout.ravel(optax.apply_updates(params, updates))
    return updates, (inner_state, (1 - averaging) * z + averaging * y)

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)
