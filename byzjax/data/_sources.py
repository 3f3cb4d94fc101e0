"""Image-classification data sets, each read into one uint8 array."""

import io
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from byzjax.data import _routing

_KNOWN = ('cifar10', 'fashion_mnist', 'mnist')
_ENVIRONMENT_VARIABLE = 'TFDS_DATA_DIR'
_DEFAULT_DIR = '~/tensorflow_datasets'
_NUM_DIGITS_TRAIN = 1400
_RECORDS_AT_A_TIME = 4096
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_IMAGES = (
  'load',
  f'digits (needs no folder), {", ".join(_KNOWN)} and other'
  ' image-classification sets of TFDS',
)


class Dataset(NamedTuple):
  """An image-classification data set in host memory."""

  name: str
  train_images: np.ndarray  # uint8 [N, H, W, C]
  train_labels: np.ndarray  # int32 [N], in [0, num_classes)
  test_images: np.ndarray  # uint8 [M, H, W, C]
  test_labels: np.ndarray  # int32 [M]
  num_classes: int
  scale: float  # Largest pixel value; models see image / scale.


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
  """Loads an image-classification data set by name into host memory.

  `'digits'` is scikit-learn's 1797 handwritten digits, 8 x 8 x 1 with pixels
  from 0 to 16, split by one fixed permutation into 1400 for training and 397
  for testing; it needs no files. Every other name is a TFDS data set prepared
  on disk in a random-access format (`array_record`), with the splits `train`
  and `test` and the features `image` (all of one size) and `label`: `'mnist'`,
  `'fashion_mnist'`, `'cifar10'` and others. Reading needs no TensorFlow and no
  network. Examples keep the order of TFDS, which is shuffled.

  Args:
    name: `'digits'`, or a TFDS name such as `'mnist'`, optionally with a
      configuration and a version: `'name/config:1.0.0'`.
    data_dir: the folder of TFDS data sets; None for the environment variable
      `TFDS_DATA_DIR` or, if it is not set, `~/tensorflow_datasets`.

  Returns:
    A `Dataset`: images uint8 `[N, H, W, C]`, labels int32 `[N]`.

  Raises:
    ValueError: if the data set is not in the folder, or not an
      image-classification set as described, or for `'digits'` if scikit-learn
      is not installed.

  Example:
    >>> from byzjax import data
    >>> digits = data.load('digits')
    >>> digits.train_images.shape, digits.test_images.shape, digits.scale
    ((1400, 8, 8, 1), (397, 8, 8, 1), 16.0)
  """
  if name == 'digits':
    return _load_digits()
  folder = _folder(data_dir)
  train_images, train_labels, num_classes = _read_split(name, 'train', folder)
  test_images, test_labels, _ = _read_split(name, 'test', folder)
  return Dataset(
    name,
    train_images,
    train_labels,
    test_images,
    test_labels,
    num_classes,
    scale=255.0,
  )


def _load_digits() -> Dataset:
  datasets = _routing.sklearn_module("load: name='digits'", 'datasets')
  digits = datasets.load_digits()
  order = np.random.default_rng(0).permutation(len(digits.target))
  images = digits.images.astype(np.uint8)[order, :, :, None]
  labels = digits.target.astype(np.int32)[order]
  return Dataset(
    'digits',
    images[:_NUM_DIGITS_TRAIN],
    labels[:_NUM_DIGITS_TRAIN],
    images[_NUM_DIGITS_TRAIN:],
    labels[_NUM_DIGITS_TRAIN:],
    num_classes=10,
    scale=16.0,
  )


