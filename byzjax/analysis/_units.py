"""Hidden units of a dense network: dropping and permuting them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import checks

# Per layer: kernel [in, out] and bias [out]. The units of all layers but the
# last are hidden ones.
Layers: TypeAlias = Sequence[tuple[jax.Array, jax.Array]]


def draw_units(
  key: jax.Array,
  layers: Layers,
  *,
  num_kept: int | Sequence[int] | None = None,
) -> tuple[jax.Array, ...]:
  """Draws random hidden units of each layer, uniformly over subsets.

  Args:
    key: a key of `jax.random.key`.
    layers: L >= 2 pairs of a kernel float[in, out] and a bias float[out].
    num_kept: M_l, from 1 to the width N_l: one Python int for all hidden
      layers, or one for each; None for half of each, N_l // 2 or at least 1.

  Returns:
    A tuple of int32[M_l], one for each of the L - 1 hidden layers: distinct
    indices of units in random order, for `drop_units` and `dropout_path`.

  Raises:
    ValueError: if the layers have inconsistent shapes, or a count is not an int
      in its range.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> layers = ((jnp.ones((2, 6)), jnp.ones(6)),
    ...           (jnp.ones((6, 1)), jnp.ones(1)))
    >>> (units,) = byzjax.analysis.draw_units(jax.random.key(0), layers)
    >>> units.shape, len(set(units.tolist()))
    ((3,), 3)
  """
  name = 'draw_units'
  widths = hidden_widths(name, layers)
  checks.check_key(name, 'key', key)
  counts: Any = num_kept
  if num_kept is None:
    counts = [max(width // 2, 1) for width in widths]
  elif checks.is_whole(num_kept):
    counts = [num_kept] * len(widths)
  checks.check_sequence(name, 'num_kept', counts)
  if len(counts) != len(widths):
    raise ValueError(
      f'{name} needs num_kept to have one entry per hidden layer, got'
      f' {list(counts)} for the widths {widths}'
    )
  for width, count in zip(widths, counts):
    checks.check_count(name, 'num_kept', count, 1)
    if count > width:
      raise ValueError(f'{name} needs num_kept <= width, got {count} > {width}')
  keys = jax.random.split(key, len(widths))
  return tuple(
    jax.random.permutation(k, width)[:count].astype(jnp.int32)
    for k, width, count in zip(keys, widths, counts)
  )


def drop_units(layers: Layers, keep: Sequence[jax.Array]) -> Layers:
  """Drops hidden units of a network and rescales the remaining ones.

  The outgoing weights of unit i in hidden layer l are multiplied by N_l / M_l
  if the unit is one of the M_l kept ones of N_l, and set to zero otherwise;
  incoming weights and the bias do not change. For one hidden layer in
  mean-field form, f(x) = (1/N) sum_i a_i s(w_i x), this is (1/M) sum_{i kept}
  a_i s(w_i x). If all units are kept, nothing changes; the output does not
  change either if the units of a layer are equal.

  Args:
    layers: L >= 2 pairs of a kernel float[in, out] and a bias float[out].
    keep: for each hidden layer the units to keep, int[M_l], distinct, as from
      `draw_units`. Their values may be traced.

  Returns:
    The layers, of the same shapes and dtypes.

  Raises:
    ValueError: if the layers have inconsistent shapes, or `keep` does not fit.

  References:
    Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, 2014, JMLR 15;
    as a property of solutions: Shevchenko, Mondelli, 2020, arXiv:1912.10095.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> layers = ((jnp.ones((1, 4)), jnp.zeros(4)),
    ...           (jnp.ones((4, 1)), jnp.ones(1)))
    >>> dropped = byzjax.analysis.drop_units(layers, [jnp.array([0, 2])])
    >>> dropped[1][0].ravel().tolist()
    [2.0, 0.0, 2.0, 0.0]
  """
  check_keep('drop_units', keep, hidden_widths('drop_units', layers))
  return drop_from(layers, keep, 0)


def drop_from(layers: Layers, keep: Sequence[jax.Array], level: int) -> Layers:
  """Drops units of the hidden layers from number `level` on, and rescales."""
  dropped = [layers[0]]
  for number, (units, (kernel, bias)) in enumerate(zip(keep, layers[1:])):
    if number >= level:
      width = kernel.shape[0]
      is_kept = jnp.zeros((width, 1), bool).at[units].set(True)
      # By selection: what is dropped may be infinite.
      kernel = jnp.where(is_kept, kernel * (width / units.shape[0]), 0)
    dropped.append((kernel, bias))
  return tuple(dropped)


def permute_units(layers: Layers, permutations: Sequence[jax.Array]) -> Layers:
  """Permutes the hidden units of a network without changing its function.

  The new unit i of hidden layer l is the old unit `permutations[l][i]`.

  Args:
    layers: L >= 2 pairs of a kernel float[in, out] and a bias float[out].
    permutations: for each hidden layer int[N_l], as from `match_permutation`.

  Returns:
    The layers, of the same shapes and dtypes.

  Raises:
    ValueError: if the layers have inconsistent shapes, or a permutation does
      not fit its layer.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> layers = (
    ...   (jnp.array([[1., 2.]]), jnp.array([3., 4.])),
    ...   (jnp.array([[5.], [6.]]), jnp.zeros(1)))
    >>> (kernel, bias), (top, _) = byzjax.analysis.permute_units(
    ...   layers, [jnp.array([1, 0])])
    >>> print(kernel, bias, top.ravel())
    [[2. 1.]] [4. 3.] [6. 5.]
  """
  name = 'permute_units'
  widths = hidden_widths(name, layers)
  check_keep(name, permutations, widths, whole=True)
  return select(layers, permutations)


def select(layers: Layers, units: Sequence[jax.Array]) -> Layers:
  """The network of some hidden units, in this order, without rescaling."""
  selected = []
  for number, (kernel, bias) in enumerate(layers):
    if number > 0:
      kernel = kernel[units[number - 1]]
    if number < len(units):
      kernel, bias = kernel[:, units[number]], bias[units[number]]
    selected.append((kernel, bias))
  return tuple(selected)


def hidden_widths(
  name: str, layers: Layers, argument: str = 'layers'
) -> list[int]:
  """The widths of the hidden layers, or an error that names the shapes."""
  checks.check_sequence(name, argument, layers)
  for layer in layers:
    checks.check_pair(name, f'{argument}: a layer', layer)
  shapes = [(jnp.shape(kernel), jnp.shape(bias)) for kernel, bias in layers]
  is_dense = len(shapes) >= 2 and all(
    len(kernel) == 2 and bias == kernel[1:] for kernel, bias in shapes
  )
  if not is_dense or any(
    below[0][1] != above[0][0] for below, above in zip(shapes, shapes[1:])
  ):
    raise ValueError(
      f'{name} needs {argument} to be at least two pairs of a kernel [in, out]'
      ' and a bias [out], where out of a layer equals in of the next, got'
      f' {shapes}'
    )
  return [bias[0] for _, bias in shapes[:-1]]


def check_keep(
  name: str, keep: Sequence[jax.Array], widths: Sequence[int], whole=False
) -> None:
  """Raises ValueError unless `keep` has distinct units of each hidden layer."""
  what = 'permutations' if whole else 'keep'
  checks.check_sequence(name, what, keep)
  shapes = [jnp.shape(units) for units in keep]
  fits = len(shapes) == len(widths) and all(
    len(shape) == 1
    and (shape[0] == width if whole else 1 <= shape[0] <= width)
    and jnp.issubdtype(jnp.result_type(units), jnp.integer)
    for units, shape, width in zip(keep, shapes, widths)
  )
  if not fits:
    length = 'N' if whole else 'M'
    raise ValueError(
      f'{name} needs {what} to be int[{length}] for each hidden layer, got the'
      f' shapes {shapes} for the widths {list(widths)}'
    )
  for units, width in zip(keep, widths):
    if isinstance(units, jax.core.Tracer):
      continue
    indices = np.asarray(units)
    if len(set(indices.tolist())) < len(indices) or not np.all(
      (indices >= 0) & (indices < width)
    ):
      raise ValueError(
        f'{name} needs {what} to hold distinct numbers from 0 to {width - 1},'
        f' got {indices}'
      )
