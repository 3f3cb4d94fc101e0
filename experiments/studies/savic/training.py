"""FedAvg with a diagonal preconditioner, for both parts of the study."""

from typing import Any

import jax
import jax.numpy as jnp

import byzjax

from ...harness.cells import Task


def training(
  settings: Any,
  task: Task,
  *,
  method: Any,
  scope: str,
  learning_rate: jax.Array,
  lower_bound: Any,
  multiple: jax.Array,
  aggregator: byzjax.Aggregator,
  side: byzjax.Aggregator | None,
) -> byzjax.Round:
  """A round; `num_byzantine` workers attack if the multiple is not zero."""
  n, f = settings.num_workers, settings.num_byzantine
  preconditioner = None
  if method != 'local SGD':
    preconditioner = byzjax.scale_by_preconditioner(
      method, decay=settings.decay, lower_bound=lower_bound
    )
  return byzjax.fed_avg(
    task.loss_fn,
    learning_rate=learning_rate,
    num_local_steps=settings.local_steps,
    num_workers=n,
    preconditioner=preconditioner,
    preconditioner_scope='local' if scope == 'local' else 'global',
    aggregator=aggregator,
    side_aggregator=side,
    attack=byzjax.sign_flip(scale=multiple),
    byzantine=lambda step: jnp.arange(n) < jnp.where(multiple > 0, f, 0),
    sampler=task.sampler(settings.batch_size),
  )
