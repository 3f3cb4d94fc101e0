"""What the server does with gradients of K workers."""

from collections.abc import Callable, Sequence

import optax

import byzjax

BARRIER = 'SSGDm'
# Without a barrier or a defence, and not OrMo.
BASELINES = ('ASGD', 'naive', 'DA-ASGD', 'shifted', 'SMEGA2')
NUM_COMPARED = 9  # The others are robust, or variants for that.


def methods(k: int, beta: float, norms: Sequence[float]) -> dict[str, Callable]:
  """Arguments of the round, by name, given a schedule of learning rates.

  The rates are those of a single gradient; `num_rows` makes a buffer.
  Momenta hold gradients that were scaled as they arrived, except in SMEGA2.
  """

  def scale(rate, factor: float = 1):
    return optax.scale_by_schedule(lambda count: factor * rate(count))

  def descend():
    return optax.chain(optax.scale(-1), optax.trace(beta))

  def ordered(**options):
    return lambda rate: {
      'optimizer': byzjax.ordered_momentum(
        rate, num_workers=k, momentum=beta, **options
      )
    }

  def clipped(norm):
    return lambda rate: {
      **ordered()(rate),
      'incoming': optax.clip_by_global_norm(norm),
    }

  def forecast(rate):
    server = byzjax.smega2(rate, num_workers=k, momentum=beta)
    return {'optimizer': server, 'broadcast': server.estimate}

  def barrier(rule):
    return lambda rate: {
      'incoming': scale(rate, k),
      'optimizer': descend(),
      'num_rows': k,
      'aggregator': rule(),
    }

  def places(rule):
    # Half of the workers fill the buffer, so a bucket has two of its steps.
    return lambda rate: {
      'incoming': scale(rate, k // 2),
      'optimizer': byzjax.ordered_momentum(1.0, num_workers=2, momentum=beta),
      'num_rows': k // 2,
      'aggregator': rule(),
    }

  methods = {
    BARRIER: barrier(byzjax.mean),
    'ASGD': lambda rate: {'optimizer': optax.sgd(rate)},
    'naive': lambda rate: {
      'optimizer': optax.chain(scale(rate), descend()),
    },
    'DA-ASGD': lambda rate: {
      'optimizer': optax.chain(byzjax.delay_adaptive(k), optax.sgd(rate))
    },
    'shifted': lambda rate: {
      'optimizer': optax.chain(scale(rate), byzjax.by_sender(descend(), k))
    },
    'SMEGA2': forecast,
    'OrMo': ordered(),
    'OrMo-DA': ordered(delay_adaptive=True),
    'OrMo, plain step': ordered(catch_up=False),
    'SSGDm, median': barrier(byzjax.coordinate_median),
    'OrMo, places': places(byzjax.mean),
    'OrMo, places, median': places(byzjax.coordinate_median),
  }
  for norm in norms:
    methods[f'OrMo, norm {norm:g}'] = clipped(norm)
  return methods
