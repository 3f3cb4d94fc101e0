"""What is known about a rule at n and f, with sources."""

import math
from typing import NamedTuple

from byzjax._src import base
from byzjax.analysis import _facts
from byzjax.theory import _kappa, _names, _robustness


class Certificate(NamedTuple):
  """What is known about a rule; `print` gives it as a table.

  Attributes:
    rule: its name.
    num_workers: n.
    num_byzantine: f.
    legal: whether the rule is made for these n and f; None if that depends on
      what its name does not tell.
    reason: why not, or why None; empty if legal.
    max_byzantine: the largest f that it is made for, or None.
    kappa_upper: a proved kappa; inf if there is none; None if nothing is known.
    kappa_lower: what no rule can be better than; inf for n <= 2f.
    resilience: a proved lambda; inf or None as for kappa.
    facts: what holds whatever the messages are.
    sources: authors, year, and where.
  """

  rule: str
  num_workers: int
  num_byzantine: int
  legal: bool | None
  reason: str
  max_byzantine: int | None
  kappa_upper: float | None
  kappa_lower: float
  resilience: float | None
  facts: tuple[str, ...]
  sources: tuple[str, ...]

  def __str__(self) -> str:
    """A small table."""
    legal = {True: 'yes', False: 'no', None: 'not known'}[self.legal]
    most = (
      '' if self.max_byzantine is None else f' (at most {self.max_byzantine})'
    )
    least = (
      'none' if self.kappa_lower == math.inf else f'{self.kappa_lower:.4g}'
    )
    bounds = [
      ('kappa', f'{_bound(self.kappa_upper)}; best possible {least}'),
      ('lambda', _bound(self.resilience)),
    ]
    rows = [
      ('rule', self.rule),
      ('messages', f'{self.num_workers}, {self.num_byzantine} Byzantine'),
      ('legal', f'{legal}{most}'),
      ('', self.reason),
      *(bounds if self.legal is not False else ()),
      *(('fact', fact) for fact in self.facts),
      *(('source', source) for source in self.sources),
    ]
    return '\n'.join(f'{name:8}  {text}' for name, text in rows if text)


def _bound(value: float | None) -> str:
  if value is None:
    return 'nothing known'
  return 'none exists' if value == math.inf else f'<= {value:.4g}'


def certificate(
  rule: str | base.Aggregator, num_workers: int, num_byzantine: int
) -> Certificate:
  """What is known about a rule with n messages, f of them Byzantine.

  kappa is that of `(f, kappa)`-robustness, `|aggregate - xbar|^2 <= kappa /
  |S| sum_{i in S} |x_i - xbar|^2` for all messages and all sets S of n - f of
  them, and lambda of `(f, lambda)`-resilience, with the largest distance in S:
  see `byzjax.theory`, which has the proofs. They hold for the rule with
  `num_byzantine=f` and its other arguments at their defaults, as the name of a
  rule does not tell these, and without worker weights. What is known of a rule
  that is not in byzjax is nothing, and that is what its certificate says.

  Args:
    rule: an `Aggregator`, or its name: 'krum', or 'nearest_neighbor_mixing +
      krum' as `pre_aggregate` has it.
    num_workers: n, a Python int.
    num_byzantine: f, a Python int.

  Returns:
    A `Certificate`.

  Raises:
    ValueError: if n is not a positive int or f not a non-negative one.

  References:
    Those that it names.

  Example:
    >>> import byzjax
    >>> print(byzjax.analysis.certificate('trimmed_mean', 11, 2))
    rule      trimmed_mean
    messages  11, 2 Byzantine
    legal     yes (at most 5)
    kappa     <= 0.2857; best possible 0.2857
    lambda    <= 0.3563
    fact      every coordinate lies between two honest ones
    fact      no rule has a smaller kappa
    source    Yin, Chen, Ramchandran, Bartlett 2018 arXiv:1803.01498
    source    Allouah, ... 2023 arXiv:2302.01772
    source    Farhadkhani, ... 2022 arXiv:2205.12173
  """
  n, f, name = num_workers, num_byzantine, _names.rule_name(rule)
  base.check_count('certificate', 'num_workers', n, 1)
  base.check_count('certificate', 'num_byzantine', f)
  lower = math.inf if n <= 2 * f else _robustness.kappa_lower_bound(n, f)
  stages, last = _names.split(name)
  known = _names.is_known(name)
  facts: list[str] = []
  sources: list[str] = []
  if not known:
    facts.append('nothing is known about this rule')
  legal, reason, most = _legality(name, n, f) if known else (None, '', None)
  kappa = resilience = None
  if legal:
    kappa = _robustness.kappa_bound(name, n, f)
    resilience = _robustness.resilience_bound(name, n, f)
  if known:
    # What holds for a rule alone does not behind stages that change messages.
    entries = [_facts.STAGES[stage] for stage in stages]
    if stages:
      facts += [fact for entry in entries for fact in entry.facts]
      facts.append(f'{last}, of what it is given: see its own certificate')
    else:
      facts += _facts.RULES[last].facts
      if last == 'monna' and legal:
        facts.insert(0, _monna(n, f))
    entries.append(_facts.RULES[last])
    sources += [source for entry in entries for source in entry.sources]
  return Certificate(
    name,
    n,
    f,
    legal,
    reason,
    most,
    kappa,
    lower,
    resilience,
    tuple(facts),
    tuple(dict.fromkeys(sources)),
  )


def _legality(name, n, f):
  """Whether the rule is made for n and f, why not, and the largest f."""
  stages, last = _names.split(name)
  most = _names.MAX_BYZANTINE[last](n)
  if most < 0:
    return False, f'needs num_workers >= 3, got {n}', None
  for stage in stages:
    if stage in _names.SPREADING:
      return None, f'depends on the argument of {stage}', None
  if f > most:
    return False, f'needs num_byzantine <= {most}, got {f}', most
  return True, '', most


def _monna(n, f):
  # One honest message is a part of the honest ones.
  kappa = _kappa.nearest_to_center(n, f, n - f, _kappa.part(n - f, 1))
  return (
    'if the reference worker is honest, the squared error is at most'
    f' {kappa:.4g} times the honest variance'
  )
