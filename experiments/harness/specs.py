"""`'name(key=value)'` on the command line, and what the names stand for."""

import ast
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, topology

AGGREGATORS: dict[str, Callable] = {
  'aksel': byzjax.aksel,
  'bulyan': byzjax.bulyan,
  'centered_clipping': byzjax.centered_clipping,
  'clipped_clustering': byzjax.clipped_clustering,
  'clustering': byzjax.clustering,
  'comparative_gradient_elimination': byzjax.comparative_gradient_elimination,
  'coordinate_median': byzjax.coordinate_median,
  'covariance_filter': byzjax.covariance_filter,
  'divide_and_conquer': byzjax.divide_and_conquer,
  'faba': byzjax.faba,
  'flame': byzjax.flame,
  'fools_gold': byzjax.fools_gold,
  'geometric_median': byzjax.geometric_median,
  'krum': byzjax.krum,
  'majority_vote': byzjax.majority_vote,
  'mean': byzjax.mean,
  'mean_around_median': byzjax.mean_around_median,
  'minimum_diameter_averaging': byzjax.minimum_diameter_averaging,
  'monna': byzjax.monna,
  'multi_krum': byzjax.multi_krum,
  'phocas': byzjax.phocas,
  'sequential_centered_clipping': byzjax.sequential_centered_clipping,
  'sign_guard': byzjax.sign_guard,
  'smallest_max_eigenvalue_averaging': (
    byzjax.smallest_max_eigenvalue_averaging
  ),
  'trimmed_mean': byzjax.trimmed_mean,
}
PRE_AGGREGATORS: dict[str, Callable] = {
  'adaptive_clipping': byzjax.adaptive_clipping,
  'bucketing': byzjax.bucketing,
  'clip_messages': byzjax.clip_messages,
  'nearest_neighbor_mixing': byzjax.nearest_neighbor_mixing,
  'resampling': byzjax.resampling,
}
TRIGGERS: dict[str, Callable] = {
  'blended': byzjax.blended_trigger,
  'distributed': byzjax.distributed_trigger,
  'patch': byzjax.patch_trigger,
}


def backdoor(
  trigger='patch', target=0, fraction=0.3, source=None, scale=1.0, ratio=1.0
):
  """A backdoor; its messages scaled, or masked as by Neurotoxin, if asked.

  The trigger is a text such as 'distributed(length=3)'; pixels are in [0, 1].
  """
  attack = byzjax.backdoor(
    build('trigger', trigger, TRIGGERS),
    target=target,
    fraction=fraction,
    source=source,
  )
  if scale != 1 and ratio != 1:
    raise ValueError('backdoor takes a scale or a ratio, not both')
  if scale != 1:
    return byzjax.joint_attack(attack, byzjax.model_replacement(scale=scale))
  if ratio != 1:
    return byzjax.joint_attack(attack, byzjax.neurotoxin(ratio=ratio))
  return attack


def label_poison(num_classes, seed=0):
  """Labels through a random permutation without fixed points."""
  return byzjax.label_poison(num_classes, seed=seed)


ATTACKS: dict[str, Callable] = {
  'alie': byzjax.alie,
  'backdoor': backdoor,
  'constant': byzjax.constant,
  'drift': byzjax.drift,
  'fang': byzjax.fang,
  'flip_vote': byzjax.flip_vote,
  'gaussian': byzjax.gaussian,
  'inner_product_manipulation': byzjax.inner_product_manipulation,
  'label_flip': byzjax.label_flip,
  'label_poison': label_poison,
  'mimic': byzjax.mimic,
  'min_max': byzjax.min_max,
  'min_sum': byzjax.min_sum,
  'none': lambda: None,
  'random_signs': byzjax.random_signs,
  'relocated_orthogonal_perturbation': (
    byzjax.relocated_orthogonal_perturbation
  ),
  'replay': byzjax.replay,
  'sign_flip': byzjax.sign_flip,
}
CODECS: dict[str, Callable] = {
  'noisy_sign': byzjax.noisy_sign_codec,
  'none': lambda: None,
  'qsgd': byzjax.qsgd_codec,
  'scaled_sign': byzjax.scaled_sign_codec,
  'sign': byzjax.sign_codec,
  'sparsign': byzjax.sparsign_codec,
  'terngrad': byzjax.terngrad_codec,
  'top_k': byzjax.top_k_codec,
}
TOPOLOGIES: dict[str, Callable] = {
  'chain': topology.chain,
  'complete': topology.complete,
  'erdos_renyi': topology.erdos_renyi,
  'exponential': topology.exponential,
  'ring': topology.ring,
  'star': topology.star,
  'torus': topology.torus,
}
# How attackers that hold the defence choose their rows.
SEARCHES: dict[str, Callable] = {
  'gradient': byzjax.adaptive_gradient,
  'none': lambda attack, aggregator: attack,
  'strength': byzjax.adaptive,
}
PARTITIONS: dict[str, Callable] = {
  'dirichlet_by_class': data.dirichlet_by_class,
  'dirichlet_by_worker': data.dirichlet_by_worker,
  'dirichlet_total': data.dirichlet_total,
  'iid': data.iid,
  'label_sorted': data.label_sorted,
  'main_class': data.main_class,
  'random_shards': data.random_shards,
}


