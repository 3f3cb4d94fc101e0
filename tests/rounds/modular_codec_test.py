"""Modular rounds: messages through codecs, paths drawn, gradients of one's own.

The loop over paths and modules is that of `modular_problem`, with codecs that
are written out here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import byzjax
from byzjax import data
from tests.rounds import modular_problem as problem
from tests.rounds.modular_problem import KEY, PATHS, close, modular, run

TOP = byzjax.top_k_codec(num_kept=2)
SIGN = byzjax.error_feedback(byzjax.scaled_sign_codec())


def top(x):
  """The two largest numbers."""
  kept = np.zeros_like(x)
  largest = np.argsort(-np.abs(x), kind='stable')[:2]
  kept[largest] = x[largest]
  return kept


def scaled_sign(x):
  return np.abs(x).mean() * np.where(x < 0, -1, 1)


class Sender:
  """What senders keep of what they have lost, each by its name."""

  def __init__(self, codec):
    self.codec, self.residuals = codec, {}

  def __call__(self, level, who, tree):
    vector, back = ravel_pytree(jax.tree.map(np.float64, tree))
    vector = np.float64(vector) + self.residuals.get((level, who), 0.0)
    sent = self.codec(vector)
    self.residuals[level, who] = vector - sent
    return back(jnp.asarray(sent, jnp.float32))


def test_every_message_and_every_aggregate_is_encoded_by_itself():
  """Error feedback both ways: of a path and a level, and of a module."""
  start, batches = problem.params(), problem.batches(num_rounds=3)
  # Path 4, alone on its module of level 1, is away in the second round.
  present = np.ones((3, 5), np.float32)
  present[1, [1, 4]] = 0
  rounds = modular(
    codec=byzjax.error_feedback(TOP),
    server_codec=SIGN,
    rescale_norm=True,
    worker_weights=lambda step: jnp.asarray(present)[step],
  )
  state, infos = run(rounds, start, batches)
  paths, modules = Sender(top), Sender(scaled_sign)
  expected, _ = problem.loop(
    start,
    batches,
    weights=present,
    rescale_norm=True,
    up=lambda i, level, delta: paths(level, i, delta),
    down=lambda level, m, delta: modules(level, m, delta),
  )
  close(state.params, expected, 1e-4)
  # Modules of 4 numbers in level 0 and of 4 in level 1.
  bits_up = 2 * 2 * (32 + 2) * present.sum(axis=1)
  bits_down = 2 * (32 + 4) * present.sum(axis=1)
  for info, up, down in zip(infos, bits_up, bits_down, strict=True):
    assert (float(info.bits_up), float(info.bits_down)) == (up, down)
  for level in range(2):
    kept = state.codec[level].residual[:, :4]
    lost = [paths.residuals[level, i] for i in range(5)]
    np.testing.assert_allclose(kept, np.stack(lost), 1e-4, 1e-5)


@pytest.mark.parametrize(
  'same',
  [
    dict(
      codec=byzjax.error_feedback(TOP),
      server_codec=SIGN,
      aggregator=byzjax.coordinate_median(),
      attack=byzjax.constant(value=5.0),
      byzantine=1,
    ),
    dict(
      codec=byzjax.sign_codec(),
      aggregator=byzjax.majority_vote(),
      attack=byzjax.sign_flip(scale=1.0, own=True),
      byzantine=1,
    ),
    dict(
      participation=3,
      attack=byzjax.alie(z=1.0),
      byzantine=2,
      aggregator=byzjax.coordinate_median(),
    ),
    dict(
      participation=3,
      codec=SIGN,
      num_local_steps=lambda step: 1 + jnp.arange(5) % 3,
      worker_weights=np.array([1.0, 2.0, 0.0, 1.0, 3.0]),
    ),
    dict(
      worker=byzjax.worker_momentum(0.9),
      byzantine_chain=False,
      participation=3,
      attack=byzjax.sign_flip(scale=3.0, own=True),
      byzantine=2,
    ),
  ],
  ids=['both_ways', 'signs', 'cohort', 'weighted_cohort', 'chain'],
)
def test_one_level_of_one_module_is_local_round(same):
  """With the same key the same workers are drawn and attacked."""
  start = {'a': jnp.full((1, 2, 2), 0.3), 'b': jnp.ones((1, 3))}
  batches = problem.batches(num_rounds=4)
  one = jax.tree.map(lambda x: x[0], start)

  def loss_fn(w, x):
    return jnp.mean((x - w['b'][None] * jnp.tanh(w['a']).sum()) ** 2)

  shared = dict(
    local_optimizer=optax.sgd(0.1, momentum=0.9),
    num_local_steps=3,
    optimizer=optax.sgd(0.5, momentum=0.9),
    aggregator=byzjax.mean(),
  )
  modular = byzjax.modular_round(
    lambda path, x: loss_fn(path[0], x),
    paths=np.zeros((5, 1), int),
    **shared | same,
  )
  local = byzjax.local_round(loss_fn, num_workers=5, **shared | same)
  state, infos = run(modular, (start,), batches)
  expected, others = run(local, one, batches)
  close(jax.tree.map(lambda x: x[0], state.params[0]), expected.params)
  (own,) = state.workers.optimizer[0].trace
  close(own, expected.workers.optimizer[0].trace)
  if 'codec' in same:
    close(state.codec[0], expected.codec)
  if 'worker' in same:
    close(state.workers.chain, expected.workers.chain)
  skipped = {'weights', 'kept', 'scores', 'factors'}
  if 'worker_weights' in same:
    skipped.add('loss')  # There it is also of who has no weight.
  for info, other in zip(infos, others):
    for name in other._fields:
      actual, wanted = getattr(info, name), getattr(other, name)
      if name not in skipped:
        assert (actual is None) == (wanted is None), name
        if wanted is not None:
          np.testing.assert_allclose(actual, wanted, 1e-5, 1e-6, err_msg=name)


def test_only_the_paths_that_are_drawn_compute_and_are_heard():
  start, batches = problem.params(), problem.batches(num_rounds=8)
  state, infos = run(modular(participation=2), start, batches)
  present = np.zeros((8, 5))
  for row, info in zip(present, infos):
    row[np.asarray(info.participants)] = 1
    assert info.masked.shape == info.is_byzantine.shape == (2,)
    assert float(info.bits_up) == float(info.bits_down) == 2 * 32 * 8
  assert (present.sum(axis=1) == 2).all() and (present.sum(axis=0) > 0).all()
  expected, states = problem.loop(start, batches, weights=present)
  close(state.params, expected)
  for i, inner in enumerate(states):
    own = jax.tree.map(lambda x, i=i: x[i], state.workers.optimizer)
    close(own, inner)


def test_attackers_know_nothing_of_paths_that_are_not_there():
  """What they make of honest messages is made of those of the drawn."""
  paths = np.zeros((5, 2), int)
  start, batches = problem.params((1, 1)), problem.batches(num_rounds=1)
  rounds = modular(
    paths=paths,
    participation=3,
    local_optimizer=optax.sgd(0.1),
    optimizer=optax.sgd(1.0),
    attack=byzjax.sign_flip(scale=2.0),
    byzantine=lambda step: jnp.ones(5, bool).at[1:4].set(False),
  )
  state, (info,) = run(rounds, start, batches)
  ids = np.asarray(info.participants)
  honest = [i for i in ids if 0 < i < 4]
  assert 0 < len(honest) < 3  # else there is nothing to see
  one, tx = problem.module(start, (0, 0)), optax.sgd(0.1)
  deltas = []
  for i in honest:
    end, _ = problem.local_update(one, batches[0, i], tx, tx.init(one))
    deltas.append(problem.flat(one) - problem.flat(end))
  mean = np.mean(deltas, axis=0)
  sent = [*deltas, *[-2 * mean] * (3 - len(honest))]
  moved = problem.flat(one) - problem.flat(problem.module(state.params, (0, 0)))
  np.testing.assert_allclose(moved, np.mean(sent, axis=0), 1e-4, 1e-6)


def test_scores_are_of_the_path_of_a_worker():
  """The path whose own module is the largest is drawn, whatever its number."""
  start, batches = problem.params((1, 5)), problem.batches(num_rounds=1)
  seen = byzjax.Participation(
    init=lambda n: (),
    score=lambda path, x: path[1]['c'] + 0 * x.sum(),
    draw=lambda state, scores, step, key: (
      (scores == scores.max()).astype(jnp.float32),
      state,
    ),
    num_participants=1,
  )
  paths = np.array([[0, 3], [0, 0], [0, 4], [0, 1], [0, 2]])
  _, (info,) = run(modular(paths=paths, participation=seen), start, batches)
  assert int(info.participants[0]) == np.argmax(start[1]['c'][paths[:, 1]])


def test_samplers_are_those_of_the_paths_that_are_drawn():
  documents = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
  partition = data.random_shards(np.zeros(20, int), 5)
  sampler = data.sequence_sampler(documents, batch_size=2)
  rounds = modular(sampler=sampler, participation=2, num_local_steps=2)
  shards = jax.tree.map(jnp.asarray, partition)
  state, infos = run(rounds, problem.params(), [shards] * 2)
  assert np.isfinite([float(info.loss) for info in infos]).all()
  drawn = {int(i) for info in infos for i in info.participants}
  counts = state.workers.optimizer[0].count
  assert {i for i in range(5) if counts[i]} == drawn


def test_a_gradient_of_ones_own_takes_the_place_of_that_of_the_loss():
  keys = []

  def value_and_grad(path, x, key):
    keys.append(key)
    value, gradient = jax.value_and_grad(problem.loss_fn)(path, x)
    return (value, jnp.sum(x)), jax.tree.map(lambda g: 2 * g, gradient)

  start, batches = problem.params(), problem.batches()
  rounds = byzjax.modular_round(
    None,
    paths=PATHS,
    local_optimizer=optax.sgd(0.1),
    num_local_steps=3,
    optimizer=optax.sgd(0.7, 0.9, nesterov=True),
    value_and_grad=value_and_grad,
    has_aux=True,
  )
  state, infos = run(rounds, start, batches)
  expected, _ = problem.loop(start, batches, tx=optax.sgd(0.2))
  close(state.params, expected)
  sums = np.asarray(batches[1]).sum(axis=(2, 3)).mean(axis=1)
  np.testing.assert_allclose(infos[1].aux, sums, 1e-4, 1e-5)
  assert infos[1].num_gradients is None
  assert jnp.issubdtype(keys[0].dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(codec=byzjax.alie()), 'codec to be a Codec or None'),
    (dict(server_codec=0.5), 'server_codec to be a Codec or None'),
    (dict(participation=6), 'participation <= num_workers, got 6 and 5'),
    (dict(participation=0), 'participation to be a Python int'),
  ],
)
def test_refuses_arguments(arguments, message):
  with pytest.raises(ValueError, match=f'modular_round needs {message}'):
    modular(**arguments)


def test_a_rule_without_weights_takes_no_drawn_paths():
  rounds = modular(
    paths=np.zeros((5, 2), int),
    aggregator=byzjax.krum(num_byzantine=1),
    participation=4,
  )
  state = rounds.init(problem.params((1, 1)))
  with pytest.raises(ValueError, match='modular_round: level 0, .*krum'):
    jax.eval_shape(rounds.step, state, problem.batches()[0], KEY)
