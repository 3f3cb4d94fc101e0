"""Flags from the fields of a dataclass, and the dataclass from the flags."""

import csv
import dataclasses
import io
import typing
from collections.abc import Collection, Iterable
from typing import Any

from absl import flags


def option(default: Any, what: str, *, low: float | None = None) -> Any:
  """A field that becomes a flag: its default, its help, its least value."""
  return dataclasses.field(default=default, metadata={'what': what, 'low': low})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What every study has.

  Only fields made by `option` become flags.
  """

  num_seeds: int = option(3, 'Seeds 0, 1, ... in one program.', low=1)

  @property
  def seeds(self) -> range:
    return range(self.num_seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings(Settings):
  """What every study has that trains networks on images."""

  dataset: str = option(
    'digits', 'digits, or an image set of --data_dir such as mnist.'
  )
  data_dir: str | None = option(None, 'Folder with data sets in TFDS format.')
  model: str = option('mlp', 'The network: cnn, dropout_cnn, mlp, resnet20.')
  augment: bool = option(False, 'Random crops and mirror images.')
  validation: bool = True  # Whether a tenth of the examples is kept apart.


def check_known(
  flag: str, given: Iterable[str], known: Collection[str]
) -> None:
  """Raises ValueError for a name that is not known."""
  for name in given:
    if name not in known:
      raise ValueError(f'--{flag}: {name} is none of {", ".join(known)}')


def define(kind: type, values: flags.FlagValues = flags.FLAGS) -> list[str]:
  """Defines a flag for every option; returns their names."""
  types = typing.get_type_hints(kind)
  names = []
  for field in dataclasses.fields(kind):
    if 'what' not in field.metadata:
      continue
    names.append(field.name)
    default: Any = field.default
    what: Any = field.metadata['what']
    shared: dict[str, Any] = {'flag_values': values}
    of = set(typing.get_args(types[field.name])) or {types[field.name]}
    if isinstance(default, tuple):
      texts = list(map(str, default))
      flags.DEFINE_list(field.name, texts, what, **shared)
    elif bool in of:
      flags.DEFINE_bool(field.name, default, what, **shared)
    elif str in of:
      flags.DEFINE_string(field.name, default, what, **shared)
    else:
      make = flags.DEFINE_integer if int in of else flags.DEFINE_float
      low = field.metadata['low']
      make(field.name, default, what, low, **shared)
  return names


def read(kind: type, values: flags.FlagValues = flags.FLAGS) -> Any:
  """The dataclass that the flags say.

  Raises:
    ValueError: if an entry of a list is no number where one is needed.
  """
  types = typing.get_type_hints(kind)
  given = {}
  for field in dataclasses.fields(kind):
    if 'what' not in field.metadata:
      continue
    value: Any = values[field.name].value
    if isinstance(field.default, tuple):
      number = typing.get_args(types[field.name])[0]
      try:
        value = tuple(map(number, value))
      except ValueError as error:
        raise ValueError(f'--{field.name}: {error}') from error
    given[field.name] = value
  return kind(**given)


def arguments(settings: Settings) -> list[str]:
  """The flags that differ from the defaults, as a command line has them."""
  words = []
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if 'what' not in field.metadata or value == field.default:
      continue
    if isinstance(value, tuple):
      text = io.StringIO()  # In quotes what has a comma, as absl reads lists.
      csv.writer(text, lineterminator='').writerow(value)
      value = text.getvalue()
    words.append(f'--{field.name}={value}')
  return words
