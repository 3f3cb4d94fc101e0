"""From the flags of a run to what its method is told."""

from typing import Any

import jax

import byzjax

from . import methods, output, privacy, specs
from .method_arguments import Arguments

# Flags that not every method knows.
_FLAGS = (
  'partition',
  'num_local_steps',
  'num_participants',
  'codec',
  'server_codec',
  'topology',
  'speeds',
  'num_devices',
  'augment',
  'optimizer',
  'redraw_byzantine',
  'learning_rate',
  'schedule',
  'local_learning_rate',
  'momentum',
  'worker_map',
  'delta',
)


def check(config: Any) -> str:
  """The name of the method, if all flags are for it."""
  name, _ = specs.parse(config.method, 'method')

  def says(flag):
    return (
      getattr(config, flag) != type(config).__dataclass_fields__[flag].default
    )

  specs.check_name('method', name, methods.METHODS)
  _check_flags(name, {flag: says(flag) for flag in _FLAGS})
  _check_rule(name, config.aggregator, config.pre_aggregators)
  return name


def several(config: Any) -> dict[str, list[str]]:
  """The attacks and the rules of a run, which semicolons separate, by flag.

  Raises:
    ValueError: if a flag names nothing, or the same thing twice.
  """
  found = {}
  for flag, kind in [('attack', 'attack'), ('aggregator', 'rule')]:
    given = specs.split_top(getattr(config, flag), ';')
    if not given:
      raise ValueError(f'--{flag} names no {kind}')
    if len({output.slug(text) for text in given}) < len(given):
      raise ValueError(f'--{flag} names the same {kind} twice: {given}')
    found[flag] = given
  return found


def local_rate(config: Any) -> float:
  """The rate of local steps, given or that of their optimizer."""
  if config.local_learning_rate is not None:
    return config.local_learning_rate
  name, _ = specs.parse(config.method)
  return 0.003 if name in methods.ADAMW else 0.1


def make(config: Any, task, key, mesh) -> Arguments:
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
  return Arguments(
    task=task,
    num_workers=config.num_workers,
    num_byzantine=config.num_byzantine,
    rounds=config.rounds,
    planned=planned,
    steps=max(config.num_local_steps, 1),
    local_rate=local_rate(config),
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
  on_examples = attack is not None and not isinstance(attack, byzjax.Attack)
  if on_examples and specs.parse(config.method)[0] == privacy.METHOD:
    raise ValueError(
      f'--attack={config.attack} changes examples, and is not for'
      f' --method={privacy.METHOD}: give an attack on messages'
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


def _check_flags(name: str, given: dict[str, bool]) -> None:
  """Raises ValueError for flags that the method does not know.

  Args:
    name: of the method.
    given: by flag, whether it says something.
  """
  local, late = (
    name in methods.LOCAL or name in methods.CORRECTED,
    name in methods.ASYNCHRONOUS,
  )
  sgd = ('robust', privacy.METHOD)
  knows = {
    'partition': name != 'dipaco',  # Its router divides the examples.
    'num_local_steps': local,
    'num_participants': local,
    'codec': True,
    'server_codec': not (late or name == 'gossip'),
    'topology': name == 'gossip',
    'speeds': late,
    'num_devices': True,
    'augment': not methods.takes_examples(name),
    'optimizer': name in (*sgd, 'fed_opt'),
    'redraw_byzantine': not late,
    'learning_rate': late or name in (*sgd, 'fed_opt', 'gossip'),
    'schedule': late or name in (*sgd, 'fed_opt', 'gossip'),
    'local_learning_rate': local,
    'momentum': name
    not in ('asgd', 'fedbuff', 'qsr', *methods.ADAMW, *methods.CORRECTED),
    'worker_map': not (late or name in methods.CORRECTED),
    'delta': name == privacy.METHOD,
  }
  for flag, says in given.items():
    if says and not knows[flag]:
      raise ValueError(f'--{flag} is not for --method={name}')


def _check_rule(name: str, aggregator: str, pre_aggregators: str) -> None:
  """Raises ValueError for a rule where every message is a step by itself."""
  if name in ('asgd', 'ormo') and (aggregator != 'mean' or pre_aggregators):
    raise ValueError(
      f'--method={name} has no rule, for every message is a step: give'
      ' --aggregator=mean, or --method=fedbuff'
    )
