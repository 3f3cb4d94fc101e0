"""Settings and their flags."""

import dataclasses

import pytest
from absl import flags

from experiments.harness import settings
from experiments.harness.settings import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
  rounds: int = option(8, 'Rounds.', low=1)
  rate: float = option(0.5, 'The rate.', low=0)
  limit: int | None = option(None, 'None is no limit.', low=1)
  rates: tuple[float, ...] = option((0.1, 0.5), 'Rates.')
  sizes: tuple[int, ...] = option((1,), 'Sizes.')
  rules: tuple[str, ...] = option(('krum', 'mean'), 'Rules.')
  augment: bool = option(False, 'Whether.')
  folder: str | None = option(None, 'Where.')
  hidden: int = 7


def read(*arguments):
  values = flags.FlagValues()
  settings.define(Settings, values)
  values(['program', *arguments])
  return settings.read(Settings, values)


def test_no_flags_are_the_defaults():
  assert read() == Settings()
  assert settings.arguments(Settings()) == []


def test_flags_are_options_with_their_types():
  found = read(
    '--rounds=9',
    '--rate=1',
    '--limit=3',
    '--rates=1,2e-3',
    '--sizes=4,5',
    '--rules=vote',
    '--augment',
    '--folder=there',
    '--num_seeds=5',
  )
  assert found == Settings(
    rounds=9,
    rate=1.0,
    limit=3,
    rates=(1.0, 0.002),
    sizes=(4, 5),
    rules=('vote',),
    augment=True,
    folder='there',
    num_seeds=5,
  )
  assert [type(x) for x in (found.rate, *found.rates)] == [float] * 3
  assert list(found.seeds) == [0, 1, 2, 3, 4]
  # And back.
  assert read(*settings.arguments(found)) == found


def test_only_options_are_flags_and_their_help_is_what_they_say():
  values = flags.FlagValues()
  names = settings.define(Settings, values)
  assert 'hidden' not in names and 'hidden' not in values
  assert names[0] == 'num_seeds'
  assert values['rounds'].help == 'Rounds.'


@pytest.mark.parametrize(
  ('argument', 'match'),
  [
    ('--rounds=0', 'rounds=0: 0 is not a positive'),
    ('--rate=-0.1', 'rate=-0.1: -0.1 is not a non-negative'),
    ('--limit=0', 'limit=0: 0 is not a positive'),
    ('--rounds=many', 'rounds=many'),
  ],
)
def test_values_that_are_refused(argument, match):
  with pytest.raises(flags.IllegalFlagValueError, match=match):
    read(argument)


def test_an_entry_that_is_no_number_names_its_flag():
  with pytest.raises(ValueError, match='--rates: .*many'):
    read('--rates=0.1,many')
