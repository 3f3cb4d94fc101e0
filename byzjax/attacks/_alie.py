"""A little is enough (ALIE): a shift within the spread of honest messages."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, reductions
from byzjax.attacks import _message


def alie_factor(
  num_workers: int | jax.Array, num_byzantine: int | jax.Array
) -> jax.Array:
  """The largest shift, in standard deviations, that a majority supports (ALIE).

  `z = Phi^{-1}((n - f - s) / (n - f))` with `s = floor(n/2 + 1) - f`, the
  number of honest workers that must lie farther from the mean than the
  Byzantine ones.

  Args:
    num_workers: n, an integer; may be traced, like f.
    num_byzantine: f, an integer. Above `n/2` nobody has to support the attack,
      and of two workers all have to: the probability above is kept between `1 /
      (2n)` and `1 - 1 / (2n)`.

  Returns:
    z, a float scalar. With few Byzantine workers, such as (n, f) = (8, 1), z is
    zero or negative and the attack would change its direction: pass your own z
    to `alie`.

  References:
    Baruch, Baruch, Goldberg, 2019, arXiv:1902.06156.

  Example:
    >>> import byzjax
    >>> print(f'{byzjax.alie_factor(25, 11):.3f}')
    1.068
  """
  n, f = num_workers, num_byzantine
  checks.check_integer('alie_factor', 'num_workers', n, 1)
  checks.check_integer('alie_factor', 'num_byzantine', f)
  supporters = n // 2 + 1 - f
  share = (n - f - supporters) / jnp.maximum(jnp.asarray(n - f), 1)
  least = 0.5 / jnp.maximum(n, 1)  # Of 0 and of 1 the factor is infinite.
  return jax.scipy.special.ndtri(jnp.clip(share, least, 1 - least))


@recipes.factory
def alie(*, z: base.Scalar | None = None, ddof: int = 1) -> base.Attack:
  """Byzantine workers send the honest mean minus z standard deviations (ALIE).

  `x_b[j] = mu[j] - z s[j]`, where mu and s are the mean and the standard
  deviation of coordinate j over the honest messages.

  Implementations differ in sign, z and s: the default (`z=None`, ddof 1) is the
  official code of centered clipping. ByzFL and Blades send `mu + z s` (a
  negative z here) with z = 1.5; the original, krum and ByzPy use ddof 0.

  Args:
    z: number of standard deviations; None for `alie_factor(n, f)`, with f the
      number of Byzantine workers in the mask, and n that of all workers whose
      messages are finite. May be traced.
    ddof: s divides the squares by (number of honest messages - ddof); 0 or 1.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept.

  Raises:
    ValueError: if ddof is not 0 or 1; at trace time, if `is_byzantine` is not
      bool[n].

  References:
    Baruch, Baruch, Goldberg, 2019, arXiv:1902.06156.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.alie(z=1.5)
    >>> messages, _ = attack.apply(
    ...   jnp.array([[7.], [1.], [3.], [5.]]), attack.init(None),
    ...   is_byzantine=jnp.array([True, False, False, False]))
    >>> messages[0]
    Array([0.], dtype=float32)
  """
  if z is not None:
    checks.check_range('alie', 'z', z)
  _message.check_ddof('alie', ddof)

  def row(view):
    mean = _message.mean_of(view)
    std = reductions.rows_std(view.x, view.is_honest, mean, ddof=ddof)
    f = view.is_byzantine.sum()
    # Who is absent, or sent a NaN, is no attacker.
    n = view.is_honest.sum() + f
    shift = alie_factor(n, f) if z is None else z
    return mean - jnp.asarray(shift).astype(mean.dtype) * std

  return _message.from_honest('alie', row)
