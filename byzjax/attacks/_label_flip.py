"""Label flip: honest work on wrong labels."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes


@recipes.factory
def label_flip(num_classes: int, *, label: str | int = -1) -> base.DataAttack:
  """Attackers compute honestly, on labels counted from the other end.

  `y <- K - 1 - y` in the batches of Byzantine workers, before the gradients.

  Args:
    num_classes: K >= 2, a Python int; labels are in `0 ... K - 1`.
    label: where a batch keeps its labels: the index in a tuple, (images,
      labels) by default, or the key in a mapping.

  Returns:
    A data attack `(batch, is_byzantine bool[n], key) -> batch`; labels are
    integers `[n, ...]`. The key is not used.

  Raises:
    ValueError: if K is not an int of at least 2; at trace time, if the batch
      has no such entry or its labels are not integers `[n, ...]`.

  References:
    Tolpegin, Truex, Gursoy, Liu, 2020, arXiv:2007.08432.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> batch = (jnp.zeros([2, 3]), jnp.array([[0, 1, 9], [0, 1, 9]]))
    >>> attack = byzjax.label_flip(10)
    >>> attack(batch, jnp.array([True, False]), None)[1]
    Array([[9, 8, 0],
           [0, 1, 9]], dtype=int32)
  """
  checks.check_count('label_flip', 'num_classes', num_classes, 2)
  if isinstance(label, bool) or not isinstance(label, (int, str)):
    raise ValueError(
      'label_flip needs label to be the index or the key of the labels in a'
      f' batch, got {label!r}'
    )

  def apply(
    batch: base.Batch, is_byzantine: jax.Array, key: jax.Array | None = None
  ) -> base.Batch:
    del key
    byzantine = checks.byzantine_mask(
      'label_flip', is_byzantine, len(is_byzantine)
    )
    n = len(byzantine)

    def flip(labels):
      whole = jnp.issubdtype(jnp.result_type(labels), jnp.integer)
      if jnp.shape(labels)[:1] != (n,) or not whole:
        raise ValueError(
          f'label_flip needs integer labels [{n}, ...], got'
          f' {getattr(labels, "dtype", "dtype")}{list(jnp.shape(labels))}'
        )
      mask = byzantine.reshape((-1,) + (1,) * (labels.ndim - 1))
      return jnp.where(mask, num_classes - 1 - labels, labels)

    if isinstance(batch, Mapping) and label in batch:
      return {**batch, label: flip(batch[label])}
    indices = range(-len(batch), len(batch))
    if isinstance(batch, tuple) and isinstance(label, int) and label in indices:
      parts = list(batch)
      parts[label] = flip(parts[label])
      return batch._make(parts) if hasattr(batch, '_make') else tuple(parts)
    raise ValueError(
      f'label_flip finds no labels {label!r} in a batch of type'
      f' {type(batch).__name__}: give label= the index or the key of the labels'
    )

  return apply
