import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax.objectives import pgd_inputs, proximal
from tests.rounds import problem


def _batch():
  return jax.tree.map(lambda x: x[3], problem.batch())


def _linear(w, batch):
  return jnp.mean(batch[0] @ w)


@pytest.mark.parametrize('num_steps, reached', [(0, 0), (3, 0.3), (7, 0.5)])
def test_where_the_loss_is_linear_every_entry_goes_its_way(num_steps, reached):
  inputs, w = jnp.ones([4, 3]), jnp.array([2.0, 0.0, -1e-3])
  moved = pgd_inputs(
    _linear,
    w,
    (inputs, jnp.zeros(4)),
    epsilon=0.5,
    step_size=0.1,
    num_steps=num_steps,
  )
  expected = inputs + reached * jnp.sign(w)[None]
  np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_a_larger_box_costs_a_model_more():
  inputs, labels = _batch()
  params = problem.params()

  @jax.jit
  @jax.vmap
  def attack(epsilon):
    moved = pgd_inputs(
      problem.loss_fn,
      params,
      (inputs, labels),
      epsilon=epsilon,
      step_size=epsilon / 4,
      num_steps=10,
    )
    return moved, problem.loss_fn(params, (moved, labels))

  epsilons = jnp.array([0.0, 0.1, 0.3, 1.0])
  moved, losses = attack(epsilons)
  np.testing.assert_array_equal(moved[0], inputs)
  distances = jnp.abs(moved - inputs[None]).max(axis=(1, 2))
  np.testing.assert_allclose(distances, epsilons, atol=1e-6)
  assert (np.diff(losses) > 0.01).all()


def test_inputs_stay_in_a_range_that_is_asked_for():
  inputs = jnp.array([[0.1, 0.9, 0.5]])
  moved = pgd_inputs(
    _linear,
    jnp.array([-1.0, 1.0, 1.0]),
    (inputs, jnp.zeros(1)),
    epsilon=0.3,
    step_size=0.1,
    num_steps=5,
    value_range=(0.0, 1.0),
  )
  np.testing.assert_allclose(moved, [[0.0, 1.0, 0.8]], atol=1e-6)


def test_the_result_is_a_constant():
  def total(params):
    return jnp.sum(
      pgd_inputs(
        problem.loss_fn,
        params,
        _batch(),
        epsilon=0.1,
        step_size=0.1,
        num_steps=2,
      )
    )

  assert not problem.flat(jax.grad(total)(problem.params())).any()


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'epsilon': -0.1}, 'pgd_inputs needs epsilon >= 0'),
    ({'step_size': -0.1}, 'step_size >= 0'),
    ({'num_steps': -1}, 'num_steps to be a Python int'),
    ({'value_range': (1.0, 0.0)}, r'low < high, got \(1.0, 0.0\)'),
    ({'loss_fn': proximal(_linear, mu=1.0)}, 'got the Objective proximal'),
    ({'batch': (jnp.zeros((2, 3), int), None)}, 'inputs to be floats'),
  ],
)
def test_refusals(arguments, message):
  defaults = dict(
    loss_fn=_linear,
    params=jnp.ones(3),
    batch=(jnp.zeros((2, 3)), None),
    epsilon=0.1,
    step_size=0.1,
    num_steps=2,
  )
  with pytest.raises(ValueError, match=message):
    pgd_inputs(**(defaults | arguments))
