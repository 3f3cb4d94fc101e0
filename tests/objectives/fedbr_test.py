import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from byzjax import models
from byzjax.objectives import fedbr, projection, proximal
from tests.objectives import fedbr_reference as reference
from tests.objectives.local_sgd import context, local_sgd, take
from tests.rounds import problem

FLAT = problem.flat


def _objective(dtype=jnp.float32, **settings):
  settings = (
    reference.SETTINGS
    | {'pseudo_inputs': reference.pseudo_inputs(dtype)}
    | settings
  )
  return fedbr(reference.features, reference.classify, **settings)


@functools.partial(jax.jit, static_argnames='num_mixed')
def _run(settings, params, batch, anchor, seed, num_mixed):
  objective = _objective(num_mixed=num_mixed, **settings)
  return jax.value_and_grad(objective.loss)(
    params, batch, context(anchor, seed)
  )


def _value_and_gradient(
  params, anchor=None, batch=None, seed=0, num_mixed=0, **settings
):
  """At the settings of the reference, or others; compiled once for all."""
  shared = reference.pseudo_inputs(params['model']['w'].dtype)
  settings = reference.SETTINGS | {'pseudo_inputs': shared} | settings
  batch = reference.data() if batch is None else batch
  anchor = reference.params(3) if anchor is None else anchor
  return _run(settings, params, batch, anchor, seed, num_mixed)


def _gradient(*args, **kwargs):
  return _value_and_gradient(*args, **kwargs)[1]


@jax.jit
def _ascended(params, anchor, inputs, shared, step_size=0.3):
  settings = reference.SETTINGS | {'ascent_step_size': step_size}
  return reference.ascended(params, anchor, inputs, shared, settings)


@jax.jit
def _value(model, head, anchor, batch, shared):
  return reference.objective(
    model,
    head,
    anchor,
    batch,
    shared,
    reference.uniform(),
    reference.SETTINGS,
  )


@jax.jit
def _cross_entropy(model, batch):
  logits = reference.classify(model, reference.features(model, batch[0]))
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels
  return jnp.mean(cross_entropy(logits, batch[1]))


def test_sgd_takes_the_published_steps_on_every_worker():
  with jax.enable_x64(True):
    params = reference.params(dtype=jnp.float64)
    batches = reference.data(3, 4, dtype=jnp.float64)
    found = jax.jit(
      lambda params, batches: local_sgd(
        _objective(jnp.float64), params, batches, 0.3
      )
    )(params, batches)

    @jax.jit
    def step(current, batch):
      return reference.step(
        current,
        params,
        batch,
        reference.pseudo_inputs(jnp.float64),
        reference.uniform(),
        reference.SETTINGS,
      )

    for worker in range(3):
      current = params
      for h in range(4):
        current = step(current, take(batches, (worker, h)))
      assert np.abs(FLAT(current) - FLAT(params)).max() > 0.1
      np.testing.assert_allclose(FLAT(take(found, worker)), FLAT(current), 1e-9)


def test_the_value_is_the_objective_after_the_ascent():
  with jax.enable_x64(True):
    params, anchor = (reference.params(s, jnp.float64) for s in (0, 3))
    batch = reference.data(dtype=jnp.float64)
    shared = reference.pseudo_inputs(jnp.float64)
    head = _ascended(params, anchor, batch[0], shared)
    expected = _value(params['model'], head, anchor, batch, shared)
    value, _ = _value_and_gradient(params, anchor, batch)
    np.testing.assert_allclose(value, expected, 1e-12)


