"""How long rounds are: when workers with local steps communicate.

Lengths are made once, on the host and in float64: a quotient near an integer
would be rounded down differently in float32, and every later round would move.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax._src import checks

# Step -> learning rate, or the learning rates of all steps, or one for all.
LearningRate: TypeAlias = optax.Schedule | np.ndarray | jax.Array | float


def constant_synchronization(
  *, total_steps: int, base_steps: int
) -> np.ndarray:
  """Rounds of H local steps each: `H_s = H`.

  The last round is shortened to end at step T. With H = 1 workers communicate
  in every step.

  Args:
    total_steps: T >= 1, local steps of a worker over all rounds.
    base_steps: H >= 1.

  Returns:
    int32[R], the numbers of local steps of the rounds, which sum to T, for
    `local_round(num_local_steps=...)`. `R / T` is the communication relative to
    one round per step.

  Raises:
    ValueError: if an argument is not an int of at least 1.

  Example:
    >>> import byzjax
    >>> byzjax.constant_synchronization(total_steps=10, base_steps=4)
    array([4, 4, 2], dtype=int32)
  """
  name = 'constant_synchronization'
  _check_steps(name, total_steps, base_steps)
  return _rounds(total_steps, lambda step: base_steps)


def post_local_synchronization(
  *, total_steps: int, base_steps: int, switch_step: int
) -> np.ndarray:
  """Post-local SGD: one local step per round first, then H per round.

  `H_s = 1` for rounds that start before the switch, and `H_s = H` from then on.
  The usual switch is the first decay of the learning rate.

  Args:
    total_steps: T >= 1, local steps of a worker over all rounds.
    base_steps: H >= 1, the length of a round after the switch.
    switch_step: first step of the longer rounds, at least 0; if it is T or more
      there are none.

  Returns:
    int32[R], the numbers of local steps of the rounds, which sum to T; the last
    round is shortened.

  Raises:
    ValueError: if an argument is not an int in its range.

  References:
    Lin, Stich, Patel, Jaggi, 2018, arXiv:1808.07217.

  Example:
    >>> import byzjax
    >>> byzjax.post_local_synchronization(
    ...   total_steps=10, base_steps=4, switch_step=3)
    array([1, 1, 1, 4, 3], dtype=int32)
  """
  name = 'post_local_synchronization'
  _check_steps(name, total_steps, base_steps)
  checks.check_count(name, 'switch_step', switch_step)
  return _rounds(
    total_steps, lambda step: 1 if step < switch_step else base_steps
  )


def linear_synchronization(
  learning_rate: LearningRate,
  *,
  total_steps: int,
  base_steps: int,
  growth: float,
  warmup_steps: int = 0,
  warmup_local_steps: int | None = None,
) -> np.ndarray:
  """Rounds that grow as the inverse of the learning rate.

  `H_s = max(H, floor(beta / eta_t))`, where t is the first step of the round.
  Otherwise it is like `quadratic_synchronization`.

  Args:
    learning_rate: eta, as in `quadratic_synchronization`.
    total_steps: T >= 1, local steps of a worker over all rounds.
    base_steps: H >= 1, the minimum length of a round.
    growth: beta >= 0, in the units of eta; 0 gives rounds of length H.
    warmup_steps: rounds that start before this step have a fixed length.
    warmup_local_steps: this fixed length, at least 1; None for H.

  Returns:
    int32[R], the numbers of local steps of the rounds, which sum to T; the last
    round is shortened.

  Raises:
    ValueError: as `quadratic_synchronization`.

  References:
    Gu, Lyu, Huang, Arora, 2023, arXiv:2303.01215.

  Example:
    >>> import byzjax, optax
    >>> byzjax.linear_synchronization(
    ...   optax.piecewise_constant_schedule(0.5, {6: 0.5, 10: 0.5}),
    ...   total_steps=20, base_steps=2, growth=1.0)
    array([2, 2, 2, 4, 8, 2], dtype=int32)
  """
  return _by_learning_rate(
    'linear_synchronization',
    learning_rate,
    1,
    total_steps=total_steps,
    base_steps=base_steps,
    growth=growth,
    warmup_steps=warmup_steps,
    warmup_local_steps=warmup_local_steps,
  )


def quadratic_synchronization(
  learning_rate: LearningRate,
  *,
  total_steps: int,
  base_steps: int,
  growth: float,
  warmup_steps: int = 0,
  warmup_local_steps: int | None = None,
) -> np.ndarray:
  """The quadratic synchronization rule (QSR): rounds grow as `1 / eta^2`.

  `H_s = max(H, floor((alpha / eta_t)^2))`, where t is the first step of the
  round; H_s is fixed during a round even if eta changes. The last round is
  shortened so that the workers communicate at step T.

  Rounds that start during the warm-up have a fixed length, even if they end
  after it. The default, H, is that of the authors' code. The paper takes the
  length right after the warm-up: pass `warmup_local_steps=max(H, int((alpha /
  eta_max)**2))`. Both agree for `alpha < eta_max sqrt(H + 1)`. With alpha just
  below that, rounds start at length H and soon become longer.

  The code shortens the last round only if the rule is on; here it is always
  shortened. The quotient is rounded down in float64: for growth 0.3 and
  learning rate 0.1 it is slightly below 3, so its square gives 8.

  Args:
    learning_rate: eta >= 0: an optax schedule, evaluated in float64, or one
      number per step, float[T], or one for all steps. If it is 0, the round
      continues to step T.
    total_steps: T >= 1, local steps of a worker over all rounds.
    base_steps: H >= 1, the minimum length of a round.
    growth: alpha >= 0, in the units of eta; 0 gives rounds of length H.
    warmup_steps: rounds that start before this step have a fixed length.
    warmup_local_steps: this fixed length, at least 1; None for H.

  Returns:
    int32[R], the numbers of local steps of the rounds, which sum to T, for
    `local_round(num_local_steps=...)`. `R / T` is the communication relative to
    one round per step.

  Raises:
    ValueError: if an argument is out of its range, or the learning rate has a
      length other than T, or is negative or NaN.

  References:
    Gu, Lyu, Arora, Zhang, Huang, 2023, arXiv:2310.14423.

  Example:
    >>> import byzjax, optax
    >>> byzjax.quadratic_synchronization(
    ...   optax.piecewise_constant_schedule(0.5, {6: 0.5, 12: 0.5}),
    ...   total_steps=30, base_steps=2, growth=0.5)
    array([ 2,  2,  2,  4,  4, 16], dtype=int32)
  """
  return _by_learning_rate(
    'quadratic_synchronization',
    learning_rate,
    2,
    total_steps=total_steps,
    base_steps=base_steps,
    growth=growth,
    warmup_steps=warmup_steps,
    warmup_local_steps=warmup_local_steps,
  )


def _by_learning_rate(
  name: str,
  learning_rate: LearningRate,
  power: int,
  *,
  total_steps: int,
  base_steps: int,
  growth: float,
  warmup_steps: int,
  warmup_local_steps: int | None,
) -> np.ndarray:
  """Rounds of `max(H, floor((growth / eta)^power))` steps after a warm-up."""
  _check_steps(name, total_steps, base_steps)
  checks.check_range(name, 'growth', growth, 0)
  checks.check_count(name, 'warmup_steps', warmup_steps)
  if warmup_local_steps is None:
    warmup_local_steps = base_steps
  checks.check_count(name, 'warmup_local_steps', warmup_local_steps, 1)
  rates = _learning_rates(name, learning_rate, total_steps)

  def length(step):
    if step < warmup_steps:
      return warmup_local_steps
    if growth == 0:
      return base_steps
    root = growth / rates[step] if rates[step] > 0 else total_steps
    # Cut before it is an int: of a quotient near zero the square overflows.
    power_of_root = min(root, total_steps) ** power
    return max(base_steps, int(power_of_root))

  return _rounds(total_steps, length)


def _learning_rates(
  name: str, learning_rate: LearningRate, total_steps: int
) -> list[float]:
  """One learning rate for every step."""
  if callable(learning_rate):
    with jax.enable_x64(True):
      learning_rate = jax.vmap(learning_rate)(jnp.arange(total_steps))
  elif not isinstance(learning_rate, (jax.Array, np.ndarray)):
    checks.check_range(name, 'learning_rate', learning_rate, 0)
  rates = np.asarray(learning_rate, np.float64)
  if rates.shape not in ((), (total_steps,)):
    raise ValueError(
      f'{name} needs learning_rate to be a schedule, a number or'
      f' float[total_steps], got the shape {list(rates.shape)} and'
      f' total_steps={total_steps}'
    )
  if not (rates >= 0).all():
    raise ValueError(f'{name} needs learning_rate >= 0, got {rates.tolist()}')
  return np.broadcast_to(rates, (total_steps,)).tolist()


def _rounds(total_steps: int, length: Callable[[int], int]) -> np.ndarray:
  """Rounds of `length(first step)` steps, the last one cut to end at T."""
  rounds, step = [], 0
  while step < total_steps:
    rounds.append(min(length(step), total_steps - step))
    step += rounds[-1]
  return np.array(rounds, np.int32)


def _check_steps(name: str, total_steps: int, base_steps: int) -> None:
  checks.check_count(name, 'total_steps', total_steps, 1)
  checks.check_count(name, 'base_steps', base_steps, 1)
