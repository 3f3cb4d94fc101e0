"""Ways in which honest accidents and odd states could help an attacker."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

N = 8
TARGETS = jnp.arange(N, dtype=jnp.float32)[:, None] * jnp.ones((N, 3))


def loss_fn(params, batch):
  return jnp.mean((params - batch) ** 2)


def training(**changed):
  arguments = {
    'num_workers': N,
    'aggregator': byzjax.mean(),
    'optimizer': optax.sgd(0.1),
    'byzantine': 2,
  }
  return byzjax.robust_round(loss_fn, **{**arguments, **changed})


@pytest.mark.parametrize(
  'attack',
  [
    byzjax.alie(z=1.5),
    byzjax.inner_product_manipulation(epsilon=0.5),
    byzjax.sign_flip(scale=10.0),
  ],
)
def test_a_nan_of_an_honest_worker_does_not_switch_the_attack_off(attack):
  is_byzantine = jnp.arange(N) < 2
  messages = {'a': TARGETS, 'b': 2 * TARGETS[:, :2]}
  broken = {**messages, 'b': messages['b'].at[N - 1, 0].set(jnp.nan)}
  sent, _ = attack.apply(broken, (), is_byzantine=is_byzantine, key=None)
  # As if the broken worker were not there, in all of its coordinates.
  expected, _ = attack.apply(
    jax.tree.map(lambda x: x[:-1], messages),
    (),
    is_byzantine=is_byzantine[:-1],
    key=None,
  )
  for name in messages:
    np.testing.assert_allclose(sent[name][:2], expected[name][:2], rtol=1e-6)


def test_the_error_stays_a_number_when_an_honest_worker_sends_nan():
  one_round = training(byzantine=0)
  batch = TARGETS.at[N - 1].set(jnp.nan)
  _, info = jax.jit(one_round.step)(
    one_round.init(jnp.zeros(3)), batch, jax.random.key(0)
  )
  assert info.aggregation_error == 0 and info.num_nonfinite == 1


@pytest.mark.parametrize(
  'schedule', [lambda step: jnp.arange(N) // 7, lambda step: jnp.ones(3, bool)]
)
def test_a_schedule_must_return_a_mask(schedule):
  one_round = training(byzantine=schedule)
  with pytest.raises(ValueError, match=r'byzantine\(step\) to be bool\[8\]'):
    one_round.step(one_round.init(jnp.zeros(3)), TARGETS, jax.random.key(0))


@pytest.mark.parametrize('num_iterations', [1, 3])
def test_clipping_keeps_the_dtype_of_its_state(num_iterations):
  rule = byzjax.centered_clipping(radius=1.0, num_iterations=num_iterations)
  state = rule.init(jnp.zeros(3))

  def body(state, messages):
    aggregate, state = rule.update(messages, state)
    return state, aggregate

  messages = jnp.ones((4, N, 3), jnp.bfloat16) / 3
  state, aggregates = jax.lax.scan(body, state, messages)
  assert state.center.dtype == jnp.float32
  assert aggregates.dtype == jnp.bfloat16
  # More digits than bfloat16 has.
  np.testing.assert_allclose(state.center, float(messages[0, 0, 0]), rtol=1e-6)


@pytest.mark.parametrize('scale', [1e-12, 1.0, 1e12])
def test_fourth_powers_neither_overflow_nor_underflow(scale):
  x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
  x[0], x[1] = np.nan, 1e3
  paper, fourth = (
    byzjax.krum(num_byzantine=2, distance_power=power) for power in (2, 4)
  )
  chosen = fourth(scale * x)
  assert any(np.array_equal(chosen, scale * row) for row in x[2:])
  np.testing.assert_allclose(fourth(scale * x) / scale, fourth(x), rtol=1e-6)
  assert np.isfinite(paper(scale * x)).all()


class TestMesh:
  mesh = jax.make_mesh((4,), ('workers',))

  def test_init_may_be_compiled(self):
    one_round = training(
      aggregator=byzjax.centered_clipping(radius=1.0), mesh=self.mesh
    )
    eager = one_round.init(jnp.zeros(3))
    state = jax.jit(one_round.init)(jnp.zeros(3))
    center = state.aggregator.center
    assert center.sharding.is_equivalent_to(eager.aggregator.center.sharding, 1)
    step = jax.jit(one_round.step)
    for _ in range(2):
      state, _ = step(state, TARGETS, jax.random.key(0))
    assert step._cache_size() == 1

  def test_state_of_the_size_of_the_model_that_is_not_coordinates(self):
    # 256 numbers that belong to nobody's coordinates: the padded model is as
    # large, and they must not be split with it.
    def inspect(messages, state, params=None, *, axis_name=None, **extra):
      aggregate, _, info = byzjax.mean().inspect(
        messages, (), axis_name=axis_name
      )
      return aggregate, state + jnp.arange(256.0), info

    counting = byzjax.Aggregator(lambda params: jnp.zeros(256), inspect)
    one_round = training(aggregator=counting, mesh=self.mesh)
    state = one_round.init(jnp.zeros(3))
    state, _ = jax.jit(one_round.step)(state, TARGETS, jax.random.key(0))
    np.testing.assert_array_equal(state.aggregator, np.arange(256.0))