def test_without_both_terms_the_model_is_plain_bit_for_bit():
  params, batches = reference.params(), reference.data(2, 3)
  objective = _objective(contrast_weight=0.0, pseudo_weight=0.0)
  batch = take(batches, (0, 0))
  value, gradient = jax.jit(jax.value_and_grad(objective.loss))(
    params, batch, context(reference.params(3))
  )
  expected = jax.jit(jax.value_and_grad(_cross_entropy))(params['model'], batch)
  jax.tree.map(
    np.testing.assert_array_equal, (value, gradient['model']), expected
  )
  assert np.abs(FLAT(gradient['projection'])).max() > 1e-3

  plain = proximal(lambda p, batch: _cross_entropy(p['model'], batch), mu=0)
  with_terms, without = (
    jax.jit(lambda p, b, o=o: local_sgd(o, p, b, 0.1))(params, batches)
    for o in (objective, plain)
  )
  jax.tree.map(
    np.testing.assert_array_equal, with_terms['model'], without['model']
  )


@pytest.mark.parametrize('seed', range(3))
def test_at_the_first_local_step_the_pull_is_complete(seed):
  params, batch = reference.params(seed), reference.data(seed=seed)
  shared = reference.pseudo_inputs()
  z, z_p = (reference.features(params['model'], x) for x in (batch[0], shared))
  a, c = (reference.head_of(params['projection'], x) for x in (z_p, z))
  push = reference.similarity(a, c)
  for tau_pull, tau_push in [(2.0, 2.0), (2.0, 1.5), (0.5, 0.0)]:
    value, _ = _value_and_gradient(
      params,
      params,
      batch,
      ascent_step_size=0.0,
      contrast_weight=1.0,
      pseudo_weight=0.0,
      tau_pull=tau_pull,
      tau_push=tau_push,
    )
    value = value - _cross_entropy(params['model'], batch)
    expected = jnp.mean(jnp.log1p(jnp.exp(tau_push * push - tau_pull)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    if tau_pull == tau_push:
      assert value <= np.log(2) + 1e-6


def test_the_projection_ascends_whatever_the_weights_and_labels():
  params, anchor = reference.params(), reference.params(3)
  inputs, labels = reference.data()
  gradient = _gradient(params)['projection']
  for other in (
    _gradient(params, contrast_weight=0.0),
    _gradient(params, contrast_weight=7.0, pseudo_weight=3.0),
    _gradient(params, batch=(inputs, 2 - labels)),
  ):
    np.testing.assert_allclose(
      FLAT(other['projection']), FLAT(gradient), 1e-5, 1e-7
    )
  ascended = _ascended(params, anchor, inputs, reference.pseudo_inputs(), 1.0)
  np.testing.assert_allclose(
    FLAT(params['projection']) - FLAT(gradient), FLAT(ascended), 1e-4, 1e-6
  )


def test_small_steps_ascend_in_the_projection_and_descend_in_the_model():
  with jax.enable_x64(True):
    params, anchor = (reference.params(s, jnp.float64) for s in (0, 3))
    batch = reference.data(dtype=jnp.float64)
    shared = reference.pseudo_inputs(jnp.float64)
    values = [
      _value_and_gradient(params, anchor, batch, ascent_step_size=step)[0]
      for step in (0.0, 1e-3, 1e-2)
    ]
    assert values[0] < values[1] < values[2]

    gradient = _gradient(params, anchor, batch)
    head = _ascended(params, anchor, batch[0], shared)

    def value(step):
      model = jax.tree.map(
        lambda p, g: p - step * g, params['model'], gradient['model']
      )
      return _value(model, head, anchor, batch, shared)

    squared = np.sum(FLAT(gradient['model']) ** 2)
    np.testing.assert_allclose(
      (value(-1e-6) - value(1e-6)) / 2e-6, squared, rtol=1e-6
    )
    assert value(1e-2) < value(1e-3) < value(0.0)


def test_the_anchor_is_a_constant():
  params, batch = reference.params(), reference.data()
  loss = _objective().loss
  gradient = jax.jit(
    jax.grad(lambda anchor: loss(params, batch, context(anchor)))
  )(reference.params(3))
  assert not FLAT(gradient).any()


def test_the_pseudo_term_pulls_the_bias_to_uniform_answers():
  params = reference.params()
  difference = jax.tree.map(
    jnp.subtract,
    _gradient(params, pseudo_weight=0.8),
    _gradient(params, pseudo_weight=0.0),
  )
  z_p = reference.features(params['model'], reference.pseudo_inputs())
  shares = jax.nn.softmax(reference.classify(params['model'], z_p))
  expected = 0.8 * (shares.mean(axis=0) - 1 / 3)
  assert jnp.abs(expected).max() > 0.01
  np.testing.assert_allclose(difference['model']['c'], expected, atol=1e-6)

  zeros = {name: 0 * params['model'][name] for name in 'vc'}
  params = params | {'model': params['model'] | zeros}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
    _gradient(params, pseudo_weight=0.8)['model'],
    _gradient(params, pseudo_weight=0.0)['model'],
  )


@pytest.mark.parametrize('num_mixed', [1, 3])
def test_a_batch_of_equal_rows_has_known_mixtures(num_mixed):
  with jax.enable_x64(True):
    params, anchor = (reference.params(s, jnp.float64) for s in (0, 3))
    inputs, _ = reference.data(dtype=jnp.float64)
    batch = jnp.broadcast_to(inputs[:1], inputs.shape), jnp.full(4, 2)
    shared = reference.pseudo_inputs(jnp.float64)
    shared = (shared + num_mixed * batch[0]) / (num_mixed + 1)
    targets = reference.uniform() + num_mixed * jax.nn.one_hot(batch[1], 3)
    targets = targets / (num_mixed + 1)
    expected = jax.jit(
      lambda *arguments: reference.step(*arguments, reference.SETTINGS)
    )(params, anchor, batch, shared, targets)
    gradient = _gradient(params, anchor, batch, num_mixed=num_mixed)
    np.testing.assert_allclose(
      FLAT(params) - 0.3 * FLAT(gradient), FLAT(expected), 1e-9
    )


def test_mixtures_are_drawn_anew_at_every_step():
  params = reference.params()
  first, again, other = (
    FLAT(_gradient(params, seed=seed, num_mixed=1)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3
  pure = [FLAT(_gradient(params, seed=seed)) for seed in (0, 1)]
  np.testing.assert_array_equal(*pure)


def test_mixed_rows_carry_their_own_labels():
  # Features that name the row: x is a unit vector, and so is its label.
  batch = jnp.eye(4), jnp.arange(4)

  def loss(seed):
    seen = []

    def features(model, x):
      seen.append(x)
      return x

    objective = fedbr(
      features,
      lambda model, z: model * z,
      pseudo_inputs=jnp.zeros((4, 4)),
      ascent_step_size=0.0,
      contrast_weight=0.0,
      num_mixed=2,
    )
    params = {
      'model': jnp.array(2.0),
      'projection': projection(jax.random.key(0), num_features=4),
    }
    value = objective.loss(params, batch, context(params, seed))
    shared = next(x for x in seen if x is not batch[0])
    np.testing.assert_allclose(shared.sum(axis=1), 2 / 3, rtol=1e-6)
    targets = shared + 1 / 12
    plain = optax.softmax_cross_entropy(2 * batch[0], batch[0]).mean()
    pseudo = optax.softmax_cross_entropy(2 * shared, targets).mean()
    np.testing.assert_allclose(value, plain + pseudo, rtol=1e-6)
    return value

  assert len({float(loss(seed)) for seed in range(5)}) > 1


def test_rows_without_features_give_finite_gradients():
  params = reference.params()
  zeros = {name: 0 * params['model'][name] for name in 'wb'}
  head = projection(jax.random.key(0), num_features=reference.WIDTH)
  params = {'model': params['model'] | zeros, 'projection': head}
  gradient = FLAT(_gradient(params, anchor=params))
  assert np.isfinite(gradient).all() and np.abs(gradient).max() < 10


def test_settings_may_be_mapped_over():
  params = reference.params()
  mus, steps = jnp.array([0.0, 0.5, 2.0]), jnp.array([0.1, 0.0, 1.0])
  mapped = jax.vmap(
    lambda mu, step: _gradient(
      params, contrast_weight=mu, ascent_step_size=step
    )
  )(mus, steps)
  for i in range(3):
    one = _gradient(params, contrast_weight=mus[i], ascent_step_size=steps[i])
    np.testing.assert_allclose(FLAT(take(mapped, i)), FLAT(one), 1e-4, 1e-6)


def test_workers_may_be_split_over_devices():
  objective = proximal(_objective(num_mixed=1), mu=0.1)
  params, batches = reference.params(), reference.data(4, 2)
  mesh = problem.mesh(2, names=('workers',))
  rows, everywhere = PartitionSpec('workers'), PartitionSpec()

  def local(params, batches):
    params = jax.lax.pcast(params, 'workers', to='varying')
    return local_sgd(objective, params, batches, 0.3)

  sharded = jax.jit(
    jax.shard_map(local, mesh=mesh, in_specs=(everywhere, rows), out_specs=rows)
  )(params, batches)
  # Keys are split on each device, so one half of the rows at a time.
  alone = jax.jit(jax.vmap(lambda b: local_sgd(objective, params, b, 0.3)))(
    jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batches)
  )
  found = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), sharded)
  np.testing.assert_allclose(FLAT(found), FLAT(alone), 1e-4, 1e-6)


