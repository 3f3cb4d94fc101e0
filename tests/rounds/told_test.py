"""What the optimizers of local steps are told, and passes over many rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony, data

N, KEY = 3, jax.random.key(0)
LABELS = np.arange(20)
PARTITION = data.Partition(
  np.stack([np.arange(8), np.arange(8, 16), np.resize(np.arange(16, 20), 8)]),
  np.array([8, 8, 4]),
)


def linear(w, x):
  return jnp.sum(w) + 0 * jnp.sum(x)


def told(name):
  """Moves along what it is told."""

  def update(updates, state, params=None, **extra):
    moved = -jnp.asarray(extra[name], jnp.float32)
    return jax.tree.map(lambda u: u * 0 + moved, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: (), update)


def moves(num_rounds, local_optimizer, **options):
  """How far the server moves in every round, by the mean of all workers."""
  arguments = {'num_local_steps': 2, 'local_state': 'reset', **options}
  round = byzjax.local_round(
    linear,
    num_workers=N,
    local_optimizer=local_optimizer,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(1.0),
    **arguments,
  )
  state, step = round.init(jnp.zeros([])), jax.jit(round.step)
  path = [0.0]
  for _ in range(num_rounds):
    state, _ = step(state, jnp.zeros([N, 2, 1]), KEY)
    path.append(float(state.params))
  return -np.diff(path)


def test_the_round_counts_rounds():
  np.testing.assert_allclose(moves(4, told('round')), [0, 2, 4, 6])


def test_progress_counts_the_steps_of_all_rounds():
  expected = [0 + 1, 2 + 3, 4 + 5]
  for state in ('reset', 'keep', 'average'):
    found = moves(3, told('progress'), local_state=state)
    np.testing.assert_allclose(found, expected)


def test_progress_is_of_the_worker_where_steps_differ():
  found = moves(
    3,
    told('progress'),
    num_local_steps=lambda round: jnp.array([1, 2, 3]),
    # Who was away has missed its steps.
    worker_weights=lambda round: jnp.float32([1, 1, round == 2]),
  )
  first, second = (0 + (0 + 1)) / 2, (1 + (2 + 3)) / 2
  third = (2 + (4 + 5) + (6 + 7 + 8)) / 3
  np.testing.assert_allclose(found, [first, second, third])


def test_a_rate_by_rounds_decays_though_the_state_is_reset():
  schedule = optax.exponential_decay(1.0, 1, 0.5)
  by_round = byzjax.scale_by_round(schedule)
  np.testing.assert_allclose(moves(3, by_round), [2, 1, 0.5])
  # What it is for: a count of its own begins anew.
  np.testing.assert_allclose(moves(3, optax.sgd(schedule)), [1.5] * 3)


def count_labels(w, batch):
  """A loss whose gradient is how often each label was seen."""
  return jnp.sum(w * jnp.zeros(20).at[batch[1]].add(1.0))


def make_sampler(**options):
  return data.local_sampler(
    np.zeros([20, 1]), LABELS, batch_size=2, shuffled=True, **options
  )


def counts(round, num_rounds, batch):
  """How often each example was seen after every round: [T, 20]."""
  state, step = round.init(jnp.zeros(20)), jax.jit(round.step)
  path = []
  for _ in range(num_rounds):
    state, _ = step(state, batch, KEY)
    path.append(-np.asarray(state.params))
  return np.stack(path)


def local(sampler, num_local_steps):
  return byzjax.local_round(
    count_labels,
    num_workers=N,
    num_local_steps=num_local_steps,
    local_optimizer=optax.sgd(1.0),
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(float(N)),
    sampler=sampler,
    local_state='reset',
  )


def test_a_pass_of_the_run_goes_on_from_round_to_round():
  # Three steps of two examples a round: four steps are a pass over eight.
  seen = counts(local(make_sampler(passes='run'), 3), 4, PARTITION)
  np.testing.assert_allclose(seen[3], [3] * 16 + [6] * 4)
  for t, steps in enumerate((3, 6, 9, 12)):
    # Within a pass every example at most once more than the others.
    assert np.ptp(seen[t, :8]) <= 1 and seen[t, :8].sum() == 2 * steps
  fresh = counts(local(make_sampler(), 3), 4, PARTITION)
  assert np.ptp(fresh[3, :16]) > 0


def test_it_does_not_matter_how_steps_are_cut_into_rounds():
  one = counts(local(make_sampler(passes='run'), 6), 1, PARTITION)[-1]
  three = counts(local(make_sampler(passes='run'), 2), 3, PARTITION)
  np.testing.assert_array_equal(one, three[-1])


def test_a_pass_of_the_run_goes_on_from_job_to_job():
  events = asynchrony.simulate([1.0, 1.3, 2.9], num_events=8, num_local_steps=1)
  round = byzjax.asynchronous_round(
    count_labels,
    events=events,
    optimizer=optax.sgd(1.0),
    sampler=make_sampler(passes='run'),
  )
  seen = counts(round, 8, PARTITION)[-1]
  for shard in range(2):
    steps = int((events.shard == shard).sum())
    mine = seen[8 * shard : 8 * shard + 8]
    assert mine.sum() == 2 * steps
    assert np.ptp(mine) <= 1


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'passes': 'epoch'}, "passes to be 'round' or 'run', got 'epoch'"),
    ({'passes': 'run', 'shuffled': False}, "shuffled=True if passes='run'"),
  ],
)
def test_refuses(options, message):
  arguments = {'batch_size': 2, 'shuffled': True, **options}
  with pytest.raises(ValueError, match=f'local_sampler needs {message}'):
    data.local_sampler(np.zeros([20, 1]), LABELS, **arguments)
  with pytest.raises(ValueError, match=f'sequence_sampler needs {message}'):
    data.sequence_sampler(np.zeros([20, 1], int), **arguments)
