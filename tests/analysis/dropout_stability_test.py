"""Dropping units and making up for it, against loops over units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import analysis
from tests.analysis import networks

SIZES = (3, 7, 6, 4)


drop_units = jax.jit(analysis.drop_units)


def loss_fn(batch):
  return lambda layers: networks.cross_entropy(layers, batch)


def test_a_dropped_network_is_that_of_loops_over_the_kept_units():
  with jax.enable_x64(True):
    layers = networks.network(SIZES, 0)
    x, _ = networks.examples(SIZES, 5)
    keep = [jnp.array([5, 0, 3]), jnp.array([1, 4])]
    found = networks.apply(drop_units(layers, keep), x)
    expected = networks.dropped_output(layers, keep, x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_all_units_kept_change_nothing_and_hidden_biases_stay():
  layers = networks.network(SIZES, 1)
  whole = drop_units(layers, [jnp.arange(7), jnp.arange(6)[::-1]])
  jax.tree.map(np.testing.assert_array_equal, whole, layers)
  part = drop_units(layers, [jnp.arange(2), jnp.arange(3)])
  for (_, bias), (_, before) in zip(part, layers):
    np.testing.assert_array_equal(bias, before)


def test_equal_units_can_be_dropped():
  with jax.enable_x64(True):
    one = networks.network((3, 1, 1, 4), 2)
    widths = (3, 5, 4, 4)
    layers = tuple(
      (jnp.tile(kernel, (1 if a == 3 else a, 1 if b == 4 and last else b)),
       jnp.tile(bias, 1 if last else b))
      for (kernel, bias), a, b, last in zip(
        one, widths[:-1], widths[1:], (False, False, True)
      )
    )  # fmt: skip
    x, _ = networks.examples(widths)
    keep = [jnp.array([1, 3]), jnp.array([2])]
    found = networks.apply(drop_units(layers, keep), x)
    np.testing.assert_allclose(found, networks.apply(layers, x), rtol=1e-12)


def test_what_is_dropped_may_be_infinite():
  (kernel, bias), (top, top_bias) = networks.network((3, 4, 2), 3)
  layers = ((kernel, bias), (top.at[2].set(jnp.nan), top_bias))
  found = drop_units(layers, [jnp.array([0, 1])])
  assert np.all(np.isfinite(found[1][0]))


def test_half_precision_stays():
  layers = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
    networks.network(SIZES, 0),
  )
  keep = [jnp.arange(3), jnp.arange(3)]
  found = jax.eval_shape(analysis.drop_units, layers, keep)
  assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype('bfloat16')}


def test_statistics_are_those_of_the_draws():
  batch = networks.examples(SIZES)
  layers = networks.network(SIZES, 4)
  key = jax.random.key(1)
  found = jax.jit(
    lambda layers, key: analysis.dropout_stability(
      loss_fn(batch), layers, num_kept=[3, 4], num_draws=6, key=key
    )
  )(layers, key)
  losses = []
  draw = jax.jit(lambda k: analysis.draw_units(k, layers, num_kept=[3, 4]))
  for k in jax.random.split(key, 6):
    keep = [units.tolist() for units in draw(k)]
    assert [len(set(units)) for units in keep] == [3, 4]
    output = networks.dropped_output(layers, keep, batch[0])
    losses.append(networks.cross_entropy_of(output, batch[1]))
  np.testing.assert_allclose(found.dropped, losses, rtol=1e-5)
  gaps = np.abs(np.array(losses) - float(found.loss))
  np.testing.assert_allclose(found.mean, gaps.mean(), rtol=1e-4)
  np.testing.assert_allclose(found.std, gaps.std(), rtol=1e-4)
  np.testing.assert_allclose(found.max, gaps.max(), rtol=1e-4)
  assert len(set(losses)) == 6


def test_the_spread_is_that_of_means_of_a_sample():
  # (1/N) sum_i z_i becomes the mean of M of the z_i, drawn without replacement.
  n, num_kept = 60, 20
  z = np.random.default_rng(5).normal(size=n)
  layers = (
    (jnp.zeros((1, n)), jnp.ones(n)),
    (jnp.asarray(z[:, None] / n, jnp.float32), jnp.zeros(1)),
  )

  @jax.jit
  def stability(layers):
    return analysis.dropout_stability(
      lambda layers: layers[0][1] @ layers[1][0][:, 0],
      layers,
      num_kept=num_kept,
      num_draws=1000,
      key=jax.random.key(0),
    )

  found = stability(layers)
  np.testing.assert_allclose(found.loss, z.mean(), rtol=1e-4)
  std = z.std(ddof=1) * np.sqrt((1 - num_kept / n) / num_kept)
  np.testing.assert_allclose(found.dropped.std(), std, rtol=0.1)
  # Half-normal: the mean of the absolute value.
  np.testing.assert_allclose(found.mean, std * np.sqrt(2 / np.pi), rtol=0.1)


LAYERS = networks.network(SIZES, 0)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: analysis.drop_units(LAYERS[:1], []), 'at least two pairs'),
    (
      lambda: analysis.drop_units((LAYERS[0], LAYERS[2]), [jnp.arange(2)]),
      'out of a layer equals in of the next',
    ),
    (
      lambda: analysis.drop_units(LAYERS, [jnp.arange(2)]),
      r'keep to be int\[M\] for each hidden layer.*\[7, 6\]',
    ),
    (
      lambda: analysis.drop_units(LAYERS, [jnp.arange(0), jnp.arange(2)]),
      r'keep to be int\[M\]',
    ),
    (
      lambda: analysis.drop_units(LAYERS, [jnp.array([1, 1]), jnp.arange(2)]),
      'distinct numbers from 0 to 6',
    ),
    (
      lambda: analysis.drop_units(LAYERS, [jnp.array([1, 7]), jnp.arange(2)]),
      'distinct numbers from 0 to 6',
    ),
    (
      lambda: analysis.drop_units(LAYERS, [jnp.ones(2), jnp.arange(2)]),
      r'keep to be int\[M\]',
    ),
    (
      lambda: analysis.draw_units(jax.random.key(0), LAYERS, num_kept=7),
      'num_kept <= width, got 7 > 6',
    ),
    (
      lambda: analysis.draw_units(jax.random.key(0), LAYERS, num_kept=[3]),
      'one entry per hidden layer',
    ),
    (
      lambda: analysis.dropout_stability(
        jnp.sum, LAYERS, num_draws=0, key=jax.random.key(0)
      ),
      'num_draws',
    ),
    (
      lambda: analysis.permute_units(LAYERS, [jnp.arange(7), jnp.arange(5)]),
      r'permutations to be int\[N\]',
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
