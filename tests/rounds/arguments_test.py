"""What no round takes: attackers that nobody named, rules as optimizers."""

import optax
import pytest

import byzjax
from tests.rounds import every_round

ROUNDS = every_round.ROUNDS


def label_noise(batch, is_byzantine, key):
  del is_byzantine, key
  return batch


@pytest.mark.parametrize('attack', [byzjax.sign_flip(), label_noise])
@pytest.mark.parametrize('name', ROUNDS)
def test_an_attack_needs_attackers(name, attack):
  message = f'{name} needs byzantine= to say who attacks, .* got None'
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
    ValueError, match='consensus_admm needs byzantine= to say'
  ):
    byzjax.convex.consensus_admm(
      *[None] * 3,
      beta=0.1,
      rho=0.1,
      num_iterations=1,
      aggregator=byzjax.mean(),
      attack=byzjax.sign_flip(),
    )
