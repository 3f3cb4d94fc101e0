"""Objectives and estimators around losses with a key and a further output.

A robust round over them, and what each must report. An `Objective` and a
`GradientEstimator` say by themselves that they have something to report.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import objectives
from tests.rounds import every_round

N, L = every_round.N, 2
KEY, PARAMS = jax.random.key(5), jnp.array([0.5, -1.0])
BOTH = dict(needs_key=True, has_aux=True)
RANDOM = np.random.default_rng(0)
INPUTS = jnp.asarray(RANDOM.normal(size=(N, L, 6, 2)), jnp.float32)
LABELS = jnp.asarray(RANDOM.integers(0, 2, (N, L, 6)), jnp.int32)
ONE_STEP = (INPUTS[:, 0], LABELS[:, 0])


def loss_fn(params, batch, key):
  inputs, labels = batch
  kept = jax.random.bernoulli(key, 0.5, params.shape)
  logits = inputs @ jnp.where(kept, params, 0)
  right = jnp.mean((logits > 0) == labels)
  aux = {'kept': kept, 'labels': labels.sum(), 'x': inputs[0], 'right': right}
  return jnp.mean((logits - labels) ** 2), aux


def keys():
  """Of the workers, as the round draws them: none is drawn from twice."""
  work = jax.random.split(jax.random.fold_in(KEY, 0), 5)[2]
  return jax.vmap(jax.random.fold_in, (None, 0))(work, jnp.arange(N))


def aux_of(batch, objective=None, **arguments):
  """What one round reports."""
  training = every_round.robust(objective, **arguments)
  _, info = jax.jit(training.step)(training.init(PARAMS), batch, KEY)
  return info.aux


def loop(one, batch):
  """`one(batch_i, key_i)` for one worker after another."""
  one, auxes = jax.jit(one), []
  for i, key in enumerate(keys()):
    auxes.append(one(jax.tree.map(lambda x, i=i: x[i], batch), key))
  return jax.tree.map(lambda *x: jnp.stack(x), *auxes)


def same(actual, expected, tolerance=0.0):
  assert actual is not None

  def of_leaf(a, b):
    np.testing.assert_allclose(a, b, tolerance)
    assert a.dtype == b.dtype

  jax.tree.map(of_leaf, actual, expected)


PLAIN = functools.partial(loss_fn, PARAMS)


def test_proximal_reports_what_the_loss_reports():
  objective = objectives.proximal(loss_fn, mu=0.5, **BOTH)
  assert objective.has_aux
  aux = aux_of(ONE_STEP, objective)
  same(aux, loop(lambda b, k: PLAIN(b, k)[1], ONE_STEP))
  # A second wrapper, and the flag that says so again.
  outer = objectives.proximal(objective, mu=0.5)
  same(aux_of(ONE_STEP, outer, has_aux=True), aux)


def test_mixup_blends():
  objective = objectives.mixup(loss_fn, **BOTH)

  def one(batch, key):
    inputs, labels = batch
    share_key, order_key, loss_key = jax.random.split(key, 3)
    share = jax.random.beta(share_key, 0.2, 0.2)
    order = jax.random.permutation(order_key, len(inputs))
    mixed = share * inputs + (1 - share) * inputs[order]
    first, second = (
      PLAIN((mixed, y), loss_key)[1] for y in (labels, labels[order])
    )
    return jax.tree.map(
      lambda a, b: (share * a + (1 - share) * b).astype(jnp.float32),
      first,
      second,
    )

  # A blend may be one operation, or be rounded in between.
  same(aux_of(ONE_STEP, objective), loop(one, ONE_STEP), 1e-6)


def test_wasserstein_keeps_the_form_of_the_loss():
  labelled = (INPUTS[:, 0], LABELS[:, 0].astype(jnp.float32))
  wafl = objectives.wasserstein(
    loss_fn, gamma=9.0, num_ascent_steps=2, surrogate=True, **BOTH
  )

  def one(batch, key):
    moved = objectives.wasserstein_inputs(
      lambda w, b: loss_fn(w, b, key)[0],
      PARAMS,
      batch,
      gamma=9.0,
      num_ascent_steps=2,
    )
    return PLAIN((moved, batch[1]), key)[1]

  expected = loop(one, labelled)
  assert not np.array_equal(expected['x'], labelled[0][:, 0])
  same(aux_of(labelled, wafl, **BOTH), expected)
  proximal = objectives.proximal(wafl, mu=0.1, **BOTH)
  same(aux_of(labelled, proximal), expected)


@pytest.mark.parametrize('kind', ['entropy', 'sparsign'])
def test_estimators_with_steps_report_the_mean(kind):
  calls = []

  def recorded(params, batch, key):
    jax.debug.callback(
      lambda *call: calls.append(call),
      params,
      batch[0],
      jax.random.key_data(key),
    )
    return loss_fn(params, batch, key)

  if kind == 'entropy':
    estimator = byzjax.entropy_gradient(
      recorded, num_steps=L, gamma=0.1, **BOTH
    )
  else:
    estimator = byzjax.sparsign_local_steps(
      recorded, budget=1.0, learning_rate=0.1, **BOTH
    )
  # One is an estimator, which knows; the other a function, which does not.
  told = {} if kind == 'entropy' else {'has_aux': True}
  aux = aux_of((INPUTS, LABELS), value_and_grad=estimator, **told)
  jax.effects_barrier()
  one = jax.jit(loss_fn)
  assert len({tuple(np.asarray(c[2]).tolist()) for c in calls}) == N * L
  for i in range(N):
    steps = []
    for c in range(L):
      (call,) = [x for x in calls if np.array_equal(x[1], INPUTS[i, c])]
      key = jax.random.wrap_key_data(call[2])
      steps.append(one(call[0], (INPUTS[i, c], LABELS[i, c]), key)[1])
    expected = jax.tree.map(
      lambda a, b: (np.float32(a) + np.float32(b)) / np.float32(2), *steps
    )
    same(jax.tree.map(lambda x, i=i: x[i], aux), expected)


def test_entropy_gradient_without_steps():
  estimator = byzjax.entropy_gradient(loss_fn, num_steps=0, gamma=0.1, **BOTH)
  aux = aux_of(ONE_STEP, value_and_grad=estimator)
  same(aux, loop(lambda b, k: PLAIN(b, k)[1], ONE_STEP))


def test_target_projection_reports_of_the_output():
  stages = [
    byzjax.Stage(lambda p: p['a'], lambda p, h: jnp.tanh(h @ p['a'])),
    byzjax.Stage(lambda p: p['b'], lambda p, h: h @ p['b']),
  ]

  def output_loss(output, labels):
    return jnp.mean(output), jnp.mean(output.argmax(axis=1) == labels)

  estimator = byzjax.target_projection(
    stages,
    num_classes=2,
    projection_key=KEY,
    output_loss=output_loss,
    has_aux=True,
  )
  params = {'a': jnp.ones([2, 3]), 'b': jnp.arange(6.0).reshape(3, 2) - 2}
  training = every_round.robust(None, value_and_grad=estimator)
  _, info = training.step(training.init(params), ONE_STEP, KEY)
  inputs, labels = ONE_STEP
  output = jnp.tanh(inputs @ params['a']) @ params['b']
  expected = jnp.mean(output.argmax(axis=2) == labels, axis=1)
  np.testing.assert_allclose(info.aux, expected, 1e-6)


def test_functions_in_place_of_the_gradient():
  plain = jax.value_and_grad(loss_fn, has_aux=True)
  aux = aux_of(ONE_STEP, value_and_grad=plain, has_aux=True)
  same(aux, loop(lambda b, k: PLAIN(b, k)[1], ONE_STEP))
