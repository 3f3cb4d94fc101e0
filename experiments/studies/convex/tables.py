"""What is printed and drawn, and what is claimed."""

import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from byzjax import convex
from experiments import report, study

EARLY = (10, 40, 100)  # iterations after which a network is tested
AFTER = tuple(f'after {k}' for k in (*EARLY, 'end'))
COLUMNS = (
  'objective', 'accuracy', *AFTER, 'patterns', 'program', 'violation', 'excess',
  'residual', 'clean', 'fgsm', 'pgd',
)  # fmt: skip
Results = dict[tuple[str, str, str, str], np.ndarray]


def collect(rows: report.Rows) -> Results:
  """Numbers of all seeds by (part, attack, method, column)."""
  by: dict = {}
  for row in rows:
    for column in COLUMNS:
      at = (row['part'], row['attack'], row['method'], column)
      by.setdefault(at, []).append(float(row[column]))
  return {
    at: np.array(values)
    for at, values in by.items()
    if not np.isnan(values).all()
  }


def show(results: Results) -> None:
  """Prints the tables."""

  def table(title, part, columns, attack='none', digits=1):
    print(title)
    methods = dict.fromkeys(
      m for p, a, m, _ in results if (p, a) == (part, attack)
    )
    cells = {
      (method, column): results[part, attack, method, column]
      for column in columns
      for method in methods
      if (part, attack, method, column) in results
    }
    print(report.pivot(cells, digits) + '\n')

  names = ('objective', 'program', 'violation', 'patterns', 'accuracy')
  for part in ('plane', 'images'):
    title = 'squared loss: network, program, violation, patterns, accuracy (%)'
    table(f'{part}, {title}', part, names, digits=3)
  table('images, ADMM: accuracy (%) after iterations', 'images', AFTER)
  for part in ('toy', 'box'):
    title = f'{part}, hinge loss: test accuracy (%)'
    table(title, part, ('clean', 'fgsm', 'pgd'))
  for attack in dict.fromkeys(a for p, a, _, _ in results if p == 'workers'):
    title = f'workers, {attack}: excess over the optimum (%), accuracy (%)'
    columns = ('excess', 'accuracy', 'residual')
    table(title, 'workers', columns, attack, digits=2)


def picture(networks: dict, x, y, epsilon: float, path) -> None:
  """What networks say in the plane, and the boxes."""
  figure, axes = plt.subplots(
    1, len(networks), figsize=(14, 3.8), layout='constrained', sharey=True
  )
  line = jnp.linspace(-2, 2, 150)
  grid = jnp.stack([*jnp.meshgrid(line, line), jnp.ones((150, 150))], axis=-1)
  for axis, (name, network) in zip(axes, networks.items()):
    z = convex.network_outputs(network, grid.reshape(-1, 3)).reshape(150, 150)
    fills, widths = ['#cfe0f3', '#f9d9c6'], [0.6, 1.5, 0.6]
    axis.contourf(line, line, z, levels=[-1e9, 0, 1e9], colors=fills)
    axis.contour(
      line, line, z, levels=[-1, 0, 1], colors='k', linewidths=widths
    )
    for point, label in zip(np.asarray(x), np.asarray(y)):
      color = '#b5490f' if label > 0 else '#1f5fa8'
      axis.add_patch(
        plt.Rectangle(
          point[:2] - epsilon,
          2 * epsilon,
          2 * epsilon,
          fill=False,
          linewidth=0.6,
          color=color,
        )  # fmt: skip
      )
    axis.set(title=name, aspect='equal')
  report.save(figure, path, dpi=90)
  plt.close(figure)


def claims(results: Results) -> list[bool]:
  """Of the paper; what is to be small is negative."""

  def get(part, method, column, attack='none'):
    return results[part, attack, method, column]

  made = []
  for part in ('plane', 'images'):
    gap = get(part, 'convex', 'objective') / get(part, 'convex', 'program') - 1
    text = f'{part}: network from program, worst seed (%)'
    made.append(study.claim(text, -100 * np.abs(gap).max(), -0.1))
  values = get('plane', 'convex', 'objective')
  for method in ('adam', 'sgd'):
    above = get('plane', method, 'objective').min() / values.max() - 1
    text = f'plane: best {method} over worst convex (%)'
    made.append(study.claim(text, 100 * above, 0))
  spread = -100 * values.std() / values.mean()
  made.append(study.claim('plane: spread of convex (%)', spread, -0.1))
  adam = get('images', 'adam', 'objective')
  for method, text in (
    ('convex', 'images: adam over convex, worst seed (%)'),
    ('adam, then convex', 'images: adam over convex on its patterns (%)'),
  ):
    above = (adam / get('images', method, 'objective') - 1).min()
    made.append(study.claim(text, 100 * above, 0))
  early = get('images', 'convex', 'after 40')
  early = (early - get('images', 'convex', 'after end')).mean()
  made.append(study.claim('images: accuracy of 40 over end', early, -2))
  for part in ('toy', 'box'):
    robust = get(part, 'convex robust', 'pgd')
    for method, needed in (('sgd', 5), ('convex', 5), ('sgd on pgd', -1)):
      gain = (robust - get(part, method, 'pgd')).mean()
      text = f'{part}: pgd accuracy of convex robust over {method}'
      made.append(study.claim(text, gain, needed))
    cost = get(part, 'convex robust', 'clean') - get(part, 'convex', 'clean')
    made.append(study.claim(f'{part}: clean cost', cost.mean(), -5))
  excess = -np.abs(get('workers', 'mean', 'excess')).max()
  made.append(study.claim('workers, none: excess of mean (%)', excess, -1))
  for attack in ('sign flip', 'alie'):
    text = f'workers, {attack}: excess of geometric median (%)'
    excess = -get('workers', 'geometric median', 'excess', attack).mean()
    made.append(study.claim(text, excess, -10))
  excess = get('workers', 'mean', 'excess', 'sign flip')
  excess = np.nan_to_num(excess, nan=np.inf).mean()
  made.append(study.claim('workers, sign flip: excess of mean', excess, 20))
  return made
