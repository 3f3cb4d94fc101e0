import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax._src import local
from byzjax.objectives import proximal
from tests.objectives.local_sgd import context, local_sgd
from tests.rounds import problem


def _anchor():
  return problem.params(seed=1)


def _batch():
  return jax.tree.map(lambda x: x[0], problem.batch())


def test_the_gradient_is_that_of_the_loss_and_of_the_spring():
  with jax.enable_x64(True):
    params = problem.params(dtype=jnp.float64)
    anchor = problem.params(seed=1, dtype=jnp.float64)
    objective = proximal(problem.loss_fn, mu=0.7)
    value, gradient = jax.value_and_grad(objective.loss)(
      params, _batch(), context(anchor)
    )
    plain, expected = jax.value_and_grad(problem.loss_fn)(params, _batch())
    difference = problem.flat(params) - problem.flat(anchor)
    np.testing.assert_allclose(
      problem.flat(gradient), problem.flat(expected) + 0.7 * difference, 1e-12
    )
    np.testing.assert_allclose(
      value, plain + 0.35 * (difference @ difference), 1e-12
    )


@pytest.mark.parametrize('mu', [0, 0.0, jnp.float32(0)])
def test_without_a_spring_it_is_the_loss_bit_for_bit(mu):
  objective = proximal(problem.loss_fn, mu=mu)
  found = jax.jit(jax.value_and_grad(objective.loss))(
    problem.params(), _batch(), context(_anchor())
  )
  expected = jax.jit(jax.value_and_grad(problem.loss_fn))(
    problem.params(), _batch()
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_anchor_is_a_constant():
  objective = proximal(problem.loss_fn, mu=2.0)
  gradient = jax.grad(
    lambda anchor: objective.loss(problem.params(), _batch(), context(anchor))
  )(_anchor())
  assert not problem.flat(gradient).any()


def test_many_local_steps_end_between_the_anchor_and_the_minimum():
  # Of |w - b|^2 / 2 + (mu / 2) |w - a|^2: (b + mu a) / (1 + mu), by worker.
  a, mus = jnp.array([1.0, -2.0]), jnp.array([0.0, 1.0, 4.0])
  b = jnp.array([[3.0, 0.0], [-1.0, 5.0]])
  batches = jnp.broadcast_to(b[:, None], (2, 100, 2))

  @jax.jit
  @jax.vmap
  def run(mu):
    objective = proximal(lambda w, x: jnp.sum((w - x) ** 2) / 2, mu=mu)
    return local_sgd(objective, a, batches, 0.15)

  expected = (b[None] + mus[:, None, None] * a[None, None]) / (
    1 + mus[:, None, None]
  )
  np.testing.assert_allclose(run(mus), expected, rtol=1e-4, atol=1e-5)


def test_it_wraps_an_objective_and_passes_the_context_on():
  def loss(params, batch, context):
    return params * batch * context.step + jnp.sum(context.anchor)

  objective = proximal(local.Objective(loss), mu=2.0)
  value = objective.loss(jnp.array(4.0), 3.0, context(jnp.array(1.0), step=5))
  assert value == 4 * 3 * 5 + 1 + (4 - 1) ** 2
  assert objective.name == 'proximal'


def test_half_precision_leaves_keep_their_dtype():
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), problem.params())
  anchor = jax.tree.map(lambda p: p.astype(jnp.bfloat16), _anchor())
  objective = proximal(problem.loss_fn, mu=1.0)
  value, gradient = jax.value_and_grad(objective.loss)(
    params, _batch(), context(anchor)
  )
  assert value.dtype == problem.loss_fn(params, _batch()).dtype
  assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize('mu', [-0.1, float('nan')])
def test_refusals(mu):
  with pytest.raises(ValueError, match='proximal needs mu >= 0, got'):
    proximal(problem.loss_fn, mu=mu)
