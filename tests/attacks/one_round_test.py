"""Attacks without a memory: what each of them claims about one round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import conformance_cases as stored
from tests import reference, reference_attacks
from tests.attacks.scenes import ATTACKS, BAD, KEY, N, messages

# Min-max and min-sum.


def _apply(attack, x, bad=BAD, key=KEY):
  sent, _ = attack.apply(
    jnp.asarray(x), (), is_byzantine=jnp.asarray(bad), key=key
  )
  return np.asarray(sent)


@pytest.mark.parametrize('kind', ['std', 'unit', 'sign'])
@pytest.mark.parametrize(
  'make, allows',
  [
    (byzjax.min_max, reference_attacks.min_max_allows),
    (byzjax.min_sum, reference_attacks.min_sum_allows),
    (
      functools.partial(byzjax.min_sum, bound='max'),
      functools.partial(reference_attacks.min_sum_allows, bound='max'),
    ),
  ],
  ids=['min_max', 'min_sum', 'min_sum_max'],
)
def test_no_larger_gamma_is_allowed(make, allows, kind):
  for seed in range(5):
    x = np.float64(messages(1, seed)[0])
    with jax.enable_x64(True):
      row = _apply(make(deviation=kind), x)[1]
    honest = x[~BAD]
    mu = reference.mean(honest)
    assert allows(honest, mu + (1 - 1e-9) * (row - mu))
    assert not allows(honest, mu + (1 + 1e-9) * (row - mu))
    # And it is a negative multiple of the deviation.
    p = reference_attacks.deviation(honest, kind)
    gamma = (mu - row) @ p / (p @ p)
    np.testing.assert_allclose(mu - gamma * p, row, 1e-9, 1e-9)
    assert gamma > 0


@pytest.mark.parametrize('kind', ['std', 'unit', 'sign'])
def test_the_official_search_comes_close_from_below(kind):
  x = np.float64(messages(1)[0])
  honest = x[~BAD]
  for make, allows in (
    (byzjax.min_max, reference_attacks.min_max_allows),
    (byzjax.min_sum, reference_attacks.min_sum_allows),
  ):
    with jax.enable_x64(True):
      row = _apply(make(deviation=kind, max_gamma=20), x)[1]
    expected = reference_attacks.shifted(
      honest, allows, kind, search=reference_attacks.halving_search
    )
    p = reference_attacks.deviation(honest, kind)
    late = (expected - row) @ p / (p @ p)  # how much smaller its gamma is
    assert -1e-9 < late < 4e-5


def test_a_common_offset_loses_no_digits():
  x = messages(1)[0]
  for make in (byzjax.min_max, byzjax.min_sum):
    moved = _apply(make(), x + np.float32(1e3))[1] - 1e3
    np.testing.assert_allclose(moved, _apply(make(), x)[1], atol=1e-3)


def test_blades_min_max_within_the_tolerance_of_its_search():
  cases = stored.by_operation()['blades', 'MinMax']
  assert len(cases) == 3
  for case in cases:
    honest = stored.messages(case)
    x = np.concatenate([np.full((2, honest.shape[1]), 1e3), honest])
    with jax.enable_x64(True):
      row = _apply(
        byzjax.min_max(max_gamma=case['params']['high']), x, np.arange(9) < 2
      )[0]
    # Both are mu - gamma s, and its gamma is the last midpoint of a bisection.
    slack = case['params']['stop'] * honest.std(axis=0, ddof=1)
    assert (np.abs(row - stored.output(case)) <= slack + 1e-12).all()


def test_byzfl_mimic():
  cases = stored.by_operation()['byzfl_numpy', 'Mimic']
  for case in cases:
    honest = stored.messages(case)
    # The index counts honest workers, wherever they stand.
    bad = np.arange(len(honest) + 2) % (len(honest) + 1) == 0
    x = np.zeros((len(bad), honest.shape[1]))
    x[~bad] = honest
    with jax.enable_x64(True):
      sent = _apply(byzjax.mimic(worker=case['params']['epsilon']), x, bad)
    expected = np.broadcast_to(stored.output(case), sent[bad].shape)
    np.testing.assert_array_equal(sent[bad], expected)


@pytest.mark.parametrize('name', ['fang', 'random_signs', 'min_max', 'mimic'])
def test_the_form_for_accelerators_sends_the_same(name, monkeypatch):
  x = jnp.asarray(messages(1)[0])
  attack = ATTACKS[name]

  def apply():
    return attack.apply(
      x, attack.init(x[0]), is_byzantine=jnp.asarray(BAD), key=KEY
    )[0]

  expected = jax.jit(apply)()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  jaxpr = str(jax.make_jaxpr(lambda: apply())())
  assert 'while' not in jaxpr and 'scan' not in jaxpr  # no row by row
  sent = jax.jit(lambda: apply())()
  np.testing.assert_allclose(sent, expected, 1e-6, 1e-6)


# Votes.


def test_flip_vote_flips_exactly_the_margins_below_f():
  random = np.random.default_rng(0)
  x = random.normal(size=(10, 400)) ** 3 + np.linspace(-1, 1, 400)
  bad = np.arange(10) < 3  # seven votes cannot tie, and 3 is a margin
  before = reference_attacks.majority(x[~bad])
  margin = np.abs(np.sign(x[~bad]).sum(axis=0))
  after = reference_attacks.majority(_apply(byzjax.flip_vote(), x, bad))
  assert set(margin) == {1, 3, 5, 7}
  np.testing.assert_array_equal(after[margin > 3], before[margin > 3])
  assert (after[margin == 3] == 0).all()
  np.testing.assert_array_equal(after[margin < 3], -before[margin < 3])


def test_flip_vote_turns_ties_against_the_mean():
  x = np.array([[9.0, 9.0, 0.0], [3.0, -3.0, 0.0], [-1.0, 1.0, 0.0]])
  sent = _apply(byzjax.flip_vote(), x, np.arange(3) < 1)
  np.testing.assert_array_equal(sent[0], [-1, 1, 0])


# Draws.


def test_random_signs_are_fair_and_each_attackers_own():
  d = 20_000
  sent = _apply(
    byzjax.random_signs(scale=3.0), np.zeros((4, d)), np.ones(4) > 0
  )
  assert set(np.unique(sent)) == {-3.0, 3.0}
  correlation = sent @ sent.T / (9 * d) - np.eye(4)
  assert np.abs(correlation).max() < 5 / np.sqrt(d)
  assert np.abs(sent.mean(axis=1)).max() < 3 * 5 / np.sqrt(d)


def test_fang_draws_uniformly_beyond_the_honest_end():
  random = np.random.default_rng(0)
  x = np.float32(random.normal(size=(N, 3000)) + 2 * random.normal(size=3000))
  sent = np.float64(_apply(byzjax.fang(scale=3.0), x)[BAD])
  near_far = reference_attacks.fang_interval(np.float64(x[~BAD]), 3.0)
  low, high = near_far
  share = (sent - low) / (high - low)
  assert share.min() > -1e-5 and share.max() < 1 + 1e-5
  sigma = np.sqrt(1 / 12 / 3000)
  assert np.abs(share.mean(axis=1) - 0.5).max() < 5 * sigma
  quarters = [np.mean(share < q) for q in (0.25, 0.5, 0.75)]
  np.testing.assert_allclose(quarters, [0.25, 0.5, 0.75], atol=0.03)
  # Each attacker draws its own.
  assert np.abs(np.corrcoef(share) - np.eye(3)).max() < 5 / np.sqrt(3000)
  # All four cases of signs are there, and no honest value is passed inwards.
  positive = x[~BAD].mean(axis=0) > 0
  ends = np.where(positive, x[~BAD].min(axis=0), x[~BAD].max(axis=0))
  assert {(a, b) for a, b in zip(positive, ends > 0)} == {
    (True, True), (True, False), (False, True), (False, False),
  }  # fmt: skip
  assert ((sent <= ends + 1e-6) | ~positive).all()
  assert ((sent >= ends - 1e-6) | positive).all()
