"""`experiments.train --method=...`: every method on digits, and flags."""

import inspect

import jax.numpy as jnp
import pytest

from byzjax import data
from experiments import train
from experiments.harness import methods

LOCAL = {*methods.LOCAL, *methods.CORRECTED}
SMALL = {
  'num_workers': 5,
  'num_byzantine': 1,
  'rounds': 3,
  'eval_every': 3,
  'num_seeds': 1,
  'batch_size': 4,
  'attack': 'alie(z=1.0)',
}


def _program(name, **changed):
  steps = {'num_local_steps': 2} if name in LOCAL else {}
  config = train.Settings(
    **{**SMALL, **steps, 'method': name, 'aggregator': 'mean', **changed}
  )
  return train.program_of(config, data.load('digits'))


# Tracing is the whole program, less its compilation.
@pytest.mark.parametrize('name', methods.METHODS)
def test_every_method_is_a_program_on_digits(name):
  topology = {'topology': 'complete'} if name == 'gossip' else {}
  program = _program(name, **topology)
  assert {'loss', 'accuracy'} <= set(program.trace())


# A message alone wants a smaller rate than the mean of messages.
RATES = {
  'asgd': {'learning_rate': 0.05},
  'ormo': {'learning_rate': 0.02},
  'dp_sgd': {'method': 'dp_sgd(noise_multiplier=0.1)', 'batch_size': 32},
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=() if n == 'scaffold' else pytest.mark.slow)
    for n in methods.METHODS
    if n != 'robust'
  ],
)
def test_every_method_trains_digits(name):
  rates = RATES.get(name, {})
  program = _program(name, attack='none', num_byzantine=0, rounds=20, **rates)
  state, before = program.stretch(program.start(), 0, 1)
  _, after = program.stretch(state, 1, 19)
  assert jnp.all(after['loss'] < before['loss'])


def test_the_schedule_of_fedbuff_counts_messages():
  buffered = {'attack': 'none', 'rounds': 20, 'num_workers': 2}

  def loss(rounds, **schedule):
    program = _program('fedbuff', **buffered, **schedule)
    return program.stretch(program.start(), 0, rounds)[1]['loss'].tolist()

  # A rate of zero from message 10 on, in the middle of the run.
  falls = {'schedule': 'step(factor=0.0, at=0.5)'}
  assert loss(10, **falls) == loss(20, **falls)
  assert loss(10, **falls) == loss(10, schedule='constant')


def test_qsr_has_the_steps_of_its_schedule():
  def loss(**rounds):
    program = _program('qsr', num_local_steps=2, **rounds)
    return program.stretch(program.start(), 0, 2)[1]['loss'].tolist()

  short = loss(rounds=4)
  assert short == loss(rounds=6, schedule_rounds=4)
  assert short == loss(rounds=2, schedule_rounds=4)
  assert short != loss(rounds=6)


def test_a_round_of_qsr_without_steps_has_no_loss():
  program = _program('qsr', num_local_steps=2, rounds=8)
  state, first = program.stretch(program.start(), 0, 1)
  _, rest = program.stretch(state, 1, 7)
  assert jnp.isfinite(first['train_loss']).all()
  assert jnp.isnan(rest['train_loss']).all()


def test_codecs_and_a_robust_neighbourhood():
  sent = _program('fed_avg', codec='qsgd(norm="l2")', server_codec='sign')
  assert sent.trace()
  among = {'aggregator': 'trimmed_mean', 'topology': 'complete'}
  assert _program('gossip', **among).trace()


def test_under_gossip_the_honest_nodes_are_the_model():
  params = {'w': jnp.array([[1e30], [1.0], [3.0]])}
  honest = methods.model_of('gossip', 1, params)
  assert honest['w'].tolist() == [2.0]
  assert methods.model_of('robust', 1, params) is params


def test_a_backdoor_adds_its_success_rate():
  attack = "backdoor(trigger='patch(size=2, margin=0)', target=7, fraction=0.5)"
  for name in ('robust', 'fed_avg'):
    program = _program(name, attack=attack)
    assert 'attack_success_rate' in program.trace()
  assert 'attack_success_rate' not in _program('robust').trace()


@pytest.mark.parametrize(
  'name, changed, message',
  [
    ('asgd', {'aggregator': 'krum'}, 'asgd has no rule, .* --method=fedbuff'),
    ('fed_avg', {'learning_rate': 0.2}, '--learning_rate is not for'),
    ('robust', {'local_learning_rate': 0.2}, '--local_learning_rate is not'),
    ('scaffold', {'momentum': 0.5}, '--momentum is not for --method=scaffold'),
    ('diloco', {'momentum': 0.5}, '--momentum is not for --method=diloco'),
    (
      'dp_sgd',
      {'attack': 'label_flip', 'partition': 'random_shards'},
      '--attack=label_flip changes examples',
    ),
  ],
)
def test_what_a_method_does_not_know_is_refused(name, changed, message):
  with pytest.raises(ValueError, match=message):
    _program(name, **changed)


def test_speeds_go_around():
  assert methods.speeds_of('1, 5', 5).tolist() == [1, 5, 1, 5, 1]


def test_the_help_has_every_hyper_parameter():
  text = str(train.Settings.__dataclass_fields__['method'].metadata['what'])
  for name, make in methods.METHODS.items():
    assert name in text
    for parameter in list(inspect.signature(make).parameters)[1:]:
      assert f'{parameter}=' in text
