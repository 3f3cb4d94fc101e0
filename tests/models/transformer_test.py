"""The language model: what it may look at, and what its loss counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models

V, T = 11, 12


def make(**sizes):
  defaults = dict(num_layers=2, width=16, num_heads=2, length=T)
  return models.Transformer(V, **(defaults | sizes), rngs=nnx.Rngs(0))


GRAPHDEF, PARAMS = models.split(make())
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (3, T)))


@jax.jit
def logits_of(params, tokens):
  return nnx.merge(GRAPHDEF, params)(tokens)


def test_logits_depend_on_the_past_alone_and_on_all_of_it():
  before = logits_of(PARAMS, TOKENS)
  assert before.shape == (3, T, V) and before.dtype == jnp.float32
  for t in (0, 5, T - 1):
    changed = TOKENS.at[0, t].set((TOKENS[0, t] + 1) % V)
    after = logits_of(PARAMS, changed)
    moved = jnp.abs(after - before).max(axis=-1) > 0
    np.testing.assert_array_equal(moved[0], np.arange(T) >= t)
    assert not moved[1:].any()


def test_the_order_of_the_past_matters():
  swapped = TOKENS.at[0, :2].set(TOKENS[0, :2][::-1])
  assert TOKENS[0, 0] != TOKENS[0, 1]
  difference = logits_of(PARAMS, swapped) - logits_of(PARAMS, TOKENS)
  assert jnp.abs(difference[0, 2:]).max() > 1e-6


def test_a_shorter_sequence_has_the_same_logits():
  np.testing.assert_allclose(
    logits_of(PARAMS, TOKENS[:, :7]),
    logits_of(PARAMS, TOKENS)[:, :7],
    rtol=1e-5,
    atol=1e-6,
  )


def test_attention_is_that_of_flax():
  """The first block against `nnx.dot_product_attention` and a written MLP."""

  @jax.jit
  def both(params, x):
    block = nnx.merge(GRAPHDEF, params).blocks[0]
    q, k, v = (
      block.qkv(block.attention_norm(x))[..., i * 16 : (i + 1) * 16].reshape(
        2, 5, 2, 8
      )
      for i in range(3)
    )
    mask = nnx.make_causal_mask(jnp.ones((2, 5)))
    mixed = nnx.dot_product_attention(q, k, v, mask=mask.astype(bool))
    y = x + mixed.reshape(2, 5, 16) @ block.attended.kernel[...]
    hidden = jax.nn.gelu(block.hidden(block.mlp_norm(y)))
    return block(x), y + block.out(hidden)

  x = jax.random.normal(jax.random.key(1), (2, 5, 16))
  found, expected = both(PARAMS, x)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_features_and_classifier_are_the_model():
  features, classify = models.features_and_classifier(GRAPHDEF)
  z = jax.jit(features)(PARAMS, TOKENS)
  assert z.shape == (3, T, 16)
  np.testing.assert_allclose(
    jax.jit(classify)(PARAMS, z),
    logits_of(PARAMS, TOKENS),
    rtol=1e-5,
    atol=1e-6,
  )


def test_the_loss_of_uniform_logits_is_log_v():
  head = dict(kernel=jnp.zeros((16, V)), bias=jnp.full(V, 3.0))
  params = nnx.merge_state(PARAMS, nnx.State({'head': head}))
  tokens = jnp.concatenate([TOKENS, TOKENS[:, :1]], axis=1)
  for num_prefix in (0, 5):
    loss = jax.jit(models.next_token_loss(GRAPHDEF, num_prefix=num_prefix))
    np.testing.assert_allclose(loss(params, tokens), np.log(V), rtol=1e-6)


def test_the_loss_of_half_precision_is_float32():
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
  assert jax.eval_shape(logits_of, half, TOKENS).dtype == jnp.bfloat16
  loss = jax.eval_shape(models.next_token_loss(GRAPHDEF), half, TOKENS)
  assert loss.dtype == jnp.float32


def test_the_loss_by_hand_and_without_its_prefix():
  tokens = jnp.concatenate([TOKENS, TOKENS[:, :1]], axis=1)
  log_p = jax.nn.log_softmax(logits_of(PARAMS, TOKENS))
  by_target = -np.take_along_axis(
    np.asarray(log_p), np.asarray(tokens[:, 1:, None]), axis=-1
  )
  for num_prefix in (0, T - 1):
    loss = jax.jit(models.next_token_loss(GRAPHDEF, num_prefix=num_prefix))
    np.testing.assert_allclose(
      loss(PARAMS, tokens), by_target[:, num_prefix:].mean(), rtol=1e-5
    )


@pytest.mark.parametrize(
  'sizes, message',
  [
    (dict(width=15), 'width to be a multiple of num_heads, got 15 and 2'),
    (dict(num_layers=0), 'num_layers to be a Python int .* got 0'),
    (dict(length=0), 'length to be a Python int .* got 0'),
  ],
)
def test_refuses_sizes(sizes, message):
  with pytest.raises(ValueError, match=f'Transformer needs {message}'):
    make(**sizes)


def test_refuses_sequences():
  with pytest.raises(ValueError, match=r'T <= length=12, got the shape \[1, 1'):
    nnx.merge(GRAPHDEF, PARAMS)(jnp.zeros((1, 13), int))
  with pytest.raises(ValueError, match='num_prefix to be a Python int'):
    models.next_token_loss(GRAPHDEF, num_prefix=-1)
  with pytest.raises(
    ValueError, match='document_losses needs .* T > num_prefix=4, got the shape'
  ):
    models.next_token_loss(GRAPHDEF, num_prefix=4)(PARAMS, TOKENS[:, :5])
