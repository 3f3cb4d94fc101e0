"""LASA against a loop, against other libraries, and where it is degenerate.

It judges leaf by leaf, so it has no row in the tables of rules on matrices.
`conformance/lasa.npz` has what the official code (lasa_official), FLPoison and
FL-Byzantine-Library (flbl) answer.
"""

import json
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax.aggregators import _lasa
from tests import conformance_cases as stored

STORED = stored.load('lasa')
ENTRIES = json.loads(str(STORED['entries']))
SHAPES = {'a': (4, 6), 'b': (8,), 'c': (2, 4)}
ROWS = 20
PLANE = jnp.array(
  [[1.0, 0], [0, 1], [1, 1], [2, 1], [1, 2], [10, -10], [10, -10]]
)


def tree(x, shapes):
  """The rows `[n, d]` as leaves `[n, *shape]`."""
  leaves, start = {}, 0
  for name, shape in shapes.items():
    stop = start + math.prod(shape)
    leaves[name] = jnp.reshape(x[:, start:stop], (len(x), *shape))
    start = stop
  return leaves


def near(values, bound):
  median, spread = statistics.median(values), np.std(values)
  if np.ptp(values) == 0:
    return [True] * len(values)
  return [abs(v - median) < bound * spread for v in values]


def oracle(x, shapes, sparsity, norm_bound, sign_bound):
  """Row by row and leaf by leaf; flat leaves `[size]` by name."""
  x = [row for row in np.asarray(x, np.float64) if np.all(np.isfinite(row))]
  norms = [np.linalg.norm(row) for row in x]
  limit = statistics.median_low(norms)
  x = [r * min(1, limit / m) if m > 0 else r for r, m in zip(x, norms)]
  leaves = [
    {k: np.asarray(v)[0] for k, v in tree(row[None], shapes).items()}
    for row in x
  ]
  if sparsity:
    for row in leaves:
      large = [k for k, v in row.items() if v.ndim >= 2]
      every = sorted(abs(v) for k in large for v in row[k].ravel())[::-1]
      threshold = every[math.floor((1 - sparsity) * len(every)) - 1]
      for k in large:
        row[k] = np.where(abs(row[k]) > threshold, row[k], 0)
  found = {}
  for k in shapes:
    rows = [row[k].ravel() for row in leaves]
    balance = [np.sign(r).sum() / max(abs(np.sign(r)).sum(), 1) for r in rows]
    by_norm = near([np.linalg.norm(r) for r in rows], norm_bound)
    both = [a and b for a, b in zip(by_norm, near(balance, sign_bound))]
    kept = [r for r, ok in zip(rows, both) if ok] or rows
    found[k] = np.mean(kept, axis=0)
  return found


@jax.jit
def compiled(x, norm_bound, sign_bound):
  rule = byzjax.lasa(max_norm_score=norm_bound, max_sign_score=sign_bound)
  return rule.inspect(tree(x, SHAPES), ())


def filled(x):
  """With NaN in place of missing messages, so that it compiles once."""
  return np.pad(x, [(0, ROWS - len(x)), (0, 0)], constant_values=np.nan)


def flat(leaves):
  return np.concatenate([np.ravel(leaves[k]) for k in SHAPES])


@pytest.mark.parametrize('n, bounds', [(20, (1.0, 1.0)), (7, (2.0, 0.5))])
def test_a_loop_says_the_same(n, bounds):
  with jax.enable_x64(True):
    for seed in range(5):
      x = np.random.default_rng(seed).normal(0.3, 1, (n, 40))
      x[:2] *= 20
      y, _, _ = compiled(filled(x), *bounds)
      expected = oracle(x, SHAPES, 0.3, *bounds)
      np.testing.assert_allclose(flat(y), flat(expected), 1e-9, 1e-12)


def answers(operation):
  """`(case, arguments, messages, answer)` of all that the peer answered."""
  out = 'out/kept' if 'flpoison' in operation else 'out'
  found = [
    (
      entry['case'],
      dict(entry['args']),
      STORED[f'{name}/in'],
      STORED[f'{name}/{out}'],
    )
    for name, entry in ENTRIES.items()
    if name.rsplit('/', 1)[0] == operation and 'raises' not in entry
  ]
  assert found
  return found


def check(actual, expected, case, x):
  scale = np.nanmax(np.abs(x))
  np.testing.assert_allclose(actual, expected, 0, 1e-6 * scale, err_msg=case)


def test_the_official_code():
  with jax.enable_x64(True):
    for case, given, x, expected in answers('lasa_official/lasa'):
      assert given.pop('shapes') == {k: list(v) for k, v in SHAPES.items()}
      assert given == {'sparsity': 0.3, 'lambda_n': 1.0, 'lambda_s': 1.0}
      y, _, _ = compiled(filled(x), 1.0, 1.0)
      if case == 'n2':
        continue  # Both are one deviation from the median: rounding decides.
      if case == 'all_zero':
        assert np.isnan(expected).all() and not flat(y).any()
        continue
      check(flat(y), expected, case, x)


