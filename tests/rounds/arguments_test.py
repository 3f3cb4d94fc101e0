"""What no round takes: attackers that nobody named, rules as optimizers, and
losses that are not what the flags say."""

import jax
import jax.numpy as jnp
import optax
import pytest

import byzjax
from byzjax import objectives
from tests.rounds import every_round

ROUNDS = every_round.ROUNDS


def label_noise(batch, is_byzantine, key):
  del is_byzantine, key
  return batch


@pytest.mark.parametrize('attack', [byzjax.sign_flip(), label_noise])
@pytest.mark.parametrize('name', ROUNDS)
def test_an_attack_needs_attackers(name, attack):
  message = f'{name} needs byzantine= to be set, .* got None'
  with pytest.raises(ValueError, match=message):
    ROUNDS[name](every_round.loss_fn, attack=attack)
  # Nobody, said aloud, is the control of a sweep.
  ROUNDS[name](every_round.loss_fn, attack=attack, byzantine=0)


@pytest.mark.parametrize(
  ('name', 'slot'),
  [
    ('robust_round', 'optimizer'),
    ('robust_round', 'worker'),
    ('local_round', 'optimizer'),
    ('local_round', 'local_optimizer'),
    ('local_round', 'worker'),
    ('asynchronous_round', 'optimizer'),
    ('asynchronous_round', 'local_optimizer'),
    ('asynchronous_round', 'worker'),
    ('asynchronous_round', 'incoming'),
    ('gossip_round', 'optimizer'),
    ('modular_round', 'optimizer'),
    ('modular_round', 'local_optimizer'),
    ('modular_round', 'worker'),
    ('elastic_averaging', 'local_optimizer'),
  ],
)
def test_rules_are_no_optimizers(name, slot):
  message = f'{name} needs {slot} to be an optax transform .* got the rule'
  rule = byzjax.coordinate_median()
  with pytest.raises(ValueError, match=message + '.*: rules belong in'):
    ROUNDS[name](every_round.loss_fn, **{slot: rule})
  message = f'{name} needs {slot} to be an optax transform .*, got 0.1'
  with pytest.raises(TypeError, match=message):
    ROUNDS[name](every_round.loss_fn, **{slot: 0.1})
  ROUNDS[name](every_round.loss_fn, **{slot: optax.sgd(0.1)})


def test_consensus_needs_attackers():
  with pytest.raises(
    ValueError, match='consensus_admm needs byzantine= to be set'
  ):
    byzjax.convex.consensus_admm(
      *[None] * 3,
      beta=0.1,
      rho=0.1,
      num_iterations=1,
      aggregator=byzjax.mean(),
      attack=byzjax.sign_flip(),
    )


def pair(params, batch):
  return jnp.sum(jax.tree.leaves(params)[0]) * jnp.sum(batch), batch


def keyed(params, batch, key):
  del key
  return pair(params, batch)[0]


def plain(params, batch):
  return pair(params, batch)[0]


def traced(name, loss_fn, **arguments):
  """Of what is seen where the round is traced."""
  training = ROUNDS[name](loss_fn, **arguments)
  shape = (every_round.N, every_round.H, 2)
  state = training.init(every_round.as_params(name, jnp.ones(2)))
  batch = jnp.ones(shape if 'local' in name else (shape[0], 4, 2))
  jax.eval_shape(training.step, state, batch, jax.random.key(0))


def raises(message, error=ValueError):
  return pytest.raises(error, match='(?m)' + message)


@pytest.mark.parametrize('name', ROUNDS)
def test_losses_of_another_form(name):
  with raises(
    f'^{name} needs loss_fn to give a scalar loss, got a tuple of 2: where it'
    r' gives \(loss, aux\), pass has_aux=True'
  ):
    traced(name, pair)
  with raises(
    rf'^{name} needs loss_fn to give \(loss, aux\) where has_aux=True, got'
    r' float32\[\]'
  ):
    traced(name, plain, has_aux=True)
  with raises(rf'^{name} needs loss_fn to give a real scalar .* float32\[2\]'):
    traced(name, lambda params, batch: jax.tree.leaves(params)[0].ravel()[:2])
  with raises(
    rf'^{name} needs loss_fn to take \(params, batch_i\) \(needs_key=True gives'
    r' it a key, too\), got one that takes \(params, batch, key\)'
  ):
    ROUNDS[name](keyed)
  with raises(
    rf'^{name} needs loss_fn to take \(params, batch_i, key_i\), got one that'
    r' takes \(params, batch\)'
  ):
    ROUNDS[name](plain, needs_key=True)
  for flag in ('needs_key', 'has_aux'):
    with raises(f'^{name} needs {flag} to be True or False, got 1$'):
      ROUNDS[name](plain, **{flag: 1})
  with raises(f'^{name} needs loss_fn to be a function', TypeError):
    ROUNDS[name](0.5)


