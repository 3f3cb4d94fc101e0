import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from byzjax import data
from byzjax.data import _sources

_DEFAULT = pathlib.Path(__file__).parents[2] / '..' / 'shared/data/tfds'
TFDS_DIR = pathlib.Path(os.environ.get('TFDS_DATA_DIR', _DEFAULT))


def needs(name):
  return pytest.mark.skipif(
    not (TFDS_DIR / name).is_dir(), reason=f'{name} is not in TFDS_DATA_DIR'
  )


class _Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A data set written without TensorFlow, in TFDS's own format."""

  name = 'toy'
  VERSION = tfds.core.Version('1.0.0')
  features = {
    'image': tfds.features.Tensor(shape=(4, 3, 1), dtype=np.uint8),
    'label': tfds.features.ClassLabel(num_classes=3),
  }
  splits = {'train': 7, 'test': 5}

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(self.features)
    )

  def _split_generators(self, dl_manager):
    return {k: self._generate_examples(n) for k, n in self.splits.items()}

  def _generate_examples(self, num_examples):
    for i in range(num_examples):
      example = {'image': np.full((4, 3, 1), i, np.uint8), 'label': i % 3}
      yield i, {k: example[k] for k in self.features}


class _NoTest(_Toy, skip_registration=True):
  name = 'no_test'
  splits = {'train': 2}


class _NoLabel(_Toy, skip_registration=True):
  name = 'no_label'
  features = {'image': _Toy.features['image']}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tfds')
  for builder in (_Toy, _NoTest, _NoLabel):
    builder(data_dir=path, file_format='array_record').download_and_prepare()
  return path


def test_digits():
  digits = data.load('digits')
  assert digits.name == 'digits'
  assert digits.train_images.shape == (1400, 8, 8, 1)
  assert digits.test_images.shape == (397, 8, 8, 1)
  assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
  assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
  assert (digits.num_classes, digits.scale) == (10, 16.0)
  assert digits.train_images.max() == digits.test_images.max() == 16
  assert len(np.unique(digits.test_labels)) == 10


def test_digits_are_split_by_one_fixed_permutation():
  from sklearn import datasets

  raw = datasets.load_digits()
  digits = data.load('digits')
  images = np.concatenate([digits.train_images, digits.test_images])
  labels = np.concatenate([digits.train_labels, digits.test_labels])
  order = np.random.default_rng(0).permutation(1797)
  np.testing.assert_array_equal(images[..., 0], raw.images[order])
  np.testing.assert_array_equal(labels, raw.target[order])