def sgd(learning_rate, momentum=0.0, nesterov=False):
  """SGD on the aggregate, with momentum on the server if asked for."""
  return optax.sgd(learning_rate, momentum or None, nesterov)


def normalized_sgd(learning_rate):
  """The server step of ByzSGDnm: as long as the learning rate."""
  return optax.chain(
    byzjax.normalize_by_global_norm(),
    optax.scale_by_learning_rate(learning_rate),
  )


OPTIMIZERS: dict[str, Callable] = {
  'adam': optax.adam,
  'adamw': optax.adamw,
  'normalized_sgd': normalized_sgd,
  'sgd': sgd,
}


def step_schedule(learning_rate, rounds, *, factor=0.1, at=0.75):
  """The learning rate, times a factor from a fraction of the rounds on."""
  return optax.piecewise_constant_schedule(
    learning_rate, {int(at * rounds): factor}
  )


SCHEDULES: dict[str, Callable] = {
  'constant': lambda learning_rate, rounds: learning_rate,
  'cosine': lambda learning_rate, rounds: optax.cosine_decay_schedule(
    learning_rate, rounds
  ),
  'step': step_schedule,
}


# With dropout too, for which the loss needs a key: see `models.has_dropout`.
MODELS = ('cnn', 'dropout_cnn', 'mlp', 'resnet20')


def worker_map(model: str, text: str = 'auto') -> str | int:
  """How gradients are made: `vmap`, `map` or a number of workers at once."""
  if text != 'auto':
    return int(text) if text.isdigit() else text
  convolutions = model != 'mlp' and jax.default_backend() == 'cpu'
  return 'map' if convolutions else 'vmap'


# What the flags fill in by themselves.
_FILLED = {
  'aggregator',
  'attack',
  'labels',
  'learning_rate',
  'num_byzantine',
  'num_classes',
  'num_workers',
  'rounds',
  'seed',
}


def describe(known: Mapping[str, Callable]) -> str:
  """The names with their hyper-parameters and defaults, for `--help`."""
  calls = []
  for name, factory in sorted(known.items()):
    parameters = inspect.signature(factory).parameters.values()
    keywords = [
      p.name if p.default is p.empty else f'{p.name}={p.default!r}'
      for p in parameters
      if p.name not in _FILLED
    ]
    calls.append(f'{name}({", ".join(keywords)})' if keywords else name)
  return ', '.join(calls)


def parse(text: str, flag: str = '') -> tuple[str, dict[str, Any]]:
  """`'krum(num_neighbors=3)'` -> `('krum', {'num_neighbors': 3})`.

  Values are Python literals, `inf` and `nan`. A name may be `module:function`.

  Raises:
    ValueError: if the text is no name, with or without keyword arguments.
  """
  given = f'--{flag}={text}: ' if flag else ''
  problem = (
    f"{given}expected name or name(key=value, ...), as in 'krum' or"
    f" 'centered_clipping(radius=1.0)', got {text!r}"
  )
  rest = text.strip()
  if module := re.match(r'[\w.]+:', rest):
    rest = rest[module.end() :]
  before = module[0] if module else ''
  if re.fullmatch(r'\w+', rest):
    return before + rest, {}
  try:
    call = ast.parse(rest, mode='eval').body
    if (
      not isinstance(call, ast.Call)
      or not isinstance(call.func, ast.Name)
      or call.args
    ):
      raise ValueError(problem)
    return before + call.func.id, {
      str(keyword.arg): _literal(keyword.value) for keyword in call.keywords
    }
  except (SyntaxError, ValueError) as error:
    raise ValueError(problem) from error


def _literal(node: ast.expr) -> Any:
  names = {'inf': jnp.inf, 'nan': jnp.nan}
  if isinstance(node, ast.Name) and node.id in names:
    return names[node.id]
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    return -_literal(node.operand)
  if isinstance(node, ast.List):
    return [_literal(element) for element in node.elts]
  return ast.literal_eval(node)


