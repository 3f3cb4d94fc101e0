"""One colour for every rule and method, in all pictures and pages."""

import re
import zlib

# Okabe and Ito's eight first: they can be told apart by the colour-blind.
_COLOURS = (
  '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000',
  '#882255', '#44AA99', '#117733', '#AA4499', '#999933', '#6699CC', '#661100',
  '#888888', '#DDCC77',
)  # fmt: skip
# Those that are met most often have the colours that differ most.
_FIXED = {
  name: _COLOURS[i]
  for i, names in enumerate(
    (
      ('mean',),
      ('krum', 'multi_krum', 'multi-Krum'),
      ('centered_clipping', 'centered clipping', 'clipping'),
      ('coordinate_median', 'median', 'coordinate median'),
      ('trimmed_mean', 'trimmed mean'),
      ('geometric_median', 'geometric median'),
      ('majority_vote', 'vote', 'majority vote'),
      ('bulyan',),
    )
  )
  for name in names
}

_REST = _COLOURS[len(set(_FIXED.values())) :]


def colour(name: str) -> str:
  """The colour of a rule, a method or anything else that has a name.

  Hyper-parameters do not count: `centered_clipping(radius=1)` has the colour
  of `centered_clipping`, and so has a folder of it, `runs/krum`, or a series
  that says more, `krum, alie`.
  """
  for part in re.split(', |/', name):
    bare = re.split(r'\(|_[a-z]+=', part)[0].strip()
    if bare in _FIXED:
      return _FIXED[bare]
  return _REST[zlib.crc32(name.encode()) % len(_REST)]


def colours(names: list[str]) -> dict[str, str]:
  """Colours of the series of one picture, none of them twice if possible.

  The first of several that want one has it; nobody is given what another one
  wants, and those of rules are the last to be given.
  """
  first = {colour(name): name for name in reversed(names)}
  free = [c for c in (*_REST, *_COLOURS[: -len(_REST)]) if c not in first]
  taken = {}
  for name in names:
    own = colour(name)
    taken[name] = own if first[own] == name or not free else free.pop(0)
  return taken
