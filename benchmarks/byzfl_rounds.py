r"""Whole rounds of byzjax and of ByzFL, side by side in one process.

  python -m benchmarks.byzfl_rounds     # with the peers installed

Both train ByzFL's `cnn_mnist` from the same weights on the same random images:
worker momentum from zero, attack, rule, SGD. ByzFL runs the round of its own
benchmark, a Python loop over clients, with the batches at hand as tensors;
byzjax one `lax.scan`. Neither computes gradients that the attack overwrites.

A table for each setting of the threads of ByzFL's torch, `OMP_WAIT_POLICY`
left alone or passive; a fair ratio is that of the faster one. `x peer` is
ByzFL's time over ours, the median over repeats, and `best` that of the fastest
repeats. `differs` is the distance between both models after the first rounds,
as a share of the way that ByzFL's went; optimised attacks try as many strengths
in both, but not the same ones.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from benchmarks import peers, program, records, timing
from byzjax import models

N, F, BATCH_SIZE = 12, 2, 25  # F of the N workers are Byzantine.
MOMENTUM, LEARNING_RATE = 0.9, 0.1
EVALS = 20  # Strengths that an optimised attack tries.
ENVIRONMENTS = {'default': {}, 'passive': {'OMP_WAIT_POLICY': 'passive'}}
# Shapes of cnn_mnist's kernels, the dense ones as convolutions.
KERNELS = ((20, 1, 5, 5), (50, 20, 5, 5), (500, 50, 4, 4), (10, 500, 1, 1))


@dataclasses.dataclass(frozen=True)
class Settings:
  threads: tuple[str, ...] = program.option(
    ('default', 'passive'), 'OMP_WAIT_POLICY of ByzFL.'
  )
  worker_map: str = program.option('map', 'Of byzjax: map or vmap.')
  rounds: int = program.option(4, 'Rounds in one measurement.')
  search_rounds: int = program.option(1, 'The same under optimised attacks.')
  only: tuple[str, ...] = program.option((), 'Only these rows.')
  timeout: float = program.option(90.0, 'Seconds of a row, at most.')
  row_seconds: float = program.option(8.0, 'Of repeating a row, at most.')
  repeats: int = program.option(7, 'Repeats of each measurement.')


QUICK = Settings(rounds=1, only=('Average SignFlipping',), repeats=1)


class CNN(nnx.Module):
  """ByzFL's `cnn_mnist`, with the weights of one."""

  def __init__(self, arrays: Sequence[np.ndarray]):
    layers: list[Any] = []
    for shape, kernel, bias in zip(KERNELS, arrays[::2], arrays[1::2]):
      # [out, in, height, width] to [height, width, in, out].
      kernel = kernel.reshape(shape).transpose(2, 3, 1, 0)
      rngs, (size, _, inputs, outputs) = nnx.Rngs(0), kernel.shape
      layer: Any
      if len(layers) < 2:
        layer = models.Conv(inputs, outputs, size, padding='VALID', rngs=rngs)
      else:
        kernel = kernel.reshape(-1, outputs)
        layer = nnx.Linear(*kernel.shape, rngs=rngs)
      layer.kernel = nnx.Param(jnp.array(kernel))
      layer.bias = nnx.Param(jnp.array(bias))
      layers.append(layer)
    self.layers = nnx.List(layers)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.swapaxes(x, 0, 3)
    convolutions: Any = self.layers[:2]
    for convolution in convolutions:
      x = jax.nn.relu(convolution.chwb(x, models.max_pool))
    x = jnp.swapaxes(x, 0, 3)
    x = jax.nn.relu(self.layers[2](x.reshape(len(x), -1)))
    return self.layers[3](x)


def named(name: str, **parameters) -> dict[str, Any]:
  return {'name': name, 'parameters': parameters}


class Row(NamedTuple):
  rule: dict  # As ByzFL takes it; so are `pre` and `attack`.
  aggregator: byzjax.Aggregator
  attack: dict = named('SignFlipping')
  our_attack: byzjax.Attack = byzjax.sign_flip()
  pre: tuple[dict, ...] = ()

  @property
  def name(self) -> str:
    return ' '.join(x['name'] for x in (*self.pre, self.rule, self.attack))

  @property
  def is_search(self) -> bool:
    return 'Optimal' in self.attack['name']


