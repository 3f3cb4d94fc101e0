"""The arguments that attacks on data get from rounds, and parts of a batch."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks


class JointAttack(NamedTuple):
  """An attack on data and one on messages; see `joint_attack`.

  A call is the attack on data alone.

  Attributes:
    data_attack: on the batches of Byzantine workers.
    message_attack: on the messages that they then send.
  """

  data_attack: base.DataAttack
  message_attack: base.Attack

  def __call__(
    self,
    batch: base.Batch,
    is_byzantine: jax.Array,
    key: jax.Array | None = None,
    **known: Any,
  ) -> base.Batch:
    """The batches after the attack on data."""
    return self.data_attack(batch, is_byzantine, key, **known)


def ranks(is_byzantine: jax.Array) -> jax.Array:
  """The index of each Byzantine worker among them: int32[n], others -1."""
  return jnp.where(is_byzantine, jnp.cumsum(is_byzantine) - 1, -1)


def ranks_of(context: Any) -> jax.Array:
  """The ranks of the workers of this device, from a `WorkContext`: int32[k]."""
  k = len(context.ids)
  first: Any = 0
  if context.axis_name is not None:
    first = lax.axis_index(context.axis_name) * k
  every = ranks(context.cohort.is_byzantine)
  return lax.dynamic_slice_in_dim(every, first, k)


def corrupt(
  attack: base.DataAttack,
  batch: base.Batch,
  attackers: jax.Array,
  key: jax.Array,
  params: base.Params | None = None,
) -> base.Batch:
  """The batch `[n, ...]` after the attack, called with the keywords it takes.

  `attackers` is bool[n], or int32[n] as `ranks` makes them.
  """
  if attackers.dtype == jnp.bool_:
    attackers = ranks(attackers)
  known = {'rank': attackers, 'params': params}
  function: Any = getattr(attack, 'function', attack)  # inside of a `Recorded`
  asked = inspect.signature(function).parameters
  told = {name: known[name] for name in known if name in asked}
  return attack(batch, attackers >= 0, key, **told)


def check_entry(rule: str, name: str, entry: Any) -> None:
  """Raises ValueError unless this is the index or the key of a part."""
  if isinstance(entry, bool) or not isinstance(entry, (int, str)):
    raise ValueError(
      f'{rule} needs {name} to be the index or the key of the {name}s in a'
      f' batch, got {entry!r}'
    )


def read(rule: str, name: str, batch: base.Batch, entry: str | int) -> Any:
  """The part of a batch at an index or a key, or a ValueError."""
  if isinstance(batch, Mapping):
    found = entry in batch
  else:
    found = isinstance(batch, tuple) and entry in range(-len(batch), len(batch))
  if not found:
    raise ValueError(
      f'{rule} finds no {name}s {entry!r} in a batch of type'
      f' {type(batch).__name__}: give {name}= the index or the key of the'
      f' {name}s'
    )
  return batch[entry]


def write(batch: base.Batch, parts: Mapping[str | int, Any]) -> base.Batch:
  """The batch with other parts at these indices or keys."""
  if isinstance(batch, Mapping):
    return {**batch, **parts}
  changed: Any = list(batch)
  for index, part in parts.items():
    changed[index] = part
  return batch._make(changed) if hasattr(batch, '_make') else tuple(changed)


def read_labels(
  rule: str, batch: base.Batch, entry: str | int, n: int
) -> jax.Array:
  """The labels of a batch, or a ValueError unless they are integers [n, ..]."""
  labels = read(rule, 'label', batch, entry)
  whole = jnp.issubdtype(jnp.result_type(labels), jnp.integer)
  if jnp.shape(labels)[:1] != (n,) or not whole:
    raise ValueError(
      f'{rule} needs integer labels [{n}, ...], got'
      f' {getattr(labels, "dtype", "dtype")}{list(jnp.shape(labels))}'
    )
  return labels


def check_class(
  rule: str, name: str, value: int, highest: int, labels: jax.Array
) -> None:
  """Raises ValueError unless the dtype of the labels has the highest class.

  Another class would wrap around into one that nobody asked for.
  """
  dtype = jnp.result_type(labels)
  limit = jnp.iinfo(dtype).max
  if highest > limit:
    raise ValueError(
      f'{rule} needs classes that fit into labels of {dtype}, at most {limit},'
      f' got {name}={value}'
    )


def read_images(
  rule: str, batch: base.Batch, entry: str | int, labels: jax.Array
) -> jax.Array:
  """The images of a batch, or a ValueError unless there is one per label."""
  images = read(rule, 'image', batch, entry)
  shape = jnp.shape(images)
  if shape[:-3] != labels.shape or len(shape) != labels.ndim + 3:
    raise ValueError(
      f'{rule} needs images {list(labels.shape)} + [H, W, C], one for each'
      f' label, got the shape {list(shape)}'
    )
  return images


def rows_of(mask: jax.Array, like: jax.Array) -> jax.Array:
  """The mask with axes of length one appended, to broadcast with `like`."""
  return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def mask_of(rule: str, is_byzantine: Any) -> jax.Array:
  """The mask as bool[n], or a ValueError."""
  return checks.byzantine_mask(rule, is_byzantine, len(is_byzantine))
