"""`--method=NAME(...)` of `experiments.train`: how a network is trained.

Every entry takes the `Arguments` of a run, and its own hyper-parameters by
name, and returns a round. The rule, the attack and the learning rate are those
of the run, so a method is compared with others by changing one flag.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import byzjax
from byzjax import asynchrony, data, gossip, topology

from . import specs
from .cells import Task


class Arguments(NamedTuple):
  """What a run says, whatever its method.

  Attributes:
    task: the loss and the examples.
    num_workers, num_byzantine: n and f.
    rounds: of the run.
    steps: local steps of a round, at least 1.
    local_rate: of local steps.
    batch_size: examples per worker and step.
    num_participants: workers drawn in a round, or None.
    optimizer: of the server, with the schedule of the run.
    rate: the learning rate over the rounds, a number or a schedule.
    momentum: decay of the momentum of workers.
    aggregator: the rule.
    attacked: `attack`, `byzantine`.
    codecs: `codec`, `server_codec`.
    devices: `mesh`, `worker_map`.
    topology: a graph, for gossip.
    speeds: seconds that a job of each worker takes, for asynchronous methods.
  """

  task: Task
  num_workers: int
  num_byzantine: int
  rounds: int
  steps: int
  local_rate: float
  batch_size: int
  num_participants: int | None
  optimizer: optax.GradientTransformation
  rate: Any
  momentum: float
  aggregator: byzjax.Aggregator
  attacked: dict[str, Any]
  codecs: dict[str, Any]
  devices: dict[str, Any]
  topology: topology.Topology
  speeds: np.ndarray


def robust(of: Arguments) -> byzjax.Round:
  """One gradient of every worker."""
  return byzjax.robust_round(
    of.task.loss_fn,
    worker=byzjax.worker_momentum(of.momentum),
    optimizer=of.optimizer,
    **_shared(of),
    **of.devices,
  )


def dp_sgd(of: Arguments, clip_norm=1.0, noise_multiplier=1.0) -> byzjax.Round:
  """Noisy gradients of clipped examples, on Poisson-sampled batches."""
  training = byzjax.robust_round(
    of.task.loss_fn,
    worker=byzjax.worker_momentum(of.momentum),
    optimizer=of.optimizer,
    value_and_grad=byzjax.differentially_private_gradient(
      of.task.loss_fn,
      clip_norm=clip_norm,
      noise_multiplier=noise_multiplier,
      batch_size=of.batch_size,
      needs_key=of.task.needs_key,
    ),
    **_shared(of) | {'needs_key': False},
    **of.devices,
  )

  def step(state, partition, key):
    key, draw_key = jax.random.split(key)
    batch = data.poisson_batch(
      of.task.images,
      of.task.labels,
      partition,
      jax.random.fold_in(draw_key, state.step),
      of.batch_size,
      scale=of.task.scale,
    )
    return training.step(state, batch, key)

  return training._replace(step=step)


def fed_avg(of: Arguments) -> byzjax.Round:
  return byzjax.fed_avg(
    of.task.loss_fn, learning_rate=of.local_rate, **_local(of)
  )


def fed_prox(of: Arguments, mu=0.1) -> byzjax.Round:
  return byzjax.fed_prox(
    of.task.loss_fn, learning_rate=of.local_rate, mu=mu, **_local(of)
  )


def fed_opt(of: Arguments) -> byzjax.Round:
  return byzjax.fed_opt(
    of.task.loss_fn,
    learning_rate=of.local_rate,
    optimizer=of.optimizer,
    **_local(of),
  )


def diloco(
  of: Arguments, outer_learning_rate=0.7, outer_momentum=0.9, weight_decay=0.1
) -> byzjax.Round:
  return byzjax.diloco(
    of.task.loss_fn,
    learning_rate=of.local_rate,
    outer_learning_rate=outer_learning_rate,
    outer_momentum=outer_momentum,
    weight_decay=weight_decay,
    **_local(of),
  )


def qsr(of: Arguments, growth=0.2) -> byzjax.Round:
  """Rounds grow as (growth / rate)^2, with the schedule on local rates."""
  steps = of.rounds * of.steps
  rate = optax.cosine_decay_schedule(of.local_rate, steps)
  with jax.ensure_compile_time_eval():
    lengths = byzjax.quadratic_synchronization(
      rate, total_steps=steps, base_steps=of.steps, growth=growth
    )
  # Fewer, longer rounds: what is left of the run has nothing to do.
  lengths = np.pad(lengths, (0, of.rounds - len(lengths)))
  return byzjax.local_round(
    of.task.loss_fn,
    local_optimizer=optax.sgd(rate),
    optimizer=optax.sgd(1.0),
    # A momentum of messages would move the model on when all steps are taken.
    **_local(of) | {'num_local_steps': lengths, 'worker': None},
  )


def delta_sgd(of: Arguments, gamma=2.0, damping=0.1) -> byzjax.Round:
  return byzjax.local_round(
    of.task.loss_fn,
    local_optimizer=byzjax.scale_by_delta_sgd(
      initial_step_size=of.local_rate, gamma=gamma, damping=damping
    ),
    local_state='reset',
    optimizer=optax.sgd(1.0),
    **_local(of),
  )


def savic(
  of: Arguments, rule='adam', scope='global', lower_bound=0.1
) -> byzjax.Round:
  return byzjax.fed_avg(
    of.task.loss_fn,
    learning_rate=of.local_rate,
    preconditioner=byzjax.scale_by_preconditioner(
      rule, lower_bound=lower_bound
    ),
    preconditioner_scope=scope,
    **_local(of),
  )


def scaffold(of: Arguments) -> byzjax.Round:
  return _sliced(
    of,
    byzjax.scaffold(
      of.task.loss_fn, learning_rate=of.local_rate, **_corrected(of)
    ),
  )


def fed_dyn(of: Arguments, alpha=0.1) -> byzjax.Round:
  return _sliced(
    of,
    byzjax.fed_dyn(
      of.task.loss_fn,
      learning_rate=of.local_rate,
      alpha=alpha,
      **_corrected(of),
    ),
  )


def asgd(of: Arguments) -> byzjax.Round:
  """Every message is a step, however late it comes."""
  return _asynchronous(of, optax.sgd(of.rate))


def ormo(of: Arguments, delay_adaptive=False) -> byzjax.Round:
  return _asynchronous(
    of,
    byzjax.ordered_momentum(
      of.rate,
      num_workers=of.num_workers,
      momentum=of.momentum,
      delay_adaptive=delay_adaptive,
    ),
  )


def delayed_nesterov(of: Arguments, activation=0.0) -> byzjax.Round:
  """The rule sees every n messages."""
  return _asynchronous(
    of,
    byzjax.delayed_nesterov(
      of.rate,
      num_buffered=of.num_workers,
      momentum=of.momentum,
      activation=activation,
      aggregator=of.aggregator,
    ),
  )


def fedbuff(of: Arguments, num_rows=0) -> byzjax.Round:
  """The rule sees the next messages; as many as there are workers."""
  rows = num_rows or of.num_workers
  return _asynchronous(
    of,
    optax.sgd(of.rate),
    buffer=asynchrony.by_arrival(_events(of), num_rows=rows),
    aggregator=of.aggregator,
  )


def gossip_round(of: Arguments, consensus=1.0) -> byzjax.Round:
  """No server, but neighbours; a lossy --codec wants a consensus below 1."""
  is_mean = of.aggregator.name == 'mean'
  return byzjax.gossip_round(
    of.task.loss_fn,
    topology=of.topology,
    rule=gossip.plain()
    if is_mean
    else gossip.aggregate(lambda count: of.aggregator),
    optimizer=optax.chain(
      byzjax.worker_momentum(of.momentum), optax.sgd(of.rate)
    ),
    consensus=consensus,
    codec=of.codecs['codec'],
    needs_key=of.task.needs_key,
    **of.attacked,
    **of.devices,
  )


METHODS: dict[str, Callable[..., byzjax.Round]] = {
  'robust': robust,
  'dp_sgd': dp_sgd,
  'fed_avg': fed_avg,
  'fed_prox': fed_prox,
  'fed_opt': fed_opt,
  'diloco': diloco,
  'qsr': qsr,
  'delta_sgd': delta_sgd,
  'savic': savic,
  'scaffold': scaffold,
  'fed_dyn': fed_dyn,
  'asgd': asgd,
  'ormo': ormo,
  'delayed_nesterov': delayed_nesterov,
  'fedbuff': fedbuff,
  'gossip': gossip_round,
}
ASYNCHRONOUS = ('asgd', 'ormo', 'delayed_nesterov', 'fedbuff')
# They take their batches themselves, from the examples of a worker.
LOCAL = (
  'fed_avg',
  'fed_prox',
  'fed_opt',
  'diloco',
  'qsr',
  'delta_sgd',
  'savic',
)
CORRECTED = ('scaffold', 'fed_dyn')


def takes_examples(name: str) -> bool:
  """Whether the round is given the partition, and not a batch."""
  return name in (*LOCAL, *ASYNCHRONOUS, 'dp_sgd')


def build(text: str, of: Arguments) -> byzjax.Round:
  """The round of `NAME(...)`."""
  return specs.build('method', text, METHODS, of)


def model_of(name: str, params: Any) -> Any:
  """The model in what is trained: the mean of all nodes under gossip."""
  if name != 'gossip':
    return params
  return jax.tree.map(lambda x: x.mean(axis=0), params)


def speeds_of(text: str, num_workers: int) -> np.ndarray:
  """`'1,1,5'`: seconds of a job, of worker i the entry i modulo their number.

  Raises:
    ValueError: if an entry is not a number above zero.
  """
  try:
    numbers = [float(part) for part in text.split(',')]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) <= 0:
    raise ValueError(
      f'--speeds must be numbers above zero, separated by commas, got {text!r}'
    )
  return np.resize(numbers, num_workers)


def _shared(of: Arguments) -> dict[str, Any]:
  return {
    'needs_key': of.task.needs_key,
    'num_workers': of.num_workers,
    'aggregator': of.aggregator,
    **of.attacked,
    **of.codecs,
  }


def _local(of: Arguments) -> dict[str, Any]:
  return {
    **_shared(of),
    **of.devices,
    'num_local_steps': of.steps,
    'participation': of.num_participants,
    'worker': byzjax.worker_momentum(of.momentum),
    'sampler': _sampler(of),
  }


def _corrected(of: Arguments) -> dict[str, Any]:
  return {
    **_shared(of),
    'participation': of.num_participants,
    'mesh': of.devices['mesh'],
  }


def _sampler(of: Arguments) -> byzjax.LocalSampler:
  return data.local_sampler(
    of.task.images,
    of.task.labels,
    batch_size=of.batch_size,
    scale=of.task.scale,
  )


def _sliced(of: Arguments, training: byzjax.Round) -> byzjax.Round:
  """A round whose batch `[n, steps x size, ...]` is cut into steps."""

  def step(state, batch, key):
    batch = jax.tree.map(
      lambda x: x.reshape(x.shape[0], of.steps, -1, *x.shape[2:]), batch
    )
    return training.step(state, batch, key)

  return training._replace(step=step)


def _events(of: Arguments) -> asynchrony.Events:
  return asynchrony.simulate(of.speeds, num_events=of.rounds)


def _asynchronous(of: Arguments, optimizer, **options) -> byzjax.Round:
  options.setdefault('aggregator', None)
  return byzjax.asynchronous_round(
    of.task.loss_fn,
    events=_events(of),
    optimizer=optimizer,
    sampler=_sampler(of),
    needs_key=of.task.needs_key,
    codec=of.codecs['codec'],
    **of.attacked,
    **options,
  )
