"""The messages of an asynchronous run as arrays, and speeds of workers."""

from typing import Literal, NamedTuple

import numpy as np

from byzjax._src import checks


class Events(NamedTuple):
  """The messages that a server receives, in the order of their arrival.

  Events do not depend on the values of parameters, so a schedule is known
  before training, and a run can be repeated bit by bit. `simulate` creates
  them, and `events_from_trace` converts the record of a real server. Functions
  that take events check that they are a possible run.

  Attributes:
    num_workers: K.
    num_shards: number of parts of the data, K by default.
    worker: int32[E], the sender of each message.
    time: float64[E], the arrival time in seconds, non-decreasing.
    issued_at: int32[E], how many messages had arrived when the server sent the
      parameters from which the job started: 0 for the initial parameters.
    num_local_steps: int32[E], of the job.
    shard: int32[E], the part of the data that the job used.
    progress: int32[E], the number of local steps assigned on this shard before
      the job.
    is_waiting: bool[E], whether some worker was waiting for new parameters when
      the message arrived.
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
  """Worker speeds at the heterogeneity levels of asynchronous Local-SGD.

  'very' is 0.58, 0.75, 1.51 and 3.33 seconds for four workers, as published;
  'no' is 1 for all workers; 'slight' and 'moderate' are a third and two thirds
  of the way between them on a logarithmic scale. For K other than 4 the speeds
  are interpolated on the same scale.

  Args:
    level: 'no', 'slight', 'moderate' or 'very'.
    num_workers: K >= 1.

  Returns:
    float64[K], seconds per step from the fastest to the slowest; for K = 1 the
    median speed.

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
