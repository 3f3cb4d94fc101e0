"""What every attack on messages is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, draws, flat, layouts, reductions


class View(NamedTuple):
  """What the attackers see of one round.

  Attributes:
    x: float[n, d], the messages; with an `axis_name`, the local coordinates.
    is_honest: bool[n], the messages to learn from. Honest ones with a NaN or
      inf are left out like the Byzantine ones: one of them would turn the
      attack into a NaN that every rule masks.
    is_byzantine: bool[n], the rows to overwrite.
    key: for attacks that draw, or None.
    axis_name: mesh axes over which the coordinates are split.
    num_coordinates: of the whole model, without padding.
    coordinates: int32[d], their numbers in the whole model, where they are not
      one stretch of it for every device; or None.
    honest_mean: float[d], of the messages to learn from; None if it has still
      to be taken (`mean_of`).
  """

  x: jax.Array
  is_honest: jax.Array
  is_byzantine: jax.Array
  key: jax.Array | None
  axis_name: base.AxisName
  num_coordinates: int
  coordinates: jax.Array | None = None
  honest_mean: jax.Array | None = None


def mean_of(view: View) -> jax.Array:
  """The mean of the messages to learn from: float[d]."""
  if view.honest_mean is not None:
    return view.honest_mean
  return reductions.rows_mean(view.x, view.is_honest)


def overwrite(
  messages: base.Messages, malicious: base.Messages, is_byzantine: jax.Array
) -> base.Messages:
  """Honest rows as they are, Byzantine rows from `malicious` ([n or 1, ..]).

  Whole numbers become float32, as they do where messages are made flat.
  """

  def leaf(x, bad):
    mask = is_byzantine.reshape((-1,) + (1,) * (x.ndim - 1))
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    dtype = x.dtype if is_float else jnp.float32
    return jnp.where(mask, bad.astype(dtype), x.astype(dtype))

  return jax.tree.map(leaf, messages, malicious)


def mask_of(
  attack: str, messages: base.Messages, is_byzantine: Any
) -> jax.Array:
  """The mask as bool[n]; ValueError unless it has an entry per message."""
  n = checks.num_workers(f'{attack}: messages', messages)
  return checks.byzantine_mask(attack, is_byzantine, n)


def check_ddof(attack: str, ddof: Any) -> None:
  """Raises ValueError unless `ddof` is 0 or 1."""
  if isinstance(ddof, bool) or ddof not in (0, 1):
    raise ValueError(f'{attack} needs ddof to be 0 or 1, got {ddof!r}')


Init = Callable[[base.Params], base.State]
Observe = Callable[[base.State, base.Aggregate], base.State]


def from_view(
  name: str,
  row_fn: Callable[[View, base.State], tuple[jax.Array, base.State]],
  init: Init = optax.init_empty_state,
  observe: Observe | None = None,
) -> base.Attack:
  """An attack whose rows are all the same, made of the honest messages.

  Args:
    name: of the attack, for errors.
    row_fn: `(view, state) -> (row float[d], state)`; only rows of the view
      where `is_honest` may be read.
    init: `params -> state`.
    observe: `(state, aggregate) -> state`, or None.
  """

  def send(messages, state, *, is_byzantine, **knowledge):
    view, layout = view_of(name, messages, is_byzantine, **knowledge)
    row, state = row_fn(view, state)
    return layout.unravel(row), state

  def apply(messages, state, *, is_byzantine, **knowledge):
    row, state = send(messages, state, is_byzantine=is_byzantine, **knowledge)
    common = base.CommonRow(row, mask_of(name, messages, is_byzantine))
    return layouts.written(messages, common), state

  return base.Attack(init, apply, observe, send, reads_own=False)


def from_rows(
  name: str,
  row_fn: Callable[[View, base.State], tuple[Callable, base.State]],
  init: Init = optax.init_empty_state,
  *,
  reads_own: bool = False,
) -> base.Attack:
  """An attack in which each worker sends a row of its own.

  `row_fn(view, state) -> (row_of, state)`, and `row_of(worker) -> float[d]`.
  Other arguments as for `from_view`; `reads_own` as in `Attack`.
  """

  def apply(messages, state, *, is_byzantine, **knowledge):
    view, layout = view_of(name, messages, is_byzantine, **knowledge)
    row_of, state = row_fn(view, state)
    rows = _replace_rows(view.x, row_of, view.is_byzantine)
    return layout.unravel_rows(rows), state

  return base.Attack(init, apply, reads_own=reads_own)


def view_of(
  name: str,
  messages: base.Messages,
  is_byzantine: Any,
  *,
  key: jax.Array | None = None,
  axis_name: base.AxisName = None,
  num_coordinates: int | None = None,
  coordinates: jax.Array | None = None,
  is_finite: jax.Array | None = None,
  honest_mean: jax.Array | None = None,
  **knowledge: Any,
) -> tuple[View, flat.RowLayout]:
  """What the attackers see, from the arguments of `Attack.apply`."""
  del knowledge
  is_byzantine = mask_of(name, messages, is_byzantine)
  x, layout = flat.ravel_rows(name, messages)
  if is_finite is None:
    is_finite = reductions.finite_rows(x, axis_name=axis_name)
  view = View(
    x,
    ~is_byzantine & is_finite,
    is_byzantine,
    key,
    axis_name,
    layout.size if num_coordinates is None else num_coordinates,
    coordinates,
    honest_mean,
  )
  return view, layout


def from_honest(name: str, row_fn: Callable[[View], jax.Array]) -> base.Attack:
  """An attack without state: `from_view` with `view -> row float[d]`."""
  return from_view(name, lambda view, state: (row_fn(view), state))


def _replace_rows(
  x: jax.Array, row_of: Callable[[jax.Array], jax.Array], mask: jax.Array
) -> jax.Array:
  """`[n, d]` with `row_of(i)` [d] in place of the rows i where `mask`."""
  if jax.default_backend() != 'cpu':
    rows = jax.vmap(row_of)(jnp.arange(x.shape[0]))
    return jnp.where(mask[:, None], rows.astype(x.dtype), x)

  # XLA:CPU would fuse the computation of the row into one select, and so do it
  # n times; it cannot fuse it into a loop.
  def replace(i, x):
    old = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    new = jax.lax.cond(mask[i], lambda: row_of(i).astype(x.dtype), lambda: old)
    return jax.lax.dynamic_update_index_in_dim(x, new, i, 0)

  return jax.lax.fori_loop(0, x.shape[0], replace, x)


# Draws, which do not depend on the number of devices.


require_key = draws.require_key


def draw_row(
  sampler: Callable[..., jax.Array], view: View, worker: int | jax.Array
) -> jax.Array:
  """A draw [d] of `sampler(key, shape, dtype)`, for one worker.

  From the key of the view, for its coordinates, in its dtype.
  """
  key = require_key('the attack', view.key)
  worker_key = jax.random.fold_in(key, worker)
  return draws.draw(
    sampler, worker_key, view.x, view.axis_name, view.coordinates
  )


# Vectors of coordinates that may be split over devices.


def columns(view: View) -> jax.Array:
  """One for every coordinate of the model and zero for padding: float[d]."""
  coordinates = view.coordinates
  if coordinates is None:
    coordinates = layouts.coordinates(view.x.shape[1], view.axis_name)
  return (coordinates < view.num_coordinates).astype(view.x.dtype)


def norm(vector: jax.Array, axis_name: base.AxisName) -> jax.Array:
  """`|v|`: [d] -> []."""
  return reductions.sqrt(
    reductions.squared_norms(vector[None], axis_name=axis_name)[0]
  )


def unit(vector: jax.Array, axis_name: base.AxisName) -> jax.Array:
  """`v / |v|`, and zero for zero: [d] -> [d]."""
  length = norm(vector, axis_name)
  return vector / jnp.where(length > 0, length, 1)


# State: trees shaped like the parameters, whose dtypes never change.


def recall(name: str, tree: base.Params, view: View) -> jax.Array:
  """A remembered vector: [d]."""
  layout = flat.row_layout(tree)
  checks.check_remembered(name, layout.size, view.x.shape[1])
  return layout.ravel(tree).astype(view.x.dtype)


def remember(tree: base.Params, vector: jax.Array) -> base.Params:
  """The vector [d] in place of what the tree held."""
  return flat.row_layout(tree).unravel(vector)
