"""What is claimed of backdoors, and the picture."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from ...reporting import pictures, tables
from ...reporting.summary import OURS, Check, Claim, claims_about

ROBUST = ('bounded norms', 'multi-Krum', 'mixing, trimmed mean')
REPLACED = 'Bagdasaryan et al. 2020, arXiv:1807.00459'
BOUNDED = 'Sun, Kairouz, Suresh, McMahan 2019, arXiv:1911.07963'
DISTRIBUTED = 'Xie, Huang, Chen, Li 2020, ICLR'
NEUROTOXIN = 'Zhang et al. 2022, arXiv:2206.10341'
EDGE = 'Wang et al. 2020, arXiv:2007.05084'
FLAME = 'Nguyen et al. 2022, arXiv:2101.02281'


def of(
  dataset: str,
  stopped: tables.Cells,
  end: tables.Cells,
  accuracy: tables.Cells,
) -> list[Claim]:
  """Successes when attackers stop and at the end; accuracy when they stop."""
  claim = claims_about('', '', dataset)
  success = functools.partial(success_of, stopped)
  return [
    *of_attacks(claim, success, end, accuracy),
    *of_rules(claim, success, accuracy),
  ]


def success_of(
  stopped: tables.Cells, attack: str, rule: str, kind: str = 'local'
) -> float:
  """The mean over seeds, in percent."""
  return float(np.mean(stopped[kind, attack, rule]))


def of_attacks(
  claim: Callable[..., Claim],
  success: Callable[..., float],
  end: tables.Cells,
  accuracy: tables.Cells,
) -> list[Claim]:
  """What papers say of their attacks."""

  def cost(attack: str, rule: str, kind: str) -> float:
    clean = accuracy[kind, 'none', rule]
    return float((clean - accuracy[kind, attack, rule]).mean())

  def left(attack: str, rule: str) -> float:
    """Percent of the success that is there at the end."""
    return (
      100 * success_of(end, attack, rule) / max(success(attack, rule), 1e-9)
    )

  return [
    claim(
      'the mean learns a backdoor that its accuracy does not show',
      *(
        check
        for kind in ('steps', 'local')
        for check in (
          Check(
            f'{kind}: success (%)',
            success('planted', 'mean', kind),
            at_least=90,
          ),
          Check(
            f'{kind}: points of accuracy that it costs',
            cost('planted', 'mean', kind),
            at_most=2,
          ),
        )
      ),
      paper=REPLACED,
    ),
    claim(
      'bounded norms take away what scaling gains',
      Check(
        'mean: success of replacement (%)',
        success('replacement', 'mean'),
        at_least=90,
      ),
      Check(
        'bounded norms: success of replacement over planted',
        success('replacement', 'bounded norms')
        - success('planted', 'bounded norms'),
        at_most=10,
      ),
      Check(
        'mean: success of replacement over planted, a control',
        success('replacement', 'mean') - success('planted', 'mean'),
        at_least=10,
        why='added after the run: unscaled messages win already, so scaling'
        ' has nothing to gain',
      ),
      paper=BOUNDED,
    ),
    claim(
      'a pattern in four parts works at least as well as the whole',
      *(
        Check(
          f'{rule}: success of parts over the whole',
          success('distributed', rule) - success('planted', rule),
          at_least=0,
          why='parts make the messages of attackers differ, and the whole makes'
          ' them agree',
        )
        for rule in ('mean', 'multi-Krum')
      ),
      paper=DISTRIBUTED,
    ),
    claim(
      'a backdoor in quiet coordinates lasts longer',
      Check(
        'mean: percent of success left, neurotoxin less planted',
        left('neurotoxin', 'mean') - left('planted', 'mean'),
        at_least=10,
        why='of a plain backdoor nearly all is left, too',
      ),
      Check(
        'mean: success of neurotoxin when attackers stop (%)',
        success('neurotoxin', 'mean'),
        at_least=80,
      ),
      paper=NEUROTOXIN,
    ),
  ]


def of_rules(
  claim: Callable[..., Claim],
  success: Callable[..., float],
  accuracy: tables.Cells,
) -> list[Claim]:
  """What rules let in, and what FLAME keeps out."""
  return [
    claim(
      'rare images pass the rules',
      Check(
        'least success behind a robust rule, less that without attackers',
        min(
          success('edge case', rule) - success('none, edge case', rule)
          for rule in ROBUST
        ),
        at_least=30,
      ),
      paper=EDGE,
    ),
    claim(
      'FLAME removes backdoors and keeps the accuracy',
      *(
        Check(
          f'success of {attack} (%)',
          success(attack, 'FLAME'),
          at_most=10,
          why='attackers train as others do, on half of each batch',
        )
        for attack in ('planted', 'replacement')
      ),
      Check(
        'points of accuracy below the mean, no attack',
        float(
          (
            accuracy['local', 'none', 'mean']
            - accuracy['local', 'none', 'FLAME']
          ).mean()
        ),
        at_most=3,
      ),
      paper=FLAME,
    ),
    claim(
      'where shards differ, rules that withstand liars learn the backdoor',
      *(
        Check(
          f'{kind}: success behind mixing and a trimmed mean (%)',
          success('planted', 'mixing, trimmed mean', kind),
          at_least=50,
        )
        for kind in ('steps', 'local')
      ),
      **OURS,
    ),
  ]


def picture(stopped: tables.Cells, end: tables.Cells, rules: Sequence[str]):
  """Success when attackers stop, and what is left of it at the end."""
  shown = [key for key in stopped if 'none' not in key[1]]
  panels = list(dict.fromkeys((kind, attack) for kind, attack, _ in shown))
  figure, axes = pictures.panels(
    1, len(panels), figsize=(2.2 * len(panels), 3.4), sharex=True, sharey=True
  )
  places = np.arange(len(rules))
  for panel, (kind, attack) in zip(axes[0], panels):
    for name, values, shift in (
      ('when attackers stop', stopped, -0.2),
      ('at the end', end, 0.2),
    ):
      means = [np.mean(values[kind, attack, rule]) for rule in rules]
      panel.barh(places + shift, means, 0.4, label=name)
    panel.set_title(f'{kind}: {attack}')
    panel.set_yticks(places, rules)
    panel.set_xlim(0, 100)
  axes[0, 0].invert_yaxis()
  axes[0, -1].legend(fontsize=8)
  axes[0, len(panels) // 2].set_xlabel('success of the backdoor (%)')
  return figure
