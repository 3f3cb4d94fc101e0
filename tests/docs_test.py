"""The documentation: its code runs, and every public name has a place in it."""

import importlib
import json
import pkgutil
import re
import sys
import tomllib

import pytest

import byzjax
from tests import markdown

DOCS = markdown.ROOT / 'docs'
GUIDES = sorted((DOCS / 'guides').glob('*.md'))
PAGES = [DOCS / 'index.md', *GUIDES]


NAMES = ('address', 'catalogue', 'coverage', 'features', 'gallery', 'groups')


def _load():
  """The modules of the documentation, which import each other by name.

  They are forgotten again: other modules have the same names.
  """
  sys.path.insert(0, str(DOCS))
  modules = [importlib.import_module(name) for name in NAMES]
  sys.path.remove(str(DOCS))
  for name in NAMES:
    del sys.modules[name]
  return modules


address, catalogue, coverage, features, gallery, groups = _load()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page):
  markdown.run(page)  # Pages have assertions of their own.


def test_every_public_name_is_in_one_group():
  modules = [byzjax] + [
    importlib.import_module(f'byzjax.{module.name}')
    for module in pkgutil.iter_modules(byzjax.__path__)
    if not module.name.startswith('_') and module.name not in groups.FLAT
  ]
  public = [f'{m.__name__}.{name}' for m in modules for name in m.__all__]
  grouped = [name for names in groups.groups().values() for name in names]
  assert sorted(grouped) == sorted(public)


def test_flat_packages_have_no_names_of_their_own():
  for package in groups.FLAT:
    module = importlib.import_module(f'byzjax.{package}')
    assert set(module.__all__) <= set(byzjax.__all__), package


def test_every_group_is_on_one_page_and_every_page_in_the_contents():
  pages = sorted((DOCS / 'api').glob('*.rst'))
  on_page = [
    group
    for page in pages
    for group in re.findall(r'^\.\. names:: (\w+)$', page.read_text(), re.M)
  ]
  assert sorted(on_page) == sorted(groups.groups())
  contents = (DOCS / 'index.md').read_text()
  for page in (*pages, *GUIDES):
    assert f'\n{page.parent.name}/{page.stem}\n' in contents, page.name


def test_a_name_that_no_group_takes_is_an_error(monkeypatch):
  def stray():
    """Of a package that nobody knows."""

  stray.__module__ = 'byzjax.elsewhere._stray'
  monkeypatch.setattr(byzjax, 'stray', stray, raising=False)
  monkeypatch.setattr(byzjax, '__all__', [*byzjax.__all__, 'stray'])
  with pytest.raises(ValueError, match=r'no group takes byzjax\.stray'):
    groups.groups.__wrapped__()


def test_names_come_to_their_group_by_themselves():
  by_name = groups.groups()
  assert 'byzjax.bucketing' in by_name['pre_aggregators']
  assert 'byzjax.krum' in by_name['rules']
  assert 'byzjax.robust_round' in by_name['rounds']
  assert 'byzjax.random_byzantine' in by_name['schedules']
  assert 'byzjax.topology.ring' in by_name['topology']


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page):
  text = page.read_text()
  for path in re.findall(r'`((?:byzjax|tests|experiments)/[\w./]+)`', text):
    assert (markdown.ROOT / path).exists(), path
  for command in re.findall(r'python -m ([\w.]+)', text):
    assert command == 'pytest' or importlib.util.find_spec(command), command
  spaces = '|'.join(groups.namespaces())
  for name in re.findall(rf'`(?:byzjax\.)?((?:{spaces})\.\w+)', text):
    namespace, _, attribute = name.partition('.')
    module = importlib.import_module(f'byzjax.{namespace}')
    assert attribute in module.__all__, name


def test_every_study_is_in_the_guide():
  text = (DOCS / 'guides' / 'reproducing_papers.md').read_text()
  pages = (markdown.ROOT / 'experiments').glob('*/**/README.md')
  places = [page.relative_to(markdown.ROOT) for page in pages]
  assert len(places) > 20
  assert [str(place) for place in places if f'/{place})' not in text] == []


def test_the_table_of_features_is_that_of_the_signatures():
  assert features.page(features.PAGE.read_text()) == features.PAGE.read_text()


def test_the_catalogue_is_that_of_the_docstrings():
  assert catalogue.page() == catalogue.PAGE.read_text(), (
    'python docs/catalogue.py'
  )


def test_what_other_libraries_have_is_here_or_has_a_reason():
  assert coverage.page() == coverage.PAGE.read_text(), 'python docs/coverage.py'
  assert coverage.exists('krum(num_byzantine)')
  assert not coverage.exists('krum(radius)')
  assert not coverage.exists('krumm()')


def test_the_gallery_has_the_pictures_of_the_studies():
  assert gallery.page() == gallery.PAGE.read_text(), 'python docs/gallery.py'


def test_the_readme_counts_what_there_is():
  readme = (markdown.ROOT / 'README.md').read_text()
  assert catalogue.counts() in ' '.join(readme.split())


OWNERS = ('https://github.com/first/byzjax', 'https://github.com/second/byzjax')


def test_one_command_says_where_the_repository_is(tmp_path):
  names = [*address.PAGES, 'CITATION.cff', 'pyproject.toml']
  notebooks = sorted((markdown.ROOT / 'colabs').glob('*.ipynb'))
  for path in [*(markdown.ROOT / name for name in names), *notebooks]:
    copy = tmp_path / path.relative_to(markdown.ROOT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(path.read_text())
  for url in OWNERS:  # The second replaces the first.
    address.write(url, tmp_path)
  written = {
    path: path.read_text() for path in tmp_path.rglob('*') if path.is_file()
  }
  assert all(OWNERS[1] in text for text in written.values())
  assert not any('/first/' in text for text in written.values())
  project = tomllib.loads(written[tmp_path / 'pyproject.toml'])
  assert project['project']['urls'] == {'Repository': OWNERS[1]}
  assert 'byzjax' in project['project']['scripts']
  for path in notebooks:
    text = written[tmp_path / 'colabs' / path.name]
    title, install = json.loads(text)['cells'][:2]
    (badge,) = re.findall(r'\((https://colab[^)]*ipynb)\)', text)
    assert badge.endswith(f'/github/second/byzjax/blob/main/colabs/{path.name}')
    assert title['source'][0].startswith('# ')
    line = f"else 'byzjax[experiments] @ git+{OWNERS[1]}'"
    assert line in ''.join(install['source'])
    compile(''.join(install['source']).replace('%pip', '#'), path.name, 'exec')


def test_an_address_must_be_one():
  with pytest.raises(ValueError, match='https://github.com/OWNER'):
    address.write('github.com/me')
