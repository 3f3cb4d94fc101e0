"""The messages of an asynchronous run as arrays, and how fast workers are."""

from typing import Literal, NamedTuple

import numpy as np

from byzjax._src import checks


class Events(NamedTuple):
  """The messages that a server receives, in the order of their arrival.

  Nothing here depends on the values of parameters, so that a schedule can be
  known before any training, and a run is repeated bit by bit. `simulate` makes
  them, `events_from_trace` makes them of what a real server has recorded, and
  what takes them checks that they can be a run.

  Attributes:
    num_workers: K.
    num_shards: parts of the data, K unless said otherwise.
    worker: int32[E], who sent the message.
    time: float64[E], seconds at its arrival; never decreasing.
    issued_at: int32[E], how many messages had arrived when the server sent the
      parameters that the job began from: 0 is the initial parameters.
    num_local_steps: int32[E], of the job.
    shard: int32[E], which part of the data it was computed on.
    progress: int32[E], local steps that had been given out on this shard before
      the job.
    is_waiting: bool[E], whether at the arrival some worker was waiting for new
      parameters.
  """

  num_workers: int
  num_shards: int
  worker: np.ndarray
  time: np.ndarray
  issued_at: np.ndarray
  num_local_steps: np.ndarray
  shard: np.ndarray
  progress: np.ndarray
  is_waiting: np.ndarray

  @property
  def staleness(self) -> np.ndarray:
    """int32[E], messages that arrived since the job's parameters were sent."""
    return np.arange(len(self.worker), dtype=np.int32) - self.issued_at


def seconds_per_step(
  level: Literal['no', 'slight', 'moderate', 'very'], num_workers: int
) -> np.ndarray:
  """Speeds at the levels of heterogeneity of asynchronous Local-SGD.

  'very' is 0.58, 0.75, 1.51 and 3.33 seconds for four workers, the published
  numbers; 'no' is 1 for everybody; 'slight' and 'moderate' lie between them,
  a third and two thirds of the way in the logarithm, and so do the workers
  between the four, where there are more.

  Args:
    level: 'no', 'slight', 'moderate' or 'very'.
    num_workers: K >= 1.

  Returns:
    float64[K], from the fastest to the slowest; the median speed for K = 1.

  Raises:
    ValueError: if the level is not known, or K < 1.

  References:
    Liu, Chhaparia, Douillard, Kale, Rusu, Shen, Szlam, Ranzato, 2024,
    arXiv:2401.09135, and its notebook.

  Example:
    >>> from byzjax import asynchrony
    >>> print(asynchrony.seconds_per_step('very', 4))
    [0.58 0.75 1.51 3.33]
  """
  levels = ('no', 'slight', 'moderate', 'very')
  if level not in levels:
    raise ValueError(
      f'seconds_per_step needs level to be one of {", ".join(levels)}, got'
      f' {level!r}'
    )
  checks.check_count('seconds_per_step', 'num_workers', num_workers, 1)
  published = np.log([0.58, 0.75, 1.51, 3.33])
  at = np.linspace(0, 3, num_workers) if num_workers > 1 else np.array([1.5])
  share = levels.index(level) / 3
  return np.exp(share * np.interp(at, np.arange(4), published)).round(12)
