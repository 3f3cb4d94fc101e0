"""A small decoder-only transformer for text."""

import jax
import jax.numpy as jnp
from flax import nnx

from byzjax._src import checks

_NAME = 'Transformer'
_EXPANSION = 4


class _Block(nnx.Module):
  """Attention and a two-layer perceptron, each with a norm before it."""

  def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
    self.num_heads = num_heads
    self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
    self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
    self.attended = nnx.Linear(width, width, use_bias=False, rngs=rngs)
    self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
    self.hidden = nnx.Linear(width, _EXPANSION * width, rngs=rngs)
    self.out = nnx.Linear(_EXPANSION * width, width, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.attended(self._attend(self.qkv(self.attention_norm(x))))
    return x + self.out(jax.nn.gelu(self.hidden(self.mlp_norm(x))))

  def _attend(self, qkv: jax.Array) -> jax.Array:
    """Causal attention of all heads: `[B, T, 3 width]` to `[B, T, width]`."""
    batch, length, _ = qkv.shape
    q, k, v = jnp.moveaxis(
      qkv.reshape(batch, length, 3, self.num_heads, -1), 2, 0
    )
    scores = jnp.einsum('bthk,bshk->bhts', q, k) * q.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(scores, where=seen[None, None])
    mixed = jnp.einsum('bhts,bshk->bthk', weights, v)
    return mixed.reshape(batch, length, -1)


class Transformer(nnx.Module):
  r"""A causal transformer: pre-norm blocks, learned positions, no dropout.

  .. math::
    h_0 = E_{x_t} + P_t, \quad
    a_l = h_{l-1} + \mathrm{attention}(\mathrm{norm}(h_{l-1})), \quad
    h_l = a_l + \mathrm{MLP}(\mathrm{norm}(a_l)), \quad
    \mathrm{logits} = \mathrm{norm}(h_L) W

  with softmax attention on this and earlier tokens, root-mean-square norms and
  an MLP of four times the width with GELU. Logits at a position depend on the
  tokens up to it alone. The model has no state besides its parameters.

  Args:
    vocabulary_size: number of tokens V, at least 1.
    num_layers: number of blocks L, at least 1.
    width: size of the hidden states, a multiple of `num_heads`.
    num_heads: number of heads of each attention, at least 1.
    length: longest sequence T, at least 1.
    rngs: source of the initial weights: LeCun normal for the dense layers,
      normal of deviation 0.02 for the embeddings.

  Calling the module maps int32 `[B, T]`, with T up to `length`, to logits,
  float32 `[B, T, V]`.

  Raises:
    ValueError: if a size is below 1, `num_heads` does not divide `width`, or
      the input is not `[B, T]` with T up to `length`.

  References:
    Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, 2017,
    arXiv:1706.03762.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> model = models.Transformer(
    ...   30, num_layers=1, width=8, num_heads=2, length=16, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros([5, 12], int)).shape
    (5, 12, 30)
  """

  def __init__(
    self,
    vocabulary_size: int,
    *,
    num_layers: int,
    width: int,
    num_heads: int,
    length: int,
    rngs: nnx.Rngs,
  ):
    for argument, value in [
      ('vocabulary_size', vocabulary_size),
      ('num_layers', num_layers),
      ('width', width),
      ('num_heads', num_heads),
      ('length', length),
    ]:
      checks.check_count(_NAME, argument, value, 1)
    if width % num_heads:
      raise ValueError(
        f'{_NAME} needs width to be a multiple of num_heads, got {width} and'
        f' {num_heads}'
      )
    normal = nnx.initializers.normal(0.02, jnp.float32)
    self.embedding = nnx.Param(normal(rngs.params(), (vocabulary_size, width)))
    self.positions = nnx.Param(normal(rngs.params(), (length, width)))
    self.blocks = nnx.List(
      [_Block(width, num_heads, rngs=rngs) for _ in range(num_layers)]
    )
    self.norm = nnx.RMSNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, vocabulary_size, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens `[B, T]` to logits `[B, T, V]`."""
    return self.classify(self.features(x))

  def features(self, x: jax.Array) -> jax.Array:
    """The output of the last block, before the last norm: `[B, T, width]`."""
    longest = self.positions.shape[0]
    if x.ndim != 2 or x.shape[1] > longest:
      raise ValueError(
        f'{_NAME} needs tokens [B, T] with T <= length={longest}, got the'
        f' shape {list(x.shape)}'
      )
    # A product in place of a look-up, whose gradient would be a scatter.
    embedding = self.embedding[...]
    one_hot = jax.nn.one_hot(x, embedding.shape[0], dtype=embedding.dtype)
    h = one_hot @ embedding + self.positions[...][None, : x.shape[1]]
    for block in self.blocks:
      h = block(h)
    return h

  def classify(self, z: jax.Array) -> jax.Array:
    """The last norm and layer: `[B, T, width]` to logits `[B, T, V]`."""
    return self.head(self.norm(z))
