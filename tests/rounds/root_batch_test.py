"""The server's own gradient: rounds with a root batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import reference_trust
from tests.rounds import problem

N, F = problem.N, 7
ROOT = jax.tree.map(lambda x: x[0], problem.batch(n=1, seed=5))
BATCHES = problem.batches(4)


@jax.jit
def _grad(params, batch):
  return jax.grad(problem.loss_fn)(params, batch)


def _gradient(params, batch):
  return problem.flat(_grad(params, batch))


def _remembering():
  """`fl_trust` whose state is what it was told last."""
  rule = byzjax.fl_trust()

  def init(params):
    return {'trusted': jnp.zeros_like(params), 'first': jnp.zeros_like(params)}

  def inspect(messages, state, params=None, **extra):
    aggregate, _, info = rule.inspect(messages, (), params, **extra)
    return aggregate, {'trusted': extra['trusted'], 'first': messages[0]}, info

  return byzjax.Aggregator(init, inspect)


def test_the_server_does_what_a_worker_with_its_batch_does():
  rounds = problem.training(
    aggregator=_remembering(),
    worker=byzjax.worker_momentum(0.9),
    root_batch=lambda step: jax.tree.map(lambda x: x[step, 0], BATCHES),
  )
  state, _ = problem.scan(rounds, BATCHES)
  told = state.aggregator
  np.testing.assert_allclose(told['trusted'], told['first'], 1e-6, 1e-8)
  first = jax.tree.map(lambda x: x[:1], state.workers)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-8),
    state.trusted,
    first,
  )


def test_one_step_is_that_of_the_oracle():
  rounds = problem.training(aggregator=byzjax.fl_trust(), root_batch=ROOT)
  params = problem.params()
  state, _ = problem.scan(rounds, jax.tree.map(lambda x: x[:1], BATCHES))
  messages = [
    _gradient(params, jax.tree.map(lambda x, i=i: x[0, i], BATCHES))
    for i in range(N)
  ]
  step = reference_trust.fl_trust(messages, _gradient(params, ROOT))
  np.testing.assert_allclose(
    problem.flat(state.params), problem.flat(params) - 0.1 * step, 1e-5, 1e-6
  )


def _train(mesh=None, **changed):
  arguments = dict(
    aggregator=byzjax.fl_trust(),
    worker=byzjax.worker_momentum(0.9),
    optimizer=optax.sgd(0.3),
    attack=byzjax.sign_flip(scale=50.0),
    byzantine=F,
    root_batch=ROOT,
    mesh=mesh,
  )
  rounds = problem.training(**(arguments | changed))
  return problem.scan(rounds, BATCHES)


@pytest.mark.parametrize(
  'changed',
  [
    {},
    pytest.param(
      {
        'codec': byzjax.qsgd_codec(),
        'value_and_grad': byzjax.storm(problem.loss_fn, decay=0.9),
        'worker': None,
      },
      marks=pytest.mark.slow,
    ),
  ],
  ids=['momentum', 'storm and codec'],
)
def test_on_a_mesh_all_is_as_on_one_device(changed):
  state, info = _train(problem.mesh(4), **changed)
  expected, expected_info = _train(**changed)
  np.testing.assert_allclose(
    problem.flat(state.params), problem.flat(expected.params), 1e-4, 1e-5
  )
  np.testing.assert_allclose(info.weights, expected_info.weights, 1e-4, 1e-5)


def test_liars_may_be_all_but_one():
  liars = jnp.arange(N) > 0
  state, info = _train(byzantine=lambda step: liars)
  assert (np.asarray(info.weights)[:, 1:] == 0).all()
  before = problem.loss_fn(problem.params(), ROOT)
  assert problem.loss_fn(state.params, ROOT) < before


def test_without_a_root_batch_the_rule_is_refused():
  rounds = problem.training(aggregator=byzjax.fl_trust())
  step = functools.partial(rounds.step, key=problem.KEY)
  with pytest.raises(ValueError, match='fl_trust needs trusted.*root_batch'):
    jax.eval_shape(step, rounds.init(problem.params()), problem.batch())


@pytest.mark.parametrize(
  'root', [problem.batch(), ROOT[0], lambda step: jnp.zeros(3)]
)
def test_a_root_batch_of_another_form_is_refused(root):
  rounds = problem.training(aggregator=byzjax.fl_trust(), root_batch=root)
  step = functools.partial(rounds.step, key=problem.KEY)
  with pytest.raises(ValueError, match='robust_round needs root_batch'):
    jax.eval_shape(step, rounds.init(problem.params()), problem.batch())


def _local(**changed):
  arguments = dict(
    num_workers=3,
    num_local_steps=2,
    local_optimizer=optax.sgd(0.1, momentum=0.9),
    optimizer=optax.sgd(1.0),
    aggregator=_remembering(),
  )
  return byzjax.local_round(_quadratic, **(arguments | changed))


def _quadratic(params, batch):
  return jnp.sum((params - batch.mean()) ** 2)


def test_in_local_rounds_the_server_takes_local_steps():
  batch = jnp.arange(12.0).reshape(3, 2, 2)
  rounds = _local(root_batch=batch[0])
  step = functools.partial(rounds.step, key=problem.KEY)
  state, _ = jax.lax.scan(
    step, rounds.init(jnp.zeros(4)), jnp.stack([batch, batch])
  )
  told = state.aggregator
  np.testing.assert_allclose(told['trusted'], told['first'], 1e-6)
  assert np.abs(told['trusted']).min() > 0.1


@pytest.mark.parametrize(
  'changed, match',
  [
    ({'local_state': 'average'}, 'root_batch to be None'),
    ({'num_local_steps': lambda step: jnp.ones(3, int)}, 'num_local_steps'),
  ],
)
def test_local_rounds_refuse_what_the_server_cannot_do(changed, match):
  with pytest.raises(ValueError, match=match):
    rounds = _local(root_batch=jnp.zeros((2, 2)), **changed)
    jax.eval_shape(
      functools.partial(rounds.step, key=problem.KEY),
      rounds.init(jnp.zeros(4)),
      jnp.zeros((3, 2, 2)),
    )
