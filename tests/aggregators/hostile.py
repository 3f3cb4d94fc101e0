r"""Random hostile messages against every rule: none may leak.

  python -m tests.aggregators.hostile --draws=10000

Every draw has f hostile messages of n, for the largest f that the rule claims:
huge, tiny, NaN, inf, copies of honest messages, ties, alone and mixed within a
message. The aggregate must be finite, and inside the ball that the rule's row
in the tables claims. Prints the worst ratio of distance to radius per rule.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from tests import tables
from tests.aggregators import running

N, SIZE = running.N, running.SIZE
VALUES = np.array(
  [0, 1e-45, -1, 1e4, -1e6, 1e8, 1e15, -1e17, 1e20, 1e30, 3.4e38, -3.4e38]
  + [np.nan, np.inf, -np.inf]
)
BATCH = 500


def draw(random: np.random.Generator, f: int) -> tuple[np.ndarray, np.ndarray]:
  """Messages [N, SIZE] of which f are hostile, and which ones."""
  scale = 10.0 ** random.integers(-4, 4)
  x = scale * tables.random_messages(int(random.integers(2**31)))
  if random.random() < 0.25:
    x = scale * np.round(x / scale)  # ties
  bad = random.permutation(N)[:f]
  honest = np.setdiff1d(np.arange(N), bad)
  for i in bad:
    kind = random.integers(6)
    if kind == 0:
      x[i] = random.choice(VALUES)
    elif kind == 1:
      x[i] = random.choice(VALUES, size=SIZE)
    elif kind == 2:
      x[i] = x[random.choice(honest)]
    elif kind == 3:
      x[i] = x[honest].mean(axis=0) * random.choice([-1e3, -1, 0.5, 10])
    elif kind == 4:
      spread = x[honest].std(axis=0)
      x[i] = x[honest].mean(axis=0) + random.normal(scale=3) * spread
    else:
      x[i, random.integers(SIZE)] = random.choice(VALUES)
  if f and random.random() < 0.25:
    x[bad] = x[bad[0]]  # they collude
  with np.errstate(over='ignore'):
    return np.float32(x), bad


def worst_ratio(rule: tables.Rule, draws: int, seed: int = 0) -> float:
  """The largest distance from the centre of the ball, in radii of it.

  Raises:
    AssertionError: if an aggregate is not finite or lies outside.
  """
  random = np.random.default_rng(seed)
  aggregator, v0 = running.make(rule), jnp.asarray(running.V0, jnp.float32)

  @jax.jit
  @jax.vmap
  def aggregate(x):
    state = rule.start(aggregator.init(x[0]), v0)
    return aggregator.update(x, state, key=running.KEY)[0]

  worst = 0.0
  for start in range(0, draws, BATCH):
    drawn = [draw(random, rule.num_byzantine) for _ in range(BATCH)]
    results = np.float64(aggregate(np.stack([x for x, _ in drawn])))
    for k, (x, bad) in enumerate(drawn):
      where = f'{rule.name}, seed {seed}, draw {start + k}'
      assert np.isfinite(results[k]).all(), f'{where}: {results[k]}'
      if rule.ball is None:
        continue
      honest = np.delete(np.float64(x), bad, axis=0)
      center, radius = rule.ball(honest, running.V0, rule.num_byzantine)
      # Centre and radius are rounded, in the units of the honest messages.
      slack = 1e-5 * (radius + np.abs(honest).max())
      distance = np.linalg.norm(results[k] - center)
      assert distance <= radius + slack, f'{where}: {distance} > {radius}'
      if radius > 0:
        worst = max(worst, distance / radius)
  return worst


def main(argv):
  del argv
  leaks = 0
  for rule in tables.RULES:
    try:
      worst = worst_ratio(rule, flags.FLAGS.draws, flags.FLAGS.seed)
      print(f'{rule.name:36} f={rule.num_byzantine} worst {worst:.3f} radii')
    except AssertionError as leak:
      leaks += 1
      print(f'{rule.name:36} LEAKS: {leak}')
  sys.exit(leaks > 0)


if __name__ == '__main__':
  flags.DEFINE_integer('draws', 10_000, 'Messages per rule.', 1)
  flags.DEFINE_integer('seed', 0, 'Of the draws.')
  app.run(main)
