"""Every study: it traces, its page is what its committed rows say, it runs."""

import csv
import dataclasses
import subprocess
import sys
import time
import types

import pytest
from absl import flags

from experiments.harness import settings, study
from experiments.harness.cells import OwnCell
from experiments.reporting import summary
from tests.data.sources_test import TFDS_DIR

NAMES = study.names()
# Of one shape of cell each; the others are in the slow tier.
QUICK = ('sign_majority', 'ordered_momentum')


def variants():
  return [
    (name, variant)
    for name in NAMES
    for variant in study.variants(study.load(name))
  ]


def small(of):
  return {'dataset': 'digits'} if hasattr(of.Settings, 'dataset') else {}


# Three of them are quick enough for every change; all are in slow tests.
@pytest.mark.parametrize(
  'most', [3, pytest.param(sys.maxsize, id='all', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('name', NAMES)
def test_cells_trace(name, most):
  of = study.load(name)
  config = of.Settings(num_seeds=1)
  cells = of.define(config)
  names = [cell.name for cell in cells]
  assert len(set(names)) == len(names)
  # Shapes of digits do as well, and need no folder.
  dataset = study.dataset_of(cells, of.Settings(**small(of)))
  for cell in cells[:: -(-len(cells) // most)]:
    program = study.program_of(cell, config, dataset)
    if program is None:
      continue
    metrics = program.trace()
    assert metrics, cell.name
    assert all(x.shape == () for x in metrics.values()), cell.name


@pytest.mark.slow
@pytest.mark.skipif(not TFDS_DIR.is_dir(), reason='no TFDS_DATA_DIR')
@pytest.mark.parametrize(
  ('name', 'variant'),
  [
    (name, variant)
    for name in NAMES
    for variant in getattr(study.load(name), 'VARIANTS', {})
  ],
)
def test_cells_of_variants_trace(name, variant):
  of = study.load(name)
  folder = {'data_dir': str(TFDS_DIR)} if 'data_dir' in fields(of) else {}
  config = dataclasses.replace(study.variant(of, variant), **folder)
  cells = of.define(config)
  dataset = study.dataset_of(cells, config)
  by_part = {tuple(cell.labels.values())[0]: cell for cell in cells}
  for cell in by_part.values():
    program = study.program_of(cell, config, dataset)
    if program is not None:
      assert program.trace(), cell.name


def fields(of):
  return [field.name for field in dataclasses.fields(of.Settings)]


@pytest.mark.parametrize(('name', 'variant'), variants())
def test_the_page_is_what_the_committed_rows_say(name, variant):
  of = study.load(name)
  config = study.variant(of, variant)
  said = of.summarise(study.committed(of, variant), config)
  page = (study.folder_of(of) / 'README.md').read_text()
  assert summary.page(page, said, variant) == page
  assert said.claims and said.tables
  for claim in said.claims:
    assert claim.verdict in (
      summary.REPRODUCED,
      summary.PARTLY,
      summary.NOT_REPRODUCED,
      summary.NOT_TESTED,
    )
    assert not claim.evidence or claim.evidence in summary.EVIDENCE
    for check in claim.checks:
      is_number = check.value == check.value
      assert is_number or check.why == summary.NOT_RUN, check.prediction
      assert (check.at_least is None) != (check.at_most is None)
  for name in said.figures:
    assert (study.folder_of(of) / name).exists()
    assert f']({name})' in page


@pytest.mark.parametrize('name', NAMES)
def test_flags_are_the_settings(name):
  of = study.load(name)
  values = flags.FlagValues()
  settings.define(of.Settings, values)
  for options in ({'num_seeds': 7}, *getattr(of, 'VARIANTS', {}).values()):
    changed = of.Settings(**options)
    values.unparse_flags()
    values(['program', *settings.arguments(changed)])
    assert settings.read(of.Settings, values) == changed
    for word in settings.arguments(changed):
      values[word[2:].partition('=')[0]].unparse()


def run(name, *arguments):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.studies', name, *arguments],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def results(folder):
  with (folder / 'results.csv').open() as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in NAMES
  ],
)
def test_a_quick_run_gets_to_its_picture(name, tmp_path):
  folder = tmp_path / 'out'
  found = run(name, '--quick', f'--output_dir={folder}')
  assert found.returncode == 0, found.stderr
  assert ': nan, predicted' not in found.stdout
  of = study.load(name)
  config, cells = study.quick(of, of.Settings())
  rows = results(folder)
  assert {row['seed'] for row in rows} == {'0'}
  assert rows and len(cells) >= 1
  pictures = [*folder.glob('*.png')]
  assert pictures and all(picture.stat().st_size for picture in pictures)
  # Its rows would pass for those of the whole study.
  whole = run(name, '--resume', f'--output_dir={folder}')
  assert whole.returncode != 0
  assert '--quick is True there and None here' in whole.stderr


def test_what_is_given_is_not_made_quick():
  of = types.SimpleNamespace(
    QUICK={'num_workers': 3},
    QUICK_CELLS=('',),
    define=lambda config: [types.SimpleNamespace(name='mean')],
  )
  whole = study.load('sign_majority').Settings
  config = whole(num_seeds=7, num_workers=9)
  assert study.quick(of, config)[0].num_seeds == 1
  config, _ = study.quick(of, config, ['num_seeds'])
  assert (config.num_seeds, config.num_workers) == (7, 3)


@pytest.mark.slow
def test_a_study_that_was_cut_off_goes_on_to_the_same_numbers(tmp_path):
  small = ('--rounds=2', '--num_seeds=1', '--num_workers=3')
  whole = (*small, '--only=vote, invert')
  cut = tmp_path / 'cut'
  one = (*small, '--only=vote, invert, 1', f'--output_dir={cut}')
  assert run('sign_majority', *one).returncode == 0
  again = run('sign_majority', *whole, f'--output_dir={cut}')
  assert again.returncode != 0
  assert 'is not empty' in again.stderr
  other = run(
    'sign_majority', *whole, f'--output_dir={cut}', '--resume', '--momentum=0.5'
  )
  assert other.returncode != 0
  assert '--momentum is 0.9 there and 0.5 here' in other.stderr
  # A row that was torn costs its cell, and no flag is given again.
  text = (cut / 'results.csv').read_text()
  (cut / 'results.csv').write_text(text[:-3])
  resumed = run(
    'sign_majority', '--only=vote, invert', f'--output_dir={cut}', '--resume'
  )
  assert resumed.returncode == 0, resumed.stderr
  straight = tmp_path / 'straight'
  assert (
    run('sign_majority', *whole, f'--output_dir={straight}').returncode == 0
  )

  def sorted_rows(folder):
    return sorted(tuple(row.values()) for row in results(folder))

  assert sorted_rows(cut) == sorted_rows(straight)
  assert len(sorted_rows(cut)) == 3 * 2


def test_a_killed_cell_goes_on_to_the_same_bits(tmp_path):
  cell = (
    '--only=vote, random, 3',
    '--num_seeds=1',
    '--rounds=400',
    '--checkpoint_seconds=0',
  )
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  found = run('sign_majority', *cell, f'--output_dir={straight}')
  assert found.returncode == 0, found.stderr
  command = [sys.executable, '-m', 'experiments.studies', 'sign_majority']
  with subprocess.Popen([*command, *cell, f'--output_dir={killed}']) as process:
    deadline = time.monotonic() + 300
    checkpoints = 'unfinished/*/checkpoints/00000040'
    while not [*killed.glob(checkpoints)] and time.monotonic() < deadline:
      time.sleep(0.01)
    process.kill()
  assert not (killed / 'results.csv').exists()
  assert [*killed.glob('unfinished/*/checkpoints/*')]
  # The rows of the newest checkpoint are torn: the one before it counts.
  (torn,) = killed.glob('unfinished/*/rows.csv')
  torn.write_text(torn.read_text()[:-3])
  resumed = run('sign_majority', cell[0], f'--output_dir={killed}', '--resume')
  assert resumed.returncode == 0, resumed.stderr
  assert results(killed) == results(straight)
  assert len(results(killed)) == 20


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('detox', ('--group_size=7',), 'group_size to divide num_workers'),
    ('batch_size', ('--num_gradients=10',), 'no multiple of 1 x 8'),
    ('learning_from_history', ('--parts=nothing',), 'nothing is none of'),
    ('sign_majority', ('--only=nobody',), 'matches no cell'),
    ('dipaco', ('--quick', '--variant=text'), 'is one of the quick ones'),
    ('sign_majority', ('--publish', '--rounds=3'), 'got --rounds=3'),
    *(
      pytest.param('sign_majority', arguments, message, marks=pytest.mark.slow)
      for arguments, message in [
        (('--check', '--only=x'), '--check is about all cells'),
        (('--publish', '--quick'), 'is neither published'),
        (('--committed', '--only=x'), 'leave out --only'),
        (('--committed', '--num_seeds=1'), 'got --num_seeds=1'),
      ]
    ),
  ],
)
def test_refuses_up_front(name, arguments, message, tmp_path):
  folder = tmp_path / 'out'
  found = run(name, *arguments, f'--output_dir={folder}')
  assert found.returncode != 0
  assert message in found.stdout + found.stderr
  assert not folder.exists()


def test_the_name_of_a_cell_is_that_cell_alone():
  cells = [
    OwnCell(labels={'method': name}) for name in ('krum', 'multi-krum', 'mean')
  ]
  assert study.chosen(cells, 'krum') == cells[:1]
  assert study.chosen(cells, 'kru') == cells[:2]
  assert study.chosen(cells, '') == cells


def test_some_runs_take_their_place_among_the_committed_rows(monkeypatch):
  cells = [OwnCell(labels={'rule': r, 'f': f}) for r in 'ab' for f in (0, 1)]
  of = types.SimpleNamespace(define=lambda config: cells)
  rows = [
    {'rule': r, 'f': f, 'seed': seed, 'score': 0}
    for r, f in [('a', 0), ('b', 1)]
    for seed in range(2)
  ]
  path = types.SimpleNamespace(exists=lambda: True)
  monkeypatch.setattr(study, 'rows_of', lambda of, name: path)
  monkeypatch.setattr(study, 'committed', lambda of, name: rows)
  # One cell again, with one seed, and one that is new.
  new = [{'rule': r, 'f': 1, 'seed': 0, 'score': 1} for r in ('b', 'a')]
  found = study.merged(of, new, None)
  assert [(row['rule'], row['f'], row['score']) for row in found] == [
    ('a', 0, 0),
    ('a', 0, 0),
    ('a', 1, 1),
    ('b', 1, 0),
    ('b', 1, 1),
  ]
  with pytest.raises(ValueError, match='keeps none of f: publish all'):
    study.merged(of, [{'rule': 'a', 'seed': 0}], None)


def test_says_which_studies_there_are():
  found = run('nothing')
  assert found.returncode != 0
  assert 'sign_majority' in found.stderr
