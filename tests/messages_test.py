"""What messages, masks and weights must be, and what is said of others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax._src import reductions
from tests import tables

N = tables.NUM_WORKERS
VECTORS = [jnp.float32([i, i]) for i in range(5)]
every_rule = pytest.mark.parametrize('row', tables.RULES, ids=lambda r: r.name)


@every_rule
def test_a_list_of_messages_is_refused(row):
  with pytest.raises(ValueError, match=r'list of 5 trees .* byzjax\.stack'):
    row.make(1, 1.0)(VECTORS)


@pytest.mark.parametrize(
  'messages',
  [
    tuple(VECTORS),
    [{'w': jnp.zeros(2), 'b': jnp.zeros([])}] * 3,
    [1.0, 2.0, 3.0],
  ],
)
def test_other_lists_of_messages(messages):
  with pytest.raises(ValueError, match=r'byzjax\.stack'):
    byzjax.coordinate_median()(messages)
  with pytest.raises(ValueError, match=r'byzjax\.stack'):
    byzjax.alie(z=1.0)(messages, is_byzantine=[True] + [False] * 4)


def test_lists_that_are_parameters_will_do():
  layers = [jnp.ones([5, 2]), jnp.ones([5, 3])]
  assert [x.shape for x in byzjax.mean()(layers)] == [(2,), (3,)]
  # Of equal shapes: there the parameters say what is meant.
  layers, rule = [jnp.ones([5, 2])] * 2, byzjax.mean()
  params = [jnp.zeros(2)] * 2
  aggregate, _ = rule.update(layers, rule.init(params), params)
  assert [x.shape for x in aggregate] == [(2,), (2,)]


def test_stack():
  stacked = byzjax.stack(VECTORS)
  np.testing.assert_array_equal(stacked, np.stack(VECTORS))
  trees = [{'w': v, 'b': v[0]} for v in VECTORS]
  assert byzjax.stack(trees)['b'].shape == (5,)
  assert byzjax.krum(num_byzantine=1)(stacked).shape == (2,)


@pytest.mark.parametrize(
  'messages, message',
  [
    ([], 'a list of at least one tree'),
    (jnp.ones([3, 2]), 'a list of at least one tree'),
    ([jnp.zeros(2), jnp.zeros(3)], r'\[3\]\] in messages\[1\] and \[\[2\]'),
    ([jnp.zeros(2), {'w': jnp.zeros(2)}], r'in messages\[1\]'),
  ],
)
def test_what_cannot_be_stacked(messages, message):
  with pytest.raises(ValueError, match=message):
    byzjax.stack(messages)


@every_rule
def test_a_forgotten_vmap_is_seen_where_the_parameters_are_known(row):
  optimizer = optax.chain(row.make(1, 1.0), optax.sgd(0.1))
  params = {'w': jnp.zeros([8, 2]), 'b': jnp.zeros(8)}
  update = functools.partial(optimizer.update, key=jax.random.key(0))
  with pytest.raises(ValueError, match=r'did you forget jax\.vmap'):
    jax.eval_shape(update, params, optimizer.init(params), params)


def test_messages_for_other_parameters_are_refused():
  rule, params = byzjax.mean(), {'w': jnp.zeros(3)}
  with pytest.raises(ValueError, match='structure of the parameters'):
    rule.update({'v': jnp.zeros([4, 3])}, rule.init(params), params)


@every_rule
def test_complex_messages_are_refused(row):
  x = jnp.ones([N, 3], jnp.complex64)
  rule = row.make(1, 1.0)
  with pytest.raises(ValueError, match='needs real numbers, .* complex64'):
    jax.eval_shape(lambda x: rule(x, key=jax.random.key(0)), x)


def test_complex_parameters_of_a_round_are_refused():
  training = byzjax.robust_round(
    lambda params, batch: jnp.sum(jnp.abs(params)),
    num_workers=3,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(0.1),
  )
  with pytest.raises(ValueError, match='to be real numbers, .* complex64'):
    training.init(jnp.zeros(3, jnp.complex64))


@pytest.mark.parametrize('n', [1, 3, 7, 11, 50, 200])
def test_the_mean_of_equal_rows_is_that_row(n):
  mean = jax.jit(lambda x: byzjax.mean()(x))
  weighted = jax.jit(
    lambda x, weights: byzjax.mean()(x, worker_weights=weights)
  )
  weights = np.arange(1.0, n + 1, dtype=np.float32)
  for value in (1.0, 0.1, -1 / 3, 3e38, 1e-37):
    x = np.full([n, 3], value, np.float32)
    np.testing.assert_array_equal(mean(x), x[0])
    np.testing.assert_array_equal(weighted(x, weights), x[0])
    if n > 2:
      broken = x.copy()
      broken[0], broken[2, 1] = np.nan, np.inf
      np.testing.assert_array_equal(mean(broken), x[1])


def test_the_mean_of_other_rows_is_what_it_was():
  x = np.random.default_rng(0).normal(size=(11, 500)).astype(np.float32)
  shares = jnp.full(11, 1 / 11)
  np.testing.assert_array_equal(
    byzjax.mean()(x), jax.jit(reductions.weighted_sum)(shares, x)
  )
  gradient = jax.grad(lambda x: byzjax.mean()(x).sum())
  for rows in (x, np.ones_like(x)):
    np.testing.assert_allclose(gradient(rows), np.full_like(x, 1 / 11), 1e-6)


WEIGHTED = [
  row
  for row in tables.RULES
  if row.name
  in (
    'mean',
    'geometric_median',
    'centered_clipping',
    'coordinate_median',
    'trimmed_mean',
    'nnm_trimmed_mean',
  )
]


@pytest.mark.parametrize('row', WEIGHTED, ids=lambda r: r.name)
def test_weights_that_are_no_numbers(row):
  rule, n = row.make(1, 1.0), 7
  x = jnp.asarray(np.random.default_rng(0).normal(size=(n, 3)), jnp.float32)
  ones = jnp.ones(n)

  @jax.jit
  def weighted(weights):
    return rule.update(x, rule.init(x[0]), worker_weights=weights)[0]

  for bad in (np.inf, np.nan, -1.0):
    with pytest.raises(ValueError, match='worker_weights to be finite, >= 0'):
      rule(x, worker_weights=np.where(np.arange(n) == 2, bad, 1.0))
    # At run time it is the adversary's move: such a worker has no weight.
    np.testing.assert_array_equal(
      weighted(ones.at[2].set(bad)), weighted(ones.at[2].set(0.0))
    )
  for scale in (3e38, 1e-37):  # the sum over- or underflows
    np.testing.assert_allclose(
      weighted(ones * scale), weighted(ones), 1e-5, 1e-6
    )
  with pytest.raises(ValueError, match='not all zero'):
    rule(x, worker_weights=np.zeros(n))


def test_a_worker_whose_weight_is_no_number_takes_no_part_in_a_round():
  def step(bad):
    training = byzjax.robust_round(
      lambda params, batch: jnp.sum((params - batch) ** 2),
      num_workers=3,
      worker=byzjax.worker_momentum(0.9),
      aggregator=byzjax.mean(),
      optimizer=optax.sgd(0.1),
      worker_weights=lambda step: jnp.array([1.0, 1.0, 0.0]).at[2].add(bad),
    )
    batch = jnp.arange(6.0).reshape(3, 2)
    state = training.init(jnp.zeros(2))
    return jax.jit(training.step)(state, batch, jax.random.key(0))

  expected = step(0.0)
  for bad in (np.inf, np.nan):
    jax.tree.map(np.testing.assert_array_equal, step(bad), expected)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: byzjax.centered_clipping(radius=None), 'radius .* got None'),
    (lambda: byzjax.centered_clipping(radius='1'), "radius .* got '1'"),
    (lambda: byzjax.centered_clipping(radius=1j), 'radius to be a real'),
    (lambda: byzjax.centered_clipping(radius=True), 'radius .* got True'),
    (
      lambda: byzjax.centered_clipping(radius=jnp.ones(2)),
      r'radius to be one real number, got an array of shape \[2\]',
    ),
    (lambda: byzjax.geometric_median(smoothing='small'), 'smoothing .*small'),
    (lambda: byzjax.krum(num_byzantine=1.0), 'num_byzantine .* got 1.0'),
    (lambda: byzjax.krum(num_byzantine=True), 'num_byzantine .* got True'),
    (lambda: byzjax.krum(num_byzantine=np.float32(1)), 'num_byzantine'),
  ],
)
def test_hyper_parameters_of_a_wrong_type_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()
