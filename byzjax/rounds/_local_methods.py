"""Published methods with local steps: `local_round` with arguments filled in.

Each takes any other argument of `local_round` too: attacks, robust rules,
codecs, participation.
"""

from typing import Any

import optax

from byzjax._src import base
from byzjax.aggregators import mean
from byzjax.objectives import proximal
from byzjax.rounds._local_round import NumLocalSteps, local_round
from byzjax.rounds._worker_gradients import LossFn


def fed_avg(
  loss_fn: LossFn,
  *,
  learning_rate: optax.ScalarOrSchedule,
  num_local_steps: NumLocalSteps,
  num_workers: int,
  aggregator: base.Aggregator | None = None,
  **arguments: Any,
) -> base.Round:
  """FedAvg: local SGD, then the average of the workers' parameters.

  `x_i <- x_i - eta grad loss_i(x_i)`, H times from w; `w <- Agg(x_1, ..., x_n)`
  in the form `w <- w - Agg(w - x_1, ..., w - x_n)`. The paper weighs workers by
  their numbers of examples: `worker_weights=partition.sizes`.

  Args:
    loss_fn: as for `local_round`.
    learning_rate: eta of the local steps; a schedule begins anew in each round.
    num_local_steps: H, as for `local_round`.
    num_workers: n, a Python int.
    aggregator: the rule; None for `mean()`.
    **arguments: any others of `local_round`.

  Returns:
    A `Round`.

  Raises:
    ValueError: as `local_round`.

  References:
    McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, arXiv:1602.05629.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> training = byzjax.fed_avg(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, learning_rate=0.5,
    ...   num_local_steps=2, num_workers=2)
    >>> x = jnp.array([1., 3.]).reshape(2, 1, 1, 1) * jnp.ones([2, 2, 4, 1])
    >>> state, _ = training.step(
    ...   training.init(jnp.zeros(1)), x, jax.random.key(0))
    >>> print(state.params)
    [1.5]
  """
  return fed_opt(
    loss_fn,
    learning_rate=learning_rate,
    optimizer=optax.sgd(1.0),
    num_local_steps=num_local_steps,
    num_workers=num_workers,
    aggregator=aggregator,
    **arguments,
  )


def fed_prox(
  loss_fn: LossFn,
  *,
  learning_rate: optax.ScalarOrSchedule,
  mu: base.Scalar,
  num_local_steps: NumLocalSteps,
  num_workers: int,
  aggregator: base.Aggregator | None = None,
  **arguments: Any,
) -> base.Round:
  """FedProx: FedAvg whose workers are held near to where they began.

  The local loss is `loss_i(x) + mu / 2 |x - w|^2`, `objectives.proximal`.

  Args:
    loss_fn: as for `local_round`.
    learning_rate: of the local steps.
    mu: at least 0; 0 is FedAvg. May be traced.
    num_local_steps: H, as for `local_round`.
    num_workers: n, a Python int.
    aggregator: the rule; None for `mean()`.
    **arguments: any others of `local_round`.

  Returns:
    A `Round`.

  Raises:
    ValueError: if mu is negative, and as `local_round`.

  References:
    Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2020, arXiv:1812.06127.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> training = byzjax.fed_prox(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, learning_rate=0.5,
    ...   mu=1.0, num_local_steps=2, num_workers=2)
    >>> x = jnp.array([1., 3.]).reshape(2, 1, 1, 1) * jnp.ones([2, 2, 4, 1])
    >>> state, _ = training.step(
    ...   training.init(jnp.zeros(1)), x, jax.random.key(0))
    >>> print(state.params)
    [1.]
  """
  return fed_avg(
    proximal(loss_fn, mu=mu),
    learning_rate=learning_rate,
    num_local_steps=num_local_steps,
    num_workers=num_workers,
    aggregator=aggregator,
    **arguments,
  )


