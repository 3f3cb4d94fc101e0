"""Label flipping: honest training on wrong labels."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, data_attacks, recipes


@recipes.factory
def label_flip(num_classes: int, *, label: str | int = -1) -> base.DataAttack:
  """Byzantine workers compute honest gradients on flipped labels.

  `y <- K - 1 - y` in the batches of Byzantine workers, before the gradients.

  Args:
    num_classes: K >= 2, a Python int; labels are in `0 ... K - 1`.
    label: position of the labels in a batch: the index in a tuple, (images,
      labels) by default, or the key in a mapping.

  Returns:
    A data attack `(batch, is_byzantine bool[n], key) -> batch`; labels are
    integers `[n, ...]`. The key is not used.

  Raises:
    ValueError: if K is not an int of at least 2; at trace time, if the batch
      lacks this entry, its labels are not integers `[n, ...]`, or K - 1 does
      not fit into their dtype.

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
  data_attacks.check_entry('label_flip', 'label', label)

  def apply(
    batch: base.Batch, is_byzantine: jax.Array, key: jax.Array | None = None
  ) -> base.Batch:
    del key
    byzantine = data_attacks.mask_of('label_flip', is_byzantine)
    labels = data_attacks.read_labels(
      'label_flip', batch, label, len(byzantine)
    )
    data_attacks.check_class(
      'label_flip', 'num_classes', num_classes, num_classes - 1, labels
    )
    mask = data_attacks.rows_of(byzantine, labels)
    flipped = jnp.where(mask, num_classes - 1 - labels, labels)
    return data_attacks.write(batch, {label: flipped})

  return apply
