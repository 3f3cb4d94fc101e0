"""The top eigenpair, against LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax._src import spectral


def _symmetric(eigenvalues, m):
  q, _ = np.linalg.qr(np.random.default_rng(m).normal(size=(m, m)))
  values = np.zeros(m)
  values[: len(eigenvalues)] = eigenvalues
  return (q * values) @ q.T


MATRICES = {
  'one by one': np.array([[3.0]]),
  'rank one': _symmetric([2.0], 9),
  'full': _symmetric(np.linspace(1, 5, 11), 11),
  'wide': _symmetric(np.geomspace(1e-6, 1, 40), 40),
  'all equal': np.eye(6),
  'two equal': _symmetric([3.0, 3.0, 1.0], 8),
  'gap 1e-3': _symmetric([1.0, 1 - 1e-3, 0.9, 0.5], 7),
  'gap 1e-5': _symmetric([1.0, 1 - 1e-5, 0.9, 0.5], 7),
  'gap 1e-7': _symmetric([1.0, 1 - 1e-7, 0.9, 0.5], 7),
  'gap 1e-12': _symmetric([1.0, 1 - 1e-12, 0.9, 0.5], 7),
  'tiny': 1e-30 * _symmetric([3.0, 2.0, 1.0], 5),
  'huge': 1e15 * _symmetric([3.0, 2.0, 1.0], 5),
  # The start of an iteration that begins with ones would not see it.
  'orthogonal to ones': np.array([[1.0, -1.0], [-1.0, 1.0]]),
}


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('matrix', MATRICES.values(), ids=MATRICES)
def test_top_eigenpair(matrix, dtype):
  with jax.enable_x64(dtype == np.float64):
    value, vector = jax.jit(spectral.top_eigenpair)(jnp.asarray(matrix, dtype))
    assert value.dtype == vector.dtype == dtype
  matrix = np.float64(dtype(matrix))
  largest = np.linalg.eigvalsh(matrix)[-1]
  vector, tolerance = np.float64(vector), 8 * np.finfo(dtype).eps
  np.testing.assert_allclose(value, largest, tolerance)
  np.testing.assert_allclose(np.linalg.norm(vector), 1, tolerance)
  # Between equal eigenvalues any vector will do, so this asks for no one.
  residual = np.linalg.norm(matrix @ vector - largest * vector)
  assert residual <= tolerance * largest


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_top_eigenvector_of_a_simple_eigenvalue(dtype):
  matrix = _symmetric([4.0, 3.0, 2.0, 1.0], 6)
  with jax.enable_x64(dtype == np.float64):
    vector = jax.jit(spectral.top_eigenpair)(jnp.asarray(matrix, dtype))[1]
  expected = np.linalg.eigh(matrix)[1][:, -1]
  overlap = abs(np.float64(vector) @ expected)
  np.testing.assert_allclose(overlap, 1, 10 * np.finfo(dtype).eps)


def test_top_eigenpair_of_zero_and_of_masked_rows():
  matrices = np.zeros((3, 7, 7))
  mask = np.array([0, 1, 1, 0, 1, 1, 1], bool)
  matrices[1] = _symmetric([3.0, 1.0], 7)
  matrices[2][np.ix_(mask, mask)] = _symmetric([5.0, 4.0], 5)
  values, vectors = jax.jit(jax.vmap(spectral.top_eigenpair))(
    jnp.asarray(matrices, jnp.float32)
  )
  np.testing.assert_allclose(values, [0, 3, 5], 1e-6)
  np.testing.assert_array_equal(vectors[0], np.eye(7)[0])
  np.testing.assert_array_equal(vectors[2][~mask], 0)


def test_derivative_of_the_top_eigenvalue():
  with jax.enable_x64(True):
    matrix = jnp.asarray(_symmetric([3.0, 2.0, 1.0], 4))
    gradient = jax.jit(jax.grad(lambda a: spectral.top_eigenpair(a)[0]))(matrix)
    step = np.random.default_rng(0).normal(size=(4, 4))
    step = (step + step.T) / 2
    values = [
      np.linalg.eigvalsh(matrix + sign * 1e-6 * step)[-1] for sign in (1, -1)
    ]
    np.testing.assert_allclose(
      np.sum(np.asarray(gradient) * step), (values[0] - values[1]) / 2e-6, 1e-6
    )


def test_the_eigenpair_is_no_call_out_of_the_program():
  matrices = jnp.ones((3, 5, 5))
  program = jax.jit(jax.vmap(spectral.top_eigenpair)).lower(matrices).compile()
  assert 'custom-call' not in program.as_text()
