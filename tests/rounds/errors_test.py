"""What is refused, and how the message says it: name, value and rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem

N = problem.N


def _raises(message):
  # Line by line: JAX adds notes to what is raised while tracing.
  return pytest.raises(ValueError, match=f'(?m){message}')


# Rules and pre-aggregators: impossible (n, f) at trace time.


@pytest.mark.parametrize(
  'rule, n, message',
  [
    (
      byzjax.krum(num_byzantine=3),
      8,
      r'^krum needs num_workers >= 2 \* num_byzantine \+ 3, got 8 and 3$',
    ),
    (
      byzjax.multi_krum(num_byzantine=3),
      8,
      r'^multi_krum needs num_workers >= 2 \* num_byzantine \+ 3, got 8 and 3',
    ),
    (
      byzjax.krum(num_byzantine=4, num_neighbors=2),
      8,
      r'^krum needs num_workers > 2 \* num_byzantine, got 8 and 4$',
    ),
    (
      byzjax.krum(num_byzantine=1, num_neighbors=8),
      8,
      r'^krum needs num_neighbors <= num_workers - 1, got 8 and 8$',
    ),
    (
      byzjax.multi_krum(num_byzantine=1, num_selected=9),
      8,
      r'^multi_krum needs num_selected <= num_workers, got 9 and 8$',
    ),
    (
      byzjax.trimmed_mean(num_byzantine=4),
      8,
      r'^trimmed_mean needs num_workers > 2 \* num_byzantine, got 8 and 4$',
    ),
    (
      byzjax.pre_aggregate(
        byzjax.nearest_neighbor_mixing(num_byzantine=4), byzjax.mean()
      ),
      8,
      r'^nearest_neighbor_mixing needs num_workers > 2 \* num_byzantine, got 8'
      ' and 4$',
    ),
    (
      byzjax.pre_aggregate(
        byzjax.bucketing(bucket_size=2), byzjax.krum(num_byzantine=1)
      ),
      8,  # four buckets
      r'^krum needs num_workers >= 2 \* num_byzantine \+ 3, got 4 and 1$',
    ),
  ],
)
def test_impossible_numbers_of_workers(rule, n, message):
  shape = jax.ShapeDtypeStruct((n, 3), jnp.float32)
  with _raises(message):
    jax.eval_shape(lambda x: rule(x, key=jax.random.key(0)), shape)


COUNTS = {
  'trimmed_mean': byzjax.trimmed_mean,
  'krum': byzjax.krum,
  'multi_krum': byzjax.multi_krum,
  'nearest_neighbor_mixing': byzjax.nearest_neighbor_mixing,
}


@pytest.mark.parametrize('name', COUNTS)
@pytest.mark.parametrize('value', [-1, 2.0, True, None, '2'], ids=repr)
def test_num_byzantine_must_be_a_count(name, value):
  with _raises(f'^{name} needs num_byzantine .* at least 0, got {value!r}$'):
    COUNTS[name](num_byzantine=value)


@pytest.mark.parametrize('name', COUNTS)
def test_num_byzantine_must_not_be_traced(name):
  def build(f):
    COUNTS[name](num_byzantine=f)
    return f

  with _raises(
    f'^{name} needs num_byzantine to be a Python int.*got .*[Tt]rac'
  ):
    jax.jit(build)(2)


@pytest.mark.parametrize('name', ['trimmed_mean', 'krum', 'multi_krum'])
def test_inject_hyperparams_without_static_args_names_the_count(name):
  with _raises(f'^{name} needs num_byzantine to be a Python int.*it sets shap'):
    optax.inject_hyperparams(COUNTS[name])(num_byzantine=2).init(jnp.zeros(3))


@pytest.mark.parametrize(
  'build, message',
  [
    (
      lambda: byzjax.centered_clipping(radius=-1.0),
      'centered_clipping needs radius >= 0, got -1.0',
    ),
    (
      lambda: byzjax.centered_clipping(radius=float('nan')),
      'centered_clipping needs radius >= 0, got nan',
    ),
    (
      lambda: byzjax.centered_clipping(radius=1.0, num_iterations=0),
      'centered_clipping needs num_iterations .* at least 1, got 0',
    ),
    (
      lambda: byzjax.geometric_median(num_iterations=0),
      'geometric_median needs num_iterations .* at least 1, got 0',
    ),
    (
      lambda: byzjax.geometric_median(smoothing=-1.0),
      'geometric_median needs smoothing .*, got -1.0',
    ),
    (
      lambda: byzjax.geometric_median(smoothing=0.0),
      'geometric_median needs smoothing .*, got 0.0',
    ),
    (
      lambda: byzjax.geometric_median(start='median of means'),
      "geometric_median needs start .*, got 'median of means'",
    ),
    (
      lambda: byzjax.krum(num_byzantine=1, num_neighbors=0),
      'krum needs num_neighbors .* at least 1, got 0',
    ),
    (
      lambda: byzjax.krum(num_byzantine=1, distance_power=0),
      'krum needs distance_power .* at least 1, got 0',
    ),
    (
      lambda: byzjax.multi_krum(num_byzantine=1, num_selected=0),
      'multi_krum needs num_selected .* at least 1, got 0',
    ),
    (
      lambda: byzjax.bucketing(bucket_size=0),
      'bucketing needs bucket_size .* at least 1, got 0',
    ),
  ],
)
def test_bad_hyperparameters(build, message):
  with _raises(f'^{message}'):
    build()


def test_bucketing_needs_a_key():
  rule = byzjax.pre_aggregate(byzjax.bucketing(bucket_size=2), byzjax.mean())
  with _raises('^bucketing needs a key .* got None'):
    rule(jnp.ones((4, 2)))


@pytest.mark.parametrize(
  'stages, types',
  [
    ((), r'\[\]'),
    ((byzjax.bucketing(bucket_size=2),), r"\['PreAggregator'\]"),
    (
      (byzjax.mean(), byzjax.bucketing(bucket_size=2)),
      r"\['Aggregator', 'PreAggregator'\]",
    ),
    ((byzjax.mean(), byzjax.mean()), r"\['Aggregator', 'Aggregator'\]"),
    (
      (byzjax.bucketing(bucket_size=2), optax.sgd(1.0)),
      r"\['PreAggregator', 'GradientTransformationExtraArgs'\]",
    ),
  ],
)
def test_pre_aggregate_needs_pre_aggregators_and_then_a_rule(stages, types):
  with _raises(f'^pre_aggregate needs PreAggregators .* got {types}'):
    byzjax.pre_aggregate(*stages)


@pytest.mark.parametrize(
  'messages',
  [
    {'a': jnp.ones((4, 2)), 'b': jnp.ones((3, 2))},
    {'a': jnp.ones((4, 2)), 'b': jnp.ones([])},
    {'a': jnp.ones((0, 2))},
    {},
  ],
  ids=['differ', 'scalar', 'empty', 'no leaf'],
)
@pytest.mark.parametrize(
  'rule',
  [
    byzjax.mean(),
    byzjax.coordinate_median(),
    byzjax.krum(num_byzantine=0),
    byzjax.centered_clipping(radius=1.0),
  ],
  ids=['mean', 'median', 'krum', 'centered_clipping'],
)
def test_messages_must_share_their_worker_axis(rule, messages):
  with _raises('messages must have .*(leading worker axis|at least one leaf)'):
    rule(messages)
  with _raises('messages must have .*(leading worker axis|at least one leaf)'):
    rule.update(messages, rule.init({'a': jnp.zeros(2)}))


# Rounds.


@pytest.mark.parametrize(
  'kwargs, message',
  [
    ({'byzantine': 8}, r'num_workers > 2 \* num_byzantine, got 16 and 8$'),
    (
      {'byzantine': np.arange(N) < 9},
      r'num_workers > 2 \* num_byzantine, got 16 and 9$',
    ),
    (
      {'byzantine': jnp.arange(N) < 9},
      r'num_workers > 2 \* num_byzantine, got 16 and 9$',
    ),
    ({'byzantine': -1}, 'num_byzantine .* at least 0, got -1$'),
    ({'byzantine': 1.0}, r'robust_round needs byzantine .* got float64\[\]$'),
    ({'byzantine': True}, r'robust_round needs byzantine .* got bool\[\]$'),
    (
      {'byzantine': jnp.zeros(N - 1, bool)},
      r'robust_round needs byzantine .* bool\[16\], got bool\[15\]$',
    ),
    (
      {'byzantine': jnp.zeros(N)},
      r'robust_round needs byzantine .* bool\[16\], got float32\[16\]$',
    ),
    ({'num_workers': 0}, 'robust_round needs num_workers .* 1, got 0$'),
    ({'num_workers': 16.0}, 'robust_round needs num_workers .*, got 16.0$'),
    (
      {'aggregator': optax.chain(byzjax.mean(), optax.sgd(0.1))},
      'robust_round needs aggregator to be an Aggregator .* in optimizer',
    ),
    ({'worker_map': 'pmap'}, "worker_map .* got 'pmap'$"),
    ({'worker_map': 0}, 'worker_map .* got 0$'),
    (
      {'mesh': problem.mesh(8), 'num_workers': 12},
      "multiple of the 8 devices of mesh axis 'workers', got 12$",
    ),
    (
      {'mesh': problem.mesh(8), 'axis_name': 'rows'},
      r"axis_name .* among the axes \('workers',\) of the mesh, got 'rows'$",
    ),
    (
      {'mesh': problem.mesh(4, 2), 'axis_name': ('workers', 'rows')},
      r"among the axes \('workers', 'model'\) .* got \('workers', 'rows'\)$",
    ),
  ],
)
def test_robust_round_refuses(kwargs, message):
  with _raises(message):
    problem.training(**kwargs)


@pytest.mark.parametrize(
  'n, f, message',
  [
    (8, 4, r'num_workers > 2 \* num_byzantine, got 8 and 4$'),
    (8, -1, 'num_byzantine .* at least 0, got -1$'),
    (8, 1.0, 'num_byzantine .* at least 0, got 1.0$'),
    (0, 0, 'num_workers .* at least 1, got 0$'),
  ],
)
def test_random_byzantine_refuses(n, f, message):
  with _raises(message):
    byzjax.random_byzantine(n, f, jax.random.key(0))


@pytest.mark.parametrize('devices', [None, 8])
def test_the_batch_must_have_a_row_per_worker(devices):
  mesh = devices and problem.mesh(devices)
  rounds = problem.training(mesh=mesh)
  state = rounds.init(problem.params())
  with _raises('robust_round needs a batch with num_workers=16 rows, got 8'):
    rounds.step(state, problem.batch(8), problem.KEY)
  images, labels = problem.batch()
  with _raises('robust_round: batch must have leaves that share a leading'):
    rounds.step(state, (images, labels[:3]), problem.KEY)


@pytest.mark.parametrize('devices', [None, 8])
def test_impossible_rules_are_refused_when_the_round_is_traced(devices):
  mesh = devices and problem.mesh(devices)
  rounds = problem.training(aggregator=byzjax.krum(num_byzantine=7), mesh=mesh)
  state = rounds.init(problem.params())
  with _raises('^krum needs num_workers .* got 16 and 7$'):
    jax.eval_shape(rounds.step, state, problem.batch(), problem.KEY)


def test_worker_sharded_needs_a_rule():
  with _raises('^worker_sharded needs aggregator .* Aggregator .* Gradient'):
    byzjax.worker_sharded(optax.sgd(0.1), 'workers')
