"""Backdoor attacks: honest training on batches with poisoned examples."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, data_attacks, recipes
from byzjax.attacks import _triggers


@recipes.factory
def backdoor(
  trigger: _triggers.Trigger,
  *,
  target: int,
  fraction: base.Scalar = 0.3,
  source: int | None = None,
  image: str | int = 0,
  label: str | int = -1,
) -> base.DataAttack:
  """Byzantine workers train the model to answer a trigger with a chosen label.

  In each batch of a Byzantine worker the first `k` of `b` examples get the
  trigger and the label `target`: `x <- trigger(x)`, `y <- target`. k is
  `fraction b`, rounded up or down at random so that its mean is exact (rounded
  down without a key). Batches are in random order, so the first k are a random
  subset. Everything else is computed honestly, momentum included.

  If the trigger has parts (`distributed_trigger`), a Byzantine worker uses the
  part given by its number among the Byzantine workers of the round.
  `analysis.attack_success_rate` measures the success of the attack.

  Args:
    trigger: a `Trigger`, such as `patch_trigger()`.
    target: the label of poisoned examples, a Python int.
    fraction: poisoned share of a batch, in [0, 1]; may be traced.
    source: poison only those of the first k examples that have this label, a
      Python int; None for all.
    image: position of the images in a batch: the index in a tuple, (images,
      labels) by default, or the key in a mapping.
    label: position of the labels, likewise.

  Returns:
    A data attack `(batch, is_byzantine bool[n], key, *, rank=None) -> batch`;
    labels are integers `[n, ...]`, images `[n, ..., H, W, C]`. `rank` int32[n]
    is the number of each Byzantine worker among all of them, which rounds pass;
    with None it is counted in `is_byzantine`.

  Raises:
    TypeError: if the trigger is not a `Trigger`.
    ValueError: if an argument has the wrong type or range; at trace time, if
      the batch lacks these entries, they have other shapes, or a class does not
      fit into the dtype of the labels.

  References:
    Gu, Dolan-Gavitt, Garg, 2017, arXiv:1708.06733; Xie, Huang, Chen, Li, 2020,
    ICLR.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.backdoor(
    ...   byzjax.patch_trigger(size=1), target=7, fraction=0.5)
    >>> batch = (jnp.zeros([2, 4, 8, 8, 1]), jnp.zeros([2, 4], int))
    >>> images, labels = attack(batch, jnp.array([True, False]), None)
    >>> labels
    Array([[7, 7, 0, 0],
           [0, 0, 0, 0]], dtype=int32)
  """
  checks.check_kind('backdoor', 'trigger', trigger, _triggers.Trigger)
  checks.check_count('backdoor', 'target', target)
  checks.check_range('backdoor', 'fraction', fraction, 0, 1)
  if source is not None:
    checks.check_count('backdoor', 'source', source)
  data_attacks.check_entry('backdoor', 'image', image)
  data_attacks.check_entry('backdoor', 'label', label)

  def apply(
    batch: base.Batch,
    is_byzantine: jax.Array,
    key: jax.Array | None = None,
    *,
    rank: jax.Array | None = None,
  ) -> base.Batch:
    images, labels, poisoned, rank = _read(
      'backdoor', batch, (image, label), is_byzantine, rank, fraction, key
    )
    data_attacks.check_class('backdoor', 'target', target, target, labels)
    if source is not None:
      data_attacks.check_class('backdoor', 'source', source, source, labels)
      poisoned &= labels == source
    marked = jax.vmap(trigger.apply)(images, rank % trigger.num_parts)
    mask = data_attacks.rows_of(poisoned, images)
    return data_attacks.write(
      batch,
      {
        image: jnp.where(mask, marked, images),
        label: jnp.where(poisoned, target, labels).astype(labels.dtype),
      },
    )

  return apply


@recipes.factory
def edge_case(
  pool: jax.Array | Any,
  *,
  target: int,
  fraction: base.Scalar = 0.5,
  image: str | int = 0,
  label: str | int = -1,
) -> base.DataAttack:
  """Byzantine workers teach a wrong label for rare inputs, without a trigger.

  As `backdoor`, but the poisoned examples are drawn from a pool of images that
  honest workers rarely have. Measure the attack on other images of this kind,
  by `analysis.attack_success_rate(..., trigger=None)`.

  Args:
    pool: images `[m, H, W, C]`, m >= 1, in the units of the images in a batch.
    target: the label of the images from the pool, a Python int.
    fraction: replaced share of a batch, in [0, 1]; may be traced.
    image: position of the images in a batch, as for `backdoor`.
    label: position of the labels in a batch, as for `backdoor`.

  Returns:
    A data attack like that of `backdoor`. Without a key the images of the pool
    are taken in order.

  Raises:
    ValueError: as `backdoor`, or if the pool is not an array of images; at
      trace time, if it does not fit into integer pixels.

  References:
    Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos,
    2020, arXiv:2007.05084.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.edge_case(jnp.ones([3, 2, 2, 1]), target=1)
    >>> batch = (jnp.zeros([2, 4, 2, 2, 1]), jnp.zeros([2, 4], int))
    >>> images, labels = attack(batch, jnp.array([True, False]), None)
    >>> images.sum([2, 3, 4])
    Array([[4., 4., 0., 0.],
           [0., 0., 0., 0.]], dtype=float32)
  """
  if jnp.ndim(pool) != 4 or not len(pool):
    raise ValueError(
      'edge_case needs pool to be images [m, H, W, C], m at least 1, got the'
      f' shape {list(jnp.shape(pool))}'
    )
  checks.check_count('edge_case', 'target', target)
  checks.check_range('edge_case', 'fraction', fraction, 0, 1)
  data_attacks.check_entry('edge_case', 'image', image)
  data_attacks.check_entry('edge_case', 'label', label)

  def apply(
    batch: base.Batch,
    is_byzantine: jax.Array,
    key: jax.Array | None = None,
    *,
    rank: jax.Array | None = None,
  ) -> base.Batch:
    images, labels, poisoned, rank = _read(
      'edge_case', batch, (image, label), is_byzantine, rank, fraction, key
    )
    data_attacks.check_class('edge_case', 'target', target, target, labels)
    if images.shape[-3:] != jnp.shape(pool)[1:]:
      raise ValueError(
        f'edge_case needs a pool of images {list(images.shape[-3:])}, got'
        f' {list(jnp.shape(pool)[1:])}'
      )
    _check_pixels(pool, images.dtype)
    b = math.prod(labels.shape[1:])
    if key is None:
      chosen = jnp.broadcast_to(jnp.arange(b) % len(pool), (len(rank), b))
    else:
      chosen = jax.vmap(
        lambda r: jax.random.randint(
          jax.random.fold_in(jax.random.fold_in(key, 1), r), [b], 0, len(pool)
        )
      )(rank)
    drawn = jnp.asarray(pool, images.dtype)[chosen].reshape(images.shape)
    mask = data_attacks.rows_of(poisoned, images)
    return data_attacks.write(
      batch,
      {
        image: jnp.where(mask, drawn, images),
        label: jnp.where(poisoned, target, labels).astype(labels.dtype),
      },
    )

  return apply


def _check_pixels(pool: Any, dtype: Any) -> None:
  """Raises ValueError if the pool has pixels that the dtype would change."""
  if not jnp.issubdtype(dtype, jnp.integer) or isinstance(
    pool, jax.core.Tracer
  ):
    return
  values, limits = np.asarray(pool, float), jnp.iinfo(dtype)
  fits = (values >= limits.min) & (values <= limits.max)
  if not np.all(fits & (values == np.round(values))):
    raise ValueError(
      'edge_case needs pool to hold integers that fit into pixels of'
      f' {dtype}, got values from {values.min()} to {values.max()}'
    )


def _read(
  name: str,
  batch: base.Batch,
  entries: tuple[str | int, str | int],
  is_byzantine: jax.Array,
  rank: jax.Array | None,
  fraction: Any,
  key: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Images, labels, which of them are poisoned, and the rank of each worker.

  The rank of who does not attack is 0.
  """
  image, label = entries
  byzantine = data_attacks.mask_of(name, is_byzantine)
  labels = data_attacks.read_labels(name, batch, label, len(byzantine))
  images = data_attacks.read_images(name, batch, image, labels)
  rank = data_attacks.ranks(byzantine) if rank is None else rank
  rank = jnp.maximum(rank, 0)
  poisoned = _first(labels, fraction, key, rank)
  poisoned &= data_attacks.rows_of(byzantine, labels)
  return images, labels, poisoned, rank


def _first(
  labels: jax.Array, fraction: Any, key: jax.Array | None, rank: jax.Array
) -> jax.Array:
  """The share of every batch that is poisoned, its first examples: bool."""
  n, b = len(labels), math.prod(labels.shape[1:])
  rounding = jnp.zeros([n])
  if key is not None:
    # Of the worker, so that it is the same on any number of devices.
    rounding = jax.vmap(
      lambda r: jax.random.uniform(jax.random.fold_in(key, r))
    )(rank)
  count = jnp.floor(fraction * b + rounding)
  return (jnp.arange(b)[None] < count[:, None]).reshape(labels.shape)
