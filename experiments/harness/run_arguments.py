"""From the flags of a run to what its method is told."""

from typing import Any

import jax

import byzjax
from experiments.harness import methods, specs


def check(config: Any) -> str:
  """The name of the method, if all flags are for it."""
  name, _ = specs.parse(config.method)

  def default(flag):
    return type(config).__dataclass_fields__[flag].default

  if name not in methods.METHODS:
    raise ValueError(
      f'--method: unknown name {name!r}; known are'
      f' {", ".join(sorted(methods.METHODS))}'
    )
  methods.check(
    name,
    {
      'num_local_steps': config.num_local_steps > 0,
      'num_participants': config.num_participants is not None,
      'codec': config.codec != 'none',
      'server_codec': config.server_codec != 'none',
      'topology': config.topology != default('topology'),
      'speeds': config.speeds != default('speeds'),
      'num_devices': config.num_devices > 1,
      'augment': config.augment,
      'optimizer': config.optimizer != default('optimizer'),
      'redraw_byzantine': config.redraw_byzantine,
    },
  )
  return name


def make(config: Any, task, key, mesh) -> methods.Arguments:
  """What all methods are told."""
  aggregator = specs.aggregator(
    config.aggregator, config.pre_aggregators, config.num_byzantine
  )
  attack = attack_of(config, aggregator, task.num_classes)
  planned = config.schedule_rounds or config.rounds
  rate = specs.build(
    'schedule', config.schedule, specs.SCHEDULES, config.learning_rate, planned
  )
  nodes = {'num_nodes': config.num_workers}
  return methods.Arguments(
    task=task,
    num_workers=config.num_workers,
    num_byzantine=config.num_byzantine,
    rounds=config.rounds,
    steps=max(config.num_local_steps, 1),
    local_rate=config.local_learning_rate,
    batch_size=config.batch_size,
    num_participants=config.num_participants,
    optimizer=specs.build(
      'optimizer', config.optimizer, specs.OPTIMIZERS, rate
    ),
    rate=rate,
    momentum=config.momentum,
    aggregator=aggregator,
    attacked={
      'attack': attack,
      'byzantine': byzantine_of(config, attack, key),
    },
    codecs={
      flag: specs.build(flag, getattr(config, flag), specs.CODECS)
      for flag in ('codec', 'server_codec')
    },
    devices={
      'worker_map': specs.worker_map(config.model, config.worker_map),
      'mesh': mesh,
    },
    topology=specs.build(
      'topology', config.topology, specs.TOPOLOGIES, defaults=nodes
    ),
    speeds=methods.speeds_of(config.speeds, config.num_workers),
  )


def attack_of(
  config: Any, aggregator: byzjax.Aggregator, num_classes: int
) -> Any:
  """The attack behind its searches, which hold the rule."""
  attack = specs.build(
    'attack',
    config.attack,
    specs.ATTACKS,
    defaults={'num_classes': num_classes},
  )
  for search in specs.split_top(config.search, ','):
    attack = specs.build('search', search, specs.SEARCHES, attack, aggregator)
  return attack


def byzantine_of(config: Any, attack: Any, key: jax.Array) -> Any:
  """Who attacks: nobody if there is no attack."""
  if attack is None:
    return 0
  if not config.redraw_byzantine:
    return config.num_byzantine
  return byzjax.random_byzantine(config.num_workers, config.num_byzantine, key)
