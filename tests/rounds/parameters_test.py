"""What the `init` of a round takes as parameters, and what it refuses."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models
from tests.rounds import every_round

ROUNDS = every_round.ROUNDS


class Model(nnx.Module):
  def __init__(self, norm=None, dropout=None):
    self.linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    self.norm, self.dropout = norm, dropout

  def __call__(self, x):
    return self.linear(x)


def with_batch_norm():
  return Model(norm=nnx.BatchNorm(3, rngs=nnx.Rngs(0)))


def with_dropout():
  return Model(dropout=nnx.Dropout(0.5, rngs=nnx.Rngs(0)))


def refusal(name, argument, got):
  return (
    f'{name}: {argument} must hold its whole state in nnx.Param, got {got}.*'
    ' in (Model|dict|tuple).*'
    'leak from worker to worker.*needs_key=True'
  )


def init(name, params):
  rounds = ROUNDS[name](every_round.loss_fn)
  return rounds.init(every_round.as_params(name, params))


@pytest.mark.parametrize('name', ROUNDS)
@pytest.mark.parametrize(
  ('make', 'got'),
  [(with_batch_norm, 'BatchStat'), (with_dropout, 'RngCount, RngKey')],
)
def test_state_that_is_no_parameter(name, make, got):
  message = refusal(name, 'params', got)
  with pytest.raises(ValueError, match=message):
    init(name, make())
  with pytest.raises(ValueError, match=message):  # without the module
    init(name, {'model': nnx.state(make())})


@pytest.mark.parametrize(
  ('make', 'got'),
  [(with_batch_norm, 'BatchStat'), (with_dropout, 'RngCount, RngKey')],
)
def test_split_says_the_same(make, got):
  with pytest.raises(ValueError, match=refusal('split', 'model', got)):
    models.split(make())


@pytest.mark.parametrize('name', ROUNDS)
@pytest.mark.parametrize(
  ('leaf', 'got'),
  [
    (jax.random.key(0), r'key<fry>\[\]'),
    (jnp.arange(3), r'int32\[3\]'),
    (jnp.array(True), r'bool\[\]'),
    (jnp.ones(2, complex), r'complex64\[2\]'),
    (1, r'int32\[\]'),
  ],
)
def test_leaves_without_gradients(name, leaf, got):
  if name == 'modular_round':
    got = got.replace(r'\[', r'\[1(, )?')
    leaf = jnp.asarray(leaf) if isinstance(leaf, int) else leaf
  message = (
    f'{name} needs the leaves of params to be real numbers.*got {got} at'
    r" params(\[0\])?\['b'\]\['c'\]:"
  )
  with pytest.raises(ValueError, match=message):
    init(name, {'a': jnp.ones(2), 'b': {'c': leaf}})


def test_no_parameters():
  with pytest.raises(ValueError, match='robust_round needs params of at least'):
    init('robust_round', {})


@pytest.mark.parametrize('name', ROUNDS)
def test_modules_of_parameters_are_taken_as_they_are(name):
  for params in (Model(), nnx.state(Model()), models.split(Model())[1]):
    state = jax.jit(lambda params: init(name, params))(params)
    for actual, expected in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(params)
    ):
      np.testing.assert_array_equal(
        np.broadcast_to(expected, actual.shape), actual
      )
    # And not under a trace.
    assert jax.tree.structure(init(name, params)) is not None


def test_without_flax():
  """Rounds find modules without importing what makes them."""
  program = (
    'import sys, jax.numpy as jnp, optax, byzjax\n'
    'rounds = byzjax.robust_round(lambda w, x: jnp.sum(w), num_workers=2,\n'
    '  aggregator=byzjax.mean(), optimizer=optax.sgd(0.1))\n'
    'rounds.init(jnp.zeros(2))\n'
    'assert "flax" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True)
