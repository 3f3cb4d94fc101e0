"""Label poisoning: honest training on permuted or least likely labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, data_attacks, recipes

_NAME = 'label_poison'


@recipes.factory
def label_poison(
  num_classes: int,
  *,
  logits_fn: Callable[..., jax.Array] | None = None,
  seed: int = 0,
  image: str | int = 0,
  label: str | int = -1,
) -> base.DataAttack:
  """Byzantine workers compute honest gradients on labels that are always wrong.

  Static: `y <- p(y)`, with p a random permutation without fixed points, the
  same in all rounds. (`label_flip` is the permutation `K - 1 - y`.) Dynamic,
  with a `logits_fn`: `y <- argmin_k f_k(x)`, the label that the server's model
  finds least likely. That is the model at the start of the round, for all local
  steps.

  Args:
    num_classes: K >= 2, a Python int; labels are in `0 ... K - 1`.
    logits_fn: `(params, images [m, ...]) -> logits float[m, K]`, for dynamic
      labels; None for static ones.
    seed: the seed of the permutation, a Python int.
    image: position of the images in a batch, for dynamic labels: the index in a
      tuple, (images, labels) by default, or the key in a mapping.
    label: position of the labels, likewise.

  Returns:
    A data attack `(batch, is_byzantine bool[n], key, *, params=None) -> batch`;
    labels are integers `[n, ...]`. The key is not used. Rounds with a server
    pass the parameters.

  Raises:
    TypeError: if `logits_fn` is not a function.
    ValueError: if an argument has the wrong type or range; at trace time, if
      the batch lacks this entry, its labels are not integers `[n, ...]`, or K -
      1 does not fit into their dtype; for dynamic labels, if the round passes
      no parameters, as `gossip_round`.

  References:
    Peng, Li, Vlaski, Ling, 2024, arXiv:2404.13647.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> batch = (jnp.zeros([2, 3]), jnp.array([[0, 1, 2], [0, 1, 2]]))
    >>> attack = byzjax.label_poison(3)
    >>> poisoned = attack(batch, jnp.array([True, False]), None)[1]
    >>> bool((poisoned[0] == batch[1][0]).any()), poisoned[1]
    (False, Array([0, 1, 2], dtype=int32))
  """
  name = _NAME
  checks.check_count(name, 'num_classes', num_classes, 2)
  if logits_fn is not None:
    checks.check_function(name, 'logits_fn', logits_fn)
  checks.check_count(name, 'seed', seed)
  data_attacks.check_entry(name, 'image', image)
  data_attacks.check_entry(name, 'label', label)
  # One cycle through all labels has no fixed point.
  order = np.random.default_rng(seed).permutation(num_classes)
  table = np.empty(num_classes, np.int32)
  table[order] = np.roll(order, -1)

  def apply(
    batch: base.Batch,
    is_byzantine: jax.Array,
    key: jax.Array | None = None,
    *,
    params: base.Params | None = None,
  ) -> base.Batch:
    del key
    byzantine = data_attacks.mask_of(name, is_byzantine)
    labels = data_attacks.read_labels(name, batch, label, len(byzantine))
    data_attacks.check_class(
      name, 'num_classes', num_classes, num_classes - 1, labels
    )
    if logits_fn is None:
      wrong = jnp.asarray(table)[labels]
    else:
      images = data_attacks.read(name, 'image', batch, image)
      wrong = _least_likely(logits_fn, num_classes, params, images, labels)
    mask = data_attacks.rows_of(byzantine, labels)
    changed = jnp.where(mask, wrong.astype(labels.dtype), labels)
    return data_attacks.write(batch, {label: changed})

  return apply


def _least_likely(logits_fn, num_classes, params, images, labels):
  """The class that the model finds least likely, for every image."""
  if params is None:
    raise ValueError(
      f'{_NAME} needs params for its logits_fn, but this round does not pass'
      ' them: use static labels (logits_fn=None)'
    )
  logits = logits_fn(params, images.reshape(-1, *images.shape[labels.ndim :]))
  if logits.shape != (labels.size, num_classes):
    raise ValueError(
      f'{_NAME} needs logits_fn to return logits [{labels.size},'
      f' {num_classes}], got the shape {list(logits.shape)}'
    )
  return jnp.argmin(logits, -1).reshape(labels.shape)
