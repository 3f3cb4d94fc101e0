"""How often a backdoor opens, by hand and after training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import analysis


def test_the_success_rate_counts_other_classes_alone():
  images = np.zeros([7, 8, 8, 1], np.float32)
  labels = np.array([0, 0, 1, 1, 2, 2, 2])
  images[[0, 4], 0, 0] = 1  # the model does not fall for these two
  images[6, 0, 0] = np.nan

  def logits_fn(params, x):
    fooled = x[:, 6, 6, 0] - x[:, 0, 0, 0]
    return jnp.stack([params - fooled, fooled, 0 * fooled], -1)

  rate = functools.partial(
    analysis.attack_success_rate, logits_fn, jnp.zeros([]), images, labels
  )
  trigger = byzjax.patch_trigger(size=2)
  for size in (1, 3, 1000):
    found = rate(trigger=trigger, target=1, batch_size=size)
    np.testing.assert_allclose(found, 2 / 5)
  np.testing.assert_allclose(rate(trigger=trigger, target=1, source=2), 1 / 3)
  assert rate(trigger=None, target=1) == 0
  assert np.isnan(rate(trigger=trigger, target=1, source=5))


@pytest.mark.parametrize('shape', [(3, 2), (3,), (2, 3), (3, 4, 5)])
def test_logits_that_cannot_give_the_target_are_refused(shape):
  with pytest.raises(ValueError, match=r'logits \[3, K\], K above target=2'):
    analysis.attack_success_rate(
      lambda params, images: jnp.zeros(shape),
      (),
      np.zeros([3, 8, 8, 1]),
      np.arange(3),
      trigger=None,
      target=2,
    )


def test_a_backdoor_gets_through_a_mean_and_leaves_the_accuracy():
  datasets = pytest.importorskip('sklearn.datasets')
  digits = datasets.load_digits()
  images = (digits.images[..., None] / 16).astype(np.float32)
  labels = digits.target.astype(np.int32)
  train, test = slice(0, 1400), slice(1400, None)
  trigger = byzjax.patch_trigger(size=2, margin=0)
  rng = np.random.default_rng(0)
  params = (
    jnp.asarray(rng.normal(size=[64, 32]) / 8, jnp.float32),
    jnp.asarray(rng.normal(size=[32, 10]) / 8, jnp.float32),
  )

  def logits_fn(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), 64) @ params[0])
    return hidden @ params[1]

  def loss_fn(params, batch):
    logits = logits_fn(params, batch[0])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean()

  def trained(byzantine):
    training = byzjax.robust_round(
      loss_fn,
      aggregator=byzjax.mean(),
      optimizer=optax.sgd(0.5),
      num_workers=9,
      attack=byzjax.backdoor(trigger, target=7, fraction=0.5),
      byzantine=byzantine,
    )

    def step(state, key):
      chosen = jax.random.randint(key, [9, 16], 0, 1400)
      batch = (jnp.asarray(images[train])[chosen], labels_train[chosen])
      return training.step(state, batch, key)[0], None

    labels_train = jnp.asarray(labels[train])
    keys = jax.random.split(jax.random.key(0), 400)
    return jax.jit(
      lambda: jax.lax.scan(step, training.init(params), keys)[0].params
    )()

  def scores(params):
    accuracy = (
      logits_fn(params, images[test]).argmax(1) == labels[test]
    ).mean()
    rate = analysis.attack_success_rate(
      logits_fn, params, images[test], labels[test], trigger=trigger, target=7
    )
    return float(accuracy), float(rate)

  clean, attacked = scores(trained(0)), scores(trained(2))
  assert clean[0] > 0.85 and clean[1] < 0.2
  assert attacked[0] > clean[0] - 0.03 and attacked[1] > 0.8
