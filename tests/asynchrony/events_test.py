"""Simulated workers: closed forms, conservation, and the published numbers."""

import math

import numpy as np
import pytest

from byzjax import asynchrony

PUBLISHED = asynchrony.seconds_per_step('very', 4)


def test_published_speeds_give_the_reference_schedules():
  def ends(**arguments):
    events = asynchrony.simulate(PUBLISHED, total_steps=16000, **arguments)
    late = events.staleness
    return len(late), round(events.time[-1]), round(late.mean(), 2), late.max()

  assert ends(num_local_steps=20, grace=0.5) == (800, 3997, 2.75, 14)
  dynamic = [20, 15, 7, 3]
  assert ends(num_local_steps=dynamic, grace=0.5)[:2] == (1474, 4009)
  assert ends(num_local_steps=dynamic, grace=0.5)[3] == 4
  # The mean of 0, 1, 2, 3, every 20 x 3.33 seconds.
  assert ends(num_local_steps=20, grace=math.inf) == (800, 13320, 1.5, 3)


def test_levels_lie_between_equal_and_published_speeds():
  no, slight, moderate, very = (
    asynchrony.seconds_per_step(level, 7)
    for level in ('no', 'slight', 'moderate', 'very')
  )
  np.testing.assert_array_equal(no, 1)
  np.testing.assert_allclose(slight**3, very, 1e-9)
  np.testing.assert_allclose(moderate**1.5, very, 1e-9)
  np.testing.assert_allclose(very[[0, 2, 4, 6]], PUBLISHED)
  assert (np.diff(very) > 0).all()


def test_equal_speeds_without_a_wait_go_round_and_lag_by_all_others():
  events = asynchrony.simulate(np.ones(5), num_events=50, variation=1e-9)
  # Times differ by so little that only the order is random; each begins again
  # before the others have sent.
  np.testing.assert_array_equal(
    np.sort(events.worker.reshape(10, 5)), np.tile(np.arange(5), (10, 1))
  )
  steady = events.staleness[5:]
  # Between two messages of one worker all others send once, in any order.
  assert steady.mean() == pytest.approx(4, abs=0.2)


