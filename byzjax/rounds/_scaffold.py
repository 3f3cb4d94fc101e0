"""SCAFFOLD: control variates against client drift, written with `from_work`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from byzjax._src import base, checks, round_arguments
from byzjax.aggregators import mean
from byzjax.rounds._corrected_steps import corrected_steps, zeros
from byzjax.rounds._from_work import from_work
from byzjax.rounds._work import Work, WorkerOutput

_NAME = 'scaffold'


def scaffold(
  loss_fn: Callable[..., jax.Array],
  *,
  learning_rate: base.ScalarOrSchedule,
  num_workers: int,
  aggregator: base.Aggregator | None = None,
  optimizer: optax.GradientTransformation | None = None,
  needs_key: bool = False,
  **arguments: Any,
) -> base.Round:
  r"""SCAFFOLD: local steps with control variates against client drift.

  .. math::
    y \leftarrow y - \eta \, (g_i(y) - c_i + c) \quad S \text{ times}, \qquad
    c_i^+ = c_i - c + \frac{w - y}{S \eta}

  .. math::
    w \leftarrow \mathrm{optimizer}(w, \mathrm{rule}_i(w - y_i)), \qquad
    c \leftarrow c + \frac{m}{n} \, \mathrm{rule}_i(c_i^+ - c_i)

  with aggregation over the m workers of the round. Each worker keeps its
  control variate c_i and the server keeps c; all start at zero. In a round with
  eta = 0 nobody moves, and every c_i stays. With S = 1 and full participation
  it is SGD.

  Args:
    loss_fn: `(params, batch) -> float[]`, or `(params, batch, key)` with
      `needs_key`.
    learning_rate: eta of the local steps, a positive number or a schedule of
      the round, which may be 0 in some, as in a warm-up.
    num_workers: n, a Python int.
    aggregator: the aggregation rule for both the messages and the control
      variates; None for `mean()`.
    optimizer: optax optimizer of the server; None for `optax.sgd(1.0)`.
    needs_key: whether the loss takes a key; every step gets its own.
    **arguments: further arguments of `from_work`: participation, attack, codec,
      mesh, ...

  Returns:
    A `Round`. Batch leaves are `[n, S, ...]`: a worker takes one local step on
    each of its S slices.

  Raises:
    ValueError: if the learning rate is not positive, or as for `from_work`.

  References:
    Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, 2020, arXiv:1910.06378
    (option II of Algorithm 1).

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> training = byzjax.scaffold(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, learning_rate=0.5,
    ...   num_workers=2)
    >>> x = jnp.array([1., 3.]).reshape(2, 1, 1, 1) * jnp.ones([2, 2, 4, 1])
    >>> state, _ = training.step(
    ...   training.init(jnp.zeros(1)), x, jax.random.key(0))
    >>> print(state.params)
    [1.5]
  """
  if not callable(learning_rate):
    checks.check_range(_NAME, 'learning_rate', learning_rate, 0, exclusive=True)
  checks.check_function(_NAME, 'loss_fn', loss_fn)
  checks.check_flag(_NAME, 'needs_key', needs_key)
  rule = mean() if aggregator is None else aggregator
  work = Work(
    init=lambda params, n: zeros(params, n),
    run=functools.partial(_run, loss_fn, needs_key, learning_rate, num_workers),
    init_shared=zeros,
    auxiliary=lambda params: ((ravel_pytree(params)[0].size, rule),),
  )
  return from_work(
    work,
    num_workers=num_workers,
    aggregator=rule,
    optimizer=optax.sgd(1.0) if optimizer is None else optimizer,
    name=_NAME,
    **arguments,
  )


def _run(
  loss_fn, needs_key, learning_rate, num_workers, params, batch, own, keys, *,
  context, exchange,
):  # fmt: skip
  round_arguments.check_slices(_NAME, batch, None)
  rate = base.value_at(learning_rate, context.step)
  common = context.shared

  def of_worker(batches, own, key):
    return corrected_steps(
      loss_fn, needs_key, params, batches, key, rate, lambda _: common - own
    )

  moved = jax.vmap(of_worker)(batch, own, keys)
  num_steps = jax.tree.leaves(batch)[0].shape[1]
  # Nobody has moved with a rate of 0, and 0 / 0 would stay in all rows.
  moves = jnp.asarray(rate) != 0
  gradients = moved.delta / (num_steps * jnp.where(moves, rate, 1))
  new = jnp.where(moves, own - common[None] + gradients, own).astype(own.dtype)
  change, auxiliary = exchange(0, new - own, context.auxiliary[0])
  cohort = context.cohort
  taking_part = cohort.ids.size
  if cohort.weights is not None:
    taking_part = (cohort.weights > 0).sum()
  return WorkerOutput(
    moved.loss,
    moved.delta,
    new,
    (common + taking_part / num_workers * change).astype(common.dtype),
    (auxiliary,),
    num_local_steps=jnp.int32(num_steps),
    num_gradients=jnp.float32(num_steps),
  )
