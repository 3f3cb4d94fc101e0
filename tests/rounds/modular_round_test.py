"""DiPaCo: paths, modules, their limits; paths Byzantine or missing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import byzjax
from byzjax import data, models
from tests.rounds import modular_problem as problem
from tests.rounds.modular_problem import KEY, PATHS, close, modular, run


def test_one_path_is_diloco():
  """All levels with one module: P workers on the shards of a single path."""
  start, batches = problem.params((1, 1)), problem.batches(3)
  rounds = modular(
    paths=np.zeros((3, 2), int),
    local_optimizer=optax.adamw(0.1, weight_decay=0.1),
  )
  state, infos = run(rounds, start, batches)
  diloco = byzjax.diloco(
    problem.loss_fn, learning_rate=0.1, num_local_steps=3, num_workers=3
  )
  one = problem.module(start, (0, 0))
  expected, others = run(diloco, one, batches)
  close(problem.module(state.params, (0, 0)), expected.params, 1e-6)
  for info, other in zip(infos, others):
    for name in ('loss', 'bits_up', 'bits_down', 'aggregation_error'):
      np.testing.assert_allclose(
        getattr(info, name), getattr(other, name), 1e-5, 1e-6
      )


def test_a_flat_network_is_independent_runs():
  """One level and a module per path: each is DiLoCo with a single worker."""
  start, batches = problem.params((3, 3)), problem.batches(3)
  paths = np.stack([np.arange(3)] * 2, axis=1)
  state, _ = run(modular(paths=paths), start, batches)
  for path in range(3):
    alone = byzjax.diloco(
      problem.loss_fn,
      learning_rate=problem.RATE,
      weight_decay=0.0,
      num_local_steps=3,
      num_workers=1,
    )
    one = problem.module(start, (path, path))
    expected, _ = run(alone, one, batches[:, path : path + 1])
    close(problem.module(state.params, (path, path)), expected.params, 1e-6)


@pytest.mark.parametrize('rescale_norm', [False, True])
def test_modules_take_the_steps_of_a_hand_written_loop(rescale_norm):
  """Three kinds of modules: on 3, 2 and 1 paths."""
  start, batches = problem.params(), problem.batches()
  state = problem.plain()
  if rescale_norm:
    state, _ = run(modular(rescale_norm=True), start, batches)
  expected, states = problem.loop(start, batches, rescale_norm=rescale_norm)
  close(state.params, expected)
  for i, inner in enumerate(states):
    own = jax.tree.map(lambda x, i=i: x[i], state.workers.optimizer)
    close(own, inner)


def test_an_outer_step_of_one_is_the_mean_of_the_copies():
  start, batches = problem.params(), problem.batches(num_rounds=1)
  state, _ = run(modular(optimizer=optax.sgd(1.0)), start, batches)
  tx = problem.TX
  copies = []
  for path, mine in zip(PATHS, batches[0]):
    one = problem.module(start, path)
    copies.append(problem.local_update(one, mine, tx, tx.init(one))[0])
  for level in range(2):
    for m in range(PATHS[:, level].max() + 1):
      through = [copies[i][level] for i in np.flatnonzero(PATHS[:, level] == m)]
      average = jax.tree.map(lambda *x: np.mean(x, axis=0), *through)
      close(jax.tree.map(lambda x, m=m: x[m], state.params[level]), average)


def test_weights_are_normalised_within_a_module():
  start, batches = problem.params(), problem.batches()
  sizes = np.array([1.0, 5.0, 2.0, 3.0, 7.0])
  state, _ = run(modular(worker_weights=sizes), start, batches)
  expected, _ = problem.loop(start, batches, weights=[sizes, sizes])
  close(state.params, expected)
  equal, _ = run(modular(worker_weights=np.full(5, 9.0)), start, batches)
  close(equal.params, problem.plain().params, 1e-6)


def test_a_path_that_was_preempted_leaves_the_mean_of_the_others():
  start, batches = problem.params(), problem.batches(num_rounds=3)
  # Path 4, alone on its module of level 1, is away in the second round.
  present = np.ones((3, 5), np.float32)
  present[1, [1, 4]] = 0
  table = jnp.asarray(present)
  rounds = modular(worker_weights=lambda step: table[step])
  state, infos = run(rounds, start, batches)
  expected, states = problem.loop(start, batches, weights=present)
  close(state.params, expected)
  for i, inner in enumerate(states):
    own = jax.tree.map(lambda x, i=i: x[i], state.workers.optimizer)
    close(own, inner)
  assert [int(s[0].count) for s in states] == [9, 6, 9, 9, 6]
  bits = [float(info.bits_up) for info in infos]
  assert bits[1] == bits[0] * 3 / 5 and bits[2] == bits[0]


def test_a_module_without_a_path_stays_as_it_is():
  start, batches = problem.params(), problem.batches(num_rounds=1)
  away = np.array([1, 1, 1, 1, 0], np.float32)
  state, info = run(modular(worker_weights=away), start, batches)
  close(
    jax.tree.map(lambda x: x[2], state.params[1]),
    jax.tree.map(lambda x: x[2], start[1]),
    0,
  )
  # Not even its momentum moves, which would show in the next round.
  trace = jax.tree.leaves(state.optimizer[1])
  assert all(np.all(np.asarray(x[2]) == 0) for x in trace)
  assert all(np.any(np.asarray(x[1]) != 0) for x in trace)
  assert np.isfinite(info[0].aggregation_error)


STAR = np.array([[0, i] for i in range(5)])
RULES = {
  'mean': byzjax.mean(),
  'coordinate_median': byzjax.coordinate_median(),
  'krum': byzjax.krum(num_byzantine=1),
  'geometric_median': byzjax.geometric_median(),
  'centered_clipping': byzjax.centered_clipping(radius=0.1),
}


@pytest.mark.parametrize(
  'rule', ['krum', 'geometric_median', 'centered_clipping']
)
def test_the_rule_of_a_module_sees_the_messages_of_its_paths(rule):
  """Two modules of five paths each, and the rule's state between rounds."""
  rounds_of = dict(
    paths=np.repeat([[0, 0], [1, 1]], 5, axis=0),
    local_optimizer=optax.sgd(0.1),
    optimizer=optax.sgd(1.0),
  )
  start, batches = problem.params((2, 2)), problem.batches(10, num_steps=1)
  rounds = modular(**rounds_of, num_local_steps=1, aggregator=RULES[rule])
  state, _ = run(rounds, start, batches)
  expected = []
  for m in range(2):
    now = problem.module(start, (m, m))
    rule_states = [RULES[rule].init(level) for level in now]
    for batch in batches:
      mine = batch[5 * m : 5 * m + 5, 0]
      gradients = jax.vmap(problem.GRADIENT, (None, 0))(now, mine)
      messages = jax.tree.map(lambda g: 0.1 * g, gradients)
      steps = []
      for level in range(2):
        step, rule_states[level] = RULES[rule].update(
          messages[level], rule_states[level]
        )
        steps.append(step)
      now = jax.tree.map(lambda w, u: w - u, now, tuple(steps))
    expected.append(now)
  for m in range(2):
    close(problem.module(state.params, (m, m)), expected[m], 1e-4)


