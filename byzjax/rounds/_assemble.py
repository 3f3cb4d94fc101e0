"""A round with a server from its work: what is the same for all methods."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, local, round_arguments
from byzjax.rounds import _cohort, _engine
from byzjax.rounds._work import Parts, Work


def assemble(
  name: str,
  work: Work,
  *,
  num_workers: int,
  aggregator: base.Aggregator,
  optimizer: optax.GradientTransformation,
  message_attack: base.Attack | None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None,
  data_attack: base.DataAttack | None = None,
  worker_weights: jax.Array | base.WeightSchedule | None = None,
  participation: int | local.Participation | None = None,
  codec: base.Codec | None = None,
  server_codec: base.Codec | None = None,
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
  root_batch: base.Batch | base.BatchSchedule | None = None,
  skips_attackers: bool = False,
  check: Callable[[base.RoundState, Any], None] = lambda state, batch: None,
) -> base.Round:
  """The round; arguments are those of `from_work`, in the name of a method.

  A data attack is only for works that take a batch and draw none. With
  `skips_attackers` what an attack overwrites need not be computed. `check` sees
  the state and the batch of every step, and raises what is wrong with them.
  """
  draws = _cohort.participation_of(name, num_workers, participation)
  _cohort.check_places(name, draws, num_workers, (aggregator, message_attack))
  cohort_size = draws.num_participants if draws else num_workers
  schedule = round_arguments.byzantine_schedule(name, num_workers, byzantine)
  weights_at = round_arguments.weight_schedule(
    name, num_workers, worker_weights
  )
  root_at = round_arguments.root_schedule(root_batch)
  round_arguments.check_mesh(name, mesh, axis_name, num_workers)
  mesh, num_shards = round_arguments.check_mesh(
    name,
    mesh,
    axis_name,
    cohort_size,
    'participation' if draws else 'num_workers',
  )
  computes = None
  if skips_attackers and draws is None:
    computes = round_arguments.who_computes(
      num_workers,
      message_attack,
      byzantine,
      codec=codec,
      mesh=mesh,
      has_aux=False,
    )
  engine = _engine.build(
    Parts(
      work,
      aggregator=aggregator,
      optimizer=optax.with_extra_args_support(optimizer),
      num_workers=num_workers,
      cohort_size=cohort_size,
      attack=message_attack,
      data_attack=data_attack,
      codec=codec,
      server_codec=server_codec,
      mesh=mesh,
      num_shards=num_shards,
      axis_name=axis_name,
      computes=computes,
      root_at=root_at,
    )
  )

  def init(params):
    beside = (rule for _, rule in work.auxiliary(params))
    _cohort.check_places(name, draws, num_workers, beside)
    drawn = draws.init(num_workers) if draws else ()
    return engine.init(params)._replace(participation=drawn)

  def step(state, batch, key):
    round_arguments.check_batch(name, batch, num_workers)
    round_arguments.check_root(name, root_at, batch)
    check(state, batch)
    everybody = _cohort.everybody(
      name, schedule, weights_at, state.step, num_workers
    )
    if draws is None:
      return engine.step(state, batch, key, everybody)
    return _cohort.step(name, engine.step, draws, everybody, state, batch, key)

  return round_arguments.make_round(name, init, step)
