"""What a factory made knows its hyper-parameters, and stays what it is."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import tables
from tests.attacks import scenes

X = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)), jnp.float32)

COPIES = {
  '_replace': lambda rule: rule._replace(init=rule.init),
  'tree.map': lambda rule: jax.tree.map(lambda x: x, rule),
  'copy': copy.copy,
  'deepcopy': copy.deepcopy,
  'pickle': lambda rule: pickle.loads(pickle.dumps(rule)),
}


@pytest.mark.parametrize('way', COPIES)
def test_a_copy_of_a_rule_is_that_rule(way):
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=2),
    byzjax.krum(num_byzantine=2, num_neighbors=np.int64(3)),
  )
  same = COPIES[way](rule)
  assert isinstance(same, byzjax.Aggregator)
  assert (same.name, repr(same)) == (rule.name, repr(rule))
  assert same.gram_rule is not None
  expected, _, info = rule.inspect(X, rule.init(X[0]))
  result, _, same_info = same.inspect(X, same.init(X[0]))
  np.testing.assert_array_equal(result, expected)
  np.testing.assert_array_equal(same_info.weights, info.weights)
  np.testing.assert_array_equal(same(X), rule(X))


def test_config_has_all_hyper_parameters():
  krum = byzjax.krum(num_byzantine=2)
  assert krum.config == {
    'num_byzantine': 2,
    'num_neighbors': None,
    'distance_power': 2,
  }
  mixing = byzjax.nearest_neighbor_mixing(num_byzantine=1)
  assert mixing.config == {'num_byzantine': 1}
  stages = byzjax.pre_aggregate(mixing, krum).config['stages']
  assert stages[0] is mixing and stages[1] is krum
  assert byzjax.alie(z=1.5).config == {'z': 1.5, 'ddof': 1}
  assert byzjax.label_flip(10).config == {'num_classes': 10, 'label': -1}
  assert byzjax.top_k_codec(num_kept=3).config == {'num_kept': 3}
  assert byzjax.trimmed_mean(num_byzantine=np.int64(2)).config == {
    'num_byzantine': 2
  }
  # It is a copy: nobody changes what a rule says of itself.
  krum.config['num_byzantine'] = 0
  assert krum.config['num_byzantine'] == 2


def test_repr_is_the_call():
  clipping = byzjax.centered_clipping(radius=jnp.float32(0.5))
  assert repr(clipping) == (
    'byzjax.centered_clipping(radius=0.5, num_iterations=1, quantile=None)'
  )
  rule = byzjax.pre_aggregate(byzjax.bucketing(bucket_size=2), byzjax.mean())
  assert repr(rule) == (
    'byzjax.pre_aggregate(byzjax.bucketing(bucket_size=2), byzjax.mean())'
  )
  assert repr(byzjax.sign_flip(scale=2.0)) == (
    'byzjax.sign_flip(scale=2.0, own=False)'
  )
  shown = []

  def sweep(radius):
    shown.append(repr(byzjax.centered_clipping(radius=radius)))
    return radius

  jax.eval_shape(sweep, jnp.float32(1.0))
  assert shown == [
    'byzjax.centered_clipping(radius=<traced float32[]>, num_iterations=1,'
    ' quantile=None)'
  ]


def _first_row(messages, state, params=None, **extra):
  return X[0], state


def test_what_was_changed_no_longer_says_that_it_is_the_original():
  rule = byzjax.krum(num_byzantine=2)
  changed = rule._replace(init=lambda params: ())
  assert changed.config is None and repr(changed) == '<byzjax rule krum>'
  own = rule._replace(update=_first_row)
  assert own.config is None and own.gram_rule is None
  np.testing.assert_array_equal(own(X), X[0])
  attack = byzjax.alie(z=1.0)._replace(init=lambda params: ())
  assert attack.config is None and repr(attack) == '<byzjax attack>'


def test_a_rule_of_an_update_or_of_an_inspect():
  def update(messages, state, params=None, **extra):
    return jax.tree.map(lambda x: x[-1], messages), state

  def inspect(messages, state, params=None, **extra):
    info = byzjax.AggregationInfo(weights=jnp.eye(9)[-1])
    return *update(messages, state), info

  for function in (update, inspect):
    rule = byzjax.Aggregator(optax.init_empty_state, function, name='last')
    np.testing.assert_array_equal(rule(X), X[-1])
    assert rule.name == 'last' and rule.config is None
    assert len(rule.inspect(X, ())) == 3


@pytest.mark.parametrize('name', scenes.ATTACKS)
def test_attacks_are_pickled_and_called_once(name):
  attack = scenes.ATTACKS[name]
  if attack.config.get('num_workers'):
    pytest.skip('its state has rows of so many workers')
  x = jnp.asarray(scenes.messages(1)[0])
  given = {'is_byzantine': scenes.BAD, 'key': scenes.KEY}
  expected = attack.apply(x, attack.init(x[0]), **given)[0]
  np.testing.assert_array_equal(attack(x, **given), expected)
  again = pickle.loads(pickle.dumps(attack))
  assert repr(again) == repr(attack)


def test_masks_of_numpy_and_lists_of_bools_will_do():
  x, mask = np.asarray(X), np.arange(9) < 2
  attack = byzjax.alie(z=1.0)
  expected = attack(X, is_byzantine=jnp.asarray(mask))
  for given in (mask, list(mask), [bool(b) for b in mask]):
    np.testing.assert_array_equal(
      attack.apply(x, (), is_byzantine=given)[0], expected
    )
  labels = (np.zeros((3, 2)), np.array([[0, 1], [0, 1], [0, 1]]))
  flipped = byzjax.label_flip(10)(labels, [True, False, False])
  np.testing.assert_array_equal(flipped[1][:2], [[9, 8], [0, 1]])


def test_injected_hyper_parameters_in_a_round():
  def loss_fn(params, batch):
    return jnp.mean((params[None] - batch) ** 2)

  def train(rule, radius=None):
    training = byzjax.robust_round(
      loss_fn, num_workers=9, aggregator=rule, optimizer=optax.sgd(0.1)
    )
    state = training.init(jnp.zeros(3))
    if radius is not None:
      state.aggregator.hyperparams['radius'] = jnp.float32(radius)
    batch = X[:, None]
    for _ in range(2):
      state, info = jax.jit(training.step)(state, batch, jax.random.key(0))
    return state.params, info

  injected = optax.inject_hyperparams(byzjax.centered_clipping)(radius=0.1)
  for radius in (0.1, 0.7):
    params, info = train(injected, radius)
    rule = byzjax.centered_clipping(radius=radius)
    expected, expected_info = train(rule)
    np.testing.assert_allclose(params, expected, 1e-5, 1e-7)
    np.testing.assert_allclose(info.weights, expected_info.weights, 1e-5)


@pytest.mark.parametrize(
  'transform',
  [
    optax.inject_hyperparams(optax.sgd)(0.1),
    optax.inject_hyperparams(
      lambda radius: optax.chain(
        byzjax.centered_clipping(radius=radius), optax.scale(2.0)
      )
    )(radius=1.0),
  ],
)
def test_injected_transforms_that_are_no_rule_are_refused(transform):
  training = byzjax.robust_round(
    lambda params, batch: jnp.sum(params * batch),
    num_workers=9,
    aggregator=transform,
    optimizer=optax.sgd(0.1),
  )
  with pytest.raises(ValueError, match='aggregator to be a rule, or optax.inj'):
    jax.eval_shape(
      training.step, training.init(jnp.zeros(3)), X, jax.random.key(0)
    )


def test_a_count_that_is_injected_is_named():
  injected = optax.inject_hyperparams(byzjax.krum)(num_byzantine=1)
  with pytest.raises(ValueError, match='num_byzantine .* static_args'):
    injected.init(X[0])


def test_every_rule_of_the_tables_knows_itself():
  for row in tables.RULES:
    if row.name == 'fl_trust':
      continue  # The table's is wrapped, to be given what it trusts.
    rule = row.make(1, 1.0)
    assert rule.config is not None, row.name
    assert repr(rule).startswith('byzjax.'), row.name
