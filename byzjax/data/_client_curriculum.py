"""Client curriculum: clients take part in the order of their difficulty."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from byzjax._src import base, checks
from byzjax._src.local import Participation
from byzjax.data import _curriculum, _pacing, _sweep


def client_curriculum(
  *,
  num_workers: int,
  num_participants: int,
  total_rounds: base.Scalar,
  score: Callable[[base.Params, Any], jax.Array] | None = None,
  order: _curriculum.Order = 'curriculum',
  pacing: _pacing.Pacing = 'linear',
  full_at: base.Scalar = 0.8,
  initial_share: base.Scalar = 0.2,
  min_pool: int = 1,
) -> Participation:
  r"""Clients with the lowest loss take part first, then more and more clients.

  If n clients are ranked by their score, the pool after k rounds of m clients
  is

  .. math::
    P_k = \{i : \mathrm{rank}(i) < \max(g(k m), m, \mathrm{min\_pool})\}

  with g from `pool_size` for a budget of `m * total_rounds`. The pool is
  shuffled and taken m at a time; when each of its clients has taken part, all
  clients are scored and ranked again and the pool grows. If m does not divide
  the pool, the last round of a sweep is padded with clients from its start, so
  that always m take part. `pacing='step', full_at=1, initial_share=1` is
  sampling without replacement: each client once in `n / m` rounds.

  A score that is a loss on the client's data, such as `worker_loss`, is
  reported by the client: a Byzantine client can report a low one and be in
  every pool. If this matters, compute scores with a model and data of the
  server. To simulate such reports, use `participation._replace(draw=...)` with
  another function of the scores. A small pool may have a Byzantine majority.
  Choose `min_pool` well above twice the number of Byzantine clients, because
  the m clients drawn from a pool may have a Byzantine majority even if the pool
  has none. Clients with a score that is not finite rank last, in either order;
  ties go to the lowest index.

  Args:
    num_workers: n, a Python int.
    num_participants: m, a Python int with `1 <= m <= n`.
    total_rounds: number of rounds for the pacing, > 0; may be traced.
    score: `(params, data_i) -> float[]` at the server's parameters, low is
      easy; not needed in random order.
    order: `'curriculum'`, `'anti'` (highest score first) or `'random'`.
    pacing: as in `pool_size`.
    full_at: a >= 0, the share of the rounds after which the pool contains all
      clients; may be traced.
    initial_share: b >= 0, share of clients at the start; may be traced.
    min_pool: minimum size of the pool, from 1 to n.

  Returns:
    A `Participation` for `local_round`, with weight 1 for the m clients that
    take part and 0 for the others.

  Raises:
    ValueError: if an argument is not one of its choices or out of its range, or
      the score is missing.

  References:
    Vahidian, Kadaveru, Baek, Wang, Kungurtsev, Chen, Shah, Lin, 2023,
    arXiv:2212.12712.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import data
    >>> clients = data.client_curriculum(
    ...   num_workers=4, num_participants=2, total_rounds=4,
    ...   score=lambda params, data_i: data_i.sum(),
    ...   full_at=1.0, initial_share=0.5)
    >>> state = clients.init(4)
    >>> scores = jnp.array([3., 1., jnp.nan, 2.])
    >>> weights, state = clients.draw(state, scores, 0, jax.random.key(0))
    >>> print(weights)
    [0. 1. 0. 1.]
  """
  name = 'client_curriculum'
  checks.check_count(name, 'num_workers', num_workers, 1)
  for label, count in (
    ('num_participants', num_participants),
    ('min_pool', min_pool),
  ):
    checks.check_count(name, label, count, 1)
    if count > num_workers:
      raise ValueError(
        f'{name} needs {label} <= num_workers, got {count} and {num_workers}'
      )
  checks.check_range(name, 'total_rounds', total_rounds, 0, exclusive=True)
  _pacing.check_pacing(name, pacing, full_at, initial_share)
  _curriculum.check_order(name, order)
  if score is not None:
    checks.check_function(name, 'score', score)
  if score is None and order != 'random':
    raise ValueError(f'{name} needs a score unless order is random')

  def init(n):
    if n != num_workers:
      raise ValueError(
        f'{name} needs the number of workers to be num_workers={num_workers},'
        f' got {n}'
      )
    return _sweep.start(jnp.arange(n, dtype=jnp.int32))

  def draw(state, scores, step, key):
    order_key, sweep_key = jax.random.split(key)
    if order == 'random':
      rank = jax.random.permutation(order_key, num_workers)
    else:
      finite = jnp.isfinite(scores)
      rank = _curriculum.rank_of(scores, finite, reverse=order == 'anti')
    pool = _pacing.pool_size(
      step * num_participants,
      pacing=pacing,
      num_examples=num_workers,
      total_steps=total_rounds * num_participants,
      full_at=full_at,
      initial_share=initial_share,
    )
    pool = jnp.maximum(pool, max(num_participants, min_pool))
    chosen, state = _sweep.take(state, rank, pool, sweep_key, num_participants)
    return jnp.zeros([num_workers], jnp.float32).at[chosen].set(1), state

  return Participation(
    init, None if order == 'random' else score, draw, num_participants
  )
