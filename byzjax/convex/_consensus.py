"""Consensus ADMM with Byzantine workers, for a ReLU network."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, layouts, round_arguments
from byzjax.convex import _admm, _iteration, _linear, _losses, _problem
from byzjax.convex._iteration import AdmmHistory, AdmmState

_NAME = 'consensus_admm'


class ConsensusState(NamedTuple):
  """The state of `consensus_admm`.

  Attributes:
    step: int32[], iterations so far.
    blocks: float[2, P, d], the v_i and w_i of the server: the solution.
    workers: an `AdmmState` of all workers, with leaves `[n, ...]`; its `blocks`
      are those that the server last sent.
    server: the states of the rule and of the attack.
  """

  step: jax.Array
  blocks: jax.Array
  workers: AdmmState
  server: base.State


def consensus_admm(
  x: jax.Array,
  y: jax.Array,
  arrangements: jax.Array,
  *,
  beta: base.Scalar,
  rho: base.Scalar,
  num_iterations: int,
  aggregator: base.Aggregator,
  loss: str = 'squared',
  attack: base.Attack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  key: jax.Array | None = None,
  dual_ratio: base.Scalar = 1.0,
  record_every: int = 1,
  state: ConsensusState | None = None,
) -> tuple[ConsensusState, AdmmHistory]:
  """Consensus ADMM with Byzantine workers, on one convex program.

  Worker j takes the steps of `admm` on its own examples, for its own copy u_j
  with constraints `u_j = v`, and sends `u_j + lambda_j`. The server computes::

      v_i <- (1 - (beta / (n rho)) / |a_i|)_+ a_i,
      a = Agg(u_1 + lambda_1, ..., u_n + lambda_n),

  and sends v to all workers. Then worker j updates `lambda_j <- lambda_j + r
  (u_j - v)`, and likewise its slacks and their duals. With `mean()` and no
  Byzantine workers this is consensus ADMM: it converges to the optimum on the
  examples of all workers, whose value is known. So the cost of a rule and of an
  attack can be measured exactly.

  A robust rule has a slightly different fixed point. There all `u_j = v`, and
  `-rho lambda_j` is the gradient of worker j's loss plus the terms of its
  constraints. The rule aggregates these instead of averaging them, so its error
  grows with their differences. It is small where workers have many examples,
  small residuals or a large beta. A constraint that is active at only a few
  workers may be ignored by a robust rule; the duals of these workers then grow
  without bound. In experiments a continuous rule, `geometric_median`, converged
  where `coordinate_median` did not.

  Args:
    x: float[n, m, d], the m examples of each worker.
    y: float[n, m]; -1 or 1 unless the loss is squared.
    arrangements: bool[n, P, m], of vectors that all workers share, such as
      `jax.vmap(convex.arrangements, (0, None))(x, vectors)`.
    beta: weight of the norms, `>= 0`; may be traced.
    rho: penalty of the augmented Lagrangian, `> 0`; may be traced.
    num_iterations: a Python int >= 0.
    aggregator: the rule in place of the mean; an `Aggregator`.
    loss: 'squared', 'hinge' or 'logistic', over the examples of all workers as
      in `objective`.
    attack: an `Attack` on the messages, float[n, 2, P, d], or None.
    byzantine: the Byzantine workers: an int f for the first f workers, bool[n],
      or a schedule `iteration -> bool[n]`. Required with an attack; None means
      none.
    key: of attacks and rules with randomness, or None.
    dual_ratio: r, the dual step as a multiple of rho, in (0, 1.618]; may be
      traced.
    record_every: iterations between entries of the history, a Python int >= 1
      that divides num_iterations.
    state: a state to continue from, or None to start at zero.

  Returns:
    A `ConsensusState`, and an `AdmmHistory`: objective and violation of the
    server's blocks on the examples of all workers, also Byzantine ones, and the
    norms of the residuals of honest workers.

  Raises:
    ValueError: if shapes are inconsistent, an argument is out of its range, or
      a rule is in the wrong argument.

  References:
    Boyd, Parikh, Chu, Peleato, Eckstein, 2011, doi:10.1561/2200000016, section
    7.1, on the program of Bai, Gautam, Sojoudi, 2022, arXiv:2201.01965.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> from byzjax import convex
    >>> x = jax.random.normal(jax.random.key(0), (5, 8, 3))
    >>> vectors = jax.random.normal(jax.random.key(1), (6, 3))
    >>> patterns = jax.vmap(convex.arrangements, (0, None))(x, vectors)
    >>> y = jnp.maximum(x @ vectors[0], 0)
    >>> state, history = convex.consensus_admm(
    ...   x, y, patterns, beta=0.1, rho=0.1, num_iterations=200,
    ...   aggregator=byzjax.geometric_median(),
    ...   attack=byzjax.sign_flip(scale=10.0), byzantine=1)
    >>> bool(history.objective[-1] < 0.1 * jnp.sum(y**2) / 2)
    True
  """
  _losses.check_loss(_NAME, loss, y)
  _admm.check_numbers(
    _NAME, beta, rho, dual_ratio, num_iterations, record_every
  )
  aggregator = round_arguments.check_slots(_NAME, aggregator, attack, {})
  round_arguments.check_attackers(_NAME, attack, byzantine)
  shapes = jnp.shape(x), jnp.shape(y), jnp.shape(arrangements)
  if (
    [len(shape) for shape in shapes] != [3, 2, 3]
    or shapes[0][:2] != shapes[1]
    or (shapes[0][0], shapes[0][1]) != (shapes[2][0], shapes[2][2])
  ):
    raise ValueError(
      f'{_NAME} needs x [n, m, d], y [n, m] and arrangements [n, P, m], got'
      f' the shapes {shapes}'
    )
  schedule = byzantine if callable(byzantine) else None
  first = None
  if schedule is None:  # An array: a new closure would compile again.
    zeroth = jnp.zeros([], jnp.int32)
    first = round_arguments.byzantine_schedule(_NAME, len(x), byzantine)(zeroth)
  data = [_problem.arrays(_NAME, *worker) for worker in zip(x, y, arrangements)]
  stacked = [jnp.stack(arrays) for arrays in zip(*data)]
  return _run(
    *stacked, beta, rho, dual_ratio, state, key, first,
    aggregator, attack, schedule, loss, num_iterations, record_every,
  )  # fmt: skip


@functools.partial(
  jax.jit,
  static_argnames=(
    'aggregator',
    'attack',
    'schedule',
    'loss',
    'num_iterations',
    'record_every',
  ),
)
def _run(
  x, y, masks, beta, rho, ratio, state, key, first,
  aggregator, attack, schedule, loss, num_iterations, record_every,
):  # fmt: skip
  num_workers = len(x)
  weight = _iteration.fit_weight(loss, rho)
  fit_scale = _losses.scale(loss, y.size) / rho
  server = layouts.attacked(aggregator, attack)
  factors = jax.vmap(lambda x, d: _linear.factorize(x, d, weight))(x, masks)
  if state is None:
    workers = jax.vmap(
      lambda *data: _iteration.zero_state(*data, loss=loss, robust=False)
    )(x, y, masks)
    zeros = workers.blocks[0]
    state = ConsensusState(
      jnp.zeros((), jnp.int32), zeros, workers, server.init(zeros)
    )

  def who(step):
    if schedule is None:
      return first
    return round_arguments.byzantine_of(_NAME, schedule, step, num_workers)

  def at_worker(worker, factors, x, y, masks):
    u = _iteration.copy_step(worker, factors, x, masks, weight)
    image = _iteration.images(x, masks, u)
    worker = worker._replace(
      copies=u,
      slacks=jnp.maximum(image.slacks + worker.slack_dual, 0),
      fits=_iteration.fit_step(worker, image, y, loss, fit_scale),
    )
    return worker, image

  def step(state):
    workers, image = jax.vmap(at_worker)(state.workers, factors, x, y, masks)
    aggregate, server_state, _ = server.inspect(
      workers.copies + workers.block_dual,
      state.server,
      state.blocks,
      key=None if key is None else jax.random.fold_in(key, state.step),
      is_byzantine=who(state.step),
    )
    blocks = _losses.group_threshold(aggregate, beta / (num_workers * rho))
    workers = workers._replace(
      blocks=jnp.broadcast_to(blocks, workers.blocks.shape)
    )
    workers = jax.vmap(
      lambda own, predictions: _iteration.dual_step(
        own, predictions, loss, ratio
      )
    )(workers, image)
    return ConsensusState(state.step + 1, blocks, workers, server_state)

  all_x, all_y = x.reshape(-1, x.shape[-1]), y.reshape(-1)
  all_masks = jnp.moveaxis(masks, 0, 1).reshape(masks.shape[1], -1)

  def measure(state):
    of_worker = jax.vmap(
      lambda *parts: _iteration.measure(*parts, beta=beta, rho=rho, loss=loss)
    )(state.workers, x, y, masks)
    honest = ~who(state.step - 1)

    def norm(residuals):
      return jnp.linalg.norm(jnp.where(honest, residuals, 0))

    return AdmmHistory(
      _problem.value(state.blocks, all_x, all_y, all_masks, beta, loss),
      _problem.broken(state.blocks, all_x, all_masks),
      norm(of_worker.primal_residual),
      norm(of_worker.dual_residual),
    )

  return _admm.repeat(step, measure, state, num_iterations, record_every)
