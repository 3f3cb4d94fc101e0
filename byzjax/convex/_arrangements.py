"""Activation patterns of hidden units on the examples, sampled."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, flat, reductions
from byzjax.convex import _problem

Hyperplanes = Literal['gaussian', 'centred', 'pairs']
_HYPERPLANES = ('gaussian', 'centred', 'pairs')


def arrangements(x: jax.Array, vectors: jax.Array) -> jax.Array:
  """The activation patterns (arrangements) of given vectors.

  `D_i = 1[X h_i >= 0]`: on which examples a hidden unit with weights h_i is
  active. Workers that share the vectors (drawn with one key) get the parts of
  the same arrangements for their own examples. Rows may be equal; this changes
  the cost, not the optimum.

  Args:
    x: X, float[n, d].
    vectors: the h_i, float[P, d], such as `jax.random.normal(key, (P, d))`.

  Returns:
    bool[P, n], row i is the diagonal of D_i.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> convex.arrangements(jnp.eye(2), jnp.array([[1., -1.], [2., 3.]]))
    Array([[ True, False],
           [ True,  True]], dtype=bool)
  """
  return reductions.matmul(vectors, x.T) >= 0


def sample_arrangements(
  x: jax.Array,
  num_samples: int,
  key: jax.Array,
  *,
  hyperplanes: Hyperplanes = 'gaussian',
  epsilon: base.Scalar | jax.Array = 0.0,
  num_perturbations: int = 0,
) -> np.ndarray:
  """Samples distinct arrangements, of Gaussian or of data-dependent vectors.

  `D_i = diag(1[X h_i >= 0])`, without duplicates, in the order of sampling. The
  hyperplane that h_i stands for is of one of three kinds:

  ========== ================================ ================================
  kind       example k is active if           drawn
  ========== ================================ ================================
  gaussian   `<x_k, g> >= 0`                  `g ~ N(0, I)`
  centred    `<x_k - x_c, g> >= 0`            g, and an example c
  pairs      `<x_k - x_c, x_a - x_b> >= 0`    three different examples a, b, c
  ========== ================================ ================================

  Gaussian vectors are blind to the data: where these are far from the origin
  next to their spread, as images are, many vectors are active on nearly all
  examples or on none. Hyperplanes through an example are not, and differences
  of examples point where the data vary. Both need the bias, for `h_i` has
  `-<x_c, g>` in its place; differences have no other.

  With perturbations, the arrangements of every h_i on `X + epsilon
  R`, with R of random signs, are added, as `robust_admm` needs. More samples
  with the same key begin with the same rows, so that optima of nested sets can
  be compared.

  The number of rows depends on the data, so this runs on the host and cannot be
  traced; `arrangements` can.

  Args:
    x: X, float[n, d], not traced. For a bias, append a column of ones.
    num_samples: number of vectors drawn, a Python int >= 1.
    key: of the vectors and the signs.
    hyperplanes: the kind, `'gaussian'` as in the paper, `'centred'` or
      `'pairs'`.
    epsilon: size of the perturbation, `>= 0`, a number or float[d] (zero in the
      column of ones).
    num_perturbations: number of matrices R for each vector, a Python int >= 0.

  Returns:
    bool[P, n], with P at most `num_samples * (1 + num_perturbations)`.

  Raises:
    ValueError: if an argument is out of its range, x is not a matrix, or other
      hyperplanes than Gaussian ones are asked for and x has no constant column,
      or fewer examples than they need (one, or three).

  References:
    Pilanci, Ergen, 2020, arXiv:2002.10553; Bai, Gautam, Sojoudi, 2022,
    arXiv:2201.01965.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import convex
    >>> x = jnp.array([[1., 1.], [-1., 1.], [2., 2.]])
    >>> convex.sample_arrangements(x, 50, jax.random.key(0)).shape
    (4, 3)
    >>> x = jnp.array([[0., 1.], [1., 1.], [3., 1.]])
    >>> convex.sample_arrangements(
    ...   x, 50, jax.random.key(0), hyperplanes='pairs').shape
    (5, 3)
  """
  name = 'sample_arrangements'
  checks.check_count(name, 'num_samples', num_samples, 1)
  checks.check_key(name, 'key', key)
  checks.check_count(name, 'num_perturbations', num_perturbations)
  checks.check_range(name, 'epsilon', epsilon, 0, array=True)
  if jnp.ndim(x) != 2:
    raise ValueError(f'{name} needs x to be float[n, d], got {jnp.shape(x)}')
  checks.check_choice(name, 'hyperplanes', hyperplanes, _HYPERPLANES)
  if hyperplanes != 'gaussian':
    _check_bias(name, hyperplanes, np.asarray(x))

  # Differences of whole numbers may wrap around, and perturbations be zero.
  x = jnp.asarray(x, flat.compute_dtype(jnp.result_type(x)))
  sides = _problem.sizes(epsilon, x)
  drawn = _draw(x, key, sides, num_samples, num_perturbations, hyperplanes)
  patterns = np.asarray(drawn).reshape(-1, x.shape[0])
  _, first = np.unique(patterns, axis=0, return_index=True)
  return patterns[np.sort(first)]


def _check_bias(name: str, hyperplanes: str, x: np.ndarray) -> None:
  """Raises ValueError unless x has a bias, and enough examples."""
  least = 3 if hyperplanes == 'pairs' else 1
  if len(x) < least:
    raise ValueError(
      f'{name} needs at least {least} examples for hyperplanes='
      f'{hyperplanes!r}, got {len(x)}'
    )
  if not np.any((x == x[:1]).all(axis=0) & (x[0] != 0)):
    raise ValueError(
      f'{name} needs a constant column of x for hyperplanes={hyperplanes!r};'
      ' append a column of ones'
    )


@functools.partial(
  jax.jit, static_argnames=('num_samples', 'num_perturbations', 'hyperplanes')
)
def _draw(x, key, sides, num_samples, num_perturbations, hyperplanes):
  """The arrangements of each sample, on x and perturbed x: [N, 1 + k, n]."""

  def of_sample(index):
    # A key for every sample: a longer draw begins with the shorter one.
    vector_key, sign_key = jax.random.split(jax.random.fold_in(key, index))
    vector, point = _hyperplane(x, vector_key, hyperplanes)
    signs = jax.random.rademacher(
      sign_key, (num_perturbations, *x.shape), x.dtype
    )
    moved = jnp.concatenate([x[None], x[None] + sides[None, None] * signs])
    return jax.vmap(lambda x: arrangements(x - point[None], vector[None])[0])(
      moved
    )

  return jax.lax.map(of_sample, jnp.arange(num_samples))


def _hyperplane(x, key, kind: Hyperplanes) -> tuple[jax.Array, jax.Array]:
  """Its normal vector and a point of it, both [d]."""
  if kind == 'pairs':
    a, b, c = jax.random.choice(key, len(x), (3,), replace=False)
    return x[a] - x[b], x[c]
  vector = jax.random.normal(key, x.shape[1:], x.dtype)
  if kind == 'gaussian':
    return vector, jnp.zeros_like(vector)
  # Another key than the vector's.
  return vector, x[
    jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(x))
  ]
