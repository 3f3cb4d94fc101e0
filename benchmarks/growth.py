r"""How rules and a round grow with the workers n and the coordinates d.

  python -m benchmarks.growth
  python -m benchmarks.growth --workers=8,512 --rules=krum

Times of one size after another, each beside F, one read of X[n, d], and the
exponent of a line through their logarithms, by the critical path where there is
one: 1 is a cost for each entry that does not change. `ns per entry` is that
cost, `temp` temporary memory as a share of X. A round has a quadratic loss,
whose gradients cost one read, momentum and the ALIE attack; f is n // 5.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from benchmarks import program, records, rounds, rules, timing


@dataclasses.dataclass(frozen=True)
class Settings:
  workers: tuple[int, ...] = program.option(
    (8, 16, 32, 64, 128, 129, 256, 512), 'Values of n.'
  )
  coordinates: tuple[int, ...] = program.option(
    (10_000, 100_000, 1_000_000, 10_000_000), 'Values of d.'
  )
  at_workers: int = program.option(16, 'n, while d grows.')
  at_coordinates: int = program.option(50_000, 'd, while n grows.')
  rules: tuple[str, ...] = program.option(
    ('trimmed_mean', 'krum', 'mixing + trimmed_mean'), 'Of benchmarks.rounds.'
  )
  repeats: int = program.option(5, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings((5, 10), (200, 400), 5, 200, ('trimmed_mean',), repeats=1)


def measure(settings: Settings) -> Iterator[records.Run]:
  n, d = settings.at_workers, settings.at_coordinates
  yield _grown(
    f'growth with n, d={d}', [(n, d) for n in settings.workers], settings
  )
  yield _grown(
    f'growth with d, n={n}', [(n, d) for d in settings.coordinates], settings
  )


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
  """The power of the size that the time grows with, by least squares."""
  return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def time_of(figure: records.Figure) -> float:
  """The critical path, or the least wall clock where there is none."""
  return figure.critical_path or figure.wall_minimum or float('nan')


def _grown(
  title: str, sizes: list[tuple[int, int]], settings: Settings
) -> records.Run:
  share = settings.seconds / (2 * len(sizes))
  figures = [
    figure for n, d in sizes for figure in _of_size(n, d, settings, share)
  ]
  along = 'n' if len({n for n, _ in sizes}) > 1 else 'd'
  # By name, which is how a table and a picture want them.
  names = list(dict.fromkeys(figure.name for figure in figures))
  series = {name: [f for f in figures if f.name == name] for name in names}
  return records.Run(
    title,
    rules.FLOOR,
    [figure for name in names for figure in series[name]],
    {'along': along},
    {
      f'exponent of {name}': exponent(
        [f.values[along] for f in each], [time_of(f) for f in each]
      )
      for name, each in series.items()
    },
  )


def _of_size(
  n: int, d: int, settings: Settings, seconds: float
) -> list[records.Figure]:
  x = jax.random.normal(jax.random.key(0), (n, d))
  programs = {rules.FLOOR: rules.floor_of(x)}
  chosen = {name: rounds.rules(n // 5)[name] for name in settings.rules}
  for name, rule in chosen.items():
    programs[name] = rules.program_of(rule, x)
  name = settings.rules[0]
  programs[f'round, {name}'] = rounds.round_program(
    rounds.quadratic(x), chosen[name], 1
  )
  times = timing.interleaved(
    {name: each.call for name, each in programs.items()},
    settings.repeats,
    seconds,
  )
  values = {
    name: {
      'n': n,
      'd': d,
      'temporary_share': each.temporary_bytes / x.nbytes,
      'compile_seconds': each.compile_seconds,
    }
    for name, each in programs.items()
  }
  figures = records.figures(times, rules.FLOOR, values)
  for figure in figures:
    figure.values['nanoseconds_per_entry'] = 1e9 * time_of(figure) / x.size
  return figures


if __name__ == '__main__':
  program.run('growth', Settings, QUICK, measure)
