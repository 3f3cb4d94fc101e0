"""`--method=dipaco(grid=(2, 2))`: paths through shared modules, on images.

A network is cut into levels, and each level has several modules. A router looks
at the pixels of an example, once and before training, and says which path it is
for: a worker of that path learns it, or the path alone is tested on it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import data, models

from . import backdoors, programs, specs
from .cells import Cell
from .method_arguments import Arguments, local

GRID = (2, 2)
ROUTING = 'k_means'
# From features and the modules of each level to a router.
ROUTINGS: dict[str, Callable[..., data.Router]] = {
  'k_means': lambda features, grid: data.cluster_documents(
    features, int(np.prod(grid))
  ),
  'product': data.product_cluster_documents,
}
# Examples that routers are made of, and that are routed at a time.
_MOST = 5000
# Layers of the models by name without numbers, from input to output.
_ORDER = ('conv', 'norm', 'layers', 'blocks', 'dense')


def training(
  of: Arguments,
  grid=GRID,
  routing=ROUTING,
  outer_learning_rate=0.7,
  outer_momentum=0.9,
  weight_decay=0.1,
) -> byzjax.Round:
  """DiPaCo: grid says how many modules each level of the network has."""
  del routing  # `routed` has divided the examples by it.
  given = local(of) | {'worker': None}  # As in `methods.diloco`.
  del given['num_workers']
  loss_fn = of.task.loss_fn
  rounds = byzjax.modular_round(
    lambda path, *batch: loss_fn(models.join_levels(path), *batch),
    paths=paths_of(grid, of.num_workers),
    local_optimizer=optax.adamw(of.local_rate, weight_decay=weight_decay),
    optimizer=optax.sgd(outer_learning_rate, outer_momentum, nesterov=True),
    **given,
  )

  def init(params, key=None):
    levels = split_levels(params, len(grid))
    return rounds.init(models.repeat_modules(levels, grid), key)

  return rounds._replace(init=init)


def paths_of(grid: Sequence[int], num_workers: int) -> np.ndarray:
  """The path of every worker, in turn: int32 `[n, L]`.

  So the first workers, who attack, are on different paths.
  """
  if not isinstance(grid, tuple | list):
    raise ValueError(
      f'grid must be the modules of each level, such as (2, 2), got {grid!r}'
    )
  paths = models.grid_paths(grid)
  if num_workers < len(paths):
    raise ValueError(
      f'there must be a worker for each of the {len(paths)} paths of'
      f' grid={tuple(grid)}, got {num_workers}'
    )
  return paths[np.arange(num_workers) % len(paths)]


def split_levels(params: Any, num_levels: int) -> tuple[Any, ...]:
  """The parameters of a model of images, cut between layers.

  Levels have as many layers as the others, or one more, the larger first.
  """
  leaves = nnx.to_flat_state(params)
  layers = sorted({_layer(path) for path, _ in leaves})
  if num_levels > len(layers):
    raise ValueError(
      f'--method=dipaco: grid has {num_levels} levels, and the model has'
      f' {len(layers)} layers'
    )
  return tuple(
    nnx.from_flat_state([leaf for leaf in leaves if _layer(leaf[0]) in level])
    for level in _parts(layers, num_levels)
  )


def _layer(path: Sequence[Any]) -> tuple[int, str, int]:
  """The place of the layer of a parameter, by its kind and its number."""
  name, number = path[0], path[1]
  return (
    _ORDER.index(name.rstrip('0123456789')),
    name,
    number if isinstance(number, int) else 0,
  )


def _parts(items: list[Any], count: int) -> list[list[Any]]:
  size, larger = divmod(len(items), count)
  ends = np.cumsum([size + (i < larger) for i in range(count)])
  return [items[a:b] for a, b in zip([0, *ends], ends)]


def first_path(params: Any) -> Any:
  """The network of the path through the first module of each level."""
  return models.join_levels(jax.tree.map(lambda x: x[0], params))


class Routed(nnx.Module):
  """Networks of which each example takes the one that a router says."""

  def __init__(self, networks: Sequence[nnx.Module], router: data.Router):
    self.networks = nnx.List(networks)
    # Of the kind that `models.split` knows.
    self.weights = nnx.Param(jnp.asarray(router.weights, jnp.float32))
    self.bias = nnx.Param(jnp.asarray(router.bias, jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, ...]` to logits `[B, K]`."""
    scores = (
      x.reshape(x.shape[0], -1) @ self.weights[...] + self.bias[...][None]
    )
    logits = jnp.stack([network(x) for network in self.networks])
    return logits[jnp.argmax(scores, axis=1), jnp.arange(x.shape[0])]


def routed(cell: Cell, config: Any, dataset: data.Dataset) -> Cell:
  """The cell, with examples for the workers of their paths.

  One router is made for all seeds.

  Raises:
    ValueError: if there is no such router, or a worker has no example.
  """
  given = specs.parse(config.method)[1]
  grid = given.get('grid', GRID)
  if config.validation:
    dataset = programs.split_validation(dataset)[0]
  images, scale = dataset.train_images, dataset.scale
  try:
    paths_of(grid, config.num_workers)
    paths = models.grid_paths(grid)
    router = router_of(given.get('routing', ROUTING), grid, images, scale)
    shards = shards_of(
      routes(router, images, scale), len(paths), config.num_workers
    )
  except ValueError as error:
    raise ValueError(f'--method={config.method}: {error}') from error
  of_backdoor = backdoors.measure(config.attack)

  def measure(task, params, images, labels):
    networks = [
      nnx.merge(
        task.graphdef, models.join_levels(models.select_path(params, p))
      )
      for p in paths
    ]
    graphdef, model = models.split(Routed(networks, router))
    scores = models.evaluate(
      graphdef,
      model,
      images,
      labels,
      num_classes=task.num_classes,
      scale=task.scale,
    )._asdict()
    if of_backdoor is not None:
      task = task._replace(graphdef=graphdef)
      scores |= of_backdoor(task, model, images, labels)
    return scores

  return dataclasses.replace(
    cell, partition=lambda labels, num_workers, seed: shards, measure=measure
  )


def router_of(
  routing: str, grid: Sequence[int], images: np.ndarray, scale: float
) -> data.Router:
  """The router by pixels, made of some of the images."""
  if routing not in ROUTINGS:
    raise ValueError(
      f'routing must be one of {", ".join(sorted(ROUTINGS))}, got {routing!r}'
    )
  chosen = np.random.default_rng(0).permutation(len(images))[:_MOST]
  return ROUTINGS[routing](_pixels(images[chosen], scale), grid)


def routes(router: data.Router, images: np.ndarray, scale: float) -> np.ndarray:
  """The path of every image, int32 `[N]`."""
  parts = np.array_split(images, -(-len(images) // _MOST))
  return np.concatenate(
    [data.route(router, _pixels(part, scale)) for part in parts]
  )


def shards_of(
  chosen: np.ndarray, num_paths: int, num_workers: int
) -> data.Partition:
  """The examples of every worker: those of a path go around its workers."""
  worker = np.zeros_like(chosen)
  for path in range(num_paths):
    mine = np.flatnonzero(chosen == path)
    workers = np.arange(path, num_workers, num_paths)
    worker[mine] = np.resize(workers, mine.size)
  return data.routed_shards(worker, num_workers)


def _pixels(images: np.ndarray, scale: float) -> np.ndarray:
  """Features [N, d] of images, as models see them."""
  return np.asarray(images, np.float64).reshape(len(images), -1) / scale
