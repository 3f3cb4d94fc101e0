"""The vote on packed signs is the vote on signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax._src import bits
from byzjax.aggregators import _packed_vote


@pytest.mark.parametrize('n', [1, 2, 3, 4, 7, 8, 15, 16, 33])
def test_words_vote_as_signs_do(n):
  random = np.random.default_rng(n)
  # Votes of every margin, ties among them.
  x = random.random((n, 320)) - np.linspace(0, 1, 320)
  is_byzantine = np.arange(n) < (n - 1) // 2
  words, info = jax.jit(_packed_vote.inspect_words)(
    bits.pack(jnp.asarray(x < 0)), is_byzantine=is_byzantine
  )
  expected = byzjax.majority_vote()(jnp.asarray(x, jnp.float32))
  vote = np.where(bits.unpack(words), -1.0, 1.0)
  np.testing.assert_array_equal(vote, expected)
  assert n == 1 or set(vote) == {-1, 1}
  honest = np.where(x < 0, -1.0, 1.0)[~is_byzantine].mean(axis=0)
  np.testing.assert_allclose(info.error, np.linalg.norm(vote - honest), 1e-5)
  assert info.mask.all() and info.mask.shape == (n,)


def test_only_the_vote_of_two_values_is_taken_on_words():
  assert byzjax.majority_vote().inspect_words is not None
  assert byzjax.majority_vote(zeros='abstain').inspect_words is None
  assert byzjax.coordinate_median().inspect_words is None
