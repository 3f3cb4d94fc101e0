"""Events from a record, and events that cannot be a run."""

import math

import jax
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony

SPEEDS = [0.7, 1.0, 1.9, 4.3]
FIELDS = asynchrony.Events._fields


def _assert_same(actual, expected, fields=FIELDS):
  for field in fields:
    mine, theirs = getattr(actual, field), getattr(expected, field)
    np.testing.assert_array_equal(mine, theirs, field)
    if isinstance(theirs, np.ndarray):
      assert mine.dtype == theirs.dtype, field


@pytest.mark.parametrize('speeds', [SPEEDS, np.ones(4)], ids=['own', 'equal'])
@pytest.mark.parametrize('variation', [0.0, 0.4])
@pytest.mark.parametrize('grace', [0.0, 0.9, 3.0, math.inf])
def test_a_trace_of_a_simulation_is_the_simulation(speeds, variation, grace):
  steps = np.array([4, 3, 2, 1])
  events = asynchrony.simulate(
    speeds,
    num_events=203,  # not whole rounds
    num_local_steps=steps,
    variation=variation,
    grace=grace,
    slow_probability=0.05,
  )
  replayed = asynchrony.events_from_trace(
    events.worker,
    events.time,
    grace=grace,
    num_local_steps=steps[events.worker],
  )
  _assert_same(replayed, events)


def test_lists_give_the_same_events_and_silent_workers_count():
  events = asynchrony.simulate(SPEEDS, num_events=30)
  replayed = asynchrony.events_from_trace(
    events.worker.tolist(), events.time.tolist()
  )
  _assert_same(replayed, events)
  more = asynchrony.events_from_trace([0, 0], [1.0, 2.0], num_workers=3)
  assert (more.num_workers, more.num_shards) == (3, 3)


def test_numbered_parameters_and_starts_tell_of_losses():
  events = asynchrony.simulate(
    SPEEDS, num_events=150, variation=0.2, loss_probability=0.3
  )
  replayed = asynchrony.events_from_trace(
    events.worker,
    events.time,
    issued_at=events.issued_at,
    progress=events.progress,
    is_waiting=events.is_waiting,
  )
  _assert_same(replayed, events)
  # Started just after the message before, as the server numbers them.
  arrivals = np.append(0, events.time)
  by_time = asynchrony.events_from_trace(
    events.worker, events.time, started=arrivals[events.issued_at]
  )
  _assert_same(by_time, events, ('issued_at', 'worker', 'time'))
  # Without a word of it, a worker would have begun at once.
  silent = asynchrony.events_from_trace(events.worker, events.time)
  assert (silent.issued_at < events.issued_at).any()


def test_a_worker_waits_from_its_message_to_its_next_parameters():
  events = asynchrony.events_from_trace(
    [0, 1, 1, 0, 1], [1.0, 2.0, 3.0, 4.0, 5.0], started=[0, 0, 2, 3.5, 3]
  )
  np.testing.assert_array_equal(events.issued_at, [0, 0, 2, 3, 3])
  # Worker 0 at the second and third message.
  np.testing.assert_array_equal(events.is_waiting, [0, 1, 1, 0, 0])


def test_a_job_that_takes_no_time_does_not_know_its_own_message():
  events = asynchrony.events_from_trace([0, 1], [1.0, 1.0], started=[1.0, 1.0])
  np.testing.assert_array_equal(events.issued_at, [0, 1])


def test_shared_shards_count_their_steps_in_the_order_of_the_jobs():
  events = asynchrony.events_from_trace(
    [0, 1, 0, 1],
    [1.0, 1.5, 2.0, 3.0],
    num_local_steps=[2, 3, 1, 1],
    shards=[1, 1, 1, 0],
    num_shards=2,
  )
  np.testing.assert_array_equal(events.progress, [0, 2, 5, 0])
  # What is given out by `simulate` holds jobs that have not arrived, too.
  events = asynchrony.simulate(SPEEDS, num_events=90, shards='least_visited')
  replayed = asynchrony.events_from_trace(
    events.worker, events.time, shards=events.shard, progress=events.progress
  )
  _assert_same(replayed, events)


def test_a_round_runs_on_a_trace():
  events = asynchrony.events_from_trace([0, 1, 0], [1.0, 1.5, 2.0])
  training = byzjax.asynchronous_round(
    lambda w, x: ((w - x) ** 2).sum(), events=events, optimizer=optax.sgd(0.25)
  )
  state, step = training.init(np.zeros(1, np.float32)), jax.jit(training.step)
  for _ in range(3):
    state, info = step(state, np.ones((2, 1, 1), np.float32), jax.random.key(0))
  # 0.5 and 0.5 from the start, and half of 0.5 from after the first.
  np.testing.assert_allclose(state.params, 1.25)
  assert int(info.staleness) == 1


