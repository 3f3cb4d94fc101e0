"""Gossip as loops over nodes and neighbours, in float64, from the papers."""

import jax
import numpy as np

from byzjax import gossip


def mix(rule, graph, x, **kwargs):
  """`gossip.mix` as one program: operation by operation it compiles longer."""
  return jax.jit(lambda x: gossip.mix(rule, graph, x, **kwargs))(x)


def neighbors(graph, i):
  return list(np.flatnonzero(graph.adjacency[i]))


def plain(graph, x):
  return np.stack(
    [
      x[i]
      + sum(graph.mixing[i, j] * (x[j] - x[i]) for j in neighbors(graph, i))
      for i in range(len(x))
    ]
  )


def clipped(graph, x, radius=None, num_byzantine=1):
  result = x.copy()
  for i in range(len(x)):
    distances = sorted(np.linalg.norm(x[j] - x[i]) for j in neighbors(graph, i))
    tau = radius
    if tau is None:
      tau = distances[max(len(distances) - 1 - num_byzantine, 0)]
    for j in neighbors(graph, i):
      v = x[j] - x[i]
      norm = np.linalg.norm(v)
      factor = 1 if norm == 0 else min(1, tau / norm)
      result[i] += graph.mixing[i, j] * factor * v
  return result


def nearest_neighbor_averaging(graph, x, num_byzantine):
  result = x.copy()
  for i in range(len(x)):
    near = sorted(
      neighbors(graph, i), key=lambda j, i=i: (np.linalg.norm(x[j] - x[i]), j)
    )
    kept = [i, *near[: max(len(near) - num_byzantine, 0)]]
    result[i] = np.mean([x[j] for j in kept], axis=0)
  return result


def trimmed(graph, x, num_byzantine):
  result = x.copy()
  for i in range(len(x)):
    rows = np.sort(x[[i, *neighbors(graph, i)]], axis=0)
    f = num_byzantine
    while len(rows) - 2 * f <= 0:
      f -= 1
    result[i] = rows[f : len(rows) - f].mean(axis=0)
  return result


def dissensus(graph, x, i, is_byzantine, epsilon):
  """What the Byzantine neighbours of i send it."""
  byzantine = [j for j in neighbors(graph, i) if is_byzantine[j]]
  honest = [j for j in neighbors(graph, i) if not is_byzantine[j]]
  push = sum(graph.mixing[i, k] * (x[k] - x[i]) for k in honest)
  return x[i] - epsilon * push / sum(graph.mixing[i, b] for b in byzantine)
