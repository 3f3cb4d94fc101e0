"""Lengths of rounds: known volumes, and the laws of the rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

RULES = {
  'linear': byzjax.linear_synchronization,
  'quadratic': byzjax.quadratic_synchronization,
}


# The published runs: 300 epochs of 312 steps of a vision transformer, and 200
# epochs of a residual network, both with a warm-up from zero.
VIT = dict(total_steps=93_600, warmup_steps=10_000)
RESNET = dict(total_steps=62_400, warmup_steps=5 * 312)


def _cosine(peak, *, total_steps, warmup_steps):
  return optax.warmup_cosine_decay_schedule(
    0.0, peak, warmup_steps, total_steps, end_value=1e-6
  )


def _linear(peak, *, total_steps, warmup_steps):
  warmup = optax.linear_schedule(0.0, peak, warmup_steps)
  decay = optax.linear_schedule(peak, 1e-6, total_steps - warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


@pytest.mark.parametrize(
  ('run', 'schedule', 'peak', 'base_steps', 'growth', 'percent'),
  [
    (VIT, _cosine, 0.008, 4, 0.015, 12.3),
    (VIT, _cosine, 0.008, 4, 0.0175, 10.4),
    (VIT, _cosine, 0.008, 4, 0.02, 8.4),
    (VIT, _cosine, 0.008, 8, 0.015, 7.4),
    (VIT, _cosine, 0.008, 8, 0.0175, 6.9),
    (VIT, _cosine, 0.008, 8, 0.02, 6.3),
    (VIT, _linear, 0.008, 4, 0.0175, 9.3),
    (VIT, _linear, 0.008, 8, 0.0175, 6.9),
    (RESNET, _cosine, 0.8, 2, 0.2, 39.7),
    (RESNET, _cosine, 0.8, 2, 0.25, 38.5),
    (RESNET, _cosine, 0.8, 4, 0.2, 20.6),
    (RESNET, _cosine, 0.8, 4, 0.25, 20.1),
  ],
)
def test_published_volumes(run, schedule, peak, base_steps, growth, percent):
  lengths = byzjax.quadratic_synchronization(
    schedule(peak, **run), base_steps=base_steps, growth=growth, **run
  )
  assert lengths.sum() == run['total_steps']
  volume = 100 * len(lengths) / run['total_steps']
  assert round(volume, 1) == percent


def test_published_last_rounds():
  lengths = byzjax.quadratic_synchronization(
    _cosine(0.008, **VIT), base_steps=4, growth=0.0175, **VIT
  )
  np.testing.assert_array_equal(lengths[-3:], [1612, 2769, 8142])
  assert lengths.dtype == np.int32


def _loop(rates, power, base_steps, growth, warmup_steps, warmup_local_steps):
  """The rule step by step: communicate when the counter reaches H."""
  total = len(rates)
  lengths, counter = [], 0

  def next_length(t):
    if t < warmup_steps:
      return warmup_local_steps
    return max(int(np.floor((growth / rates[t]) ** power)), base_steps)

  length = next_length(0)
  for t in range(1, total + 1):
    counter += 1
    if counter == length or t == total:
      lengths.append(counter)
      counter = 0
      length = next_length(t) if t < total else 0
  return lengths


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('rule', RULES)
def test_is_the_loop_over_steps(rule, seed):
  random = np.random.default_rng(seed)
  total = int(random.integers(1, 200))
  # Not monotone either: the rule only looks at the first step of a round.
  rates = random.uniform(0.1, 1, total)
  arguments = dict(
    base_steps=int(random.integers(1, 6)),
    growth=float(random.uniform(0, 2)),
    warmup_steps=int(random.integers(0, 50)),
    warmup_local_steps=int(random.integers(1, 6)),
  )
  lengths = RULES[rule](rates, total_steps=total, **arguments)
  power = {'linear': 1, 'quadratic': 2}[rule]
  np.testing.assert_array_equal(lengths, _loop(rates, power, **arguments))
  assert lengths.sum() == total


@pytest.mark.parametrize('rule', RULES)
def test_rounds_grow_as_the_learning_rate_decays(rule):
  rates = _cosine(0.5, total_steps=3000, warmup_steps=100)
  lengths = RULES[rule](
    rates, total_steps=3000, base_steps=2, growth=0.8, warmup_steps=100
  )
  starts = np.cumsum(lengths) - lengths
  assert (lengths[starts < 100] == 2).all()
  grown = lengths[starts >= 100][:-1]
  assert (np.diff(grown) >= 0).all() and grown[-1] > 50
  assert lengths.sum() == 3000


@pytest.mark.parametrize(('rule', 'power'), [('linear', 1), ('quadratic', 2)])
def test_constant_learning_rates(rule, power):
  for rate in (0.5, 0.25, 0.125, 0.0625):
    lengths = RULES[rule](rate, total_steps=5000, base_steps=3, growth=1.0)
    # Powers of two: halving the rate gives exactly 2 or 4 times the length.
    expected = max(3, int((1 / rate) ** power))
    assert (lengths[:-1] == expected).all() and lengths.sum() == 5000
  off = RULES[rule](0.1, total_steps=50, base_steps=3, growth=0.0)
  constant = byzjax.constant_synchronization(total_steps=50, base_steps=3)
  np.testing.assert_array_equal(off, constant)
  below = RULES[rule](0.1, total_steps=50, base_steps=1, growth=0.09)
  np.testing.assert_array_equal(below, np.ones(50))


def test_lengths_are_floors_of_float64_quotients():
  # The quotient is 3 in float32, and in float64 the number just below 3.
  linear = byzjax.linear_synchronization(
    0.1, total_steps=6, base_steps=1, growth=0.3
  )
  np.testing.assert_array_equal(linear, [2, 2, 2])
  # A schedule is evaluated in float64, too: 0.1 is larger in float32.
  schedule = byzjax.linear_synchronization(
    optax.constant_schedule(0.1), total_steps=6, base_steps=1, growth=0.2
  )
  np.testing.assert_array_equal(schedule, [2, 2, 2])


def test_schedules_arrays_and_numbers_are_the_same():
  arguments = dict(total_steps=40, base_steps=1, growth=0.5)
  schedule = optax.exponential_decay(0.25, 10, 0.5, staircase=True)
  by_schedule = byzjax.quadratic_synchronization(schedule, **arguments)
  rates = 0.25 * 0.5 ** (np.arange(40) // 10)
  by_array = byzjax.quadratic_synchronization(rates, **arguments)
  by_jax = byzjax.quadratic_synchronization(jnp.asarray(rates), **arguments)
  np.testing.assert_array_equal(by_schedule, by_array)
  np.testing.assert_array_equal(by_schedule, by_jax)
  assert set(by_array[:-1]) == {4, 16}
  number = byzjax.quadratic_synchronization(0.25, **arguments)
  constant = byzjax.quadratic_synchronization(
    optax.constant_schedule(0.25), **arguments
  )
  np.testing.assert_array_equal(number, constant)
  assert not jax.config.jax_enable_x64


def test_a_learning_rate_of_zero_ends_in_one_round():
  rates = np.array([1.0, 1.0, 1e-320, 0.0, 0.0])
  for rule in RULES.values():
    lengths = rule(rates, total_steps=5, base_steps=1, growth=1.0)
    np.testing.assert_array_equal(lengths, [1, 1, 3])
    lengths = rule(rates[::-1], total_steps=5, base_steps=2, growth=0.0)
    np.testing.assert_array_equal(lengths, [2, 2, 1])


def test_warmup_rounds_may_cross_its_end():
  lengths = byzjax.quadratic_synchronization(
    0.1,
    total_steps=20,
    base_steps=2,
    growth=0.25,
    warmup_steps=4,
    warmup_local_steps=3,
  )
  np.testing.assert_array_equal(lengths, [3, 3, 6, 6, 2])
  default = byzjax.quadratic_synchronization(
    0.1, total_steps=20, base_steps=2, growth=0.25, warmup_steps=4
  )
  np.testing.assert_array_equal(default, [2, 2, 6, 6, 4])


def test_post_local():
  lengths = byzjax.post_local_synchronization(
    total_steps=11, base_steps=3, switch_step=4
  )
  np.testing.assert_array_equal(lengths, [1, 1, 1, 1, 3, 3, 1])
  never = byzjax.post_local_synchronization(
    total_steps=5, base_steps=3, switch_step=9
  )
  np.testing.assert_array_equal(never, np.ones(5))
  at_once = byzjax.post_local_synchronization(
    total_steps=11, base_steps=3, switch_step=0
  )
  constant = byzjax.constant_synchronization(total_steps=11, base_steps=3)
  np.testing.assert_array_equal(at_once, constant)
  assert at_once.dtype == constant.dtype == np.int32


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(total_steps=0), 'total_steps.*at least 1, got 0'),
    (dict(base_steps=2.0), 'base_steps.*got 2.0'),
    (dict(growth=-1.0), 'growth >= 0, got -1.0'),
    (dict(growth=float('nan')), 'growth >= 0, got nan'),
    (dict(warmup_steps=-1), 'warmup_steps.*got -1'),
    (dict(warmup_local_steps=0), 'warmup_local_steps.*got 0'),
    (dict(learning_rate=np.ones(3)), r'float\[total_steps\].*\[3\].*=8'),
    (dict(learning_rate=-0.1), 'learning_rate >= 0, got -0.1'),
    (dict(learning_rate=lambda step: jnp.nan * step), 'learning_rate >= 0'),
  ],
)
@pytest.mark.parametrize('rule', RULES)
def test_refusals(rule, change, message):
  arguments = (
    dict(learning_rate=0.1, total_steps=8, base_steps=1, growth=0.1) | change
  )
  with pytest.raises(ValueError, match=f'{rule}_synchronization.*{message}'):
    RULES[rule](arguments.pop('learning_rate'), **arguments)


def test_refusals_without_a_learning_rate():
  with pytest.raises(ValueError, match='constant_.*base_steps.*got 0'):
    byzjax.constant_synchronization(total_steps=8, base_steps=0)
  with pytest.raises(ValueError, match='post_local.*switch_step.*got -1'):
    byzjax.post_local_synchronization(
      total_steps=8, base_steps=2, switch_step=-1
    )
