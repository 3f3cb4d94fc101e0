"""The workers of one round, drawn from all: only they compute."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, kept_rows, local, round_arguments
from byzjax.rounds._work import Cohort


def participation_of(
  name: str, num_workers: int, participation: int | local.Participation | None
) -> local.Participation | None:
  """Who takes part, in any of its forms; None for all workers."""
  if participation is None:
    return None
  if isinstance(participation, local.Participation):
    count = participation.num_participants
  else:
    count = participation
  checks.check_count(name, 'participation', count, 1)
  if count > num_workers:
    raise ValueError(
      f'{name} needs participation <= num_workers, got {count} and'
      f' {num_workers}'
    )
  if isinstance(participation, local.Participation):
    return participation

  def draw(state, scores, step, key):
    del scores, step
    first = (jnp.arange(num_workers) < count).astype(jnp.float32)
    return jax.random.permutation(key, first), state

  return local.Participation(lambda n: (), None, draw, count)


def check_places(
  name: str,
  participation: local.Participation | None,
  num_workers: int,
  parts: Iterable[base.Aggregator | base.Attack | None],
) -> None:
  """Raises ValueError for what knows workers by places, which others then have.

  `parts` are the rules and attacks that get only the messages of the cohort.
  """
  if participation is None or participation.num_participants == num_workers:
    return
  count = participation.num_participants
  for part in parts:
    if not kept_rows.knows_places(part):
      continue
    hint = ''
    if isinstance(part, base.Attack) or kept_rows.keeps_rows(part):
      schedule = f'random_participation({num_workers}, {count}, key)'
      hint = f': use worker_weights={schedule}'
    raise ValueError(
      f'{name} needs participation to be None with {part!r}, which knows'
      ' workers by their places among the messages, got a participation of'
      f' {count} of {num_workers} workers{hint}'
    )


def everybody(
  name: str,
  byzantine_at: base.ByzantineSchedule,
  weights_at: Callable[[jax.Array], jax.Array | None],
  step: jax.Array,
  num_workers: int,
) -> Cohort:
  """All n workers of this step."""
  is_byzantine = round_arguments.byzantine_of(
    name, byzantine_at, step, num_workers
  )
  return Cohort(jnp.arange(num_workers), is_byzantine, weights_at(step))


def step(
  name: str,
  engine_step: Any,
  participation: local.Participation,
  workers: Cohort,
  state: base.RoundState,
  batch: base.Batch,
  key: jax.Array,
) -> tuple[base.RoundState, base.RoundInfo]:
  """A round of those who are drawn; the rows of the others stay."""
  scores = None
  if participation.score is not None:
    scores = jax.vmap(participation.score, (None, 0))(state.params, batch)
  # Not the key of the round: that one is folded and split.
  draw_key = jax.random.fold_in(jax.random.split(key)[1], state.step)
  weights, drawn = participation.draw(
    state.participation, scores, state.step, draw_key
  )
  # Indices beyond the workers would be clipped to the last one.
  num_workers = workers.ids.size
  if jnp.shape(weights) != (num_workers,):
    raise ValueError(
      f'{name} needs participation.draw to return weights'
      f' float[{num_workers}], got the shape {list(jnp.shape(weights))}'
    )
  ids = jnp.argsort(weights <= 0, stable=True)[: participation.num_participants]

  def of_them(tree):
    return jax.tree.map(lambda x: x[ids], tree)

  def among_all(rows, new):
    return jax.tree.map(lambda x, y: x.at[ids].set(y), rows, new)

  cohort = Cohort(ids, *of_them(workers[1:]))
  new_state, info = engine_step(
    state._replace(workers=of_them(state.workers), codec=of_them(state.codec)),
    of_them(batch),
    key,
    cohort,
  )
  new_state = new_state._replace(
    workers=among_all(state.workers, new_state.workers),
    codec=among_all(state.codec, new_state.codec),
    participation=drawn,
  )
  return new_state, info._replace(participants=ids)
