"""A transformer and a text for it, on a mesh of replicas and their shards."""

import re
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


def check(config: Any) -> None:
  """Raises ValueError if the settings of the trainer do not fit each other."""
  n, mesh = config.num_replicas, config.mesh
  if len(mesh) != 2:
    raise ValueError(
      f'--mesh must be two numbers, replicas and fsdp, got {mesh}'
    )
  if n % mesh[0]:
    raise ValueError(
      f'--num_replicas must be a multiple of the first of --mesh, got {n} and'
      f' {mesh[0]}'
    )
  for flag, limit, most in (
    ('quorum', '--num_replicas', n),
    ('alpha', '1', 1),
    ('apply_delay', '--num_local_steps', config.num_local_steps),
    ('num_fragments', '--num_layers + 1', config.num_layers + 1),
  ):
    if (value := getattr(config, flag)) > most:
      raise ValueError(
        f'--{flag} must be at most {limit}, got {value} and {most}'
      )


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
  block = re.match(r'blocks(\d+)', name)
  if num_fragments == 1 or block is None:
    return 0
  return 1 + int(block[1]) % (num_fragments - 1)


def part_of(task: Task, fragment: int, tree: Tree) -> Tree:
  return {k: x for k, x in tree.items() if task.fragment[k] == fragment}
