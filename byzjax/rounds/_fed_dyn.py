"""FedDyn: local SGD with dynamic regularisation, written with `from_work`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax._src import base, checks, local, round_arguments
from byzjax.aggregators import mean
from byzjax.rounds._cohort import participation_of
from byzjax.rounds._corrected_steps import corrected_steps, zeros
from byzjax.rounds._from_work import from_work
from byzjax.rounds._work import Work, WorkerOutput

_NAME = 'fed_dyn'


def fed_dyn(
  loss_fn: Callable[..., jax.Array],
  *,
  learning_rate: base.ScalarOrSchedule,
  alpha: float,
  num_workers: int,
  participation: int | local.Participation | None = None,
  aggregator: base.Aggregator | None = None,
  worker_weights: jax.Array | None = None,
  needs_key: bool = False,
  **arguments: Any,
) -> base.Round:
  r"""FedDyn: local losses with a dynamic regulariser that aligns their minima.

  .. math::
    y \leftarrow y - \eta \, (\nabla f_i(y) - h_i + \alpha (y - w))
    \quad S \text{ times}, \qquad h_i \leftarrow h_i - \alpha (y_i - w)

  .. math::
    \Delta = \mathrm{rule}_i(w - y_i), \qquad
    h \leftarrow h + \alpha \frac{m}{n} \Delta, \qquad
    w \leftarrow w - \Delta - h / \alpha

  with aggregation over the m workers of the round. Each worker keeps its h_i
  and the server keeps h; all start at zero.

  Args:
    loss_fn: `(params, batch) -> float[]`, or `(params, batch, key)` with
      `needs_key`.
    learning_rate: eta of the local steps, a positive number or a schedule of
      the round.
    alpha: strength of the regulariser, > 0; 0.01 to 0.1 in the paper.
    num_workers: n, a Python int.
    participation: m workers in every round, or a `Participation`; None for all.
    aggregator: the aggregation rule; None for `mean()`.
    worker_weights: float[n], all positive, such as the numbers of examples;
      None for equal weights. No schedule, and no zeros: the server's step needs
      m, so who is absent is up to `participation`.
    needs_key: whether the loss takes a key; every step gets its own.
    **arguments: further arguments of `from_work`: attack, codec, mesh, ...

  Returns:
    A `Round`. Batch leaves are `[n, S, ...]`: a worker takes one local step on
    each of its S slices.

  Raises:
    ValueError: if the learning rate, alpha or a weight is not positive, the
      weights are a schedule, or as for `from_work`.

  References:
    Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, 2021,
    arXiv:2111.04263.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> training = byzjax.fed_dyn(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, learning_rate=0.5,
    ...   alpha=1.0, num_workers=2)
    >>> x = jnp.array([1., 3.]).reshape(2, 1, 1, 1) * jnp.ones([2, 2, 4, 1])
    >>> state, _ = training.step(
    ...   training.init(jnp.zeros(1)), x, jax.random.key(0))
    >>> print(state.params)
    [2.]
  """
  if not callable(learning_rate):
    checks.check_range(_NAME, 'learning_rate', learning_rate, 0, exclusive=True)
  checks.check_range(_NAME, 'alpha', alpha, 0, exclusive=True)
  checks.check_function(_NAME, 'loss_fn', loss_fn)
  checks.check_flag(_NAME, 'needs_key', needs_key)
  _check_weights(num_workers, worker_weights)
  draws = participation_of(_NAME, num_workers, participation)
  share = draws.num_participants / num_workers if draws else 1.0
  work = Work(
    init=lambda params, n: zeros(params, n),
    run=functools.partial(_run, loss_fn, needs_key, learning_rate, alpha),
  )
  return from_work(
    work,
    num_workers=num_workers,
    participation=participation,
    aggregator=mean() if aggregator is None else aggregator,
    worker_weights=worker_weights,
    optimizer=_server(alpha, share),
    name=_NAME,
    **arguments,
  )


def _check_weights(num_workers: int, weights: Any) -> None:
  """Raises ValueError for weights with which a worker may be absent.

  The values of traced weights are not checked.
  """
  if weights is None:
    return
  if callable(weights):
    raise ValueError(
      f'{_NAME} needs worker_weights to be float[{num_workers}] or None, got'
      f' the schedule {weights!r}: its server must know how many take part, so'
      ' use participation'
    )
  checks.check_worker_weights(_NAME, weights, num_workers)
  if isinstance(weights, jax.core.Tracer):
    return
  if not np.all(np.asarray(weights) > 0):
    raise ValueError(
      f'{_NAME} needs worker_weights > 0, got {np.asarray(weights)}: its server'
      ' must know how many take part, so use participation'
    )


def _server(alpha: float, share: float) -> optax.GradientTransformation:
  """`h <- h + alpha share x`, and the step `-(x + h / alpha)`."""

  def update(aggregate, h, params=None):
    del params
    h = jax.tree.map(
      lambda h, x: (h + alpha * share * x).astype(h.dtype), h, aggregate
    )
    return jax.tree.map(lambda h, x: -(x + h / alpha), h, aggregate), h

  return optax.GradientTransformation(optax.tree.zeros_like, update)


def _run(
  loss_fn, needs_key, learning_rate, alpha, params, batch, own, keys, *,
  context, exchange,
):  # fmt: skip
  del exchange
  round_arguments.check_slices(_NAME, batch, None)
  rate = base.value_at(learning_rate, context.step)

  def of_worker(batches, own, key):
    return corrected_steps(
      loss_fn,
      needs_key,
      params,
      batches,
      key,
      rate,
      lambda delta: -own - alpha * delta,
    )

  moved = jax.vmap(of_worker)(batch, own, keys)
  num_steps = jax.tree.leaves(batch)[0].shape[1]
  return WorkerOutput(
    moved.loss,
    moved.delta,
    (own + alpha * moved.delta).astype(own.dtype),
    context.shared,
    context.auxiliary,
    num_local_steps=jnp.int32(num_steps),
    num_gradients=jnp.float32(num_steps),
  )
