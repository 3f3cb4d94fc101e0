"""Every attack x every property that attacks share."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference, tables

N, SIZE = tables.NUM_WORKERS, tables.SIZE
KEY = jax.random.key(3)
BAD = np.arange(N) % 4 == 1  # three of eleven, not the first ones

message_attacks = pytest.mark.parametrize(
  'attack', tables.ATTACKS, ids=[attack.name for attack in tables.ATTACKS]
)
EVERY = {attack.name: attack.make for attack in tables.ATTACKS}
EVERY['gaussian'] = lambda: byzjax.gaussian(std=2.0)
EVERY['fang'] = lambda: byzjax.fang()
EVERY['random_signs'] = lambda: byzjax.random_signs()
every_attack = pytest.mark.parametrize('make', EVERY.values(), ids=EVERY)


@functools.cache
def _compiled(make):
  attack = make()

  @jax.jit
  def apply(messages, is_byzantine):
    return attack.apply(
      messages, attack.init(None), is_byzantine=is_byzantine, key=KEY
    )

  return apply


def _apply(make, x, bad=BAD, dtype=jnp.float32):
  messages, _ = _compiled(make)(tables.to_tree(x, dtype), jnp.asarray(bad))
  return tables.to_matrix(messages, (N,))


@message_attacks
@pytest.mark.parametrize(
  'dtype_name, tolerance', [('float32', 1e-5), ('bfloat16', 2**-8)]
)
def test_agrees_with_the_oracle(attack, dtype_name, tolerance):
  dtype = jnp.dtype(dtype_name)
  x = tables.to_matrix(tables.to_tree(tables.random_messages(0), dtype), (N,))
  result = _apply(attack.make, x, dtype=dtype)
  expected = attack.oracle(x, BAD)
  expected = np.broadcast_to(expected, x.shape)[BAD]
  np.testing.assert_allclose(result[BAD], expected, tolerance, 1e-2 * tolerance)


@every_attack
def test_honest_messages_are_untouched_bit_for_bit(make):
  x = np.float32(tables.random_messages(1))
  x[0], x[2, 3] = np.nan, -np.inf  # honest, and broken
  np.testing.assert_array_equal(_apply(make, x)[~BAD], np.float64(x)[~BAD])


@every_attack
def test_nobody_byzantine_is_the_identity(make):
  x = np.float32(tables.random_messages(2))
  result = _apply(make, x, np.zeros(N, bool))
  np.testing.assert_array_equal(result, np.float64(x))


@message_attacks
def test_what_is_said_of_reading_ones_own(attack):
  assert attack.make().reads_own == attack.own


@every_attack
def test_the_common_row_is_what_all_attackers_send(make):
  attack, x = make(), tables.random_messages(4)
  if attack.send is None:
    assert len(np.unique(_apply(make, x)[BAD], axis=0)) > 1
    return
  row, _ = jax.jit(attack.send)(
    tables.to_tree(x), attack.init(None), is_byzantine=jnp.asarray(BAD)
  )
  sent = tables.to_matrix(jax.tree.map(lambda r: r[None], row), (1,))
  np.testing.assert_array_equal(
    _apply(make, x)[BAD], np.broadcast_to(sent, (BAD.sum(), sent.shape[1]))
  )


@pytest.mark.parametrize(
  'make',
  [make for make in EVERY.values() if not make().reads_own],
  ids=[name for name, make in EVERY.items() if not make().reads_own],
)
def test_only_honest_messages_are_read(make):
  x = tables.random_messages(3)
  expected = _apply(make, x)
  for garbage in (np.nan, np.inf, 3e38):
    x[BAD] = garbage
    np.testing.assert_array_equal(_apply(make, x), expected)


@every_attack
def test_keeps_shapes_and_dtypes(make):
  messages = {'a': jnp.ones((N, 3), jnp.bfloat16), 'b': jnp.ones(N)}
  attack = make()
  out, state = attack.apply(
    messages, attack.init(None), is_byzantine=jnp.asarray(BAD), key=KEY
  )
  describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  assert describe(out) == describe(messages)
  assert jax.tree.structure(state) == jax.tree.structure(attack.init(None))


@every_attack
@pytest.mark.parametrize(
  'mask, message',
  [
    (np.zeros(N - 1, bool), r'is_byzantine to be bool\[11\].*bool\[10\]'),
    (np.zeros((N, 1), bool), r'is_byzantine to be bool\[11\].*bool\[11, 1\]'),
    (np.zeros(N, np.int32), r'is_byzantine to be bool\[11\].*int32\[11\]'),
  ],
  ids=['length', 'rank', 'dtype'],
)
def test_bad_masks_are_refused_by_name(make, mask, message):
  with pytest.raises(ValueError, match=message):
    _compiled(make)(tables.to_tree(tables.random_messages(0)), mask)


@every_attack
def test_messages_without_a_common_worker_axis_are_refused(make):
  with pytest.raises(ValueError, match='leading worker axis'):
    _compiled(make)({'a': jnp.ones((N, 2)), 'b': jnp.ones((3, 2))}, BAD)


# Real hyper-parameters may be traced.


@pytest.mark.parametrize(
  'make',
  [
    lambda value: byzjax.sign_flip(scale=value),
    lambda value: byzjax.sign_flip(scale=value, own=True),
    lambda value: byzjax.inner_product_manipulation(epsilon=value),
    lambda value: byzjax.alie(z=value),
    lambda value: byzjax.constant(value=value),
    lambda value: byzjax.gaussian(std=value),
    lambda value: byzjax.min_max(max_gamma=value),
    lambda value: byzjax.min_sum(max_gamma=value),
    lambda value: byzjax.fang(scale=1 + value),
    lambda value: byzjax.flip_vote(scale=value),
    lambda value: byzjax.random_signs(scale=value),
  ],
  ids=(
    'sign_flip own ipm alie constant gaussian min_max min_sum fang flip_vote'
    ' random_signs'
  ).split(),
)
def test_strengths_in_one_vmap_equal_separate_calls(make):
  x = jnp.asarray(tables.random_messages(4), jnp.float32)

  def apply(value):
    return make(value).apply(x, (), is_byzantine=jnp.asarray(BAD), key=KEY)[0]

  values = [0.5, 1.0, 7.0]
  swept = jax.jit(jax.vmap(apply))(jnp.array(values))
  for row, value in zip(swept, values):
    np.testing.assert_allclose(row, apply(value), 1e-5, 1e-6)
  # And a concrete one, in a function that is compiled.
  inside = jax.jit(lambda: apply(0.5))()
  np.testing.assert_allclose(inside, swept[0], 1e-5, 1e-6)


# ALIE.


@pytest.mark.parametrize(
  'n, f, z',
  [  # core.md 8
    (25, 5, 0.253),
    (25, 11, 1.068),
    (50, 24, 1.426),
    (51, 12, 0.361),
    (45, 5, 0.126),
    (53, 5, 0.105),
    (53, 12, 0.343),
    (20, 3, 0.074),
    (20, 8, 0.674),
    (100, 20, 0.286),
    (15, 3, 0.210),
    (10, 3, 0.180),
    (8, 3, 0.253),
    (12, 2, 0.0),
    (8, 2, 0.0),
    (8, 1, -0.180),
  ],
)
def test_alie_factor(n, f, z):
  result = float(byzjax.alie_factor(n, f))
  assert abs(result - z) <= 5e-4 + 1e-6
  np.testing.assert_allclose(result, reference.alie_factor(n, f), 1e-5, 1e-6)


def test_alie_counts_the_attackers_in_the_mask():
  x = tables.random_messages(5)
  for f in (1, 3, 5):
    bad = np.arange(N) < f
    z = reference.alie_factor(N, f)
    np.testing.assert_allclose(
      _apply(byzjax.alie, x, bad)[0], reference.alie(x[f:], z), 1e-5, 1e-5
    )


def test_alie_does_not_take_absent_workers_for_attackers():
  x = np.float32(tables.random_messages(5))
  bad = np.arange(N) < 3
  absent = np.concatenate([x, np.full((4, x.shape[1]), np.nan, np.float32)])
  found = byzjax.alie().apply(
    jnp.asarray(absent), (), is_byzantine=jnp.arange(N + 4) < 3
  )[0]
  sent = _apply(byzjax.alie, x, bad)[0]
  np.testing.assert_allclose(found[0], sent, 1e-5, 1e-5)


@pytest.mark.parametrize('f', [5, 6, 9])
def test_alie_of_a_majority_sends_numbers(f):
  # Ten drawn workers, of whom half or more attack.
  assert np.isfinite(byzjax.alie_factor(10, f))
  x = np.float32(tables.random_messages(5))[:10]
  sent = byzjax.alie().apply(
    jnp.asarray(x), (), is_byzantine=jnp.arange(10) < f
  )[0]
  assert np.isfinite(sent).all()


@pytest.mark.parametrize(
  'make', [byzjax.alie, byzjax.relocated_orthogonal_perturbation]
)
@pytest.mark.parametrize('bad', [[1, 0], [1, 0, 0], [1, 1], [1]])
def test_with_few_workers_around_numbers_are_sent(make, bad):
  # Of three workers the last is absent.
  x = np.array([[7.0, 1.0], [1.0, 2.0], [np.nan, 3.0]], np.float32)[: len(bad)]
  sent = make()(jnp.asarray(x), is_byzantine=jnp.array(bad, bool))
  assert np.isfinite(sent[0]).all()
  for n in (1, 2):
    for f in range(n + 1):
      assert np.isfinite(byzjax.alie_factor(n, f))


def test_alie_ddof():
  with pytest.raises(ValueError, match='alie needs ddof to be 0 or 1, got 2'):
    byzjax.alie(ddof=2)


# Noise.


def test_gaussian_has_the_moments_it_says_and_is_drawn_per_worker():
  d = 20_000
  attack = byzjax.gaussian(std=3.0, mean=1.0)
  noise, _ = attack.apply(
    jnp.zeros((4, d)), (), is_byzantine=jnp.ones(4, bool), key=KEY
  )
  noise = np.float64(noise)
  # Five standard errors of the mean, the deviation and the correlation.
  assert np.abs(noise.mean(axis=1) - 1).max() < 5 * 3 / np.sqrt(d)
  assert np.abs(noise.std(axis=1) / 3 - 1).max() < 5 / np.sqrt(2 * d)
  correlation = np.corrcoef(noise) - np.eye(4)
  assert np.abs(correlation).max() < 5 / np.sqrt(d)


def _noise(n, key=KEY, is_byzantine=None):
  bad = np.ones(n, bool) if is_byzantine is None else is_byzantine
  return np.asarray(
    byzjax.gaussian().apply(
      jnp.zeros((n, 40)), (), is_byzantine=jnp.asarray(bad), key=key
    )[0]
  )


def test_gaussian_of_a_worker_depends_on_the_key_and_its_index_only():
  np.testing.assert_array_equal(_noise(3), _noise(7)[:3])
  alone = _noise(7, is_byzantine=np.arange(7) == 2)
  np.testing.assert_array_equal(alone[2], _noise(7)[2])
  assert (_noise(3, jax.random.key(4)) != _noise(3)).all()


def test_gaussian_needs_a_key_and_a_deviation():
  with pytest.raises(ValueError, match='gaussian needs a key.*got None'):
    byzjax.gaussian().apply(
      jnp.ones((2, 2)), (), is_byzantine=jnp.array([True, False])
    )
  with pytest.raises(ValueError, match='gaussian needs std >= 0, got -1.0'):
    byzjax.gaussian(std=-1.0)


# Label flip.

LABELS = np.array([[0, 1, 9], [5, 5, 5], [9, 0, 3]])
EXPECTED = np.array([[9, 8, 0], [5, 5, 5], [0, 9, 6]])
FLIPPED = jnp.array([True, False, True])


class Batch(NamedTuple):
  labels: jax.Array
  images: jax.Array


@pytest.mark.parametrize(
  'wrap, unwrap, kwargs',
  [
    (lambda x, y: (x, y), lambda b: (b[0], b[1]), {}),
    (lambda x, y: (y, x), lambda b: (b[1], b[0]), {'label': 0}),
    (
      lambda x, y: {'image': x, 'label': y},
      lambda b: (b['image'], b['label']),
      {'label': 'label'},
    ),
    (
      lambda x, y: Batch(y, x),
      lambda b: (b.images, b.labels),
      {'label': 0},
    ),
  ],
  ids=['tuple', 'first', 'dict', 'NamedTuple'],
)
def test_label_flip_finds_the_labels(wrap, unwrap, kwargs):
  images = jnp.ones((3, 3, 2))
  batch = wrap(images, jnp.asarray(LABELS))
  attack = byzjax.label_flip(10, **kwargs)
  flipped = jax.jit(attack)(batch, FLIPPED, None)
  assert type(flipped) is type(batch)
  new_images, labels = unwrap(flipped)
  np.testing.assert_array_equal(labels, EXPECTED)
  np.testing.assert_array_equal(
    EXPECTED[0], reference.label_flip(LABELS[0], 10)
  )
  np.testing.assert_array_equal(new_images, images)


@pytest.mark.parametrize(
  'batch, kwargs, message',
  [
    ({'x': LABELS}, {'label': 'y'}, "no labels 'y' in a batch of type dict"),
    ((LABELS,), {'label': 'y'}, "no labels 'y' in a batch of type tuple"),
    (LABELS, {}, 'no labels -1 in a batch of type ndarray'),
    ((LABELS, np.ones((3, 3))), {}, r'integer labels \[3, ...\], got float'),
    ((LABELS, LABELS[:2]), {}, r'integer labels \[3, ...\], got int64\[2, 3\]'),
    ((LABELS,), {'label': 4}, 'label_flip'),
  ],
)
def test_label_flip_says_what_is_wrong_with_a_batch(batch, kwargs, message):
  with pytest.raises(ValueError, match=message):
    byzjax.label_flip(10, **kwargs)(batch, FLIPPED, None)


def test_label_flip_needs_classes():
  with pytest.raises(ValueError, match='num_classes.*at least 2, got 1'):
    byzjax.label_flip(1)
