"""A page with a picture of every study, read from their pages.

  python docs/gallery.py    # writes docs/guides/gallery.md
"""

import pathlib
import re

HERE = pathlib.Path(__file__).parent
PAGE = HERE / 'guides' / 'gallery.md'
STUDIES = HERE.parent / 'experiments' / 'studies'


def entry(page: pathlib.Path) -> str:
  """The title, the first sentence and the pictures of the page of a study.

  Raises:
    ValueError: if the page has no picture, or one without a text for those who
      do not see it.
  """
  text = page.read_text()
  shown = re.sub(r'<!--(.*?)-->', '', text, flags=re.DOTALL)
  title = re.search(r'^# (.*)$', shown, re.MULTILINE)
  says = re.search(r'# [^\n]*\n\n(.+?)\n\n', shown, re.DOTALL)
  pictures = re.findall(r'!\[([^\]]*)\]\(([^)]+\.png)\)', shown)
  if title is None or says is None or not pictures:
    raise ValueError(f'{page} needs a title, a sentence and a picture')
  if empty := [name for alt, name in pictures if not alt.strip()]:
    raise ValueError(f'{page}: {empty[0]} has no alternative text')
  folder = f'../../experiments/studies/{page.parent.name}'
  return '\n\n'.join(
    [
      f'## [{title[1]}]({folder}/README.md)',
      ' '.join(says[1].split()),
      *(f'![{alt}]({folder}/{name})' for alt, name in pictures),
    ]
  )


def page() -> str:
  """All of `gallery.md`."""
  pages = [
    each
    for each in sorted(STUDIES.glob('*/README.md'))
    if list(each.parent.glob('*.csv')) and list(each.parent.glob('*.png'))
  ]
  return '\n\n'.join(
    [
      '# Gallery',
      'The pictures of the studies, one study for each method. Titles lead to'
      ' the claims, tables and commands behind them. `python docs/gallery.py`'
      ' makes this page.',
      *map(entry, pages),
      '',
    ]
  )


if __name__ == '__main__':
  PAGE.write_text(page())
