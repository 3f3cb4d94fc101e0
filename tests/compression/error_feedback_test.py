"""What was not sent waits, and is sent later."""

import jax
import numpy as np
import pytest

import byzjax
from tests.compression.messages import CODECS, KEY, send, vector

D = 77  # neither a multiple of 32 nor even


@pytest.mark.parametrize(
  'name', ['scaled_sign', 'scaled_sign_abstain', 'top_k', 'sparsign']
)
def test_the_residual_is_what_was_not_sent(name):
  codec = byzjax.error_feedback(CODECS[name])
  state, total, arrived = None, np.zeros(D), np.zeros(D)
  for t in range(5):
    x = vector(D, seed=t)
    before = 0 if state is None else np.asarray(state.residual)[:D]
    decoded, _, state = send(codec, x, jax.random.key(t), state)
    np.testing.assert_allclose(
      np.asarray(state.residual)[:D] + decoded, x + before, 1e-5, 1e-5
    )
    assert not np.asarray(state.residual)[D:].any()
    total, arrived = total + x, arrived + decoded
  # Nothing is lost: what has not arrived waits.
  np.testing.assert_allclose(
    arrived + np.asarray(state.residual)[:D], total, 1e-4, 1e-4
  )


def test_nothing_is_kept_of_what_is_sent_whole():
  codec = byzjax.error_feedback(byzjax.top_k_codec(num_kept=D))
  state = None
  for t in range(3):
    decoded, _, state = send(codec, vector(D, seed=t), KEY, state)
    np.testing.assert_array_equal(decoded, vector(D, seed=t))
    assert not np.asarray(state.residual).any()


def test_one_bad_gradient_does_not_stay_in_the_residual():
  codec = byzjax.error_feedback(byzjax.scaled_sign_codec())
  x = vector(D)
  x[3] = np.nan
  _, _, state = send(codec, x)
  decoded, _, _ = send(codec, vector(D), KEY, state)
  assert np.isfinite(decoded).all()


def test_error_feedback_delivers_what_signs_alone_cannot():
  # The mean of what arrives is what was meant, in size too.
  a = np.array([1.0, 0.01], np.float32)
  codec = byzjax.error_feedback(byzjax.scaled_sign_codec())
  state, arrived = None, np.zeros(2)
  for _ in range(200):
    decoded, _, state = send(codec, a, KEY, state)
    arrived += decoded
  np.testing.assert_allclose(arrived / 200, a, atol=0.02)


def test_a_rule_is_no_codec():
  with pytest.raises(ValueError, match='needs codec to be a Codec'):
    byzjax.error_feedback(byzjax.mean())
