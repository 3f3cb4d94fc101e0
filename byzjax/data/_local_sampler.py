"""Batches that a worker draws from its own examples in each local step."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import checks
from byzjax._src.local import LocalSampler
from byzjax.data import _examples, _passes, _sweep


class ShuffledPlan(NamedTuple):
  """The plan of `local_sampler(shuffled=True)` for one round."""

  sweep: _sweep.Sweep


def local_sampler(
  images: jax.Array,
  labels: jax.Array,
  *,
  batch_size: int,
  scale: float = 1.0,
  shuffled: bool = False,
  passes: Literal['round', 'run'] = 'round',
) -> LocalSampler:
  r"""Batches of a worker's own examples for the steps of `local_round`.

  .. math::
    j_b \sim \mathrm{Uniform}(S_i), \qquad (x_{j_b} / s, \; y_{j_b}), \qquad
    b = 1 \dots B

  in each step, so a round never stores more than one batch per worker. The
  round is given a `Partition` as its data; with the same keys, the draws are
  those of `sample_batch`.

  With `shuffled`, examples are drawn without replacement: a new permutation
  starts after every example has been used. If B does not divide their number,
  the last batch of a pass is padded with the first examples of that pass.
  (Other libraries make this batch smaller, which static shapes do not allow, or
  drop it, which leaves some examples out.)

  Every round starts a new pass. With `passes='run'` a pass continues in the
  worker's next round (in `asynchronous_round`, in the next job on its shard)
  until every example has been used, so the result does not depend on how the
  steps are divided into rounds.

  Args:
    images: all examples `[N, ...]`, uint8 or float, on every device.
    labels: integers `[N]`.
    batch_size: B >= 1, a Python int.
    scale: largest pixel value s > 0.
    shuffled: whether to draw without replacement.
    passes: 'round', a new pass in every round, or 'run', only with `shuffled`.

  Returns:
    A `LocalSampler` for data_i = `Partition(indices int32[m], sizes int32[])`.
    Its batches are `(images float32[B, ...], labels int32[B])`. It is
    stateless, except with `passes='run'`: then it keeps a key and the index of
    the next batch.

  Raises:
    ValueError: if the batch size is not an int of at least 1, the scale is not
      positive, images and labels have different lengths, passes is not one of
      the two, or it is 'run' without `shuffled`.

  Example:
    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from byzjax import data
    >>> sampler = data.local_sampler(
    ...   np.zeros([9, 2]), np.arange(9), batch_size=2, shuffled=True)
    >>> mine = data.Partition(jnp.array([5, 6, 7, 8, 5]), jnp.array(4))
    >>> params, key = jnp.zeros(3), jax.random.key(0)
    >>> plan = sampler.start(sampler.init(params), params, mine, key)
    >>> (_, first), plan = sampler.draw(plan, mine, jnp.array(0), key)
    >>> (_, second), plan = sampler.draw(plan, mine, jnp.array(1), key)
    >>> sorted([*first.tolist(), *second.tolist()])
    [5, 6, 7, 8]
  """
  name = 'local_sampler'
  _examples.check(name, images, labels)
  _examples.check_batch(name, batch_size, scale)
  check_passes(name, shuffled, passes)
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  return of_chosen(
    lambda chosen: _examples.take(images, labels, chosen, scale),
    batch_size,
    shuffled,
    passes,
  )


def check_passes(name: str, shuffled: Any, passes: Any) -> None:
  """Raises ValueError unless both say how examples are drawn."""
  checks.check_flag(name, 'shuffled', shuffled)
  if passes not in ('round', 'run'):
    raise ValueError(
      f"{name} needs passes to be 'round' or 'run', got {passes!r}"
    )
  if passes == 'run' and not shuffled:
    raise ValueError(
      f"{name} needs shuffled=True if passes='run', because draws with"
      f' replacement have no passes, got {shuffled=}'
    )


def of_chosen(
  take: Callable[[jax.Array], Any],
  batch_size: int,
  shuffled: bool,
  passes: str,
) -> LocalSampler:
  """Batches `take(int32[B])` of the examples that are drawn."""
  if passes == 'run':
    return _of_passes(take, batch_size)

  def start(state, params, data_i, key):
    del state, params, key
    if not shuffled:
      return ()
    return ShuffledPlan(_sweep.start(data_i.indices))

  def draw(plan, data_i, step, key):
    del step
    indices, size = data_i
    if shuffled:
      rank = jnp.arange(indices.shape[0])
      places, sweep = _sweep.take(plan.sweep, rank, size, key, batch_size)
      plan = ShuffledPlan(sweep)
    else:
      places = jax.random.randint(key, (batch_size,), 0, size)
    return take(indices[places]), plan

  return LocalSampler(
    init=lambda params: (),
    start=start,
    draw=draw,
    finish=lambda state, params: state,
  )


def _of_passes(
  take: Callable[[jax.Array], Any], batch_size: int
) -> LocalSampler:
  """The same, in passes that go on from round to round."""

  def draw(plan, data_i, step, key):
    indices, size = data_i
    width = indices.shape[0]
    places, plan = _passes.take(plan, step, key, width, size, batch_size)
    return take(indices[places]), plan

  return LocalSampler(
    init=lambda params: _passes.begin(),
    start=lambda state, params, data_i, key: _passes.start(state, key),
    draw=draw,
    finish=lambda state, params: state,
    carry_over=lambda plan, state: _passes.end(plan),
  )
