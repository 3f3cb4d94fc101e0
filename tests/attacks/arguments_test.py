"""What attacks take as arguments, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests.attacks.scenes import ATTACKS, BAD, KEY, N, messages


@pytest.mark.parametrize(
  'make',
  [
    lambda value: byzjax.drift(strength=value),
    lambda value: byzjax.relocated_orthogonal_perturbation(z=value),
    lambda value: byzjax.relocated_orthogonal_perturbation(angle=100 * value),
    lambda value: byzjax.relocated_orthogonal_perturbation(
      pi=value, lam=value, z=1.0
    ),
  ],
  ids=['drift', 'z', 'angle', 'pi_lam'],
)
def test_strengths_in_one_vmap_equal_separate_runs(make):
  x = jnp.asarray(messages(1)[0])

  def apply(value):
    attack = make(value)
    state = attack.init(x[0])
    if attack.observe:
      state = attack.observe(state, x[3])
    return attack.apply(x, state, is_byzantine=jnp.asarray(BAD), key=KEY)[0]

  values = [0.0, 0.4, 1.0]
  swept = jax.jit(jax.vmap(apply))(jnp.array(values))
  assert (swept[1][BAD] != swept[2][BAD]).any()
  for row, value in zip(swept, values):
    np.testing.assert_allclose(row, apply(value), 1e-5, 1e-5)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: byzjax.mimic(worker=-1), 'mimic needs worker .* -1'),
    (lambda: byzjax.mimic(worker=1.0), 'mimic needs worker .* 1.0'),
    (lambda: byzjax.mimic(num_warmup_rounds=0), 'num_warmup_rounds .* got 0'),
    (lambda: byzjax.min_max(deviation='mad'), "unit, sign, got 'mad'"),
    (lambda: byzjax.min_max(ddof=2), 'min_max needs ddof .* got 2'),
    (
      lambda: byzjax.min_sum(bound='mean'),
      "bound .*min, max, got 'mean'",
    ),
    (lambda: byzjax.min_sum(max_gamma=-1.0), 'max_gamma >= 0, got -1.0'),
    (lambda: byzjax.fang(scale=0.5), 'fang needs scale >= 1, got 0.5'),
    (
      lambda: byzjax.relocated_orthogonal_perturbation(pi=1.5),
      'relocated_orthogonal_perturbation needs pi .* got 1.5',
    ),
    (
      lambda: byzjax.relocated_orthogonal_perturbation(lam=np.nan),
      'relocated_orthogonal_perturbation needs lam .* got nan',
    ),
    (lambda: byzjax.drift(strength=-1.0), 'drift needs strength >= 0, got -1'),
    (lambda: byzjax.drift(direction='up'), "random, gradient, got 'up'"),
    (lambda: byzjax.replay(delay=0), 'replay needs delay .* got 0'),
    (lambda: byzjax.replay(delay=1, own=True), 'num_workers .* got None'),
  ],
)
def test_bad_arguments_are_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize('name', ['fang', 'random_signs', 'drift'])
def test_attacks_that_draw_need_a_key(name):
  attack, x = ATTACKS[name], jnp.ones((N, 4))
  with pytest.raises(ValueError, match=f'{name} needs a key.*got None'):
    attack.apply(x, attack.init(x[0]), is_byzantine=jnp.asarray(BAD))


@pytest.mark.parametrize(
  'name', ['mimic', 'relocated_orthogonal_perturbation', 'drift', 'replay']
)
def test_the_state_of_another_model_is_refused(name):
  attack, x = ATTACKS[name], jnp.ones((N, 4))
  with pytest.raises(ValueError, match=rf'{name} needs the state .* 4 .* 3'):
    attack.apply(
      x, attack.init(jnp.zeros(3)), is_byzantine=jnp.asarray(BAD), key=KEY
    )


@pytest.mark.parametrize(
  'attack',
  [
    byzjax.sign_flip(scale=0.5, own=True),
    byzjax.model_replacement(scale=0.5),
    byzjax.adaptive(byzjax.alie(z=1.0), byzjax.trimmed_mean(num_byzantine=1)),
    byzjax.inner_product_manipulation(epsilon=0.5),
  ],
  ids=['own', 'scaled', 'adaptive', 'mean'],
)
def test_whole_numbers_are_attacked_as_floats(attack):
  x, bad = jnp.array([[9, 3], [0, 1], [1, 5], [2, 2]]), jnp.arange(4) < 1
  sent = attack(x, is_byzantine=bad)
  expected = attack(x.astype(jnp.float32), is_byzantine=bad)
  np.testing.assert_array_equal(sent, expected)
  assert sent.dtype == jnp.float32


def test_a_first_leaf_without_entries_is_no_matter():
  x, bad = jnp.arange(8.0).reshape(4, 2), jnp.arange(4) < 1
  attack = byzjax.inner_product_manipulation()
  sent = attack({'a': jnp.zeros((4, 0)), 'b': x}, is_byzantine=bad)
  np.testing.assert_array_equal(sent['b'], attack(x, is_byzantine=bad))
  assert sent['a'].shape == (4, 0)


def test_numbers_of_workers_that_do_not_fit_are_refused():
  x = jnp.ones((N, 4))
  for attack, message in (
    (byzjax.mimic(worker=N), 'worker < num_workers, got 11 and 11'),
    (byzjax.replay(delay=1, own=True, num_workers=3), 'num_workers=3 .* 11'),
  ):
    with pytest.raises(ValueError, match=message):
      attack.apply(x, attack.init(x[0]), is_byzantine=jnp.asarray(BAD))
