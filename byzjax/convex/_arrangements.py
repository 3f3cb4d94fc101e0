"""Activation patterns of hidden units on the examples, sampled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, reductions
from byzjax.convex import _problem


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
  epsilon: base.Scalar | jax.Array = 0.0,
  num_perturbations: int = 0,
) -> np.ndarray:
  """Samples distinct arrangements, from Gaussian vectors.

  `D_i = diag(1[X h_i >= 0])`, `h_i ~ N(0, I)`, without duplicates, in the order
  of sampling. With perturbations, the arrangements of every h_i on `X + epsilon
  R`, with R of random signs, are added, as `robust_admm` needs. More samples
  with the same key begin with the same rows, so that optima of nested sets can
  be compared.

  The number of rows depends on the data, so this runs on the host and cannot be
  traced; `arrangements` can.

  Args:
    x: X, float[n, d], not traced. For a bias, append a column of ones.
    num_samples: number of vectors drawn, a Python int >= 1.
    key: of the vectors and the signs.
    epsilon: size of the perturbation, `>= 0`, a number or float[d] (zero in the
      column of ones).
    num_perturbations: number of matrices R for each vector, a Python int >= 0.

  Returns:
    bool[P, n], with P at most `num_samples * (1 + num_perturbations)`.

  Raises:
    ValueError: if an argument is out of its range or x is not a matrix.

  References:
    Pilanci, Ergen, 2020, arXiv:2002.10553; Bai, Gautam, Sojoudi, 2022,
    arXiv:2201.01965.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import convex
    >>> x = jnp.array([[1., 1.], [-1., 1.], [2., 2.]])
    >>> convex.sample_arrangements(x, 50, jax.random.key(0)).shape
    (4, 3)
  """
  name = 'sample_arrangements'
  checks.check_count(name, 'num_samples', num_samples, 1)
  checks.check_key(name, 'key', key)
  checks.check_count(name, 'num_perturbations', num_perturbations)
  checks.check_range(name, 'epsilon', epsilon, 0, array=True)
  if jnp.ndim(x) != 2:
    raise ValueError(f'{name} needs x to be float[n, d], got {jnp.shape(x)}')

  sides = _problem.sizes(epsilon, x)
  drawn = _draw(x, key, sides, num_samples, num_perturbations)
  patterns = np.asarray(drawn).reshape(-1, x.shape[0])
  _, first = np.unique(patterns, axis=0, return_index=True)
  return patterns[np.sort(first)]


@functools.partial(
  jax.jit, static_argnames=('num_samples', 'num_perturbations')
)
def _draw(x, key, sides, num_samples, num_perturbations):
  """The arrangements of each sample, on x and perturbed x: [N, 1 + k, n]."""

  def of_sample(index):
    # A key for every sample: a longer draw begins with the shorter one.
    vector_key, sign_key = jax.random.split(jax.random.fold_in(key, index))
    vector = jax.random.normal(vector_key, (1, x.shape[1]), x.dtype)
    signs = jax.random.rademacher(
      sign_key, (num_perturbations, *x.shape), x.dtype
    )
    moved = jnp.concatenate([x[None], x[None] + sides[None, None] * signs])
    return jax.vmap(lambda x: arrangements(x, vector)[0])(moved)

  return jax.lax.map(of_sample, jnp.arange(num_samples))
