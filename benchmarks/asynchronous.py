r"""Events per second of the asynchronous round against event loops.

  python -m benchmarks.asynchronous
  python -m benchmarks.asynchronous --setups=mlp:128

The same messages, from workers of which one is ten times slower. Sequential SGD
does as many steps with no stale copies, in one program: the floor. The loops
are what a simulation of asynchronous training usually is: Python takes the next
event, computes the gradient at the parameters that this worker holds by a
compiled function, and updates the server's by another one, or both by one. Bare
copies are such a loop as one program: each worker's parameters, and no more.
`asynchronous_round` does all events in one program. With a buffer, B = K // 2
places, a step is made when all places are filled. A setup is a model and K.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from benchmarks import program, records, rounds, timing
from byzjax import asynchrony

LEARNING_RATE = 0.01
FLOOR, LOOP = 'sequential SGD', 'loop over events'
BARE = 'bare copies of the parameters'


@dataclasses.dataclass(frozen=True)
class Settings:
  setups: tuple[str, ...] = program.option(
    ('mlp:16', 'digits:16'), 'Each is MODEL:WORKERS.'
  )
  num_events: int = program.option(400, 'Messages of a run.')
  batch_size: int = program.option(32, 'Examples of a gradient.')
  methods: tuple[str, ...] = program.option((), 'Only these; all by default.')
  repeats: int = program.option(9, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings(('digits:8',), 16, 2, ('SGD',), repeats=1)


def measure(settings: Settings) -> Iterator[records.Run]:
  for setup in settings.setups:
    model, k = setup.split(':')
    yield _of_setup(model, int(k), settings)


def _of_setup(model: str, k: int, settings: Settings) -> records.Run:
  count = settings.num_events
  given = rounds.problem(model, (k, 4, settings.batch_size), 'auto')
  speeds = np.ones(k)
  speeds[-1] = 10.0
  events = asynchrony.simulate(speeds, num_events=count, variation=0.1)
  calls = _loops(given, events) | {
    f'asynchronous_round, {name}': _training(given, events, method)
    for name, method in _methods(k, events).items()
    if not settings.methods or name in settings.methods
  }
  # The loops and the round do the same.
  ends = [calls[name]() for name in (LOOP, 'asynchronous_round, SGD')]
  apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), *ends)
  times = timing.interleaved(
    calls, settings.repeats, settings.seconds / len(settings.setups)
  )
  values = {k: {'rate': count / min(v.wall)} for k, v in times.items()}
  title = (
    f'{model}, {given.size} parameters, K={k}, batch {settings.batch_size},'
    f' {count} events'
  )
  return records.Run(
    title,
    FLOOR,
    records.figures(times, FLOOR, values),
    notes={'largest difference to the loop': max(jax.tree.leaves(apart))},
  )


def _loops(given: rounds.Problem, events: Any) -> dict[str, Callable]:
  """Sequential SGD in one program, and two event loops in Python."""
  k, params, batch = len(given.batch[1]), given.params, given.batch
  count = len(events.worker)

  def moved(params, gradient):
    return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, gradient)

  def sequential(params, batch):
    def body(params, e):
      one = jax.tree.map(lambda x: x[e % k, (e // k) % 4], batch)
      return moved(params, jax.grad(given.loss_fn)(params, one)), None

    return jax.lax.scan(body, params, np.arange(count))[0]

  gradient_of = jax.jit(jax.grad(given.loss_fn))
  move = jax.jit(moved)

  @jax.jit
  def one_event(params, held, one):
    return moved(params, jax.grad(given.loss_fn)(held, one))

  images, labels = batch
  slices = [[(images[i, j], labels[i, j]) for j in range(4)] for i in range(k)]
  order = list(zip(events.worker.tolist(), events.progress.tolist()))

  def loop(update):
    held, w = [params] * k, params
    for worker, progress in order:
      w = update(w, held[worker], slices[worker][progress % 4])
      held[worker] = w
    return w

  @jax.jit
  def bare(params, batch):
    def body(carry, event):
      w, held = carry
      worker, progress = event
      one = jax.tree.map(lambda x: x[worker, progress % 4], batch)
      mine = jax.tree.map(lambda x: x[worker], held)
      w = moved(w, jax.grad(given.loss_fn)(mine, one))
      held = jax.tree.map(lambda x, v: x.at[worker].set(v), held, w)
      return (w, held), None

    held = jax.tree.map(lambda p: jnp.repeat(p[None], k, 0), params)
    steps = jnp.asarray(events.worker), jnp.asarray(events.progress)
    return jax.lax.scan(body, (params, held), steps)[0][0]

  floor = jax.jit(sequential)
  return {
    FLOOR: lambda: floor(params, batch),
    LOOP: lambda: loop(lambda w, held, one: move(w, gradient_of(held, one))),
    'loop over compiled events': lambda: loop(one_event),
    BARE: lambda: bare(params, batch),
  }


def _methods(k: int, events: Any) -> dict[str, dict[str, Any]]:
  """Arguments of `asynchronous_round`; f of the buffers is K // 8."""
  robust = dict(
    optimizer=optax.sgd(LEARNING_RATE),
    buffer=asynchrony.by_worker(events, num_rows=k // 2),
    aggregator=byzjax.trimmed_mean(num_byzantine=k // 8),
  )
  return {
    'SGD': dict(optimizer=optax.sgd(LEARNING_RATE)),
    'ordered momentum': dict(
      optimizer=byzjax.ordered_momentum(LEARNING_RATE, num_workers=k)
    ),
    'delayed Nesterov': dict(
      optimizer=byzjax.delayed_nesterov(LEARNING_RATE, num_buffered=k)
    ),
    'buffer, trimmed mean': robust,
    'the same, under ALIE': robust
    | dict(attack=byzjax.alie(z=1.5), byzantine=k // 8),
  }


def _training(
  given: rounds.Problem, events: Any, method: dict[str, Any]
) -> Callable:
  training = byzjax.asynchronous_round(given.loss_fn, events=events, **method)

  @jax.jit
  def run(state, batch):
    def body(state, _):
      return training.step(state, batch, jax.random.key(0))[0], None

    return jax.lax.scan(body, state, length=len(events.worker))[0].params

  return functools.partial(run, training.init(given.params), given.batch)


if __name__ == '__main__':
  program.run('asynchronous', Settings, QUICK, measure)