def fed_opt(
  loss_fn: LossFn,
  *,
  learning_rate: optax.ScalarOrSchedule,
  optimizer: optax.GradientTransformation,
  num_local_steps: NumLocalSteps,
  num_workers: int,
  aggregator: base.Aggregator | None = None,
  **arguments: Any,
) -> base.Round:
  """FedOpt: local SGD, and any optimizer on the server.

  `w <- w + optimizer(Agg(w - x_1, ..., w - x_n))`, with x_i from H steps of
  SGD. FedAvgM is `optimizer=optax.sgd(1.0, momentum=0.9)`, FedAdam
  `optimizer=optax.adam(0.01, b1=0.9, b2=0.99, eps=1e-3)`; optax corrects the
  bias of the moments, which the paper's listing does not.

  Args:
    loss_fn: as for `local_round`.
    learning_rate: of the local steps; a schedule begins anew in each round.
    optimizer: optax transform of the aggregate.
    num_local_steps: H, as for `local_round`.
    num_workers: n, a Python int.
    aggregator: the rule; None for `mean()`.
    **arguments: any others of `local_round`.

  Returns:
    A `Round`.

  Raises:
    ValueError: as `local_round`.

  References:
    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, 2021,
    arXiv:2003.00295; server momentum: Hsu, Qi, Brown, 2019, arXiv:1909.06335.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> training = byzjax.fed_opt(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, learning_rate=0.5,
    ...   optimizer=optax.sgd(2.0), num_local_steps=1, num_workers=2)
    >>> x = jnp.array([1., 3.]).reshape(2, 1, 1, 1) * jnp.ones([2, 1, 4, 1])
    >>> state, _ = training.step(
    ...   training.init(jnp.zeros(1)), x, jax.random.key(0))
    >>> print(state.params)
    [2.]
  """
  defaults = {
    'local_optimizer': optax.sgd(learning_rate),
    'local_state': 'reset',
  }
  return local_round(
    loss_fn,
    optimizer=optimizer,
    num_local_steps=num_local_steps,
    num_workers=num_workers,
    aggregator=mean() if aggregator is None else aggregator,
    **(defaults | arguments),
  )


def diloco(
  loss_fn: LossFn,
  *,
  learning_rate: optax.ScalarOrSchedule,
  num_local_steps: NumLocalSteps,
  num_workers: int,
  weight_decay: base.Scalar = 0.1,
  outer_learning_rate: base.Scalar = 0.7,
  outer_momentum: base.Scalar = 0.9,
  aggregator: base.Aggregator | None = None,
  **arguments: Any,
) -> base.Round:
  """DiLoCo: AdamW on the workers, Nesterov momentum on the server.

  With `g = Agg(w - x_1, ..., w - x_n)`: `m <- beta m + g`, `w <- w - epsilon (g
  + beta m)`. The moments of AdamW stay with the worker, from round to round.

  Args:
    loss_fn: as for `local_round`.
    learning_rate: of AdamW; a schedule runs over the steps of all rounds.
    num_local_steps: H, as for `local_round`.
    num_workers: n, a Python int.
    weight_decay: of AdamW.
    outer_learning_rate: epsilon.
    outer_momentum: beta in [0, 1).
    aggregator: the rule; None for `mean()`.
    **arguments: any others of `local_round`.

  Returns:
    A `Round`.

  Raises:
    ValueError: as `local_round`.

  References:
    Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen,
    2023, arXiv:2311.08105.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> training = byzjax.diloco(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2), learning_rate=0.1,
    ...   num_local_steps=4, num_workers=2, weight_decay=0.0)
    >>> state, _ = training.step(
    ...   training.init(jnp.zeros(1)), jnp.ones([2, 4, 8, 1]),
    ...   jax.random.key(0))
    >>> print(state.params.round(2))  # 0.7 (1 + 0.9) of four steps of 0.1
    [0.53]
  """
  base.check_range('diloco', 'outer_momentum', outer_momentum, 0, 1)
  defaults = {
    'local_optimizer': optax.adamw(learning_rate, weight_decay=weight_decay),
    'local_state': 'keep',
  }
  return local_round(
    loss_fn,
    optimizer=optax.sgd(outer_learning_rate, outer_momentum, nesterov=True),
    num_local_steps=num_local_steps,
    num_workers=num_workers,
    aggregator=mean() if aggregator is None else aggregator,
    **(defaults | arguments),
  )
