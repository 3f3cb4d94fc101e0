"""A round of your own method: you write only what its workers do."""

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, checks, local, round_arguments
from byzjax.rounds._assemble import assemble
from byzjax.rounds._work import Work


def from_work(
  work: Work,
  *,
  num_workers: int,
  aggregator: base.Aggregator,
  optimizer: optax.GradientTransformation,
  participation: int | local.Participation | None = None,
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  worker_weights: jax.Array | base.WeightSchedule | None = None,
  codec: base.Codec | None = None,
  server_codec: base.Codec | None = None,
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
  name: str = 'from_work',
) -> base.Round:
  r"""Makes a round with a server from the work of its workers.

  .. math::
    m_i, s_i = \mathrm{work}(w, \xi_i, s_i), \qquad
    w \leftarrow \mathrm{optimizer}(w, \mathrm{rule}(m_1, \ldots, m_n))

  The `Work` defines the method. Attacks, codecs, rules, the server's step and
  the distribution over devices are shared by all rounds. `scaffold` and
  `fed_dyn` are written with this function alone.

  Args:
    work: a `Work`: what each worker computes, keeps and sends.
    num_workers: n >= 1, a Python int.
    aggregator: the aggregation rule.
    optimizer: optax optimizer of the server, on the tree of parameters.
    participation: m workers in every round, or a `Participation`; None for all.
      Only these compute: k in `Work` is m (divided over the devices of a mesh).
    attack: an `Attack` on messages and on auxiliary exchanges, a data attack on
      the batch, or None.
    byzantine: the Byzantine workers among all n: an int, bool[n], or a schedule
      of it; required with an attack.
    worker_weights: float[n], or a schedule of it; see `robust_round`.
    codec: compression of the workers' messages, or None for float32.
    server_codec: compression of the server's aggregate, or None for float32.
    mesh: devices to split workers over, or None for one device.
    axis_name: the axis, or axes, of the mesh that workers are split over.
    name: name of the round, for error messages.

  Returns:
    A `Round`.

  Raises:
    ValueError: if an argument is out of range or has the wrong type; at trace
      time, if the batch does not have n rows or the rule does not accept them.

  Example:
    Workers that send the gradient of `|w - x|^2 / 2` and keep no state:

    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> def run(params, batch, rows, keys, *, context, exchange):
    ...   gradients = params[None] - batch
    ...   return byzjax.WorkerOutput(
    ...     (gradients**2).mean(1), gradients, rows, context.shared,
    ...     context.auxiliary)
    >>> training = byzjax.from_work(
    ...   byzjax.Work(lambda params, n: (), run), num_workers=5,
    ...   aggregator=byzjax.coordinate_median(), optimizer=optax.sgd(1.0),
    ...   attack=byzjax.sign_flip(scale=9.0), byzantine=2)
    >>> batch = jnp.full([5, 3], 2.0)
    >>> state, info = training.step(
    ...   training.init(jnp.zeros(3)), batch, jax.random.key(0))
    >>> print(state.params)
    [2. 2. 2.]
  """
  checks.check_text('from_work', 'name', name)
  checks.check_kind(name, 'work', work, Work)
  checks.check_count(name, 'num_workers', num_workers, 1)
  aggregator = round_arguments.check_slots(
    name, aggregator, attack, {'codec': codec, 'server_codec': server_codec}
  )
  round_arguments.check_transform(name, 'optimizer', optimizer)
  round_arguments.check_attackers(name, attack, byzantine)
  message_attack, data_attack = round_arguments.split_attack(attack)
  return assemble(
    name,
    work,
    num_workers=num_workers,
    aggregator=aggregator,
    optimizer=optimizer,
    message_attack=message_attack,
    data_attack=data_attack,
    byzantine=byzantine,
    worker_weights=worker_weights,
    participation=participation,
    codec=codec,
    server_codec=server_codec,
    mesh=mesh,
    axis_name=axis_name,
  )
