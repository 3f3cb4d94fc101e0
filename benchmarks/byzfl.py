r"""Whole rounds of byzjax and of ByzFL, side by side in one process.

  python3 -m venv .peer
  .peer/bin/pip install torch===2.13.0 torchvision==0.28.0 byzfl==0.0.11
  .peer/bin/pip install -c constraints.txt jax flax optax chex absl-py
  .peer/bin/python -m benchmarks.byzfl

Both train ByzFL's `cnn_mnist` from the same weights on the same random images:
worker momentum from zero, attack, rule, SGD. ByzFL runs the round of its own
benchmark, a Python loop over clients, with the batches at hand as tensors;
byzjax one `lax.scan`, with the gradients of the Byzantine workers as well.

`ratio` is ByzFL's time / byzjax's, the median over repeats; `best` is that of
the fastest repeats. If they are far apart, the machine was not quiet: that
slows ByzFL far more than byzjax. `differs` is the distance between both models
after the first rounds, as a share of the way that ByzFL's went; optimised
attacks try as many strengths in both, but not the same ones.
"""

import functools
import importlib.metadata
import os
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx

import byzjax
from benchmarks import timing
from byzjax import models

try:
  import torch
  from byzfl import ByzantineClient, Client, Server
except (ImportError, RuntimeError) as error:  # The latter from torchvision.
  sys.exit(
    f'ByzFL cannot be imported: {error}.\nInstall it with\n'
    '  pip install torch===2.13.0 torchvision==0.28.0 byzfl==0.0.11\n'
    'torch and torchvision must both be builds for CUDA, or both for the CPU.'
  )

FLAGS = flags.FLAGS
flags.DEFINE_enum('worker_map', 'map', ['map', 'vmap'], 'Of byzjax.')
flags.DEFINE_integer('rounds', 4, 'Rounds in one measurement.', 1)
flags.DEFINE_integer('repeats', 5, 'Repeats of each measurement.', 1)

N, F, BATCH_SIZE = 12, 2, 25  # F of the N workers are Byzantine.
MOMENTUM, LEARNING_RATE = 0.9, 0.1
EVALS = 20  # Strengths that an optimised attack tries.
# Shapes of cnn_mnist's kernels, the dense ones as convolutions.
KERNELS = ((20, 1, 5, 5), (50, 20, 5, 5), (500, 50, 4, 4), (10, 500, 1, 1))


class CNN(nnx.Module):
  """ByzFL's `cnn_mnist`, with the weights of one."""

  def __init__(self, weights: dict[str, torch.Tensor]):
    arrays = [weight.numpy().copy() for weight in weights.values()]
    layers: list[Any] = []
    for shape, kernel, bias in zip(KERNELS, arrays[::2], arrays[1::2]):
      # [out, in, height, width] to [height, width, in, out].
      kernel = kernel.reshape(shape).transpose(2, 3, 1, 0)
      rngs, (size, _, inputs, outputs) = nnx.Rngs(0), kernel.shape
      if len(layers) < 2:
        layers.append(
          models.Conv(inputs, outputs, size, padding='VALID', rngs=rngs)
        )
      else:
        kernel = kernel.reshape(-1, outputs)
        layers.append(nnx.Linear(*kernel.shape, rngs=rngs))
      layers[-1].kernel = nnx.Param(jnp.array(kernel))
      layers[-1].bias = nnx.Param(jnp.array(bias))
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


def rows() -> list[Row]:
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

  return [
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


def peer(row: Row, images: np.ndarray, labels: np.ndarray):
  """ByzFL's server, and a function that runs one round for every batch."""
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
    clients.append(Client(common | client | {'training_dataloader': data}))
  common |= dict(aggregator_info=row.rule, pre_agg_list=list(row.pre))
  server = Server(common | {'test_loader': data})
  attacker = ByzantineClient(row.attack | {'f': F})

  def run():
    for _ in images:
      for client in clients:
        client.set_model_state(server.get_dict_parameters())
        client.compute_gradients()
      sent = [client.get_flat_gradients_with_momentum() for client in clients]
      server.update_model_with_gradients(sent + attacker.apply_attack(sent))

  return server, run


def ours(row: Row, model: CNN, batches: tuple[np.ndarray, np.ndarray]):
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
    worker_map=FLAGS.worker_map,
  )

  def step(state, batch):
    return training.step(state, batch, jax.random.key(0))

  scan = jax.tree_util.Partial(jax.lax.scan, step)
  return timing.compiled(scan, training.init(params), batches)[0]


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  torch.set_num_threads(2)  # JAX takes all cores.
  shape, rng = (FLAGS.rounds, N, BATCH_SIZE), np.random.default_rng(0)
  images = rng.random((*shape, 28, 28, 1), np.float32)
  labels = rng.integers(0, 10, shape, np.int32)
  calls: dict[str, Any] = {}
  differs, sub = {}, optax.tree.sub
  for row in rows():
    name = ' '.join(x['name'] for x in (*row.pre, row.rule, row.attack))
    server, theirs = peer(row, images, labels)
    model = CNN(server.get_dict_parameters())
    program = ours(row, model, (images, labels))
    calls |= {f'{name}, ByzFL': theirs, f'{name}, byzjax': program}
    theirs()
    start, end = nnx.state(model), nnx.state(CNN(server.get_dict_parameters()))
    way, error = sub(end, start), sub(program()[0].params, end)
    differs[name] = optax.tree.norm(error) / optax.tree.norm(way)
  seconds = timing.interleaved(calls, FLAGS.repeats)
  print(
    f'cnn_mnist, {optax.tree.size(start)} parameters, {N - F} + {F} workers,'
    f' batch {BATCH_SIZE}; byzfl {importlib.metadata.version("byzfl")}, torch'
    f' {torch.__version__}, {torch.get_num_threads()} threads; jax'
    f' {jax.__version__}, {jax.default_backend()}, {FLAGS.worker_map};'
    f' {os.cpu_count()} cores, load over 1, 5, 15 minutes {os.getloadavg()}'
    f'\n{"rounds":40}  ByzFL/s byzjax/s    ratio     best  differs'
  )
  for name, difference in differs.items():
    pair = seconds[f'{name}, ByzFL'], seconds[f'{name}, byzjax']
    rates = [FLAGS.rounds / np.median(times) for times in pair]
    numbers = *rates, timing.ratio(*pair), min(pair[0]) / min(pair[1])
    print(f'{name:40}', *(f'{x:8.2f}' for x in numbers), f'{difference:8.0e}')


if __name__ == '__main__':
  app.run(main)
