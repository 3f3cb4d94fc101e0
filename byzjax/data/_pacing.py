"""Pacing functions: how many examples a curriculum uses at a time."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from byzjax._src import base, checks

Pacing = Literal[
  'linear', 'quadratic', 'root', 'step', 'exponential', 'logarithmic'
]


def pool_size(
  step: jax.Array | int,
  *,
  pacing: Pacing,
  num_examples: jax.Array | int,
  total_steps: base.Scalar,
  full_at: base.Scalar,
  initial_share: base.Scalar,
) -> jax.Array:
  r"""How many of N examples a curriculum uses at step t.

  .. math::
    g(t) = \left\lfloor b N + (1 - b) N h(r) \right\rfloor, \qquad
    r = \min(1, t / (a T))

  clipped to `1 <= g <= N`, where h(r) is r (linear), `r^2` (quadratic),
  `sqrt(r)` (root), `(e^{10 r} - 1) / (e^{10} - 1)` (exponential) or `1 + ln(r +
  e^{-10}) / 10` (logarithmic); for step, g is `b N` until `t = a T` and N from
  then on. All increase in t, start at `b N` and reach N at `t = a T`.

  Before rounding down, a relative 1e-6 is added, so that `0.29 * 100` is 29 in
  single precision too.

  Args:
    step: t >= 0; may be traced, like all numbers below.
    pacing: `'linear'`, `'quadratic'`, `'root'`, `'step'`, `'exponential'` or
      `'logarithmic'`.
    num_examples: N >= 1, an integer.
    total_steps: T > 0.
    full_at: a >= 0, the share of the steps after which all examples are used; 0
      uses all from the start.
    initial_share: b >= 0, share of examples at the start; 1 or more uses all.

  Returns:
    g(t), int32, with the broadcast shape of the arguments.

  Raises:
    ValueError: if the pacing is unknown, or a number is out of range.

  References:
    Wu, Dyer, Neyshabur, 2021, arXiv:2012.03107.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import data
    >>> size = data.pool_size(
    ...   jnp.arange(0, 11, 2), pacing='linear', num_examples=50,
    ...   total_steps=10, full_at=0.8, initial_share=0.2)
    >>> print(size)
    [10 20 30 40 50 50]
  """
  name = 'pool_size'
  check_pacing(name, pacing, full_at, initial_share)
  checks.check_whole(name, 'step', step)
  checks.check_whole(name, 'num_examples', num_examples, 1)
  checks.check_range(name, 'total_steps', total_steps, 0, exclusive=True)
  time, n, total, a, b = (
    jnp.asarray(x, jnp.float32)
    for x in (step, num_examples, total_steps, full_at, initial_share)
  )
  full = a * total
  at_once = full <= 0
  r = jnp.where(at_once, 1, time / jnp.where(at_once, 1, full))
  # At t = a T the quotient may round to just below one.
  r = jnp.where(r > 1 - 1e-6, 1, r)
  shares = {
    'linear': lambda: r,
    'quadratic': lambda: r**2,
    'root': lambda: jnp.sqrt(r),
    'step': lambda: jnp.floor(r),
    'exponential': lambda: jnp.expm1(10 * r) / jnp.expm1(10.0),
    'logarithmic': lambda: 1 + jnp.log(r + jnp.exp(-10.0)) / 10,
  }
  share = jnp.clip(shares[pacing](), 0, 1)
  first = b * n
  size = jnp.where(r < 1, first + (n - first) * share, n)
  return jnp.clip(jnp.floor(size * (1 + 1e-6)), 1, n).astype(jnp.int32)


def check_pacing(
  function: str,
  pacing: Pacing,
  full_at: base.Scalar,
  initial_share: base.Scalar,
) -> None:
  """Raises ValueError unless these describe one of the pacing functions."""
  if pacing not in get_args(Pacing):
    raise ValueError(
      f'{function} needs pacing to be one of {list(get_args(Pacing))}, got'
      f' {pacing!r}'
    )
  checks.check_range(function, 'full_at', full_at, 0)
  checks.check_range(function, 'initial_share', initial_share, 0)
