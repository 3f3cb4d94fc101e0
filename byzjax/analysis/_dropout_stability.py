"""Dropout stability: the change of the loss when hidden units are dropped."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import checks
from byzjax.analysis import _units


class DropoutStability(NamedTuple):
  """The losses of a network and of random subnetworks.

  Attributes:
    loss: float[], of the whole network.
    dropped: float[num_draws], of the subnetworks.
    mean: float[], of `|loss - dropped|` over the draws.
    std: float[], its standard deviation.
    max: float[], its maximum: the network is eps-dropout stable with this eps
      for all draws.
  """

  loss: jax.Array
  dropped: jax.Array
  mean: jax.Array
  std: jax.Array
  max: jax.Array


def dropout_stability(
  loss_fn: Callable[[_units.Layers], jax.Array],
  layers: _units.Layers,
  *,
  num_kept: int | Sequence[int] | None = None,
  num_draws: int = 10,
  key: jax.Array,
) -> DropoutStability:
  """The change of the loss when random hidden units are dropped.

  `|L(theta) - L(theta_A)|` for random sets A, where theta_A keeps the M_l units
  in A_l of each hidden layer l, with outgoing weights multiplied by N_l / M_l.
  For solutions of stochastic gradient descent in mean-field scaling, the change
  decreases with the number of kept units, about as 1 / sqrt(M), for any width;
  then the loss on `dropout_path` is low.

  Args:
    loss_fn: `layers -> scalar`, the loss on fixed data.
    layers: L >= 2 pairs of a kernel float[in, out] and a bias float[out].
    num_kept: M_l, as in `draw_units`; None for half of each hidden layer.
    num_draws: number of random sets A, a Python int >= 1.
    key: for the draws.

  Returns:
    A `DropoutStability`. The function is pure: jit it with the data of
    `loss_fn` as an argument, and map it over several networks.

  Raises:
    ValueError: if a count is not an int in its range, or the layers have
      inconsistent shapes.

  References:
    Shevchenko, Mondelli, 2020, arXiv:1912.10095.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> layers = ((jnp.ones((1, 4)), jnp.zeros(4)),
    ...           (jnp.ones((4, 1)), jnp.ones(1)))
    >>> def loss_fn(layers):
    ...   (kernel, bias), (top, top_bias) = layers
    ...   return jnp.sum(jax.nn.relu(kernel[0] + bias) @ top + top_bias)
    >>> stability = byzjax.analysis.dropout_stability(
    ...   loss_fn, layers, num_kept=3, key=jax.random.key(0))
    >>> print(stability.loss, stability.max < 1e-5)  # equal units
    5.0 True
  """
  checks.check_count('dropout_stability', 'num_draws', num_draws, 1)
  checks.check_function('dropout_stability', 'loss_fn', loss_fn)
  checks.check_key('dropout_stability', 'key', key)
  _units.hidden_widths('dropout_stability', layers)

  def of_draw(key):
    keep = _units.draw_units(key, layers, num_kept=num_kept)
    return loss_fn(_units.drop_units(layers, keep))

  loss = loss_fn(layers)
  dropped = jax.vmap(of_draw)(jax.random.split(key, num_draws))
  gaps = jnp.abs(loss - dropped)
  return DropoutStability(loss, dropped, gaps.mean(), gaps.std(), gaps.max())
