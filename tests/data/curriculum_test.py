"""Local steps on examples in the order of their difficulty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data
from byzjax.data import _curriculum
from tests.data import local_sampler_test as samplers

KEY = samplers.KEY
IMAGES, LABELS = samplers.IMAGES, samplers.LABELS
PARTITION = samplers.PARTITION
HARDNESS = np.random.default_rng(4).permutation(samplers.N).astype(np.float32)


def loss_per_example(params, images, labels):
  """Hardness by label, in the direction that the parameters give."""
  del images
  return jnp.asarray(HARDNESS)[labels] * params


def make(**kwargs):
  defaults = dict(
    loss_per_example=loss_per_example,
    batch_size=2,
    num_local_steps=12,
    min_pool=1,
  )
  return data.curriculum(IMAGES, LABELS, **(defaults | kwargs))


def order_of(sampler, worker, params=1.0, state=None, key=KEY):
  """The examples of a worker in the order in which they enter the pool."""
  mine = data.Partition(PARTITION.indices[worker], PARTITION.sizes[worker])
  params = jnp.asarray(params)
  state = sampler.init(params) if state is None else state
  rank = sampler.start(state, params, mine, key).rank
  np.testing.assert_array_equal(np.sort(rank), np.arange(rank.size))
  order = np.argsort(rank)
  # The padding never comes before an example of its own.
  assert set(order[: mine.sizes]) == set(range(mine.sizes))
  return mine.indices[order[: mine.sizes]]


def test_ascending_loss_and_its_exact_reverse():
  for worker, size in enumerate(PARTITION.sizes):
    own = PARTITION.indices[worker, :size]
    expected = own[np.argsort(HARDNESS[own])]
    np.testing.assert_array_equal(order_of(make(), worker), expected)
    np.testing.assert_array_equal(
      order_of(make(order='anti'), worker), expected[::-1]
    )


def test_ties_go_to_the_first_and_reverse_exactly():
  forward = order_of(make(), 2, params=0.0)
  np.testing.assert_array_equal(forward, PARTITION.indices[2, :9])
  backward = order_of(make(order='anti'), 2, params=0.0)
  np.testing.assert_array_equal(backward, forward[::-1])


def test_permuting_the_examples_permutes_the_order():
  shuffle = np.random.default_rng(1).permutation(12)
  sampler, params = make(), jnp.ones([])
  mine = data.Partition(PARTITION.indices[0], np.int32(12))
  other = data.Partition(PARTITION.indices[0][shuffle], np.int32(12))
  ranks = [sampler.start((), params, d, KEY).rank for d in (mine, other)]
  np.testing.assert_array_equal(ranks[0][shuffle], ranks[1])


def test_losses_that_are_not_finite_are_the_hardest():
  scores = jnp.array([2.0, jnp.nan, 1.0, -jnp.inf, 3e38, jnp.inf, 0.0, 0.0])
  valid = jnp.arange(8) < 6
  rank = _curriculum.rank_of(scores, valid)
  np.testing.assert_array_equal(rank, [1, 3, 0, 4, 2, 5, 6, 7])
  rank = _curriculum.rank_of(scores, valid, reverse=True)
  np.testing.assert_array_equal(rank, [4, 2, 5, 1, 3, 0, 6, 7])


def test_random_order_is_of_the_key_and_needs_no_scores():
  def never(params, images, labels):
    raise AssertionError

  sampler = make(order='random', loss_per_example=never)
  orders = [order_of(sampler, 0, key=k) for k in jax.random.split(KEY, 2)]
  assert not np.array_equal(*orders)
  np.testing.assert_array_equal(order_of(sampler, 0), order_of(sampler, 0))


def test_own_model_scores_once_it_took_part():
  received, own = jnp.array(1.0), jnp.array(-0.5)
  glob, local, both = (
    make(score=s) for s in ('global', 'local', 'global_and_local')
  )
  # What a worker received before it ever took part does not count.
  first = local.init(jnp.array(-7.0))
  later = local.finish(first, own)
  assert glob.init(received) == () and glob.finish((), own) == ()
  for sampler in (local, both):
    np.testing.assert_array_equal(
      order_of(sampler, 0, received, first), order_of(glob, 0, received)
    )
  np.testing.assert_array_equal(
    order_of(local, 0, received, later), order_of(glob, 0, own)
  )
  # The sum has the sign of 1 - 0.5, and of 1 - 2.
  np.testing.assert_array_equal(
    order_of(both, 0, received, later), order_of(glob, 0, received)
  )
  far = both.finish(first, jnp.array(-2.0))
  np.testing.assert_array_equal(
    order_of(both, 0, received, far), order_of(glob, 0, own)
  )


def test_an_expert_orders_alike_in_all_rounds():
  sampler = make(score='expert', expert_params=jnp.array(-1.0))
  expected = order_of(make(), 0, -1.0)
  for received in (1.0, -3.0, 0.0):
    np.testing.assert_array_equal(order_of(sampler, 0, received), expected)


@pytest.mark.parametrize('order', ['curriculum', 'anti', 'random'])
def test_without_pacing_it_is_shuffled_sgd_to_the_bit(order):
  sampler = make(
    order=order, pacing='step', full_at=1, initial_share=1, batch_size=4
  )
  images, labels = samplers.run(sampler, 12, params=jnp.ones([]))
  plain = data.local_sampler(IMAGES, LABELS, batch_size=4, shuffled=True)
  expected = samplers.run(plain, 12)
  np.testing.assert_array_equal(images, expected[0])
  np.testing.assert_array_equal(labels, expected[1])


def pools(order, size, min_pool, num_steps, batch_size, pacing):
  """The loop of the paper: for each step, the examples of its pool."""
  t = 0
  while t < num_steps:
    sizes = data.pool_size(
      t,
      pacing=pacing,
      num_examples=size,
      total_steps=num_steps,
      full_at=0.8,
      initial_share=0.2,
    )
    pool = order[: min(max(int(sizes), min_pool), size)]
    for _ in range(-(-pool.size // batch_size)):
      yield pool
      t += 1


@pytest.mark.parametrize('min_pool', [1, 6, 32])
@pytest.mark.parametrize('pacing', ['linear', 'root'])
def test_sweeps_of_a_growing_pool_as_in_the_papers_loop(min_pool, pacing):
  sampler = make(min_pool=min_pool, pacing=pacing)
  _, labels = samplers.run(sampler, 12, params=jnp.ones([]))
  grew = False
  for worker, size in enumerate(PARTITION.sizes):
    own = PARTITION.indices[worker, :size]
    order = own[np.argsort(HARDNESS[own])]
    t, all_pools = 0, list(pools(order, size, min_pool, 12, 2, pacing))
    while t < 12:
      pool = all_pools[t]
      length = -(-pool.size // 2)
      sweep = labels[worker, t : t + length].ravel()
      if t + length <= 12:
        seen = sweep[: pool.size]
        np.testing.assert_array_equal(np.sort(seen), np.sort(pool))
        np.testing.assert_array_equal(sweep, np.resize(seen, sweep.size))
      else:
        assert len(set(sweep)) == sweep.size and set(sweep) <= set(pool)
      t += length
    grew |= len({p.size for p in all_pools}) > 1
  assert grew == (min_pool < 12)


def test_pacing_numbers_may_be_traced():
  def first_pool(share, num_local_steps):
    sampler = make(initial_share=share, num_local_steps=num_local_steps)
    mine = data.Partition(*(jnp.asarray(x[0]) for x in PARTITION))
    plan = sampler.start((), jnp.ones([]), mine, KEY)
    return sampler.draw(plan, mine, jnp.array(0), KEY)[1].sweep.pool

  found = jax.jit(jax.vmap(first_pool))(
    jnp.array([0.25, 0.5, 2.0]), jnp.array([3, 4, 5])
  )
  np.testing.assert_array_equal(found, [3, 6, 12])


def test_scoring_in_pieces_gives_the_same_order():
  for pieces in (1, 5, 12):
    np.testing.assert_array_equal(
      order_of(make(score_batch_size=pieces), 0), order_of(make(), 0)
    )


def test_state_and_plan_keep_their_types_under_x64():
  with jax.enable_x64(True):
    sampler = make(score='local')
    mine = data.Partition(*(jnp.asarray(x[1]) for x in PARTITION))
    params = jnp.ones([], jnp.float32)
    state = sampler.init(params)
    plan = sampler.start(state, params, mine, KEY)
    _, after = sampler.draw(plan, mine, jnp.array(0), KEY)
    later = sampler.finish(state, params)
  for old, new in ((plan, after), (state, later)):
    assert jax.tree.map(jnp.result_type, old) == (
      jax.tree.map(jnp.result_type, new)
    )


@pytest.mark.parametrize(
  'change, found',
  [
    ({'order': 'easy'}, "order to be one of .*, got 'easy'"),
    ({'score': 'loss'}, "score to be one of .*, got 'loss'"),
    ({'pacing': 'slow'}, "pacing to be one of .*, got 'slow'"),
    ({'score': 'expert'}, "expert_params with score='expert'"),
    ({'expert_params': 1.0}, "only with it, got score='global'"),
    ({'num_local_steps': 0}, 'num_local_steps > 0, got 0'),
    ({'min_pool': 0}, 'min_pool .* at least 1, got 0'),
    ({'batch_size': 0}, 'batch_size .* at least 1, got 0'),
    ({'score_batch_size': 0}, 'score_batch_size .* at least 1, got 0'),
  ],
)
def test_refusals(change, found):
  with pytest.raises(ValueError, match=f'curriculum needs .*{found}'):
    make(**change)


def test_refuses_a_loss_of_the_whole_batch():
  sampler = make(loss_per_example=lambda params, images, labels: images.mean())
  with pytest.raises(ValueError, match=r'one number for each of 12 .* \[\]'):
    order_of(sampler, 0)
