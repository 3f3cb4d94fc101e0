"""The constructed path: its ends, its segments, its bound, under attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import analysis
from tests.analysis import networks

TWO = (3, 8, 4)
THREE = (3, 7, 8, 4)  # an odd width: 3 of 7 are kept
DEEP = (3, 4, 6, 4, 4)  # three hidden layers


def halves(sizes):
  """Every other unit, so that blocks are not in a row."""
  return [jnp.arange(1, width, 2)[: width // 2] for width in sizes[1:-1]]


def rest(units, width, most):
  others = sorted(set(range(width)) - set(np.asarray(units).tolist()))
  return jnp.array(others[:most])


def segments(path):
  return jax.tree.leaves(path)[0].shape[0] - 1


def point(path, index):
  return jax.tree.map(lambda x: x[index], path)


LOSSES = {
  'cross_entropy': networks.cross_entropy,
  'squared_error': networks.squared_error,
}


@functools.partial(jax.jit, static_argnames='same_units')
def run(a, b, keep, batch, same_units=False):
  """The path, and both losses on it: [S, 5] each."""
  path = analysis.dropout_path(a, b, keep=keep, same_units=same_units)
  both = analysis.loss_along_path(
    path,
    lambda layers: jnp.stack([loss(layers, batch) for loss in LOSSES.values()]),
    points_per_segment=5,
  )
  return path, {name: both[..., i] for i, name in enumerate(LOSSES)}


def known(name, layers, keep, batch):
  """L and L(D_h) for every h, where D_h drops from hidden layer h on; NumPy."""
  layers = jax.tree.map(np.array, layers)
  found = [networks.loss_of(name, layers, batch)]
  for units, (kernel, _) in reversed([*zip(keep, layers[1:])]):
    dropped = np.delete(np.arange(len(kernel)), units)
    kernel *= len(kernel) / len(units)
    kernel[dropped] = 0
    found.append(networks.loss_of(name, layers, batch))
  return found


@pytest.mark.parametrize(
  'sizes, same_units, expected',
  [(TWO, False, 5), (TWO, True, 7), (THREE, False, 17), (THREE, True, 19),
   (DEEP, True, 29)],
)  # fmt: skip
def test_ends_segments_moves_and_bound(sizes, same_units, expected):
  with jax.enable_x64(True):
    a, b = networks.network(sizes, 0, 2.0), networks.network(sizes, 1, 2.0)
    keep, batch = halves(sizes), networks.examples(sizes)
    path, losses = run(a, b, keep, batch, same_units=same_units)
    path = jax.tree.map(np.asarray, path)
    assert segments(path) == expected
    jax.tree.map(np.testing.assert_array_equal, point(path, 0), a)
    jax.tree.map(np.testing.assert_array_equal, point(path, -1), b)

    is_below_moved = []
    for index in range(expected):
      start, end = point(path, index), point(path, index + 1)
      *below, last = [
        any(not np.array_equal(x, y) for x, y in zip(before, after))
        for before, after in zip(start, end)
      ]
      assert any(below) != last  # never the last layer and others at once
      is_below_moved.append(any(below))
    keep_b = keep if same_units else [
      rest(units, width, width // 2)
      for units, width in zip(keep, sizes[1:-1])
    ]  # fmt: skip
    for name, along in losses.items():
      along = np.asarray(along)
      constant = along[is_below_moved]
      np.testing.assert_allclose(constant, constant[:, :1] + np.zeros(5), 1e-9)
      chords = np.linspace(along[:, 0], along[:, -1], 5, axis=1)
      assert np.all(along <= chords + 1e-9)
      values = known(name, a, keep, batch) + known(name, b, keep_b, batch)
      # No other losses at breakpoints, and none of these left out.
      at_points = np.append(along[:, 0], along[-1, -1])
      distances = np.abs(at_points[:, None] - np.array(values)[None])
      assert distances.min(axis=1).max() < 1e-9
      assert distances.min(axis=0).max() < 1e-9
      assert along.max() <= max(values) + 1e-9


@pytest.mark.parametrize('same_units, expected', [(False, 37), (True, 39)])
def test_segments_are_in_proportion_to_depth(same_units, expected):
  layers = networks.network((3, 4, 6, 4, 6, 4), 0)
  find = functools.partial(analysis.dropout_path, same_units=same_units)
  path = jax.eval_shape(find, layers, layers, keep=[jnp.arange(2)] * 4)
  assert segments(path) == expected


def test_two_layers_with_an_odd_width_and_any_number_kept():
  sizes = (3, 7, 4)
  with jax.enable_x64(True):
    a, b = networks.network(sizes, 2), networks.network(sizes, 3)
    batch = networks.examples(sizes)
    keep = [jnp.array([6, 2])]
    losses = run(a, b, keep, batch)[1]['cross_entropy']
    # The other five, times 7 / 5.
    other = [rest(keep[0], 7, 7)]
    bound = max(
      networks.cross_entropy_of(
        networks.dropped_output(layers, units, batch[0]), batch[1]
      )
      for layers in (a, b)
      for units in ([jnp.arange(7)], keep if layers is a else other)
    )
    np.testing.assert_allclose(losses.max(), bound, rtol=1e-12)


def test_another_order_of_units_leaves_the_bound_and_moves_the_straight_line():
  with jax.enable_x64(True):
    a, b = networks.network(TWO, 6), networks.network(TWO, 7)
    batch, keep = networks.examples(TWO), [jnp.arange(4)]
    # Within the halves: the same sets of units are dropped.
    order = jnp.array([3, 1, 0, 2, 7, 4, 6, 5])
    moved = analysis.permute_units(b, [order])
    before, after = (
      run(a, other, keep, batch)[1]['cross_entropy'] for other in (b, moved)
    )
    np.testing.assert_allclose(after[-1, -1], before[-1, -1], rtol=1e-12)
    np.testing.assert_allclose(after.max(), before.max(), rtol=1e-12)

    @jax.jit
    def straight(other):
      return analysis.loss_along_path(
        analysis.linear_path(a, other),
        lambda layers: networks.cross_entropy(layers, batch),
        points_per_segment=3,
      )

    middle = networks.loss_of(
      'cross_entropy',
      jax.tree.map(lambda x, y: np.asarray(x + y) / 2, a, b),
      batch,
    )
    np.testing.assert_allclose(straight(b)[0, 1], middle, rtol=1e-12)
    assert abs(straight(moved)[0, 1] - middle) > 1e-3


def test_paths_of_many_networks_in_one_program():
  with jax.enable_x64(True):
    batch, random = networks.examples(TWO), np.random.default_rng(0)
    pairs = [
      (networks.network(TWO, i), networks.network(TWO, i + 3)) for i in range(3)
    ]
    a, b = (jax.tree.map(lambda *x: np.stack(x), *nets) for nets in zip(*pairs))
    keep = [np.stack([random.permutation(8)[:4] for _ in range(3)])]
    found = jax.vmap(run, (0, 0, 0, None))(a, b, keep, batch)
    for i, pair in enumerate(pairs):
      expected = run(*pair, [keep[0][i]], batch)
      for many, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(many[i], one, atol=1e-12)


def test_half_precision_stays():
  a = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
    networks.network(TWO, 0),
  )
  path = jax.eval_shape(run, a, a, halves(TWO), networks.examples(TWO))[0]
  assert {x.dtype for x in jax.tree.leaves(path)} == {jnp.dtype('bfloat16')}


def test_the_barrier_is_what_rises_above_the_higher_end():
  losses = jnp.array([[[1.0, 3.0], [3.0, 2.0]], [[2.0, 0.0], [0.0, 1.0]]])
  assert analysis.path_barrier(losses).tolist() == [1.0, 0.0]
  assert np.isnan(analysis.path_barrier(losses.at[0, 1, 0].set(jnp.nan))[0])


def test_a_robust_solution_under_attack_is_connected_to_the_attack_free_one():
  sizes, n, f = (3, 256, 2), 7, 2
  x, _ = networks.examples(sizes, 63)
  batch = x, (x[:, 0] > 0.2).astype(jnp.int32)
  # Mean-field: what leaves a unit is of order 1 / N, and moves in proportion.
  (kernel, bias), (top, top_bias) = networks.network(sizes, 0)
  start = ((kernel, bias), (top / 16, top_bias))
  rates = ((16.0, 16.0), (1 / 16, 1.0))
  scale = optax.stateless(lambda g, _: jax.tree.map(jnp.multiply, g, rates))

  @functools.partial(jax.jit, static_argnums=0)
  def train(byzantine, start):
    training = byzjax.robust_round(
      networks.cross_entropy,
      aggregator=byzjax.coordinate_median(),
      attack=byzjax.sign_flip(scale=10.0) if byzantine else None,
      byzantine=byzantine,
      optimizer=optax.chain(scale, optax.sgd(0.2)),
      num_workers=n,
    )
    batches = jax.tree.map(
      lambda x: jnp.stack([x[i::n] for i in range(n)]), batch
    )
    key = jax.random.key(0)
    state = jax.lax.fori_loop(
      0,
      100,
      lambda _, state: training.step(state, batches, key)[0],
      training.init(start),
    )
    return state.params

  free, robust = train(0, start), train(f, start)
  keep, other = [jnp.arange(128)], [jnp.arange(128, 256)]
  losses = run(free, robust, keep, batch)[1]['cross_entropy']
  values = known('cross_entropy', free, keep, batch)
  values += known('cross_entropy', robust, other, batch)
  np.testing.assert_allclose(losses.max(), max(values), rtol=1e-5)
  # Attackers cost something; and it is no higher in between.
  assert losses[0, 0] + 0.05 < losses[-1, -1] < 0.3
  assert analysis.path_barrier(losses) < 0.05


LAYERS = networks.network(THREE, 0)


@pytest.mark.parametrize(
  'call, message',
  [
    (
      lambda: analysis.dropout_path(
        LAYERS, networks.network((3, 7, 6, 4), 0), keep=halves(THREE)
      ),
      'the same shapes and dtypes',
    ),
    (
      lambda: analysis.dropout_path(
        LAYERS, LAYERS, keep=[jnp.arange(4), jnp.arange(4)]
      ),
      'at most 3 of 7 units of a layer, got 4',
    ),
    (
      lambda: analysis.dropout_path(
        networks.network(TWO, 0),
        networks.network(TWO, 0),
        keep=[jnp.arange(5)],
        same_units=True,
      ),
      'at most 4 of 8',
    ),
    (
      lambda: analysis.dropout_path(
        networks.network(TWO, 0), networks.network(TWO, 0), keep=[jnp.arange(8)]
      ),
      'at most 7 of 8',
    ),
    (
      lambda: analysis.loss_along_path(jnp.ones((1, 2)), jnp.sum),
      'at least 2 points',
    ),
    (
      lambda: analysis.loss_along_path(
        jnp.ones((2, 2)), jnp.sum, points_per_segment=1
      ),
      'points_per_segment',
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
