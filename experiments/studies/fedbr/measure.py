"""How far a rule ends from the honest mean, on the model alone."""

import jax.numpy as jnp

import byzjax


def measured(attack: byzjax.Attack | None, num_model: int) -> byzjax.Attack:
  """The attack, which also measures the rule where FedAvg has coordinates.

  The first `num_model` coordinates are those of the model, the others those of
  the projection. Its state ends with `|aggregate - m| / |m|`, m the honest
  mean.
  """

  def init(params):
    own = attack.init(params) if attack else ()
    return own, jnp.zeros(num_model), jnp.zeros([])

  def apply(messages, state, *, is_byzantine, **knowledge):
    own, *_ = state
    shares = ~is_byzantine / jnp.sum(~is_byzantine)
    mean = shares @ messages[:, :num_model]
    if attack is not None:
      messages, own = attack.apply(
        messages, own, is_byzantine=is_byzantine, **knowledge
      )
    return messages, (own, mean, jnp.zeros([]))

  def observe(state, aggregate):
    own, mean, _ = state
    if attack is not None and attack.observe is not None:
      own = attack.observe(own, aggregate)
    norm = jnp.linalg.norm
    return own, mean, norm(aggregate[:num_model] - mean) / norm(mean)

  return byzjax.Attack(init, apply, observe)
