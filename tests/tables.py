"""The tables of all rules and all attacks; a new method adds one row here.

Every property test of `tests/` runs over these tables, so a row is a claim: an
oracle, the equivariances, and how much the method stands.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from tests import reference

NUM_WORKERS = 11
SHAPES = {'a': (3, 2), 'b': (5,), 'c': ()}
SIZE = 12  # coordinates in SHAPES

Ball = tuple[np.ndarray, float]  # centre and radius


class Rule(NamedTuple):
  """One rule, and what it claims for `NUM_WORKERS` messages.

  Attributes:
    name: for the test's name.
    make: `(f, unit) -> Aggregator`; hyper-parameters that are distances are
      multiples of `unit`.
    oracle: `(x [n, d], v0 [d], f, key) -> [d]` in NumPy float64.
    num_byzantine: the largest f that the rule stands.
    ball: `(honest [n-f, d], v0 [d], f) -> (centre, radius)`: where the
      aggregate is whatever the other f messages are; None if it may be
      anywhere.
    start: `(state, v0) -> state` that starts from v0.
    translation: whether moving messages and v0 moves the aggregate.
    rotation: whether turning messages and v0 turns the aggregate.
    scale: whether scaling messages, v0 and `unit` scales the aggregate.
    permutation: whether the order of messages does not matter.
    weighs: whether `inspect` has weights.
    remembers: whether the aggregate of no message at all is v0, not zero.
  """

  name: str
  make: Callable[..., byzjax.Aggregator]
  oracle: Callable[..., np.ndarray]
  num_byzantine: int
  ball: Callable[..., Ball] | None
  start: Callable[[Any, Any], Any] = lambda state, v0: state
  translation: bool = True
  rotation: bool = True
  scale: bool = True
  permutation: bool = True
  weighs: bool = True
  remembers: bool = False


def robust_ball(kappa: Callable[[int, int], float]) -> Callable[..., Ball]:
  """(f, kappa)-robustness: a multiple of the honest root mean square."""

  def ball(honest, v0, f):
    del v0
    center = honest.mean(axis=0)
    variance = ((honest - center) ** 2).sum(axis=1).mean()
    return center, math.sqrt(kappa(len(honest) + f, f) * variance)

  return ball


def _ratio(n, f):
  return f / (n - 2 * f)


# Upper bounds on kappa: Allouah et al., 2023, arXiv:2302.01772.
def _kappa_trimmed_mean(n, f):
  return 6 * _ratio(n, f) * (1 + _ratio(n, f))


def _kappa_krum(n, f):
  return 6 * (1 + _ratio(n, f))


def _kappa_median(n, f):
  return 4 * (1 + _ratio(n, f)) ** 2


def _kappa_mixed(kappa):
  return lambda n, f: 8 * f / (n - f) * (kappa(n, f) + 1)


def _clipping_ball(radius, num_iterations):
  return lambda honest, v0, f: (v0, radius * num_iterations)


def _bucketed_median_ball(honest, v0, f):
  # f of the m buckets are anywhere, the others inside the honest ball.
  del v0
  center, m = honest.mean(axis=0), -(-(len(honest) + f) // 2)
  farthest = np.linalg.norm(honest - center, axis=1).max()
  return center, 2 * (m - f) / (m - 2 * f) * farthest


def bucket_matrix(key: jax.Array, num_workers: int) -> np.ndarray:
  """The mixing matrix that `bucketing(bucket_size=2)` draws from a key."""
  mixer = byzjax.bucketing(bucket_size=2)
  return np.asarray(mixer.apply(jnp.eye(num_workers), (), key=key)[0])


def _bucketed_median(x, v0, f, key):
  del v0, f
  # Each stage of `pre_aggregate` has its own key.
  mixed = bucket_matrix(jax.random.split(key)[0], len(x)) @ x
  return reference.geometric_median(mixed)


def _nnm(f):
  return byzjax.nearest_neighbor_mixing(num_byzantine=f)


RULES = [
  Rule(
    'mean',
    lambda f, unit: byzjax.mean(),
    lambda x, v0, f, key: reference.mean(x),
    0,
    None,
  ),
  Rule(
    'coordinate_median',
    lambda f, unit: byzjax.coordinate_median(),
    lambda x, v0, f, key: reference.coordinate_median(x),
    5,
    robust_ball(_kappa_median),
    rotation=False,
    weighs=False,
  ),
  Rule(
    'trimmed_mean',
    lambda f, unit: byzjax.trimmed_mean(num_byzantine=f),
    lambda x, v0, f, key: reference.trimmed_mean(x, f),
    5,
    robust_ball(_kappa_trimmed_mean),
    rotation=False,
    weighs=False,
  ),
  Rule(
    'krum',
    lambda f, unit: byzjax.krum(num_byzantine=f),
    lambda x, v0, f, key: reference.krum(x, f),
    4,
    robust_ball(_kappa_krum),
  ),
  Rule(
    'multi_krum',
    lambda f, unit: byzjax.multi_krum(num_byzantine=f),
    lambda x, v0, f, key: reference.multi_krum(x, f),
    4,
    robust_ball(_kappa_krum),
  ),
  Rule(
    'geometric_median',
    lambda f, unit: byzjax.geometric_median(smoothing=1e-6 * unit),
    lambda x, v0, f, key: reference.geometric_median(x),
    5,
    robust_ball(_kappa_median),
  ),
  Rule(
    'centered_clipping',
    lambda f, unit: byzjax.centered_clipping(radius=2.0 * unit),
    lambda x, v0, f, key: reference.centered_clipping(x, v0, 2.0, 1),
    5,
    _clipping_ball(2.0, 1),
    start=lambda state, v0: byzjax.CenteredClippingState(v0),
    remembers=True,
  ),
  Rule(
    'centered_clipping_3_steps',
    lambda f, unit: byzjax.centered_clipping(
      radius=2.0 * unit, num_iterations=3
    ),
    lambda x, v0, f, key: reference.centered_clipping(x, v0, 2.0, 3),
    5,
    _clipping_ball(2.0, 3),
    start=lambda state, v0: byzjax.CenteredClippingState(v0),
    remembers=True,
  ),
  Rule(
    'nnm_krum',
    lambda f, unit: byzjax.pre_aggregate(_nnm(f), byzjax.krum(num_byzantine=f)),
    lambda x, v0, f, key: reference.krum(
      reference.nearest_neighbor_mixing(x, f), f
    ),
    4,
    robust_ball(_kappa_mixed(_kappa_krum)),
  ),
  Rule(
    'nnm_coordinate_median',
    lambda f, unit: byzjax.pre_aggregate(_nnm(f), byzjax.coordinate_median()),
    lambda x, v0, f, key: reference.coordinate_median(
      reference.nearest_neighbor_mixing(x, f)
    ),
    5,
    robust_ball(_kappa_mixed(_kappa_median)),
    rotation=False,
    weighs=False,
  ),
  Rule(
    'nnm_centered_clipping',
    lambda f, unit: byzjax.pre_aggregate(
      _nnm(f), byzjax.centered_clipping(radius=2.0 * unit)
    ),
    lambda x, v0, f, key: reference.centered_clipping(
      reference.nearest_neighbor_mixing(x, f), v0, 2.0, 1
    ),
    5,
    _clipping_ball(2.0, 1),
    start=lambda state, v0: (state[0], byzjax.CenteredClippingState(v0)),
    remembers=True,
  ),
  Rule(
    'bucketing_geometric_median',
    lambda f, unit: byzjax.pre_aggregate(
      byzjax.bucketing(bucket_size=2),
      byzjax.geometric_median(
        # To the float64 digits that the oracle has.
        num_iterations=64,
        smoothing=1e-6 * unit,
      ),
    ),
    _bucketed_median,
    2,
    _bucketed_median_ball,
    permutation=False,  # in distribution only
  ),
]
RULE = {rule.name: rule for rule in RULES}


class MessageAttack(NamedTuple):
  """An attack whose rows are one function of the honest messages.

  Attributes:
    name: for the test's name.
    make: `() -> Attack`.
    oracle: `(x [n, d], is_byzantine [n]) -> [d] or [n, d]` in NumPy float64:
      what the Byzantine workers send.
    own: whether an attacker's row depends on what it computed itself.
  """

  name: str
  make: Callable[[], byzjax.Attack]
  oracle: Callable[[np.ndarray, np.ndarray], np.ndarray]
  own: bool = False


ATTACKS = [
  MessageAttack(
    'sign_flip',
    lambda: byzjax.sign_flip(scale=10.0),
    lambda x, bad: reference.sign_flip(x[~bad], 10.0),
  ),
  MessageAttack(
    'sign_flip_own',
    lambda: byzjax.sign_flip(scale=3.0, own=True),
    lambda x, bad: -3.0 * x,
    own=True,
  ),
  MessageAttack(
    'inner_product_manipulation',
    lambda: byzjax.inner_product_manipulation(epsilon=0.1),
    lambda x, bad: reference.inner_product_manipulation(x[~bad], 0.1),
  ),
  MessageAttack(
    'alie',
    lambda: byzjax.alie(),
    lambda x, bad: reference.alie(
      x[~bad], reference.alie_factor(len(x), int(bad.sum()))
    ),
  ),
  MessageAttack(
    'alie_z_population',
    lambda: byzjax.alie(z=-1.5, ddof=0),
    lambda x, bad: reference.alie(x[~bad], -1.5, ddof=0),
  ),
  MessageAttack(
    'constant',
    lambda: byzjax.constant(value=-100.0),
    lambda x, bad: np.full(x.shape[1], -100.0),
  ),
  MessageAttack(
    'constant_nan',
    lambda: byzjax.constant(value=jnp.nan),
    lambda x, bad: np.full(x.shape[1], np.nan),
  ),
  MessageAttack(
    'constant_inf',
    lambda: byzjax.constant(value=-jnp.inf),
    lambda x, bad: np.full(x.shape[1], -np.inf),
  ),
]


def to_tree(x: Any, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
  """`[..., SIZE]` as a pytree with leaves `[..., *shape]`."""
  leaves, start = {}, 0
  for name, shape in SHAPES.items():
    part = x[..., start : start + math.prod(shape)]
    leaves[name] = jnp.asarray(part.reshape(x.shape[:-1] + shape), dtype)
    start += math.prod(shape)
  return leaves


def to_matrix(tree: Any, lead: tuple[int, ...] = ()) -> np.ndarray:
  """The inverse of `to_tree`, in float64."""
  leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
  return np.concatenate([x.reshape(*lead, -1) for x in leaves], axis=-1)


def random_messages(seed: int, num_workers: int = NUM_WORKERS) -> np.ndarray:
  """Honest-looking messages `[n, SIZE]`: a common part, and spread 1."""
  random = np.random.default_rng(seed)
  common = random.normal(size=SIZE)
  return common + random.normal(size=(num_workers, SIZE))