def rows() -> dict[str, Row]:
  trimmed = byzjax.trimmed_mean(num_byzantine=F)
  mixing = byzjax.nearest_neighbor_mixing(num_byzantine=F)
  mixed = byzjax.pre_aggregate(mixing, trimmed)
  krum = byzjax.multi_krum(num_byzantine=F, num_neighbors=N - F - 1)
  gm_info = named('GeometricMedian', nu=0.1, T=3)
  gm = byzjax.geometric_median(num_iterations=3, smoothing=0.1, start='zeros')
  clip = byzjax.centered_clipping(radius=0.1)
  # ByzFL adds the standard deviations that byzjax subtracts.
  alie = named('ALittleIsEnough', tau=1.5), byzjax.alie(z=-1.5)

  optimal = functools.partial(named, 'Optimal_ALittleIsEnough', evals=EVALS)

  def searched(rule):
    return byzjax.adaptive(
      byzjax.alie(z=-1.0),
      rule,
      strengths=jnp.geomspace(0.1, 100, EVALS),
      num_refinements=0,
      batch_size=1,
    )

  listed = [
    Row(named('Average'), byzjax.mean()),
    Row(named('TrMean', f=F), trimmed),
    Row(named('TrMean', f=F), mixed, *alie, (named('NNM', f=F),)),
    Row(gm_info, gm),
    Row(named('MultiKrum', f=F), krum),
    Row(named('CenteredClipping', tau=0.1), clip),
    Row(named('Median'), byzjax.coordinate_median()),
    Row(
      gm_info,
      gm,
      optimal(aggregator_info=gm_info, pre_agg_list=[]),
      searched(gm),
    ),
    Row(
      named('TrMean', f=F),
      mixed,
      optimal(
        aggregator_info=named('TrMean', f=F), pre_agg_list=[named('NNM', f=F)]
      ),
      searched(mixed),
      (named('NNM', f=F),),
    ),
  ]
  return {row.name: row for row in listed}


def peer(
  row: Row, images: np.ndarray, labels: np.ndarray
) -> tuple[Callable, Callable]:
  """The weights of ByzFL's server, and a round of it for every batch."""
  torch, byzfl = peers.required('torch', 'byzfl')
  torch.set_num_threads(os.cpu_count() or 1)  # JAX takes all cores.
  common: dict[str, Any] = dict(model_name='cnn_mnist', device='cpu')
  common |= dict(optimizer_name='SGD', learning_rate=LEARNING_RATE)
  common |= dict(weight_decay=0.0, milestones=[], learning_rate_decay=1.0)
  client = dict(loss_name='CrossEntropyLoss', momentum=MOMENTUM, nb_labels=10)
  client |= dict(LabelFlipping=False, store_per_client_metrics=False)
  torch.manual_seed(0)
  clients = []
  for i in range(F, N):
    x = torch.tensor(images[:, i, :, None, :, :, 0])  # One channel, first.
    batches: Any = list(zip(x, torch.tensor(labels[:, i]).long()))
    data = torch.utils.data.DataLoader(batches, batch_size=None)
    clients.append(
      byzfl.Client(common | client | {'training_dataloader': data})
    )
  common |= dict(aggregator_info=row.rule, pre_agg_list=list(row.pre))
  server = byzfl.Server(common | {'test_loader': data})
  attacker = byzfl.ByzantineClient(row.attack | {'f': F})

  def run():
    for _ in images:
      for client in clients:
        client.set_model_state(server.get_dict_parameters())
        client.compute_gradients()
      sent = [client.get_flat_gradients_with_momentum() for client in clients]
      server.update_model_with_gradients(sent + attacker.apply_attack(sent))

  def weights():
    return [w.numpy().copy() for w in server.get_dict_parameters().values()]

  return weights, run


def ours(
  row: Row, model: CNN, batches: tuple[np.ndarray, np.ndarray], worker_map: str
) -> Callable:
  """A compiled function that runs one round for every batch."""
  graphdef, params = models.split(model)
  training = byzjax.robust_round(
    models.cross_entropy_loss(graphdef),
    aggregator=row.aggregator,
    optimizer=optax.sgd(LEARNING_RATE),
    num_workers=N,
    worker=optax.ema(MOMENTUM, debias=False),  # From zero, as in ByzFL.
    attack=row.our_attack,
    byzantine=F,
    worker_map=worker_map,
  )

  def step(state, batch):
    return training.step(state, batch, jax.random.key(0))

  scan = jax.tree_util.Partial(jax.lax.scan, step)
  return timing.compiled(scan, training.init(params), batches).call


def row_of(settings: Settings, name: str) -> records.Figure:
  row = rows()[name]
  count = settings.search_rounds if row.is_search else settings.rounds
  shape, rng = (count, N, BATCH_SIZE), np.random.default_rng(0)
  images = rng.random((*shape, 28, 28, 1), np.float32)
  labels = rng.integers(0, 10, shape, np.int32)
  weights, theirs = peer(row, images, labels)
  model = CNN(weights())
  program = ours(row, model, (images, labels), settings.worker_map)
  theirs()
  start, end = nnx.state(model), nnx.state(CNN(weights()))
  sub = optax.tree.sub
  way, error = sub(end, start), sub(program()[0].params, end)
  figure = peers.row(
    name,
    theirs,
    program,
    settings,
    differs=float(optax.tree.norm(error) / optax.tree.norm(way)),
  )
  values = figure.values
  values['rate'] = count / values['wall_median']
  values['peer_rate'] = count / values['peer_wall_median']
  return figure


def measure(settings: Settings) -> Iterator[records.Run]:
  peers.check('byzfl', 'torch')
  names = settings.only or tuple(rows())
  title = f'cnn_mnist, {N - F} + {F} workers, batch {BATCH_SIZE}'
  for threads in settings.threads:
    figures = peers.rows_in_children(
      'benchmarks.byzfl_rounds', names, settings, ENVIRONMENTS[threads]
    )
    yield records.Run(
      f'{title}, threads of ByzFL {threads}', peers.FLOOR, list(figures)
    )


if __name__ == '__main__':
  program.run('byzfl_rounds', Settings, QUICK, measure, ('byzfl', 'torch'))
