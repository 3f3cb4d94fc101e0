"""A picture of each record, made of its JSON file and of nothing else.

python -m benchmarks.pictures
"""

import pathlib
import sys

import matplotlib
from matplotlib import pyplot as plt

from benchmarks import growth, records

matplotlib.use('agg')  # Files only: a server has no screen.
_BAR = 0.22  # Inches of a bar.


def draw(record: records.Record, folder: pathlib.Path) -> list[pathlib.Path]:
  """The pictures of a record, by its kind."""
  if record.benchmark == 'growth':
    return [_growth(record, folder)]
  if any('peer_ratio' in f.values for run in record.runs for f in run.figures):
    # Bars to the right of 1 are how many times faster ours is.
    return [_bars(record, folder, record.benchmark, _peer, 'x the peer')]
  made = [_bars(record, folder, record.benchmark, _ratio, 'x the floor')]
  if record.benchmark == 'rules':
    text = 'temporary memory, share of the messages'
    made.append(_bars(record, folder, 'memory', _share, text))
  return made


def _ratio(figure: records.Figure) -> float | None:
  return figure.critical_ratio or figure.ratio


def _peer(figure: records.Figure) -> float | None:
  return figure.values.get('peer_ratio')


def _share(figure: records.Figure) -> float | None:
  return figure.values.get('temporary_share')


def _bars(record, folder, name, value_of, label) -> pathlib.Path:
  """A panel for each run, a bar for each figure that has the value."""
  by_title = {
    run.title: {f.name: value_of(f) for f in run.figures if value_of(f)}
    for run in record.runs
  }
  panels = [panel for panel in by_title.values() if panel]
  titles = [title for title, panel in by_title.items() if panel]
  heights = [len(panel) + 3 for panel in panels]
  figure, axes = plt.subplots(
    len(panels),
    figsize=(8, _BAR * sum(heights)),
    height_ratios=heights,
    squeeze=False,
    layout='constrained',
  )
  for axis, panel, title in zip(axes[:, 0], panels, titles):
    names, values = list(panel), list(panel.values())
    bars = axis.barh(range(len(values)), values, color='tab:blue')
    axis.bar_label(bars, fmt='%.2g', padding=3, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.axvline(1, color='black', linewidth=0.8)
    axis.margins(x=0.12)
    axis.set_title(title, fontsize=9)
  axes[-1, 0].set_xlabel(label)
  return _save(figure, folder / f'{name}.png')


def _growth(record: records.Record, folder: pathlib.Path) -> pathlib.Path:
  """Time over n and over d, both logarithmic, with the exponents."""
  runs = record.runs
  figure, axes = plt.subplots(
    1, len(runs), figsize=(5 * len(runs), 4), squeeze=False,
    layout='constrained',
  )  # fmt: skip
  for axis, run in zip(axes[0], runs):
    along = run.settings['along']
    for name in dict.fromkeys(f.name for f in run.figures):
      series = [f for f in run.figures if f.name == name]
      power = run.notes[f'exponent of {name}']
      axis.loglog(
        [f.values[along] for f in series],
        [1e3 * growth.time_of(f) for f in series],
        'o-',
        markersize=3,
        label=f'{name}: {along}^{power:.2f}',
      )
    axis.set(xlabel=along, ylabel='ms', title=run.title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
  return _save(figure, folder / 'growth.png')


def _save(figure, path: pathlib.Path) -> pathlib.Path:
  figure.savefig(path, dpi=80)
  plt.close(figure)
  return path


def main(folder: pathlib.Path = records.RESULTS) -> None:
  for path in sorted(folder.glob('*.json')):
    draw(records.read(path), folder)


if __name__ == '__main__':
  main(*map(pathlib.Path, sys.argv[1:]))