def honest_copies(start, batches):
  tx = optax.sgd(0.1)
  ends = []
  for path, mine in zip(STAR, batches):
    one = problem.module(start, path)
    ends.append(problem.local_update(one, mine, tx, tx.init(one))[0])
  return ends


@pytest.mark.parametrize('rule', ['mean', 'coordinate_median'])
def test_two_lying_paths_of_five(rule):
  """On what all share, a median stays among the honest; a mean is lost."""
  start, batches = problem.params((1, 5)), problem.batches(num_rounds=1)
  rounds = modular(
    paths=STAR,
    local_optimizer=optax.sgd(0.1),
    optimizer=optax.sgd(1.0),
    aggregator=[RULES[rule], byzjax.mean()],
    attack=byzjax.constant(value=1e3),
    byzantine=2,
  )
  state, (info,) = run(rounds, start, batches)
  copies = honest_copies(start, batches[0])
  shared = np.stack([problem.flat(copy[0]) for copy in copies[2:]])
  module = problem.flat(problem.module(state.params, (0, 0))[0])
  inside = (module >= shared.min(0) - 1e-6) & (module <= shared.max(0) + 1e-6)
  assert inside.all() == (rule == 'coordinate_median')
  # A module of one path is what its worker says.
  for i in range(2, 5):
    own = problem.module(state.params, (0, i))[1]
    close(own, copies[i][1])
  byzantine = problem.module(state.params, (0, 0))[1]
  assert np.abs(problem.flat(byzantine) - problem.flat(copies[0][1])).max() > 10
  np.testing.assert_array_equal(info.is_byzantine, [True] * 2 + [False] * 3)


