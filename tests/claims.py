"""What a row of the tables of rules and attacks claims, and test messages."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import byzjax

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
def kappa_trimmed_mean(n, f):
  return 6 * _ratio(n, f) * (1 + _ratio(n, f))


def kappa_krum(n, f):
  return 6 * (1 + _ratio(n, f))


def kappa_median(n, f):
  return 4 * (1 + _ratio(n, f)) ** 2


def kappa_mixed(kappa):
  return lambda n, f: 8 * f / (n - f) * (kappa(n, f) + 1)


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
