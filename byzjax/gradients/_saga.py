"""A table of one gradient for each example: SAGA, for Byrd-SAGA."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks, flat, local

_NAME = 'saga'


class SagaState(NamedTuple):
  """What a worker keeps for `saga`."""

  table: base.Params  # leaves [N, ...]: the last gradient of each example
  mean: base.Params  # of the table


def saga(
  loss_fn: local.LossFn | local.Objective,
  *,
  num_examples: int,
  fill: bool = True,
) -> local.StatefulEstimator:
  r"""Gradients of single examples, without their noise (SAGA, Byrd-SAGA).

  Every worker keeps a table T with the last gradient of each of its N examples.
  In a round it draws one example j, uniformly and with replacement:

  .. math::
    x_i = \nabla f_j(w) - T_j + \frac{1}{N} \sum_k T_k, \qquad
    T_j \leftarrow \nabla f_j(w)

  The mean of x over j is the gradient of all examples, and its variance goes to
  zero as w comes to rest. So attackers cannot hide in the noise of sampling:
  behind a geometric median this is Byrd-SAGA. With `fill`, T is computed at the
  initial parameters in round 0, which costs N gradients and makes x the whole
  gradient; other rounds cost one. Without it, and for workers that are away in
  round 0, T starts with zeros, and x with the gradient of one example.

  A gradient that is not finite stays in the table, so an honest worker whose
  loss overflows once sends NaN from then on, and is masked by the rule.

  The table has N times the memory of the parameters at every worker. It is for
  convex problems and small models; for networks see `storm` and
  `byz_vr_marina`.

  Give it to `robust_round(value_and_grad=...)`, with all examples of a worker
  as its batch in every round, in the same order, and an empty `worker` chain.
  The loss that is reported is that of example j.

  Args:
    loss_fn: f, `(params, examples) -> scalar`, a mean over examples, without a
      key, or an `Objective`.
    num_examples: N >= 1 of each worker, a Python int.
    fill: whether round 0 computes the table, as in the paper. Leave it out
      where whole trainings are vmapped: every round would pay for it.

  Returns:
    A `StatefulEstimator` on batches with leaves `[N, ...]`. A worker keeps a
    `SagaState`, in float32 at least.

  Raises:
    ValueError: if num_examples is not a count; at trace time, if a batch has
      another number of examples.

  References:
    Defazio, Bach, Lacoste-Julien, 2014, arXiv:1407.0202; with a geometric
    median, Wu, Ling, Chen, Giannakis, 2020, arXiv:1912.12716.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> def loss_fn(w, x):
    ...   return jnp.mean((w[None] - x) ** 2) / 2
    >>> round = byzjax.robust_round(
    ...   loss_fn, num_workers=5, aggregator=byzjax.geometric_median(),
    ...   optimizer=optax.sgd(0.2),
    ...   value_and_grad=byzjax.saga(loss_fn, num_examples=2))
    >>> state, step = round.init(jnp.ones(1)), jax.jit(round.step)
    >>> x = jnp.tile(jnp.array([[-1.], [1.]]), (5, 1, 1))
    >>> for _ in range(100):
    ...   state, info = step(state, x, jax.random.key(0))
    >>> print(state.params.round(3))  # The minimum, from single examples.
    [0.]
  """
  checks.check_count(_NAME, 'num_examples', num_examples, 1)
  checks.check_flag(_NAME, 'fill', fill)
  estimator = local.as_estimator(loss_fn, name=_NAME)

  def init(params):
    mean = jax.tree.map(
      lambda p: jnp.zeros(jnp.shape(p), flat.compute_dtype(p)), params
    )
    table = jax.tree.map(
      lambda m: jnp.zeros((num_examples, *m.shape), m.dtype), mean
    )
    return SagaState(table, mean)

  def estimate(params, previous, batch, state, context):
    del previous
    _check_examples(batch, num_examples)

    def of_example(j):
      one = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, j, 1), batch)
      found = local.estimate(estimator, params, one, context)
      return found.loss, jax.tree.map(_like, found.gradient, state.mean)

    def filled():
      table = lax.map(lambda j: of_example(j)[1], jnp.arange(num_examples))
      return SagaState(table, jax.tree.map(lambda t: t.mean(axis=0), table))

    if fill:
      state = lax.cond(context.round == 0, filled, lambda: state)
    table, mean = state
    j = jax.random.randint(context.key, [], 0, num_examples)
    loss, new = of_example(j)
    change = jax.tree.map(lambda t, g: g - t[j], table, new)
    message = jax.tree.map(
      lambda p, c, m: (c + m).astype(jnp.result_type(p)), params, change, mean
    )
    mean = jax.tree.map(lambda m, c: m + c / num_examples, mean, change)
    # `set` would copy the table in every round: XLA:CPU adds in place.
    table = jax.tree.map(lambda t, c: t.at[j].add(c), table, change)
    return loss, message, SagaState(table, mean)

  return local.StatefulEstimator(init, estimate, name=_NAME)


def _like(x: jax.Array, other: jax.Array) -> jax.Array:
  return x.astype(other.dtype)


def _check_examples(batch, num_examples: int) -> None:
  found = checks.num_workers(f'{_NAME}: batch', batch)
  if found != num_examples:
    raise ValueError(
      f'{_NAME} has a table of num_examples={num_examples} gradients, got a'
      f' batch of {found} examples: give every worker all of its examples in'
      ' every round'
    )
