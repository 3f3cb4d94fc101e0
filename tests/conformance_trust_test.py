"""FLTrust, FABA, GAS and SCC against stored answers of other libraries.

`conformance/trust.npz` has inputs and outputs by the name of the case, and its
arguments in `entries`: of FL-Byzantine-Library 32922ca (flbl) and of the code
of the study of label poisoning, pengj97/LPA 0945d08 (lpa).
"""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax._src import grams
from byzjax.aggregators import _sequential_centered_clipping as scc
from tests import conformance_cases as stored
from tests import reference_trust

STORED = stored.load('trust')
ENTRIES = json.loads(str(STORED['entries']))


def cases(*operations):
  names = [k for k in ENTRIES if k.rsplit('/', 1)[0] in operations]
  assert names
  return pytest.mark.parametrize('name', names)


def check(actual, expected, x):
  actual = np.asarray(actual)
  assert actual.dtype == np.float64
  scale = min(1, np.abs(x).max(initial=0, where=np.isfinite(x)))
  np.testing.assert_allclose(actual, expected, 1e-6, 1e-7 * scale)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@cases('flbl/fl_trust')
def test_fl_trust(name):
  x, root = STORED[f'{name}/in'], STORED['root']
  expected = STORED[f'{name}/out']
  if not np.isfinite(expected).all():
    # A zero message or a NaN is left out here, and is its whole answer there.
    usable = np.isfinite(x).all(axis=1) & x.any(axis=1)
    assert not usable.all()
    expected = reference_trust.fl_trust(x[usable], root)
  rule = byzjax.fl_trust()
  actual, _ = rule.update(x, (), trusted=root)
  check(actual, expected, x)


@cases('lpa/faba_f1', 'lpa/faba_f2')
def test_faba(name):
  x, expected = STORED[f'{name}/in'], STORED[f'{name}/out']
  f = ENTRIES[name]['args']['removed']
  if not np.isfinite(expected).all():
    # There the mean is NaN, and then so is every distance: the first row goes.
    # Here the NaN goes first.
    usable = x[np.isfinite(x).all(axis=1)]
    expected = reference_trust.faba(usable, f - (len(x) - len(usable)))
  check(byzjax.faba(num_byzantine=f)(x), expected, x)


def _buckets(order, count):
  """Which bucket each worker is in."""
  bucket_of = np.zeros(len(order), int)
  for number, bucket in enumerate(np.array_split(order, count)):
    bucket_of[bucket] = number
  return bucket_of


def _later_buckets(x, v):
  """All divisions of the second round, whose draw is not stored."""
  # PyTorch's cosine takes no length for less than 1e-8.
  norms = np.maximum(np.linalg.norm(x, axis=1), 1e-8)
  cosines = x @ v / (norms * max(np.linalg.norm(v), 1e-8))
  # Of ties, any order.
  stretches = np.array_split(np.argsort(cosines, kind='stable'), 3)
  for drawn in itertools.product(
    *(itertools.permutations(range(len(s))) for s in stretches)
  ):
    bucket_of = np.zeros(len(x), int)
    for stretch, numbers in zip(stretches, drawn):
      bucket_of[stretch] = numbers
    yield bucket_of


def _clip(x, v, bucket_of, clip_means):
  gram, center = grams.gram_of(jnp.asarray(x), jnp.asarray(v))
  count = bucket_of.max() + 1
  a, _ = scc.clip_in_turn(gram, jnp.asarray(bucket_of), count, 1.0, clip_means)
  return np.asarray(center + a @ (x - center[None]))


@cases('flbl/scc', 'flbl/scc_avg')
def test_sequential_centered_clipping(name):
  x, entry = STORED[f'{name}/in'], ENTRIES[name]
  arguments = entry['args']
  clip_means = arguments['buck_avg']
  if 'raises' in entry:
    rule = byzjax.sequential_centered_clipping(radius=1.0)
    with pytest.raises(ValueError, match='num_workers >= bucket_size'):
      rule(jnp.asarray(x), key=jax.random.key(0))
    return
  assert (arguments['tau'], arguments['buck_len']) == (1.0, 3)
  order = np.array(arguments['order_first'])
  v = np.zeros(x.shape[1])
  v = _clip(x, v, _buckets(order, len(x) // 3), clip_means)
  check(v, STORED[f'{name}/out/first'], x)
  expected = STORED[f'{name}/out/second']
  scale = min(1, np.abs(x).max())
  fits = [
    bucket_of
    for bucket_of in _later_buckets(x, v)
    if np.allclose(
      reference_trust.sequential_clipping(
        x,
        v,
        1.0,
        [np.flatnonzero(bucket_of == b) for b in range(bucket_of.max() + 1)],
        clip_means,
      ),
      expected,
      1e-6,
      1e-7 * scale,
    )
  ]
  assert fits
  check(_clip(x, v, fits[0], clip_means), expected, x)


def _official_bulyan(f):
  """Where the mean of the values should be, that of distances: an error."""

  def update(x, state, params=None, **extra):
    del params, extra
    m = len(x) - 2 * f
    krum = byzjax.multi_krum(num_byzantine=f, num_selected=m)
    kept = krum.inspect(x, ())[2].kept
    best = x[jnp.argsort(~kept, stable=True)[:m]]
    median = jnp.sort(best, axis=0)[(m - 1) // 2]
    distances = jnp.sort(jnp.abs(best - median[None]), axis=0)
    return distances[: len(x) - 4 * f].mean(axis=0), state

  return byzjax.Aggregator(lambda params: (), update)


def _multi_krum(f):
  return byzjax.multi_krum(num_byzantine=f)


@functools.cache
def _gas(make, f, num_pieces):
  return jax.jit(
    lambda x, order: byzjax.gas(
      make(f), num_byzantine=f, num_pieces=num_pieces, permutation=order
    ).update(x, ())[0]
  )


@cases('flbl/gas_krum', 'flbl/gas_bulyan')
def test_gas(name):
  x, arguments = STORED[f'{name}/in'], ENTRIES[name]['args']
  expected = STORED[f'{name}/out']
  make = _multi_krum if 'krum' in name else _official_bulyan
  order = jnp.asarray(arguments['permutation'])
  answer = _gas(make, arguments['f'], arguments['chunks'])
  actual = answer(x, order)
  if not np.isfinite(x).all():
    # Not one of the n - f of least score here.
    assert np.isfinite(actual).all()
    if not np.isfinite(expected).all():
      return
  check(actual, expected, x)
