"""Signum with majority vote: the named optimizer for stacked gradients."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat
from byzjax.aggregators import majority_vote
from byzjax.transforms._per_worker import per_worker


def signum_majority_vote(
  learning_rate: optax.ScalarOrSchedule,
  *,
  num_workers: int,
  momentum: base.Scalar = 0.9,
  weight_decay: base.Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Signum: every coordinate moves by eta along the majority of momentum signs.

  `v_t^i = beta v_{t-1}^i + (1 - beta) g_t^i` (`v_0 = 0`, without bias
  correction because only the sign matters), `V = sign(sum_i sign(v_t^i))`,
  `w_{t+1} = w_t - eta_t (V + lambda w_t)`. The sign of zero, and of a tied
  vote, is +1. With beta = 0 this is signSGD with majority vote.

  The weight decay is decoupled, as in the paper and its official code; their
  variant without compression adds it to the gradients.

  Args:
    learning_rate: eta > 0, or a schedule of it; typically 100 to 1000 times
      smaller than for SGD.
    num_workers: n, a Python int.
    momentum: beta in [0, 1).
    weight_decay: lambda >= 0; it needs params in `update`.

  Returns:
    An optax optimizer that takes stacked gradients, leaves `[n, *shape]`, and
    returns updates with leaves `[*shape]`. For `robust_round` with sign
    compression, pass instead `worker=optax.ema(beta, debias=False)`,
    `codec=sign_codec()`, `aggregator=majority_vote()` and
    `server_codec=sign_codec()`.

  Raises:
    ValueError: if n, beta or lambda is out of range.

  References:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2019, arXiv:1810.05291.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> optimizer = byzjax.signum_majority_vote(0.5, num_workers=3)
    >>> w = jnp.zeros(2)
    >>> gradients = jnp.array([[1., -2.], [3., -4.], [-99., 99.]])
    >>> optimizer.update(gradients, optimizer.init(w), w)[0]
    Array([-0.5,  0.5], dtype=float32)
  """
  checks.check_rate('signum_majority_vote', 'learning_rate', learning_rate)
  checks.check_momentum('signum_majority_vote', 'momentum', momentum)
  checks.check_range('signum_majority_vote', 'weight_decay', weight_decay, 0)
  return optax.chain(
    per_worker(_momentum(momentum), num_workers),
    majority_vote(),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )


def _momentum(decay: base.Scalar) -> optax.GradientTransformation:
  """`optax.ema` without debiasing, kept in float32 at least."""
  ema = optax.ema(decay, debias=False)

  def init_fn(params):
    # Half precision would round the decay itself: 0.999 is 1 in bfloat16.
    return ema.init(
      jax.tree.map(
        lambda p: jnp.zeros(jnp.shape(p), flat.compute_dtype(p)), params
      )
    )

  def update_fn(updates, state, params=None):
    del params
    wide = optax.tree.cast_like(updates, state.ema)
    momentum, state = ema.update(wide, state)
    return optax.tree.cast_like(momentum, updates), state

  return optax.GradientTransformation(init_fn, update_fn)
