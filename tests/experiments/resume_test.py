"""`--resume` as its users meet it: no flag again, longer runs, torn rows."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import train
from experiments.harness import lock, output, resume
from tests.experiments.calls import call_train, words

SMALL = {
  'num_workers': 5,
  'num_byzantine': 1,
  'aggregator': 'mean',
  'schedule': 'step(at=0.5)',
  'rounds': 4,
  'eval_every': 1,
  'num_seeds': 2,
}
SEVERAL = {**SMALL, 'aggregator': 'mean; trimmed_mean', 'rounds': 1}


def run(output_dir, **changed):
  return call_train(*words(output_dir, **changed))


def everything(folder):
  return {
    path.relative_to(folder): path.is_file() and path.read_bytes()
    for path in folder.rglob('*')
  }


def last_state(folder):
  newest = sorted((folder / 'checkpoints').iterdir())[-1]
  with ocp.StandardCheckpointer() as checkpointer:
    return newest.name, checkpointer.restore(newest.absolute())


@pytest.fixture(scope='module')
def several(tmp_path_factory):
  folder = tmp_path_factory.mktemp('several')
  run(folder, **SEVERAL)
  return folder


def test_a_run_that_was_torn_and_extended_has_the_bits_of_a_long_one(tmp_path):
  # With the step of 2 rounds, after the first.
  run(tmp_path / 'long', **SMALL, schedule_rounds=2)
  folder = tmp_path / 'short'
  run(folder, **{**SMALL, 'rounds': 2})
  # A number that lost its last digits is still a number.
  text = (folder / 'metrics.csv').read_text()
  (folder / 'metrics.csv').write_text(text[:-2])
  run(folder, resume=True, rounds=4)
  for name in ('metrics.csv', 'config.json'):
    assert (folder / name).read_bytes() == (
      tmp_path / 'long' / name
    ).read_bytes()
  found, expected = last_state(folder), last_state(tmp_path / 'long')
  assert found[0] == expected[0] == '00000004'
  jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
  with pytest.raises(SystemExit, match='--rounds is 4 there and 3 here'):
    run(folder, resume=True, rounds=3)


def test_several_rules_go_on_with_no_flag_given_again(several):
  before = everything(several)
  printed = run(several, resume=True)
  assert '; 1 rounds, 2 seeds' in printed and 'trimmed_mean' in printed
  assert 'krum' not in printed  # Which is in the defaults.
  assert everything(several) == before


def test_a_last_evaluation_that_a_longer_run_has_not_does_not_count(tmp_path):
  """Of 5 rounds, every 2: rounds 0, 2, 4, 5."""
  rows = [{'round': i, 'seed': s} for i in (0, 2, 4, 5) for s in (7, 8)]
  output.write_rows(tmp_path / 'metrics.csv', rows)
  for step in (4, 5):
    output.save_checkpoint(tmp_path, step, [jnp.array([step])])
  done, (state,), kept = resume.restore(
    tmp_path, [jnp.array([0])], [0, 2, 4, 6, 8], 2, 'metrics.csv'
  )
  assert done == 4 and state.tolist() == [4]
  assert [row['round'] for row in kept] == [0, 0, 2, 2, 4, 4]
  assert output.steps(tmp_path) == [4]


OTHERS = {
  'several rules': (
    {'aggregator': 'mean; krum', 'attack': 'sign_flip'},
    "--aggregator is 'mean; trimmed_mean' there and 'mean; krum' here, --attack"
    " is 'inner_product_manipulation.epsilon=0.1.' there and 'sign_flip' here",
  ),
  'one of the rules': (
    {'aggregator': 'mean'},
    "--aggregator is 'mean; trimmed_mean' there and 'mean' here",
  ),
  'a number': ({'seed': 1}, '--seed is 0 there and 1 here'),
}


@pytest.mark.parametrize('case', OTHERS)
def test_a_folder_of_another_run_is_left_alone(case, several):
  changed, message = OTHERS[case]
  before = everything(several)
  with pytest.raises(SystemExit, match=message) as end:
    run(several, resume=True, **changed)
  assert '\n' not in end.value.code
  assert everything(several) == before


def test_one_rule_of_a_folder_is_no_place_for_several(several):
  before = everything(several)
  with pytest.raises(
    SystemExit, match="--aggregator is 'mean' there and 'mean;"
  ):
    run(several / 'mean', resume=True, aggregator='mean; krum')
  assert everything(several) == before


def test_a_folder_above_runs_is_no_run(several, tmp_path):
  (several / 'mean').rename(tmp_path / 'mean')
  try:
    with pytest.raises(SystemExit, match='one that can go on is in .*/mean'):
      run(tmp_path, resume=True)
  finally:
    (tmp_path / 'mean').rename(several / 'mean')


def test_a_second_process_is_kept_out(several, monkeypatch):
  monkeypatch.setattr(lock, '_TRIES', 1)
  before = everything(several)
  taken = lock.take(several, resume=True)
  with pytest.raises(SystemExit, match='another process writes to'):
    run(several, resume=True)
  lock.release(taken)
  # One that continues a single rule is another process, too.
  taken = lock.take(several / 'mean', resume=True)
  with pytest.raises(SystemExit, match='another process writes to .*/mean'):
    run(several, resume=True)
  lock.release(taken)
  assert everything(several) == before


def test_two_that_begin_at_once_do_not_mix(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_TRIES', 1)
  taken = lock.take(tmp_path, resume=False)
  with pytest.raises(SystemExit, match='another process writes to'):
    run(tmp_path, **SMALL)
  lock.release(taken)
  # The other one was fast.
  program_of = train.program_of

  def slow(*arguments):
    (tmp_path / 'config.json').write_text('{}')
    return program_of(*arguments)

  monkeypatch.setattr(train, 'program_of', slow)
  with pytest.raises(SystemExit, match='is not empty'):
    run(tmp_path, **SMALL)
  assert (tmp_path / 'config.json').read_text() == '{}'


@pytest.mark.parametrize('ends', [{'schedule': 'cosine'}, {'method': 'qsr'}])
def test_a_cosine_that_has_ended_is_not_extended(ends, tmp_path):
  config = {'rounds': 100, 'schedule_rounds': 100, **ends}
  output.open_folder(tmp_path, config)
  resume.check({tmp_path: config})
  with pytest.raises(ValueError, match='--rounds=200: .* zero from round 100'):
    resume.check({tmp_path: {**config, 'rounds': 200}})


def test_an_unwritable_folder_is_one_line(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(
    SystemExit, match='train.py: --output_dir=.*/file is not a'
  ):
    run(tmp_path / 'file' / 'new', **SMALL)


def test_a_config_that_no_flag_takes_is_damaged(tmp_path):
  output.open_folder(tmp_path, {'program': 'train', 'rounds': 'many'})
  with pytest.raises(SystemExit, match="is damaged: rounds is 'many'"):
    run(tmp_path, resume=True)
