"""Folders that cannot be written, are full, torn, or of another run."""

import errno
import json
import math
import os
import pathlib
import shutil

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from experiments.harness import output


@pytest.mark.parametrize('text', ['1,0.25\n2,0.', '1,0.25\n2', '1,0.25\n2\n'])
def test_a_torn_last_row_does_not_count(text, tmp_path):
  path = tmp_path / 'rows.csv'
  path.write_text(f'round,loss\n{text}')
  assert output.read_whole_rows(path) == (
    [{'round': '1', 'loss': '0.25'}],
    True,
  )
  path.write_text('round,loss\n1,0.25\n')
  assert not output.read_whole_rows(path)[1]


@pytest.mark.parametrize('text', ['', 'rou', 'round,loss'])
def test_a_torn_first_line_leaves_no_rows(text, tmp_path):
  (tmp_path / 'rows.csv').write_text(text)
  assert output.read_whole_rows(tmp_path / 'rows.csv') == ([], True)


def test_a_row_that_is_broken_before_the_last_is_damage(tmp_path):
  (tmp_path / 'rows.csv').write_text('round,loss\n1\n2,0.5\n')
  with pytest.raises(ValueError, match=r'rows\.csv is damaged'):
    output.read_whole_rows(tmp_path / 'rows.csv')


def test_a_column_that_a_row_lacks_is_not_a_number(tmp_path):
  path = tmp_path / 'rows.csv'
  output.write_rows(
    path, [{'cell': 'a', 'loss': 0.5}, {'cell': 'b', 'cosine': 0.25}]
  )
  assert path.read_text() == 'cell,loss,cosine\na,0.5,nan\nb,nan,0.25\n'
  first, second = output.numbers(output.read_rows(path))
  assert first['loss'] == 0.5 and math.isnan(first['cosine'])
  assert second['cosine'] == 0.25 and math.isnan(second['loss'])


def test_rounds_that_lack_a_seed_do_not_count(tmp_path):
  rows = [{'round': i, 'seed': s} for i in (0, 2, 4) for s in (0, 1)]
  output.write_rows(tmp_path / 'rows.csv', rows[:-1])
  found = output.rows_up_to(tmp_path / 'rows.csv', [0, 2, 4, 6], 2)
  assert [row['round'] for row in found] == [0, 0, 2, 2]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
  tmp_path, monkeypatch
):
  output.write_text(tmp_path / 'a.csv', 'before')

  def write_text(path, text):
    path.write_bytes(b'ha')
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

  monkeypatch.setattr(pathlib.Path, 'write_text', write_text)
  with pytest.raises(
    SystemExit, match=r'^cannot write .*a\.csv: No space left'
  ):
    output.write_text(tmp_path / 'a.csv', 'after')
  assert [path.name for path in tmp_path.iterdir()] == ['a.csv']
  assert (tmp_path / 'a.csv').read_text() == 'before'


def test_a_checkpoint_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
  def save(self, path, state):
    raise ValueError(
      'RESOURCE_EXHAUSTED: Error writing "a/0" at local file "x/": Failed to'
      " write 9 bytes to file 5: No space left on device [os_error_code='28']"
    )

  monkeypatch.setattr(ocp.StandardCheckpointer, 'save', save)
  with pytest.raises(
    SystemExit, match=r'^cannot write .*/00000003: No space left on device$'
  ):
    output.save_checkpoint(tmp_path, 3, [jnp.zeros(2)])


def test_a_checkpoint_is_not_begun_where_there_is_no_room(
  tmp_path, monkeypatch
):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
  with pytest.raises(SystemExit, match='No space left on device'):
    output.save_checkpoint(tmp_path, 3, [jnp.zeros(2)])
  assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_not_writable_is_refused_at_once(
  tmp_path, monkeypatch
):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='file is not a folder'):
    output.check_root(tmp_path / 'file' / 'new', resume=False)
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  with pytest.raises(ValueError, match=f'cannot write to {tmp_path}$'):
    output.check_root(tmp_path / 'new', resume=False)


def test_a_folder_of_another_program_is_refused(tmp_path):
  output.open_folder(tmp_path, {'program': 'grid', 'rounds': 2})
  with pytest.raises(ValueError, match='has a run of grid, not train'):
    output.open_folder(tmp_path, {'program': 'train', 'rounds': 2})
  (tmp_path / 'config.json').write_text(json.dumps({'rounds': 2}))
  with pytest.raises(ValueError, match='add "program": "train"'):
    output.open_folder(tmp_path, {'program': 'train', 'rounds': 2})


def test_a_folder_knows_its_own_flags_whatever_sequence_they_are(tmp_path):
  config = {'program': 'diloco', 'mesh': (4, 2), 'rules': ('mean', 'krum')}
  output.open_folder(tmp_path / 'run', config)
  output.open_folder(tmp_path / 'run', config)
  with pytest.raises(ValueError, match='--mesh'):
    output.open_folder(tmp_path / 'run', config | {'mesh': (2, 4)})


def test_a_number_that_may_grow_does_not_shrink(tmp_path):
  output.open_folder(tmp_path, {'rounds': 2, 'data_dir': 'a'})
  with pytest.raises(ValueError, match='--rounds is 2 there and 1 here'):
    output.open_folder(tmp_path, {'rounds': 1}, 'rounds')
  # Data may have moved.
  output.open_folder(tmp_path, {'rounds': 3, 'data_dir': 'b'}, 'rounds')
  assert output.read_config(tmp_path) == {'rounds': 3, 'data_dir': 'a'}


def test_checkpoints_that_are_not_accepted_are_made_again(tmp_path):
  for step in (2, 4):
    output.save_checkpoint(tmp_path, step, [jnp.array([step])])
  like = [jnp.array([0])]
  found, (state,) = output.restore_checkpoint(tmp_path, like, lambda i: i < 4)
  assert found == 2 and state.tolist() == [2]
  assert output.steps(tmp_path) == [2]
  output.save_checkpoint(tmp_path, 4, like)
  assert output.restore_checkpoint(tmp_path, like, lambda i: False) is None
  assert output.steps(tmp_path) == []
