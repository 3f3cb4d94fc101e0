"""From texts to programs, and the binary as its users meet it."""

import dataclasses

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from byzjax import data
from experiments.grid import cells as grid_cells
from experiments.grid import settings
from experiments.harness import loop
from experiments.harness.programs import Options, num_runs, of_images
from tests.experiments.calls import call_grid

GRID = settings.Grid(
  attacks='none',
  aggregators='mean',
  num_byzantine=(1,),
  momenta=(0.0, 0.9),
  learning_rates=(0.1,),
  num_workers=5,
  rounds=4,
  batch_size=2,
  num_evals=2,
)
OPTIONS = Options('mlp', range(1))


def make(**changed):
  """The cells of a grid; lists of texts are its entries."""
  for name, value in changed.items():
    if isinstance(value, list):
      texts = all(isinstance(entry, str) for entry in value)
      changed[name] = '; '.join(value) if texts else tuple(value)
  return grid_cells.make_cells(dataclasses.replace(GRID, **changed), 10)


def test_real_numbers_are_traced_and_all_else_is_queued():
  cells = make(
    attacks=['none', 'alie(z=[0.5, 1])', 'sign_flip(own=[False, True])'],
    aggregators=['centered_clipping(radius=[0.1, inf], num_iterations=[1, 2])'],
    pre_aggregators=['none', 'bucketing(bucket_size=2)'],
    num_byzantine=[1, 2],
    partitions=['iid', 'label_sorted'],
  )
  *attacked, control = cells
  # f x fronts x iterations x (none, alie, two sign flips).
  assert len(attacked) == 2 * 2 * 2 * 4
  assert control.labels == {'defence': 'mean', 'attack': 'none',
                            'num_byzantine': 0}  # fmt: skip
  alie = cells[1]
  assert dict(alie.grid) == {
    'defence.0.radius': (0.1, np.inf),
    'attack.0.z': (0.5, 1.0),
    'momentum': (0.0, 0.9),
    'learning_rate': (0.1,),
  }
  # Radii x z x momenta x partitions.
  assert num_runs(alie, OPTIONS) == 2 * 2 * 2 * 2
  assert alie.describe(alie.values[-1]) == {
    'defence': 'centered_clipping',
    'attack': 'alie(z=1.0)',
    'pre_aggregators': 'none',
    'aggregator': 'centered_clipping(num_iterations=1, radius=inf)',
    'momentum': 0.9,
    'learning_rate': 0.1,
  }
  last = attacked[-1]
  assert last.labels['num_byzantine'] == 2
  described = last.describe(last.values[0])
  assert described['defence'] == 'bucketing(bucket_size=2), centered_clipping'
  assert described['pre_aggregators'] == 'bucketing(bucket_size=2)'
  assert described['attack'] == 'sign_flip(own=True)'
  names = [cell.name for cell in cells]
  assert len(set(names)) == len(names)


def test_chains_of_both_flags_are_one_chain():
  (cell, _) = make(
    aggregators=[
      'nearest_neighbor_mixing, clip_messages(max_norm=[1.0]), mean'
    ],
    pre_aggregators=['bucketing(bucket_size=2)'],
    attacks=['alie, strength(num_refinements=2)'],
  )
  described = cell.describe(cell.values[0])
  assert described['pre_aggregators'] == (
    'bucketing(bucket_size=2), nearest_neighbor_mixing,'
    ' clip_messages(max_norm=1.0)'
  )
  assert described['aggregator'] == 'mean'
  assert described['attack'] == 'alie, strength(num_refinements=2)'


def test_what_asks_for_f_is_told_each_assumed_number():
  *cells, _ = make(
    aggregators=[
      'nearest_neighbor_mixing, mean',
      'krum(num_byzantine=1)',
      'mean',
    ],
    assumed_byzantine=[0, 2],
  )
  assert [cell.labels['defence'] for cell in cells] == [
    'nearest_neighbor_mixing(num_byzantine=0), mean',
    'nearest_neighbor_mixing(num_byzantine=2), mean',
    'krum(num_byzantine=1)',
    'mean',
  ]
  assert {cell.labels['num_byzantine'] for cell in cells} == {1}


