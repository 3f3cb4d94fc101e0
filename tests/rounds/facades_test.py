"""Methods that are a round with arguments filled in say what they take."""

import importlib
import inspect
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import gossip, objectives, topology
from byzjax.rounds import _replicas

N = 3
LOCAL = ('fed_avg', 'fed_prox', 'fed_opt', 'diloco')
NAMES = (*LOCAL, 'parle', 'elastic_averaging', 'd_sgd')
STEPS = dict(num_local_steps=2, num_workers=N)
# The least that each has to be told.
LEAST: dict[str, dict[str, Any]] = {
  'fed_avg': dict(learning_rate=0.1, **STEPS),
  'fed_prox': dict(learning_rate=0.1, mu=0.5, **STEPS),
  'fed_opt': dict(learning_rate=0.1, optimizer=optax.adam(0.1), **STEPS),
  'diloco': dict(learning_rate=0.1, **STEPS),
  'parle': dict(learning_rate=0.1, gamma=0.1, rho=0.1, **STEPS),
  'elastic_averaging': dict(local_optimizer=optax.sgd(0.1), **STEPS),
  'd_sgd': dict(topology=topology.ring(4), learning_rate=0.1, consensus=0.3),
}
# What each is built of, and which of its arguments the method decides.
PRECONDITIONED = {'preconditioner', 'preconditioner_scope', 'side_aggregator'}
DECIDED = {
  'fed_avg': {'local_optimizer', 'local_state', 'optimizer'},
  # A gradient from elsewhere would know nothing of mu.
  'fed_prox': {
    'local_optimizer',
    'local_state',
    'optimizer',
    'value_and_grad',
  },
  'fed_opt': {'local_optimizer', 'local_state'},
  # AdamW is the preconditioner.
  'diloco': {'local_optimizer', 'local_state', 'optimizer'} | PRECONDITIONED,
  'parle': {'name', 'method'},
  'elastic_averaging': {'name', 'method'},
  # One step, whose length goes by the round.
  'd_sgd': {
    'optimizer',
    'order',
    'noise',
    'num_workers',
    'num_local_steps',
    'local_state',
  },
}


def parameters(function):
  return inspect.signature(function).parameters


def loss_fn(w, x):
  return jnp.mean((w - x) ** 2) / 2


def noisy_loss_fn(w, x, key):
  """With a key, and an auxiliary output."""
  noise = jax.random.normal(key, w.shape)
  return jnp.mean((w + noise - x) ** 2) / 2, noise


def module_of(name):
  return importlib.import_module(f'byzjax.rounds._{name}')


def underlying(name):
  """Where the round is made that the method fills in: a module and a name."""
  if name in LOCAL:
    return module_of(name), 'local_round'
  if name == 'd_sgd':
    return module_of(name), 'gossip_round'
  return _replicas, 'build'


@pytest.mark.parametrize('name', [*NAMES, 'replicas'])
def test_every_argument_has_a_name_and_a_type(name):
  function = getattr(byzjax, name)
  first, *others = parameters(function).values()
  assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
  assert {p.kind for p in others} <= {inspect.Parameter.KEYWORD_ONLY}
  hints = get_type_hints(function)
  for parameter in (first, *others):
    if parameter.name not in ('state', 'optimizer', 'local_optimizer'):
      assert hints[parameter.name] is not Any, parameter
  assert 'return' in hints


@pytest.mark.parametrize('name', NAMES)
def test_what_the_method_does_not_decide_is_there_and_passed_on(
  name, monkeypatch
):
  module, target = underlying(name)
  below = parameters(getattr(module, target)).keys()
  given = parameters(getattr(byzjax, name)).keys()
  assert below - given == DECIDED[name]

  monkeypatch.setattr(module, target, lambda *args, **kwargs: kwargs)
  own = LEAST[name].keys() | {'loss_fn', 'rule', 'consensus', 'topology'}
  if name == 'fed_prox':  # The objective that it makes takes these.
    own |= {'needs_key', 'has_aux'}
  marks = {a: lambda a=a: a for a in below & given - own}
  passed = getattr(byzjax, name)(loss_fn, **LEAST[name], **marks)
  for argument, mark in marks.items():
    assert passed[argument] is mark, argument
  for argument in STEPS.keys() & below & given:
    assert passed[argument] == STEPS[argument]


@pytest.mark.parametrize('name', NAMES)
def test_a_wrong_name_is_refused_in_the_name_of_the_method(name):
  with pytest.raises(TypeError, match=rf"^{name}\(\) .*'learning_rates'"):
    getattr(byzjax, name)(loss_fn, **LEAST[name], learning_rates=0.1)


@pytest.mark.parametrize(
  'name, argument',
  [(name, a) for name in LOCAL for a in sorted(DECIDED[name])]
  + [
    ('parle', 'local_optimizer'),
    ('parle', 'optimizer'),
    ('elastic_averaging', 'learning_rate'),
    ('elastic_averaging', 'optimizer'),
    ('d_sgd', 'optimizer'),
    ('d_sgd', 'order'),
    ('d_sgd', 'num_local_steps'),
  ],
)
def test_what_contradicts_the_method_is_no_argument_of_it(name, argument):
  with pytest.raises(TypeError, match=rf"^{name}\(\) .*'{argument}'"):
    getattr(byzjax, name)(loss_fn, **LEAST[name], **{argument: None})


