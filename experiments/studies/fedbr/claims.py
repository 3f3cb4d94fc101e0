"""What the rows of the study say about the claims of the paper."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from ...reporting import pictures
from ...reporting.summary import Check, Claim


def of_tables(settings: Any, table, attacked, long) -> list[Claim]:
  """Those that the parts of the study which were run can test."""
  skewed, *mild = (f'{x:g}' for x in settings.concentrations[:2])
  after = 'points over FedAvg after {} rounds'.format
  rounds, goes_on = settings.rounds, 'long' in settings.parts
  slow, fast = (table[x, f'{skewed}: rounds'] for x in ('fedavg', 'fedbr'))

  def gain(method, at=skewed):
    return table[method, f'{at}: gain'].mean()

  def less(attack):
    names = (f'{x}: error' for x in ('fedavg', 'fedbr'))
    return np.divide(
      *(attacked[f'nnm, median, {attack}', x].mean() for x in names)
    )

  # Reasons that were found on digits.
  known = settings.dataset == 'digits'
  few = 'within the spread of three seeds' if known else ''
  speed = 'its lead is one of speed' if known else ''
  middle = 'the rule lands near the middle, and alie is there' if known else ''
  about = {
    'method': 'FedBR',
    'paper': 'Guo, Tang, Lin 2022, arXiv:2205.13462',
    'data': f'{settings.dataset}, rotated',
  }
  at_end = Check(after(rounds), gain('fedbr'), 3, why=few)
  if goes_on:
    last = long['fedbr', 'gain'].mean()
    at_end = Check(after(rounds * settings.long), last, 3, why=speed)
  found = [
    Claim(
      says='ends several points above FedAvg where clients have few classes',
      published='CIFAR-10, VGG11: FedAvg 58.99, FedBR 64.65',
      evidence='T',
      checks=[at_end],
      **about,
    ),
    Claim(
      says='is faster than FedAvg where clients have few classes',
      checks=[
        *([Check(after(rounds), gain('fedbr'), 3, why=few)] if goes_on else []),
        Check(
          'rounds to 0.95, FedAvg over FedBR', slow.mean() / fast.mean(), 1.2
        ),
      ],
      **about,
    ),
    Claim(
      says='each of its two terms helps alone',
      checks=[
        Check(f'points of {x} over FedAvg', gain(x), 0.5, why=few)
        for x in ('component 1', 'component 2')
      ],
      **about,
    ),
    Claim(
      says='nothing is lost where clients differ little',
      checks=[Check(after(rounds), gain('fedbr', x), -1) for x in mild],
      **about,
    ),
    Claim(
      says='its messages are less spread out, so that a robust rule errs less',
      checks=[
        Check(f'{x}: error, FedAvg over FedBR', less(x), 1, why=middle)
        for x in settings.attacks
      ],
      **{**about, 'method': '', 'published': 'not in the paper'},
    ),
  ]
  return [claim for claim in found if claim.checks]


def picture(settings: Any, table, long) -> plt.Figure:
  """Accuracy of each method: early, at the end, and after more rounds."""
  skewed, *mild = (f'{x:g}' for x in settings.concentrations[:2])
  rounds = settings.rounds
  shown = {
    f'few classes, round {rounds // 4}': (table, f'{skewed}: early'),
    f'few classes, round {rounds}': (table, f'{skewed}: end'),
  }
  if long:
    shown[f'few classes, round {rounds * settings.long}'] = (long, 'end')
  for at in mild:
    shown[f'mild, round {rounds}'] = (table, f'{at}: end')
  figure, (axes,) = pictures.panels(
    1, len(shown), figsize=(1 + 3 * len(shown), 3)
  )
  for panel, (title, (cells, column)) in zip(axes, shown.items()):
    bars = {method: x for (method, at), x in cells.items() if at == column}
    if bars:
      pictures.bars(panel, bars, 'test accuracy (%)')
    panel.set_title(title)
  return figure
