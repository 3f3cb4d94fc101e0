"""Dropout path: a piecewise-linear low-loss path between two networks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from byzjax._src import checks
from byzjax.analysis import _units


def dropout_path(
  layers_a: _units.Layers,
  layers_b: _units.Layers,
  *,
  keep: Sequence[jax.Array],
  same_units: bool = False,
) -> _units.Layers:
  r"""A piecewise-linear path between two networks through subnetworks of both.

  Each network can be moved to the subnetwork of its kept units, rescaled as by
  `drop_units`; and the subnetwork of one can replace that of the other while
  the units involved do not affect the output. A segment changes either weights
  of units whose output is not used, so that the loss is constant, or only
  weights of the last layer, so that the loss is convex. For a loss that is
  convex in the output of the network, the maximum loss on the path is therefore
  attained at a breakpoint:

  .. math::
    \max_{\mathrm{path}} L \le
      \max_{h} \{L(\theta), L(D_h \theta), L(\theta'), L(D_h \theta')\}

  with :math:`D_h` dropping units of the hidden layers h and above. The bound
  holds for every activation, for vector outputs, and for hidden biases, which
  count as inputs of a unit. It does not hold with batch normalisation.

  With one hidden layer: from theta to its subnetwork, 1 segment; to the other
  subnetwork, 3; to theta', 1. With H >= 2 hidden layers: 5 H - 3 segments from
  either end, dropping units from the top hidden layer to the lowest, and 3 in
  between. If both keep the same units, there are 2 more, because the subnetwork
  of theta' is first moved to other units.

  ======================  ===========  =========  ==============
  hidden layers           1            2          H >= 2
  ======================  ===========  =========  ==============
  segments                5            17         10 H - 3
  with `same_units`       7            19         10 H - 1
  ======================  ===========  =========  ==============

  The path depends on `keep`: a random choice (`draw_units`) works for wide
  networks trained by stochastic gradient descent; the best of several is
  better.

  Args:
    layers_a: theta, L >= 2 pairs of a kernel float[in, out] and a bias
      float[out]; H = L - 1.
    layers_b: theta', of the same shapes and dtypes.
    keep: for each hidden layer the units that theta keeps, int[M_l], distinct;
      their values may be traced. M_l < N_l with one hidden layer, and M_l <=
      N_l / 2 with several or with `same_units`.
    same_units: whether theta' keeps the same units. Otherwise it keeps other
      ones: with one hidden layer all other N - M, with several the N_l // 2
      lowest of the others.

  Returns:
    The S + 1 breakpoints: layers with leaves `[S + 1, *shape]`, the first theta
    and the last theta', for `loss_along_path`. The function is pure.

  Raises:
    ValueError: if the layers or `keep` have inconsistent shapes.

  References:
    Shevchenko, Mondelli, 2020, arXiv:1912.10095; several hidden layers:
    Kuditipudi, Wang, Lee, Zhang, Li, Hu, Arora, Ge, 2019, arXiv:1906.06247.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> def layers(seed):
    ...   k = jax.random.split(jax.random.key(seed))
    ...   return ((jax.random.normal(k[0], (3, 4)), jnp.zeros(4)),
    ...           (jax.random.normal(k[1], (4, 2)), jnp.zeros(2)))
    >>> path = byzjax.analysis.dropout_path(
    ...   layers(0), layers(1), keep=[jnp.array([0, 1])])
    >>> path[0][0].shape  # 5 segments
    (6, 3, 4)
  """
  name = 'dropout_path'
  widths = _check(name, layers_a, layers_b, keep, same_units)
  layers_a, layers_b = (
    tuple((kernel, bias) for kernel, bias in layers)
    for layers in (layers_a, layers_b)
  )
  is_deep = len(widths) > 1
  free = [_others(units, width) for units, width in zip(keep, widths)]
  keep_a, keep_b = list(keep), list(keep)
  if not same_units:
    keep_b = [
      units[: width // 2] if is_deep else units
      for units, width in zip(free, widths)
    ]
  down_a, part_a = _descend(layers_a, keep_a)
  down_b, part_b = _descend(layers_b, keep_b)
  if same_units:
    spare = [units[: len(k)] for units, k in zip(free, keep)]
    bridge = _replace(part_a, part_b, keep, spare, (), widths)
  else:
    bridge = [
      _both(old, keep_a, new, keep_b, widths)
      for old, new in [
        (part_a, _mute(part_b)),
        (_mute(part_a), part_b),
        (_nothing(part_a), part_b),
      ]
    ]
  if not is_deep:
    # Units that are idle go straight to what they will be.
    down_a, down_b, bridge = down_a[:-1], down_b[:-1], bridge[:-1]
  else:
    bridge = bridge[:-1]  # The last of the other descent.
  points = [*down_a, *bridge, *reversed(down_b)]
  return jax.tree.map(lambda *x: jnp.stack(x), *points)


def _descend(layers, keep):
  """From a network to its part, all else zero; and that part on its own."""
  widths = [bias.shape[0] for _, bias in layers[:-1]]
  top = len(widths) - 1
  spare = [
    _others(units, width)[: len(units)] for units, width in zip(keep, widths)
  ]
  points = [layers, _units.drop_from(layers, keep, top)]
  for level in reversed(range(top)):
    # Above this layer all is parts already, and this layer's units are next.
    above = slice(level + 1, None)
    old, new = (
      _units.select(_units.drop_from(layers, keep, h)[above], keep[above])
      for h in (level + 1, level)
    )
    points += _replace(
      old, new, keep[above], spare[above], layers[: level + 1], widths[above]
    )
  part = _units.select(_units.drop_from(layers, keep, 0), keep)
  return [*points, _place(part, keep, widths)], part


def _replace(old, new, kept, spare, lower, widths):
  """Five moves from `old` at the kept units to `new` there, on the same input.

  A copy at spare units, the output from there, `new` at the kept units, the
  output from there again, and nothing at the spare ones.
  """
  moves = [
    (old, _mute(new)),
    (_mute(old), new),
    (_mute(new), new),
    (new, _mute(new)),
    (new, _nothing(new)),
  ]
  return [
    (*lower, *_both(one, kept, other, spare, widths)) for one, other in moves
  ]


def _both(one, units, other, other_units, widths):
  """Two networks side by side, at units that differ; their outputs add."""
  placed = _place(one, units, widths), _place(other, other_units, widths)
  return jax.tree.map(jnp.add, *placed)


def _place(part, units, widths):
  """A network at these hidden units of a wider one, the others all zero."""
  layers = []
  for number, (kernel, bias) in enumerate(part):
    if number > 0:
      shape = (widths[number - 1], kernel.shape[1])
      kernel = jnp.zeros(shape, kernel.dtype).at[units[number - 1]].set(kernel)
    if number < len(units):
      kernel, bias = (
        jnp.zeros((*x.shape[:-1], widths[number]), x.dtype)
        .at[..., units[number]]
        .set(x)
        for x in (kernel, bias)
      )
    layers.append((kernel, bias))
  return tuple(layers)


def _mute(part):
  """A network whose output is zero, by its last layer."""
  return (*part[:-1], _nothing(part[-1]))


def _nothing(tree):
  return jax.tree.map(jnp.zeros_like, tree)


def _others(units: jax.Array, width: int) -> jax.Array:
  """The units that are not among these, in ascending order."""
  is_kept = jnp.zeros(width, bool).at[units].set(True)
  return jnp.argsort(is_kept, stable=True)[: width - len(units)]


def _check(name, layers_a, layers_b, keep, same_units) -> list[int]:
  widths = _units.hidden_widths(name, layers_a, 'layers_a')
  _units.hidden_widths(name, layers_b, 'layers_b')
  of_a, of_b = (
    [(x.shape, x.dtype.name) for x in jax.tree.leaves(tuple(layers))]
    for layers in (layers_a, layers_b)
  )
  if of_a != of_b:
    raise ValueError(
      f'{name} needs layers_a and layers_b to have the same shapes and dtypes,'
      f' got {of_a} and {of_b}'
    )
  _units.check_keep(name, keep, widths)
  checks.check_flag(name, 'same_units', same_units)
  for units, width in zip(keep, widths):
    most = width // 2 if same_units or len(widths) > 1 else width - 1
    if len(units) > most:
      raise ValueError(
        f'{name} needs keep to have at most {most} of {width} units of a layer,'
        f' got {len(units)}'
      )
  return widths
