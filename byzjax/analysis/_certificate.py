"""Certificates: the proved properties of a rule for given n and f."""

import math
from typing import NamedTuple

import jax

from byzjax._src import base, checks, recipes
from byzjax.analysis import _facts
from byzjax.theory import _kappa, _names, _robustness


class Certificate(NamedTuple):
  """The known properties of a rule; `print` shows them as a table.

  Attributes:
    rule: its name.
    num_workers: n.
    num_byzantine: f.
    legal: whether the rule is defined for these n and f; None if that depends
      on an unknown argument.
    reason: why it is not legal, or why not known; empty if legal.
    max_byzantine: the largest f for which the rule is defined with these
      arguments, or None.
    kappa_upper: a proved kappa; inf if none exists; None if nothing is known.
    kappa_lower: a lower bound on kappa for any rule; inf for n <= 2f.
    resilience: a proved lambda; inf or None as for kappa.
    facts: properties that hold for all messages.
    sources: authors, year, and identifier.
    arguments: the calls that make the certified rule; for a name, with
      `num_byzantine=f` and the default arguments.
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
  arguments: str = ''

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
      ('made by', self.arguments),
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


_UNKNOWN = (None, 'no factory of byzjax made it as it is', None)


def certificate(
  rule: str | base.Aggregator, num_workers: int, num_byzantine: int
) -> Certificate:
  """The proved properties of a rule with n messages, f of them Byzantine.

  kappa is that of `(f, kappa)`-robustness, `|aggregate - xbar|^2 <= kappa / |S|
  sum_{i in S} |x_i - xbar|^2` for all messages and all sets S of n - f of them,
  and lambda that of `(f, lambda)`-resilience, with the largest distance in S:
  see `byzjax.theory`, which has the proofs.

  An `Aggregator` is certified with the arguments that it was made with
  (`rule.config`): if no proof covers them, the certificate says "nothing
  known". A name stands for the rule with `num_byzantine=f` and its default
  arguments. The row "made by" shows these. Numbers are for the rule without
  worker weights. Nothing is known about a rule that is not in byzjax, or that
  was changed after it was made, and its certificate says so.

  Args:
    rule: an `Aggregator`, or its name: 'krum', or with pre-aggregators as in
      'nearest_neighbor_mixing + krum'.
    num_workers: n, a Python int.
    num_byzantine: f, a Python int.

  Returns:
    A `Certificate`.

  Raises:
    ValueError: if n is not a positive int or f not a non-negative one; if the
      rule or one of its pre-aggregators was made for another f. (A rule after
      `resampling(num_samples=s)` must be made for `f s`.)

  References:
    The sources that the certificate names.

  Example:
    >>> import byzjax
    >>> print(byzjax.analysis.certificate('trimmed_mean', 11, 2))
    rule      trimmed_mean
    made by   trimmed_mean(num_byzantine=2), by default
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
  n, f = num_workers, num_byzantine
  checks.check_count('certificate', 'num_workers', n, 1)
  checks.check_count('certificate', 'num_byzantine', f)
  parts = _names.parts_of('certificate', rule, f)
  _names.check_made_for('certificate', parts, n, f)
  lower = math.inf if n <= 2 * f else _robustness.kappa_lower_bound(n, f)
  known = _names.are_known(parts)
  legal, reason, most = _legality(rule, parts, n, f) if known else _UNKNOWN
  kappa = resilience = None
  if legal:
    kappa = _robustness.kappa_bound(rule, n, f)
    resilience = _robustness.resilience_bound(rule, n, f)
  entries = [_entry(part) for part in parts] if known else []
  sources = [source for entry in entries for source in entry.sources]
  return Certificate(
    _names.rule_name(rule),
    n,
    f,
    legal,
    reason,
    most,
    kappa,
    lower,
    resilience,
    _facts_of(parts, entries, n, f, legal, kappa),
    tuple(dict.fromkeys(sources)),
    _arguments(rule, parts) if known else '',
  )


def _entry(part):
  return (_facts.RULES | _facts.STAGES)[part.name]


def _facts_of(parts, entries, n, f, legal, kappa):
  """What holds of the rule as it is."""
  if not entries:
    return ('nothing is known about this rule',)
  *stages, last = parts
  facts: list[str] = []
  if legal and kappa is None and not all(part.is_default() for part in parts):
    facts.append('no bound is proved for these arguments')
  # What holds for a rule alone does not behind stages that change messages.
  shown = zip(stages, entries) if stages else zip(parts, entries)
  facts += [
    fact for part, entry in shown for fact in entry.of(part.is_default())
  ]
  if stages:
    facts.append(f'{last.name}, of what it is given: see its own certificate')
  elif last.name == 'monna' and legal:
    facts = [*_monna(last, n, f), *facts]
  return tuple(facts)


def _arguments(rule, parts):
  """The calls that make the parts."""
  calls = ' + '.join(f'{part.name}({_shown(part)})' for part in parts)
  return f'{calls}, by default' if isinstance(rule, str) else calls


def _shown(part):
  given = {name: recipes.show_value(v) for name, v in part.config.items()}
  # What a name does not tell.
  missing = {name: '...' for name in _names.required(part.name)}
  return ', '.join(f'{k}={v}' for k, v in (missing | given).items())


def _legality(rule, parts, n, f):
  """Whether the rule is made for n and f, why not, and the largest f."""
  *stages, last = parts
  unknown = _names.depends(parts)
  most = _names.max_of(parts[-1:] if unknown else parts, n)
  if most < 0:
    if not stages:
      return False, f'needs num_workers >= 3, got {n}', None
    return False, f'needs more workers than {n}', None
  if unknown:
    return None, f'depends on the argument of {unknown.name}', None
  if f > most:
    return False, f'needs num_byzantine <= {most}, got {f}', most
  refused = None if isinstance(rule, str) else _refusal(rule, n)
  return refused is None, refused or '', most


def _refusal(rule, n):
  """Why a rule refuses n messages, or None if it takes them."""

  def once(messages):
    state = rule.init(messages[0])
    known = {'key': jax.random.key(0), 'trusted': messages[0]}
    return rule.update(messages, state, **known)[0]

  try:
    jax.eval_shape(once, jax.ShapeDtypeStruct((n, 1), 'float32'))
  except ValueError as error:
    return str(error)
  return None


def _monna(part, n, f):
  count = part.config['num_selected'] or n - f
  if count > n - f:
    return ()
  # One honest message is a part of the honest ones.
  kappa = _kappa.nearest_to_center(n, f, count, _kappa.part(n - f, 1))
  return (
    'if the reference worker is honest, the squared error is at most'
    f' {kappa:.4g} times the honest variance',
  )