@pytest.mark.parametrize('name', ROUNDS)
def test_flags_that_contradict_the_loss(name):
  objective = objectives.proximal(plain, mu=0.1)
  with raises(f'^{name} needs needs_key to be False .* Objective proximal'):
    ROUNDS[name](objective, needs_key=True)
  with raises(f'^{name} needs has_aux to be False .* Objective proximal'):
    ROUNDS[name](objective, has_aux=True)
  estimator = byzjax.entropy_gradient(plain, num_steps=1, gamma=0.1)
  with raises(
    f'^{name} needs loss_fn to be a loss, got .* entropy_gradient: pass it'
    ' as value_and_grad'
  ):
    ROUNDS[name](estimator)
  with raises(f'^{name} needs has_aux to be False .* entropy_gradient'):
    ROUNDS[name](None, value_and_grad=estimator, has_aux=True)
  with raises(f'^{name} needs needs_key to be False where value_and_grad'):
    ROUNDS[name](keyed, value_and_grad=estimator, needs_key=True)
  with raises(f'^{name} needs value_and_grad to be a function', TypeError):
    ROUNDS[name](None, value_and_grad=objective)


def test_functions_in_place_of_the_gradient():
  name = 'robust_round'

  def value_and_grad(value):
    return lambda params, batch, key: (value, params)

  loss = jnp.ones([])
  with raises(
    '^robust_round needs value_and_grad to give a scalar loss, got a'
  ):
    traced(name, None, value_and_grad=value_and_grad((loss, loss)))
  with raises('^robust_round needs value_and_grad to give .loss, aux. where'):
    traced(name, None, value_and_grad=value_and_grad(loss), has_aux=True)
  with raises('^robust_round needs value_and_grad to return a pair with the'):
    traced(name, None, value_and_grad=lambda params, batch, key: loss)


def test_wrappers_say_their_own_name():
  for make in (
    lambda loss, **flags: objectives.proximal(loss, mu=0.1, **flags),
    objectives.mixup,
    lambda loss, **flags: objectives.wasserstein(loss, gamma=1.0, **flags),
    lambda loss, **flags: byzjax.entropy_gradient(
      loss, num_steps=1, gamma=0.1, **flags
    ),
    lambda loss, **flags: byzjax.sparsign_local_steps(
      loss, budget=1.0, learning_rate=0.1, **flags
    ),
  ):
    with raises(r'^[a-z_]+ needs loss_fn to take \(params, batch_i\) '):
      make(keyed)
    with raises(r'^[a-z_]+ needs loss_fn to take \(params, batch_i, key_i\)'):
      make(plain, needs_key=True)
  with raises('^wasserstein needs loss_fn to give a scalar loss, got a tuple'):
    wafl = objectives.wasserstein(lambda w, b: pair(w, b[0]), gamma=1.0)
    wafl(jnp.ones(2), (jnp.ones([3, 2]), jnp.ones(3)))
  with raises('^pgd_inputs needs loss_fn to give a scalar loss, got a tuple'):
    objectives.pgd_inputs(
      lambda params, batch: pair(params, batch[0]),
      jnp.ones(2),
      (jnp.ones([3, 2]), jnp.ones(3)),
      epsilon=0.1,
      step_size=0.1,
      num_steps=1,
    )
  with raises(
    '^hutchinson_diagonal needs loss_fn to give a scalar loss, got a'
  ):
    byzjax.hutchinson_diagonal(pair)(jnp.ones(2), 1.0, jax.random.key(0))


def test_auxiliary_outputs_without_a_mean():
  def loss(params, batch, key):
    return plain(params, batch), {'mine': key}

  with raises(
    r'^local_round needs the auxiliary output of loss_fn to be of numbers,'
    r" to take their mean .* got key<fry> at aux\['mine'\]"
  ):
    traced('local_round', loss, needs_key=True, has_aux=True)
  # A single step has no mean, and anything goes.
  traced('robust_round', loss, needs_key=True, has_aux=True)
