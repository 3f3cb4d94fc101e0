r"""Rounds of ResNet-20 on CIFAR-10, 25 workers, as far as the time goes.

  python -m benchmarks.resnet --data_dir=FOLDER
  python -m benchmarks.resnet            # random images, for the speed alone

Each rule trains for `seconds` under ALIE with f = 5, or for so many rounds;
`accuracy` is that on the test images. Random images have none.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from benchmarks import program, records, rounds, timing
from byzjax import data, models


@dataclasses.dataclass(frozen=True)
class Settings:
  model: str = program.option('resnet20', 'Or cnn or mlp.')
  data_dir: str = program.option(
    '', 'Folder with cifar10 in TFDS format; random images without.'
  )
  rules: tuple[str, ...] = program.option(
    ('mean', 'trimmed_mean', 'mixing + trimmed_mean'), 'Of benchmarks.rounds.'
  )
  num_workers: int = program.option(25, 'n; f is n // 5.')
  batch_size: int = program.option(32, 'Examples per worker.')
  image_size: int = program.option(32, 'Of random images.')
  num_images: int = program.option(10_000, 'Of random images.')
  chunk: int = program.option(10, 'Rounds of a program.')
  most_rounds: int = program.option(2000, 'Rounds of a rule, at most.')
  worker_map: str = program.option('', 'vmap, map or a number; by the device.')
  seconds: float = program.option(240.0, 'Of all rules together.')


QUICK = Settings('cnn', '', ('trimmed_mean',), 5, 1, 8, 20, 1, 2)


def measure(settings: Settings) -> Iterator[records.Run]:
  dataset = _images(settings)
  f = settings.num_workers // 5
  chosen = {name: rounds.rules(f)[name] for name in settings.rules}
  floor = settings.rules[0]
  times, values = {}, {}
  for name, rule in chosen.items():
    times[name], values[name] = _trained(dataset, rule, settings, len(chosen))
  real = dataset.name != 'random'
  source = 'CIFAR-10' if real else 'random images: speed only'
  yield records.Run(
    f'{settings.model}, {source}, n={settings.num_workers} f={f}, batch'
    f' {settings.batch_size}',
    floor,
    # Rules do not alternate here; repeats of one are its chunks.
    [
      records.figure(name, each, _shortest(each, times[floor]), values[name])
      for name, each in times.items()
    ],
    {'data': dataset.name},
  )


def _shortest(times: timing.Times, floor: timing.Times) -> timing.Times:
  """The floor's median for each repeat."""
  return floor._replace(wall=[float(np.median(floor.wall))] * len(times.wall))


def _images(settings: Settings) -> data.Dataset:
  if settings.data_dir:
    return data.load('cifar10', settings.data_dir)
  rng, size = np.random.default_rng(0), settings.image_size
  images = rng.integers(0, 256, (settings.num_images, size, size, 3), np.uint8)
  labels = rng.integers(0, 10, settings.num_images, np.int32)
  return data.Dataset('random', images, labels, images[:5], labels[:5], 10, 255)


def _trained(
  dataset: data.Dataset,
  rule: byzjax.Aggregator,
  settings: Settings,
  num_rules: int,
) -> tuple[timing.Times, dict]:
  """Seconds of each chunk of rounds, and what came of it."""
  n = settings.num_workers
  images = jnp.asarray(dataset.train_images)
  labels = jnp.asarray(dataset.train_labels)
  shape = dataset.train_images.shape[1:]
  graphdef, params = models.split(
    models.make(settings.model, shape, 10, seed=0)
  )
  on_cpu = jax.default_backend() == 'cpu'
  worker_map = settings.worker_map or ('map' if on_cpu else 'vmap')
  training = byzjax.robust_round(
    models.cross_entropy_loss(graphdef),
    aggregator=rule,
    optimizer=optax.sgd(0.1),
    num_workers=n,
    worker=byzjax.worker_momentum(0.9),
    attack=byzjax.alie(),
    byzantine=n // 5,
    worker_map=int(worker_map) if worker_map.isdigit() else worker_map,
  )
  partition = data.iid(dataset.train_labels, n)

  @functools.partial(jax.jit, donate_argnums=0)
  def chunk(state, images, labels):
    def one_round(state, _):
      key = jax.random.fold_in(jax.random.key(0), state.step)
      batch = data.sample_batch(
        images,
        labels,
        partition,
        key,
        settings.batch_size,
        scale=dataset.scale,
      )
      return training.step(state, batch, key)[0], None

    return jax.lax.scan(one_round, state, length=settings.chunk)[0]

  start = time.perf_counter()
  run = chunk.lower(training.init(params), images, labels).compile()
  compile_seconds = time.perf_counter() - start
  state = run(training.init(params), images, labels)
  state = jax.block_until_ready(state)
  end = time.monotonic() + settings.seconds / num_rules - compile_seconds
  wall: list[float] = []
  while not wall or (
    time.monotonic() < end
    and settings.chunk * (len(wall) + 1) < settings.most_rounds
  ):
    start = time.perf_counter()
    state = jax.block_until_ready(run(state, images, labels))
    wall.append(time.perf_counter() - start)
  values = {
    'rate': settings.chunk / float(np.median(wall)),
    'compile_seconds': compile_seconds,
    'rounds': int(state.step),
  }
  if dataset.name != 'random':
    values['accuracy'] = float(
      models.evaluate(
        graphdef,
        state.params,
        jnp.asarray(dataset.test_images),
        jnp.asarray(dataset.test_labels),
        num_classes=10,
        scale=dataset.scale,
      ).accuracy
    )
  return timing.Times(wall, []), values


if __name__ == '__main__':
  program.run('resnet', Settings, QUICK, measure)