GOOD = asynchrony.simulate([1.0, 2.5], num_events=6)


def _with(field, index, value):
  array = getattr(GOOD, field).copy()
  array[index] = value
  return GOOD._replace(**{field: array})


TAKERS = {
  'asynchronous_round': lambda events: byzjax.asynchronous_round(
    lambda w, x: w, events=events, optimizer=optax.sgd(0.1)
  ),
  'by_arrival': lambda events: asynchrony.by_arrival(events, num_rows=2),
  'by_worker': lambda events: asynchrony.by_worker(events, num_rows=2),
  'by_distinct_workers': lambda events: asynchrony.by_distinct_workers(
    events, num_rows=2
  ),
}
WRONG = [
  (_with('worker', 3, 7), r'worker\[3\] to be from 0 to 1.*got 7'),
  (_with('worker', 0, -1), r'worker\[0\] to be from 0 to 1.*got -1'),
  (_with('time', 2, math.nan), r'time\[2\] to be finite.*got nan'),
  (_with('time', 5, math.inf), r'time\[5\] to be finite.*got inf'),
  (_with('time', 0, -1.0), r'time\[0\] to be .*at least 0, got -1.0'),
  (_with('time', 4, 0.5), r'time\[4\] to be at least that of .*got 0.5'),
  (_with('issued_at', 1, 5), r'issued_at\[1\] .*parameters of the future.*5'),
  (_with('issued_at', 2, -1), r'issued_at\[2\] .*got -1'),
  (_with('issued_at', 1, 0), r'issued_at\[1\] .*last event of the same .*0'),
  (_with('num_local_steps', 1, 0), r'num_local_steps\[1\] .*at least 1, got 0'),
  (_with('shard', 4, 2), r'shard\[4\] to be from 0 to 1.*got 2'),
  (_with('progress', 4, -3), r'progress\[4\] to be at least 0, got -3'),
  (_with('progress', 4, 0), r'progress\[4\] .*no other job takes, got 0'),
  (_with('progress', 0, 9), r'progress\[0\] .*began later, got 9'),
  (_with('is_waiting', 0, True), r'is_waiting\[0\] to be False.*got True'),
  (GOOD._replace(time=GOOD.time[:4]), r'time .*each of the 6 messages.*got 4'),
  (GOOD._replace(worker=GOOD.worker * 1.0), r'worker .*int\[E\].*float64\[6\]'),
  (GOOD._replace(is_waiting=GOOD.worker), r'is_waiting .*bool\[E\].*int32'),
  (GOOD._replace(shard=np.int32(0)), r'shard .*int\[E\].*int32\[\]'),
  (GOOD._replace(num_workers=0), 'num_workers .*at least 1, got 0'),
  (GOOD._replace(num_shards=1.0), 'num_shards .*int.*got 1.0'),
  (GOOD._replace(worker=GOOD.worker.astype(np.int64) + 2**31), 'at most'),
  (
    GOOD._replace(**{f: getattr(GOOD, f)[:0] for f in FIELDS[2:]}),
    'at least one message, got none',
  ),
  (None, 'asynchrony.simulate or asynchrony.events_from_trace, got NoneType'),
]


@pytest.mark.parametrize('events, message', WRONG, ids=range(len(WRONG)))
def test_events_that_cannot_be_a_run_are_refused(events, message):
  for name, take in TAKERS.items():
    with pytest.raises(ValueError, match=f'{name} needs (events.)?.*{message}'):
      take(events)


def test_hand_made_events_of_lists_are_those_of_arrays():
  lists = asynchrony.Events(
    2, 2, *(getattr(GOOD, field).tolist() for field in FIELDS[2:])
  )
  for actual, expected in zip(
    asynchrony.by_worker(lists, num_rows=2),
    asynchrony.by_worker(GOOD, num_rows=2),
  ):
    np.testing.assert_array_equal(actual, expected)
  TAKERS['asynchronous_round'](lists)


def test_traced_events_are_refused():
  @jax.jit
  def build(worker):
    TAKERS['by_arrival'](GOOD._replace(worker=worker))

  with pytest.raises(ValueError, match=r'events.worker .*before jax.jit'):
    build(GOOD.worker)


