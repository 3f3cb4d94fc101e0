"""What a study says: tables, claims with their verdicts, and figures.

A *claim* is what a paper says. A *check* is a prediction about it that was
written down before the run, with a threshold that does not move after it, and
what was then measured. Verdicts follow from the checks alone.
"""

import math
import pathlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from matplotlib import pyplot as plt

from . import tables

REPRODUCED = 'reproduced'
PARTLY = 'partly'
NOT_REPRODUCED = 'not reproduced'
NOT_TESTED = 'not tested here'
NOT_RUN = 'not run yet'
# How well a published number is known, by letter.
EVIDENCE = {
  'L': "recomputed from the authors' run logs",
  'P': 'read in the paper',
  'A': 'read in the abstract',
  'K': "read in the authors' code",
  'N': "read in the authors' notebooks",
  'C': 'exact, needs no training',
  'T': 'quoted by a third party',
}
# For a claim that is ours: of no method of the list.
OURS = {'method': '', 'paper': 'not in the paper'}


class Check(NamedTuple):
  """A prediction and what was measured.

  Attributes:
    prediction: what is measured, with its unit: 'points lost to 3 inverters'.
    value: the measurement.
    at_least: the prediction: the value is not below this.
    at_most: or not above this; one of the two is given.
    why: if it fell short, what explains it, or what was tried.
  """

  prediction: str
  value: float
  at_least: float | None = None
  at_most: float | None = None
  why: str = ''

  @property
  def holds(self) -> bool:
    """Not for a value that is not a number."""
    if self.at_least is not None:
      return bool(self.value >= self.at_least)
    return self.at_most is not None and bool(self.value <= self.at_most)

  def __str__(self) -> str:
    if self.at_least is not None:
      needed = f'at least {self.at_least:g}'
    else:
      needed = f'at most {self.at_most:g}'
    if self.why == NOT_RUN:
      return f'{self.prediction}: {NOT_RUN}, predicted {needed}'
    verdict = 'holds' if self.holds else '**FELL SHORT**'
    why = f' ({self.why})' if self.why and not self.holds else ''
    value = (
      f'{self.value:.3g}' if abs(self.value) < 100 else f'{self.value:.0f}'
    )
    return f'{self.prediction}: {value}, predicted {needed}: {verdict}{why}'


class Claim(NamedTuple):
  """What a paper says, and the checks of it.

  Attributes:
    method: the method that it is about, as in the list of the README.
    says: the claim in about ten words.
    paper: authors, year and arXiv id, and where in it.
    published: the paper's number, or 'no number'.
    evidence: a letter of EVIDENCE, if there is a number.
    data: what it was tried on here.
    checks: none if this study does not test it.
  """

  method: str
  says: str
  paper: str
  data: str
  checks: Sequence[Check] = ()
  published: str = 'no number'
  evidence: str = ''

  @property
  def verdict(self) -> str:
    held = [check.holds for check in self.checks]
    if not held:
      return NOT_TESTED
    if all(held):
      return REPRODUCED
    return PARTLY if any(held) else NOT_REPRODUCED


def claims_about(method: str, paper: str, data: str) -> Callable[..., Claim]:
  """Makes claims of a paper: `claim(says, *checks, published=...)`."""

  def claim(says: str, *checks: Check, **more: str) -> Claim:
    about = {'method': method, 'paper': paper, 'data': data}
    return Claim(says=says, checks=checks, **{**about, **more})

  return claim


def of_what_ran(claims: Iterable[Claim]) -> list[Claim]:
  """Claims of which no cell was run lose their checks, and are not tested.

  Of others, the checks that wait for cells stay and say so.
  """
  said = []
  for claim in claims:
    checks = [
      check._replace(why=NOT_RUN) if math.isnan(check.value) else check
      for check in claim.checks
    ]
    ran = any(not math.isnan(check.value) for check in checks)
    said.append(claim._replace(checks=checks if ran else []))
  return said


class Table(NamedTuple):
  """A table as text, under a title of one line."""

  title: str
  text: str


def pivots(shown: Iterable[Sequence]) -> list[Table]:
  """Tables of a title, cells, and digits or none; not those without cells."""
  return [
    Table(title, tables.pivot(cells, *digits))
    for title, cells, *digits in shown
    if cells
  ]


class Summary(NamedTuple):
  """What the rows of a study say; see `experiments/studies`."""

  claims: Sequence[Claim]
  tables: Sequence[Table]
  figures: Mapping[str, Callable[[], plt.Figure]]  # by file name

  @property
  def checks(self) -> list[Check]:
    return [check for claim in self.claims for check in claim.checks]


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
  """The lines of a table."""
  return [
    '| ' + ' | '.join(text.replace('|', r'\|') for text in line) + ' |'
    for line in [head, ['---'] * len(head), *lines]
  ]


def claims_block(summary: Summary) -> str:
  """claim | verdict | paper | ours."""
  lines = []
  for claim in summary.claims:
    published = claim.published
    if claim.evidence:
      published += f' [{claim.evidence}]'
    ours = '<br>'.join(map(str, claim.checks)) or '-'
    lines.append(
      [claim.says, f'**{claim.verdict}**', published, f'{claim.data}: {ours}']
    )
  letters = sorted({c.evidence for c in summary.claims if c.evidence})
  legend = [f'[{letter}]: {EVIDENCE[letter]}.' for letter in letters]
  papers = dict.fromkeys(claim.paper for claim in summary.claims)
  table = markdown(['claim', 'verdict', 'paper', 'ours'], lines)
  return '\n'.join([*table, '', *legend, f'Paper: {"; ".join(papers)}.'])


def tables_block(summary: Summary) -> str:
  blocks = [f'{t.title}\n\n```\n{t.text}\n```' for t in summary.tables]
  return '\n\n'.join(blocks)


def page(text: str, summary: Summary, variant: str = '') -> str:
  """The page of a study, with what its rows say put between its marks.

  A variant has marks of its own, `<!-- tables mnist -->`, and needs one pair.

  Raises:
    ValueError: if a mark is missing.
  """
  missing = []
  for kind, block in (
    ('claims', claims_block(summary)),
    ('tables', tables_block(summary)),
  ):
    try:
      text = put(text, f'{kind} {variant}'.strip(), block)
    except ValueError as error:
      missing.append(str(error))
  if len(missing) > bool(variant):
    raise ValueError('; '.join(missing))
  return text


def put(text: str, name: str, block: str) -> str:
  """The text with the block between the marks of a name.

  Raises:
    ValueError: if there are no such marks.
  """
  begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
  before, found, rest = text.partition(begin)
  _, closed, after = rest.partition(end)
  if not (found and closed):
    raise ValueError(f'the page has no {begin} ... {end}')
  return f'{before}{begin}\n\n{block}\n\n{end}{after}'


def draw(summary: Summary, folder: pathlib.Path) -> None:
  """Writes the figures."""
  from . import pictures

  for name, figure in summary.figures.items():
    pictures.save(figure(), folder / name)


def command(program: str, *words: str) -> str:
  """A line for a shell: a program of these experiments, with its flags."""
  root = __name__.removesuffix('.reporting.summary')
  return shlex.join(['python', '-m', f'{root}.{program}', *words])
