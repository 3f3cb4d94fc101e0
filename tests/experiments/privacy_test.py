"""`experiments.train --method=dp_sgd(...)`: what it promises, and to whom."""

import sys

import pytest

from byzjax import data, theory
from experiments import train
from experiments.harness import privacy
from tests.experiments.calls import call_train, words

SMALL = {
  'num_workers': 5,
  'num_byzantine': 1,
  'aggregator': 'coordinate_median',
  'attack': 'sign_flip',
  'partition': 'random_shards',
  'batch_size': 8,
  'rounds': 2,
  'eval_every': 2,
  'num_seeds': 1,
}


def line(method, **changed):
  config = train.Settings(**{**SMALL, **changed}, method=method)
  return privacy.line(config, data.load('digits'))


def test_a_run_on_digits_prints_what_it_promises(tmp_path, monkeypatch):
  monkeypatch.setattr(theory, 'privacy_epsilon', lambda **given: 1.25)
  method = 'dp_sgd(clip_norm=0.5, noise_multiplier=0.7)'
  printed = call_train(*words(tmp_path, **SMALL, method=method, delta=1e-4))
  assert 'honest workers: epsilon=1.25 at delta=0.0001, for' in printed
  assert f"'--method={method}'" in printed and '--delta=0.0001' in printed


def test_epsilon_is_that_of_the_worker_with_the_fewest_examples(monkeypatch):
  asked = []
  monkeypatch.setattr(
    theory, 'privacy_epsilon', lambda **given: asked.append(given) or 1.0
  )
  digits = len(data.load('digits').train_labels)
  told = line('dp_sgd(noise_multiplier=0.7)', rounds=40, delta=1e-3)
  assert told.endswith(f'for workers of {digits // 5} examples or more')
  assert asked == [
    {
      'noise_multiplier': 0.7,
      'sampling_rate': 8 / (digits // 5),
      'num_rounds': 40,
      'delta': 1e-3,
    }
  ]
  assert line('robust') == ''
  # More on average than there are: all of them.
  line('dp_sgd', batch_size=10_000, validation=True)
  assert asked[-1]['sampling_rate'] == 1.0
  assert asked[-1]['noise_multiplier'] == 1.0


def test_with_the_accountant_and_without(monkeypatch):
  assert line('dp_sgd(noise_multiplier=0.0)').startswith('epsilon=inf at')
  monkeypatch.setitem(sys.modules, 'dp_accounting', None)
  told = line('dp_sgd')
  assert 'epsilon is not known' in told and 'byzjax[privacy]' in told


@pytest.mark.parametrize('partition', ['iid', 'iid(long_tail=0.6)'])
def test_an_example_at_several_workers_has_no_such_promise(partition):
  with pytest.raises(ValueError, match='give --partition=random_shards'):
    line('dp_sgd', partition=partition)


def test_delta_is_for_this_method_alone(tmp_path):
  with pytest.raises(SystemExit, match='--delta is not for --method=robust'):
    call_train(*words(tmp_path, **SMALL, delta=1e-3))


def test_a_delta_that_is_no_probability(tmp_path):
  with pytest.raises(SystemExit, match='privacy_epsilon needs delta'):
    call_train(*words(tmp_path, **SMALL, method='dp_sgd', delta=2.0))