BUFFER = asynchrony.by_arrival(GOOD, num_rows=2)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(row=[0, 1, 0, 2, 0, 1]), r'row\[3\] to be from 0 to 1.*got 2'),
    (dict(num_averaged=[1, 1, 1, 2, 1, 1]), r'num_averaged\[3\] .*got 2'),
    (dict(is_full=[True] + [False] * 5), r'is_full\[0\] .*no message.*True'),
    (dict(num_averaged=[1]), 'an entry for each of 6 events, got 1 and 6'),
    (dict(num_rows=0), 'num_rows .*at least 1, got 0'),
    (dict(is_full=[0, 1, 0, 1, 0, 1]), r'is_full to be bool\[E\]'),
  ],
)
def test_buffers_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ValueError, match=f'asynchronous_round needs .*{message}'):
    byzjax.asynchronous_round(
      lambda w, x: w,
      events=GOOD,
      optimizer=optax.sgd(0.1),
      buffer=BUFFER._replace(**changes),
    )


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(workers=[0, 3, 0], num_workers=2), r'workers\[1\] to be from 0 to 1'),
    (dict(workers=[0, -1, 0]), r'workers\[1\] to be from 0 to 0.*got -1'),
    (dict(times=[1.0, 3.0, 2.0]), r'times\[2\] to be at least .*got 2.0'),
    (dict(times=[1.0, math.nan, 2.0]), r'times\[1\] to be finite'),
    (dict(times=[1.0, 2.0]), 'times .*each of the 3 messages .*got 2'),
    (dict(workers=[], times=[]), 'at least one message'),
    (dict(workers=[0.0, 1.0, 0.0]), r'workers to be int\[E\]'),
    (dict(issued_at=[0, 0, 3]), r'issued_at\[2\] .*future.*got 3'),
    (dict(issued_at=[0, 0, 0]), r'issued_at\[2\] .*same worker.*got 0'),
    (dict(started=[0, 0, 0.5]), r'started\[2\] .*same worker.*got 0.5'),
    (dict(started=[0, 2.5, 1]), r'started\[1\] .*got 2.5'),
    (dict(started=[-1, 0, 1]), r'started\[0\] .*got -1'),
    (dict(started=[0, 0, 1], grace=1.0), 'only one of started'),
    (dict(grace=-1.0), 'grace >= 0'),
    (dict(num_local_steps=[1, 0, 1]), r'num_local_steps\[1\] .*got 0'),
    (dict(num_local_steps=2.5), r'num_local_steps to be int\[E\]'),
    (dict(shards=[0, 2, 0]), r'shards\[1\] to be from 0 to 1.*got 2'),
    (dict(progress=[0, 0, 0]), r'progress\[2\] .*no other job'),
    (dict(is_waiting=[1, 0, 0]), r'is_waiting to be bool\[E\]'),
  ],
)
def test_errors_of_a_trace_name_the_argument(arguments, message):
  defaults = dict(workers=[0, 1, 0], times=[1.0, 2.0, 3.0])
  with pytest.raises(ValueError, match=f'events_from_trace needs .*{message}'):
    asynchrony.events_from_trace(**(defaults | arguments))


# A file.


def test_a_file_is_the_arrays_that_it_holds(tmp_path):
  path = tmp_path / 'trace.csv'
  path.write_text(
    'time,worker,num_local_steps\n1.0,0,2\n2.0,0,2\n2.5,1,3\n3.0,0,2\n'
  )
  read = asynchrony.read_trace(path, num_workers=3)
  made = asynchrony.events_from_trace(
    [0, 0, 1, 0],
    [1.0, 2.0, 2.5, 3.0],
    num_local_steps=[2, 2, 3, 2],
    num_workers=3,
  )
  for found, expected in zip(read, made, strict=True):
    np.testing.assert_array_equal(found, expected)


def test_the_file_that_comes_along_is_a_run():
  events = asynchrony.read_trace()
  assert events.num_workers == 12 and len(events.worker) == 400
  # Slow workers and such that were away.
  assert events.staleness.max() > 30
  assert np.ptp(np.bincount(events.worker)) > 20


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'got an empty file'),
    ('worker\n0\n', 'with worker and time, got worker'),
    ('worker,time,mood\n0,1.0,good\n', 'got worker, time, mood'),
    ('worker,time\n0,1.0\nx,2.0\n', "worker to be int, got 'x' in line 3"),
    ('worker,time\n0,1.0\n1\n', 'time to be float, got None in line 3'),
    (
      'worker,time\n0,1.0\n1,2,5\n',
      'each of worker, time, got 1 more in line 3',
    ),
    ('worker,time\n0,2.0\n0,1.0\n', r'times\[1\] to be at least'),
  ],
)
def test_a_file_that_is_no_run(text, message, tmp_path):
  path = tmp_path / 'trace.csv'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    asynchrony.read_trace(path)
