"""Rules inside optax wrappers, such as `optax.inject_hyperparams`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base


def as_aggregator(
  name: str, rule: Any, argument: str = 'aggregator'
) -> base.Aggregator:
  """The rule, or the rule in an optax wrapper such as `inject_hyperparams`.

  A wrapper that passes messages and aggregate through unchanged is treated as a
  rule, with the diagnostics of the rule inside; this is checked at trace time.
  Anything more, such as a chain, belongs into the optimizer.
  """
  if isinstance(rule, base.Aggregator):
    return rule
  state = None
  if isinstance(rule, optax.GradientTransformation):
    state = jax.eval_shape(rule.init, jnp.zeros(1))
  if not hasattr(state, 'hyperparams'):
    raise ValueError(
      f'{name} needs {argument} to be an Aggregator (put optax transforms'
      f' after it, in optimizer), got {type(rule).__name__}'
    )

  def inspect(messages, state, params=None, **extra):
    seen: list[tuple] = []
    aggregate, state = rule.update(
      messages, state, params, witness=seen, **extra
    )
    if len(seen) != 1 or not _same(seen[0][:2], (messages, aggregate)):
      raise ValueError(
        f'{name} needs {argument} to be a rule, or'
        ' optax.inject_hyperparams(rule)(...), and nothing around it, got'
        ' a transform of another kind (put optax transforms after the rule,'
        ' in optimizer)'
      )
    return aggregate, state, seen[0][2]

  return base.Aggregator(rule.init, inspect, name='injected rule')


def _same(a: Any, b: Any) -> bool:
  a, b = jax.tree.leaves(a), jax.tree.leaves(b)
  return len(a) == len(b) and all(x is y for x, y in zip(a, b))