WRONG = {
  'names': (
    {'aggregators': ['krumm'], 'attacks': ['ally']},
    r"--aggregators: unknown name 'krumm', did.*; known.*\n"
    r"--attacks: unknown name 'ally'",
  ),
  'keys': ({'aggregators': ['krum(radius=[0.1])']}, r'krum\(.*radius'),
  'values of a grid': (
    {'aggregators': ['centered_clipping(radius=[1.0, -1.0])']},
    r'--aggregators=centered_clipping\(radius=-1.0\): .*radius >= 0',
  ),
  'momenta': ({'momenta': [1.5]}, 'worker_momentum .*got 1.5'),
  'attacks twice': (
    {'attacks': ['alie(z=1.0)', 'alie(z=[0.5, 1.0])']},
    r'--attacks: alie\(z=1.0\) is there twice',
  ),
  'rates': ({'learning_rates': [-0.1]}, '--learning_rates must be >= 0'),
  'f': ({'num_byzantine': [0, 1]}, '--num_byzantine must be at least 1'),
  'assumed twice': (
    {'assumed_byzantine': [2, 2]},
    '--assumed_byzantine is negative or there twice: 2',
  ),
  'entries twice': ({'attacks': ['alie', 'alie']}, '--attacks .* twice'),
  'values twice': ({'attacks': ['alie(z=[1, 1])']}, 'z is empty or has a'),
  'no entries': ({'partitions': []}, '--partitions is empty'),
  'defences twice': (
    {'aggregators': [f'centered_clipping(radius=[{r}])' for r in (1, 2)]},
    'centered_clipping is there twice; to choose from values, write a list',
  ),
  'chains twice': (
    {
      'aggregators': ['mean', 'nearest_neighbor_mixing, mean'],
      'pre_aggregators': ['none', 'nearest_neighbor_mixing'],
    },
    '--aggregators: nearest_neighbor_mixing, mean is there twice',
  ),
  'searches of nothing': ({'attacks': ['none, strength']}, 'nothing to search'),
  'no rule at the end': (
    {'aggregators': ['krum, nearest_neighbor_mixing']},
    "--pre_aggregators: unknown name 'krum'",
  ),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said(case):
  changed, message = WRONG[case]
  with pytest.raises(ValueError, match=f'(?s){message}'):
    make(**changed)


def test_what_cannot_run_is_found_before_anything_runs():
  dataset = data.load('digits')
  cells = make(
    aggregators=['krum', 'mean'],
    attacks=['none', 'label_flip, strength'],
    num_byzantine=[2],
  )
  found = grid_cells.refused(cells, dataset, 'mlp')
  by_rule, by_search = found.items()
  assert by_rule[0] == (
    'krum needs num_workers >= 2 * num_byzantine + 3, got 5 and 2'
  )
  assert [cell.name for cell in by_rule[1]] == ['krum, none, 2']
  assert by_search[0].startswith('--attacks=strength: adaptive ')
  assert [cell.name for cell in by_search[1]] == [
    f'{rule}, label_flip, strength, 2' for rule in ('krum', 'mean')
  ]


@pytest.mark.parametrize('suite', settings.SUITES)
def test_a_suite_is_a_grid_without_mistakes(suite):
  with flagsaver.flagsaver():
    settings.define_flags()
    flags.FLAGS(['grid'])
    settings.adopt_file(settings.SUITES[suite])
    grid = settings.read()
  cells = grid_cells.make_cells(grid, 10)
  attacks = {cell.labels['attack'] for cell in cells}
  searched = any('strength' in attack for attack in attacks)
  assert 'none' in attacks and len(attacks) >= 6
  assert searched == (suite != 'small')
  defences = {cell.labels['defence'] for cell in cells}
  assert len(defences) >= 9


def test_one_program_has_the_numbers_of_programs_alone(tmp_path):
  dataset = data.load('digits')
  shared = {
    'attacks': ['sign_flip(scale=[0.5, 3.0])'],
    'momenta': [0.9],
    'num_workers': 4,
  }
  together, _ = make(
    **shared,
    aggregators=['centered_clipping(radius=[0.1, 1.0])'],
    partitions=['iid', 'label_sorted'],
  )
  alone, _ = make(
    **{**shared, 'attacks': ['sign_flip(scale=3.0)']},
    aggregators=['centered_clipping(radius=0.1)'],
    partitions=['label_sorted'],
  )
  advanced = []
  rows = loop.run(
    of_images(together, dataset, OPTIONS),
    tmp_path,
    advance=lambda rounds, rows: advanced.append((rounds, len(rows))),
  )
  assert advanced == [(2, 8), (2, 8)]
  assert len(rows) == 2 * 8
  columns = ['defence', 'attack', 'num_byzantine', 'partition',
             'pre_aggregators', 'aggregator', 'momentum', 'learning_rate',
             'seed', 'round']  # fmt: skip
  assert list(rows[0])[: len(columns)] == columns
  expected = loop.run(of_images(alone, dataset, OPTIONS), tmp_path / 'alone')
  same = [
    row
    for row in rows
    if row['attack'] == 'sign_flip(scale=3.0)'
    and row['aggregator'] == 'centered_clipping(radius=0.1)'
    and row['partition'] == 'label_sorted'
  ]
  for row, other in zip(same, expected, strict=True):
    for column in ('loss', 'train_loss', 'accuracy', 'aggregation_error'):
      np.testing.assert_allclose(row[column], other[column], rtol=1e-5)
  losses = {row['loss'] for row in rows}
  assert len(losses) == len(rows)  # Every run is another one.


# --- The binary.

FLAGS = [
  '--attacks=none;alie(z=[0.5, 1.5])',
  '--aggregators=krum ; mean',
  '--num_byzantine=1,2',
  '--momenta=0,0.9',
  '--num_workers=7',
  '--skip_refused',
]
FILE = """
attacks = ['none', 'alie(z=[0.5, 1.5])']
aggregators = 'krum; mean'
num_byzantine = [1, 2]
momenta = [0, 0.9]
num_workers = 9
skip_refused = true
"""


@pytest.fixture(scope='module')
def said(tmp_path_factory):
  """What the binary says when it is called again and again."""
  folder = tmp_path_factory.mktemp('grid')
  (folder / 'grid.toml').write_text(FILE)
  (folder / 'typo.toml').write_text('atacks = "alie"\nrule = "krum"')
  (folder / 'broken.toml').write_text('attacks = [')
  (folder / 'kind.toml').write_text('rounds = "many"')
  (folder / 'precious').write_text('data')
  config = f'--config={folder}/grid.toml'
  calls = {
    'flags': [*FLAGS, '--dry_run'],
    'file': [config, '--num_workers=7', '--dry_run'],
    'suite': [config, '--suite=small', '--num_workers=7', '--dry_run'],
    'typo': [f'--config={folder}/typo.toml'],
    'broken': [f'--config={folder}/broken.toml'],
    'kind': [f'--config={folder}/kind.toml'],
    'missing': [f'--config={folder}/missing.toml'],
    'number': ['--momenta=0,high'],
    'rule': ['--aggregators=krumm'],
    'refused': ['--aggregators=krum;mean', '--num_byzantine=3,4',
                '--num_workers=9', '--attacks=none;alie'],
    'left out': ['--aggregators=krum;mean', '--num_byzantine=4',
                 '--num_workers=9', '--attacks=none;alie', '--skip_refused',
                 '--dry_run'],
    'nothing': ['--aggregators=krum', '--num_byzantine=4', '--num_workers=9',
                '--attacks=alie', '--skip_refused'],
    'shards': ['--partitions=dirichlet_by_class(alpha=0.001)',
               '--num_workers=100', '--aggregators=mean', '--attacks=alie'],
    'resume': ['--resume'],
    'precious': [f'--output_dir={folder}'],
  }  # fmt: skip
  out = folder / 'out'

  def said_of(argv):
    try:
      return call_grid(f'--output_dir={out}', *argv)
    except SystemExit as end:
      return end.code

  found = {name: said_of(argv) for name, argv in calls.items()}
  assert not out.exists()
  return found


def test_a_file_is_flags(said):
  assert said['file'] == said['flags']
  # Two rules and f, once with z twice; and the control.
  lines = said['flags'].splitlines()
  assert lines[0].startswith('9 programs, 156 runs of 200 rounds')
  assert len(lines) == 1 + 9
  assert lines[2].split(': ')[1] == 'krum, alie(z=[0.5, 1.5]), 1'
  # It has more to say than a suite that is named as well.
  assert said['suite'].startswith('9 programs, ')


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (
      'typo',
      'unknown keys atacks, rule; known are aggregators, assumed_byzantine',
    ),
    ('broken', 'Invalid value'),
    ('kind', 'flag --rounds=many'),
    ('missing', 'No such file'),
    ('number', "--momenta: could not convert string to float: 'high'"),
    ('rule', "--aggregators: unknown name 'krumm', did you mean 'krum'?"),
    ('nothing', 'nothing is left to run'),
    ('shards', 'every worker must have an example'),
    ('resume', 'there is no config.json'),
    ('precious', 'is not empty'),
  ],
)
def test_refuses_before_anything_is_written(call, message, said):
  assert message in said[call]


def test_all_that_cannot_run_is_listed(said):
  lines = said['refused'].splitlines()
  assert lines == [
    'grid: krum needs num_workers >= 2 * num_byzantine + 3, got 9 and 4:'
    ' [krum, none, 4], [krum, alie, 4]',
    '--skip_refused leaves out what cannot run',
  ]
  lines = said['left out'].splitlines()
  names = [line.split(': ')[1] for line in lines[1:-1]]
  assert names == ['mean, none, 4', 'mean, alie, 4', 'mean, none, 0']
  assert lines[-1].startswith('left out: krum needs num_workers >= ')
  assert lines[-1].endswith('[krum, none, 4], [krum, alie, 4]')
