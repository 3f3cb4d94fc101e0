"""What was predicted of Entropy-SGD before it was run."""

from collections.abc import Mapping

import numpy as np

from ...harness.cells import Rows
from ...reporting import tables
from ...reporting.summary import OURS, Check, Claim, claims_about

PAPER = 'Chaudhari et al. 2017, arXiv:1611.01838'
ENTROPIES = ('entropy 5', 'entropy 20')
ROBUST = dict.fromkeys(('sgd', 'entropy 5'), 'nnm, median')
ROBUST |= dict.fromkeys(('parle', 'easgd'), 'median')

Methods = Mapping[str, Rows]  # without attackers


def of(methods: Methods, name: str, column: str) -> np.ndarray:
  """Per seed."""
  return tables.final(methods.get(name, []), column)


def less_sgd(methods: Methods, name: str) -> np.ndarray:
  """Points of accuracy, paired by seed."""
  apart = of(methods, name, 'accuracy') - of(methods, 'sgd', 'accuracy')
  return 100 * apart


def of_entropy(
  methods: Methods, accuracy: tables.Cells, data: str
) -> list[Claim]:
  """Also of all methods under attack: accuracy by method, rule and attack."""
  claim = claims_about('Entropy-SGD', PAPER, data)
  return [
    claim(
      'at equal gradients as accurate as SGD',
      *(
        Check(f'{m}: points over SGD', less_sgd(methods, m).mean(), -0.5)
        for m in ENTROPIES
      ),
      published='error 0.48 % against 0.51 %, LeNet on MNIST, version 1',
      evidence='P',
    ),
    claim(
      'its training loss ends lower than that of SGD',
      *(check_of_loss(methods, m) for m in ENTROPIES),
    ),
    claim(
      'its training loss falls more smoothly',
      *(check_of_rises(methods, m) for m in ENTROPIES),
    ),
    claim(
      'robust rules hold these methods under attack, as they hold SGD',
      *checks_of_attacks(accuracy),
      **OURS,
    ),
  ]


def check_of_loss(methods: Methods, name: str) -> Check:
  sgd, mine = (of(methods, m, 'full_loss') for m in ('sgd', name))
  return Check(
    f'{name}: decades below SGD',
    np.log10(sgd / mine).mean(),
    0,
    why='its inner rate was fixed at 0.1, the rate of SGD the best of six',
  )


def check_of_rises(methods: Methods, name: str) -> Check:
  sgd, mine = (of(methods, m, 'rises') for m in ('sgd', name))
  smoother = 100 * (sgd - mine).mean()
  return Check(f'{name}: rises of SGD less its own (1 / 100)', smoother, 0)


def checks_of_attacks(accuracy: tables.Cells) -> list[Check]:
  def over(method, attack, other):
    """Points behind the robust rule over those behind the mean."""
    robust = accuracy[f'{method}, {ROBUST[method]}', attack]
    return (robust - accuracy[f'{method}, mean', other]).mean()

  return [
    Check(
      f'{m}, sign flip: points of {rule} over the mean',
      over(m, 'sign flip', 'sign flip'),
      at_least=20,
    )
    for m, rule in ROBUST.items()
  ] + [
    Check(
      f'entropy 5, {attack}: points of nnm, median over no attack',
      over('entropy 5', attack, 'none'),
      at_least=-3,
    )
    for attack in ('sign flip', 'alie')
  ]
