r"""DiLoCo on a mesh of replicas and shards, with a robust outer step.

  python -m experiments.diloco                                 # sonnets, a mean
  python -m experiments.diloco --dataset=tiny_shakespeare --data_dir=FOLDER \
      --faults=none,crash,lag,flip,nan,lie --output_dir=runs/chaos
  python -m experiments.diloco --num_fragments=3 --apply_delay=2 --alpha=0.5

Replicas train a transformer with AdamW for some steps, each on its own
documents. Then what they moved by, a *delta*, is reduced to one step of an
outer SGD with Nesterov momentum (Douillard et al. 2023, arXiv:2311.08105). The
mesh is replicas x fsdp: each replica is split over its own devices. The one
line that makes it robust is `byzjax.robust_reduce` in place of a mean.

With --num_fragments the parameters are synchronised in parts, one in a round,
and with --apply_delay some steps late (Douillard et al.
2025, arXiv:2501.18512).
--faults breaks replicas on purpose; every rule runs against every fault, and a
table and a picture tell what is left. A killed run goes on to the same bits
with --output_dir=FOLDER --resume. Several processes: as experiments.train.
"""

import dataclasses
import functools
import math
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging
from jax.sharding import NamedSharding, PartitionSpec

import byzjax

from . import chaos
from .harness import (
  distributed,
  loop,
  output,
  resume,
  settings,
  specs,
)
from .harness.cells import Program, Rows, even_stops
from .harness.settings import option
from .sharded_language import Task, Tree, check, part_of, task_of

