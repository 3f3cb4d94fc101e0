"""Own messages, louder: what makes one round enough for a backdoor."""

import jax
import optax

from byzjax._src import base, checks, data_attacks, recipes
from byzjax.attacks import _message


@recipes.factory
def model_replacement(*, scale: base.Scalar) -> base.Attack:
  """Attackers send a multiple of their own message.

  `x_b = scale x_b`. Of a mean of n messages that f attackers scale by `n / (f
  eta)`, eta the rate of the server, the model of the attackers remains, as far
  as honest messages cancel: "train and scale". A rule that looks at norms
  drops or clips it. Put it behind a data attack by `joint_attack`, for alone it
  is an honest message with a wrong norm.

  Args:
    scale: factor >= 0; 1 changes nothing; may be traced.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept. Messages are
    gradients in `robust_round`, and what local steps have changed in
    `local_round`.

  Raises:
    ValueError: if the scale is negative; at trace time, if `is_byzantine` is
      not bool[n].

  References:
    Bagdasaryan, Veit, Hua, Estrin, Shmatikov, 2020, arXiv:1807.00459.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.model_replacement(scale=5.0)
    >>> attack(jnp.array([[1.], [2.]]), is_byzantine=jnp.array([True, False]))
    Array([[5.],
           [2.]], dtype=float32)
  """
  checks.check_range('model_replacement', 'scale', scale, 0)

  def apply(messages, state, *, is_byzantine, **knowledge):
    del knowledge
    byzantine = _message.mask_of('model_replacement', messages, is_byzantine)
    scaled = jax.tree.map(lambda x: scale * x, messages)
    return _message.overwrite(messages, scaled, byzantine), state

  return base.Attack(optax.init_empty_state, apply)


def joint_attack(
  data_attack: base.DataAttack, message_attack: base.Attack
) -> data_attacks.JointAttack:
  """An attack on data and one on messages, at once.

  Attackers compute on what `data_attack` makes of their batches, and send what
  `message_attack` makes of that. Such as model replacement, a backdoor whose
  messages are scaled: `joint_attack(backdoor(...), model_replacement(...))`.

  Args:
    data_attack: such as `backdoor(...)`.
    message_attack: an `Attack`; it should read what attackers computed, as
      `model_replacement`, `neurotoxin` and `sign_flip(own=True)` do.

  Returns:
    A `JointAttack`, for `attack=` of every round that takes both kinds.

  Raises:
    TypeError: if one is not of its kind.

  Example:
    >>> import byzjax
    >>> attack = byzjax.joint_attack(
    ...   byzjax.backdoor(byzjax.patch_trigger(), target=0),
    ...   byzjax.model_replacement(scale=10.0))
    >>> attack.message_attack
    byzjax.model_replacement(scale=10.0)
  """
  checks.check_function('joint_attack', 'data_attack', data_attack)
  checks.check_kind(
    'joint_attack', 'message_attack', message_attack, base.Attack
  )
  return data_attacks.JointAttack(data_attack, message_attack)
