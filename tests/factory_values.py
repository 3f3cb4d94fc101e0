"""Values that an argument must refuse, from its annotation."""

import collections.abc
import math
import types
import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

# Public functions that are not called here, and why.
_ARRAYS = 'a function of arrays alone'
_FLAX = 'takes a flax model or its graph; tests/models checks it'
_FILES = 'reads files; tests/data checks it'
NOT_CALLED = {
  'asynchrony.read_trace': 'reads a file; tests/asynchrony checks it',
  'pre_aggregate': 'takes any number of stages: see stages_test.py',
  'replicas': 'takes the state of a round',
  'robust_reduce': 'takes arrays on a mesh; robust_reduce_test.py checks it',
  **dict.fromkeys(
    [
      'sanitize', 'squared_distances', 'stack', 'analysis.drop_units',
      'analysis.linear_path', 'analysis.path_barrier', 'analysis.permute_units',
      'convex.arrangements', 'convex.network_outputs', 'convex.predict',
      'convex.recover_network', 'convex.sampled_network', 'data.path_scores',
      'data.restrict', 'data.rotate', 'data.route', 'data.top_paths',
      'models.best_paths', 'models.join_levels', 'models.keep_best',
      'models.max_pool', 'models.mlp_layers', 'models.mlp_params',
      'models.repeat_modules', 'models.select_path', 'objectives.project',
    ],
    _ARRAYS,
  ),
  **dict.fromkeys(['data.load', 'data.load_text'], _FILES),
  'data.words': 'takes a text; tests/data checks it',
  **dict.fromkeys(
    [
      'models.classifier_weights', 'models.cross_entropy_loss',
      'models.document_losses', 'models.evaluate',
      'models.features_and_classifier', 'models.has_dropout', 'models.make',
      'models.next_token_loss', 'models.prefix_features', 'models.split',
      'models.split_levels', 'models.stages',
    ],
    _FLAX,
  ),
}  # fmt: skip
# Counts that may be zero: by argument, of all factories or of some.
ZERO_COUNTS: dict[str, set[str] | None] = {
  'byzantine': None,
  'ddof': None,
  'gap': None,
  'image': None,
  'label': None,
  'margin': None,
  'num_byzantine': None,
  'num_mixed': None,
  'num_perturbations': None,
  'num_prefix': None,
  'num_refinements': None,
  'padding': None,
  'reference_worker': None,
  'seed': None,
  'source': None,
  'target': None,
  'warmup_local_steps': None,
  'warmup_steps': None,
  'worker': None,
  'max_staleness': None,
  'num_iterations': {
    'admm',
    'consensus_admm',
    'robust_admm',
    'sampled_program',
    'zero_threshold',
  },
  'num_ascent_steps': None,
  'num_remembered': None,
  'step': None,
  'switch_step': None,
  'num_steps': {'empirical_kappa', 'entropy_gradient', 'pgd_inputs'},
}
# Real numbers for which zero has no meaning, in the same way.
NONZERO: dict[str, set[str] | None] = {
  'alpha': {'mixup', 'dirichlet_by_class', 'dirichlet_by_worker'},
  'concentration': None,
  'confidence': {'fools_gold'},
  'fraction': {'sign_guard'},
  'gamma': {'scale_by_delta_sgd', 'wasserstein', 'wasserstein_inputs'},
  'initial_step_size': None,
  'lower_bound': None,
  'magnitude': None,
  'max_share': None,
  'max_time': None,
  'probability': None,
  'regularization': None,
  'rho': {'admm', 'consensus_admm', 'robust_admm', 'sampled_program'},
  'smoothing': None,
  'total_rounds': None,
}


# Values that are right in spite of the rules below: by argument, or by factory
# and argument.
_EITHER_SIGN = ('-1.5',)
FREE: dict[Any, tuple[str, ...]] = {
  # An attack may point anywhere.
  'angle': _EITHER_SIGN,
  'z': _EITHER_SIGN,
  ('constant', 'value'): ('-1.5', 'nan'),
  # Of an unknown rule nothing is known.
  ('analysis.certificate', 'rule'): ("'x'",),
  ('gossip.dissensus', 'epsilon'): _EITHER_SIGN,
  ('flip_vote', 'scale'): _EITHER_SIGN,
  ('gaussian', 'mean'): _EITHER_SIGN,
  ('inner_product_manipulation', 'epsilon'): _EITHER_SIGN,
  ('random_signs', 'scale'): _EITHER_SIGN,
  ('sign_flip', 'scale'): _EITHER_SIGN,
  # Any name will do.
  'name': ("'x'",),
  'axis_name': ("'x'",),
  'coordinate_axes': ("'x'",),
  # From the end of a tuple, or the key of a mapping.
  'image': ("'x'", '-2'),
  'label': ("'x'", '-2'),
  ('patch_trigger', 'value'): _EITHER_SIGN,
  ('distributed_trigger', 'value'): _EITHER_SIGN,
}


# Arrays, or trees of them, that JAX itself knows what to do with or refuses.
DATA = {'batch', 'bias', 'state'}


def _is_among(table, factory, name):
  meant = table.get(name, ())
  return meant is None or factory.split('.')[-1] in meant


def atoms_of(annotation: Any) -> set[Any]:
  """The types that a union is of, and the origins of those with parameters."""
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType):
    return set().union(*map(atoms_of, typing.get_args(annotation)))
  if origin is Literal:
    return {str}
  return {origin or annotation}


def is_free(annotation: Any) -> bool:
  """Whether any tree of arrays, or any array of data, may be given."""
  atoms = atoms_of(annotation)
  return bool(atoms & {Any, np.ndarray}) or annotation is jax.Array


def is_count(annotation: Any) -> bool:
  atoms = atoms_of(annotation)
  return int in atoms and float not in atoms and bool not in atoms


def is_real(annotation: Any) -> bool:
  return float in atoms_of(annotation)


def wrong_values_of(factory: str, parameter: Any) -> list[Any]:
  """The values to refuse; none for a parameter that is free."""
  name, annotation = parameter.name, parameter.annotation
  variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
  if name in DATA or variable:
    return []
  if name.endswith('key'):
    optional = type(None) in atoms_of(annotation)
    return [object(), 'x', 1.5] + [None] * (not optional)
  if bytes in atoms_of(annotation):  # whatever NumPy makes an array of
    return [object()]
  if is_free(annotation):
    return []
  values = wrong_values(factory, name, annotation)
  allowed = FREE.get((factory, name), FREE.get(name, ()))
  return [value for value in values if repr(value) not in allowed]


def wrong_values(factory: str, name: str, annotation: Any) -> list[Any]:
  """What is of no type that the argument takes, or in no range."""
  atoms = atoms_of(annotation)
  wrong: list[Any] = [object()]
  if type(None) not in atoms:
    wrong.append(None)
  # An unknown choice, where there are any.
  wrong.append('x')
  if not atoms & {tuple, list, collections.abc.Sequence, np.ndarray}:
    wrong.append([1])
  if bool not in atoms:
    wrong.append(True)
  if is_count(annotation):
    wrong += [-2, 1.5, math.nan, math.inf]
    if not _is_among(ZERO_COUNTS, factory, name):
      wrong.append(0)
  elif is_real(annotation):
    wrong += [math.nan, -1.5, jnp.ones(2), 1j]
    if _is_among(NONZERO, factory, name):
      wrong.append(0.0)
  else:
    wrong += [1.5, 2]
  return wrong
