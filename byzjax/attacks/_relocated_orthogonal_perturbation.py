"""The ROP attack on centered clipping: a push orthogonal to the aggregate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  checks,
  parameters,
  recipes,
  reductions,
)
from byzjax.attacks import _alie, _message


class RelocatedOrthogonalPerturbationState(NamedTuple):
  """The state of `relocated_orthogonal_perturbation`.

  Attributes:
    aggregate: the previous aggregate; zeros at first.
    known: bool[], whether there has been one.
  """

  aggregate: base.Aggregate
  known: jax.Array


@recipes.factory
def relocated_orthogonal_perturbation(
  *,
  pi: base.Scalar = 1.0,
  lam: base.Scalar = 0.9,
  angle: base.Scalar = 270.0,
  z: base.Scalar | None = None,
) -> base.Attack:
  """A fixed push orthogonal to the previous aggregate, from where it is (ROP).

  With v the previous aggregate and mu the honest mean, `x_b = pi v + (1 - pi)
  mu + z p`. The push direction p is built from the reference `r = lambda v + (1
  - lambda) mu` and e, the component of the vector of ones that is orthogonal to
  r: `p = sin(angle) e / |e| + cos(angle) r / |r|`, normalised. In the first
  round there is no v: r uses mu for it, and the position uses zero.

  With `pi = 1` the message is at distance `|z|` from the centre of centered
  clipping: if that is below the clipping radius it is never clipped, and it
  pushes to the same side in every round.

  Args:
    pi: position in [0, 1]: 1 is the previous aggregate, 0 the honest mean; may
      be traced.
    lam: lambda in [0, 1]; may be traced.
    angle: between p and r, in degrees; 90 and 270 are the two directions
      orthogonal to r, 180 is opposite to r; may be traced.
    z: length of the push, in the units of the messages; None for
      `alie_factor(n, f)`; may be traced.

  Returns:
    An `Attack` with a `RelocatedOrthogonalPerturbationState`: `[n, ...] -> [n,
    ...]`, dtypes kept. Rounds pass it v through `observe`.

  Raises:
    ValueError: if an argument is out of range; at trace time, if `is_byzantine`
      is not bool[n] or the state is not that of `init(params)`.

  References:
    Ozfatura, Ozfatura, Kupcu, Gunduz, 2022, arXiv:2208.09894; the defaults are
    those of its code.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.relocated_orthogonal_perturbation(z=1.0)
    >>> x = jnp.array([[7., 7.], [2., 0.], [4., 0.]])
    >>> state = attack.observe(attack.init(x[0]), jnp.array([5., 0.]))
    >>> messages, _ = attack.apply(
    ...   x, state, is_byzantine=jnp.array([True, False, False]))
    >>> [round(float(entry), 4) for entry in messages[0]]
    [5.0, -1.0]
  """
  name = 'relocated_orthogonal_perturbation'
  checks.check_range(name, 'pi', pi, 0, 1)
  checks.check_range(name, 'lam', lam, 0, 1)
  checks.check_range(name, 'angle', angle)
  if z is not None:
    checks.check_range(name, 'z', z)

  def init(params):
    return RelocatedOrthogonalPerturbationState(
      parameters.zeros_like(params), jnp.zeros([], bool)
    )

  def send(view, state):
    mean = _message.mean_of(view)
    previous = _message.recall(name, state.aggregate, view)
    place = pi * previous + (1 - pi) * mean
    seen = jnp.where(state.known, previous, mean)
    r = _message.unit(lam * seen + (1 - lam) * mean, view.axis_name)
    ones = _message.columns(view)
    along = reductions.psum(reductions.matmul(ones, r), view.axis_name)
    across = _message.unit(ones - along * r, view.axis_name)
    radians = jnp.deg2rad(jnp.asarray(angle, view.x.dtype))
    push = jnp.sin(radians) * across + jnp.cos(radians) * r
    push = _message.unit(push, view.axis_name)
    f = view.is_byzantine.sum()
    n = view.is_honest.sum() + f
    length = _alie.alie_factor(n, f) if z is None else z
    return place + jnp.asarray(length).astype(push.dtype) * push, state

  def observe(state, aggregate):
    aggregate = jax.tree.map(
      lambda old, new: jnp.asarray(new, old.dtype), state.aggregate, aggregate
    )
    return RelocatedOrthogonalPerturbationState(
      aggregate, jnp.ones_like(state.known)
    )

  return _message.from_view(name, send, init, observe)
