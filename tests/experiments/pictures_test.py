"""Colours, and what pictures draw."""

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot as plt

from experiments.reporting import palette, pictures


@pytest.fixture
def axes():
  figure, grid = pictures.panels()
  yield grid[0, 0]
  plt.close(figure)


def test_a_rule_has_one_colour_whatever_stands_beside_its_name():
  krum = palette.colour('krum')
  assert palette.colour('krum(num_byzantine=3)') == krum
  assert palette.colour('runs/krum') == krum
  assert palette.colour('krum, alie') == krum
  clipping = palette.colour('centered_clipping')
  assert clipping == palette.colour('runs/centered_clipping_radius=0.3') != krum
  # A name that only begins like one is another.
  assert palette.colour('mean_around_median') != palette.colour('mean')


def test_no_two_series_share_a_colour_and_none_loses_its_own():
  names = ['krum, alie', 'krum, none', 'krum, ipm', 'mean, none', 'a', 'b', 'c']
  found = palette.colours(names)
  assert list(found) == names
  assert len(set(found.values())) == len(names)
  assert found['krum, alie'] == palette.colour('krum')
  assert found['mean, none'] == palette.colour('mean')
  # Nor does one that is no rule look like one while there are others.
  rates = [f'rate {i}' for i in range(8)]
  assert palette.colour('mean') not in palette.colours(rates).values()
  # More series than colours still have one each.
  many = palette.colours([f'series {i}' for i in range(40)])
  assert len(many) == 40 and len(set(many.values())) == 16


def test_a_curve_is_the_mean_over_seeds_in_a_band(axes):
  rows = [
    {'seed': seed, 'round': t, 'accuracy': 0.1 * t + 0.2 * seed}
    for seed in (0, 1)
    for t in (1, 2)
  ]
  pictures.curves(axes, {'krum': rows, 'nothing ran': []}, scale=100)
  (line,) = axes.lines
  assert line.get_color() == palette.colour('krum')
  np.testing.assert_allclose(line.get_xydata(), [[1, 20], [2, 30]])
  (band,) = axes.collections
  corners = band.get_paths()[0].vertices
  np.testing.assert_allclose(corners.min(0), [1, 10])
  np.testing.assert_allclose(corners.max(0), [2, 40])


def test_bars_and_errors_are_means(axes):
  pictures.bars(axes, {'krum': np.array([1.0, 3.0]), 'mean': np.array([5.0])})
  assert [bar.get_width() for bar in axes.patches] == [2, 5]


def test_what_is_infinite_is_a_word_and_no_bar(axes):
  pictures.bars(axes, {'mean': np.array([1.0, np.inf]), 'krum': np.ones(2)})
  assert [bar.get_width() for bar in axes.patches] == [0, 1]
  assert [(text.get_text(), text.get_position()) for text in axes.texts] == [
    (' infinite', (0, 0))
  ]


def test_spread_is_over_numbers(axes):
  values = [np.array([1.0, 3.0]), np.array([4.0])]
  pictures.spread_over(axes, [0.1, 0.2], {'krum': values})
  (found,) = axes.containers
  np.testing.assert_allclose(found[0].get_xydata(), [[0.1, 2], [0.2, 4]])
  (bars,) = found[2]
  ends = [segment[:, 1] for segment in bars.get_segments()]
  np.testing.assert_allclose(ends, [[1, 3], [4, 4]])


def test_a_heatmap_is_a_picture_with_its_whole_title(tmp_path):
  cells = {
    ('krum', 'alie'): np.array([90.0, 80.0]),
    ('mean', 'none'): np.array([1.0]),
  }
  title = 'a title that is a good deal longer than the picture below it is wide'
  figure = pictures.heatmap(cells, title, {('krum', 'alie'): 'rate 0.1'})
  axes = figure.axes[0]
  np.testing.assert_array_equal(
    axes.images[0].get_array(), [[85, np.nan], [np.nan, 1]]
  )
  assert [text.get_text() for text in axes.texts] == ['85', 'rate 0.1', '1', '']
  figure.canvas.draw()
  box = figure._suptitle.get_window_extent()
  assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
  pictures.save(figure, tmp_path / 'table.png')
  assert (tmp_path / 'table.png').read_bytes().startswith(b'\x89PNG')
  assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize(('chosen', 'found'), [('svg', 'svg'), ('', 'agg')])
def test_who_has_chosen_how_to_show_pictures_keeps_it(chosen, found):
  code = (
    'from experiments.reporting import pictures; import matplotlib;'
    ' print(matplotlib.get_backend())'
  )
  environment = {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'}
  if chosen:
    environment['MPLBACKEND'] = chosen
  said = subprocess.run(
    [sys.executable, '-c', code],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert said.stdout.strip() == found
