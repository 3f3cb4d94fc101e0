"""A model as a sequence of layers, each with its own parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from byzjax._src import base


class Stage(NamedTuple):
  """One layer of a model, for `target_projection`.

  Attributes:
    owns: `params -> part of params`, the layer's own parameters, such as
      `lambda params: params['dense1']`.
    apply: `(params, h [B, ...]) -> y [B, ...]`, the layer with its activation.
      It must use only its own parameters.
    after: `y -> h`, the input of the next stage, such as a pooled y; None for y
      itself.
    targets_after: whether the target is for `after(y)`, such as a pooled y,
      instead of y.
    readout: k >= 1, a Python int: the target is for k numbers, a fixed random
      projection of this output; None for the output itself.

  The last stage of a model has no target; these two fields then have no effect.
  """

  owns: Callable[[base.Params], base.Params]
  apply: Callable[[base.Params, jax.Array], jax.Array]
  after: Callable[[jax.Array], jax.Array] | None = None
  targets_after: bool = False
  readout: int | None = None


class RecurrentStage(NamedTuple):
  """One recurrent layer of a model, for `target_projection`.

  Attributes:
    owns: as of `Stage`.
    apply: `(params, x_t [B, ...], h_{t-1} [B, ...]) -> h_t [B, ...]`, one step
      of the layer with its activation.
    init: `(params, B) -> h_0`, of the shape and dtype of h_t.
    last_step: whether only h_T has a target; otherwise every h_t.
    through_time: whether the gradient is backpropagated through the steps of
      this layer; otherwise h_{t-1} counts as a constant.
  """

  owns: Callable[[base.Params], base.Params]
  apply: Callable[[base.Params, jax.Array, jax.Array], jax.Array]
  init: Callable[[base.Params, int], jax.Array]
  last_step: bool = False
  through_time: bool = False


AnyStage: TypeAlias = Stage | RecurrentStage


class Layer(NamedTuple):
  """A stage, and where its parameters are among all leaves."""

  number: int
  stage: AnyStage
  places: list[int]


class Model(NamedTuple):
  """Parameters that are taken apart by layers."""

  leaves: list[jax.Array]
  treedef: Any

  def params(self) -> base.Params:
    return jax.tree.unflatten(self.treedef, self.leaves)

  def own(self, layer: Layer) -> list[jax.Array]:
    return [self.leaves[place] for place in layer.places]

  def apply(self, layer: Layer, own: list[jax.Array], *inputs) -> jax.Array:
    return layer.stage.apply(self.replace(layer, own).params(), *inputs)

  def replace(self, layer: Layer, own: list[jax.Array]) -> 'Model':
    leaves = list(self.leaves)
    for place, leaf in zip(layer.places, own):
      leaves[place] = leaf
    return self._replace(leaves=leaves)


def groups_of(layers: list[Layer]) -> list[list[Layer]]:
  """Recurrent neighbours together, every other layer by itself."""
  groups: list[list[Layer]] = []
  before: AnyStage | None = None
  for layer in layers:
    recurrent = isinstance(layer.stage, RecurrentStage)
    if recurrent and isinstance(before, RecurrentStage):
      groups[-1].append(layer)
    else:
      groups.append([layer])
    before = layer.stage
  return groups


def layers_of(
  name: str, stages: Sequence[AnyStage], params: base.Params, model: Model
) -> list[Layer]:
  """The stages with the places of their parameters, each in one of them."""
  places = jax.tree.unflatten(model.treedef, range(len(model.leaves)))
  layers = [
    Layer(number, stage, jax.tree.leaves(stage.owns(places)))
    for number, stage in enumerate(stages)
  ]
  owned = [place for layer in layers for place in layer.places]
  for place, (path, _) in enumerate(jax.tree.leaves_with_path(params)):
    if owned.count(place) != 1:
      raise ValueError(
        f'{name} needs every parameter to belong to one stage, got'
        f' params{jax.tree_util.keystr(path)} in {owned.count(place)}'
      )
  return layers
