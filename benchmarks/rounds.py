r"""Time of a whole round as a multiple of its gradients alone.

  python -m benchmarks.rounds
  python -m benchmarks.rounds --models=cnn --worker_map=vmap

Both are programs of `rounds` steps in one `lax.scan`, on random 28 x 28 images.
"Gradients alone" computes the gradients of all workers and nothing else,
"gradients, momentum" also the momentum of each worker; a round adds the ALIE
attack, the rule, the server's step and the diagnostics of `RoundInfo`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import byzjax
from benchmarks import program, records, timing
from byzjax import models

FLOOR = 'gradients alone'
MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Settings:
  models: tuple[str, ...] = program.option(
    ('mlp', 'cnn'), 'Of mlp (784-128-10), digits (64-32-10) and cnn.'
  )
  num_workers: int = program.option(16, 'n; f is n // 5.')
  batch_size: int = program.option(32, 'Examples per worker.')
  worker_map: str = program.option(
    'auto', 'vmap, map or a number of workers; auto is map for the cnn.'
  )
  rules: tuple[str, ...] = program.option((), 'Only these; all by default.')
  rounds: int = program.option(20, 'Rounds in one program; 1/4 for the cnn.')
  repeats: int = program.option(9, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings(('digits',), 5, 2, rules=('mean', 'krum'), rounds=2, repeats=1)


class Problem(NamedTuple):
  """What a round is made for."""

  loss_fn: Callable
  params: Any
  batch: Any  # Leaves [n, B, ...], or [n, H, B, ...].
  worker_map: str | int

  @property
  def size(self) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def problem(model: str, shape: tuple[int, ...], worker_map: str) -> Problem:
  """A network and random images; `shape` is that of the labels."""
  image = (8, 8, 1) if model == 'digits' else (28, 28, 1)
  network: nnx.Module = models.MLP((784, 128, 10), rngs=nnx.Rngs(0))
  if model != 'mlp':
    kind = 'mlp' if model == 'digits' else model
    network = models.make(kind, image, 10, seed=0)
  graphdef, params = models.split(network)
  keys = jax.random.split(jax.random.key(0))
  batch = (
    jax.random.uniform(keys[0], (*shape, *image)),
    jax.random.randint(keys[1], shape, 0, 10),
  )
  if worker_map == 'auto':
    worker_map = 'map' if model == 'cnn' else 'vmap'
  return Problem(
    models.cross_entropy_loss(graphdef),
    params,
    batch,
    int(worker_map) if worker_map.isdigit() else worker_map,
  )


def quadratic(rows: jax.Array) -> Problem:
  """The loss `|params - row|^2 / 2` of each worker: gradients cost one read."""

  def loss_fn(params, batch):
    return 0.5 * jnp.sum((params - batch[0]) ** 2)

  labels = jnp.zeros(len(rows), jnp.int32)
  return Problem(loss_fn, jnp.zeros(rows.shape[1]), (rows, labels), 'vmap')


def over_workers(function: Callable, worker_map: str | int, batch: Any) -> Any:
  """The function of each worker's batch, as the round would call it."""
  if worker_map == 'vmap':
    return jax.vmap(function)(batch)
  size = worker_map if isinstance(worker_map, int) else None
  return jax.lax.map(function, batch, batch_size=size)


def gradients_alone(given: Problem, rounds: int, decay: float) -> Callable:
  """Gradients of all workers, `rounds` times; a decay of 0 is no momentum."""
  gradient = jax.grad(given.loss_fn)

  def run(params, batch):
    def body(_, carry):
      params, rows = carry
      # The next gradients wait for these ones, which are carried in full: no
      # round can be left out, hoisted or cut down to what is read.
      nudge = 1e-20 * sum(g.reshape(-1)[0] for g in jax.tree.leaves(rows))
      params = jax.tree.map(lambda p: p + nudge, params)
      new = over_workers(
        lambda one: gradient(params, one), given.worker_map, batch
      )
      if decay:
        new = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, rows, new)
      return params, new

    n = len(batch[1])
    rows = jax.tree.map(lambda p: jnp.zeros((n, *p.shape)), params)
    return jax.lax.fori_loop(0, rounds, body, (params, rows))

  return run


def round_program(
  given: Problem, rule: byzjax.Aggregator, rounds: int, mesh=None
) -> timing.Program:
  """So many rounds under attack, in one program."""
  n = len(given.batch[1])
  training = byzjax.robust_round(
    given.loss_fn,
    aggregator=rule,
    optimizer=optax.sgd(0.1),
    num_workers=n,
    worker=byzjax.worker_momentum(MOMENTUM),
    attack=byzjax.alie(),
    byzantine=n // 5,
    worker_map=given.worker_map,
    mesh=mesh,
  )

  def run(state, batch):
    def step(state, _):
      return training.step(state, batch, jax.random.key(0))

    return jax.lax.scan(step, state, length=rounds)

  state, batch = training.init(given.params), given.batch
  if mesh is not None:
    rows = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names[0]))
    batch = jax.device_put(batch, rows)
  return timing.compiled(run, state, batch)


def rules(f: int) -> dict[str, byzjax.Aggregator]:
  mixing = byzjax.nearest_neighbor_mixing(num_byzantine=f)
  trimmed = byzjax.trimmed_mean(num_byzantine=f)
  return {
    'mean': byzjax.mean(),
    'coordinate_median': byzjax.coordinate_median(),
    'trimmed_mean': trimmed,
    'centered_clipping': byzjax.centered_clipping(radius=1.0),
    'krum': byzjax.krum(num_byzantine=f),
    'geometric_median': byzjax.geometric_median(),
    'mixing + trimmed_mean': byzjax.pre_aggregate(mixing, trimmed),
  }


def measure(settings: Settings) -> Iterator[records.Run]:
  for model in settings.models:
    yield _of_model(model, settings)


def _of_model(model: str, settings: Settings) -> records.Run:
  n = settings.num_workers
  rounds = max(settings.rounds // (4 if model == 'cnn' else 1), 1)
  given = problem(model, (n, settings.batch_size), settings.worker_map)

  def alone(decay):
    run = gradients_alone(given, rounds, decay)
    return timing.compiled(run, given.params, given.batch)

  programs = {FLOOR: alone(0.0), 'gradients, momentum': alone(MOMENTUM)}
  programs |= {
    name: round_program(given, rule, rounds)
    for name, rule in rules(n // 5).items()
    if not settings.rules or name in settings.rules
  }
  times = timing.interleaved(
    {name: each.call for name, each in programs.items()},
    settings.repeats,
    settings.seconds / len(settings.models),
  )
  values = {
    name: {
      'compile_seconds': each.compile_seconds,
      'temporary_bytes': each.temporary_bytes,
      'rate': rounds / min(times[name].wall),
    }
    for name, each in programs.items()
  }
  title = (
    f'{model}, {given.size} parameters, n={n}, batch {settings.batch_size},'
    f' {given.worker_map}'
  )
  return records.Run(
    title,
    FLOOR,
    records.figures(times, FLOOR, values),
    {'model': model, 'n': n, 'd': given.size, 'rounds': rounds},
  )


if __name__ == '__main__':
  program.run('rounds', Settings, QUICK, measure)
