"""`experiments.train --method=dipaco(...)`: who learns and who reads what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import data, models
from experiments import train
from experiments.harness import dipaco
from experiments.harness.cells import Task
from tests.experiments.calls import call_train, words

SMALL = {
  'num_workers': 9,
  'num_byzantine': 1,
  'rounds': 4,
  'eval_every': 2,
  'num_seeds': 1,
  'batch_size': 4,
  'num_local_steps': 2,
  'attack': 'sign_flip(scale=5.0)',
  'aggregator': 'mean',
  'method': 'dipaco',
}


def settings(**changed):
  return train.Settings(**{**SMALL, **changed})


def cell(**changed):
  config = settings(**changed)
  return dipaco.routed(train.cell_of(config), config, data.load('digits'))


def pixels(images):
  return np.float64(images).reshape(len(images), -1) / data.load('digits').scale


def nearest(z, centers):
  return np.square(z[:, None] - centers[None]).sum(axis=-1).argmin(axis=1)


def split_in_two(z):
  """As the product router does: the upper rows of pixels, and the lower."""
  return np.split(z, 2, axis=1)


@pytest.mark.parametrize('routing', ['k_means', 'product'])
def test_an_example_is_learnt_by_one_worker_of_its_path(routing):
  """Each path has the examples that are nearest to their own mean."""
  made = cell(method=f"dipaco(grid=(2, 2), routing='{routing}')")
  digits = data.load('digits')
  shards = made.partition(digits.train_labels, 9, 0)
  z = pixels(digits.train_images)
  path = np.full(len(z), -1)
  for worker in range(9):
    mine = shards.indices[worker, : shards.sizes[worker]]
    assert (path[mine] == -1).all()
    path[mine] = worker % 4
  assert (path >= 0).all()
  # Workers of a path have equally many, or one more.
  for i in range(4):
    sizes = shards.sizes[i::4]
    assert sizes.max() - sizes.min() <= 1
  if routing == 'k_means':
    centers = np.stack([z[path == i].mean(axis=0) for i in range(4)])
    assert (nearest(z, centers) == path).mean() > 0.98
    return
  for part, module in zip(split_in_two(z), (path // 2, path % 2)):
    centers = np.stack([part[module == i].mean(axis=0) for i in range(2)])
    assert (nearest(part, centers) == module).mean() > 0.98


def test_a_test_example_is_read_by_the_path_that_it_is_routed_to():
  digits = data.load('digits')
  made = cell()
  model = models.make('mlp', digits.train_images.shape[1:], 10, seed=0)
  graphdef, params = models.split(model)
  levels = models.repeat_modules(dipaco.split_levels(params, 2), (2, 2))
  keys = iter(jax.random.split(jax.random.key(0), 99))
  levels = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), levels
  )
  task = Task(graphdef, None, False, None, None, None, float(digits.scale), 10)
  images, labels = digits.test_images[:60], digits.test_labels[:60]
  measured = made.measure(task, levels, jnp.asarray(images), labels)
  router = dipaco.router_of(
    'k_means', (2, 2), digits.train_images, digits.scale
  )
  right, losses = [], []
  for image, label in zip(images, labels):
    z = pixels(image[None])
    path = models.grid_paths((2, 2))[data.route(router, z)[0]]
    network = nnx.merge(
      graphdef, models.join_levels(models.select_path(levels, path))
    )
    logits = np.float64(network(jnp.float32(image[None]) / digits.scale)[0])
    right.append(logits.argmax() == label)
    losses.append(np.log(np.exp(logits).sum()) - logits[label])
  np.testing.assert_allclose(measured['accuracy'], np.mean(right), 1e-6)
  np.testing.assert_allclose(measured['loss'], np.mean(losses), 1e-4)
  # One path for all would be another number.
  alone = models.evaluate(
    graphdef,
    dipaco.first_path(levels),
    images,
    labels,
    num_classes=10,
    scale=digits.scale,
  )
  assert abs(alone.loss - measured['loss']) > 0.01


@pytest.mark.parametrize(
  'name, num_levels, layers',
  [
    ('mlp', 2, [['layers'], ['layers']]),
    ('cnn', 3, [['conv1', 'conv2'], ['dense1'], ['dense2']]),
    ('resnet20', 2, [['blocks', 'conv', 'norm'], ['blocks', 'dense']]),
  ],
)
def test_levels_are_cut_between_layers(name, num_levels, layers):
  graphdef, params = models.split(models.make(name, (8, 8, 1), 10, seed=0))
  levels = dipaco.split_levels(params, num_levels)
  assert [sorted(level) for level in levels] == layers
  joined = models.join_levels(levels)
  assert jax.tree.structure(joined) == jax.tree.structure(params)
  if name == 'resnet20':
    assert sorted(levels[0]['blocks']) == [0, 1, 2, 3]


def test_codecs_attacks_and_seeds():
  digits = data.load('digits')
  for changed in (
    {'codec': 'qsgd(norm="l2")', 'server_codec': 'sign', 'num_seeds': 2},
    {'aggregator': 'coordinate_median', 'search': 'strength'},
    {'attack': 'label_flip', 'validation': True, 'num_participants': 4},
  ):
    assert 'accuracy' in train.program_of(settings(**changed), digits).trace()
  attack = "backdoor(trigger='patch(size=2, margin=0)', target=7, fraction=0.5)"
  program = train.program_of(settings(attack=attack), digits)
  assert 'attack_success_rate' in program.trace()


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'partition': 'label_sorted'}, '--partition is not for --method=dipaco'),
    ({'learning_rate': 0.2}, '--learning_rate is not for --method=dipaco'),
    ({'speeds': '1,2'}, '--speeds is not for --method=dipaco'),
    (
      {'method': 'dipaco(grid=(2, 5))'},
      r'--method=dipaco\(.*a worker for each of the 10 paths .*, got 9',
    ),
    (
      {'method': 'dipaco(grid=(2, 2, 2))'},
      '--method=dipaco: grid has 3 levels, and the model has 2 layers',
    ),
    ({'method': 'dipaco(grid=4)'}, 'grid must be the modules of .* got 4'),
    (
      {'method': "dipaco(routing='nearest')"},
      "routing must be one of k_means, product, got 'nearest'",
    ),
    (
      {'aggregator': 'bulyan'},
      'modular_round: level 0, a module of 4 paths: bulyan needs',
    ),
  ],
)
def test_what_it_does_not_know_is_refused(changed, message):
  with pytest.raises(ValueError, match=message):
    train.program_of(settings(**changed), data.load('digits'))


def test_a_run_goes_on_to_the_bits_of_a_long_one(tmp_path):
  call_train(*words(tmp_path / 'long', **SMALL))
  call_train(*words(tmp_path / 'short', **SMALL | {'rounds': 2}))
  call_train(*words(tmp_path / 'short', resume=True, rounds=4))
  long, short = (
    (tmp_path / name / 'metrics.csv').read_text() for name in ('long', 'short')
  )
  assert short == long
  assert len(long.splitlines()) == 4  # a header, and rounds 0, 2 and 4
