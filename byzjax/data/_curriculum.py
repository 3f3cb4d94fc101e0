"""Curriculum learning: local steps on examples in order of difficulty."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat
from byzjax._src.local import LocalSampler
from byzjax.data import _examples, _pacing, _sweep, _worker_loss

Order = Literal['curriculum', 'anti', 'random']
Score = Literal['global', 'local', 'global_and_local', 'expert']


class CurriculumState(NamedTuple):
  """The worker state of `curriculum` if its own model scores its examples."""

  params: base.Params
  participated: jax.Array  # shape=(), dtype=bool


class CurriculumPlan(NamedTuple):
  """The plan of `curriculum` for one round.

  Attributes:
    rank: int32[m], the rank of each place of the worker's row, 0 for the first
      example to enter the pool; the padding ranks last.
    sweep: the position in the pass over the pool.
  """

  rank: jax.Array
  sweep: _sweep.Sweep


def curriculum(
  images: jax.Array,
  labels: jax.Array,
  *,
  loss_per_example: _worker_loss.LossPerExample,
  batch_size: int,
  num_local_steps: base.Scalar,
  scale: float = 1.0,
  order: Order = 'curriculum',
  score: Score = 'global',
  expert_params: base.Params | None = None,
  pacing: _pacing.Pacing = 'linear',
  full_at: base.Scalar = 0.8,
  initial_share: base.Scalar = 0.2,
  min_pool: int = 32,
  score_batch_size: int = 256,
) -> LocalSampler:
  r"""Local steps on the easiest examples first, then on more and more of them.

  At the start of a round a worker ranks its `N_i` examples by their loss. Step
  t draws from the pool of the first `g(t)` examples,

  .. math::
    P_t = \{j \in S_i : \mathrm{rank}(j) < \max(g(t), \mathrm{min\_pool})\}

  with g from `pool_size`. The pool is traversed in shuffled batches without
  replacement; after each of its examples has been used, the pool for the
  current t replaces it. So a round always takes the requested number of steps.
  As in `local_sampler`, the last batch of a sweep is padded with the first
  examples of that sweep. Pacing runs within a round and restarts in the next.

  The ranking uses the loss of the received parameters (`'global'`), of the
  worker's own parameters after its last local step (`'local'`; the received
  ones before its first participation), the sum of both (`'global_and_local'`),
  or the loss of a fixed model (`'expert'`, the same order in all rounds). Each
  costs one or two forward passes over the worker's examples per round; a 0-1
  loss of the predictions works too. Losses that are not finite count as the
  largest. Ties go to the example that comes first; `'anti'` is the exact
  reverse order. `'random'` applies the pacing to a random order, without
  scores. This differs from no curriculum, which is `pacing='step', full_at=1,
  initial_share=1`, bit for bit `local_sampler(shuffled=True)`.

  Under label skew a local model fits its own classes, so its scores carry
  little information. A worker's examples are ordered by what the worker itself
  computes, so Byzantine workers gain no further influence.

  Args:
    images: all examples `[N, ...]`, uint8 or float, on every device.
    labels: integers `[N]`.
    loss_per_example: `(params, images float32[k, ...], labels int32[k]) ->
      float[k]`, in evaluation mode.
    batch_size: B >= 1, a Python int.
    num_local_steps: T > 0, the steps for the pacing; may be traced.
    scale: largest pixel value s > 0.
    order: `'curriculum'`, `'anti'` or `'random'`.
    score: `'global'`, `'local'`, `'global_and_local'` or `'expert'`.
    expert_params: parameters of the fixed model; only for score 'expert'.
    pacing: as in `pool_size`.
    full_at: a >= 0, the share of the steps after which the pool contains all
      examples; may be traced.
    initial_share: b >= 0, share of examples at the start; may be traced.
    min_pool: minimum size of the pool, unless the worker has fewer examples.
    score_batch_size: number of examples scored at a time, to bound memory.

  Returns:
    A `LocalSampler` for data_i = `Partition(indices int32[m], sizes int32[])`,
    with batches `(images float32[B, ...], labels int32[B])`. Its state is a
    `CurriculumState` if the local model scores, otherwise empty.

  Raises:
    ValueError: if an argument is not one of its choices or out of its range,
      images and labels have different lengths, or only one of `expert_params`
      and `score='expert'` is given.

  References:
    Vahidian, Kadaveru, Baek, Wang, Kungurtsev, Chen, Shah, Lin, 2023,
    arXiv:2212.12712.

  Example:
    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from byzjax import data
    >>> images, labels = np.zeros([6, 2]), np.array([40, 10, 60, 30, 20, 50])
    >>> sampler = data.curriculum(
    ...   images, labels, batch_size=2, num_local_steps=3, min_pool=1,
    ...   full_at=1.0, initial_share=0.34,
    ...   loss_per_example=lambda params, images, labels: 1.0 * labels)
    >>> mine = data.Partition(jnp.arange(6), jnp.array(6))
    >>> params, key = jnp.zeros(3), jax.random.key(0)
    >>> plan = sampler.start(sampler.init(params), params, mine, key)
    >>> (_, easiest), plan = sampler.draw(plan, mine, jnp.array(0), key)
    >>> sorted(easiest.tolist())
    [10, 20]
  """
  name = 'curriculum'
  losses = _worker_loss.example_losses(
    name, images, labels, loss_per_example, scale, score_batch_size
  )
  _examples.check_batch(name, batch_size, scale)
  _pacing.check_pacing(name, pacing, full_at, initial_share)
  check_order(name, order)
  checks.check_range(
    name, 'num_local_steps', num_local_steps, 0, exclusive=True
  )
  checks.check_count(name, 'min_pool', min_pool, 1)
  if score not in get_args(Score):
    raise ValueError(
      f'{name} needs score to be one of {list(get_args(Score))}, got {score!r}'
    )
  if (expert_params is not None) != (score == 'expert'):
    raise ValueError(
      f"{name} needs expert_params with score='expert' and only with it, got"
      f' score={score!r}'
    )
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  keeps_params = order != 'random' and score in ('local', 'global_and_local')

  def init(params):
    if not keeps_params:
      return ()
    return CurriculumState(params, jnp.zeros([], bool))

  def finish(state, params):
    if not keeps_params:
      return state
    return CurriculumState(params, jnp.ones_like(state.participated))

  def scores(state, params, indices, key):
    if order == 'random':
      return jax.random.uniform(key, indices.shape, jnp.float32)
    if score == 'expert':
      return losses(expert_params, indices)
    if score == 'global':
      return losses(params, indices)
    own = jax.tree.map(
      lambda p, q: jnp.where(state.participated, p, q), state.params, params
    )
    if score == 'local':
      return losses(own, indices)
    return losses(params, indices) + losses(own, indices)

  def start(state, params, data_i, key):
    indices, size = data_i
    values = scores(state, params, indices, key)
    own = jnp.arange(indices.shape[0]) < size
    rank = rank_of(values, own, reverse=order == 'anti')
    return CurriculumPlan(rank, _sweep.start(rank))

  def draw(plan, data_i, step, key):
    indices, size = data_i
    pool = _pacing.pool_size(
      step,
      pacing=pacing,
      num_examples=size,
      total_steps=num_local_steps,
      full_at=full_at,
      initial_share=initial_share,
    )
    pool = jnp.minimum(jnp.maximum(pool, min_pool), size)
    places, sweep = _sweep.take(plan.sweep, plan.rank, pool, key, batch_size)
    batch = _examples.take(images, labels, indices[places], scale)
    return batch, CurriculumPlan(plan.rank, sweep)

  return LocalSampler(init, start, draw, finish)


def rank_of(
  scores: jax.Array, valid: jax.Array, *, reverse: bool = False
) -> jax.Array:
  """Ranks from 0 for the lowest score; what is not valid comes last.

  Scores that are not finite count as the largest, ties go to the lowest index,
  and `reverse` turns the order of what is valid around.
  """
  scores = scores.astype(flat.compute_dtype(scores))
  largest = jnp.finfo(scores.dtype).max
  finite = jnp.where(jnp.isfinite(scores), scores, largest)
  order = jnp.argsort(jnp.where(valid, finite, jnp.inf), stable=True)
  places = jnp.arange(scores.size, dtype=jnp.int32)
  rank = jnp.zeros_like(places).at[order].set(places)
  if not reverse:
    return rank
  num_valid = valid.sum()
  return jnp.where(rank < num_valid, num_valid - 1 - rank, rank)


def check_order(function: str, order: Order) -> None:
  """Raises ValueError unless the order is one of the three."""
  if order not in get_args(Order):
    raise ValueError(
      f'{function} needs order to be one of {list(get_args(Order))}, got'
      f' {order!r}'
    )
