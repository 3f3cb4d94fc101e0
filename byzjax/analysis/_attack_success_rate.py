"""The success rate of a backdoor attack on its trigger."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from byzjax._src import base, checks
from byzjax.attacks._triggers import Trigger


def attack_success_rate(
  logits_fn: Callable[[base.Params, jax.Array], jax.Array],
  params: base.Params,
  images: jax.Array,
  labels: jax.Array,
  *,
  trigger: Trigger | Callable[[jax.Array], jax.Array] | None,
  target: int,
  source: int | None = None,
  batch_size: int = 1000,
) -> jax.Array:
  """The share of triggered images that get the attackers' target label (ASR).

  `|{i : y_i != target, argmax f(trigger(x_i)) = target}| / |{i : y_i !=
  target}|`. Images of the target class are left out, so a clean model is near
  zero and not near `1 / K`. Report the rate of a clean run next to it. Logits
  that are not finite do not count as a success.

  Args:
    logits_fn: f, `(params, images [m, ...]) -> logits float[m, K]`.
    params: parameters of the model.
    images: clean test images `[N, H, W, C]`, in the units in which training
      images were when the trigger was added.
    labels: integers `[N]`, their true labels.
    trigger: `images -> images`, such as `patch_trigger()`; None if the images
      themselves are the attack's inputs, as for `edge_case`.
    target: the target label of the attack, a Python int.
    source: the only source label of the attack, a Python int; None for all
      labels except the target.
    batch_size: images per forward pass, a Python int, to bound memory.

  Returns:
    float32[] in [0, 1], or NaN if no image counts. It can be jitted and mapped
    over params.

  Raises:
    TypeError: if `logits_fn` or the trigger is not a function.
    ValueError: if a number is out of range, or images and labels do not have
      the same length of at least 1; at trace time, if the logits are not
      float[m, K] with a K above the target.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> from byzjax import analysis
    >>> def logits_fn(params, images):  # White in the corner means 1.
    ...   corner = images[:, -1, -1, 0]
    ...   return jnp.stack([1 - corner, corner], axis=-1)
    >>> rate = analysis.attack_success_rate(
    ...   logits_fn, (), jnp.zeros([4, 8, 8, 1]), jnp.array([0, 0, 0, 1]),
    ...   trigger=byzjax.patch_trigger(size=2, margin=0), target=1)
    >>> float(rate)
    1.0
  """
  name = 'attack_success_rate'
  checks.check_function(name, 'logits_fn', logits_fn)
  if trigger is not None:
    checks.check_function(name, 'trigger', trigger)
  checks.check_count(name, 'target', target)
  if source is not None:
    checks.check_count(name, 'source', source)
  checks.check_count(name, 'batch_size', batch_size, 1)
  num_images = jnp.shape(images)[0] if jnp.ndim(images) else 0
  if jnp.shape(labels) != (num_images,) or not num_images:
    raise ValueError(
      f'{name} needs images [N, H, W, C] and labels [N], N at least 1, got the'
      f' shapes {list(jnp.shape(images))} and {list(jnp.shape(labels))}'
    )
  counts = labels != target
  if source is not None:
    counts &= labels == source
  size = min(batch_size, num_images)
  num_batches = -(-num_images // size)

  def batched(x: Any) -> jax.Array:
    pad = [(0, num_batches * size - num_images)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad).reshape(num_batches, size, *x.shape[1:])

  def num_successes(batch):
    batch_images, counts = batch
    if trigger is not None:
      batch_images = trigger(batch_images)
    logits = logits_fn(params, batch_images)
    shape = jnp.shape(logits)
    if len(shape) != 2 or shape[0] != size or shape[1] <= target:
      raise ValueError(
        f'{name} needs logits_fn to return logits [{size}, K], K above'
        f' target={target}, got the shape {list(shape)}'
      )
    fooled = jnp.argmax(logits, -1) == target
    return jnp.sum(counts & fooled & jnp.all(jnp.isfinite(logits), -1))

  successes = jax.lax.map(num_successes, (batched(images), batched(counts)))
  return successes.sum().astype(jnp.float32) / counts.sum()
