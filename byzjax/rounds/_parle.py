"""Parle: Entropy-SGD on every worker, coupled elastically to their average."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, checks, flat, local, parameters
from byzjax.aggregators import mean
from byzjax.rounds import _replicas
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad

_NAME = 'parle'


def parle(
  loss_fn: LossFn,
  *,
  learning_rate: base.ScalarOrSchedule,
  num_workers: int,
  num_local_steps: int = 25,
  gamma: base.ScalarOrSchedule | None = None,
  rho: base.ScalarOrSchedule | None = None,
  batches_per_epoch: int | None = None,
  momentum: base.Scalar = 0.9,
  averaging: base.Scalar = 0.25,
  form: Literal['paper', 'released'] = 'paper',
  local_state: Literal['keep', 'reset'] | None = None,
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
  r"""Parle: replicas that run Entropy-SGD, coupled to their average.

  Worker i starts a round with its outer step, takes L inner steps from there,
  and sends :math:`w - z_i`:

  .. math::
    x_i &\leftarrow v_i - \eta N[(x_i - z_i) + \rho (x_i - w)], \quad y = x_i \\
    y &\leftarrow y - \eta N[\nabla \ell_i(y) + \gamma (y - x_i)], \quad
    z_i \leftarrow (1 - a) z_i + a y \quad (L \text{ times}) \\
    w &\leftarrow w - \mathrm{Agg}(w - z_1, \dots, w - z_n)

  N is a step with momentum, :math:`m \leftarrow \beta m + g`. The two forms:

  - 'paper': the outer step starts from :math:`v_i = x_i`, and N[g] is
    Nesterov's :math:`g + \beta m`. The inner momentum is reset in every round.
  - 'released', the loop of the authors' code: :math:`v_i = y`, the end of the
    inner steps of the last round; N[g] is :math:`g + m`, without the factor
    beta; and the inner momentum is never reset. At the same rate its steps are
    longer.

  In both forms w is the aggregate of the z_i, with `mean()` their mean, and the
  z_i are never reset: a share :math:`(1 - a)^L` of the last round remains in
  them. The authors take the outer step at the end of a round, once w is known;
  here the same step is the first one of the next round, with the rate of that
  round.

  In the form 'paper', one worker and rho = 0 give Entropy-SGD without noise
  (exactly if averaging is 1, otherwise up to that share; and gamma acts inside
  the inner momentum); gamma = 0 and L = 1 give elastic SGD; both together SGD.

  Args:
    loss_fn: as for `local_round`; the anchor of an `Objective` is w.
    learning_rate: eta >= 0 of both steps, or a schedule of the round.
    num_workers: n, a Python int.
    num_local_steps: L >= 1, a Python int.
    gamma: >= 0, or a schedule of the round; None for 0.01 in the first round,
      multiplied by :math:`1 + 1 / (2 b)` in every later round, up to 1, where b
      is `batches_per_epoch`. In the released code the step count of this growth
      increases once per parameter tensor, so gamma grows that many times as
      fast.
    rho: >= 0, or a schedule of the round; None for `0.01 L n` with the same
      growth, up to 10.
    batches_per_epoch: b >= 1, a Python int; required if gamma or rho is None,
      and only then.
    momentum: beta in [0, 1], of both steps; may be traced.
    averaging: a in [0, 1], the weight of the new y; may be traced.
    form: 'paper' or 'released', as above.
    local_state: 'reset' or 'keep' the momentum of the inner steps between
      rounds; None for the choice of the form.
    aggregator: the aggregation rule for :math:`w - z_i`; None for `mean()`.
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
    A `Round`. `state.params` is w, `state.workers.average` the z_i, and
    `replicas(state)` the x_i, whose mean is the master of Parle.

  Raises:
    ValueError: if an argument is out of range, if batches_per_epoch is given
      although gamma and rho are too, or as for `local_round`.

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
  checks.check_count(_NAME, 'num_workers', num_workers, 1)
  checks.check_count(_NAME, 'num_local_steps', num_local_steps, 1)
  gamma, rho = _springs(
    gamma, rho, batches_per_epoch, 0.01 * num_local_steps * num_workers
  )
  checks.check_rate(_NAME, 'learning_rate', learning_rate)
  checks.check_rate(_NAME, 'gamma', gamma)
  checks.check_rate(_NAME, 'rho', rho)
  checks.check_range(_NAME, 'momentum', momentum, 0, 1)
  checks.check_range(_NAME, 'averaging', averaging, 0, 1)
  checks.check_choice(_NAME, 'form', form, ('paper', 'released'))
  released = form == 'released'
  if local_state is None:
    local_state = 'keep' if released else 'reset'
  checks.check_choice(_NAME, 'local_state', local_state, ('keep', 'reset'))
  parts = Parts(
    learning_rate,
    gamma,
    rho,
    momentum,
    averaging,
    released,
    local_state == 'keep',
  )
  return _replicas.build(
    _NAME,
    _replicas.Method(
      functools.partial(init_row, parts),
      functools.partial(worker_round, parts),
      optax.sgd(1.0),
    ),
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


class Parts(NamedTuple):
  """The arguments of `parle` that say what workers do."""

  learning_rate: base.ScalarOrSchedule
  gamma: base.ScalarOrSchedule
  rho: base.ScalarOrSchedule
  momentum: base.Scalar
  averaging: base.Scalar
  released: bool  # else the paper's form
  keeps: bool  # the momentum of the inner steps, from round to round


def init_row(
  parts: Parts, params: base.Params, layout: flat.RowLayout
) -> _replicas.ReplicaRows:
  """What a worker keeps at the start."""
  x = layout.ravel(params)
  inner = _inner_steps(parts, 0.0).init(params) if parts.keeps else ()
  return _replicas.ReplicaRows(
    x, x, parameters.zeros_like(x), inner, end=x if parts.released else ()
  )


def worker_round(
  parts: Parts, local_update, layout, params, row: _replicas.ReplicaRows, round
):
  """The outer step of a worker, then its inner steps; see `Method`."""
  rate, strength, spring = (
    base.value_at(value, round)
    for value in (parts.learning_rate, parts.gamma, parts.rho)
  )
  w = layout.ravel(params)
  x, m = outer_step(parts, rate, spring, w, row)
  first, inner = layout.unravel(x), _inner_steps(parts, rate)

  def force(y):
    return jax.tree.map(
      lambda a, b: (strength * (a - b)).astype(a.dtype), y, first
    )

  end = local_update(
    x,
    _averaging(inner, layout, parts.averaging),
    (row.optimizer if parts.keeps else inner.init(first), row.average),
    force,
  )
  state, z = end.optimizer
  row = _replicas.ReplicaRows(
    x,
    z,
    m,
    state if parts.keeps else (),
    end=layout.ravel(end.params) if parts.released else (),
  )
  return end, w - z, row


def outer_step(
  parts: Parts, rate, spring, w: jax.Array, row: _replicas.ReplicaRows
) -> tuple[jax.Array, jax.Array]:
  """The step that begins a round: `(x, momentum)`, float[d] each."""
  x = row.params
  g = (x - row.average) + spring * (x - w)
  m = (parts.momentum * row.momentum + g).astype(x.dtype)
  start = row.end if parts.released else x
  factor = 1.0 if parts.released else parts.momentum
  return (start - rate * (g + factor * m)).astype(x.dtype), m


def _inner_steps(
  parts: Parts, rate: base.Scalar
) -> optax.GradientTransformationExtraArgs:
  """The steps along the gradient and the spring to where they began."""
  if parts.released:
    tx = optax.chain(
      _add_momentum(parts.momentum), optax.scale_by_learning_rate(rate)
    )
  else:
    tx = optax.sgd(rate, parts.momentum, nesterov=True)
  return optax.with_extra_args_support(tx)


def _springs(
  gamma: base.ScalarOrSchedule | None,
  rho: base.ScalarOrSchedule | None,
  batches_per_epoch: int | None,
  first_rho: float,
) -> tuple[base.ScalarOrSchedule, base.ScalarOrSchedule]:
  """gamma and rho, growing where they are None."""
  if gamma is not None and rho is not None:
    if batches_per_epoch is not None:
      raise ValueError(
        f'{_NAME} needs batches_per_epoch to be None if gamma and rho are'
        f' given, because it only sets their growth, got {batches_per_epoch!r}'
      )
    return gamma, rho
  checks.check_count(_NAME, 'batches_per_epoch', batches_per_epoch, 1)
  assert batches_per_epoch is not None
  growth = 1 + 0.5 / batches_per_epoch
  if gamma is None:
    gamma = optax.exponential_decay(0.01, 1, growth, end_value=1.0)
  if rho is None:
    rho = optax.exponential_decay(first_rho, 1, growth, end_value=10.0)
  return gamma, rho


def _add_momentum(decay: base.Scalar) -> optax.GradientTransformation:
  """`m <- decay m + g`, then `g + m`: the factor of Nesterov's is left out."""

  def update_fn(updates, state, params=None):
    del params
    state = jax.tree.map(
      lambda m, g: (decay * m + g).astype(m.dtype), state, updates
    )
    return jax.tree.map(jnp.add, updates, state), state

  return optax.GradientTransformation(parameters.zeros_like, update_fn)


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
