import concurrent.futures
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import timing

needs_clocks = pytest.mark.skipif(
  not timing._thread_seconds(), reason='threads have no clocks here'
)


def _burn(seconds: float) -> None:
  """Uses so much CPU time in this thread, however long that takes."""
  end = time.thread_time() + seconds
  while time.thread_time() < end:
    pass


@needs_clocks
def test_the_critical_path_is_of_the_busiest_thread_wherever_it_is():
  with concurrent.futures.ThreadPoolExecutor(2) as pool:

    def call():
      return [f.result() for f in [pool.submit(_burn, t) for t in (0.02, 0.05)]]

    times = timing.interleaved({'threads': call}, 2)['threads']
  assert len(times.wall) == len(times.critical) == 2
  # A thread more than its own, but not the sum of both.
  assert all(0.05 <= t < 0.07 for t in times.critical)


@needs_clocks
def test_waiting_is_not_on_the_critical_path():
  times = timing.interleaved({'sleep': lambda: time.sleep(0.05)}, 1)['sleep']
  assert times.wall[0] >= 0.05 > times.critical[0]


def test_without_clocks_there_are_wall_clocks_alone(monkeypatch):
  monkeypatch.setattr(timing, '_THREADS', '/nowhere')
  times = timing.interleaved({'nothing': lambda: None}, 3)['nothing']
  assert len(times.wall) == 3 and times.critical == []


def test_repeats_end_with_the_time_but_there_is_one():
  calls = {'a': lambda: None, 'b': lambda: None}
  times = timing.interleaved(calls, 100, 0.0)
  assert [len(t.wall) for t in times.values()] == [1, 1]


def test_a_ratio_is_the_median_of_those_of_each_repeat():
  ours = timing.Times([2.0, 30.0, 4.0], [])
  floor = timing.Times([1.0, 10.0, 4.0], [])
  assert timing.ratio(ours, floor) == 2.0


def test_compiled_programs_say_what_they_took():
  made = timing.compiled(lambda x: jnp.sort(x) + 1, jnp.arange(3.0))
  assert jax.device_get(made.call()).tolist() == [1.0, 2.0, 3.0]
  assert made.compile_seconds > 0 and made.temporary_bytes >= 0
