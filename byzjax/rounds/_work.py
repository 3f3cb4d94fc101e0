"""The work of the workers in a round with a server: what a method defines.

A method defines by a `Work` what its workers do between two messages, and what
they keep. Encoding, attack, rule, broadcast, the server's step and the
distribution over devices are the same for all methods; see `_stages` and
`_engine`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, layouts


class Cohort(NamedTuple):
  """The k workers of one round, on all devices.

  Attributes:
    ids: int32[k], their indices among all n workers.
    is_byzantine: bool[k], which of them are Byzantine.
    weights: float[k], relative weights, 0 for absent workers; None for equal
      weights.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.Cohort(jnp.arange(2), jnp.zeros(2, bool), None).ids.size
    2
  """

  ids: jax.Array
  is_byzantine: jax.Array
  weights: jax.Array | None


class WorkerOutput(NamedTuple):
  """The results of the k workers of one device.

  Attributes:
    losses: float[k].
    messages: float[k, d], what they send, each as one vector in the order of
      `jax.flatten_util.ravel_pytree(params)`. The server's optimizer treats the
      aggregate as a gradient, so a local method sends old minus new parameters.
    rows: leaves `[k, ...]`, the new state of each worker.
    shared: the new state shared by all workers, the same on all devices.
    auxiliary: the states of the auxiliary aggregations.
    num_local_steps: int32[] or int32[k], or None for a method without them.
    num_gradients: float[] or float[k], gradients computed per worker, or None.
    aux: leaves `[k, ...]`, for `RoundInfo.aux`, or None.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.WorkerOutput(
    ...   jnp.zeros(2), jnp.ones([2, 3]), (), (), ()).messages.shape
    (2, 3)
  """

  losses: jax.Array
  messages: jax.Array
  rows: base.State
  shared: base.State
  auxiliary: tuple[layouts.WorkerShardedState, ...]
  num_local_steps: jax.Array | None = None
  num_gradients: jax.Array | None = None
  aux: Any = None


class WorkContext(NamedTuple):
  """The information about a round that a `Work` gets on one device.

  Attributes:
    step: int32[], the number of earlier rounds.
    cohort: the workers of all devices.
    ids: int32[k], the indices of the workers on this device.
    is_byzantine: bool[k], which of them are Byzantine.
    takes_part: bool[k], or None for all; rows of other workers are restored.
    shared: the state that the server keeps for all workers.
    auxiliary: the states of the auxiliary aggregations.
    axis_name: the mesh axes that workers are split over, or None.
    computes: bool[n], workers whose results are used, or None for all.

  Example:
    >>> import byzjax
    >>> byzjax.WorkContext._fields[:2]
    ('step', 'cohort')
  """

  step: jax.Array
  cohort: Cohort
  ids: jax.Array
  is_byzantine: jax.Array
  takes_part: jax.Array | None
  shared: base.State
  auxiliary: tuple[layouts.WorkerShardedState, ...]
  axis_name: base.AxisName
  computes: np.ndarray | None = None


class Work(NamedTuple):
  """What workers do between two messages: the definition of your own method.

  `from_work` makes a round of it, with attacks, codecs, rules and meshes.

  Attributes:
    init: `(params, num_workers) -> rows`, leaves `[n, ...]`: the state of each
      worker. On a mesh they are split over it.
    run: `(params, batch, rows, keys, *, context, exchange) -> WorkerOutput`, on
      the k workers of one device: batch and rows have leaves `[k, ...]`, `keys`
      has one key per worker, and `context` is a `WorkContext`. `exchange(i,
      vectors float[k, size], state) -> (aggregate float[size], state)` is the
      i-th auxiliary aggregation, with the attack and its own rule.
    init_shared: `params -> shared`, the state that the server keeps for all.
    auxiliary: `params -> ((size, rule), ...)`: for each auxiliary aggregation,
      in addition to the messages, the length of its vectors and its rule.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> def run(params, batch, rows, keys, *, context, exchange):
    ...   gradients = params[None] - batch
    ...   return byzjax.WorkerOutput(
    ...     (gradients**2).mean(1), gradients, rows, context.shared,
    ...     context.auxiliary)
    >>> work = byzjax.Work(lambda params, n: (), run)
    >>> work.init(jnp.zeros(3), 5)
    ()
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
    root_at: `step -> the server's own batch`, as one worker has it, or None.
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
  root_at: Callable[[jax.Array], base.Batch] | None = None

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