def test_another_library_without_sparsity():
  with jax.enable_x64(True):
    # With nothing made sparse its factor of the signs is zero.
    given = {'sparsity': 0.0, 'max_sign_score': math.inf}
    rule = jax.jit(lambda x: byzjax.lasa(**given)(tree(x, SHAPES)))
    for case, _, x, expected in answers('flbl/lasa_keep1.0'):
      y = flat(rule(filled(x)))
      if case in ('zero_row', 'nan_row'):
        assert np.isnan(expected).all() and np.isfinite(y).all()
        continue
      check(y, expected, case, x)


def test_the_scores_of_a_third():
  for case, given, x, expected in answers('flpoison/lasa_mz_score_of_norms'):
    if case == 'nan_row':
      assert not len(expected)  # Its mean is NaN, and nobody is near.
      continue
    norms, mask = np.linalg.norm(x, axis=1), np.isfinite(x).all(axis=1)
    kept = _lasa.is_near(jnp.asarray(norms), jnp.asarray(mask), given['bound'])
    assert np.flatnonzero(kept).tolist() == np.sort(expected).tolist(), case


@pytest.mark.parametrize(
  'bound, kept, answer', [(1.0, [3, 4], 1.5), (2.0, [2, 3, 4], 4 / 3)]
)
def test_golden(bound, kept, answer):
  rule = byzjax.lasa(max_norm_score=bound, max_sign_score=bound)
  y, _, info = rule.inspect(PLANE, ())
  np.testing.assert_allclose(y, [answer, answer], 1e-6)
  assert np.flatnonzero(info.kept).tolist() == kept
  np.testing.assert_array_equal(info.scores, 1.0 - np.isin(range(7), kept))
  np.testing.assert_allclose(info.factors[-1], math.sqrt(5) / 10 / math.sqrt(2))


def test_all_alike_are_all_kept():
  y, _, info = compiled(np.ones((ROWS, 40), np.float32), 1.0, 1.0)
  assert info.kept.all() and not info.scores.any()
  # Ties with the threshold go: of equal numbers nothing is the largest.
  expected = [0.0] * 24 + [1.0] * 8 + [0.0] * 8
  np.testing.assert_allclose(flat(y), expected, 1e-6)


@pytest.mark.parametrize('lie', [np.nan, np.inf, 1e30, -1e38])
def test_hostile_values(lie):
  x = np.random.default_rng(0).normal(0.3, 1, (ROWS, 40)).astype(np.float32)
  x[3, 5], x[9] = lie, lie
  y, _, info = compiled(x, 1.0, 1.0)
  assert np.isfinite(flat(y)).all()
  assert np.linalg.norm(flat(y)) <= np.linalg.norm(x[0]) * 2
  assert not info.mask[3] and not info.mask[9] and info.mask.sum() == 18
  all_lost, _, info = compiled(np.full((ROWS, 40), lie, np.float32), 1.0, 1.0)
  assert not flat(all_lost).any() and not info.kept.any()


def test_order_and_scale_do_not_matter():
  x = np.random.default_rng(1).normal(0.3, 1, (ROWS, 40)).astype(np.float32)
  order = np.random.default_rng(2).permutation(ROWS)
  y = flat(compiled(x, 1.0, 1.0)[0])
  np.testing.assert_allclose(flat(compiled(x[order], 1.0, 1.0)[0]), y, 1e-5)
  np.testing.assert_allclose(flat(compiled(x * 8, 1.0, 1.0)[0]), 8 * y, 1e-6)


@pytest.mark.parametrize(
  'argument, value',
  [
    ('sparsity', 1.5),
    ('sparsity', jnp.float32(0.3)),
    ('max_norm_score', 0.0),
    ('max_sign_score', -1.0),
  ],
)
def test_wrong_arguments(argument, value):
  with pytest.raises(ValueError, match=f'lasa needs {argument}'):
    byzjax.lasa(**{argument: value})


def test_a_mesh_is_refused():
  mesh = jax.make_mesh((2,), ('w',), (jax.sharding.AxisType.Auto,))
  rule = byzjax.worker_sharded(byzjax.lasa(), 'w')
  with pytest.raises(ValueError, match='lasa needs whole leaves'):
    jax.eval_shape(
      jax.shard_map(
        lambda x: rule.update(x, rule.init(x[0]))[0],
        mesh=mesh,
        in_specs=jax.P('w'),
        out_specs=jax.P(),
      ),
      PLANE[:6],
    )


def test_a_round_needs_the_leaves():
  params = {k: jnp.zeros(shape) for k, shape in SHAPES.items()}
  x = tree(
    jnp.asarray(np.random.default_rng(3).normal(0.3, 1, (7, 40))), SHAPES
  )

  def training(**given):
    return byzjax.robust_round(
      lambda w, one: sum(jnp.vdot(w[k], one[k]) for k in w),
      num_workers=7,
      aggregator=byzjax.lasa(**given),
      optimizer=optax.sgd(1.0),
    )

  told = training(like=params)
  state, _ = told.step(told.init(params), x, jax.random.key(0))
  expected = jax.tree.map(jnp.negative, byzjax.lasa()(x))
  jax.tree.map(np.testing.assert_array_equal, state.params, expected)
  blind = training()
  with pytest.raises(ValueError, match='lasa needs like=params in a round'):
    jax.eval_shape(blind.step, blind.init(params), x, jax.random.key(0))
  other = training(like=jnp.zeros(41))
  with pytest.raises(ValueError, match='as a message, got 41 for 40'):
    jax.eval_shape(other.step, other.init(params), x, jax.random.key(0))
