from tests import markdown


def test_the_code_in_the_readme_runs():
  # It ends in assertions of its own.
  assert markdown.run(markdown.ROOT / 'README.md') == 5
