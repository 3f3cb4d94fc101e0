"""Weight matching: aligns the hidden units of two networks by permutation."""

import jax
import jax.numpy as jnp

from byzjax._src import checks, flat
from byzjax.analysis import _assignment, _units


def match_permutation(
  layers_a: _units.Layers, layers_b: _units.Layers, *, num_sweeps: int = 20
) -> tuple[jax.Array, ...]:
  """Permutations of hidden units that align one network with another.

  Weight matching (Git Re-Basin): minimises `|theta_a - p(theta_b)|` over
  permutations p. With the permutations of the layers below and above fixed,
  that of a layer is a linear assignment problem, solved exactly. Sweeps from
  the lowest hidden layer up repeat this, starting from the given order of
  units, until nothing changes. With one hidden layer the first sweep finds the
  optimum; with several it is a local optimum.

  Args:
    layers_a: L >= 2 pairs of a kernel float[in, out] and a bias float[out].
    layers_b: layers of the same shapes.
    num_sweeps: maximum number of sweeps, a Python int >= 1.

  Returns:
    For each hidden layer int32[N_l]: unit i of a is matched with unit `p[i]` of
    b, so `permute_units(layers_b, p)` is at least as near to a as b is. The
    function is pure and works in jit and vmap; it takes O(N^3) for the width N.

  Raises:
    ValueError: if the layers have inconsistent shapes, or the number of sweeps
      is below 1.

  References:
    Ainsworth, Hayase, Srinivasa, 2023, arXiv:2209.04836.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> key = jax.random.key(0)
    >>> layers = ((jax.random.normal(key, (3, 4)), jnp.zeros(4)),
    ...           (jax.random.normal(key, (4, 2)), jnp.zeros(2)))
    >>> moved = byzjax.analysis.permute_units(layers, [jnp.array([2, 0, 3, 1])])
    >>> (order,) = byzjax.analysis.match_permutation(layers, moved)
    >>> order.tolist()
    [1, 3, 0, 2]
  """
  name = 'match_permutation'
  checks.check_count(name, 'num_sweeps', num_sweeps, 1)
  widths = _units.hidden_widths(name, layers_a, 'layers_a')
  _units.hidden_widths(name, layers_b, 'layers_b')
  shapes = [
    [x.shape for x in jax.tree.leaves(tuple(layers))]
    for layers in (layers_a, layers_b)
  ]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'{name} needs layers_a and layers_b to have the same shapes, got'
      f' {shapes[0]} and {shapes[1]}'
    )
  dtype = flat.compute_dtype(*jax.tree.leaves((layers_a, layers_b)))
  a, b = (
    [(kernel.astype(dtype), bias.astype(dtype)) for kernel, bias in layers]
    for layers in (layers_a, layers_b)
  )

  def sweep(permutations):
    chosen = list(permutations)
    for level, width in enumerate(widths):
      # All but this layer in its order; then one product per pair of units.
      chosen[level] = jnp.arange(width, dtype=jnp.int32)
      moved = _units.select(b, chosen)
      (below_a, bias_a), (above_a, _) = a[level], a[level + 1]
      (below_b, bias_b), (above_b, _) = moved[level], moved[level + 1]
      similarity = (
        jnp.matmul(below_a.T, below_b, precision='highest')
        + bias_a[:, None] * bias_b[None]
        + jnp.matmul(above_a, above_b.T, precision='highest')
      )
      chosen[level] = _assignment.linear_assignment(-similarity)
    return tuple(chosen)

  def distance(permutations):
    moved = _units.select(b, permutations)
    squares = [
      jnp.sum(jnp.square(x - y))
      for x, y in zip(jax.tree.leaves(tuple(a)), jax.tree.leaves(moved))
    ]
    return sum(squares[1:], squares[0])

  def improve(state):
    count, permutations, least, _ = state
    swept = sweep(permutations)
    now = distance(swept)
    is_better = now < least
    kept = jax.tree.map(
      lambda new, old: jnp.where(is_better, new, old), swept, permutations
    )
    return count + 1, kept, jnp.where(is_better, now, least), is_better

  start = tuple(jnp.arange(width, dtype=jnp.int32) for width in widths)
  return jax.lax.while_loop(
    lambda state: (state[0] < num_sweeps) & state[3],
    improve,
    (0, start, distance(start), jnp.array(True)),
  )[1]
