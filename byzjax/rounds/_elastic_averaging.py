"""EASGD: workers coupled elastically to a center that follows them."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import (
  base,
  checks,
  local,
  parameters,
  round_arguments,
)
from byzjax.aggregators import mean
from byzjax.rounds import _replicas
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad

_NAME = 'elastic_averaging'


def elastic_averaging(
  loss_fn: LossFn,
  *,
  local_optimizer: optax.GradientTransformation,
  num_local_steps: int,
  num_workers: int,
  beta: base.Scalar = 0.9,
  alpha: base.Scalar | None = None,
  local_state: Literal['keep', 'reset'] = 'keep',
  aggregator: base.Aggregator | None = None,
  sampler: local.LocalSampler | None = None,
  participation: int | local.Participation | None = None,
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  worker_weights: jax.Array | base.WeightSchedule | None = None,
  codec: base.Codec | None = None,
  server_codec: base.Codec | None = None,
  value_and_grad: ValueAndGrad | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  r"""EASGD: each worker keeps its own parameters, elastically coupled to w.

  A round starts with an exchange, which computes both updates from the
  parameters at the start of the round:

  .. math::
    x_i \leftarrow x_i - \eta \nabla \ell_i(x_i) - \alpha (x_i - w), \quad
    w \leftarrow w - \beta \, \mathrm{Agg}(w - x_1, \dots, w - x_n)

  followed by tau - 1 plain steps :math:`x_i \leftarrow x_i - \eta \nabla
  \ell_i(x_i)`. With `mean()` this is the synchronous method of the paper. The
  center w does not include the last tau steps until the next exchange.

  Args:
    loss_fn: as for `local_round`; the anchor of an `Objective` is w.
    local_optimizer: optax transform of the local steps, as for `local_round`:
      `optax.sgd(eta)`. With Nesterov momentum it is EAMSGD, except for the
      point at which optax evaluates the gradient.
    num_local_steps: tau >= 1, a Python int.
    num_workers: n, a Python int.
    beta: step size of the center, in [0, 1]; may be traced.
    alpha: strength of the elastic force, in [0, 1]; None for `beta / n`, as in
      the paper. May be traced.
    local_state: whether workers 'keep' the state of their local optimizer
      between rounds, or 'reset' it.
    aggregator: the aggregation rule for `w - x_i`; None for `mean()`.
    sampler: source of the batches of local steps. This and all arguments below
      are as for `local_round`.
    participation: m workers in every round, or a `Participation`; the
      parameters of the others do not change. None for all.
    attack: an `Attack` on messages, a data attack, or None.
    byzantine: the Byzantine workers; required with an attack.
    worker_weights: float[n] for the rule, or a schedule of it.
    codec: compression of the workers' messages, or None for float32.
    server_codec: compression of the server's aggregate, or None for float32.
    value_and_grad: replaces the gradient of `loss_fn`, or None.
    needs_key: whether the loss is `loss_fn(params, batch_i, key_i)`.
    has_aux: whether the loss is `(loss, aux)`; aux is in `RoundInfo.aux`.
    worker_map: 'vmap', 'map' or an int.
    mesh: devices to split workers over, or None for one device.
    axis_name: the axis, or axes, of the mesh for workers.

  Returns:
    A `Round`. `state.params` is the center w; `replicas(state)` gives the x_i.

  Raises:
    ValueError: if beta or alpha is outside [0, 1], or as for `local_round`.

  References:
    Zhang, Choromanska, LeCun, 2015, arXiv:1412.6651.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> training = byzjax.elastic_averaging(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, num_workers=2,
    ...   num_local_steps=1, local_optimizer=optax.sgd(0.5), beta=1.0)
    >>> state, step = training.init(jnp.zeros(1)), jax.jit(training.step)
    >>> for _ in range(2):
    ...   state, _ = step(
    ...     state, jnp.array([1., 3.]).reshape(2, 1, 1, 1), jax.random.key(0))
    >>> print(state.params, byzjax.replicas(state).ravel())
    [1.] [0.5 1.5]
  """
  checks.check_range(_NAME, 'beta', beta, 0, 1)
  if alpha is None:
    checks.check_count(_NAME, 'num_workers', num_workers, 1)
    alpha = beta / num_workers
  checks.check_range(_NAME, 'alpha', alpha, 0, 1)
  checks.check_choice(_NAME, 'local_state', local_state, ('keep', 'reset'))
  round_arguments.check_transform(_NAME, 'local_optimizer', local_optimizer)
  inner = optax.with_extra_args_support(local_optimizer)
  keeps = local_state == 'keep'

  def init(params, layout):
    optimizer = inner.init(params) if keeps else ()
    return _replicas.ReplicaRows(layout.ravel(params), optimizer=optimizer)

  def work(local_update, layout, params, row, round):
    del round
    center, x = layout.ravel(params), row.params
    pull = layout.unravel(alpha * (center - x))
    start = row.optimizer if keeps else inner.init(layout.unravel(x))
    end = local_update(x, _pulled_once(inner), (start, pull))
    row = row._replace(
      params=layout.ravel(end.params),
      optimizer=end.optimizer[0] if keeps else (),
    )
    return end, center - x, row

  return _replicas.build(
    _NAME,
    _replicas.Method(init, work, optax.sgd(beta)),
    loss_fn,
    num_local_steps=num_local_steps,
    num_workers=num_workers,
    aggregator=mean() if aggregator is None else aggregator,
    sampler=sampler,
    participation=participation,
    attack=attack,
    byzantine=byzantine,
    worker_weights=worker_weights,
    codec=codec,
    server_codec=server_codec,
    value_and_grad=value_and_grad,
    needs_key=needs_key,
    has_aux=has_aux,
    worker_map=worker_map,
    mesh=mesh,
    axis_name=axis_name,
  )


def _pulled_once(
  inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """The transform, and in its first update the pull of its state, too."""

  def update_fn(updates, state, params=None, **extra):
    inner_state, pull = state
    updates, inner_state = inner.update(updates, inner_state, params, **extra)
    updates = jax.tree.map(jnp.add, updates, pull)
    return updates, (inner_state, parameters.zeros_like(pull))

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)
