"""The figure of the study."""

import numpy as np
from matplotlib import pyplot as plt

from experiments import report
from experiments.gossip import measure


def picture(gaps, accuracy, errors, slopes, bridges, path) -> None:
  figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4), layout='constrained'
  )
  for name in gaps:
    y = errors[name, 'consensus distance']
    left.errorbar(gaps[name], y.mean(), y.std(), fmt='o', label=name)
  left.set(xscale='log', xlabel='spectral gap')
  left.set_ylabel('consensus distance at the end')
  left.legend(fontsize=7, loc='center left')
  twin = left.twinx()
  for name in gaps:
    y = accuracy[name, 'nodes']
    twin.plot(gaps[name], y.mean(), 'x', color='grey')
  twin.set_ylabel('mean test accuracy of nodes (%), crosses')
  for tau_a, tau_b in measure.DECAYS:
    row = next(r for r in slopes if (r['tau_a'], r['tau_b']) == (tau_a, tau_b))
    k = [int(key.split('_')[1]) for key in row if key.startswith('error_')]
    y = [row[f'error_{i}'] for i in k]
    middle.loglog(k, y, 'o', label=f'{tau_a:g}, {tau_b:g}')
    middle.loglog(
      k, y[0] * (np.array(k) / k[0]) ** (tau_b - tau_a), 'k-', lw=0.7
    )
  middle.set(xlabel='step k', ylabel='consensus error of D-SGD')
  middle.legend(title='decay of steps, of consensus', fontsize=7)
  names = list(dict.fromkeys(column for _, column in bridges))
  for rule in dict.fromkeys(rule for rule, _ in bridges):
    mine = [k for k, name in enumerate(names) if (rule, name) in bridges]
    values = [bridges[rule, names[k]] for k in mine]
    right.errorbar(
      mine,
      [v.mean() for v in values],
      [v.std() for v in values],
      marker='o',
      capsize=3,
      label=rule,
    )
  right.set_xticks(range(len(names)), names, fontsize=8)
  right.set(ylabel='mean test accuracy of nodes (%)', ylim=(0, 100))
  right.set_title('dumbbell, dissensus at both ends', fontsize=10)
  right.legend(fontsize=7)
  report.save(figure, path, dpi=90)
  plt.close(figure)