def test_it_takes_the_models_of_the_library():
  graphdef, model = models.split(models.make('mlp', (4, 4, 1), 3, seed=0))
  params = {
    'model': model,
    'projection': projection(jax.random.key(1), num_features=32),
  }
  random = np.random.default_rng(0)
  labels = jnp.asarray(random.integers(0, 3, (2, 30, 8)), jnp.int32)
  images = jnp.asarray(random.normal(size=(2, 30, 8, 4, 4, 1)), jnp.float32)
  images = images + labels[..., None, None, None]
  objective = fedbr(
    *models.features_and_classifier(graphdef),
    pseudo_inputs=images[0, 0] / 3,
    ascent_step_size=0.1,
  )
  after = jax.jit(lambda p, b: local_sgd(objective, p, b, 0.1))(
    params, (images, labels)
  )
  loss_fn = models.cross_entropy_loss(graphdef)
  batch = images[0, 0], labels[0, 0]
  mine = take(after['model'], 1)
  assert loss_fn(mine, batch) < 0.7 * loss_fn(model, batch)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'ascent_step_size': -1.0}, 'fedbr needs ascent_step_size >= 0'),
    ({'contrast_weight': -1.0}, 'contrast_weight >= 0'),
    ({'pseudo_weight': -1.0}, 'pseudo_weight >= 0'),
    ({'tau_pull': -1.0}, 'tau_pull >= 0'),
    ({'tau_push': float('nan')}, 'tau_push >= 0'),
    ({'num_mixed': -1}, 'num_mixed to be a Python int'),
    ({'num_mixed': True}, 'num_mixed to be a Python int'),
  ],
)
def test_refusals(settings, message):
  with pytest.raises(ValueError, match=message):
    _objective(**settings)


def test_refusals_of_what_does_not_fit():
  params = reference.params()
  with pytest.raises(ValueError, match=r'row, got \[3, 5\] and \[4, 5\]'):
    _gradient(params, pseudo_inputs=jnp.zeros((3, 5)))
  with pytest.raises(
    ValueError, match=r"'projection': \.\.\.}, got \['b', 'c'"
  ):
    _objective().loss(params['model'], reference.data(), context(params))
  with pytest.raises(ValueError, match=r"got \['model', 'more', 'projection'"):
    _gradient(params | {'more': 0.0})
  inputs, labels = reference.data()
  with pytest.raises(ValueError, match='fedbr needs inputs .* got uint8'):
    _gradient(params, batch=(inputs.astype(jnp.uint8), labels))
