"""How long messages are, and what theory says of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import byzjax
from byzjax._src import bits
from tests.compression.messages import CODECS, send, vector

D = 1000


def _golomb_code(values):
  """The message of ternary values as a string of bits, by the definition."""
  d, nonzero = len(values), np.flatnonzero(values)
  s = len(nonzero) / d
  code = format(len(nonzero), f'0{d.bit_length()}b')
  if s == 0:
    return code
  b = 0
  if s < 1:
    golden = (1 + math.sqrt(5)) / 2
    b = 1 + math.floor(math.log2(math.log(golden - 1) / math.log(1 - s)))
    b = max(b, 0)
  previous = -1
  for index in nonzero:
    gap = index - previous - 1
    code += '1' * (gap >> b) + '0'
    code += format(gap & (2**b - 1), f'0{b}b') if b else ''
    code += '1' if values[index] < 0 else '0'
    previous = index
  return code


@pytest.mark.parametrize('density', [0.0, 0.001, 0.03, 0.3, 0.6, 1.0])
def test_ternary_bits_are_the_length_of_a_real_code(density):
  random = np.random.default_rng(3)
  values = np.where(random.random(D) < density, 1, 0)
  values *= random.choice([-1, 1], size=D)
  planes = bits.pack_ternary(jnp.asarray(np.pad(values, (0, 24)), jnp.float32))
  found = jax.jit(bits.ternary_bits, static_argnums=1)(planes, D)
  assert found.dtype == jnp.float32
  assert float(found) == len(_golomb_code(values))


@pytest.mark.parametrize('density', [0.5, 0.25, 0.1, 0.05, 0.01, 0.001])
def test_real_codes_are_as_long_as_expected(density):
  d = 2**20
  values = jax.random.bernoulli(jax.random.key(1), density, (d,))
  planes = bits.pack_ternary(values.astype(jnp.float32))
  found = float(bits.ternary_bits(planes, d)) / d
  np.testing.assert_allclose(found, byzjax.theory.golomb_bits(density), 0.02)


@pytest.mark.parametrize(
  'density, expected',
  [
    (0, 0),
    (0.001, 0.0125),
    (0.01, 0.0911),
    (0.05, 0.339),
    (0.1, 0.576),
    (0.25, 1.071),
    (0.5, 1.5),
    (1, 2),
  ],
)
def test_golomb_bits(density, expected):
  found = byzjax.theory.golomb_bits(density)
  np.testing.assert_allclose(found, expected, 5e-3)
  if 0 < density <= 0.5:
    entropy = stats.entropy([density, 1 - density], base=2) + density
    assert entropy <= found <= 1.015 * entropy


def test_bits_of_every_codec():
  x = vector(D)
  found = {}
  for name, codec in CODECS.items():
    decoded, payload, _ = send(codec, x)
    found[name] = float(codec.bits_per_message(payload, D))
    if name in ('sparsign', 'qsgd_l2', 'qsgd_linf', 'terngrad'):
      expected = len(_golomb_code(np.sign(decoded).astype(int)))
      assert found[name] == expected + 32 * (name != 'sparsign')
  assert found['sign'] == found['noisy_sign'] == D
  assert found['scaled_sign'] == D + 32
  assert found['top_k'] == 7 * (32 + 10)
  with_memory = byzjax.error_feedback(CODECS['top_k'])
  payload = send(with_memory, x)[1]
  assert float(with_memory.bits_per_message(payload, D)) == found['top_k']


def test_sign_errors_of_gaussian_noise_are_within_the_bound():
  s = np.array([0.1, 0.5, 1, 2])
  bounds = [byzjax.theory.sign_error_bound(x) for x in s]
  np.testing.assert_allclose(bounds, [0.471, 0.356, 0.211, 0.0556], 2e-3)
  many = np.linspace(0, 5, 200)
  for noise in (stats.norm, stats.laplace, stats.uniform):
    # Of variance one, and symmetric about zero.
    wrong = noise.sf(noise.mean() + many * noise.std())
    bounds = np.array([byzjax.theory.sign_error_bound(x) for x in many])
    assert (wrong <= bounds + 1e-12).all()
  # The bound is met, so it is not just large.
  assert byzjax.theory.sign_error_bound(0.0) == 0.5


@pytest.mark.parametrize('num_workers', [1, 3, 10])
@pytest.mark.parametrize('p, q', [(0.3, 0.1), (0.9, 0.05), (0.2, 0.3)])
def test_wrong_votes_are_within_the_bound(p, q, num_workers):
  random = np.random.default_rng(0)
  votes = random.choice([1, -1, 0], (50_000, num_workers), p=[p, q, 1 - p - q])
  wrong = (votes.sum(axis=1) <= 0).mean()
  bound = byzjax.theory.vote_error_bound(p, q, num_workers)
  assert wrong <= bound + 0.005
  assert bound < 1 or p <= q


def test_refusals():
  with pytest.raises(ValueError, match='density'):
    byzjax.theory.golomb_bits(1.5)
  with pytest.raises(ValueError, match='signal_to_noise >= 0'):
    byzjax.theory.sign_error_bound(-1.0)
  with pytest.raises(ValueError, match='p_right . p_wrong <= 1, got'):
    byzjax.theory.vote_error_bound(0.7, 0.7, 3)
