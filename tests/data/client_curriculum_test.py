"""Clients take part in the order of their difficulty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data

KEY = jax.random.key(9)
N, M = 20, 4
SCORES = np.random.default_rng(2).permutation(N).astype(np.float32)


def make(**kwargs):
  defaults = dict(
    num_workers=N,
    num_participants=M,
    total_rounds=25,
    score=lambda params, data_i: data_i * params,
  )
  return data.client_curriculum(**(defaults | kwargs))


def run(clients, num_rounds, scores=SCORES, key=KEY):
  """float[num_rounds, n], who takes part."""
  scores = jnp.broadcast_to(jnp.asarray(scores), (num_rounds, N))

  def step(state, inputs):
    t, scores = inputs
    weights, state = clients.draw(state, scores, t, jax.random.fold_in(key, t))
    return state, weights

  inputs = jnp.arange(num_rounds), scores
  weights = jax.jit(lambda: jax.lax.scan(step, clients.init(N), inputs)[1])()
  return np.asarray(weights)


@pytest.mark.parametrize('order', ['curriculum', 'anti', 'random'])
def test_always_m_take_part(order):
  weights = run(make(order=order, initial_share=0.35), 30)
  assert set(np.unique(weights)) == {0, 1} and weights.dtype == np.float32
  np.testing.assert_array_equal(weights.sum(axis=1), np.full(30, M))


@pytest.mark.parametrize('order', ['curriculum', 'anti', 'random'])
def test_without_pacing_each_takes_part_once_in_n_over_m_rounds(order):
  clients = make(order=order, pacing='step', full_at=1, initial_share=1)
  weights = run(clients, 15).reshape(3, 5, N)
  np.testing.assert_array_equal(weights.sum(axis=1), np.ones((3, N)))
  assert not np.array_equal(weights[0], weights[1])


@pytest.mark.parametrize('order', ['curriculum', 'anti'])
def test_sweeps_of_a_growing_pool_as_in_the_papers_loop(order):
  weights = run(make(order=order, total_rounds=20, initial_share=0.2), 30)
  ranking = np.argsort(SCORES if order == 'curriculum' else -SCORES)
  step, sizes = 0, []
  while step < 30:
    share = 0.2 + 0.8 * min(1, step / 16)
    pool = ranking[: max(int(share * N + 1e-6), M)]
    length = -(-pool.size // M)
    sweep = weights[step : step + length]
    if len(sweep) == length:
      assert set(np.flatnonzero(sweep.sum(axis=0))) == set(pool)
    assert set(np.flatnonzero(sweep.sum(axis=0))) <= set(pool)
    assert np.all(sweep[:-1].sum(axis=0) <= 1)
    sizes.append(pool.size)
    step += length
  assert sizes[0] == 4 and sizes[-1] == 20 and len(set(sizes)) > 2


def test_ranks_anew_only_when_the_pool_took_part():
  other = -SCORES
  scores = np.stack([SCORES, other, SCORES, other])
  weights = run(make(pacing='step', initial_share=0.4), 4, scores)
  easy, hard = np.argsort(SCORES)[:8], np.argsort(other)[:8]
  assert set(np.flatnonzero(weights[:2].sum(axis=0))) == set(easy)
  assert set(np.flatnonzero(weights[2:].sum(axis=0))) == set(easy)
  shifted = run(make(pacing='step', initial_share=0.4), 4, scores[[1, 0, 3, 0]])
  assert set(np.flatnonzero(shifted[:2].sum(axis=0))) == set(hard)


@pytest.mark.parametrize('order', ['curriculum', 'anti'])
def test_scores_that_are_not_finite_come_last(order):
  scores = SCORES.copy()
  broken = [0, 7, 13]
  scores[broken] = [np.nan, np.inf, -np.inf]
  clients = make(order=order, pacing='step', initial_share=17 / 20)
  weights = run(clients, 5, scores)
  assert weights[:, broken].sum() == 0
  assert np.all(np.delete(weights.sum(axis=0), broken) >= 1)


def test_scores_may_be_counts():
  clients = make(pacing='step', initial_share=0.4)
  np.testing.assert_array_equal(
    run(clients, 2, np.arange(N)[::-1]), run(clients, 2, -np.arange(1.0, N + 1))
  )


def test_all_scores_broken_leaves_the_first_clients():
  weights = run(make(pacing='step', initial_share=0.4), 2, np.full(N, np.nan))
  np.testing.assert_array_equal(weights.sum(axis=0), np.arange(N) < 8)


def test_a_claimed_low_loss_is_in_every_pool_and_min_pool_dilutes_it():
  liars = np.argsort(SCORES)[-M:]

  def claims(clients):
    def draw(state, scores, step, key):
      scores = scores.at[liars].set(-1.0)
      return clients.draw(state, scores, step, key)

    return clients._replace(draw=draw)

  paced = dict(pacing='step', initial_share=0.2)
  assert run(make(**paced), 4)[:, liars].sum() == 0
  assert np.all(run(claims(make(**paced)), 4)[:, liars] == 1)
  wide = run(claims(make(**paced, min_pool=3 * M)), 3)
  np.testing.assert_array_equal(wide[:, liars].sum(axis=0), np.ones(M))
  assert np.count_nonzero(wide.sum(axis=0)) == 3 * M


def test_score_is_what_was_given_and_none_in_random_order():
  assert make().score(2.0, 3.0) == 6.0
  assert make(order='random').score is None
  assert make(order='random', score=None).score is None


@pytest.mark.parametrize(
  'change, found',
  [
    ({'num_participants': 21}, 'num_participants <= num_workers, got 21 and'),
    ({'num_participants': 0}, 'num_participants .* at least 1, got 0'),
    ({'min_pool': 21}, 'min_pool <= num_workers, got 21 and 20'),
    ({'total_rounds': 0}, 'total_rounds > 0, got 0'),
    ({'score': None}, 'a score unless order is random'),
    ({'order': 'first'}, "order to be one of .*, got 'first'"),
    ({'pacing': 'slow'}, "pacing to be one of .*, got 'slow'"),
  ],
)
def test_refusals(change, found):
  with pytest.raises(ValueError, match=f'client_curriculum needs {found}'):
    make(**change)


def test_refuses_another_number_of_workers():
  with pytest.raises(ValueError, match='num_workers=20, got 5'):
    make().init(5)