PRECONDITIONER = byzjax.scale_by_preconditioner('adam', lower_bound=1e-3)


@pytest.mark.parametrize(
  'name, arguments, message',
  [
    ('fed_avg', {'preconditioner_scope': 'local'}, 'needs a preconditioner'),
    ('fed_prox', {'side_aggregator': byzjax.mean()}, 'side_aggregator to be'),
    (
      'fed_opt',
      {
        'side_aggregator': byzjax.mean(),
        'preconditioner': PRECONDITIONER,
        'preconditioner_scope': 'local',
      },
      'side_aggregator to be None',
    ),
    ('parle', {'batches_per_epoch': 3}, 'parle needs batches_per_epoch to be'),
    ('d_sgd', {'consensus_decay': 1.0}, 'd_sgd needs consensus_decay <'),
    ('fed_avg', {'learning_rate': -1.0}, 'fed_avg needs learning_rate >= 0'),
    ('fed_prox', {'learning_rate': -1.0}, 'fed_prox needs learning_rate >= 0'),
    ('fed_prox', {'mu': -1.0}, 'fed_prox needs mu >= 0'),
    ('fed_opt', {'learning_rate': -1.0}, 'fed_opt needs learning_rate >= 0'),
    ('diloco', {'learning_rate': -1.0}, 'diloco needs learning_rate >= 0'),
    ('diloco', {'weight_decay': -1.0}, 'diloco needs weight_decay >= 0'),
    (
      'diloco',
      {'outer_learning_rate': -1.0},
      'diloco needs outer_learning_rate >= 0',
    ),
  ],
)
def test_contradictions_and_ranges(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    getattr(byzjax, name)(loss_fn, **(LEAST[name] | arguments))


MORE = dict(
  num_workers=5,
  num_local_steps=2,
  attack=byzjax.sign_flip(scale=2.0),
  byzantine=1,
)
MEDIAN = byzjax.coordinate_median()
GRAPH = topology.ring(4)
NOISY = dict(needs_key=True, has_aux=True)


@pytest.mark.parametrize(
  'method, same',
  [
    (
      lambda: byzjax.fed_avg(
        loss_fn, learning_rate=0.1, aggregator=MEDIAN, **MORE
      ),
      lambda: byzjax.local_round(
        loss_fn,
        local_optimizer=optax.sgd(0.1),
        local_state='reset',
        optimizer=optax.sgd(1.0),
        aggregator=MEDIAN,
        **MORE,
      ),
    ),
    (
      lambda: byzjax.fed_prox(
        noisy_loss_fn, learning_rate=0.1, mu=0.5, **MORE, **NOISY
      ),
      lambda: byzjax.local_round(
        objectives.proximal(noisy_loss_fn, mu=0.5, **NOISY),
        local_optimizer=optax.sgd(0.1),
        local_state='reset',
        optimizer=optax.sgd(1.0),
        aggregator=byzjax.mean(),
        **MORE,
      ),
    ),
    (
      lambda: byzjax.fed_opt(
        loss_fn, learning_rate=0.1, optimizer=optax.adam(0.2), **MORE
      ),
      lambda: byzjax.local_round(
        loss_fn,
        local_optimizer=optax.sgd(0.1),
        local_state='reset',
        optimizer=optax.adam(0.2),
        aggregator=byzjax.mean(),
        **MORE,
      ),
    ),
    (
      lambda: byzjax.diloco(loss_fn, learning_rate=0.1, **MORE),
      lambda: byzjax.local_round(
        loss_fn,
        local_optimizer=optax.adamw(0.1, weight_decay=0.1),
        local_state='keep',
        optimizer=optax.sgd(0.7, 0.9, nesterov=True),
        aggregator=byzjax.mean(),
        **MORE,
      ),
    ),
    (
      lambda: byzjax.d_sgd(
        loss_fn, topology=GRAPH, learning_rate=0.1, consensus=0.3
      ),
      lambda: byzjax.gossip_round(
        loss_fn,
        topology=GRAPH._replace(mixing=np.eye(4) - topology.laplacian(GRAPH)),
        rule=gossip.plain(),
        order='combine_while_adapt',
        optimizer=optax.sgd(lambda k: 0.1 * (jnp.float32(k) + 1) ** -1.0),
        consensus=lambda k: 0.3,
      ),
    ),
  ],
  ids=[*LOCAL, 'd_sgd'],
)
def test_is_the_round_with_the_arguments_filled_in(method, same):
  """Bit for bit, in two rounds."""
  key = jax.random.key(0)
  results = []
  for rounds in (method(), same()):
    state, step = rounds.init(jnp.array([1.0, -2.0])), jax.jit(rounds.step)
    n = 4 if state.params.ndim > 1 else 5
    batch = jax.random.normal(key, (n, 2, 2) if n == 5 else (n, 2))
    for _ in range(2):
      state, info = step(state, batch, key)
    results.append((state, info))
  jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize('name', NAMES)
def test_an_attack_needs_attackers(name):
  attack = byzjax.sign_flip(scale=1.0)
  with pytest.raises(ValueError, match='needs byzantine= to be set'):
    getattr(byzjax, name)(loss_fn, **LEAST[name], attack=attack)
