"""Cells that bring their own loop go on from a checkpoint to the same rows."""

import pytest

from experiments.harness import loop, study

TINY = {
  'ordered_momentum': (
    {'num_messages': 12, 'num_evals': 3, 'batch_size': 2, 'rates': (0.02,)},
    'OrMo, 16, equal',
  ),
  'async_local': (
    {'mixture_phases': 3, 'num_local_steps': 2, 'num_evals': 3},
    'DN + DyLU, mixture, slight',
  ),
  # Its router is trained anew after half of the rounds.
  'dipaco': (
    {
      'num_documents': 32,
      'pretraining_steps': 1,
      'rounds': 4,
      'num_local_steps': 1,
      'batch_size': 2,
      'learning_rates': (0.01,),
    },
    'paths, DiPaCo, discriminative',
  ),
}


@pytest.mark.parametrize(
  'name',
  [
    'ordered_momentum',
    pytest.param('async_local', marks=pytest.mark.slow),
    pytest.param('dipaco', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('stretches', [1, 2])
def test_a_run_that_was_cut_goes_on_to_the_same_rows(
  name, stretches, program, tmp_path
):
  done = []

  def cut(rounds, rows):
    done.append(rounds)
    if len(done) > stretches:
      raise InterruptedError

  straight = loop.run(program, tmp_path / 'straight', save_seconds=1e9)
  with pytest.raises(InterruptedError):
    loop.run(program, tmp_path / 'cut', save_seconds=0, advance=cut)
  begun = loop.beginning(program, tmp_path / 'cut')
  assert begun[0] == program.stops[stretches - 1]
  assert loop.run(program, tmp_path / 'cut', begun=begun) == straight
  assert len(straight) == len(program.stops) * len(program.runs)
  assert not (tmp_path / 'straight').exists()


@pytest.fixture(scope='module')
def programs():
  return {}


@pytest.fixture
def program(name, programs):
  """One compilation for all its tests."""
  if name not in programs:
    options, part = TINY[name]
    of = study.load(name)
    config = of.Settings(num_seeds=2, **options)
    (cell,) = [cell for cell in of.define(config) if part in cell.name]
    programs[name] = study.program_of(cell, config, None)
  return programs[name]
