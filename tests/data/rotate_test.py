"""Rotated images, and angles that differ from worker to worker."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from byzjax import data

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(5, 9, 9, 3)).astype(np.float32)
PARTITION = data.random_shards(np.zeros(900, int), 3)


@pytest.mark.parametrize('turns', [0, 1, 2, 3, 4, -1, -6])
@pytest.mark.parametrize('size', [4, 9])
def test_quarter_turns_of_square_images_are_exact(turns, size):
  images = IMAGES[:, :size, :size]
  found = data.rotate(images, 90.0 * turns)
  np.testing.assert_array_equal(found, np.rot90(images, turns, axes=(1, 2)))


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16, np.uint8])
def test_no_angle_changes_no_bit(dtype):
  images = jnp.asarray(100 * IMAGES[:, :, :7]).astype(dtype)
  images = images.at[0, 0].set(jnp.array(-0.0).astype(dtype))
  for angle in (0.0, 360.0, -720.0):
    found = data.rotate(images, angle)
    assert found.dtype == images.dtype
    assert np.asarray(found).tobytes() == np.asarray(images).tobytes()


@pytest.mark.parametrize('shape', [(9, 9), (6, 9)])
def test_agrees_with_scipy(shape):
  images = IMAGES[:, : shape[0]]
  angles = np.array([10.0, -33.0, 45.0, 135.0, 290.5])
  found = jax.jit(data.rotate)(images, angles)
  for image, angle, one in zip(images, angles, found):
    expected = scipy.ndimage.rotate(
      image.astype(np.float64),
      angle,
      reshape=False,
      order=1,
      mode='grid-constant',
    )
    np.testing.assert_allclose(one, expected, atol=2e-5)


def test_zeros_come_from_outside_and_integers_are_rounded():
  found = data.rotate(np.full((8, 8, 1), 255, np.uint8), 45.0)
  assert found.dtype == jnp.uint8
  assert found[0, 0, 0] == 0 and found[4, 4, 0] == 255
  gray = data.rotate(np.arange(64, dtype=np.float32).reshape(8, 8, 1), 30.0)
  whole = data.rotate(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), 30.0)
  assert np.abs(np.asarray(whole, float) - np.asarray(gray)).max() <= 0.501


def test_an_angle_for_each_image_of_any_leading_axes():
  images, angles = IMAGES[:4].reshape(2, 2, 9, 9, 3), np.arange(4.0) * 25
  found = data.rotate(images, angles.reshape(2, 2))
  one = [data.rotate(image, a) for image, a in zip(IMAGES, angles)]
  np.testing.assert_allclose(
    found.reshape(4, 9, 9, 3), np.stack(one), atol=1e-6
  )


def test_more_images_than_fit_at_once():
  images = RNG.normal(size=(1030, 3, 3, 1)).astype(np.float32)
  turns = np.arange(1030) % 4
  found = np.asarray(data.rotate(images, 90.0 * turns))
  for k in range(4):
    expected = np.rot90(images[turns == k], k, axes=(1, 2))
    np.testing.assert_array_equal(found[turns == k], expected)


def test_refuses_wrong_shapes():
  with pytest.raises(ValueError, match=r'rotate: images must .* \[9, 9\]'):
    data.rotate(IMAGES[0, :, :, 0], 1.0)
  with pytest.raises(ValueError, match=r'rotate: angles must .* \[4\] of'):
    data.rotate(IMAGES, np.zeros(4))


ANGLES = (0, 15, 30, 45)


def shares(degrees, partition=PARTITION):
  return np.array(
    [
      [np.mean(degrees[row[:size]] == a) for a in ANGLES]
      for row, size in zip(partition.indices, partition.sizes)
    ]
  )


def test_every_worker_has_a_mix_of_its_own():
  degrees = data.rotation_shift(PARTITION, ANGLES, concentration=1.0, seed=5)
  assert degrees.dtype == np.float32 and degrees.shape == (900,)
  assert set(degrees) <= set(ANGLES)
  for worker, found in enumerate(shares(degrees)):
    mix = np.random.default_rng([5, worker]).dirichlet(np.full(4, 0.25))
    # Five standard deviations of a share of 300 draws.
    assert np.all(np.abs(found - mix) <= 5 * np.sqrt(mix * (1 - mix) / 300))


def test_concentration_is_that_of_all_angles_together():
  big = data.rotation_shift(PARTITION, ANGLES, concentration=1e6)
  assert np.abs(shares(big) - 0.25).max() < 0.15
  # The expected largest share of Dir(1/4, ...) is far from that of Dir(1, ...).
  many = data.random_shards(np.zeros(20_000, int), 200)
  total = shares(data.rotation_shift(many, ANGLES, concentration=1.0), many)
  each = shares(data.rotation_shift(many, ANGLES, concentration=4.0), many)
  # Var of one share is (1/4)(3/4) / (concentration + 1).
  np.testing.assert_allclose(total.var(), 3 / 32, rtol=0.15)
  np.testing.assert_allclose(each.var(), 3 / 80, rtol=0.15)


def test_a_worker_draws_the_same_among_two_and_among_three():
  few = data.Partition(PARTITION.indices[:2], PARTITION.sizes[:2])
  whole, part = (
    data.rotation_shift(p, ANGLES, concentration=1.0, num_examples=900)
    for p in (PARTITION, few)
  )
  mine = PARTITION.indices[:2].ravel()
  np.testing.assert_array_equal(whole[mine], part[mine])
  assert np.all(part[PARTITION.indices[2]] == 0) and part.shape == (900,)


@pytest.mark.parametrize(
  'change, found',
  [
    ({'angles': ()}, r'angles must be .* \[0\]'),
    ({'concentration': 0.0}, 'concentration must be positive .*=0.0'),
    ({'concentration': np.inf}, 'concentration must be positive .*=inf'),
    ({'num_examples': 899}, 'num_examples must cover .* 899 .* example 899'),
    (
      {'partition': data.iid(np.zeros(4, int), 2)},
      'belong to one worker at most, got 2 for example 0',
    ),
  ],
)
def test_rotation_shift_refusals(change, found):
  kwargs = dict(partition=PARTITION, angles=ANGLES, concentration=1.0)
  with pytest.raises(ValueError, match=f'rotation_shift: .*{found}'):
    data.rotation_shift(**(kwargs | change))
