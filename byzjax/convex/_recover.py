"""The two-layer ReLU network of blocks of the convex program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat, reductions
from byzjax.convex import _losses


class Network(NamedTuple):
  """A two-layer ReLU network with one output, `(x U)_+ alpha`.

  Attributes:
    hidden: U, float[d, m]; column j is u_j.
    output: alpha, float[m].
  """

  hidden: jax.Array
  output: jax.Array


def recover_network(blocks: jax.Array) -> Network:
  """The two-layer ReLU network that corresponds to feasible blocks.

  `u = v_i / sqrt(|v_i|)`, `alpha = sqrt(|v_i|)`, and likewise for w_i with
  `alpha = -sqrt(|w_i|)`. If the blocks are feasible, its outputs on the
  examples equal `predict`, and `network_objective` equals `objective`;
  otherwise it is a different model. A zero block gives a unit with zero
  weights, so that shapes do not depend on values.

  Args:
    blocks: float[2, P, d], the v_i and the w_i.

  Returns:
    A `Network` of m = 2 P units.

  References:
    Pilanci, Ergen, 2020, arXiv:2002.10553.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> convex.recover_network(jnp.array([[[4., 0.]], [[0., 0.]]]))
    Network(hidden=Array([[2., 0.],
           [0., 0.]], dtype=float32), output=Array([ 2., -0.], dtype=float32))
  """
  norms = jnp.linalg.norm(blocks, axis=-1, keepdims=True)
  roots = jnp.sqrt(norms)
  hidden = blocks / jnp.where(norms > 0, roots, 1)
  signs = jnp.array([1, -1], roots.dtype)[:, None]
  return Network(
    hidden.reshape(-1, hidden.shape[-1]).T,
    (signs * roots[..., 0]).reshape(-1),
  )


def network_outputs(network: Network, x: jax.Array) -> jax.Array:
  """The outputs of a network: `sum_j (x u_j)_+ alpha_j` for every row of x.

  Args:
    network: a `Network`.
    x: float[n, d].

  Returns:
    float[n].

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> network = convex.Network(jnp.array([[1., -1.]]), jnp.array([1., 2.]))
    >>> convex.network_outputs(network, jnp.array([[3.], [-3.]]))
    Array([3., 6.], dtype=float32)
  """
  hidden = jax.nn.relu(reductions.matmul(x, network.hidden))
  return reductions.matmul(hidden, network.output)


def network_objective(
  network: Network,
  x: jax.Array,
  y: jax.Array,
  *,
  beta: base.Scalar,
  loss: str = 'squared',
) -> jax.Array:
  """The usual objective of training a network, which is not convex.

  `l(sum_j (X u_j)_+ alpha_j, y) + (beta / 2) sum_j (|u_j|^2 + alpha_j^2)`, with
  l as in `objective`. The convex program has the same minimum if it includes
  the arrangements of an optimal network.

  Args:
    network: a `Network`.
    x: X, float[n, d].
    y: float[n]; -1 or 1 unless the loss is squared.
    beta: `>= 0`; may be traced.
    loss: 'squared', 'hinge' or 'logistic'.

  Returns:
    float[].

  Raises:
    ValueError: if the loss is unknown, labels are invalid, or beta is negative.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> network = convex.Network(jnp.array([[1.]]), jnp.array([1.]))
    >>> convex.network_objective(
    ...   network, jnp.array([[3.]]), jnp.array([1.]), beta=0.5)
    Array(2.5, dtype=float32)
  """
  _losses.check_loss('network_objective', loss, y)
  checks.check_range('network_objective', 'beta', beta, 0)
  checks.check_kind('network_objective', 'network', network, Network)
  outputs = network_outputs(network, x)
  y = jnp.asarray(y, flat.compute_dtype(outputs.dtype))
  squares = sum(jnp.sum(jnp.square(leaf)) for leaf in network)
  return _losses.total(loss, outputs, y) + beta / 2 * squares
