"""Byz-VR-MARINA: gradient differences, and full gradients from time to time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, checks, flat, local, round_arguments

_NAME = 'byz_vr_marina'


class ByzVrMarina(NamedTuple):
  """The worker and server parts of `byz_vr_marina`, named as round arguments.

  Attributes:
    value_and_grad: what workers send: gradients or differences of gradients.
    optimizer: of the server, which sums the differences.
  """

  value_and_grad: local.StatefulEstimator
  optimizer: optax.GradientTransformationExtraArgs


class MarinaWorkerState(NamedTuple):
  """The worker state of `byz_vr_marina`."""

  next_round: jax.Array  # shape=(), dtype=int32, if the worker is not absent
  codec: base.State


class MarinaServerState(NamedTuple):
  """The server state of `byz_vr_marina`."""

  round: jax.Array  # shape=(), dtype=int32
  estimate: base.Params  # g, float32 at least
  optimizer: base.State


def byz_vr_marina(
  loss_fn: local.LossFn | local.Objective,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  probability: base.Scalar,
  key: jax.Array,
  codec: base.Codec | None = None,
  needs_key: bool = False,
) -> ByzVrMarina:
  r"""Variance reduction before a robust rule, for finite sums (Byz-VR-MARINA).

  In each round one coin is tossed, with probability p of heads, shared by all
  workers and the server:

  .. math::
    u_i &= \nabla f_i(w_t) &&\text{heads, and in the first round} \\
    u_i &= Q\big(\nabla f_i(w_t; \xi_i) - \nabla f_i(w_{t-1}; \xi_i)\big)
      &&\text{tails} \\
    g &\leftarrow \mathrm{rule}(u_1, \ldots, u_n) + [\text{tails}] \, g

  and the optimizer steps along g. Both gradients of a difference use the same b
  examples, so near a minimum the differences are small, and so are the
  perturbations that Byzantine workers can hide; with equal data it converges to
  the exact minimum, as gradient descent does. A full gradient is computed once
  in 1/p rounds on average: p = b / N costs about as much as SGD with batches of
  3 b.

  The paper adds g to each difference before the rule, which is the same for
  rules that are translation equivariant. The released code adds differences to
  each worker's own last message instead, which is a different method.

  Pass both parts to `robust_round`, `**byz_vr_marina(...)._asdict()`, with all
  examples of every worker as the batch, and without `worker`. Attacks act on
  the u_i. A worker that was absent in the last round (by `worker_weights`)
  cannot form a difference: on tails its message is NaN, and is masked.

  Args:
    loss_fn: `(params, examples) -> scalar`, a mean over examples, or an
      `Objective`.
    optimizer: applied to g, e.g.
      `optax.sgd(theory.byz_vr_marina_step_size(...))`.
    batch_size: b >= 1, a Python int: examples per difference, drawn with
      replacement.
    probability: p in (0, 1], of a round of full gradients; may be traced.
    key: the key of the coin, as from `jax.random.key`.
    codec: Q, unbiased, such as `qsgd_codec(norm='l2')`, or None. It compresses
      only the differences; `RoundInfo` still counts the bits of float32.
    needs_key: whether the loss takes a key, `loss_fn(params, examples, key)`.

  Returns:
    A `ByzVrMarina`: a `StatefulEstimator` on batches with leaves `[N, ...]`,
    whose workers keep a `MarinaWorkerState`, and an optax transform with a
    `MarinaServerState`.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if the loss
      does not fit `needs_key`.

  References:
    Gorbunov, Horvath, Richtarik, Gidel, 2023, arXiv:2206.00529.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> def loss_fn(w, x):
    ...   return jnp.mean((w[None] - x) ** 2) / 2
    >>> marina = byzjax.byz_vr_marina(
    ...   loss_fn, optimizer=optax.sgd(0.5), batch_size=1, probability=0.2,
    ...   key=jax.random.key(0))
    >>> round = byzjax.robust_round(
    ...   loss_fn, num_workers=5, aggregator=byzjax.coordinate_median(),
    ...   **marina._asdict())
    >>> state = round.init(jnp.ones(1))
    >>> x = jnp.tile(jnp.array([[-1.], [1.]]), (5, 1, 1))
    >>> for _ in range(3):
    ...   state, info = round.step(state, x, jax.random.key(0))
    >>> print(state.params)  # The noise of single examples cancels.
    [0.125]
  """
  round_arguments.check_transform(_NAME, 'optimizer', optimizer)
  checks.check_count(_NAME, 'batch_size', batch_size, 1)
  checks.check_range(_NAME, 'probability', probability, 0, 1, exclusive=True)
  checks.check_key(_NAME, 'key', key)
  checks.check_kind(_NAME, 'codec', codec, base.Codec, optional=True)
  of_loss = local.as_estimator(loss_fn, name=_NAME, needs_key=needs_key)

  def is_whole(round):
    coin = jax.random.bernoulli(jax.random.fold_in(key, round), probability)
    return (round == 0) | coin

  return ByzVrMarina(
    _worker(of_loss, codec, batch_size, is_whole), _server(optimizer, is_whole)
  )


def _worker(of_loss, codec, batch_size, is_whole) -> local.StatefulEstimator:
  def init(params):
    start = () if codec is None else codec.init(_padded(params))
    return MarinaWorkerState(jnp.zeros([], jnp.int32), start)

  def whole(params, previous, batch, state, context):
    del previous
    found = local.estimate(of_loss, params, batch, context)
    return found.loss, found.gradient, state

  def difference(params, previous, batch, state, context):
    rows = checks.num_workers(f'{_NAME}: batch', batch)
    draw_key, codec_key, loss_key = jax.random.split(context.key, 3)
    chosen = jax.random.randint(draw_key, (batch_size,), 0, rows)
    some = jax.tree.map(lambda x: x[chosen], batch)
    # One key for both, so that dropout is the same, too.
    context = context._replace(key=loss_key)
    new = local.estimate(of_loss, params, some, context)
    old = local.estimate(of_loss, previous, some, context)
    moved = jax.tree.map(jnp.subtract, new.gradient, old.gradient)
    if codec is not None:
      moved, state = _compressed(codec, moved, state, codec_key)
    return new.loss, moved, state

  def estimate(params, previous, batch, state, context):
    round = jnp.asarray(context.round, jnp.int32)
    heads = is_whole(round)
    loss, message, codec_state = lax.cond(
      heads, whole, difference, params, previous, batch, state.codec, context
    )
    knows = heads | (state.next_round == round)
    message = jax.tree.map(lambda m: jnp.where(knows, m, jnp.nan), message)
    return loss, message, MarinaWorkerState(round + 1, codec_state)

  return local.StatefulEstimator(init, estimate, name=_NAME)


def _server(optimizer, is_whole) -> optax.GradientTransformationExtraArgs:
  optimizer = optax.with_extra_args_support(optimizer)

  def init(params):
    zeros = jax.tree.map(
      lambda p: jnp.zeros(jnp.shape(p), flat.compute_dtype(p)), params
    )
    start = jnp.zeros([], jnp.int32)
    return MarinaServerState(start, zeros, optimizer.init(params))

  def update(updates, state, params=None, **extra):
    heads = is_whole(state.round)
    estimate = jax.tree.map(
      lambda g, u: jnp.where(heads, 0, g) + u.astype(g.dtype),
      state.estimate,
      updates,
    )
    along = jax.tree.map(lambda g, u: g.astype(u.dtype), estimate, updates)
    steps, inner = optimizer.update(along, state.optimizer, params, **extra)
    round = optax.safe_increment(state.round)
    return steps, MarinaServerState(round, estimate, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def _padded(tree: Any) -> jax.Array:
  """The leaves as one vector, as long as codecs take them."""
  layout = flat.row_layout(tree, 32)
  return layout.ravel(tree)


def _compressed(codec, tree, state, key):
  """What decoding an encoded tree gives."""
  layout = flat.row_layout(tree)
  payload, state = codec.encode(
    _padded(tree), state, key, num_coordinates=layout.size
  )
  vector = codec.decode(payload)[: layout.size].astype(layout.dtype)
  return layout.unravel(vector), state