def test_a_path_of_nan():
  start, batches = problem.params((1, 5)), problem.batches(num_rounds=2)
  rounds = modular(
    paths=STAR,
    attack=byzjax.constant(value=np.nan),
    byzantine=np.arange(5) == 3,
  )
  state, infos = run(rounds, start, batches)
  assert np.isfinite(problem.flat(state.params)).all()
  others, _ = run(
    modular(paths=STAR, worker_weights=np.float32(np.arange(5) != 3)),
    start,
    batches,
  )
  for i in (0, 1, 2, 4):
    close(
      problem.module(state.params, (0, i)),
      problem.module(others.params, (0, i)),
    )
  np.testing.assert_array_equal(infos[0].masked, np.arange(5) == 3)
  assert int(infos[0].num_nonfinite) == 1


def test_a_data_attack_is_on_the_batches_of_the_liars():
  start, batches = problem.params(), problem.batches(num_rounds=1)

  def poison(batch, is_byzantine, key=None):
    del key
    return jnp.where(is_byzantine.reshape(-1, 1, 1), 50.0, batch)

  rounds = modular(attack=poison, byzantine=np.arange(5) == 4)
  state, _ = run(rounds, start, batches)
  poisoned = batches.at[:, 4].set(50.0)
  expected, _ = problem.loop(start, poisoned)
  close(state.params, expected)


@pytest.mark.parametrize(
  'arguments',
  [
    dict(worker_map='map', num_local_steps=np.array([3, 3])),
    dict(num_local_steps=lambda step: jnp.full(5, 3)),
  ],
)
def test_the_same_round_in_other_words(arguments):
  start, batches = problem.params(), problem.batches()
  state, _ = run(modular(**arguments), start, batches)
  close(state.params, problem.plain().params, 1e-6)


def test_a_local_state_that_is_reset():
  start, batches = problem.params(), problem.batches()
  first, _ = problem.loop(start, batches[:1], beta=0.0)
  expected, _ = problem.loop(first, batches[1:], beta=0.0)
  state, _ = run(
    modular(local_state='reset', optimizer=optax.sgd(0.7)), start, batches
  )
  assert state.workers.optimizer == ()
  close(state.params, expected)


def test_batches_of_a_sampler_are_those_of_local_round():
  documents = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
  partition = data.random_shards(np.zeros(20, int), 3)
  sampler = data.sequence_sampler(documents, batch_size=4)
  shards = [jax.tree.map(jnp.asarray, partition)] * 2
  start = problem.params((1, 1))
  same = dict(
    local_optimizer=optax.sgd(0.1), num_local_steps=2, sampler=sampler
  )
  state, _ = run(
    modular(paths=np.zeros((3, 2), int), optimizer=optax.sgd(1.0), **same),
    start,
    shards,
  )
  expected, _ = run(
    byzjax.local_round(
      problem.loss_fn,
      aggregator=byzjax.mean(),
      optimizer=optax.sgd(1.0),
      num_workers=3,
      **same,
    ),
    problem.module(start, (0, 0)),
    shards,
  )
  close(problem.module(state.params, (0, 0)), expected.params, 1e-6)