def build(
  flag: str,
  text: str,
  known: Mapping[str, Callable],
  *args: Any,
  defaults: Mapping[str, Any] | None = None,
  values: Mapping[str, Any] | None = None,
) -> Any:
  """Calls the factory that `text` names, or says which names there are.

  Args:
    flag: name of the flag, for errors.
    text: as for `parse`.
    known: factories by name.
    *args: positional arguments of every factory.
    defaults: keyword arguments to add where a factory takes them and the text
      does not give them.
    values: keyword arguments in place of what the text gives, such as tracers.

  Raises:
    ValueError: if the name is unknown, or the factory refuses its arguments.
  """
  name, given = parse(text, flag)
  factory = factory_of(flag, name, known)
  parameters = inspect.signature(factory).parameters
  keywords = {
    key: value for key, value in (defaults or {}).items() if key in parameters
  }
  try:
    return factory(*args, **{**keywords, **given, **(values or {})})
  except (TypeError, ValueError) as error:
    raise ValueError(f'--{flag}={text}: {error}') from error


def check_name(flag: str, name: str, known: Iterable[str]) -> None:
  """Raises ValueError for an unknown name; it says which known one is near."""
  if name in (names := sorted(known)):
    return
  near = difflib.get_close_matches(name, names, n=1)
  hint = f', did you mean {near[0]!r}?' if near else ''
  raise ValueError(
    f'--{flag}: unknown name {name!r}{hint}; known are {", ".join(names)}'
  )


def factory_of(flag: str, name: str, known: Mapping[str, Callable]) -> Callable:
  """The function of a known name, or of `module:function`, which is imported.

  Raises:
    ValueError: if there is none.
  """
  module, colon, function = name.rpartition(':')
  if not colon:
    check_name(flag, name, known)
    return known[name]
  try:
    found = getattr(importlib.import_module(module), function)
  except (AttributeError, ImportError) as error:
    raise ValueError(f'--{flag}={name}: {error}') from error
  if not callable(found):
    raise ValueError(f'--{flag}={name}: that is no function, got {found!r}')
  return found


def split_top(text: str, separator: str) -> list[str]:
  """Splits at separators that are not inside parentheses; drops empty parts."""
  parts, depth, start = [], 0, 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if character == separator and depth == 0:
      parts.append(text[start:i])
      start = i + 1
  parts.append(text[start:])
  return [part.strip() for part in parts if part.strip()]


def aggregator(
  text: str, pre_aggregators: str, num_byzantine: int
) -> byzjax.Aggregator:
  """The rule behind the pre-aggregators of both texts.

  Each is given f where it asks for it.
  """
  fill = functools.partial(build, defaults={'num_byzantine': num_byzantine})
  *before, last = split_top(text, ',')
  rule = fill('aggregator', last, AGGREGATORS)
  stages = [
    fill('pre_aggregators', stage, PRE_AGGREGATORS)
    for stage in [*split_top(pre_aggregators, ','), *before]
  ]
  return byzjax.pre_aggregate(*stages, rule) if stages else rule


def optimizer(
  text: str, schedule: str, learning_rate: Any, rounds: int
) -> optax.GradientTransformation:
  """The step of the server, with its learning rate over the rounds."""
  rate = build('schedule', schedule, SCHEDULES, learning_rate, rounds)
  return build('optimizer', text, OPTIMIZERS, rate)


def partition(
  text: str, labels: Any, num_workers: int, seed: int
) -> data.Partition:
  """The shards of the workers; `long_tail=r` thins the classes first."""
  name, given = parse(text, 'partition')
  ratio = given.pop('long_tail', 1.0)
  if not isinstance(ratio, float | int):
    raise ValueError(f'--partition={text}: long_tail must be a number')
  kept = data.long_tail(labels, ratio=ratio, seed=seed)
  arguments = ', '.join(f'{key}={value!r}' for key, value in given.items())
  shards = build(
    'partition',
    f'{name}({arguments})',
    PARTITIONS,
    labels[kept],
    num_workers,
    defaults={'seed': seed},
  )
  return data.restrict(shards, kept)


def stack(parts: Sequence[data.Partition]) -> data.Partition:
  """Partitions of several seeds as one, padded to a common width."""
  indices = [part.indices for part in parts]
  width = max(x.shape[1] for x in indices)
  rows = [np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in indices]
  return data.Partition(
    jnp.stack(rows), jnp.stack([jnp.asarray(part.sizes) for part in parts])
  )
