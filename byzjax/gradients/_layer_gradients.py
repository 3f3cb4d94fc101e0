"""Gradients of the losses of single layers, and what the next one is given.

The functions that go through layers have one signature: `(model, layers,
errors, key_of, inputs, labels) -> (next input, a gradient of every layer)`,
with `errors(layer, like, labels)` a function `s -> e / B` of what has the
target, and `key_of(layer)` the key of the layer's random matrices.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import flat
from byzjax.gradients._stages import Layer, RecurrentStage


def of(layers: list[Layer]):
  """The function that goes through a group of layers."""
  stages = [layer.stage for layer in layers]
  recurrent = [stage for stage in stages if isinstance(stage, RecurrentStage)]
  if not recurrent:
    return _at_once
  if any(stage.through_time for stage in recurrent):
    return _one_after_another
  return _together


def _at_once(model, layers, errors, key_of, inputs, labels):
  """A layer that is not recurrent."""
  (layer,) = layers
  stage = layer.stage

  def seen(own):
    """What has the target, and what the next layer is given."""
    y = model.apply(layer, own, inputs)
    h = y if stage.after is None else stage.after(y)
    s = h if stage.targets_after else y
    return s if stage.readout is None else _read(key_of(layer), stage, s), h

  s, pull_back, h = jax.vjp(seen, model.own(layer), has_aux=True)
  (gradient,) = pull_back(-errors(layer, s, labels)(s))
  return h, [gradient]


def _read(key, stage, s):
  """A fixed random product with s: [B, k], about as large as s."""
  s = s.reshape(s.shape[0], -1)
  dtype = flat.compute_dtype(s.dtype)
  width = s.shape[1]
  # Apart from the key of P, which has the layer's own.
  normal = jax.random.normal(
    jax.random.fold_in(key, 1), (width, stage.readout), dtype
  )
  return (s.astype(dtype) @ (normal / math.sqrt(width))).astype(s.dtype)


def _together(model, layers, errors, key_of, inputs, labels):
  """Recurrent layers that go through time together."""
  del key_of
  owns = [model.own(layer) for layer in layers]
  params, batch_size = model.params(), inputs.shape[0]
  starts = [layer.stage.init(params, batch_size) for layer in layers]
  of_layer = [errors(layer, h, labels) for layer, h in zip(layers, starts)]
  last = inputs.shape[1] - 1

  def step(t, carry):
    hidden, sums = carry
    x = lax.dynamic_index_in_dim(inputs, t, axis=1, keepdims=False)
    new_hidden, new_sums = [], []
    for layer, own, error, h, total in zip(
      layers, owns, of_layer, hidden, sums
    ):
      x, pull_back = jax.vjp(
        lambda own, layer=layer, x=x, h=h: model.apply(layer, own, x, h), own
      )
      e = error(x)
      if layer.stage.last_step:
        e = jnp.where(t == last, e, 0)
      (gradient,) = pull_back(-e)
      new_hidden.append(x)
      new_sums.append([s + g.astype(s.dtype) for s, g in zip(total, gradient)])
    return new_hidden, new_sums

  zeros = [
    [jnp.zeros(leaf.shape, flat.compute_dtype(leaf.dtype)) for leaf in own]
    for own in owns
  ]
  carry = _varying_like((starts, zeros), (inputs, model.leaves))
  hidden, sums = lax.fori_loop(0, inputs.shape[1], step, carry)
  gradients = [
    [s.astype(leaf.dtype) for s, leaf in zip(total, own)]
    for total, own in zip(sums, owns)
  ]
  return hidden[-1], gradients


def _one_after_another(model, layers, errors, key_of, inputs, labels):
  """Recurrent layers, each through all of its steps before the next."""
  del key_of
  inputs, gradients = jnp.moveaxis(inputs, 1, 0), []
  for layer in layers:
    inputs, gradient = _through_own_time(model, layer, errors, inputs, labels)
    inputs = once_known(inputs, [gradient])
    gradients.append(gradient)
  return inputs[-1], gradients


def _through_own_time(model, layer, errors, inputs, labels):
  """`(states [T, B, ...], gradient)` of a recurrent layer.

  Only inputs and states are kept; a step is computed again on the way back.
  """
  stage, own, length = layer.stage, model.own(layer), inputs.shape[0]
  start = stage.init(model.params(), inputs.shape[1])
  error = errors(layer, start, labels)
  zeros = [jnp.zeros(w.shape, flat.compute_dtype(w.dtype)) for w in own]
  start, heard, sums = _varying_like(
    (start, jnp.zeros_like(start), zeros), (inputs, model.leaves)
  )

  def forwards(t, states):
    h = model.apply(layer, own, inputs[t], states[t])
    return lax.dynamic_update_index_in_dim(states, h, t + 1, axis=0)

  def backwards(i, carry):
    """`heard` is what J_i says to h_t through later steps of the layer."""
    heard, sums = carry
    t = length - 1 - i
    y, pull_back = jax.vjp(
      lambda own, h: model.apply(layer, own, inputs[t], h), own, states[t]
    )
    e = error(y)
    if stage.last_step:
      e = jnp.where(t == length - 1, e, 0)
    gradient, before = pull_back(heard - e)
    sums = [s + g.astype(s.dtype) for s, g in zip(sums, gradient)]
    return before if stage.through_time else jnp.zeros_like(heard), sums

  # A number of the inputs: the room for states is not taken before its turn.
  room = jnp.broadcast_to(
    _zero_of(inputs, start.dtype), (length + 1, *start.shape)
  )
  states = lax.fori_loop(0, length, forwards, room.at[0].set(start))
  _, sums = lax.fori_loop(0, length, backwards, (heard, sums))
  return states[1:], [s.astype(w.dtype) for s, w in zip(sums, own)]


def _zero_of(x: jax.Array, dtype) -> jax.Array:
  """0, which a compiler cannot know before x."""
  first = x.ravel()[0]
  return jnp.where((first == first) | (first != first), 0, 1).astype(dtype)


def once_known(h: jax.Array, gradients: list[list[jax.Array]]) -> jax.Array:
  """h, which must not be used before the gradients are there.

  They do not depend on each other, and a compiler that computed all layers
  first would keep what every gradient needs. The CPU compiler drops
  `lax.optimization_barrier` before it puts operations in order; this choice is
  always the same, but it does not know.
  """
  first = [leaf.ravel()[0] for leaf in jax.tree.leaves(gradients)]
  known = [(x == x) | (x != x) for x in first]
  return jnp.where(jnp.stack(known).all(), h, 0) if known else h


def _varying_like(tree: Any, reference: Any) -> Any:
  """The tree, each device's own under shard_map if the reference is."""
  first = [leaf.ravel()[0] for leaf in jax.tree.leaves(reference)]
  mine = jnp.stack([x == x for x in first]).all()
  return jax.tree.map(lambda x: jnp.where(mine, x, x), tree)
