"""FoolsGold, FLAME and SignGuard against stored answers of other libraries.

`conformance/defences.npz` has inputs and outputs by the name of the case, and
its arguments in `entries`: of FL-Byzantine-Library 32922ca (flbl), FLPoison
368c940, and the official codes, DistributedML/FoolsGold 0aa5511 and
JianXu95/SignGuard e1fcafc.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import conformance_cases as stored
from tests import reference_defences

STORED = stored.load('defences')
ENTRIES = json.loads(str(STORED['entries']))
ROWS = 20


def _cases(operation):
  """`(case, arguments, messages [n, d], outputs by name)`; the only one is ''.

  What the peer refuses is left out.
  """
  found = []
  for name, entry in ENTRIES.items():
    if name.rsplit('/', 1)[0] == operation and 'raises' not in entry:
      start = f'{name}/out'
      outputs = {
        key.removeprefix(start).lstrip('/'): value
        for key, value in STORED.items()
        if key == start or key.startswith(f'{start}/')
      }
      found.append(
        (entry['case'], entry['args'], STORED[f'{name}/in'], outputs)
      )
  assert found
  return found


def _filled(x):
  """With NaN in place of missing messages, so that a rule compiles once."""
  return np.pad(x, [(0, ROWS - len(x)), (0, 0)], constant_values=np.nan)


def _check(actual, expected, case, relative=1e-6):
  """Agreement to a share of the largest number."""
  scale = np.abs(expected).max(initial=0)
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=relative * scale, err_msg=case
  )


def _compiled(rule):
  return jax.jit(lambda x, state, key: rule.inspect(x, state, key=key))


def _kept(info):
  return np.flatnonzero(info.kept).tolist()


# FoolsGold.


@jax.jit
def _trust(x, epsilon):
  rule = byzjax.fools_gold(num_workers=ROWS, reduce='sum', epsilon=epsilon)
  return rule.inspect(x, rule.init(x[0]))[2].weights


def _is_tiny(x):
  # scikit-learn takes no cosine of rows as short as that.
  return np.linalg.norm(x, axis=1).max() < 1e-14


@pytest.mark.parametrize(
  'operation, tolerance',
  [
    ('foolsgold_official/weights_deep', 1e-6),
    ('foolsgold_official/aggregate_ml', 1e-6),
    ('flpoison/foolsgold_pardoning', 1e-6),
    # Its epsilon is in the odds, a / (1 - a + 1e-5).
    ('flbl/foolsgold', 2e-3),
  ],
)
def test_fools_gold(operation, tolerance):
  with jax.enable_x64(True):
    for case, given, x, outputs in _cases(operation):
      epsilon = 0.0 if 'flbl' in operation else given.get('epsilon', 0.0)
      weights = np.asarray(_trust(_filled(x), epsilon))[: len(x)]
      if case == 'nan_row' or _is_tiny(x):
        continue
      if 'aggregate_ml' in operation:
        _check(weights @ x, outputs[''], case, tolerance)
      else:
        expected = outputs.get('weights', outputs.get(''))
        _check(weights, expected, case, tolerance)


# FLAME.


@functools.cache
def _flame():
  return _compiled(byzjax.flame(noise=0, middle='lower'))


def test_flame():
  with jax.enable_x64(True):
    for case, _, x, outputs in _cases('flbl/flame'):
      y, _, _ = _flame()(_filled(x), (), None)
      if _is_tiny(x):
        continue
      if case == 'opposites':
        np.testing.assert_allclose(y, outputs[''], atol=1e-12)
      else:
        _check(y, outputs[''], case)


def test_the_cluster_of_flame():
  with jax.enable_x64(True):
    operation = 'flpoison/flame_cosine_clustering'
    for case, _, x, outputs in _cases(operation):
      if _is_tiny(x):
        continue
      info = _flame()(_filled(x), (), None)[2]
      assert _kept(info) == outputs['kept'].tolist(), case


# SignGuard.


@functools.cache
def _starts(num_starts):
  """Keys, and the first coordinate of the window that is drawn from them."""
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_starts))
  return keys, np.asarray(drawn(keys)).tolist()


def _key_of(given, size):
  keys, starts = _starts(size - given['length'])
  return keys[starts.index(given['start'])]


@pytest.mark.parametrize(
  'operation, options',
  [
    ('flbl/signguard_meanshift', {'method': 'mean_shift'}),
    pytest.param(
      'flbl/signguard_dbscan', {'method': 'dbscan'}, marks=pytest.mark.slow
    ),
  ],
)
def test_sign_guard_of_flbl(operation, options):
  rule = _compiled(byzjax.sign_guard(fraction=0.5, **options))
  with jax.enable_x64(True):
    for case, given, x, outputs in _cases(operation):
      key = _key_of(given, 40)
      y, _, info = rule(_filled(x), (), key)
      assert _kept(info) == outputs['kept'].tolist(), case
      expected = outputs['aggregate']
      if case == 'all_zero' or case == 'nan_row':
        # 0 / 0, and the clipping of a row of NaN: all of it is NaN there.
        assert np.isnan(expected).any() and np.isfinite(y).all()
      elif case == 'opposites':
        np.testing.assert_allclose(y, expected, atol=1e-12)
      else:
        _check(y, expected, case)


def test_sign_guard_of_flpoison():
  rule = byzjax.sign_guard(fraction=0.5, method='dbscan', min_samples=3)
  rule = _compiled(rule)
  with jax.enable_x64(True):
    for case, given, x, outputs in _cases('flpoison/signguard_sets'):
      info = rule(_filled(x), (), _key_of(given, 40))[2]
      both = np.intersect1d(outputs['norm_kept'], outputs['sign_kept'])
      assert _kept(info) == both.tolist(), case


@pytest.mark.parametrize(
  'operation, feature',
  [
    ('signguard_sim', 'cosine'),
    pytest.param('signguard', 'signs', marks=pytest.mark.slow),
    pytest.param('signguard_dist', 'distance', marks=pytest.mark.slow),
  ],
)
def test_official_sign_guard(operation, feature):
  rule = byzjax.sign_guard(feature=feature)
  update = _compiled(rule)
  with jax.enable_x64(True):
    name = f'signguard_official/{operation}'
    for case, given, x, outputs in _cases(name):
      x = np.tile(x, (1, given['tile']))
      key, x = _key_of(given, x.shape[1]), _filled(x)
      if case == 'nan_row':
        continue  # which counts as a row of zeros there
      y, state, info = update(x, rule.init(x[0]), key)
      assert _kept(info) == outputs['kept'].tolist(), case
      first = outputs['aggregate']
      np.testing.assert_allclose(y, first, 1e-6, 1e-12, err_msg=case)
      if feature != 'signs':
        assert given['epochs'] == [0, 5]
        state = state._replace(step=jnp.int32(5))
      y, _, info = update(x, state, key)
      assert _kept(info) == outputs['second_kept'].tolist(), case
      np.testing.assert_allclose(
        y, outputs['second_aggregate'], 1e-6, 1e-12, err_msg=case
      )


def test_the_oracle_agrees():
  name = 'foolsgold_official/weights_deep'
  for case, _, x, outputs in _cases(name):
    if case != 'nan_row':
      weights = reference_defences.fools_gold_weights(x)
      _check(weights, outputs[''], case)
  for case, _, x, outputs in _cases('flpoison/flame_cosine_clustering'):
    if _is_tiny(x):
      continue
    cluster = reference_defences.flame_cluster(x)
    assert cluster == outputs['kept'].tolist(), case
