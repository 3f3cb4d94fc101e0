"""How well a backdoor works, as a metric of any cell."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from byzjax import analysis, attacks

from . import specs


def measure(
  text: str, model_of: Callable[[Any], Any] = lambda params: params
) -> Callable[..., dict[str, jax.Array]] | None:
  """`Cell.measure` for an attack as on the command line.

  None if it is no backdoor. `model_of` is that of the cell.
  """
  if specs.parse(text)[0] != 'backdoor':
    return None
  attack = specs.build('attack', text, specs.ATTACKS)
  config = getattr(attack, 'data_attack', attack).config
  return success(
    config['trigger'], config['target'], config['source'], model_of
  )


def success(
  trigger: attacks.Trigger | Callable[[jax.Array], jax.Array],
  target: int,
  source: int | None = None,
  model_of: Callable[[Any], Any] = lambda params: params,
) -> Callable[..., dict[str, jax.Array]]:
  """`Cell.measure` of a backdoor: the share of other images taken for it.

  The trigger gets pixels as training has them.
  """

  def measured(task, params, images, labels):
    def logits_fn(params, images):
      return nnx.merge(task.graphdef, params)(images)

    rate = analysis.attack_success_rate(
      logits_fn,
      model_of(params),
      images,
      labels,
      trigger=lambda x: trigger(x.astype(jnp.float32) / task.scale),
      target=target,
      source=source,
    )
    return {'attack_success_rate': rate}

  return measured
