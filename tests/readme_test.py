from tests import markdown


def test_the_code_in_the_readme_runs():
  # It ends in assertions of its own.
  assert markdown.run(markdown.ROOT / 'README.md') == 5


def test_the_table_of_defences_is_the_one_of_the_grid():
  board = (markdown.ROOT / 'experiments/grid/leaderboard.md').read_text()
  table, commands = board.split('The command of each row:')
  assert commands.strip().endswith('(worst_case.md).')
  assert table.strip() in (markdown.ROOT / 'README.md').read_text()
