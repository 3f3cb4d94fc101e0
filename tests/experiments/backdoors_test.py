"""Backdoors on the command line, and what is measured of them."""

import types

import jax.numpy as jnp
import pytest

import byzjax
from byzjax import models
from experiments.harness import backdoors, specs

DISTRIBUTED = (
  "backdoor(trigger='distributed(length=3, gap=1)', target=7, scale=4.0)"
)


def test_a_backdoor_is_a_text():
  attack = specs.build('attack', DISTRIBUTED, specs.ATTACKS)
  assert attack.message_attack.config == {'scale': 4.0}
  assert attack.data_attack.config['trigger'].config['length'] == 3
  masked = specs.build('attack', 'backdoor(ratio=0.9)', specs.ATTACKS)
  assert masked.message_attack.config == {'ratio': 0.9}
  alone = specs.build('attack', 'backdoor', specs.ATTACKS)
  assert not isinstance(alone, byzjax.JointAttack)
  with pytest.raises(ValueError, match='--trigger: unknown name'):
    specs.build('attack', "backdoor(trigger='x')", specs.ATTACKS)
  with pytest.raises(ValueError, match='not both'):
    specs.build('attack', 'backdoor(scale=2.0, ratio=0.9)', specs.ATTACKS)


def test_the_success_rate_is_measured_of_backdoors_alone():
  assert backdoors.measure('alie(z=1.5)') is None
  graphdef, params = models.split(models.make('mlp', (8, 8, 1), 10, seed=0))
  measure = backdoors.measure(DISTRIBUTED, lambda params: params['model'])
  task = types.SimpleNamespace(graphdef=graphdef, scale=16.0)
  images = jnp.zeros([6, 8, 8, 1], jnp.uint8)
  found = measure(task, {'model': params}, images, jnp.arange(6))
  assert list(found) == ['attack_success_rate']
  assert 0 <= found['attack_success_rate'] <= 1
