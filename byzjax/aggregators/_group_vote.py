"""Exact majority votes in groups of workers that compute the same message."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax._src import base, checks, groups, recipes, reductions


@recipes.factory
def group_vote(*, group_size: int) -> base.PreAggregator:
  """Replaces every group of r messages by the message that its majority sent.

  Workers `j r, ..., j r + r - 1` are group j, and must compute the same message
  (see `data.redundant_groups`). `z_j` is the message that more than r / 2 of
  the group sent. Two messages are equal if all bits of all leaves are: NaN
  equals NaN with the same bits, and 0.0 differs from -0.0. Up to (r - 1) / 2
  Byzantine workers in a group change nothing; more of them win if they send the
  same message. If no message has a majority, z_j is NaN: rules by distance, and
  `mean`, leave it out, and rules by coordinate count it as +inf in every
  coordinate. A corrupted group, with or without a majority, has at least (r +
  1) / 2 Byzantine workers; so the rule that follows must tolerate `floor(f /
  ((r + 1) / 2))` Byzantine votes of the n / r.

  Without a majority the official code keeps the last candidate of a one-pass
  count (Boyer-Moore). It also votes on every parameter tensor separately, so
  that its result may combine tensors of different messages.

  Bits are equal only between gradients of one program with equal inputs in
  equal order. On CPUs, gradients of `robust_round` satisfy this under 'vmap'
  and 'map', on one device or several; under an int `worker_map` it is certain
  only if it divides the number of workers per device. On other hardware, where
  sums may run in any order, check `kept` of `detox` in a round without an
  attack: it must be all True.

  Args:
    group_size: r >= 1, an odd Python int that divides n; 1 is the identity.

  Returns:
    A `PreAggregator` without state, `[n, ...] -> [n/r, ...]`. Leaves keep their
    dtype.

  Raises:
    ValueError: if r is not an odd int of at least 1; at trace time, if it does
      not divide n.

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.pre_aggregate(
    ...   byzjax.group_vote(group_size=3), byzjax.mean())
    >>> rule(jnp.array([1., 99., 1., 2., 2., 2.]))
    Array(1.5, dtype=float32)
  """
  groups.check_group_size('group_vote', group_size)

  def apply(messages, state, *, key=None, axis_name=None):
    del key
    votes, _ = vote('group_vote', messages, group_size, axis_name=axis_name)
    return votes, state

  return base.PreAggregator(optax.init_empty_state, apply, name='group_vote')


def vote(
  name: str,
  messages: base.Messages,
  group_size: int,
  *,
  axis_name: base.AxisName = None,
) -> tuple[base.Messages, jax.Array]:
  """The votes `[n/r, ...]`, and bool[n], who sent what its group elected."""
  n = checks.num_workers(f'{name}: messages', messages)
  groups.check_groups(name, group_size, n)
  if group_size == 1:
    return messages, jnp.ones(n, bool)
  equal = _equal_pairs(messages, n, group_size, axis_name)
  # Every majority has a member among the first (r + 1) / 2.
  candidates = group_size // 2 + 1
  count = equal[:, :candidates].sum(axis=2)
  winner = jnp.argmax(count, axis=1)
  elected = jnp.max(count, axis=1) > group_size // 2
  agrees = jnp.take_along_axis(equal, winner[:, None, None], axis=1)[:, 0]

  def pick(leaf):
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      leaf = leaf.astype(jnp.float32)
    rows = leaf.reshape(n // group_size, group_size, *leaf.shape[1:])

    def where(condition, x, y):
      return jnp.where(condition.reshape(-1, *[1] * (leaf.ndim - 1)), x, y)

    chosen = rows[:, 0]
    for i in range(1, candidates):
      chosen = where(winner == i, rows[:, i], chosen)
    return where(elected, chosen, jnp.nan)

  votes = jax.tree.map(pick, messages)
  return votes, (elected[:, None] & agrees).reshape(n)


def _equal_pairs(messages, n, group_size, axis_name):
  """Which members of a group sent the same bits: bool[n/r, r, r]."""
  pairs = list(itertools.combinations(range(group_size), 2))
  # One bit for each pair, eight to a byte: an OR over bytes reads all messages
  # once, at the speed of memory, which reductions pair by pair do not.
  words = [pairs[i : i + 8] for i in range(0, len(pairs), 8)]
  differing = [jnp.zeros((n // group_size,), jnp.uint8) for _ in words]
  for leaf in jax.tree.leaves(messages):
    bits = _bits(lax.stop_gradient(jnp.asarray(leaf)))
    size = math.prod(bits.shape[1:])
    bits = bits.reshape(n // group_size, group_size, size)
    for i, word in enumerate(words):
      mask = jnp.zeros((n // group_size, size), jnp.uint8)
      for k, (a, b) in enumerate(word):
        differs = bits[:, a] != bits[:, b]
        mask |= jnp.where(differs, jnp.uint8(1 << k), jnp.uint8(0))
      differing[i] |= lax.reduce_or(mask, (1,))
  # What is equal here may differ in the coordinates of other devices.
  flags = jnp.stack(
    [
      differing[i] >> k & 1
      for i, word in enumerate(words)
      for k in range(len(word))
    ]
  )
  flags = reductions.psum(flags.astype(jnp.int32), axis_name)
  position = np.full((group_size, group_size), len(pairs))
  for k, (a, b) in enumerate(pairs):
    position[a, b] = position[b, a] = k
  oneself = jnp.ones((1, n // group_size), bool)
  equal = jnp.concatenate([flags == 0, oneself])
  return jnp.moveaxis(equal[position], -1, 0)


def _bits(x):
  """Floats as the unsigned integers of the same bits."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
