"""Faults that were found in other libraries: none of them is here.

In the order in which they were found, with the library that has each; the
tables of rules and attacks cover the same ground one row at a time. What is
asked of every rule (3, 5 and 6) is asked in `common_test.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

import byzjax
from byzjax._src import grams
from tests import filter_rows, reference, reference_rules, tables
from tests.aggregators import running
from tests.rounds import problem

N, SIZE = running.N, running.SIZE


# 1. ByzFL, ByzPy: a filter that does not end.


@functools.cache
def _filter():
  rule = byzjax.covariance_filter(num_byzantine=3)
  return jax.jit(lambda x: rule.update(x, rule.init(x[0]))[0])


@pytest.mark.parametrize('scale', [1, 30, 100, 1e3, 1e6, 1e12, 1e30])
def test_covariance_filter_ends_however_large_an_outlier_is(scale):
  x = np.random.default_rng(0).normal(size=(11, 64))
  honest = x[3:].copy()
  x[:3] *= scale
  result = _filter()(jnp.asarray(x, jnp.float32))
  center, radius = filter_rows.covariance_filter_ball(honest, None, 3)
  assert np.linalg.norm(result - center) <= radius


# 2. ByzFL: None for an answer.


def test_covariance_filter_answers_for_equal_messages():
  row = np.random.default_rng(1).normal(size=64)
  result = _filter()(jnp.asarray(np.tile(row, (11, 1)), jnp.float32))
  np.testing.assert_allclose(result, row, 1e-6)


def test_covariance_filter_answers_without_byzantine_workers():
  x = tables.random_messages(0)
  result = byzjax.covariance_filter(num_byzantine=0)(jnp.float32(x))
  np.testing.assert_allclose(result, x.mean(axis=0), 1e-5, 1e-6)


# 3. ByzFL: Krum returns the message with NaN, most others turn NaN.


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize(
  'mixer',
  [
    byzjax.nearest_neighbor_mixing(num_byzantine=3),
    byzjax.adaptive_clipping(num_byzantine=3),
    byzjax.clip_messages(max_norm=2.0),
  ],
  ids=lambda mixer: mixer.name,
)
def test_one_bad_message_spoils_no_other_before_the_rule(mixer, bad):
  x = tables.random_messages(2)
  x[4] = bad
  mixed = mixer.apply(jnp.asarray(x, jnp.float32), mixer.init(None))[0]
  assert np.isfinite(np.delete(mixed, 4, axis=0)).all()


# 4. ByzFL: in float32, distances lose their digits for more than 25 messages.


def _with_a_large_common_part():
  random = np.random.default_rng(3)
  common = 10 * random.choice([-1, 1], size=2000)
  return np.float32(common + 1e-2 * random.normal(size=(30, 2000)))


def test_a_common_part_takes_no_digits_from_distances():
  x = _with_a_large_common_part()
  gram, _ = jax.jit(grams.gram_of)(x)
  exact = np.float64(x)
  differences = exact[:, None] - exact[None]
  expected = np.einsum('ijk,ijk->ij', differences, differences)
  np.testing.assert_allclose(grams.squared_distances(gram), expected, 1e-4)


@pytest.mark.parametrize('num_neighbors', [None, 1])
def test_krum_picks_the_message_that_it_picks_in_float64(num_neighbors):
  x = _with_a_large_common_part()
  rule = byzjax.krum(num_byzantine=6, num_neighbors=num_neighbors)
  _, _, info = rule.inspect(jnp.asarray(x), ())
  scores = reference.krum_scores(np.float64(x), 6, num_neighbors)
  assert np.flatnonzero(info.weights).tolist() == [int(np.argmin(scores))]


# 5. ByzFL: answers that change from call to call, and are not the best subset.


@pytest.mark.parametrize(
  'make',
  [byzjax.covariance_filter, byzjax.smallest_max_eigenvalue_averaging],
  ids=lambda make: make.__name__,
)
def test_rules_of_eigenvectors_draw_nothing(make):
  x = jnp.asarray(tables.random_messages(5), jnp.float32)
  first, second = make(num_byzantine=3)(x), make(num_byzantine=3)(x)
  np.testing.assert_array_equal(first, second)


# 6. ByzFL: no start for centered clipping; clipping changes the caller's array.


@pytest.mark.parametrize('num_iterations', [1, 3])
def test_centered_clipping_starts_where_it_is_told(num_iterations):
  x, v0 = tables.random_messages(6), np.linspace(5, -5, SIZE)
  rule = byzjax.centered_clipping(radius=0.5, num_iterations=num_iterations)
  state = byzjax.CenteredClippingState(jnp.asarray(v0, jnp.float32))
  result, _ = rule.update(jnp.asarray(x, jnp.float32), state)
  expected = reference.centered_clipping(x, v0, 0.5, num_iterations)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@pytest.mark.parametrize(
  'mixer',
  [
    byzjax.adaptive_clipping(num_byzantine=3),
    byzjax.clip_messages(max_norm=0.1),
  ],
  ids=lambda mixer: mixer.name,
)
def test_clipping_changes_nothing_of_the_caller(mixer):
  x = np.float32(tables.random_messages(8))
  copy = x.copy()
  clipped = mixer.apply(x, mixer.init(None))[0]
  np.testing.assert_array_equal(x, copy)
  assert np.abs(np.asarray(clipped) - x).max() > 0.1


# 7. ByzFL: everything turns float32, or float64; no derivative of a median.


@running.all_rules
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_stay(rule, dtype):
  with jax.enable_x64(dtype == jnp.float64):
    aggregator = running.make(rule)
    result, _ = jax.eval_shape(
      lambda x: aggregator.update(x, aggregator.init(x[0]), key=running.KEY),
      jax.ShapeDtypeStruct((N, SIZE), dtype),
    )
  assert result.dtype == dtype


def test_an_attack_of_inf_keeps_the_dtype():
  x = jnp.ones((5, 3), jnp.bfloat16)
  attack = byzjax.constant(value=jnp.inf)
  sent, _ = attack.apply(x, attack.init(None), is_byzantine=jnp.arange(5) < 2)
  assert sent.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'rule',
  [
    byzjax.geometric_median(num_iterations=8, smoothing=0.1),
    byzjax.centered_clipping(radius=1.0),
    byzjax.centered_clipping(radius=1.0, num_iterations=3),
    byzjax.trimmed_mean(num_byzantine=2),
    byzjax.multi_krum(num_byzantine=2),
    byzjax.comparative_gradient_elimination(num_byzantine=2),
    byzjax.clipped_clustering(),
  ],
  ids=repr,
)
def test_derivatives(rule):
  with jax.enable_x64(True):
    x = jnp.asarray(tables.random_messages(9)[:, :3])

    def aggregate(x):
      return rule.update(x, rule.init(jnp.zeros(3)))[0]

    test_util.check_grads(
      jax.jit(aggregate), (x,), order=1, modes=['rev'], atol=1e-6, rtol=1e-6
    )


# 8. ByzFL: more attackers are drawn than the rule stands; momentum is ignored.


def test_no_round_draws_more_attackers_than_declared():
  schedule = byzjax.random_byzantine(N, 3, jax.random.key(0))
  drawn = jax.vmap(schedule)(jnp.arange(200))
  np.testing.assert_array_equal(drawn.sum(axis=1), 3)
  assert drawn.any(axis=0).all()


def test_a_majority_of_attackers_is_refused():
  with pytest.raises(ValueError, match='num_workers > 2 . num_byzantine'):
    problem.training(byzantine=8)  # of 16


def test_momentum_of_workers_is_used():
  plain = problem.training()
  rounds = problem.training(worker=byzjax.worker_momentum(0.9))
  step = jax.jit(rounds.step)
  first, second = problem.batch(seed=0), problem.batch(seed=1)

  def moved(before, after):
    return problem.flat(after.params) - problem.flat(before.params)

  start = rounds.init(problem.params())
  middle, _ = step(start, first, problem.KEY)
  end, _ = step(middle, second, problem.KEY)
  without = plain.init(middle.params)
  after, _ = jax.jit(plain.step)(without, second, problem.KEY)
  np.testing.assert_allclose(
    moved(middle, end),
    0.9 * moved(start, middle) + 0.1 * moved(without, after),
    1e-3,
    1e-6,
  )


# 9. ByzFL: an attack that searches calls the whole rule again and again.


def test_a_search_is_one_batch_of_the_rule():
  traced = []

  def uniform(gram):
    traced.append(gram)
    return gram.mask / gram.mask.sum()

  attack = byzjax.adaptive(
    byzjax.sign_flip(), byzjax.from_weights(uniform), num_refinements=0
  )
  x = jnp.asarray(tables.random_messages(10), jnp.float32)
  jax.eval_shape(
    lambda x: attack.apply(
      x, attack.init(x[0]), is_byzantine=jnp.arange(N) < 3
    ),
    x,
  )
  assert 1 <= len(traced) <= 3  # and not once for each of 21 strengths


# Elsewhere.


def test_z_follows_n_and_f():
  # Garfield: always that of another n and f.
  assert byzjax.alie_factor(20, 8) == pytest.approx(0.674, abs=1e-3)
  assert byzjax.alie_factor(50, 24) == pytest.approx(1.426, abs=1e-3)


def test_multi_krum_is_a_mean_and_no_sum():
  # epfml.
  rule = byzjax.multi_krum(num_byzantine=2, num_selected=4)
  np.testing.assert_array_equal(rule(jnp.full((9, 2), 3.0)), [3.0, 3.0])


def test_bulyan_scores_what_remains_anew():
  # Garfield, ByzantineMomentum: scores as they were before the first pick.
  x = tables.random_messages(13)
  lowest = np.argsort(reference.krum_scores(x, 2))[: N - 4]
  stale = reference_rules.mean_around_median(x[lowest], 0, N - 8)
  expected = reference_rules.bulyan(x, 2)
  assert np.abs(stale - expected).max() > 0.01
  result = byzjax.bulyan(num_byzantine=2)(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


def test_min_max_stays_within_its_bound():
  # Blades: a little outside.
  x = jnp.asarray(tables.random_messages(11), jnp.float32)
  attack = byzjax.min_max()
  sent, _ = attack.apply(x, attack.init(x[0]), is_byzantine=jnp.arange(N) < 3)
  sent, honest = np.float64(sent[0]), np.float64(x[3:])
  diameter = np.linalg.norm(honest[:, None] - honest[None], axis=2).max()
  farthest = np.linalg.norm(honest - sent, axis=1).max()
  assert diameter * (1 - 1e-3) < farthest <= diameter * (1 + 1e-6)


def test_the_median_of_an_even_number_is_between_the_middle_two():
  # ByzPy, Garfield: the lower one.
  rule = byzjax.coordinate_median()
  assert rule(jnp.array([0.0, 9.0, 1.0, 2.0])) == 1.5


def test_clusters_are_of_messages_that_are_alike():
  # Old Blades: a similarity for a distance.
  x = np.array([[1, 0], [-1, 0.2], [1, 0.3], [-1, 0], [1, 0.1]])
  for rule in (byzjax.clustering(), byzjax.clipped_clustering()):
    _, _, info = rule.inspect(jnp.asarray(x), rule.init(jnp.zeros(2)))
    np.testing.assert_array_equal(info.kept, [1, 0, 1, 0, 1])


@running.all_rules
def test_nothing_runs_on_the_host(rule):
  # ymir: Krum in NumPy, one client after another.
  aggregator = running.make(rule)
  program = jax.jit(
    lambda x: aggregator.update(x, aggregator.init(x[0]), key=running.KEY)
  ).lower(jax.ShapeDtypeStruct((N, SIZE), jnp.float32))
  assert 'callback' not in program.as_text()
