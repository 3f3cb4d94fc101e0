"""Rules that filter by covariance, norm or direction: what is theirs alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax.aggregators import _divide_and_conquer
from tests import filter_rows, reference, reference_rules, tables
from tests.aggregators import calls

N, SIZE = tables.NUM_WORKERS, tables.SIZE
KEY = jax.random.key(3)


# The covariance filter.


def test_the_mean_is_remembered_before_the_first_filtering():
  # All messages are equally far: one round takes all weight from all.
  x = np.array([[-1.0], [1.0], [-1.0], [1.0]])
  result = calls.aggregate(byzjax.covariance_filter, x, num_byzantine=1)
  np.testing.assert_array_equal(result, [0.0])


def test_covariance_filter_without_byzantine_is_the_mean():
  x = tables.random_messages(0)
  result = calls.aggregate(byzjax.covariance_filter, x, num_byzantine=0)
  np.testing.assert_allclose(result, reference.mean(x), 1e-5, 1e-6)


@pytest.mark.parametrize('distance', [1e2, 1e5, 1e12])
def test_outliers_lose_all_weight_whatever_their_distance(distance):
  x = tables.random_messages(1)
  x[[2, 5, 7]] = distance * np.eye(SIZE)[[0, 0, 4]] * [[1], [1.01], [-3]]
  _, _, info = calls.inspect(byzjax.covariance_filter, x, num_byzantine=3)
  assert not info.kept[jnp.array([2, 5, 7])].any()
  np.testing.assert_array_equal(info.scores[jnp.array([2, 5, 7])], 1)
  assert ((info.scores >= 0) & (info.scores <= 1)).all()
  honest = np.delete(x, [2, 5, 7], axis=0)
  _, _, alone = calls.inspect(byzjax.covariance_filter, honest, num_byzantine=0)
  assert alone.kept.all()


def test_masked_messages_score_inf_and_the_others_are_filtered():
  x = tables.random_messages(2)
  x[3, 1], x[8] = np.nan, 1e4
  _, _, info = calls.inspect(byzjax.covariance_filter, x, num_byzantine=3)
  assert info.scores[3] == np.inf and not info.kept[3]
  assert info.scores[8] == 1 and not info.kept[8]


@pytest.mark.parametrize('seed', range(4))
def test_bound_holds_where_the_filter_is_led_astray(seed):
  # Few honest messages, the others where they cost it the most: on a line
  # through the honest mean, from near to far.
  random = np.random.default_rng(seed)
  honest = tables.random_messages(seed)[:6]
  center, radius = filter_rows.covariance_filter_ball(honest, None, 5)
  direction = random.normal(size=SIZE)
  direction /= np.linalg.norm(direction)
  farthest = 0.0
  for distance in np.geomspace(0.5, 1e3, 30):
    bad = center + distance * direction * random.choice([1, 1.02, -0.5], (5, 1))
    result = calls.aggregate(
      byzjax.covariance_filter, np.concatenate([bad, honest]), num_byzantine=5
    )
    farthest = max(farthest, np.linalg.norm(result - center))
  assert farthest <= radius
  # Which is no empty claim: it is moved by more than the honest spread.
  assert farthest > np.linalg.norm(honest.std(axis=0)) / 4


# Divide and conquer.


@pytest.mark.parametrize(
  'size, count', [(12, 5), (7, 7), (10, 9), (3, 2), (1000, 3), (5, 1)]
)
def test_coordinates_are_different_and_each_as_likely(size, count):
  draws = 20_000
  keys = jax.random.split(KEY, draws)
  drawn = np.asarray(
    jax.jit(
      jax.vmap(
        lambda key: _divide_and_conquer.sample_coordinates(key, size, count)
      )
    )(keys)
  )
  assert drawn.shape == (draws, count)
  assert drawn.min() >= 0 and drawn.max() < size
  ordered = np.sort(drawn, axis=1)
  assert (ordered[:, 1:] > ordered[:, :-1]).all()
  share = np.bincount(drawn.ravel(), minlength=size) / draws
  deviation = np.sqrt(count / size * (1 - count / size) / draws)
  assert np.abs(share - count / size).max() <= 5 * deviation


def test_coordinates_of_the_largest_models():
  size = 2**31 - 1
  drawn = np.asarray(
    jax.vmap(lambda key: _divide_and_conquer.sample_coordinates(key, size, 4))(
      jax.random.split(KEY, 100)
    )
  )
  assert drawn.min() >= 0
  assert drawn.min() < 0.02 * size and drawn.max() > 0.98 * size


def test_padding_is_never_drawn():
  # Of the coordinates of the model it is known how many there are.
  rule = byzjax.divide_and_conquer(
    num_byzantine=5, num_iterations=3, num_coordinates=5
  )
  x = jnp.asarray(tables.random_messages(3), jnp.float32)
  padded = jnp.pad(x, ((0, 0), (0, 20)))

  @functools.partial(jax.jit, static_argnames='num_coordinates')
  def scores(x, num_coordinates=None):
    _, _, info = rule.inspect(x, (), key=KEY, num_coordinates=num_coordinates)
    return info.scores

  np.testing.assert_allclose(
    scores(padded, num_coordinates=SIZE), scores(x), 1e-6
  )
  assert np.abs(scores(padded) - scores(x)).max() > 0.1


def test_a_draw_needs_a_key_and_all_coordinates_do_not():
  x = jnp.asarray(tables.random_messages(4), jnp.float32)
  rule = functools.partial(byzjax.divide_and_conquer, num_byzantine=2)
  with pytest.raises(
    ValueError, match='divide_and_conquer needs a key to draw 11 of 12'
  ):
    rule(num_coordinates=SIZE - 1)(x)
  np.testing.assert_array_equal(
    rule(num_coordinates=SIZE)(x), rule(num_coordinates=SIZE)(x, key=KEY)
  )


@pytest.mark.parametrize('fraction, removed', [(0.5, 1), (1.3, 3), (0.0, 0)])
def test_filter_fraction_is_rounded_down(fraction, removed):
  kept = calls.kept(
    byzjax.divide_and_conquer,
    tables.random_messages(5),
    num_byzantine=3,
    filter_fraction=fraction,
  )
  assert len(kept) == N - removed


def test_where_no_message_is_always_kept_those_kept_most_often_are_averaged():
  # In one coordinate the first is in the middle, in the other the second.
  x = np.array([[0.0, 9.0], [9.0, 0.0], [-9.0, -9.0]])
  options = {
    'num_byzantine': 1,
    'num_coordinates': 1,
    'num_iterations': 7,
    'filter_fraction': 2.0,
  }
  for seed in range(5):
    key = jax.random.key(seed)
    drawn = [
      int(_divide_and_conquer.sample_coordinates(k, 2, 1)[0])
      for k in jax.random.split(key, 7)
    ]
    assert set(drawn) == {0, 1}  # so that none is kept in both
    often = int(np.argmax(np.bincount(drawn)))
    kept = calls.kept(byzjax.divide_and_conquer, x, key=key, **options)
    assert kept == [often]


def test_equal_outliers_are_filtered_and_one_hides_another():
  x = tables.random_messages(6)
  x[:2] = 1e3
  assert calls.kept(byzjax.divide_and_conquer, x, num_byzantine=2) == [
    *range(2, N)
  ]
  # The known limit, which is why its row in the table claims no ball.
  x[:2] = 0
  x[0, 0], x[1, :2] = 1e6, [2e4, 1e5]
  hidden = calls.aggregate(byzjax.divide_and_conquer, x, num_byzantine=2)
  assert np.abs(hidden).max() > 1e3


# Comparative gradient elimination.


def test_the_sum_is_as_many_times_the_mean():
  x, f = tables.random_messages(7), 4
  make = byzjax.comparative_gradient_elimination
  total = calls.aggregate(make, x, num_byzantine=f, reduce='sum')
  expected = reference_rules.comparative_gradient_elimination(x, f, 'sum')
  np.testing.assert_allclose(total, expected, 1e-5, 1e-6)
  mean = calls.aggregate(make, x, num_byzantine=f)
  np.testing.assert_allclose(total, (N - f) * mean, 1e-5, 1e-6)


@pytest.mark.parametrize('reduce', ['mean', 'sum'])
def test_elimination_behind_mixing(reduce):
  x = tables.random_messages(8)
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=3),
    byzjax.comparative_gradient_elimination(num_byzantine=3, reduce=reduce),
  )
  expected = reference_rules.comparative_gradient_elimination(
    reference.nearest_neighbor_mixing(x, 3), 3, reduce
  )
  result = rule(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


def test_equal_norms_go_to_the_lowest_index():
  x = np.array([[3.0], [-3.0], [3.0], [1.0], [-3.0]])
  make = byzjax.comparative_gradient_elimination
  assert calls.kept(make, x, num_byzantine=2) == [0, 1, 3]


# Errors.


@pytest.mark.parametrize(
  'build, message',
  [
    (
      lambda: byzjax.covariance_filter(num_byzantine=-1),
      'covariance_filter needs num_byzantine',
    ),
    (
      lambda: byzjax.covariance_filter(num_byzantine=2)(jnp.zeros((4, 1))),
      'needs num_workers > 2 . num_byzantine, got 4 and 2',
    ),
    (
      lambda: byzjax.divide_and_conquer(num_byzantine=1, num_iterations=0),
      'divide_and_conquer needs num_iterations',
    ),
    (
      lambda: byzjax.divide_and_conquer(num_byzantine=1, num_coordinates=0.5),
      'divide_and_conquer needs num_coordinates',
    ),
    (
      lambda: byzjax.divide_and_conquer(num_byzantine=1, filter_fraction=-1),
      'divide_and_conquer needs filter_fraction >= 0',
    ),
    (
      lambda: byzjax.divide_and_conquer(num_byzantine=1, filter_fraction=3)(
        jnp.zeros((3, 1))
      ),
      'needs floor.filter_fraction . num_byzantine. < num_workers, got 3 and 3',
    ),
    (
      lambda: byzjax.comparative_gradient_elimination(
        num_byzantine=1, reduce='median'
      ),
      "needs reduce to be 'mean' or 'sum', got 'median'",
    ),
    (
      lambda: byzjax.comparative_gradient_elimination(num_byzantine=2)(
        jnp.zeros((3, 1))
      ),
      'needs num_workers > 2 . num_byzantine, got 3 and 2',
    ),
    (
      lambda: byzjax.clustering(linkage='ward'),
      "clustering needs linkage to be one of .*, got 'ward'",
    ),
    (
      lambda: byzjax.clipped_clustering(max_norm=-1.0),
      'clipped_clustering needs max_norm >= 0',
    ),
    (
      lambda: byzjax.clipped_clustering(num_remembered=-1),
      'clipped_clustering needs num_remembered',
    ),
  ],
)
def test_errors(build, message):
  with pytest.raises(ValueError, match=message):
    build()


@pytest.mark.parametrize('row', filter_rows.RULES, ids=lambda row: row.name)
def test_worker_weights_are_refused(row):
  x = jnp.asarray(tables.random_messages(45), jnp.float32)
  rule = row.make(3, 1.0)
  with pytest.raises(ValueError, match='does not support worker_weights'):
    rule.update(x, rule.init(x[0]), key=KEY, worker_weights=jnp.ones(N))
