"""A transformer and a text for it, on a mesh of replicas and their shards."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from byzjax import data, models

Tree = dict[str, jax.Array]


class Task(NamedTuple):
  """What is learned, and where everything lies."""

  params: Tree
  loss_fn: Callable[[Tree, jax.Array], jax.Array]
  documents: jax.Array  # int32[N, length + 1]
  held_out: jax.Array
  mesh: jax.sharding.Mesh
  specs: dict[str, PartitionSpec]
  fragment: dict[str, int]  # of every leaf


def task_of(config: Any) -> Task:
  """A transformer, a text, and a mesh for them."""
  text = data.load_text(config.dataset, config.data_dir)
  model = models.Transformer(
    len(text.vocabulary),
    num_layers=config.num_layers,
    width=config.width,
    num_heads=2,
    length=config.length,
    rngs=nnx.Rngs(config.seed),
  )
  graphdef, params = models.split(model)
  leaves, treedef = jax.tree.flatten_with_path(params)
  names = [jax.tree_util.keystr(path, simple=True) for path, _ in leaves]
  loss_fn = models.next_token_loss(graphdef)
  mesh = jax.make_mesh(
    config.mesh,
    ('replicas', 'fsdp'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  tree = {name: leaf for name, (_, leaf) in zip(names, leaves)}
  return Task(
    tree,
    lambda tree, batch: loss_fn(
      jax.tree.unflatten(treedef, [tree[name] for name in names]), batch
    ),
    jnp.asarray(data.documents(text.train, config.length)),
    jnp.asarray(data.documents(text.test, config.length)[:128]),
    mesh,
    {name: split_largest(x.shape, config.mesh[1]) for name, x in tree.items()},
    {name: fragment_of(name, config.num_fragments) for name in names},
  )


def split_largest(shape: tuple[int, ...], num_shards: int) -> PartitionSpec:
  """The largest dimension that the fsdp axis divides is split over it."""
  can = [size if size % num_shards == 0 else 0 for size in shape]
  if not any(can):
    return PartitionSpec()
  return PartitionSpec(*[None] * can.index(max(can)), 'fsdp')


def fragment_of(name: str, num_fragments: int) -> int:
  """Embedding and head are fragment 0; blocks take turns in the others."""
  if num_fragments == 1 or 'blocks' not in name:
    return 0
  block = int(next(part for part in name.split('.') if part.isdigit()))
  return 1 + block % (num_fragments - 1)


def part_of(task: Task, fragment: int, tree: Tree) -> Tree:
  return {k: x for k, x in tree.items() if task.fragment[k] == fragment}
