"""Triggers, poisoned batches, and what rounds make of them."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

KEY = jax.random.key(0)
BAD = np.array([False, True, False, True, False, False, True, False])
N = len(BAD)


def test_a_patch_is_in_its_corner_and_nowhere_else():
  images = np.random.default_rng(0).random([2, 3, 9, 7, 2], np.float32)
  rows = {'top': slice(1, 4), 'bottom': slice(5, 8)}
  columns = {'left': slice(1, 4), 'right': slice(3, 6)}
  for corner in byzjax.attacks._triggers.CORNERS:
    trigger = byzjax.patch_trigger(size=3, value=2.0, corner=corner)
    vertical, horizontal = corner.split('_')
    expected = images.copy()
    expected[..., rows[vertical], columns[horizontal], :] = 2
    np.testing.assert_array_equal(trigger(jnp.asarray(images)), expected)
    np.testing.assert_array_equal(trigger(trigger(images)), expected)


@pytest.mark.parametrize(
  'length, gap, strips',
  [  # The official settings: row, and first and last column.
    (4, 2, [(0, 0, 3), (0, 6, 9), (3, 0, 3), (3, 6, 9)]),
    (6, 3, [(0, 0, 5), (0, 9, 14), (4, 0, 5), (4, 9, 14)]),
  ],
)
def test_the_strips_of_the_distributed_trigger(length, gap, strips):
  trigger = byzjax.distributed_trigger(length=length, gap=gap)
  whole = np.zeros([28, 28, 1])
  for part, (row, first, last) in enumerate(strips):
    expected = np.zeros([28, 28, 1])
    expected[row, first : last + 1] = 1
    whole += expected
    marked = jax.jit(trigger.apply)(jnp.zeros([28, 28, 1]), part)
    np.testing.assert_array_equal(marked, expected)
  np.testing.assert_array_equal(trigger(jnp.zeros([28, 28, 1])), whole)


@pytest.mark.parametrize(
  'part, message',
  [
    (7, 'distributed_trigger needs part < 4, got 7'),
    (jnp.array(4), 'part < 4, got 4'),
    (-1, 'part >= 0, got -1'),
    (1.0, 'part to be an int or an array of integers, got 1.0'),
  ],
)
def test_a_part_that_is_not_there_is_refused(part, message):
  trigger = byzjax.distributed_trigger()
  with pytest.raises(ValueError, match=message):
    trigger.apply(jnp.zeros([28, 28, 1]), part)


def test_blended_and_integer_pixels():
  pattern = np.random.default_rng(0).random([4, 5, 1], np.float32)
  images = np.random.default_rng(1).random([3, 4, 5, 1], np.float32)
  blended = byzjax.blended_trigger(pattern=pattern, alpha=0.25)(images)
  np.testing.assert_allclose(blended, 0.75 * images + 0.25 * pattern, 1e-6)
  whole = np.array([[[0], [255]]], np.uint8)
  trigger = byzjax.blended_trigger(pattern=np.full([1, 2, 1], 255.0), alpha=0.3)
  marked = trigger(jnp.asarray(whole))
  assert marked.dtype == jnp.uint8
  np.testing.assert_array_equal(marked[0, :, 0], [76, 255])
  noise = byzjax.blended_trigger(alpha=1.0)(images)
  assert noise.min() >= 0 and noise.max() <= 1
  with pytest.raises(ValueError, match='fits into pixels of uint8, got 0.5'):
    byzjax.patch_trigger(size=1, value=0.5, margin=0)(jnp.asarray(whole))
  with pytest.raises(ValueError, match='fit into the images'):
    byzjax.patch_trigger(size=1, margin=1)(images[:, :1])
  with pytest.raises(ValueError, match='pattern to be as large'):
    byzjax.blended_trigger(pattern=pattern)(whole)


def batch_of(n=N, b=10):
  rng = np.random.default_rng(0)
  images = rng.random([n, b, 6, 6, 1], np.float32)
  return images, rng.integers(0, 4, [n, b], np.int32)


@pytest.mark.parametrize('source', [None, 2])
def test_the_share_that_is_poisoned(source):
  images, labels = batch_of()
  images[0, 0, 5, 5] = np.nan  # honest
  images[1, 0, 0, 0] = np.inf  # an attacker's
  trigger = byzjax.patch_trigger(size=2, margin=0)
  attack = byzjax.backdoor(trigger, target=9, fraction=0.3, source=source)
  poisoned = BAD[:, None] & (np.arange(10) < 3)
  if source is not None:
    poisoned &= labels == source
  expected = images.copy()
  expected[poisoned, 4:, 4:] = 1
  found = jax.jit(attack)((images, labels), BAD, None)
  np.testing.assert_array_equal(found[0], expected)
  np.testing.assert_array_equal(found[1], np.where(poisoned, 9, labels))


def test_a_part_of_an_example_is_rounded_at_random():
  images, labels = batch_of(b=1)
  attack = byzjax.backdoor(byzjax.patch_trigger(), target=9, fraction=0.25)

  @jax.jit
  @jax.vmap
  def counts(key):
    return (attack((images, labels), BAD, key)[1] == 9).sum(1)

  mean = counts(jax.random.split(KEY, 2000)).mean(0)
  assert abs(mean[BAD] - 0.25).max() < 0.05
  assert not mean[~BAD].any()


def test_all_or_nothing_and_mappings():
  images, labels = batch_of()
  batch = {'x': images, 'y': labels}
  make = functools.partial(
    byzjax.backdoor, byzjax.patch_trigger(), target=9, image='x', label='y'
  )
  same = make(fraction=0.0)(batch, BAD, KEY)
  jax.tree.map(np.testing.assert_array_equal, same, batch)
  everything = make(fraction=1.0)(batch, BAD, KEY)
  np.testing.assert_array_equal((everything['y'] == 9).all(1), BAD)
  with pytest.raises(ValueError, match="no images 'z' in a batch of type dict"):
    byzjax.backdoor(byzjax.patch_trigger(), target=1, image='z', label='y')(
      batch, BAD, None
    )
  with pytest.raises(ValueError, match='images .* one for each label'):
    make()({'x': images[..., 0], 'y': labels}, BAD, None)


@pytest.mark.parametrize(
  'attack, dtype, message',
  [
    (
      byzjax.backdoor(byzjax.patch_trigger(size=1), target=300),
      'uint8',
      'backdoor needs classes .* uint8, at most 255, got target=300',
    ),
    (
      byzjax.backdoor(byzjax.patch_trigger(size=1), target=1, source=300),
      'uint8',
      'at most 255, got source=300',
    ),
    (
      byzjax.edge_case(np.zeros([1, 6, 6, 1]), target=300),
      'uint8',
      'edge_case needs .*, got target=300',
    ),
    (byzjax.label_flip(200), 'int8', 'int8, at most 127, got num_classes=200'),
    (byzjax.label_poison(257), 'uint8', 'at most 255, got num_classes=257'),
  ],
)
def test_classes_that_do_not_fit_the_labels_are_refused(attack, dtype, message):
  images, labels = batch_of()
  with pytest.raises(ValueError, match=message):
    attack((images, labels.astype(dtype)), BAD, None)


def test_the_highest_class_of_the_labels_is_allowed():
  images, labels = batch_of()
  attack = byzjax.label_flip(256)
  found = attack((images, labels.astype('uint8')), BAD, None)[1]
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found[BAD], 255 - labels[BAD])


def test_edge_cases_come_from_the_pool():
  images, labels = batch_of()
  pool = 5 + np.arange(3.0, dtype=np.float32)[:, None, None, None]
  pool = np.broadcast_to(pool, [3, 6, 6, 1])
  attack = byzjax.edge_case(pool, target=9, fraction=0.5)
  new_images, new_labels = jax.jit(attack)((images, labels), BAD, KEY)
  poisoned = np.asarray(new_labels) == 9
  np.testing.assert_array_equal(poisoned.sum(1), np.where(BAD, 5, 0))
  assert set(np.unique(new_images[poisoned])) == {5, 6, 7}
  np.testing.assert_array_equal(new_images[~poisoned], images[~poisoned])


@pytest.mark.parametrize('value', [0.7, 256, -1, np.nan])
def test_a_pool_that_does_not_fit_the_pixels_is_refused(value):
  batch = jnp.zeros([2, 4, 2, 2, 1], jnp.uint8), jnp.zeros([2, 4], int)
  who = jnp.array([True, False])
  images, _ = byzjax.edge_case(np.full([3, 2, 2, 1], 255.0), target=1)(
    batch, who
  )
  assert images.dtype == jnp.uint8 and images.max() == 255
  attack = byzjax.edge_case(np.full([3, 2, 2, 1], value), target=1)
  with pytest.raises(ValueError, match='edge_case needs pool .* of uint8'):
    attack(batch, who)


def test_static_labels_are_a_permutation_without_fixed_points():
  labels = np.broadcast_to(np.arange(7), [N, 7])
  for seed in range(5):
    attack = byzjax.label_poison(7, seed=seed)
    _, poisoned = attack((labels, jnp.asarray(labels)), BAD, None)
    np.testing.assert_array_equal(poisoned[~BAD], labels[~BAD])
    assert (poisoned[BAD] != labels[BAD]).all()
    np.testing.assert_array_equal(np.sort(poisoned[BAD], 1), labels[BAD])


def rounds(loss_fn, mesh=None, **given):
  """A synchronous round, and a local round of two steps on the same batch."""
  given = {
    'aggregator': byzjax.mean(),
    'optimizer': optax.sgd(1.0),
    'num_workers': N,
    'byzantine': BAD,
    'mesh': mesh,
    **given,
  }
  yield byzjax.robust_round(loss_fn, **given), lambda batch: batch
  local = byzjax.local_round(
    loss_fn, local_optimizer=optax.sgd(0.5), num_local_steps=2, **given
  )
  yield local, lambda batch: jax.tree.map(lambda x: x[:, None], batch)


def image_loss(params, batch):
  return jnp.sum(params * batch[0].mean(0))  # its gradient: the mean image


def after_one_step(training, params, batch):
  return jax.jit(training.step)(training.init(params), batch, KEY)[0].params


@pytest.mark.parametrize('devices', [None, 4])
def test_each_attacker_has_its_part(devices):
  mesh = devices and jax.make_mesh(
    (devices,), ('workers',), devices=jax.devices()[:devices]
  )
  trigger = byzjax.distributed_trigger(length=2, gap=1)
  attack = byzjax.backdoor(trigger, target=1, fraction=1.0)
  batch = jnp.zeros([N, 2, 6, 6, 1]), jnp.zeros([N, 2], int)
  expected = np.zeros([6, 6, 1])
  expected[0, [0, 1, 3, 4]] = expected[2, [0, 1]] = -1 / N  # parts 0, 1 and 2
  for training, slices in rounds(image_loss, mesh, attack=attack):
    end = after_one_step(training, jnp.zeros([6, 6, 1]), slices(batch))
    np.testing.assert_allclose(end, expected, atol=1e-6)


def test_model_replacement_leaves_the_model_of_the_attackers():
  trigger = byzjax.patch_trigger(size=2)
  attack = byzjax.joint_attack(
    byzjax.backdoor(trigger, target=1, fraction=1.0),
    byzjax.model_replacement(scale=N / BAD.sum()),
  )
  attack = pickle.loads(pickle.dumps(attack))
  batch = jnp.zeros([N, 2, 6, 6, 1]), jnp.zeros([N, 2], int)
  for training, slices in rounds(image_loss, attack=attack):
    end = after_one_step(training, jnp.zeros([6, 6, 1]), slices(batch))
    np.testing.assert_allclose(end, -trigger(np.zeros([6, 6, 1])), atol=1e-6)


def test_dynamic_labels_are_those_of_the_model_of_the_server():
  def loss_fn(params, batch):
    return -10 * params[batch[1]].mean()

  def logits_fn(params, images):
    return jnp.broadcast_to(params, (len(images), 3))

  attack = byzjax.label_poison(3, logits_fn=logits_fn)
  batch = jnp.zeros([N, 2, 1]), jnp.zeros([N, 2], int)
  start = jnp.array([3.0, 1.0, 2.0])
  share = BAD.mean()
  # After one local step label 2 would be the least likely.
  expected = start + 10 * jnp.array([1 - share, share, 0])
  for training, slices in rounds(loss_fn, attack=attack):
    end = after_one_step(training, start, slices(batch))
    np.testing.assert_allclose(end, expected, 1e-5)
  with pytest.raises(ValueError, match='needs params for its logits_fn'):
    attack(batch, BAD, None)


@pytest.mark.parametrize('ratio', [0.0, 0.3, 0.9, 1.0])
def test_neurotoxin_leaves_out_where_the_server_moves_most(ratio):
  rng = np.random.default_rng(0)
  x, last = rng.normal(size=[N, 20]), rng.normal(size=20)
  last[:4] = 2.5, -2.5, np.nan, np.inf
  x, last = x.astype(np.float32), last.astype(np.float32)
  attack = byzjax.neurotoxin(ratio=ratio)
  fresh = attack.init(jnp.zeros(20))
  np.testing.assert_array_equal(attack(jnp.asarray(x), is_byzantine=BAD), x)
  state = attack.observe(fresh, jnp.asarray(last))
  dropped = np.argsort(np.where(np.isnan(last), np.inf, abs(last)))
  dropped = dropped[int(ratio * 20) :]
  expected = x.copy()
  expected[np.ix_(BAD, dropped)] = 0
  found, _ = attack.apply(jnp.asarray(x), state, is_byzantine=BAD)
  np.testing.assert_array_equal(found, expected)

  def on_half(x, state):
    return attack.apply(
      x, state, is_byzantine=BAD, axis_name='halves', num_coordinates=20
    )[0]

  halves = jax.vmap(on_half, (1, 0), 1, axis_name='halves')(
    jnp.asarray(x).reshape(N, 2, 10), state.reshape(2, 10)
  )
  np.testing.assert_array_equal(halves.reshape(N, 20), expected)