FLAGS = flags.FLAGS
REDUCE_MEAN = 'reduce_mean'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Everything that a run is made of; each is a flag."""

  dataset: str = option('sonnets', 'sonnets, or a text of --data_dir.')
  data_dir: str | None = option(None, 'Folder with data sets in TFDS format.')
  length: int = option(32, 'Characters of context.', low=1)
  width: int = option(32, 'Of the transformer, a multiple of two heads.', low=2)
  num_layers: int = option(2, 'Of the transformer.', low=1)
  num_replicas: int = option(8, 'n; a multiple of the replica axis.', low=1)
  mesh: tuple[int, ...] = option((4, 2), 'Devices: replicas, fsdp.')
  rounds: int = option(40, 'Outer steps.', low=1)
  num_local_steps: int = option(10, 'H, steps of AdamW in a round.', low=1)
  batch_size: int = option(8, 'Documents per replica and step.', low=1)
  learning_rate: float = option(3e-3, 'Of AdamW.', low=0)
  outer_learning_rate: float = option(0.7, 'Of the outer step.', low=0)
  outer_momentum: float = option(0.9, 'Nesterov, of the outer step.', low=0)
  rules: tuple[str, ...] = option(
    (
      REDUCE_MEAN,
      'coordinate_median',
      'geometric_median',
      'nearest_neighbor_mixing | trimmed_mean',
    ),
    'Rules, with what stands in front of one before a |. reduce_mean is the'
    ' mean of everything, as in drjax. Rules:'
    f' {specs.describe(specs.AGGREGATORS)}.',
  )
  num_byzantine: int = option(2, 'f, for the rules; faulty replicas.', low=0)
  faults: tuple[str, ...] = option(('none',), f'Of {chaos.FAULTS}.')
  quorum: int = option(5, 'Fewer finite replicas: no outer step.', low=1)
  reset_masked: bool = option(
    True, 'Replicas that sent NaN or inf start from the outer parameters.'
  )
  num_fragments: int = option(
    1, 'F, at most --num_layers + 1; one is synchronised in a round.', low=1
  )
  apply_delay: int = option(0, 'Steps until replicas take it.', low=0)
  alpha: float = option(
    0.0, 'The share that replicas keep of their own then, in [0, 1].', low=0
  )
  num_evals: int = option(10, 'Evaluations of the held-out loss.', low=1)
  seed: int = option(0, 'Of parameters and batches.', low=0)


class State(NamedTuple):
  """What a checkpoint holds. Trees are dicts of leaves by their path."""

  params: Tree  # the outer parameters, as P(*spec)
  outer: Any  # a state of the outer optimizer for every fragment
  rule: Any  # the same of the rule
  replicas: Tree  # [n, ...] as P('replicas', *spec)
  moments: Any  # of AdamW, [n, ...]
  deltas: Tree  # what replicas with an old message keep
  counted: jax.Array  # steps of replicas that went into an outer step


def rule_of(text: str, num_byzantine: int) -> byzjax.Aggregator | None:
  """`stage | rule`, or None for the mean of everything."""
  if text.strip() == REDUCE_MEAN:
    return None
  *stages, rule = (part.strip() for part in text.split('|'))
  return specs.aggregator(rule, ', '.join(stages), num_byzantine)


def begin(config: Settings, task: Task, rule, outer) -> State:
  """Round 0, with every array where it stays."""
  n = config.num_replicas
  rows = {k: jnp.repeat(x[None], n, 0) for k, x in task.params.items()}
  parts = [part_of(task, i, task.params) for i in range(config.num_fragments)]
  return State(
    params=task.params,
    outer=tuple(outer.init(part) for part in parts),
    rule=tuple(() if rule is None else rule.init(part) for part in parts),
    replicas=rows,
    moments=jax.vmap(inner_of(config).init)(rows),
    deltas=jax.tree.map(jnp.zeros_like, rows),
    counted=jnp.zeros(()),
  )


def inner_of(config: Settings) -> optax.GradientTransformation:
  return optax.adamw(config.learning_rate)


def place(state: State, task: Task) -> State:
  """Shardings of a state: by the names of its leaves, and a worker axis."""

  def of(path, leaf):
    name = next((p.key for p in path if getattr(p, 'key', None)), None)
    has_rows = path[0].name in ('replicas', 'moments', 'deltas')
    rows = ('replicas',) if has_rows else ()
    spec = task.specs[name] if name in task.specs else ()
    return NamedSharding(task.mesh, PartitionSpec(*rows, *spec))

  return jax.tree.map_with_path(of, state)


def train_locally(config, task, replicas, moments, keys):
  """Some steps of AdamW in every replica: `keys` is [steps, n]."""
  inner = inner_of(config)
  share = len(task.documents) // config.num_replicas

  def one_step(params, moments, mine, key):
    chosen = jax.random.randint(key, (config.batch_size,), 0, share)
    batch = task.documents[mine * share + chosen]
    loss, gradient = jax.value_and_grad(task.loss_fn)(params, batch)
    updates, moments = inner.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments, loss

  def all_replicas(carry, keys):
    numbers = jnp.arange(config.num_replicas)
    step = jax.vmap(one_step, spmd_axis_name='replicas')
    replicas, moments, loss = step(carry[0], carry[1], numbers, keys)
    return (replicas, moments), loss.mean()

  (replicas, moments), losses = jax.lax.scan(
    all_replicas, (replicas, moments), keys
  )
  return replicas, moments, losses


def take(config, task, state: State, fragment: jax.Array) -> Tree:
  """Replicas move to what was synchronised: alpha of theirs, the rest new."""

  def mixed(name, mine):
    new = config.alpha * mine + (1 - config.alpha) * state.params[name][None]
    # A product with zero would keep their NaN.
    new = new if config.alpha else state.params[name][None]
    return jnp.where(task.fragment[name] == fragment, new, mine)

  return {name: mixed(name, x) for name, x in state.replicas.items()}


def synchronise(config, task, rule, outer, fault, fragment, state, done):
  """One outer step of a fragment, if enough replicas say something finite."""
  params = part_of(task, fragment, state.params)
  deltas = {k: x[None] - state.replicas[k] for k, x in params.items()}
  deltas, kept = chaos.sent(
    fault, done // config.num_fragments, deltas, state.deltas
  )
  here = chaos.present(fault, done)
  key = jax.random.fold_in(jax.random.key(config.seed + 1), done)
  rule_state, is_finite = state.rule[fragment], jnp.ones(len(here), bool)
  if rule is None:
    # What is absent sends zero, and the sum is divided by those who are here.
    counts = {k: here.reshape(-1, *[1] * x[0].ndim) for k, x in deltas.items()}
    aggregate = {
      k: jnp.where(counts[k], x, 0).sum(0) / here.sum()
      for k, x in deltas.items()
    }
  else:
    attack = chaos.attack(fault, rule)
    given = rule_state if attack is None else (rule_state, attack.init(params))
    aggregate, given, info = byzjax.robust_reduce(
      deltas,
      rule,
      mesh=task.mesh,
      worker_axis='replicas',
      specs=part_of(task, fragment, task.specs),
      state=given,
      worker_weights=here.astype(jnp.float32)
      if fault.name == 'crash'
      else None,
      attack=attack,
      is_byzantine=fault.is_faulty if attack else None,
      key=key,
      return_info=True,
    )
    rule_state = given if attack is None else given[0]
    is_finite = info.mask
  updates, outer_state = outer.update(aggregate, state.outer[fragment], params)
  moved = optax.apply_updates(params, updates)
  commit = (here & is_finite).sum() >= config.quorum
  useful = commit & jnp.isfinite(optax.tree.norm(moved))

  def chosen(new, old):
    return jax.tree.map(lambda a, b: jnp.where(commit, a, b), new, old)

  def put(states, new):
    return (*states[:fragment], new, *states[fragment + 1 :])

  state = state._replace(
    params={**state.params, **chosen(moved, params)},
    outer=put(state.outer, chosen(outer_state, state.outer[fragment])),
    rule=put(state.rule, chosen(rule_state, state.rule[fragment])),
    deltas=kept,
    counted=state.counted
    + jnp.where(useful, (here & is_finite).sum(), 0) * config.num_local_steps,
  )
  return state, is_finite


def restarted(config, state: State, who: jax.Array) -> State:
  """These replicas begin anew from the outer parameters."""
  fresh = {
    k: jnp.broadcast_to(state.params[k][None], x.shape)
    for k, x in state.replicas.items()
  }
  moments = jax.vmap(inner_of(config).init)(fresh)

  def where(new, old):
    return jnp.where(who.reshape(-1, *[1] * (old.ndim - 1)), new, old)

  return state._replace(
    replicas=jax.tree.map(where, fresh, state.replicas),
    moments=jax.tree.map(where, moments, state.moments),
  )


def one_round(config, task, rule, outer, fault, state: State, done):
  """Local steps, the late part of the last sync, and the next sync."""
  keys = jax.random.fold_in(jax.random.key(config.seed), done)
  shape = (config.num_local_steps, config.num_replicas)
  keys = jax.random.split(keys, shape)
  state = restarted(config, state, chaos.returning(fault, done))
  state = state._replace(moments=chaos.moments(fault, done, state.moments))
  train = functools.partial(train_locally, config, task)
  late = config.apply_delay
  first = train(state.replicas, state.moments, keys[:late])
  state = state._replace(replicas=first[0], moments=first[1])
  # In the first round nothing was synchronised that they could take.
  last = jnp.where(done > 0, (done - 1) % config.num_fragments, -1)
  state = state._replace(replicas=take(config, task, state, last))
  second = train(state.replicas, state.moments, keys[late:])
  state = state._replace(replicas=second[0], moments=second[1])
  state, is_finite = jax.lax.switch(
    done % config.num_fragments,
    [
      functools.partial(synchronise, config, task, rule, outer, fault, i)
      for i in range(config.num_fragments)
    ],
    state,
    done,
  )
  if config.reset_masked:
    state = restarted(config, state, ~is_finite)
  return state, jnp.concatenate([first[2], second[2]]).mean()


def program_of(config: Settings, rule_text: str, fault_name: str) -> Program:
  """One rule against one fault."""
  task = task_of(config)
  rule = rule_of(rule_text, config.num_byzantine)
  fault = chaos.make(fault_name, config.num_replicas, config.num_byzantine)
  if rule is None and fault.name == 'lie':
    # Liars know a rule, and of finite messages this one is the plain mean.
    rule = byzjax.mean()
  outer = optax.sgd(
    config.outer_learning_rate, config.outer_momentum, nesterov=True
  )
  state = begin(config, task, rule, outer)
  places = place(state, task)
  run_round = functools.partial(one_round, config, task, rule, outer, fault)

  @functools.partial(jax.jit, out_shardings=(places, None), donate_argnums=0)
  def stretch(state, done, rounds):
    def body(i, carry):
      state, loss = run_round(carry[0], done + i)
      return jax.lax.with_sharding_constraint(state, places), loss

    zero = jnp.zeros(())
    state, loss = jax.lax.fori_loop(0, rounds, body, (state, zero))
    done += rounds
    steps = done * config.num_replicas * config.num_local_steps
    return state, {
      'loss': task.loss_fn(state.params, task.held_out)[None],
      'train_loss': loss[None],
      'goodput': (state.counted / steps)[None],
    }

  return Program(
    runs=[{'rule': rule_text, 'fault': fault_name}],
    # A copy, for a stretch takes the arrays that it is given.
    start=lambda: jax.device_put(jax.tree.map(jnp.copy, state), places),
    stretch=stretch,
    stops=even_stops(config.rounds, config.num_evals),
    trace=lambda: jax.eval_shape(stretch, state, 0, 1)[1],
  )


def runs_of(config: Settings) -> dict[str, Program]:
  """A program for every rule and fault, by the name of its folder.

  Raises:
    ValueError: if the settings do not fit each other.
  """
  check(config)
  made = {}
  for fault in config.faults:
    for rule in config.rules:
      program = program_of(config, rule, fault)
      program.trace()
      made[output.slug(f'{fault}-{rule}')] = program
  return made


def main(argv):
  logging.set_verbosity(logging.WARNING)  # Checkpointing is talkative.
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  root = pathlib.Path(
    FLAGS.output_dir or time.strftime('runs/diloco-%Y%m%d-%H%M%S')
  )
  try:
    names = [field.name for field in dataclasses.fields(Settings)]
    output.check_root(root, resume=FLAGS.resume)
    if FLAGS.resume:
      resume.adopt(root, 'diloco', names)
    config = settings.read(Settings)
    distributed.split_cpu(math.prod(config.mesh))
    programs = runs_of(config)
    values = {'program': 'diloco', **dataclasses.asdict(config)}
    distributed.process_0_first(output.open_folder, root, values)
  except (OSError, ValueError) as error:
    sys.exit(f'diloco.py: {error}')
  distributed.say(f'Writing to {root}')
  rows: Rows = []
  for name, program in programs.items():
    rows += loop.run(program, root / name)
    distributed.say(f'{name}: held-out loss {rows[-1]["loss"]:.3f}')
  output.write_rows(root / 'rows.csv', rows)
  if jax.process_index() == 0:
    print(chaos.report(rows, root))


if __name__ == '__main__':
  settings.define(Settings)
  flags.DEFINE_string('output_dir', None, 'A new folder, or that of --resume.')
  flags.DEFINE_bool('resume', False, 'Continue the run in --output_dir.')
  distributed.run(main)
