"""The trainer of `experiments.diloco`: the same on every mesh, and resumed."""

import dataclasses

import numpy as np
import pytest

from experiments import chaos, diloco
from experiments.harness import loop

SMALL = diloco.Settings(
  length=8,
  width=8,
  num_layers=2,
  rounds=4,
  num_local_steps=3,
  batch_size=2,
  num_evals=2,
  rules=('coordinate_median',),
)


def _rows(folder, rule='coordinate_median', fault='none', **options):
  config = dataclasses.replace(SMALL, **options)
  return loop.run(diloco.program_of(config, rule, fault), folder)


def _losses(rows):
  return np.array([row['loss'] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [{}, {'num_fragments': 2, 'apply_delay': 1, 'alpha': 0.5}],
  ids=['whole', 'streaming'],
)
def test_a_mesh_trains_as_one_device_does(tmp_path, options):
  rule = 'nearest_neighbor_mixing | trimmed_mean'
  split, alone = (
    _losses(_rows(tmp_path, rule, mesh=mesh, **options))
    for mesh in ((4, 2), (1, 1))
  )
  np.testing.assert_allclose(split, alone, rtol=1e-5)


def test_a_run_goes_on_to_the_same_bits_from_a_sharded_checkpoint(tmp_path):
  program = diloco.program_of(SMALL, 'centered_clipping(radius=1.0)', 'lag')
  whole = loop.run(program, tmp_path / 'whole')
  cut = program._replace(stops=program.stops[:1])
  loop.run(cut, tmp_path / 'cut', save_seconds=0.0)
  rows = loop.run(program, tmp_path / 'cut')
  assert len(rows) == 2 and rows == whole


@pytest.mark.slow
@pytest.mark.parametrize('fault', chaos.FAULTS[1:])
def test_faults_break_the_mean_and_not_the_median(tmp_path, fault):
  robust = _rows(tmp_path, fault=fault)[-1]
  assert robust['loss'] < 4.2
  # The median of all: those that are away have no weight.
  assert 0.5 < robust['goodput'] <= 1.0
  if fault == 'nan':
    broken = _rows(tmp_path, diloco.REDUCE_MEAN, fault)[-1]
    assert np.isnan(broken['loss']) and broken['goodput'] < 1.0


def test_liars_lie_to_the_plain_mean_too(tmp_path):
  honest, attacked = (
    _rows(tmp_path / fault, diloco.REDUCE_MEAN, fault)[-1]['loss']
    for fault in ('none', 'lie')
  )
  assert attacked > honest + 0.1


def test_the_state_lies_on_the_mesh_as_it_should():
  program = diloco.program_of(SMALL, 'coordinate_median', 'none')
  state = program.start()
  name = max(state.params, key=lambda k: state.params[k].size)
  spec = state.params[name].sharding.spec
  assert 'fsdp' in spec
  for mine in (state.replicas[name], state.moments[0].mu[name]):
    assert tuple(mine.sharding.spec) == ('replicas', *spec)
    assert 8 * mine.addressable_shards[0].data.size == mine.size


def test_fragments_are_synchronised_in_turn_and_late(tmp_path):
  program = diloco.program_of(
    dataclasses.replace(SMALL, num_fragments=3, apply_delay=1, alpha=0.5),
    'coordinate_median',
    'none',
  )
  before = {k: np.asarray(x) for k, x in program.start().params.items()}
  state, _ = program.stretch(program.start(), 0, 1)
  moved = {k for k, x in state.params.items() if np.any(x != before[k])}
  # Blocks have fragments of their own.
  assert moved == {k for k in before if not k.startswith('blocks')}
  state, _ = program.stretch(state, 1, 1)
  moved = {k for k, x in state.params.items() if np.any(x != before[k])}
  assert moved == {k for k in before if not k.startswith('blocks1')}


def test_the_first_steps_are_not_undone():
  config = dataclasses.replace(SMALL, apply_delay=SMALL.num_local_steps)
  program = diloco.program_of(config, 'coordinate_median', 'none')
  before = {k: np.asarray(x) for k, x in program.start().params.items()}
  state, _ = program.stretch(program.start(), 0, 1)
  assert any(np.any(x != before[k]) for k, x in state.params.items())


@pytest.mark.parametrize(
  'options, message',
  [
    ({'mesh': (4,)}, r'--mesh must be two numbers, .* got \(4,\)'),
    ({'num_replicas': 6}, '--num_replicas must be .*, got 6 and 4'),
    ({'num_replicas': 4}, '--quorum must be .* --num_replicas, got 5 and 4'),
    ({'alpha': 2.0}, '--alpha must be at most 1, got 2.0'),
    ({'apply_delay': 4}, '--apply_delay must be at most .*, got 4 and 3'),
    ({'num_fragments': 4}, '--num_fragments must be .*, got 4 and 3'),
  ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    diloco.runs_of(dataclasses.replace(SMALL, **options))


@pytest.mark.slow
def test_too_few_finite_replicas_change_nothing(tmp_path):
  rows = _rows(tmp_path, quorum=9)
  assert rows[0]['loss'] == rows[-1]['loss'] and rows[-1]['goodput'] == 0
