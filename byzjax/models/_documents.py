"""Losses and features of whole documents, by a language model."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from byzjax._src import checks, flat


def document_losses(
  graphdef: nnx.GraphDef, *, num_prefix: int = 0
) -> Callable[[Any, jax.Array], jax.Array]:
  r"""The mean cross entropy of the next token, for each document.

  .. math::
    \ell_b(\theta, x) = -\frac{1}{T - p} \sum_{t=p}^{T-1}
      \log \mathrm{softmax}(f_\theta(x_{b, 0 \dots T-1})_t)_{x_{b, t+1}}

  `next_token_loss` is its mean over documents. The first p targets are left
  out, so that the tokens from which a router chose a path are not scored. `-(T
  - p) ell_b` is the log-likelihood by which paths are compared.

  Args:
    graphdef: structure of the model f, from `split`; it maps tokens int32 `[B,
      T]` to logits `[B, T, V]`.
    num_prefix: p >= 0, the number of first targets to leave out, below T.

  Returns:
    `losses(params, tokens) -> float32[B]` for tokens, integers `[B, T + 1]` in
    `[0, V)`; in nats per token.

  Raises:
    ValueError: if the prefix is not an int of at least 0; when the losses are
      computed, if it leaves no target.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> graphdef, params = models.split(models.Transformer(
    ...   30, num_layers=1, width=8, num_heads=2, length=16, rngs=nnx.Rngs(0)))
    >>> losses = models.document_losses(graphdef, num_prefix=4)
    >>> losses(params, jnp.ones([5, 17], int)).shape
    (5,)
  """
  checks.check_count('document_losses', 'num_prefix', num_prefix)

  def losses(params: Any, tokens: jax.Array) -> jax.Array:
    if tokens.ndim != 2 or tokens.shape[1] <= num_prefix + 1:
      raise ValueError(
        'document_losses needs tokens [B, T + 1] with T > num_prefix='
        f'{num_prefix}, got the shape {list(tokens.shape)}'
      )
    logits = nnx.merge(graphdef, params)(tokens[:, :-1])
    # The loss of logits in half precision has two digits in it.
    logits = logits.astype(flat.compute_dtype(logits))
    return optax.softmax_cross_entropy_with_integer_labels(
      logits[:, num_prefix:], tokens[:, num_prefix + 1 :]
    ).mean(axis=1)

  return losses


def next_token_loss(
  graphdef: nnx.GraphDef, *, num_prefix: int = 0
) -> Callable[[Any, jax.Array], jax.Array]:
  """The mean of `document_losses`, as a function to differentiate.

  Args:
    graphdef: as for `document_losses`.
    num_prefix: as for `document_losses`.

  Returns:
    `loss_fn(params, tokens) -> float32[]`, in nats per token; its exponential
    is the perplexity.

  Raises:
    ValueError: as `document_losses`.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> graphdef, params = models.split(models.Transformer(
    ...   30, num_layers=1, width=8, num_heads=2, length=16, rngs=nnx.Rngs(0)))
    >>> loss_fn = models.next_token_loss(graphdef)
    >>> loss_fn(params, jnp.ones([5, 17], int)).shape
    ()
  """
  losses = document_losses(graphdef, num_prefix=num_prefix)
  return lambda params, tokens: losses(params, tokens).mean()


def prefix_features(
  graphdef: nnx.GraphDef, *, num_prefix: int = 32
) -> Callable[[Any, jax.Array], jax.Array]:
  r"""The features for a router: the mean hidden state of a document's prefix.

  .. math::
    z_b = \frac{1}{p} \sum_{t=0}^{p-1} h_L(x_{b, 0 \dots p-1})_t

  with `h_L` the output of the last block.

  Args:
    graphdef: structure of the model, from `split`; of a class with the method
      `features`, such as `Transformer`.
    num_prefix: p >= 1, the length of the prefix; a shorter document is used
      whole.

  Returns:
    `features(params, tokens) -> float32[B, width]` for tokens, integers `[B, T
    + 1]`, the last of which is only a target and not used.

  Raises:
    ValueError: if the prefix is not an int of at least 1.

  References:
    Douillard, Feng, Rusu, Kuncoro, Donchev, Chhaparia, Gog, Ranzato, Shen,
    Szlam, 2024, arXiv:2403.10616.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> graphdef, params = models.split(models.Transformer(
    ...   30, num_layers=1, width=8, num_heads=2, length=16, rngs=nnx.Rngs(0)))
    >>> features = models.prefix_features(graphdef, num_prefix=4)
    >>> features(params, jnp.ones([5, 17], int)).shape
    (5, 8)
  """
  checks.check_count('prefix_features', 'num_prefix', num_prefix, 1)

  def features(params: Any, tokens: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, params)
    return model.features(tokens[:, :-1][:, :num_prefix]).mean(axis=1)

  return features