def test_digits_without_scikit_learn(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
  with pytest.raises(
    ValueError, match=r"load: name='digits' .* 'byzjax\[data\]'"
  ):
    data.load('digits')


def test_a_prepared_data_set_without_tfds(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ValueError, match=r"load: name='toy' .* 'byzjax\[data\]'"):
    data.load('toy', folder)


def test_reads_a_prepared_data_set(folder, monkeypatch):
  toy = data.load('toy', folder)
  assert (toy.name, toy.num_classes, toy.scale) == ('toy', 3, 255.0)
  assert toy.train_images.shape == (7, 4, 3, 1)
  assert toy.test_images.shape == (5, 4, 3, 1)
  assert toy.train_images.dtype == np.uint8
  assert toy.train_labels.dtype == np.int32
  np.testing.assert_array_equal(
    toy.train_labels, toy.train_images[:, 0, 0, 0] % 3
  )
  assert sorted(toy.test_images[:, 0, 0, 0]) == list(range(5))
  monkeypatch.setenv('TFDS_DATA_DIR', str(folder))
  again = data.load('toy')
  np.testing.assert_array_equal(again.train_images, toy.train_images)
  explicit = data.load('toy:1.0.0', str(folder))
  np.testing.assert_array_equal(explicit.test_labels, toy.test_labels)


@needs('mnist')
def test_mnist():
  images, labels, num_classes = _sources._read_split(
    'mnist', 'train[:10]', TFDS_DIR
  )
  assert images.shape == (10, 28, 28, 1) and images.dtype == np.uint8
  assert num_classes == 10
  np.testing.assert_array_equal(labels, [4, 1, 0, 7, 8, 1, 2, 7, 1, 6])
  source = tfds.data_source(
    'mnist', split='train[:10]', data_dir=TFDS_DIR, download=False
  )
  np.testing.assert_array_equal(images, [e['image'] for e in source])


@needs('mnist')
def test_whole_mnist_test_split():
  images, labels, _ = _sources._read_split('mnist', 'test', TFDS_DIR)
  assert images.shape == (10_000, 28, 28, 1)
  # Class sizes as published with the data.
  np.testing.assert_array_equal(
    np.bincount(labels),
    [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
  )
  assert images[..., 0].any(axis=(1, 2)).all()


@needs('cifar10')
def test_cifar10():
  images, labels, _ = _sources._read_split('cifar10', 'test[:20]', TFDS_DIR)
  source = tfds.data_source(
    'cifar10', split='test[:20]', data_dir=TFDS_DIR, download=False
  )
  np.testing.assert_array_equal(images, [e['image'] for e in source])
  np.testing.assert_array_equal(labels, [e['label'] for e in source])


def test_decodes_into_the_channels_asked_for():
  def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format='PNG')
    return buffer.getvalue()

  rgb = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
  gray = rgb[..., 0]
  np.testing.assert_array_equal(
    _sources._decode(png(PIL.Image.fromarray(rgb)), 'RGB'), rgb
  )
  np.testing.assert_array_equal(
    _sources._decode(png(PIL.Image.fromarray(gray)), 'L'), gray[..., None]
  )
  np.testing.assert_array_equal(
    _sources._decode(png(PIL.Image.fromarray(gray)), 'RGB'),
    np.repeat(gray[..., None], 3, axis=-1),
  )


def test_a_missing_data_set_says_what_to_do(folder):
  with pytest.raises(ValueError) as error:
    data.load('mnist', folder)
  message = str(error.value)
  assert message.startswith(
    f"load: name='mnist' is not in the folder '{folder}', which holds "
    'no_label:1.0.0, no_test:1.0.0, toy:1.0.0.'
  )
  assert 'digits (needs no folder), cifar10, fashion_mnist, mnist' in message
  assert 'tfds build mnist --file_format=array_record --data_dir=DIR' in message
  assert 'pass --data_dir=DIR' in message


def test_an_unknown_name_without_a_folder(monkeypatch, tmp_path):
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  looked_in = tmp_path / 'tensorflow_datasets'
  with pytest.raises(
    ValueError,
    match=f"load: name='nonsense' is not in the folder '{looked_in}', "
    'which holds nothing',
  ):
    data.load('nonsense')
  assert not looked_in.exists()


def test_a_missing_version(folder):
  with pytest.raises(
    ValueError, match="load: name='toy:2.0.0' is not in .* toy:1.0.0"
  ):
    data.load('toy:2.0.0', folder)


def test_a_format_that_needs_tensorflow(folder, tmp_path):
  target = tmp_path / 'toy' / '1.0.0'
  target.mkdir(parents=True)
  for file in (folder / 'toy' / '1.0.0').iterdir():
    text = file.read_bytes().replace(b'"array_record"', b'"tfrecord"')
    (target / file.name).write_bytes(text)
  with pytest.raises(
    ValueError, match="load: name='toy' is not stored in a format of random"
  ):
    data.load('toy', tmp_path)


def test_refuses_a_data_set_without_a_test_split(folder):
  with pytest.raises(
    ValueError, match="load: name='no_test' must have the splits .* got train"
  ):
    data.load('no_test', folder)


def test_refuses_what_is_not_image_classification(folder):
  with pytest.raises(
    ValueError, match="load: name='no_label' must have .* got image: Tensor"
  ):
    data.load('no_label', folder)


@pytest.mark.parametrize(
  'second', [np.zeros((2, 3, 1), np.uint8), np.zeros((2, 2, 1), np.uint16)]
)
def test_refuses_images_of_several_kinds(second):
  class Source(list):
    def __getitems__(self, indices):
      return [self[i] for i in indices]

  first = np.zeros((2, 2, 1), np.uint8)
  source = Source({'image': x, 'label': 0} for x in (first, second))
  with pytest.raises(
    ValueError, match="load: name='odd' must have uint8 images of one size"
  ):
    _sources._read('odd', source, None)


def test_import_is_light():
  program = (
    'import sys, byzjax.data; '
    'heavy = {"tensorflow_datasets", "tensorflow", "sklearn", "flax", "PIL"}; '
    'print(sorted(heavy & set(sys.modules)))'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'
