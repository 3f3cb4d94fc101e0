"""A rule on sharded messages, in chunks of the coordinates of all leaves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import (
  base,
  calls,
  flat,
  grams,
  layouts,
  nonfinite,
  ownership,
  reductions,
)

Split = ownership.Split


def check(
  name: str,
  rule: base.Aggregator,
  attack: base.Attack | None,
  state: Any,
  num_chunks: int,
) -> None:
  """Raises ValueError unless the rule can run on chunks of coordinates."""
  gram_rule = rule.update.gram_rule
  cut = rule.update.by_coordinate or (gram_rule and gram_rule.center is None)
  if cut and attack is None and state is None:
    return
  raise ValueError(
    f'{name} needs a rule that treats each coordinate apart, or that computes'
    ' weights from distances, without a state and without an attack, for'
    f' num_chunks above 1, got num_chunks={num_chunks} and {rule.name}'
  )


def chunked(
  rule: base.Aggregator,
  workers: ownership.Axes,
  others: ownership.Axes,
  num_chunks: int,
) -> base.Aggregator:
  """`worker_sharded(rule, workers)` with less memory and more steps.

  A device never holds its part `[n, m]` of the messages at once, only `[n, m /
  num_chunks]`. A rule with distances needs three passes over the chunks: for
  norms, for inner products and for the sum; and of one more if an attacker's
  message was the first centre (see `from_weights`).
  """

  def inspect(
    messages, state, params=None, *, key=None, worker_weights=None, **told
  ):
    del params, told
    rows = jax.tree.map(lambda x: x[0], messages)
    split = ownership.split_of(rows, workers, others)
    layout = flat.row_layout(rows)
    blocks = _blocks(messages, split, num_chunks)
    n = jax.tree.leaves(messages)[0].shape[0] * ownership.num_devices(workers)
    gram_rule = rule.update.gram_rule
    weights = calls.relative_weights(
      rule.name,
      worker_weights,
      n,
      # A rule on coordinates refuses them by itself.
      supported=gram_rule is None or gram_rule.weighted,
    )
    over = functools.partial(_over_chunks, blocks, split, layout.dtype)
    if rule.update.by_coordinate:
      vector, info = _by_coordinate(rule, over, weights, workers + others)
    else:
      vector, info = _by_weights(rule, over, weights, key, workers + others)
    return ownership.from_owners(vector, rows, split), state, info

  return base.Aggregator(lambda params: (), inspect, name=rule.name)


def _by_coordinate(rule, over, weights, axes):
  told = {} if weights is None else {'worker_weights': weights}

  def of_chunk(x):
    y, _ = rule.update(x, (), **told)
    return (~jnp.isfinite(x)).sum(1), y

  bad, vector = over(of_chunk)
  return vector, base.AggregationInfo(mask=lax.psum(bad, axes) == 0)


def _by_weights(rule, over, weights, key, axes):
  gram_rule = rule.update.gram_rule
  norms, _ = over(lambda x: (reductions.squared_norms(x), None))
  norms = lax.psum(norms, axes)
  mask = nonfinite.usable_norms(norms)
  mass = grams.mass_of(mask, weights)

  def gram_about(index):
    def of_chunk(x):
      center = grams.center_row(x, index, mass)
      return reductions.centered_gram(x, center, mask), None

    return lax.psum(over(of_chunk)[0], axes)

  center, inner = grams.gram_about_message(
    gram_about, grams.lower_median_index(norms, mass), mass
  )
  gram = base.Gram(inner, jnp.where(mask, norms, 0), mask)
  gram = grams.weighted_gram(gram, weights)
  info, _ = gram_rule.weights(gram, gram_rule.init(jnp.zeros(1)), key=key)
  weights = jnp.where(mask, info.weights, 0).astype(norms.dtype)

  def combined(x):
    if gram_rule.selects_one:
      return None, reductions.select(weights, x)
    about = None
    if not gram_rule.selects:
      row = grams.center_row(x, center, mass)
      about = jnp.where(jnp.any(weights != 0), row, 0)
    return None, reductions.combine(weights, x, about)

  _, vector = over(combined)
  return vector, info._replace(weights=weights, mask=mask)


def _blocks(messages, split: Split, num_chunks: int) -> list[jax.Array]:
  """For every group of leaves what is sent: `[num_chunks, k, p, width]`."""
  leaves = jax.tree.leaves(messages)
  p, blocks = ownership.num_devices(split.workers), []
  for group in split.groups:
    rows = [leaves[i].reshape(leaves[i].shape[0], -1) for i in group.leaves]
    x = ownership.own_copies(jnp.concatenate(rows, axis=1), group, split)
    x = x.reshape(x.shape[0], p, -1)
    padding = -x.shape[2] % num_chunks
    x = jnp.pad(x, ((0, 0), (0, 0), (0, padding)))
    x = x.reshape(x.shape[0], p, num_chunks, -1)
    blocks.append(jnp.moveaxis(x, 2, 0))
  return blocks


def _over_chunks(
  blocks: list[jax.Array],
  split: Split,
  dtype: Any,
  of_chunk: Callable[[jax.Array], tuple[Any, Any]],
) -> tuple[Any, Any]:
  """`of_chunk(x [n, width]) -> (to be added up, to be put together)`."""
  total, parts = None, []
  for group, block in zip(split.groups, blocks):

    def owned(x):
      x = layouts.to_coordinates(x.reshape(x.shape[0], -1), split.workers)
      return of_chunk(x.astype(dtype))

    def step(total, x, owned=owned):
      added, part = owned(x)
      return jax.tree.map(jnp.add, total, added), part

    # The first stands outside of the loop, for the types of the carry.
    first, part = owned(block[0])
    if total is not None:
      first = jax.tree.map(jnp.add, total, first)
    total, others = lax.scan(step, first, block[1:])
    if part is not None:
      part = jnp.concatenate([part[None], others]).reshape(-1)[: group.width]
      parts.append(part)
  return total, jnp.concatenate(parts) if parts else None
