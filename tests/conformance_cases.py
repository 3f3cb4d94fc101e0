"""Stored answers of other libraries: reading them and comparing with them."""

import collections
import functools
import json
import pathlib

import jax
import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'conformance'


@functools.cache
def load(name):
  with np.load(FOLDER / f'{name}.npz') as arrays:
    return dict(arrays)


@functools.cache
def by_operation():
  cases = collections.defaultdict(list)
  manifest = json.loads((FOLDER / 'manifest.json').read_text())
  for case in manifest['cases']:
    cases[case['peer'], case['op']].append(case)
  return dict(cases)


def is_float32(case):
  return case['peer'] == 'byzfl_torch_f32'


def messages(case):
  dtype = np.float32 if is_float32(case) else np.float64
  return load('inputs')[case['input']].astype(dtype)


def params(case, n):
  given = dict(case['params'])
  assert given.pop('n', n) == n
  return given


def output(case, name=None):
  return load(case['peer'])[case['outputs'][name] if name else case['output']]


def tolerances(case):
  if is_float32(case):
    return {'rtol': 2e-5, 'atol': 1e-5}
  x = messages(case)
  # An absolute tolerance above the values themselves would test nothing.
  scale = min(1, np.abs(x).max(initial=0, where=np.isfinite(x)))
  loose = case['input'].startswith(('offset', 'outlier'))
  return {'rtol': 1e-7 if loose else 1e-9, 'atol': 1e-10 * scale}


def check(case, actual, expected, **changed):
  if not is_float32(case):
    assert np.asarray(actual).dtype == np.float64, case['id']
  np.testing.assert_allclose(
    actual,
    expected,
    **(tolerances(case) | changed),
    err_msg=f'{case["id"]} {case["input"]} {case["params"]}',
  )


def check_bounded(case, actual):
  """Where the peer answers NaN: ours lies among the usable messages."""
  x = messages(case)
  usable = x[np.isfinite(x).all(axis=1)]
  actual, slack = np.asarray(actual), tolerances(case)['atol']
  assert (actual >= usable.min(axis=0) - slack).all(), case['id']
  assert (actual <= usable.max(axis=0) + slack).all(), case['id']


def is_one_of(case, actual, candidates):
  close = [
    np.allclose(actual, candidate, **tolerances(case))
    for candidate in candidates
  ]
  return any(close)


def tie_tolerance(case):
  return 1e-5 if is_float32(case) else 1e-9


def once(rule, x):
  """The rule from a fresh state, uncompiled: nearly every case is a new one."""
  return rule.update(x, rule.init(x[0]))[0]


@functools.cache
def _compiled(make, params):
  rule = make(**dict(params))

  @jax.jit
  def inspect(x):
    aggregate, _, info = rule.inspect(x, rule.init(x[0]))
    return aggregate, info

  return inspect


def compiled(x, make, **params):
  """What the rule `make(**params)` answers, and its info.

  Compiled once a shape, for rules that search. Zero coordinates change neither
  distances nor norms nor other coordinates; with them there are fewer shapes.
  """
  wide = np.pad(x, [(0, 0), (0, -x.shape[1] % 64)])
  aggregate, info = _compiled(make, tuple(params.items()))(wide)
  assert not np.any(aggregate[x.shape[1] :])
  return aggregate[: x.shape[1]], info
