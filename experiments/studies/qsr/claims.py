"""What was predicted of QSR before it was run, and what is published."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import optax
from scipy import stats

import byzjax

from ...reporting import tables
from ...reporting.summary import Check, Claim, claims_about

SOURCE = 'Gu, Lyu, Arora, Zhang, Huang 2023, arXiv:2310.14423'
BETTER = 'tests better than averaging after every step'
BETTER_BY = {
  'published': 'ViT-B on ImageNet: +1.16 points, 20.2 h and not 26.7',
  'evidence': 'A',
}
FEWER = 'communicates far less than constant rounds and tests no worse'
FEWER_BY = {
  'published': 'ViT-B on ImageNet, H 4: 79.32 constant, 80.98 QSR',
  'evidence': 'T',
}
# The peak, steps, warm-up, H, alpha, and the volume in % that the paper has.
PUBLISHED = {
  'ViT, H 4, alpha 0.0175': (0.008, 93_600, 10_000, 4, 0.0175, 10.4),
  'ViT, H 8, alpha 0.0175': (0.008, 93_600, 10_000, 8, 0.0175, 6.9),
  'ResNet, H 2, alpha 0.2': (0.8, 62_400, 1560, 2, 0.2, 39.7),
  'ResNet, H 4, alpha 0.25': (0.8, 62_400, 1560, 4, 0.25, 20.1),
}


@functools.cache
def published() -> dict[str, tuple[float, float]]:
  """Rounds in % of the local steps, and what the paper says, by schedule."""
  volumes = {}
  for name, (peak, total, warmup, base, growth, percent) in PUBLISHED.items():
    steps = byzjax.quadratic_synchronization(
      optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total, 1e-6),
      total_steps=total,
      warmup_steps=warmup,
      base_steps=base,
      growth=growth,
    )
    volumes[name] = round(100 * len(steps) / total, 1), percent
  return volumes


def predicted(
  dataset: str,
  few: Sequence[str],
  share: Mapping[str, float],
  against: tables.Pivot,
  spread: tables.Pivot,
  attacked: tables.Pivot,
) -> list[Claim]:
  """Of all methods and attackers; `few` has constant rounds and QSR's."""
  constant, _, qsr = few
  claim = claims_about('QSR', SOURCE, dataset)
  ours = {'method': '', 'published': 'not in the paper'}
  more = 100 * share[constant] / share[qsr]
  volumes = published().values()
  agree = sum(volume == percent for volume, percent in volumes)
  falls = (spread['10 %', x] / spread['90 %', x] for x in (constant, qsr))
  return [
    claim(BETTER, **BETTER_BY),
    claim(
      FEWER,
      Check(f'rounds of {constant} per 100 of {qsr}', more, 110),
      *(
        Check(f'accuracy of {qsr} less {x}, own rates', gap.mean(), -0.5)
        for x in (constant, 'parallel')
        for gap in [against[x, 'tuned']]
      ),
      **FEWER_BY,
    ),
    claim(
      'how often its schedules communicate',
      Check('published volumes that agree', agree, len(volumes)),
      published=', '.join(f'{percent} %' for _, percent in volumes),
      evidence='C',
    ),
    claim(
      'honest messages stay apart, where those of constant rounds do not',
      Check(
        'fall of the spread from 10 to 90 % of the steps:'
        f' {constant} over {qsr}',
        float(np.mean(np.divide(*falls))),
        2,
      ),
      **ours,
    ),
    protected(dataset, qsr, attacked),
  ]


def protected(dataset: str, qsr: str, attacked: tables.Pivot) -> Claim:
  gain = np.subtract(
    *(attacked[f'{qsr}, {x}', 'sign flip'] for x in ('trimmed mean', 'mean'))
  )
  return claims_about('QSR', SOURCE, dataset)(
    'a robust rule protects the few long rounds',
    Check(f'{qsr}, sign flip: trimmed mean over mean', gain.mean(), 30),
    method='',
    published='not in the paper',
  )


def half_width(differences: np.ndarray) -> float:
  """Of the 95 % interval of a mean, by Student's t."""
  count = len(differences)
  if count < 2:
    return float('nan')
  error = np.std(differences, ddof=1) / np.sqrt(count)
  return float(stats.t.ppf(0.975, count - 1) * error)


def predicted_at_the_minimum(
  dataset: str,
  names: Sequence[str],
  share: Mapping[str, float],
  against: tables.Pivot,
  table: tables.Pivot,
) -> list[Claim]:
  """Where the training loss is near zero; QSR is the last of the names.

  Constant rounds as rare as QSR's, a control, came after the run: of them
  nothing was predicted.
  """
  first, short, _, *rest, qsr = names
  others = [first, short, *rest]
  claim = claims_about('QSR', SOURCE, dataset)
  gaps = {other: against[other, 'tuned'] for other in others}
  more = 100 * share[others[1]] / share[qsr]
  return [
    claim(
      BETTER,
      *(
        Check(
          f'lower end of the 95 % interval of {qsr} less {other}, points',
          float(np.mean(gap)) - half_width(gap),
          0,
        )
        for other, gap in gaps.items()
      ),
      **BETTER_BY,
    ),
    claim(
      FEWER,
      Check(f'rounds of {others[1]} per 100 of {qsr}', more, 110),
      *(
        Check(f'accuracy of {qsr} less {other}', float(np.mean(gap)), -0.5)
        for other, gap in gaps.items()
      ),
      **FEWER_BY,
    ),
    claim(
      'the model interpolates, as the theory of the rule needs it',
      Check(
        'training loss of parallel at the end',
        float(np.mean(table['parallel', 'training loss'])),
        at_most=0.05,
      ),
      method='',
    ),
  ]
