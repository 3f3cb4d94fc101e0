"""What became of the papers: a line per method, from committed results.

  python -m experiments.scorecard

writes `experiments/SCORECARD.md`, its picture and the block of the README that
sums it up. Nothing is run: verdicts follow from the rows beside the pages of
the studies.
"""

import collections
import functools
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib import pyplot as plt

from .harness import study
from .reporting import pictures, summary
from .reporting.summary import Claim

METHODS = (
  'centered clipping with worker momentum',
  'ByzSGDnm',
  'signSGD with majority vote',
  'DETOX',
  'magnitude-aware signs',
  'OrMo',
  'asynchronous Local-SGD',
  'DiPaCo',
  'QSR',
  'SAVIC',
  'Delta-SGD',
  'FedBR',
  'curricula',
  'WAFL',
  'D-SGD',
  'Entropy-SGD',
  'tpSGD',
  'coordinate-wise clipping',
  'dropout stability and connectivity',
  'convex two-layer ReLU training',
  'Noisy Softmax',
  'bucketing',
)
COLOURS = {
  summary.REPRODUCED: '#009E73',
  summary.PARTLY: '#E69F00',
  summary.NOT_REPRODUCED: '#D55E00',
  summary.NOT_TESTED: '#bbbbbb',
}
ROOT = pathlib.Path(__file__).parent
_UNTESTED = Claim('', '-', '', '-', published='-')


class Entry(NamedTuple):
  """The main claim of a method, and the study that tests it, if one does."""

  study: str
  claim: Claim


def entry_of(
  method: str, said: Mapping[str, Sequence[Sequence[Claim]]]
) -> Entry:
  """The first claim about a method; from the study that has it nearest its top.

  What a study says of several data sets is one claim with the checks of all.

  Args:
    method: one of METHODS.
    said: by study, its claims on every data set that it was run on.
  """
  firsts: dict[str, list[tuple[int, Claim]]] = {}
  for name, variants in said.items():
    for claims in variants:
      about = [(i, c) for i, c in enumerate(claims) if c.method == method]
      if about:
        firsts.setdefault(name, []).append(about[0])
  if not firsts:
    return Entry('', _UNTESTED._replace(method=method))
  name = min(firsts, key=lambda name: (min(i for i, _ in firsts[name]), name))
  claims = [claim for _, claim in firsts[name]]
  checks = [
    check._replace(prediction=f'{claim.data}: {check.prediction}', why='')
    for claim in claims
    for check in claim.checks
  ]
  data = ', '.join(dict.fromkeys(claim.data for claim in claims))
  return Entry(name, claims[0]._replace(data=data, checks=checks))


@functools.cache
def entries() -> tuple[Entry, ...]:
  """One of every method, from the committed rows of all studies.

  Raises:
    ValueError: if a study has a claim about a method that is not in METHODS.
  """
  said = {}
  for name in study.names():
    of = study.load(name)
    said[name] = [
      of.summarise(study.committed(of, v), study.variant(of, v)).claims
      for v in study.variants(of)
    ]
    for claim in [claim for claims in said[name] for claim in claims]:
      if claim.method and claim.method not in METHODS:
        raise ValueError(f'{name}: no method is called {claim.method!r}')
  return tuple(entry_of(method, said) for method in METHODS)


def pending() -> list[str]:
  """The studies whose rows are not committed yet."""
  return [n for n in study.names() if not study.variants(study.load(n))]


def _linked(entry: Entry) -> str:
  method, page = entry.claim.method, f'studies/{entry.study}/README.md'
  return f'[{method}]({page})' if entry.study else method


def counts() -> str:
  """How many methods have which verdict, in one sentence."""
  of = collections.Counter(entry.claim.verdict for entry in entries())
  each = ', '.join(f'{of[v]} {v}' for v in COLOURS if of[v])
  waiting = ''
  if pending():
    waiting = f' Not committed yet: the rows of {", ".join(pending())}.'
  return f'Of {len(METHODS)} methods: {each}.{waiting}'


def page() -> str:
  """The whole of SCORECARD.md."""
  lines = []
  for entry in entries():
    claim = entry.claim
    lines.append(
      [
        f'{_linked(entry)}<br>{claim.paper}',
        claim.says,
        f'**{claim.verdict}**',
        claim.published + (f' [{claim.evidence}]' if claim.evidence else ''),
        '<br>'.join(map(str, claim.checks)) or '-',
        entry.study and f'`{entry.study}`',
      ]
    )
  heads = ['method and paper', 'claim', 'verdict', 'published', 'ours', 'study']
  letters = sorted({entry.claim.evidence for entry in entries()} - {''})
  return '\n'.join(
    [
      '# Scorecard',
      '',
      'What each of the papers mainly claims, and what came of it here.',
      counts(),
      '',
      '![The verdict on every method](scorecard.png)',
      '',
      'A verdict follows from predictions with thresholds that do not move',
      'after a run: *reproduced* if all of them hold, *partly* if some do,',
      '*not reproduced* if none does. The page says why one fell short,',
      'which thresholds were set after a first look, what was different from',
      'the paper, and what became of its other claims.',
      '`python -m experiments.studies STUDY --check` runs the study of a line.',
      '',
      *summary.markdown(heads, lines),
      '',
      *_waiting(),
      *(f'[{letter}]: {summary.EVIDENCE[letter]}.' for letter in letters),
      '',
      '`python -m experiments.scorecard` makes this page of the results that',
      'are committed beside the studies.',
      '',
    ]
  )


def _waiting() -> list[str]:
  if not pending():
    return []
  names = ', '.join(f'`{name}`' for name in pending())
  return [f'Not tested until their rows are committed: {names}.', '']


def block() -> str:
  """What the README has of it."""
  return f'{counts()}\n\n![{counts()}](experiments/scorecard.png)'


def picture() -> plt.Figure:
  """A bar per method in the colour of its verdict."""
  claims = [entry.claim for entry in entries()]
  figure, ((axes,),) = pictures.panels(figsize=(9, 0.32 * len(claims) + 0.3))
  colours = [COLOURS[claim.verdict] for claim in claims]
  axes.barh([claim.method for claim in claims], 1, color=colours, height=0.85)
  for place, claim in enumerate(claims):
    held = sum(check.holds for check in claim.checks)
    text = claim.verdict
    if claim.checks:
      text += f': {held} of {len(claim.checks)} predictions, {claim.data}'
    # Longer ones would leave the bar.
    text = textwrap.shorten(text, 84, placeholder=' ...')
    axes.text(0.01, place, text, va='center')
  axes.invert_yaxis()
  axes.set(xlim=(0, 1), xticks=[])
  axes.grid(False)
  axes.margins(y=0)
  return figure


def main() -> None:
  """Writes all that shows the scorecard, or prints it outside a clone."""
  readme = ROOT.parent / 'README.md'
  if not readme.exists():
    print(page())
    return
  (ROOT / 'SCORECARD.md').write_text(page())
  pictures.save(picture(), ROOT / 'scorecard.png')
  readme.write_text(summary.put(readme.read_text(), 'scorecard', block()))
  print(counts())


if __name__ == '__main__':
  main()
