"""Model replacement: scaled messages that plant a backdoor in one round."""

import jax
import optax

from byzjax._src import base, checks, data_attacks, recipes
from byzjax.attacks import _message


@recipes.factory
def model_replacement(*, scale: base.Scalar) -> base.Attack:
  """Byzantine workers scale up their own message.

  `x_b = scale x_b` ("train and scale"). If f workers scale by `n / (f eta)`,
  with eta the learning rate of the server, a mean of n messages moves the
  server to the Byzantine workers' model, as far as the honest messages cancel.
  A rule that bounds norms drops or clips the message. Combine it with a data
  attack by `joint_attack`; alone it is an honest message of a wrong norm.

  Args:
    scale: factor >= 0; 1 changes nothing; may be traced.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept. Messages are
    gradients in `robust_round`, and changes of the model by local steps in
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
  """Combines an attack on data with an attack on messages.

  Byzantine workers compute on the batches changed by `data_attack`, and send
  the messages changed by `message_attack`. Model replacement, a backdoor whose
  messages are scaled, is `joint_attack(backdoor(...), model_replacement(...))`.

  Args:
    data_attack: a data attack, such as `backdoor(...)`.
    message_attack: an `Attack`, usually one that uses the Byzantine worker's
      own message, as `model_replacement`, `neurotoxin` and
      `sign_flip(own=True)`.

  Returns:
    A `JointAttack`, for the argument `attack` of every round that accepts both.

  Raises:
    TypeError: if one of the two is not an attack of its kind.

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
