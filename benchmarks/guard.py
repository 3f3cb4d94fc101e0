r"""What a guard against silent data corruption adds to a training step.

  python -m benchmarks.guard
  python -m benchmarks.guard --setups=cnn:32

Both sides are SGD with momentum on the same microbatches, in one `lax.scan`:
"mean" takes the mean of their gradients, the others put a rule in its place by
`byzjax.guard`. Gradients cost the more the larger a microbatch is, the rule
does not. A setup is a model and the examples of a microbatch.

Then a device flips one bit: the exponent of one number of one microbatch's
gradient, in every step. The loss after the last step says what it did.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import byzjax
from benchmarks import program, records, rounds, timing

FLOOR = 'mean'
_BIT = 1 << 30  # Of the exponent: a small number times 2^128.


@dataclasses.dataclass(frozen=True)
class Settings:
  setups: tuple[str, ...] = program.option(
    ('mlp:64', 'cnn:16', 'cnn:64'), 'Each is MODEL:EXAMPLES.'
  )
  num_microbatches: int = program.option(8, 'Messages of a step.')
  steps: int = program.option(10, 'Steps in one program.')
  repeats: int = program.option(9, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings(('digits:2',), 5, 2, repeats=1)


def measure(settings: Settings) -> Iterator[records.Run]:
  for setup in settings.setups:
    model, examples = setup.split(':')
    yield _of_setup(model, int(examples), settings)


def optimizers(n: int) -> dict[str, optax.GradientTransformation]:
  """Of gradients `[n, ...]`: the mean, and guards."""
  sgd = optax.sgd(0.05, momentum=0.9)
  f = max(n // 8, 1)
  rules = {
    'mean of finite': byzjax.mean(),
    'trimmed_mean': byzjax.trimmed_mean(num_byzantine=f),
    'coordinate_median': byzjax.coordinate_median(),
    'multi_krum': byzjax.multi_krum(num_byzantine=f),
  }
  mean = optax.stateless(
    lambda rows, _: jax.tree.map(lambda x: x.mean(0), rows)
  )
  return {FLOOR: optax.chain(mean, sgd)} | {
    f'guard, {name}': byzjax.guard(sgd, rule=rule, num_microbatches=n)
    for name, rule in rules.items()
  }


def flip(gradients):
  """One bit of a number of the first microbatch's gradient is turned over."""

  def turn(rows):
    one = rows[0].reshape(-1)
    largest = jnp.argmax(jnp.abs(one))
    bits = jax.lax.bitcast_convert_type(one[largest], jnp.uint32)
    wrong = jax.lax.bitcast_convert_type(bits ^ _BIT, jnp.float32)
    return rows.at[0].set(one.at[largest].set(wrong).reshape(rows.shape[1:]))

  *others, last = jax.tree.leaves(gradients)
  structure = jax.tree.structure(gradients)
  return jax.tree.unflatten(structure, [*others, turn(last)])


def _steps(given: rounds.Problem, optimizer, count: int, broken: bool):
  """So many steps; returns the loss of all microbatches at the end."""

  def loss(params):
    return jax.vmap(given.loss_fn, (None, 0))(params, given.batch).mean()

  def run(params, batch):
    def step(carry, _):
      params, state = carry
      gradients = rounds.over_workers(
        lambda one: jax.grad(given.loss_fn)(params, one),
        given.worker_map,
        batch,
      )
      if broken:
        gradients = flip(gradients)
      updates, state = optimizer.update(gradients, state, params)
      return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, length=count)[0][0]

  return run, loss


def _of_setup(model: str, examples: int, settings: Settings) -> records.Run:
  n, count = settings.num_microbatches, settings.steps
  given = rounds.problem(model, (n, examples), 'auto')
  programs, broken = {}, {}
  for name, optimizer in optimizers(n).items():
    run, loss = _steps(given, optimizer, count, broken=False)
    programs[name] = timing.compiled(run, given.params, given.batch)
    wrong, _ = _steps(given, optimizer, count, broken=True)
    broken[name] = float(
      jax.jit(loss)(jax.jit(wrong)(given.params, given.batch))
    )
  times = timing.interleaved(
    {name: each.call for name, each in programs.items()},
    settings.repeats,
    settings.seconds / len(settings.setups),
  )
  values = {
    name: {
      'rate': count / min(times[name].wall),
      'loss_broken': broken[name],
    }
    for name in programs
  }
  title = (
    f'{model}, {given.size} parameters, {n} microbatches of {examples},'
    f' {given.worker_map}'
  )
  return records.Run(title, FLOOR, records.figures(times, FLOOR, values))


if __name__ == '__main__':
  program.run('guard', Settings, QUICK, measure)