def test_scan_over_rounds_and_vmap_over_a_learning_rate():
  start, batches = problem.params(), problem.batches()

  def train(rate):
    rounds = modular(optimizer=optax.sgd(rate, 0.9, nesterov=True))

    def step(state, batch):
      return rounds.step(state, batch, KEY)

    return jax.lax.scan(step, rounds.init(start), batches)[0].params

  trained = jax.jit(jax.vmap(train))(jnp.array([0.3, 0.7]))
  expected, _ = problem.loop(start, batches)
  close(jax.tree.map(lambda x: x[1], trained), expected)


def test_a_transformer_learns_by_paths():
  """Four languages of one letter each: its own path has each of them."""
  model = models.Transformer(
    4, num_layers=2, width=8, num_heads=1, length=4, rngs=nnx.Rngs(0)
  )
  graphdef, params = models.split(model)
  next_token = models.next_token_loss(graphdef)
  paths = models.grid_paths((2, 2))
  rounds = byzjax.modular_round(
    lambda path, tokens: next_token(models.join_levels(path), tokens),
    paths=paths,
    local_optimizer=optax.adam(0.02),
    num_local_steps=5,
    optimizer=optax.sgd(0.7, 0.9, nesterov=True),
  )
  start = models.repeat_modules(models.split_levels(params, 2), (2, 2))
  tokens = jnp.broadcast_to(jnp.arange(4)[:, None, None, None], (4, 1, 2, 5))
  state, infos = run(rounds, start, [tokens] * 6)
  assert infos[0].loss > 0.5 and infos[-1].loss < 0.1


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(paths=np.zeros(3, int)), r'paths to be integers .* got int64\[3\]'),
    (dict(paths=np.zeros((3, 2))), r'integers .* got float64\[3, 2\]'),
    (
      dict(paths=np.array([[0, 0], [0, 2]])),
      r'every module of a level, numbered from 0, got \[0, 2\] in level 1',
    ),
    (
      dict(aggregator=[byzjax.mean()]),
      'a sequence of one for each of the 2 levels',
    ),
    (dict(aggregator=optax.sgd(1.0)), 'aggregator to be an Aggregator'),
    (dict(local_state='average'), 'local_state to be one of keep, reset'),
    (dict(num_local_steps=0), 'num_local_steps to be a Python int'),
    (dict(worker_weights=np.ones(4)), r'worker_weights to be float\[5\]'),
    (dict(byzantine=np.ones(4, bool)), r'bool\[5\], got bool\[4\]'),
  ],
)
def test_refuses_arguments(arguments, message):
  with pytest.raises(ValueError, match=f'modular_round needs .*{message}'):
    modular(**arguments)


@pytest.mark.parametrize(
  'start, message',
  [
    (problem.params()[:1], 'a tuple of 2 levels, as paths have, got 1'),
    (list(problem.params()), 'a tuple of 2 levels, as paths have, got list'),
    (problem.params((2, 2)), r'level 1 to have leaves \[3, ...\], .* got 2'),
  ],
)
def test_refuses_parameters(start, message):
  with pytest.raises(
    ValueError, match=f'modular_round needs params .*{message}'
  ):
    modular().init(start)


def test_a_rule_that_has_too_few_messages_names_the_level():
  rounds = modular(aggregator=[byzjax.mean(), byzjax.krum(num_byzantine=1)])
  state = rounds.init(problem.params())
  with pytest.raises(ValueError) as error:
    jax.eval_shape(rounds.step, state, problem.batches()[0], KEY)
  assert str(error.value).startswith(
    'modular_round: level 1, a module of 1 paths: krum needs'
  )


def test_refuses_a_batch_of_other_rows():
  rounds = modular()
  state = rounds.init(problem.params())
  with pytest.raises(ValueError, match='num_workers=5 rows, got 4'):
    rounds.step(state, problem.batches(4)[0], KEY)
