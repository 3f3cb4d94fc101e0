"""Vectors, and codecs applied to them, for the tests of codecs."""

import jax
import jax.numpy as jnp
import numpy as np

import byzjax

KEY = jax.random.key(5)

CODECS = {
  'sign': byzjax.sign_codec(),
  'noisy_sign': byzjax.noisy_sign_codec(std=0.3),
  'scaled_sign': byzjax.scaled_sign_codec(),
  'sign_abstain': byzjax.sign_codec(zeros='abstain'),
  'scaled_sign_abstain': byzjax.scaled_sign_codec(zeros='abstain'),
  'sparsign': byzjax.sparsign_codec(budget=0.4),
  'qsgd_l2': byzjax.qsgd_codec(norm='l2'),
  'qsgd_linf': byzjax.qsgd_codec(norm='linf'),
  'terngrad': byzjax.terngrad_codec(clip=2.5),
  'top_k': byzjax.top_k_codec(num_kept=7),
}


def vector(d, seed=0):
  """float32[d], heavy-tailed, with zeros of both signs."""
  random = np.random.default_rng(seed)
  x = random.normal(size=d) * np.exp(random.normal(size=d))
  x[3::11], x[4::11] = 0.0, -0.0
  return x.astype(np.float32)


def pad(x):
  return jnp.pad(jnp.asarray(x), (0, -len(x) % 32))


def send(codec, x, key=KEY, state=None):
  """What arrives of x float[d], and the payload and state with it."""
  d, x = len(x), pad(x)
  state = codec.init(x) if state is None else state
  payload, state = codec.encode(x, state, key, num_coordinates=d)
  return np.asarray(codec.decode(payload))[:d], payload, state
