"""The objectives inside rounds, without and with attackers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax.objectives import fedbr, mixup, proximal, wasserstein
from tests.objectives import fedbr_reference as reference
from tests.objectives.local_sgd import take
from tests.rounds import problem

KEY = jax.random.key(0)


def _fedbr(**settings):
  return fedbr(
    reference.features,
    reference.classify,
    pseudo_inputs=reference.pseudo_inputs(),
    **(reference.SETTINGS | settings),
  )


def _local_round(objective, n, h, **settings):
  defaults = dict(
    aggregator=byzjax.mean(),
    local_optimizer=optax.sgd(0.3),
    optimizer=optax.sgd(1.0),
  )
  return byzjax.local_round(
    objective, num_workers=n, num_local_steps=h, **(defaults | settings)
  )


def test_a_round_of_fedbr_averages_the_published_steps():
  params, batches = reference.params(), reference.data(3, 2)
  training = _local_round(_fedbr(), 3, 2)
  state, info = jax.jit(training.step)(training.init(params), batches, KEY)

  @jax.jit
  def step(current, batch):
    shared, targets = reference.pseudo_inputs(), reference.uniform()
    return reference.step(
      current, params, batch, shared, targets, reference.SETTINGS
    )

  ends = []
  for worker in range(3):
    current = params
    for h in range(2):
      current = step(current, take(batches, (worker, h)))
    ends.append(problem.flat(current))
  np.testing.assert_allclose(
    problem.flat(state.params), np.mean(ends, axis=0), 1e-4, 1e-5
  )
  assert np.isfinite(info.loss)


def test_without_both_terms_a_round_moves_the_model_as_fed_avg_does():
  params, batches = reference.params(), reference.data(3, 2)

  def plain(params, batch):
    logits = reference.classify(
      params['model'], reference.features(params['model'], batch[0])
    )
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return jnp.mean(cross_entropy(logits, batch[1]))

  after = []
  for objective in (_fedbr(contrast_weight=0.0, pseudo_weight=0.0), plain):
    training = _local_round(objective, 3, 2)
    state, _ = jax.jit(training.step)(training.init(params), batches, KEY)
    after.append(state.params)
  jax.tree.map(
    np.testing.assert_array_equal, after[0]['model'], after[1]['model']
  )
  start, moved = (problem.flat(p['projection']) for p in (params, after[0]))
  assert np.abs(start - moved).max() > 1e-3


def test_wrapped_objectives_learn_under_attack():
  objective = proximal(
    mixup(wasserstein(problem.loss_fn, gamma=4.0, num_ascent_steps=3)), mu=0.1
  )
  training = _local_round(
    objective,
    problem.N,
    2,
    aggregator=byzjax.trimmed_mean(num_byzantine=4),
    attack=byzjax.sign_flip(scale=5.0),
    byzantine=4,
  )
  batches = jax.tree.map(
    lambda x: x.reshape(20, 2, *x.shape[1:]).swapaxes(1, 2),
    problem.batches(40),
  )
  state = training.init(problem.params())
  state, infos = jax.jit(
    lambda state, batches: jax.lax.scan(
      lambda state, batch: training.step(state, batch, KEY), state, batches
    )
  )(state, batches)
  test = jax.tree.map(
    lambda x: x[4:].reshape(-1, *x.shape[2:]), problem.batch()
  )
  before = problem.loss_fn(problem.params(), test)
  assert problem.loss_fn(state.params, test) < 0.7 * before
