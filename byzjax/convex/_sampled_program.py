"""Random ReLU features with an l1 penalty: the sampled convex program."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import linalg

from byzjax._src import base, flat, reductions
from byzjax.convex import _admm, _losses
from byzjax.convex._recover import Network

_NAME = 'sampled_program'


class SampledProgramState(NamedTuple):
  """The state of `sampled_program`; duals are scaled by 1 / rho.

  Attributes:
    weights: float[N], alpha: the solution, exactly zero for most features.
    fits: float[n], a copy of the outputs; the labels if the loss is squared.
    weight_dual: float[N].
    fit_dual: float[n].
  """

  weights: jax.Array
  fits: jax.Array
  weight_dual: jax.Array
  fit_dual: jax.Array


def sampled_program(
  x: jax.Array,
  y: jax.Array,
  vectors: jax.Array,
  *,
  beta: base.Scalar,
  rho: base.Scalar,
  num_iterations: int,
  loss: str = 'squared',
  dual_ratio: base.Scalar = 1.0,
  record_every: int = 1,
  state: SampledProgramState | None = None,
) -> tuple[SampledProgramState, jax.Array]:
  """Trains the output layer of a network with random hidden units (ADMM).

  `min_alpha l(sum_i (X h_i)_+ alpha_i, y) + beta |alpha|_1`, where the h_i are
  scaled to norm one; the weight of a zero vector is zero. For the N with which
  a further sample seldom lowers the optimum see
  `byzjax.theory.sampled_program_size`. Solved by ADMM as in `admm`, without
  constraints: a copy of alpha is soft-thresholded, and the outputs have a
  proximal step if the loss is not squared.

  `sampled_network` makes a network of the weights, whose `network_objective` is
  this objective.

  Args:
    x: X, float[n, d]. For a bias, append a column of ones.
    y: float[n]; -1 or 1 unless the loss is squared.
    vectors: the h_i, float[N, d], such as `jax.random.normal(key, (N, d))`.
    beta: weight of the l1 norm, `>= 0`; may be traced.
    rho: penalty of the augmented Lagrangian, `> 0`; may be traced.
    num_iterations: a Python int >= 0.
    loss: 'squared', 'hinge' or 'logistic', as in `objective`.
    dual_ratio: the dual step as a multiple of rho, in (0, 1.618]; may be
      traced.
    record_every: iterations between entries of the history, a Python int >= 1
      that divides num_iterations.
    state: a state to continue from, or None to start at zero.

  Returns:
    A `SampledProgramState`, and the objective after every recorded iteration,
    float[T].

  Raises:
    ValueError: if shapes are inconsistent or an argument is out of its range.

  References:
    Bai, Gautam, Sojoudi, 2022, arXiv:2201.01965; Calafiore, Campi, 2005,
    doi:10.1007/s10107-003-0499-y.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import convex
    >>> x = jax.random.normal(jax.random.key(0), (20, 3))
    >>> vectors = jax.random.normal(jax.random.key(1), (50, 3))
    >>> state, history = convex.sampled_program(
    ...   x, jnp.abs(x[:, 0]), vectors, beta=0.1, rho=1.0, num_iterations=300)
    >>> bool(history[-1] < history[0])
    True
  """
  _losses.check_loss(_NAME, loss, y)
  _admm.check_numbers(
    _NAME, beta, rho, dual_ratio, num_iterations, record_every
  )
  shapes = jnp.shape(x), jnp.shape(y), jnp.shape(vectors)
  if (
    [len(shape) for shape in shapes] != [2, 1, 2]
    or shapes[0][:1] != shapes[1]
    or shapes[0][1] != shapes[2][1]
  ):
    raise ValueError(
      f'{_NAME} needs x [n, d], y [n] and vectors [N, d], got the shapes'
      f' {shapes}'
    )
  dtype = flat.compute_dtype(jnp.result_type(x))
  x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
  features = _features(x, jnp.asarray(vectors, dtype))
  return _run(
    features, y, beta, rho, dual_ratio, state,
    loss, num_iterations, record_every,
  )  # fmt: skip


def sampled_network(weights: jax.Array, vectors: jax.Array) -> Network:
  """The network of a sampled program, with balanced weights of both layers.

  Hidden weights `u = sqrt(|alpha_i|) h_i / |h_i|` and output weight
  `sign(alpha_i) sqrt(|alpha_i|)`: the scaling with the least weight decay.

  Args:
    weights: alpha, float[N].
    vectors: the h_i, float[N, d].

  Returns:
    A `Network` of N units.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> convex.sampled_network(jnp.array([-4.]), jnp.array([[3.]]))
    Network(hidden=Array([[2.]], dtype=float32),
            output=Array([-2.], dtype=float32))
  """
  roots = jnp.sqrt(jnp.abs(weights))
  return Network(_units(vectors).T * roots[None], jnp.sign(weights) * roots)


def _units(vectors):
  norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / jnp.where(norms > 0, norms, 1)


def _features(x, vectors):
  return jax.nn.relu(reductions.matmul(x, _units(vectors).T))


@functools.partial(
  jax.jit, static_argnames=('loss', 'num_iterations', 'record_every')
)
def _run(
  features, y, beta, rho, ratio, state, loss, num_iterations, record_every
):
  is_direct = loss == 'squared'
  weight = 1 / rho if is_direct else jnp.ones((), y.dtype)
  fit_scale = _losses.scale(loss, y.size) / rho
  n, count = features.shape
  inner = features if n <= count else features.T
  gram = reductions.matmul(inner, inner.T)
  gram += jnp.eye(len(gram), dtype=y.dtype) / weight
  factor = jnp.linalg.cholesky(gram)
  if state is None:
    zeros = jnp.zeros(count, y.dtype)
    state = SampledProgramState(
      zeros, y if is_direct else jnp.zeros_like(y), zeros, jnp.zeros_like(y)
    )

  def solve(rhs):
    """`(I + weight * features^T features)^-1 rhs`."""
    if n > count:
      return linalg.cho_solve((factor, True), rhs / weight)
    image = linalg.cho_solve((factor, True), reductions.matmul(features, rhs))
    return rhs - reductions.matmul(features.T, image)

  def step(state):
    target = weight * (state.fits - state.fit_dual)
    copies = solve(
      state.weights - state.weight_dual + reductions.matmul(features.T, target)
    )
    outputs = reductions.matmul(features, copies)
    weights = _losses.soft_threshold(copies + state.weight_dual, beta / rho)
    weight_dual = state.weight_dual + ratio * (copies - weights)
    if is_direct:
      return state._replace(weights=weights, weight_dual=weight_dual)
    fits = _losses.proximal(loss, outputs + state.fit_dual, y, fit_scale)
    fit_dual = state.fit_dual + ratio * (outputs - fits)
    return SampledProgramState(weights, fits, weight_dual, fit_dual)

  def measure(state):
    outputs = reductions.matmul(features, state.weights)
    penalty = beta * jnp.sum(jnp.abs(state.weights))
    return _losses.total(loss, outputs, y) + penalty

  return _admm.repeat(step, measure, state, num_iterations, record_every)
