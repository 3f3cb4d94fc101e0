"""What codecs send: values, means, and who draws what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax._src import bits
from tests.compression.messages import CODECS, KEY, pad, send, vector

MAGNITUDES = (
  'scaled_sign', 'scaled_sign_abstain', 'qsgd_l2', 'qsgd_linf', 'terngrad'
)  # fmt: skip
D = 77  # neither a multiple of 32 nor even


@functools.cache
def _mean_of_draws(name, num_draws=4000):
  codec, x = CODECS[name], pad(vector(D))

  @jax.jit
  def draws(keys):
    def one(key):
      payload, _ = codec.encode(x, codec.init(x), key, num_coordinates=D)
      return codec.decode(payload)

    return jax.lax.map(one, keys, batch_size=100)

  # In float64: a sum of thousands of equal float32 numbers loses digits.
  drawn = draws(jax.random.split(KEY, num_draws))
  return np.asarray(drawn, np.float64).mean(axis=0)[:D]


# Packing.


@pytest.mark.parametrize('d', [1, 31, 32, 33, 100])
def test_unpacking_undoes_packing(d):
  mask = np.random.default_rng(d).random((3, d)) < 0.5
  words = bits.pack(jnp.asarray(mask))
  assert words.dtype == jnp.uint32 and words.shape == (3, -(-d // 32))
  np.testing.assert_array_equal(bits.unpack(words, d), mask)


def test_packing_is_numpys_little_endian():
  mask = np.random.default_rng(0).random(96) < 0.5
  expected = np.packbits(mask, bitorder='little').view('<u4')
  np.testing.assert_array_equal(bits.pack(jnp.asarray(mask)), expected)


# Every codec.


@pytest.mark.parametrize('name', CODECS)
def test_a_payload_can_be_cut_where_coordinates_are(name):
  codec, x = CODECS[name], pad(vector(128))
  _, payload, _ = send(codec, x)
  whole = codec.decode(payload)
  for part in range(4):

    def cut(leaf, part=part):
      width = leaf.shape[-1] // 4 if leaf.ndim else 0
      return leaf[..., part * width : (part + 1) * width] if width else leaf

    assert all(
      leaf.ndim == 0 or leaf.shape[-1] in (4, 128)
      for leaf in jax.tree.leaves(payload)
    )
    np.testing.assert_array_equal(
      codec.decode(jax.tree.map(cut, payload)), whole[32 * part :][:32]
    )


@pytest.mark.parametrize('name', CODECS)
def test_what_was_decoded_is_what_the_wire_can_carry(name):
  codec = CODECS[name]
  decoded, _, _ = send(codec, vector(D))
  again = codec.constrain(pad(decoded), num_coordinates=D)[:D]
  np.testing.assert_allclose(again, decoded, 1e-6)


@pytest.mark.parametrize('name', CODECS)
def test_codecs_have_no_memory_of_their_own(name):
  codec = CODECS[name]
  first, _, state = send(codec, vector(D))
  assert jax.tree.leaves(state) == []
  _, _, state = send(codec, vector(D, seed=1), state=state)
  np.testing.assert_array_equal(send(codec, vector(D), state=state)[0], first)


@pytest.mark.parametrize('name', CODECS)
def test_draws_are_those_of_the_key(name):
  codec = CODECS[name]
  x = vector(D)
  one, other = (send(codec, x, jax.random.key(i))[0] for i in (1, 2))
  draws = name in ('noisy_sign', 'sparsign', 'qsgd_l2', 'qsgd_linf', 'terngrad')
  assert (one != other).any() == draws
  if draws:
    with pytest.raises(ValueError, match='needs a key'):
      codec.encode(pad(x), (), None, num_coordinates=D)


@pytest.mark.parametrize('name', CODECS)
def test_split_coordinates_are_encoded_alike(name):
  codec, x = CODECS[name], pad(vector(250))
  whole, payload, _ = send(codec, x[:250])
  mesh = jax.make_mesh(
    (4,), ('parts',), axis_types=(jax.sharding.AxisType.Auto,)
  )

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=jax.P('parts'), out_specs=jax.P('parts')
  )
  def encode(part):
    payload, _ = codec.encode(
      part, (), KEY, num_coordinates=250, axis_name='parts'
    )
    constrained = codec.constrain(part, num_coordinates=250, axis_name='parts')
    return codec.decode(payload), constrained

  decoded, constrained = jax.jit(encode)(x)
  np.testing.assert_allclose(decoded[:250], whole, 1e-6)
  np.testing.assert_allclose(
    constrained, codec.constrain(x, num_coordinates=250), 1e-6
  )


# Signs.


@pytest.mark.parametrize('name', ['sign', 'scaled_sign'])
def test_signs_of_numbers_zeros_and_nan(name):
  x = vector(D)
  decoded = send(CODECS[name], x)[0]
  scale = np.abs(np.float64(x)).mean() if name == 'scaled_sign' else 1.0
  np.testing.assert_allclose(decoded, scale * np.where(x < 0, -1, 1), 1e-5)
  special = send(byzjax.sign_codec(), [np.nan, -np.inf, np.inf, -1e-37])[0]
  np.testing.assert_array_equal(special, [1, -1, 1, -1])


def test_zeros_that_abstain():
  x = vector(D)
  assert (x == 0).any()
  np.testing.assert_array_equal(send(CODECS['sign_abstain'], x)[0], np.sign(x))
  size = np.abs(np.float64(x[x != 0])).mean()
  scaled = CODECS['scaled_sign_abstain']
  np.testing.assert_allclose(send(scaled, x)[0], size * np.sign(x), 1e-5)
  assert not send(scaled, np.zeros(D, np.float32))[0].any()
  special = send(CODECS['sign_abstain'], [np.nan, -np.inf, np.inf, -0.0])[0]
  np.testing.assert_array_equal(special, [0, -1, 1, 0])


def test_a_sign_of_three_values_costs_what_sparsign_costs():
  x = vector(D)
  sparse = byzjax.sparsign_codec(budget=1e30)
  cost = {}
  for name, codec in (CODECS | {'sparse': sparse}).items():
    cost[name] = float(codec.bits_per_message(send(codec, x)[1], D))
  assert cost['sign'] == D < cost['sign_abstain'] == cost['sparse']
  assert cost['scaled_sign_abstain'] == cost['sparse'] + 32


def test_signs_ignore_positive_factors():
  x, factors = vector(D), np.exp(vector(D, seed=3).clip(-5, 5))
  expected = send(CODECS['sign'], x)[1]
  for scaled in (1e-20 * x, 1e20 * x, factors * x):
    np.testing.assert_array_equal(send(CODECS['sign'], scaled)[1], expected)


def test_noise_before_the_sign_has_its_probability():
  x = np.linspace(-1, 1, D).astype(np.float32)
  codec = byzjax.noisy_sign_codec(std=0.5)
  keys = jax.random.split(KEY, 2000)

  def one(key):
    return codec.decode(codec.encode(pad(x), (), key, num_coordinates=D)[0])

  mean = np.asarray(jax.jit(jax.vmap(one))(keys)).mean(axis=0)[:D]
  expected = np.asarray(2 * jax.scipy.stats.norm.cdf(x / 0.5) - 1)
  np.testing.assert_allclose(mean, expected, atol=5 / np.sqrt(2000))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('name', ['qsgd_linf', 'sparsign', 'noisy_sign'])
def test_half_precision_draws_what_float32_does(name, dtype):
  x = np.linspace(-0.01, 0.01, D)
  x[0] = 1.0
  x = jnp.asarray(x).astype(dtype)
  expected = send(CODECS[name], x.astype(jnp.float32))[0]
  np.testing.assert_array_equal(send(CODECS[name], x)[0], expected)


def test_a_message_that_is_not_finite_is_seen_by_the_server():
  for bad in (np.nan, np.inf):
    x = vector(D)
    x[5] = bad
    for name in MAGNITUDES:
      assert not np.isfinite(send(CODECS[name], x)[0]).any()
    for name in ('qsgd_l2', 'scaled_sign_abstain'):
      constrained = CODECS[name].constrain(pad(x), num_coordinates=D)
      assert not np.isfinite(constrained).any()
    assert not np.isfinite(send(CODECS['top_k'], x)[0]).all()


# sparsign.


def test_sparsign_is_ternary_and_follows_the_magnitude():
  x = vector(D)
  decoded = send(CODECS['sparsign'], x)[0]
  assert set(np.unique(decoded)) <= {-1.0, 0.0, 1.0}
  assert (decoded[x == 0] == 0).all()
  probability = np.minimum(1, 0.4 * np.abs(x))
  expected = np.sign(x) * probability
  slack = 5 * np.sqrt(probability * (1 - probability) / 4000) + 1e-6
  assert (np.abs(_mean_of_draws('sparsign') - expected) <= slack).all()


def test_sparsign_of_any_budget():
  x = vector(D)
  everything = send(byzjax.sparsign_codec(budget=1e30), x)[0]
  np.testing.assert_array_equal(everything, np.sign(x))
  x[7] = np.inf
  assert not send(byzjax.sparsign_codec(budget=0.0), x)[0].any()
  x[7] = np.nan
  assert send(byzjax.sparsign_codec(budget=1e30), x)[0][7] == 0
  with pytest.raises(ValueError, match='budget >= 0, got -1'):
    byzjax.sparsign_codec(budget=-1.0)


def test_density_of_sparsign_for_budgets_in_one_program():
  x = vector(100_000)

  def density(budget):
    codec = byzjax.sparsign_codec(budget=budget)
    payload, _ = codec.encode(x, (), KEY, num_coordinates=len(x))
    return jnp.mean(codec.decode(payload) != 0)

  budgets = np.array([0.01, 0.1, 1.0, 10.0])
  found = jax.jit(jax.vmap(density))(budgets)
  expected = np.minimum(1, budgets[:, None] * np.abs(x)).mean(axis=1)
  np.testing.assert_allclose(found, expected, atol=5 * 0.5 / np.sqrt(len(x)))


def test_sparse_votes_follow_the_sum_of_gradients():
  # Two small gradients up, a large one down: p_right 1/3, p_wrong 0.2/3.
  gradients = jnp.array([[1.0], [1.0], [-10.0]]) * jnp.ones((1, 32))
  codec = byzjax.sparsign_codec(budget=0.1)

  def vote(key):
    keys = jax.random.split(key, 3)
    payload, _ = jax.vmap(
      lambda x, k: codec.encode(x, (), k, num_coordinates=32)
    )(gradients, keys)
    return jnp.sum(jax.vmap(codec.decode)(payload), axis=0)

  votes = np.asarray(jax.jit(jax.vmap(vote))(jax.random.split(KEY, 500)))
  shares = [(votes < 0).mean(), (votes == 0).mean(), (votes > 0).mean()]
  np.testing.assert_allclose(shares, [0.81, 0.18, 0.01], atol=0.01)
  bound = byzjax.theory.vote_error_bound(1 / 3, 0.2 / 3, 3)
  assert shares[1] + shares[2] <= bound


# Codecs with a magnitude.


@pytest.mark.parametrize('name', ['qsgd_l2', 'qsgd_linf'])
def test_qsgd_is_ternary_and_unbiased(name):
  x = vector(D)
  order = 2 if name == 'qsgd_l2' else np.inf
  scale = np.linalg.norm(np.float64(x), order)
  decoded = send(CODECS[name], x)[0]
  np.testing.assert_allclose(np.abs(decoded[decoded != 0]), scale, 1e-5)
  probability = np.abs(x) / scale
  slack = 5 * scale * np.sqrt(probability * (1 - probability) / 4000) + 1e-5
  assert (np.abs(_mean_of_draws(name) - x) <= slack).all()


@pytest.mark.parametrize('name', ['qsgd_l2', 'qsgd_linf', 'terngrad'])
@pytest.mark.parametrize('size', [1e-30, 1e20, 2e37])
def test_scales_whose_squares_do_not_fit_the_dtype(name, size):
  x = vector(D)
  x /= np.abs(x).max()
  expected = send(CODECS[name], x)[0]
  decoded = send(CODECS[name], np.float32(size) * x)[0]
  np.testing.assert_allclose(decoded / np.float32(size), expected, 1e-5)
  assert expected.any()
  if name != 'terngrad':
    one = np.array([0.0, -3e38, 0.0], np.float32)
    np.testing.assert_array_equal(send(CODECS[name], one)[0], one)
    again = CODECS[name].constrain(pad(one), num_coordinates=3)[:3]
    np.testing.assert_array_equal(again, one)
  assert not send(CODECS[name], 0 * x)[0].any()


@pytest.mark.parametrize('name', MAGNITUDES)
def test_a_nan_on_one_device_is_seen_on_all(name):
  x = pad(vector(128)).at[37].set(jnp.nan)
  mesh = jax.make_mesh(
    (4,), ('parts',), axis_types=(jax.sharding.AxisType.Auto,)
  )

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=jax.P('parts'), out_specs=jax.P('parts')
  )
  def sent(part):
    known = {'num_coordinates': 128, 'axis_name': 'parts'}
    return CODECS[name].decode(CODECS[name].encode(part, (), KEY, **known)[0])

  assert np.isnan(jax.jit(sent)(x)).all()


def test_terngrad_clips_first():
  x = vector(D)
  limit = 2.5 * np.float64(x).std()
  assert np.abs(x).max() > limit
  decoded = send(CODECS['terngrad'], x)[0]
  np.testing.assert_allclose(np.abs(decoded[decoded != 0]), limit, 1e-5)
  same = send(byzjax.terngrad_codec(), x)[0]
  np.testing.assert_array_equal(same, send(CODECS['qsgd_linf'], x)[0])


@pytest.mark.parametrize('value', [0.1, -7.0, 1e20])
def test_terngrad_does_not_clip_what_does_not_vary(value):
  x = np.full(D, value, np.float32)
  np.testing.assert_array_equal(send(CODECS['terngrad'], x)[0], x)
  x[::2] *= 1 - 1e-6
  np.testing.assert_allclose(send(CODECS['terngrad'], x)[0], x, 1e-5)


def test_top_k():
  x = vector(D)
  expected = np.zeros_like(x)
  largest = np.argsort(-np.abs(x))[:7]
  expected[largest] = x[largest]
  np.testing.assert_array_equal(send(CODECS['top_k'], x)[0], expected)
  ties = send(byzjax.top_k_codec(num_kept=2), np.ones(5, np.float32))[0]
  np.testing.assert_array_equal(ties, [1, 1, 0, 0, 0])
  many = send(byzjax.top_k_codec(num_kept=1000), x)[0]
  np.testing.assert_array_equal(many, x)


def test_what_an_attacker_can_send():
  x = np.array([0.2, -5.0, 0.0, np.nan], np.float32)

  def sent(name, x):
    return CODECS[name].constrain(pad(x), num_coordinates=len(x))[: len(x)]

  np.testing.assert_array_equal(sent('sign', x), [1, -1, 1, 1])
  for name in ('sparsign', 'sign_abstain'):
    np.testing.assert_array_equal(sent(name, x), [1, -1, 0, 0])
  expected = 5.2 / 3 * np.array([1, -1, 1])
  np.testing.assert_allclose(sent('scaled_sign', x[:3]), expected, 1e-6)
  for name in ('qsgd_l2', 'scaled_sign_abstain'):
    np.testing.assert_array_equal(sent(name, x[:3]), [0, -5, 0])


@pytest.mark.parametrize('name', CODECS)
def test_a_matrix_is_refused(name):
  x = jnp.ones((2, 32))
  with pytest.raises(ValueError, match=r'_codec encodes one .* \[2, 32\]: did'):
    CODECS[name].encode(x, (), KEY, num_coordinates=32)


def test_refusals():
  with pytest.raises(ValueError, match="'l2' or 'linf', got 'l1'"):
    byzjax.qsgd_codec(norm='l1')
  for factory in (byzjax.sign_codec, byzjax.scaled_sign_codec):
    with pytest.raises(ValueError, match="plus, abstain, got 'minus'"):
      factory(zeros='minus')
  with pytest.raises(ValueError, match='std >= 0'):
    byzjax.noisy_sign_codec(std=-0.1)
  with pytest.raises(ValueError, match='clip > 0'):
    byzjax.terngrad_codec(clip=0.0)
  with pytest.raises(ValueError, match='num_kept'):
    byzjax.top_k_codec(num_kept=0)
