"""Batches that a worker draws from its own documents in each local step."""

from typing import Literal

import jax
import jax.numpy as jnp

from byzjax._src import checks
from byzjax._src.local import LocalSampler
from byzjax.data import _local_sampler


def sequence_sampler(
  documents: jax.Array,
  *,
  batch_size: int,
  shuffled: bool = False,
  passes: Literal['round', 'run'] = 'round',
) -> LocalSampler:
  r"""Batches of a worker's own documents for the steps of `local_round`.

  .. math::
    j_b \sim \mathrm{Uniform}(S_i), \qquad x_{j_b}, \qquad b = 1 \dots B

  in each step: `local_sampler` for data without labels, returned unchanged. The
  round is given a `Partition` of the documents as its data.

  Args:
    documents: all documents `[N, T + 1]`, integers, on every device; or any
      other array with a leading axis.
    batch_size: B >= 1, a Python int.
    shuffled: whether to draw without replacement, as in `local_sampler`.
    passes: 'round' or 'run', as for `local_sampler`.

  Returns:
    A `LocalSampler` for data_i = `Partition(indices int32[m], sizes int32[])`.
    Its batches are `[B, T + 1]`, in the type of the documents, and its state is
    that of `local_sampler`.

  Raises:
    ValueError: if the batch size is not an int of at least 1, passes is not one
      of the two, or it is 'run' without `shuffled`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import data
    >>> documents = jnp.arange(12).reshape(4, 3)
    >>> sampler = data.sequence_sampler(documents, batch_size=2)
    >>> mine = data.Partition(jnp.array([2, 2]), jnp.array(2))
    >>> sampler.draw((), mine, jnp.array(0), jax.random.key(0))[0]
    Array([[6, 7, 8], [6, 7, 8]], dtype=int32)
  """
  checks.check_count('sequence_sampler', 'batch_size', batch_size, 1)
  _local_sampler.check_passes('sequence_sampler', shuffled, passes)
  documents = jnp.asarray(documents)
  return _local_sampler.of_chosen(
    lambda chosen: documents[chosen], batch_size, shuffled, passes
  )
