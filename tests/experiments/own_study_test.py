"""The study of the guide runs, from its settings to its page."""

import dataclasses
import importlib.util
import re
import sys

import pytest
from absl import flags

from experiments.harness import distributed, queue, settings, study
from experiments.reporting import summary
from tests import markdown

GUIDE = markdown.ROOT / 'docs/guides/own_study.md'


def blocks(fence, language):
  pattern = rf'^{fence}{language}\n(.*?)^{fence}$'
  return re.findall(pattern, GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """The study as the guide has it, in a folder of its own."""
  folder = tmp_path / 'loud_worker'
  folder.mkdir()
  (page,) = blocks('````', 'markdown')
  (folder / 'README.md').write_text(page)
  path = folder / 'study.py'
  path.write_text('\n\n'.join(blocks('```', 'python')))
  spec = importlib.util.spec_from_file_location('loud_worker', path)
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, 'loud_worker', module)
  spec.loader.exec_module(module)
  return module


def test_it_is_defined(toy):
  names = [cell.name for cell in toy.define(toy.Settings())]
  assert names == ['mean, 0', 'mean, 1', 'median, 0', 'median, 1']
  values = flags.FlagValues()
  settings.define(toy.Settings, values)
  values(['program', '--rates=0.2', '--rounds=9'])
  assert settings.read(toy.Settings, values) == toy.Settings(
    rates=(0.2,), rounds=9
  )
  study.check(toy.define(toy.Settings()), toy.Settings())


def test_it_runs_from_its_settings_to_its_page(toy, tmp_path):
  config, cells = study.quick(toy, toy.Settings(rounds=100))
  assert [cell.name for cell in cells] == ['mean, 1', 'median, 1']
  assert config.rounds == 4
  # Rounds enough to tell the rules apart.
  config = dataclasses.replace(config, rounds=100)
  cells = [c for c in toy.define(config) if c.name in toy.QUICK_CELLS]
  distributed.FLAGS.mark_as_parsed()
  (tmp_path / 'out').mkdir()
  rows = queue.work(study.jobs(cells, config, 60.0), tmp_path / 'out')
  # Of 2 cells and 2 rates, 20 evaluations.
  assert len(rows) == 2 * 2 * 20

  kept = study.kept(toy, rows, config)
  assert len(kept) == 4
  study.publish(toy, kept, config)
  assert study.committed(toy) == kept
  said = toy.summarise(study.committed(toy), config)
  page = (study.folder_of(toy) / 'README.md').read_text()
  assert summary.page(page, said) == page
  for name in said.figures:
    assert f']({name})' in page
    assert (study.folder_of(toy) / name).stat().st_size > 0
  # The cells without attackers were not run.
  assert said.claims[0].verdict == summary.NOT_REPRODUCED
  accuracy = {row['rule']: row['accuracy'] for row in kept}
  assert accuracy['mean'] < 0.3 and accuracy['median'] > 0.6


def test_its_verdict_is_of_paired_differences(toy):
  rows = [
    {
      'rule': rule,
      'loud': loud,
      'learning_rate': rate,
      'seed': seed,
      'round': 200,
      'accuracy': 0.9
      - 0.01 * seed
      - lost * loud
      + (0.05 if rate == 0.5 else 0),
      'validation_accuracy': 0.9 - rate,
    }
    for rule, lost in (('mean', 0.8), ('median', 0.02))
    for loud in (0, 1)
    for rate in (0.1, 0.5)
    for seed in (0, 1, 2)
  ]
  said = toy.summarise(rows, toy.Settings())
  assert [c.value for c in said.checks] == pytest.approx([80, 2])
  assert said.claims[0].verdict == summary.REPRODUCED
  # The rate that is best on the validation split, not on the test set.
  assert '89.0 ± 0.8' in said.tables[0].text
