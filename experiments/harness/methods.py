"""`--method=NAME(...)` of `experiments.train`: how a network is trained.

Every entry takes the `Arguments` of a run, and its own hyper-parameters by
name, and returns a round. The rule, the attack and the learning rate are those
of the run, so a method is compared with others by changing one flag.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import asynchrony, gossip

from . import dipaco, specs
from .method_arguments import (
  Arguments,
  asynchronous,
  corrected,
  events,
  in_slices,
  local,
  shared,
)
from .poisson import on_poisson_batches


def robust(of: Arguments) -> byzjax.Round:
  """One gradient of every worker."""
  return byzjax.robust_round(
    of.task.loss_fn,
    worker=byzjax.worker_momentum(of.momentum),
    optimizer=of.optimizer,
    **shared(of),
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
    **shared(of) | {'needs_key': False},
    **of.devices,
  )

  return on_poisson_batches(training, of.task, of.batch_size)


def fed_avg(of: Arguments) -> byzjax.Round:
  return byzjax.fed_avg(
    of.task.loss_fn, learning_rate=of.local_rate, **local(of)
  )


def fed_prox(of: Arguments, mu=0.1) -> byzjax.Round:
  return byzjax.fed_prox(
    of.task.loss_fn, learning_rate=of.local_rate, mu=mu, **local(of)
  )


def fed_opt(of: Arguments) -> byzjax.Round:
  return byzjax.fed_opt(
    of.task.loss_fn,
    learning_rate=of.local_rate,
    optimizer=of.optimizer,
    **local(of),
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
    # The outer step has a momentum: a second one, of messages, is too much.
    **local(of) | {'worker': None},
  )


def qsr(of: Arguments, growth=0.2) -> byzjax.Round:
  """Rounds grow as (growth / rate)^2, with the schedule on local rates."""
  steps = of.planned * of.steps
  rate = optax.cosine_decay_schedule(of.local_rate, steps)
  with jax.ensure_compile_time_eval():
    lengths = byzjax.quadratic_synchronization(
      rate, total_steps=steps, base_steps=of.steps, growth=growth
    )
  # Fewer, longer rounds: what is left of the run has nothing to do.
  lengths = np.pad(lengths, (0, max(of.rounds - len(lengths), 0)))
  training = byzjax.local_round(
    of.task.loss_fn,
    local_optimizer=optax.sgd(rate),
    optimizer=optax.sgd(1.0),
    # A momentum of messages would move the model on when all steps are taken.
    **local(of) | {'num_local_steps': lengths, 'worker': None},
  )

  def step(state, batch, key):
    is_idle = jnp.asarray(lengths)[state.step] == 0
    state, info = training.step(state, batch, key)
    # Zero would be the loss of a perfect model.
    return state, info._replace(loss=jnp.where(is_idle, jnp.nan, info.loss))

  return training._replace(step=step)


def delta_sgd(of: Arguments, gamma=2.0, damping=0.1) -> byzjax.Round:
  return byzjax.local_round(
    of.task.loss_fn,
    local_optimizer=byzjax.scale_by_delta_sgd(
      initial_step_size=of.local_rate, gamma=gamma, damping=damping
    ),
    local_state='reset',
    optimizer=optax.sgd(1.0),
    **local(of),
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
    **local(of),
  )


def scaffold(of: Arguments) -> byzjax.Round:
  return in_slices(
    of,
    byzjax.scaffold(
      of.task.loss_fn, learning_rate=of.local_rate, **corrected(of)
    ),
  )


def fed_dyn(of: Arguments, alpha=0.1) -> byzjax.Round:
  return in_slices(
    of,
    byzjax.fed_dyn(
      of.task.loss_fn,
      learning_rate=of.local_rate,
      alpha=alpha,
      **corrected(of),
    ),
  )


def asgd(of: Arguments) -> byzjax.Round:
  """Every message is a step, however late it comes."""
  return asynchronous(of, optax.sgd(of.rate))


def ormo(of: Arguments, delay_adaptive=False) -> byzjax.Round:
  return asynchronous(
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
  return asynchronous(
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

  def rate(step):
    # The optimizer counts buffers, and the schedule of the run messages.
    return of.rate((step + 1) * rows - 1)

  return asynchronous(
    of,
    optax.sgd(rate if callable(of.rate) else of.rate),
    buffer=asynchrony.by_arrival(events(of), num_rows=rows),
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
  'dipaco': dipaco.training,
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
  'dipaco',
  'qsr',
  'delta_sgd',
  'savic',
)
CORRECTED = ('scaffold', 'fed_dyn')
# Their workers run AdamW.
ADAMW = ('diloco', 'dipaco')


def takes_examples(name: str) -> bool:
  """Whether the round is given the partition, and not a batch."""
  return name in (*LOCAL, *ASYNCHRONOUS, 'dp_sgd')


def build(text: str, of: Arguments) -> byzjax.Round:
  """The round of `NAME(...)`."""
  return specs.build('method', text, METHODS, of)


def model_of(name: str, num_liars: int, params: Any) -> Any:
  """The model in what is trained: under gossip the mean of the honest nodes.

  Of paths it is the first; each example is measured on its own. The first
  `num_liars` nodes attack in every round.
  """
  if name == 'dipaco':
    return dipaco.first_path(params)
  if name != 'gossip':
    return params
  return jax.tree.map(lambda x: x[num_liars:].mean(axis=0), params)


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
