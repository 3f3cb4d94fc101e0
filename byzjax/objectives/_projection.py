"""The projection network that FedBR applies to features."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks


def projection(
  key: jax.Array,
  *,
  num_features: int,
  width: int | None = None,
  out: int | None = None,
) -> base.Params:
  """Initial parameters of a three-layer projection, for `project` and `fedbr`.

  Kernels are normal with variance 1 / (input size), biases are zero. The
  released code has `d -> 2d -> 2d -> d` (the default here); we read the paper's
  text as `d -> 256 -> 256 -> 128`.

  Args:
    key: a key of `jax.random.key`; do not use it again.
    num_features: d >= 1, the input size, a Python int.
    width: size of the hidden layers, a Python int >= 1; None for 2d.
    out: output size, a Python int >= 1; None for d.

  Returns:
    A list of three dicts of `kernel` float32 `[m, k]` and `bias` float32 `[k]`.

  Raises:
    ValueError: if a size is not an int of at least 1.

  Example:
    >>> import byzjax, jax
    >>> head = byzjax.objectives.projection(jax.random.key(0), num_features=4)
    >>> [layer['kernel'].shape for layer in head]
    [(4, 8), (8, 8), (8, 4)]
  """
  checks.check_key('projection', 'key', key)
  checks.check_count('projection', 'num_features', num_features, 1)
  width = 2 * num_features if width is None else width
  out = num_features if out is None else out
  checks.check_count('projection', 'width', width, 1)
  checks.check_count('projection', 'out', out, 1)
  sizes = [num_features, width, width, out]

  def layer(key, m, k):
    kernel = jax.random.normal(key, (m, k), jnp.float32) / m**0.5
    return {'kernel': kernel, 'bias': jnp.zeros(k, jnp.float32)}

  return [
    layer(*layer_arguments)
    for layer_arguments in zip(jax.random.split(key, 3), sizes, sizes[1:])
  ]


def project(params: base.Params, z: jax.Array) -> jax.Array:
  """Dense layers with ReLU between them: `h_{l+1} = max(0, h_l) W_l + b_l`.

  Args:
    params: a list of `{'kernel': [m, k], 'bias': [k]}`, as from `projection`.
    z: float `[B, d]`.

  Returns:
    float `[B, out]`.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> head = byzjax.objectives.projection(
    ...   jax.random.key(0), num_features=4, width=5, out=2)
    >>> byzjax.objectives.project(head, jnp.ones([3, 4])).shape
    (3, 2)
  """
  for i, layer in enumerate(params):
    z = (jax.nn.relu(z) if i else z) @ layer['kernel'] + layer['bias'][None]
  return z
