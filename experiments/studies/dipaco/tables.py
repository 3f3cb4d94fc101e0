"""The tables, the figure and the claims."""

import itertools

import numpy as np
from absl import flags
from matplotlib import pyplot as plt

from experiments import report, study
from experiments.dipaco import paths

FLAGS = flags.FLAGS


def final(
  rows: report.Rows, column: str = 'perplexity', **labels
) -> np.ndarray:
  """At the end, by seed; of the rate that is best on held-out documents."""
  rows = report.select(rows, **labels)
  rates = sorted({row['rate'] for row in rows})
  best = min(
    rates,
    key=lambda r: report.final(
      report.select(rows, rate=r), 'validation', tail=1
    ).mean(),
  )
  return report.final(report.select(rows, rate=best), column, tail=1)


def less(one: np.ndarray, other: np.ndarray) -> float:
  """By how much the second perplexity is lower, in %, over seeds."""
  return float(100 * (1 - other / one).mean())


def show_paths(rows) -> list[bool]:
  methods = list(dict.fromkeys(row['method'] for row in rows))
  ends = {m: final(rows, method=m) for m in methods}
  table = {}
  for method in methods:
    table[method, 'perplexity'] = ends[method]
    for name, column in [
      ('early stopped', 'stopped'), ('best path', 'oracle')
    ]:  # fmt: skip
      table[method, name] = final(rows, column, method=method)
    table[method, 'less (%)'] = 100 * (1 - ends[method] / ends['dense'])
  print('Test perplexity after the prefix, and how much less than dense')
  print(report.pivot(table, 2))
  lowest = np.mean([row['lowest'] for row in rows])
  print(f'of one who knows the languages: {lowest:.2f}')
  kmeans = ends['DiPaCo, k-means']
  return [
    study.claim(
      'DiLoCo below dense (%)', less(ends['dense'], ends['DiLoCo']), 0
    ),
    study.claim('k-means below DiLoCo (%)', less(ends['DiLoCo'], kmeans), 1),
    study.claim(
      'discriminative below k-means (%)',
      less(kmeans, ends['DiPaCo, discriminative']),
      -0.5,
    ),
    study.claim(
      'flat below k-means (%)', less(kmeans, ends['flat mixture']), 0
    ),
    study.claim(
      'one of four pre-empted below k-means (%)',
      less(kmeans, ends['DiPaCo, pre-empted']),
      -10,
    ),
  ]


def show_data(rows, folder) -> list[bool]:
  counts = sorted({row['documents'] for row in rows})
  methods = list(dict.fromkeys(row['method'] for row in rows))
  ends = {
    (m, count): final(rows, method=m, documents=count)
    for m in methods
    for count in counts
  }
  table = {(m, str(count)): x for (m, count), x in ends.items()}
  for method, count in itertools.product(methods, counts):
    table[f'{method}, early stopped', str(count)] = final(
      rows, 'stopped', method=method, documents=count
    )
  print('Test perplexity by number of documents')
  print(report.pivot(table, 2))
  draw(ends, methods, counts, folder / 'documents.png')
  gains = [less(*(ends[m, count] for m in methods)) for count in counts]
  few, more, most = counts
  return [
    study.claim(f'loss of four paths on {few} (%)', -gains[0], 0),
    study.claim(f'gain of four paths on {more} (%)', gains[1], 2),
    study.claim(f'what {most} add to that (%)', gains[2] - gains[1], 0),
  ]


def draw(ends, methods, counts, path):
  figure, axes = plt.subplots(figsize=(5, 3.2), layout='constrained')
  for method in methods:
    losses = [ends[method, count] for count in counts]
    means = [x.mean() for x in losses]
    stds = [x.std() for x in losses]
    axes.errorbar(counts, means, stds, marker='o', capsize=3, label=method)
  axes.set(xlabel='documents', ylabel='test perplexity', xscale='log')
  axes.set_xticks(counts, counts)
  axes.minorticks_off()
  axes.grid(alpha=0.3)
  axes.legend()
  report.save(figure, path, dpi=120)
  plt.close(figure)


def show_attacks(rows) -> list[bool]:
  ends = {
    tuple(m.split(', ')): final(rows, 'loss', method=m)
    for m in dict.fromkeys(row['method'] for row in rows)
  }
  print('Test loss (nats) with lying workers, one of the six on each module')
  print(report.pivot(ends, 2))
  honest, attacked = dict.fromkeys(count for _, count in ends)
  clean = ends['mean', honest]
  costs = {r: float((ends[r, attacked] - clean).mean()) for r in paths.RULES}
  return [
    study.claim(
      'what liars cost the mean (0.01 nats)', 100 * costs['mean'], 18
    ),
    study.claim(
      'what they cost the median (0.01 nats), negated',
      -100 * costs['coordinate median'],
      -15,
    ),
  ]