def _folder(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  if data_dir is None:
    data_dir = os.environ.get(_ENVIRONMENT_VARIABLE) or _DEFAULT_DIR
  return pathlib.Path(data_dir).expanduser()


def _prepared(folder: pathlib.Path) -> dict[str, str]:
  """What is under a folder: `'name[/config]:version'` to its name."""
  prepared = {}
  for pattern in ('*/*/dataset_info.json', '*/*/*/dataset_info.json'):
    for info in folder.glob(pattern):
      *parts, version = info.parent.relative_to(folder).parts
      prepared[f'{"/".join(parts)}:{version}'] = parts[0]
  return prepared


def _missing(
  name: str,
  folder: pathlib.Path,
  problem: str,
  asked: tuple[str, str] = _IMAGES,
) -> str:
  """The error, for the function that was asked and the names that it knows."""
  function, known = asked
  prepared = ', '.join(sorted(_prepared(folder))) or 'nothing'
  return (
    f'{function}: name={name!r} {problem} in the folder {str(folder)!r}, which '
    f'holds {prepared}. Known names are {known}. Prepare '
    f'it where TensorFlow is installed by `tfds build {name} '
    f'--file_format=array_record --data_dir=DIR`, then pass --data_dir=DIR '
    f'(data_dir=DIR in Python) or set {_ENVIRONMENT_VARIABLE}=DIR.'
  )


def _read_split(
  name: str, split: str, folder: pathlib.Path
) -> tuple[np.ndarray, np.ndarray, int]:
  """Images uint8 `[N, H, W, C]`, labels int32 `[N]`, the number of classes."""
  builder = _builder(name, folder)
  # TFDS takes a while to import, and only reading needs it.
  import tensorflow_datasets as tfds

  features = dict(builder.info.features.items())
  image: Any = features.get('image')
  label: Any = features.get('label')
  is_encoded = isinstance(image, tfds.features.Image)
  is_image = is_encoded or isinstance(image, tfds.features.Tensor)
  if not (is_image and isinstance(label, tfds.features.ClassLabel)):
    kinds = ', '.join(f'{k}: {type(v).__name__}' for k, v in features.items())
    raise ValueError(
      f'load: name={name!r} must have the features image: Image (or Tensor) '
      f'and label: ClassLabel, got {kinds}.'
    )
  if split.partition('[')[0] not in builder.info.splits:
    raise ValueError(
      f'load: name={name!r} must have the splits train and test, got '
      f'{", ".join(builder.info.splits) or "none"}.'
    )
  # Image files are decoded here: TFDS's decoder takes twice as long.
  decoders = {'image': tfds.decode.SkipDecoding()} if is_encoded else None
  source = _data_source(builder, name, split, folder, decoders=decoders)
  mode = _MODES[image.shape[-1] or 3] if is_encoded else None
  images, labels = _read(name, source, mode)
  return images, labels, label.num_classes


def _builder(
  name: str, folder: pathlib.Path, asked: tuple[str, str] = _IMAGES
) -> Any:
  """The data set on disk; ValueError if it is not there."""
  problem = _missing(name, folder, 'is not', asked)
  if name.partition(':')[0].partition('/')[0] not in _prepared(folder).values():
    raise ValueError(problem)
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ValueError(
      f'{asked[0]}: name={name!r} needs tensorflow-datasets, which is not'
      " installed: pip install 'byzjax[data]'."
    ) from error

  try:
    return tfds.builder(name, data_dir=folder)
  except (AssertionError, ValueError) as error:  # TFDS raises either.
    raise ValueError(problem) from error


def _data_source(
  builder: Any,
  name: str,
  split: str,
  folder: pathlib.Path,
  *,
  decoders: Any = None,
  asked: tuple[str, str] = _IMAGES,
) -> Any:
  """A split that can be indexed; ValueError if its format does not allow it."""
  try:
    return builder.as_data_source(split=split, decoders=decoders)
  except NotImplementedError as error:
    problem = 'is not stored in a format of random access'
    raise ValueError(_missing(name, folder, problem, asked)) from error


def _read(
  name: str, source: Any, mode: str | None
) -> tuple[np.ndarray, np.ndarray]:
  """All examples; `mode` is how to decode images, None if they are arrays."""
  labels = np.empty(len(source), np.int32)
  images = np.empty(0, np.uint8)
  for start in range(0, len(source), _RECORDS_AT_A_TIME):
    stop = min(len(source), start + _RECORDS_AT_A_TIME)
    for i, example in enumerate(source.__getitems__(range(start, stop)), start):
      image = example['image']
      if mode is not None:
        image = _decode(image, mode)
      if i == 0:
        images = np.empty((len(source), *image.shape), np.uint8)
      if image.shape != images.shape[1:] or image.dtype != np.uint8:
        raise ValueError(
          f'load: name={name!r} must have uint8 images of one size, got '
          f'{images.shape[1:]} and then {image.dtype} {image.shape}.'
        )
      images[i] = image
      labels[i] = example['label']
  return images, labels


def _decode(encoded: bytes, mode: str) -> np.ndarray:
  from PIL import Image

  with Image.open(io.BytesIO(encoded)) as image:
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
  return pixels[:, :, None] if pixels.ndim == 2 else pixels
