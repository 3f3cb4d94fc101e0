import re

from tests import markdown

README = (markdown.ROOT / 'README.md').read_text()


def test_the_code_in_the_readme_runs():
  # It ends in assertions of its own.
  assert markdown.run(markdown.ROOT / 'README.md') == 2


def test_the_table_of_defences_is_of_the_grid():
  board = (markdown.ROOT / 'experiments/grid/leaderboard.md').read_text()
  rows = [line for line in board.splitlines() if line.startswith('| ')]
  head, ruler, first, *_, last, _ = rows
  assert last.startswith('| mean |')
  assert '\n'.join([head, ruler, first, last]) in README


def test_it_is_short():
  assert len(README.splitlines()) <= 250


def test_what_it_links_to_is_there():
  for place in re.findall(r'\]\(([^)#]+)\)', README):
    assert (markdown.ROOT / place).exists(), place
