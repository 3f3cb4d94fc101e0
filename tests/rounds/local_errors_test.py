"""What local rounds refuse, and how they say it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem
from tests.rounds.local_problem import KEY, N, local, slices


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      dict(num_local_steps=0),
      r'local_round needs num_local_steps to be a Python int .* at least 1,'
      ' got 0',
    ),
    (
      dict(num_local_steps=np.array([1.5])),
      r'local_round needs num_local_steps to be an int, a schedule or the'
      r' lengths of rounds, integers >= 0 \[R\], got array\(\[1.5\]\)',
    ),
    (
      dict(local_state='forget'),
      'local_round needs local_state to be one of keep, reset, average, got'
      " 'forget'",
    ),
    (
      dict(preconditioner_scope='both'),
      'local_round needs preconditioner_scope to be one of global, local, got'
      " 'both'",
    ),
    (
      dict(preconditioner=optax.scale_by_adam()),
      r'local_round needs preconditioner to be scale_by_preconditioner\(...\)'
      ' or None, got GradientTransformation',
    ),
    (
      dict(participation=N + 1),
      f'local_round needs participation <= num_workers, got {N + 1} and {N}',
    ),
    (
      dict(aggregator=optax.sgd(0.1)),
      'local_round needs aggregator to be an Aggregator',
    ),
    (
      dict(byzantine=N // 2),
      r'byzantine needs num_workers > 2 \* num_byzantine, got 16 and 8',
    ),
    (
      dict(worker_weights=jnp.ones(3)),
      rf'local_round needs worker_weights to be float\[{N}\]',
    ),
    (
      dict(worker_map='loop'),
      "local_round needs worker_map to be 'vmap', 'map' or a positive int,"
      " got 'loop'",
    ),
    (
      dict(participation=6, mesh=problem.mesh(8)),
      'local_round needs participation to be a multiple of the 8 devices of'
      " mesh axis 'workers', got 6",
    ),
  ],
)
def test_arguments_are_refused_by_name(arguments, message):
  def build():
    rounds = local(**arguments)
    jax.eval_shape(rounds.step, rounds.init(problem.params()), slices(3), KEY)

  with pytest.raises(ValueError, match=f'(?m)^{message}'):
    build()


@pytest.mark.parametrize(
  ('arguments', 'batch', 'message'),
  [
    (
      {},
      slices(2),
      'local_round needs a slice of the batch for each of num_local_steps=3'
      ' local steps, or a number that divides it, got 2',
    ),
    (
      {},
      jnp.zeros(N),
      r'local_round needs batch leaves \[num_workers, S, ...\] with one S for'
      r' all, got the shapes \[\(16,\)\]',
    ),
    (
      {},
      jnp.zeros((3, 3)),
      f'local_round needs a batch with num_workers={N} rows, got 3',
    ),
    (
      dict(num_local_steps=lambda step: 0.5 * step),
      slices(3),
      r'local_round needs num_local_steps\(step\) to be int32\[\] or'
      rf' int32\[{N}\], got float32\[\]',
    ),
    (
      dict(
        participation=4, aggregator=byzjax.krum(num_byzantine=3)
      ),
      slices(3),
      r'krum needs num_workers >= 2 \* num_byzantine \+ 3, got 4 and 3',
    ),
    (
      dict(
        participation=byzjax.Participation(
          lambda n: (),
          None,
          lambda state, scores, step, key: (jnp.ones(N + 2), state),
          4,
        )
      ),
      slices(3),
      rf'local_round needs participation.draw to return weights float\[{N}\],'
      rf' got the shape \[{N + 2}\]',
    ),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_while_tracing(arguments, batch, message):
  rounds = local(**arguments)
  state = rounds.init(problem.params())
  with pytest.raises(ValueError, match=f'(?m)^{message}'):
    jax.eval_shape(rounds.step, state, batch, KEY)


EF21 = byzjax.byz_ef21(
  codec=byzjax.top_k_codec(num_kept=2), rule=byzjax.mean(), num_workers=4
)


@pytest.mark.parametrize(
  ('arguments', 'name'),
  [
    (EF21._asdict(), 'rule byz_ef21'),
    (
      dict(
        aggregator=byzjax.delayed_momentum(
          byzjax.mean(), num_workers=4, decay=0.5, participation=0.25
        )
      ),
      'byzjax.delayed_momentum',
    ),
    (
      dict(
        aggregator=byzjax.pre_aggregate(
          byzjax.adaptive_clipping(num_byzantine=1),
          byzjax.fools_gold(num_workers=4),
        )
      ),
      'byzjax.pre_aggregate',
    ),
    (
      dict(attack=byzjax.replay(delay=1, own=True, num_workers=4), byzantine=1),
      'byzjax.replay|<byzjax attack',
    ),
    (dict(attack=byzjax.mimic(worker=2), byzantine=1), 'byzjax.mimic'),
    (
      dict(
        attack=byzjax.adaptive(
          byzjax.replay(delay=1, own=True, num_workers=4), byzjax.mean()
        ),
        byzantine=1,
      ),
      'byzjax.adaptive',
    ),
  ],
)
def test_rows_by_place_are_refused_where_places_change(arguments, name):
  with pytest.raises(
    ValueError,
    match=f'^local_round needs participation to be None with .*({name}).*, got'
    f' a participation of 4 of {N} workers: use'
    rf' worker_weights=random_participation\({N}, 4, key\)$',
  ):
    local(participation=4, **arguments)
  # With all of them a place is that of one worker.
  local(participation=N, **arguments)


@pytest.mark.parametrize(
  'rule',
  [
    byzjax.monna(num_byzantine=1, reference_worker=0),
    byzjax.detox(group_size=1, rule=byzjax.mean()),
    byzjax.pre_aggregate(byzjax.group_vote(group_size=1), byzjax.mean()),
  ],
)
def test_rules_that_mean_certain_workers_are_refused_likewise(rule):
  message = f'knows workers by their places .* 4 of {N} workers$'
  with pytest.raises(ValueError, match=message):
    local(participation=4, aggregator=rule)
  local(participation=N, aggregator=rule)


def test_an_auxiliary_rule_with_rows_by_place_is_refused():
  rounds = local(
    participation=4,
    local_optimizer=optax.adam(0.1),
    local_state='average',
    side_aggregator=byzjax.fools_gold(num_workers=4),
  )
  with pytest.raises(ValueError, match='local_round needs participation to be'):
    rounds.init(problem.params())


def test_rules_and_attacks_without_rows_by_place_take_any_cohort():
  local(
    participation=4,
    aggregator=byzjax.centered_clipping(radius=1.0),
    attack=byzjax.replay(delay=1, num_workers=4),
    byzantine=1,
  )
