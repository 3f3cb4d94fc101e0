"""A small transformer and a text for it, which several studies learn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from byzjax import data, models


class Language(NamedTuple):
  """The next character, or word, of a text."""

  params: Callable[[int], Any]  # of a seed
  loss_fn: Callable
  documents: np.ndarray  # int32[N, length + 1]
  held_out: jax.Array  # of the text that is not trained on


def language(
  name: str,
  data_dir: str | None,
  *,
  length: int,
  width: int,
  num_words: int | None = None,
) -> Language:
  """A transformer of 2 layers and 2 heads for contexts of some length.

  Tokens are words if it is said how many are known, else characters.
  """
  text = data.load_text(name, data_dir)
  if num_words is not None:
    text = data.words(text, num_words)

  def model(seed):
    return models.split(
      models.Transformer(
        len(text.vocabulary),
        num_layers=2,
        width=width,
        num_heads=2,
        length=length,
        rngs=nnx.Rngs(seed),
      )
    )

  return Language(
    lambda seed: model(seed)[1],
    models.next_token_loss(model(0)[0]),
    data.documents(text.train, length),
    jnp.asarray(data.documents(text.test, length)[:256]),
  )