def test_a_short_wait_makes_rounds_of_equal_workers():
  events = asynchrony.simulate(np.ones(4), num_events=40, grace=1e-6)
  np.testing.assert_array_equal(events.staleness, np.tile(np.arange(4), 10))
  np.testing.assert_array_equal(events.is_waiting, events.staleness > 0)
  np.testing.assert_array_equal(events.issued_at, np.arange(40) // 4 * 4)


@pytest.mark.parametrize('variation', [0.0, 0.3])
def test_staleness_and_throughput_tend_to_their_closed_forms(variation):
  speeds = np.array([0.7, 1.0, 1.9, 4.3, 9.1])
  events = asynchrony.simulate(speeds, max_time=4000.0, variation=variation)
  # All versions in flight are K - 1 others on average, whatever the speeds.
  assert events.staleness.mean() == pytest.approx(4, rel=0.02)
  assert len(events.time) == pytest.approx(4000 * (1 / speeds).sum(), rel=0.02)
  assert (np.diff(events.time) >= 0).all()
  assert events.time[-1] <= 4000


def test_every_worker_is_sent_parameters_once_between_its_messages():
  events = asynchrony.simulate(
    PUBLISHED, num_events=300, grace=1.0, variation=0.4, seed=3
  )
  for k in range(4):
    (when,) = np.nonzero(events.worker == k)
    begun = events.issued_at[when]
    assert begun[0] == 0
    # After its own last message, and before this one.
    assert (begun[1:] > when[:-1]).all()
    assert (begun <= when).all()


@pytest.mark.parametrize('shards', ['own', 'balanced', 'least_visited'])
def test_no_step_of_a_shard_is_given_out_twice(shards):
  sizes = np.array([1.0, 2.0, 1.0, 4.0])
  steps = np.array([7, 3, 2, 1])
  events = asynchrony.simulate(
    PUBLISHED,
    num_events=400,
    num_local_steps=steps,
    variation=0.2,
    shards=shards,
    shard_sizes=sizes,
  )
  np.testing.assert_array_equal(events.num_local_steps, steps[events.worker])
  totals = np.zeros(4)
  for shard in range(4):
    mine = events.shard == shard
    begun, count = events.progress[mine], events.num_local_steps[mine]
    order = np.argsort(begun)
    spans = begun[order] + count[order]
    assert (begun[order][1:] >= spans[:-1]).all()
    totals[shard] = count.sum()
  if shards == 'own':
    np.testing.assert_array_equal(events.shard, events.worker)
  else:
    np.testing.assert_allclose(totals / totals.sum(), sizes / 8, atol=0.02)


def test_stragglers_lost_messages_and_absences():
  still = asynchrony.simulate(
    [1.0, 1.0, 1.0],
    num_events=60,
    absences=[(1, 5.5, 20.0), (2, 9.5, math.inf)],
  )
  of_1 = still.time[still.worker == 1]
  assert not ((of_1 >= 5.5) & (of_1 <= 20)).any()
  assert 21.0 in of_1
  assert still.time[still.worker == 2].max() == 9
  # It begins again with what was newest at 20 s.
  again = np.nonzero((still.worker == 1) & (still.time == 21))[0][0]
  before = np.sum(still.time <= 20)
  assert abs(int(still.issued_at[again]) - int(before)) <= 1

  # A worker is away from 2 to 11 seconds, in whatever order it is said.
  overlapping = [(0, 2, 9), (0, 8, 11)]
  for absences in (overlapping, overlapping[::-1]):
    away = asynchrony.simulate([6.0, 3.0], num_events=8, absences=absences)
    np.testing.assert_array_equal(away.time[away.worker == 0], [17])

  lossy = asynchrony.simulate(
    np.ones(4), max_time=2000.0, loss_probability=0.25, variation=0.1
  )
  assert len(lossy.time) == pytest.approx(0.75 * 8000, rel=0.03)
  slow = asynchrony.simulate(
    np.ones(4), max_time=4000.0, slow_probability=0.1, slow_factor=5.0
  )
  # A job takes 0.9 + 0.1 x 5 seconds on average.
  assert len(slow.time) == pytest.approx(16000 / 1.4, rel=0.03)


def test_task_times_have_the_stated_mean_and_deviation():
  events = asynchrony.simulate([2.0], num_events=4000, variation=0.1)
  lengths = np.diff(events.time, prepend=0)
  assert lengths.mean() == pytest.approx(2, rel=0.01)
  assert lengths.std() / lengths.mean() == pytest.approx(0.1, rel=0.05)


def test_schedules_are_functions_of_their_seed():
  def worker(seed, speeds=(1.0, 1.5, 2.0)):
    return asynchrony.simulate(speeds, num_events=90, variation=0.5, seed=seed)

  for a, b in zip(worker(1), worker(1)):
    np.testing.assert_array_equal(a, b)
  assert (worker(1).worker != worker(2).worker).any()
  # Streams are by worker: another speed elsewhere leaves worker 0 its times.
  times = [
    events.time[events.worker == 0][:10]
    for events in (worker(1), worker(1, (1.0, 9.0, 0.4)))
  ]
  np.testing.assert_array_equal(*times)


def test_buffers_by_arrival_worker_and_distinct_workers():
  events = asynchrony.simulate([1.0, 1.1, 7.0], num_events=200, variation=0.1)
  first = asynchrony.by_arrival(events, num_rows=3)
  np.testing.assert_array_equal(first.is_full, np.arange(200) % 3 == 2)

  own = asynchrony.by_worker(events, num_rows=3)
  np.testing.assert_array_equal(own.row, events.worker)
  ends = np.nonzero(own.is_full)[0]
  for start, end in zip([0, *(ends[:-1] + 1)], ends):
    sent = events.worker[start : end + 1]
    assert set(sent) == {0, 1, 2}
    # The one that it waited for is the last, and the only one of its kind.
    assert (sent == sent[-1]).sum() == 1
    counts = [(sent[: i + 1] == k).sum() for i, k in enumerate(sent)]
    np.testing.assert_array_equal(own.num_averaged[start : end + 1], counts)

  two = asynchrony.by_distinct_workers(events, num_rows=2)
  ends = np.nonzero(two.is_full)[0]
  for start, end in zip([0, *(ends[:-1] + 1)], ends):
    pairs = set(zip(two.row[start : end + 1], events.worker[start : end + 1]))
    assert len(pairs) == 2  # One worker a place, two places.
    assert {row for row, _ in pairs} == {0, 1}
  assert two.is_full.sum() > 3 * own.is_full.sum()


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(seconds_per_step=[1.0, 0.0]), 'seconds_per_step'),
    (dict(num_events=None), 'num_events, total_steps or max_time'),
    (dict(num_events=0), 'num_events'),
    (dict(grace=-1.0), 'grace between 0 and inf, got -1.0'),
    (dict(loss_probability=1.0), 'loss_probability < 1'),
    (dict(slow_probability=1.5), 'slow_probability between 0 and 1, got 1.5'),
    (dict(num_local_steps=[1, 2, 3]), r'num_local_steps .* int\[2\]'),
    (dict(num_local_steps=0), 'num_local_steps'),
    (dict(shards='mine'), "shards to be 'own'"),
    (dict(shard_sizes=[1.0, 1.0, 1.0]), 'as many shards as workers'),
    (dict(absences=[(2, 0.0, 1.0)]), 'worker < 2'),
    (
      dict(absences=[(0, 0.0, math.inf), (1, 0.0, math.inf)]),
      'at least one worker to be present until the end',
    ),
  ],
)
def test_errors_name_the_argument(arguments, message):
  defaults = dict(seconds_per_step=[1.0, 2.0], num_events=10)
  with pytest.raises(ValueError, match=f'simulate needs .*{message}'):
    asynchrony.simulate(**(defaults | arguments))


def test_errors_of_buffers_and_levels():
  events = asynchrony.simulate([1.0, 2.0], num_events=5)
  with pytest.raises(ValueError, match='num_rows <= num_workers, got 3 and 2'):
    asynchrony.by_worker(events, num_rows=3)
  with pytest.raises(ValueError, match='by_arrival .*num_rows.* 0'):
    asynchrony.by_arrival(events, num_rows=0)
  with pytest.raises(ValueError, match='level .* got .extremely.'):
    asynchrony.seconds_per_step('extremely', 4)
