"""How well a backdoor works, as a metric of any cell."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from byzjax import analysis

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
  trigger = config['trigger']

  def success(task, params, images, labels):
    def logits_fn(params, images):
      return nnx.merge(task.graphdef, params)(images)

    rate = analysis.attack_success_rate(
      logits_fn,
      model_of(params),
      images,
      labels,
      # Pixels as training has them.
      trigger=lambda x: trigger(x.astype(jnp.float32) / task.scale),
      target=config['target'],
      source=config['source'],
    )
    return {'attack_success_rate': rate}

  return success
