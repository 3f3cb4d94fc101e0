"""Batches that a worker takes from its own examples, step by step."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import checks
from byzjax._src.local import LocalSampler
from byzjax.data import _examples, _passes, _sweep


class ShuffledPlan(NamedTuple):
  """Plan of `local_sampler(shuffled=True)`."""

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

  in each step, so that a round never holds more than one batch per worker. The
  data of the round is a `Partition`; with the same keys, the draws are those of
  `sample_batch`.

  With `shuffled`, examples are drawn without replacement instead: a new
  permutation begins when every example was given out. If B does not divide
  their number, the last batch of a pass is filled up with the first examples of
  that pass; other libraries make it smaller, which a static shape forbids, or
  drop it, which would leave some examples out.

  Every round starts a new pass. With `passes='run'` a pass goes on in the next
  round of the worker (in `asynchronous_round`, in the next job on its shard),
  until every example was given out: it does not matter into how many rounds the
  steps are cut.

  Args:
    images: all examples `[N, ...]`, uint8 or float, on every device.
    labels: integers `[N]`.
    batch_size: B >= 1, a Python int.
    scale: largest pixel value s > 0.
    shuffled: whether to make passes without replacement.
    passes: 'round', a new pass in every round, or 'run', for `shuffled` only.

  Returns:
    A `LocalSampler` for data_i = `Partition(indices int32[m], sizes int32[])`.
    Its batches are `(images float32[B, ...], labels int32[B])`, and it keeps no
    state, or with `passes='run'` a key and the number of the next batch.

  Raises:
    ValueError: if the batch size is not an int of at least 1, the scale is not
      positive, images and labels disagree in number, or passes is not one of
      these words, or 'run' without `shuffled`.

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
      f"{name} needs shuffled=True where passes='run': with replacement there"
      f' are no passes, got {shuffled=}'
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
