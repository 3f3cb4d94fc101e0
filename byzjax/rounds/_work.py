"""What workers do in a round with a server: the seam between methods.

A method says by a `Work` what its workers do between two messages, and what
they keep. Encoding, attack, rule, broadcast, the server's step and the division
over devices are the same for all methods; they are in `_stages` and `_engine`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, layouts


class Cohort(NamedTuple):
  """The k workers of one round."""

  ids: jax.Array  # int32[k], their numbers among all n
  is_byzantine: jax.Array  # bool[k]
  weights: jax.Array | None  # float[k]; 0 is absent


class WorkerOutput(NamedTuple):
  """What the workers of one device leave behind."""

  losses: jax.Array  # float[k]
  messages: jax.Array  # float[k, d]
  rows: base.State  # leaves [k, ...]
  shared: base.State
  auxiliary: tuple[layouts.WorkerShardedState, ...]
  num_local_steps: jax.Array | None = None
  num_gradients: jax.Array | None = None
  aux: Any = None  # leaves [k, ...]


class Context(NamedTuple):
  """What the work knows of its round, on the workers of one device."""

  step: jax.Array
  cohort: Cohort  # of all devices
  ids: jax.Array  # int32[k]
  is_byzantine: jax.Array  # bool[k]
  takes_part: jax.Array | None  # bool[k], None for all
  shared: base.State
  auxiliary: tuple[layouts.WorkerShardedState, ...]
  axis_name: base.AxisName
  computes: np.ndarray | None = None  # bool[n], whose work is asked for


class Work(NamedTuple):
  """What workers do in a round.

  Attributes:
    init: `(params, num_workers) -> rows [n, ...]`, what workers keep.
    init_shared: `params -> shared`, what the server keeps for all of them.
    auxiliary: `params -> ((size, rule), ...)`, of what is aggregated beside the
      messages: the coordinates of a row, and by which rule.
    run: `(params, batch, rows, keys [k], *, context, exchange) ->
      WorkerOutput`, on the workers of one device. `exchange(i, rows float[k,
      size], state) -> (aggregate float[size], state)` is the i-th auxiliary
      aggregation, through the attack on messages and its rule.
  """

  init: Callable[[base.Params, int], base.State]
  run: Callable[..., WorkerOutput]
  init_shared: Callable[[base.Params], base.State] = lambda params: ()
  auxiliary: Callable[
    [base.Params], tuple[tuple[int, base.Aggregator], ...]
  ] = lambda params: ()


class Parts(NamedTuple):
  """All that is known of a round before it is traced.

  Attributes:
    work: of its workers.
    aggregator: the rule.
    optimizer: of the server.
    num_workers: n, who have a row of state.
    cohort_size: k <= n, who compute in a round.
    attack: on messages, or None.
    data_attack: on batches, or None.
    codec, server_codec: on the way up and on the way down, or None.
    mesh: or None for one device.
    num_shards: devices along the worker axes.
    axis_name: of the worker axes of the mesh.
    computes: bool[n], the workers whose work has any effect; None for all. What
      the others would have sent is overwritten by an attack that does not read
      it.
  """

  work: Work
  aggregator: base.Aggregator
  optimizer: optax.GradientTransformationExtraArgs
  num_workers: int
  cohort_size: int
  attack: base.Attack | None
  data_attack: base.DataAttack | None
  codec: base.Codec | None
  server_codec: base.Codec | None
  mesh: Mesh | AbstractMesh | None
  num_shards: int
  axis_name: str | tuple[str, ...]
  computes: np.ndarray | None = None

  @property
  def axes(self) -> base.AxisName:
    """The axes to sum over: None on one device."""
    return None if self.mesh is None else self.axis_name

  @property
  def server(self) -> base.Aggregator:
    """The rule behind the attack."""
    return layouts.attacked(self.aggregator, self.attack, self.codec)

  def padded(self, size: int) -> int:
    """D: coordinates are padded where they are cut or packed."""
    if (self.mesh, self.codec, self.server_codec) == (None, None, None):
      return size
    return layouts.padded_size(size, self.num_shards)
