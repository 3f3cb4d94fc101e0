r"""Training without a server, and with liars among the neighbours.

  python -m experiments.gossip.run --check                         # digits
  python -m experiments.gossip.run --dataset=mnist --data_dir=FOLDER

Three questions. How fast do nodes agree, and does it matter for training how
well the graph is connected (Swenson et al., Metropolis weights)? Does D-SGD
leave saddle points, and do its agents agree as fast as the theory says? And
which rules of gossip survive liars, at the bridge of a dumbbell and on a denser
graph (He et al.)?
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import byzjax
from byzjax import gossip, models, topology
from experiments import output, report, study
from experiments.gossip import measure
from experiments.gossip.picture import picture

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 200, 'Rounds of training.', 1)
flags.DEFINE_integer('batch_size', 16, 'Examples per node and round.', 1)
flags.DEFINE_list('learning_rates', ['0.03', '0.1', '0.3'], 'To choose from.')
flags.DEFINE_integer('clique_size', 5, 'Honest nodes of half a dumbbell.', 2)
flags.DEFINE_integer('steps', 10000, 'Of D-SGD, for its rates.', 2000)
flags.DEFINE_integer('num_runs', 64, 'Runs near the saddle, for a seed.', 1)
flags.DEFINE_string('partition', 'label_sorted', 'Labels of honest nodes.')
flags.DEFINE_string(
  'dense_partition', 'dirichlet_by_worker(alpha=1.0)', 'On the denser graph.'
)

GRAPHS = {
  'complete': topology.complete(16),
  'exponential': topology.exponential(16),
  'erdos-renyi': topology.erdos_renyi(16, probability=0.4, seed=0),
  'torus': topology.torus(4, 4),
  'star': topology.star(16),
  'ring': topology.ring(16),
  'chain': topology.chain(16),
}
# Three liars, of whom no honest node has more than two among its seven
# neighbours; checked below.
LIARS = (0, 5, 10)
# What a liar weighs at the bridge, as a share of what the bridge weighs.
SHARES = (1.0, 0.5, 0.25)


def bridge(share: float) -> topology.Topology:
  """A dumbbell with a liar at each end of its bridge; 0 for none."""
  graph = topology.dumbbell(FLAGS.clique_size, num_byzantine=int(share > 0))
  if not share:
    return graph
  mixing, honest = graph.mixing.copy(), 2 * FLAGS.clique_size
  for liar, end in ((honest, 0), (honest + 1, honest - 1)):
    weight = share * mixing[0, honest - 1]
    mixing[liar, end] = mixing[end, liar] = weight
  np.fill_diagonal(mixing, 0)
  np.fill_diagonal(mixing, 1 - mixing.sum(axis=1))
  return graph._replace(mixing=mixing)


def rules(f: int):
  return {
    'plain': gossip.plain(),
    'clipped': gossip.clipped(num_byzantine=f),
    'nearest neighbors': gossip.nearest_neighbor_averaging(num_byzantine=f),
    'trimmed': gossip.trimmed(num_byzantine=f),
  }


def bridge_rules(share: float) -> list[str]:
  """Those that ignore the weights of the graph are run once with liars."""
  names = list(rules(1))
  return names[:2] if share in SHARES[:-1] else names


ATTACKS = {
  'none': None,
  'dissensus': gossip.dissensus(epsilon=1.0),
  'sign flip': byzjax.sign_flip(scale=1.0),
  'alie': byzjax.alie(z=1.5),
}
DENSE = ('none', 'sign flip', 'alie')


def cell(part, graph_name, graph, rule, attack, liars, partition):
  """Nodes of a graph, of whom some lie; the data is that of the others."""
  honest = np.setdiff1d(np.arange(graph.num_nodes), liars)
  # Liars need a batch, though nothing comes of it.
  source = np.zeros(graph.num_nodes, int)
  source[honest] = np.arange(len(honest))
  momentum = 0.0 if part == 'gap' else 0.9

  def make_round(loss_fn, key, learning_rate):
    del key
    return byzjax.gossip_round(
      loss_fn,
      topology=graph,
      rule=rules(1 if part == 'bridge' else 2)[rule],
      optimizer=measure.learning_rates(momentum)(learning_rate),
      attack=ATTACKS[attack],
      byzantine=jnp.isin(jnp.arange(graph.num_nodes), jnp.array(liars, int)),
    )

  def of_nodes(setting, params, images, labels):
    """Every honest node with its own model."""

    def accuracy(params):
      return models.evaluate(
        setting.graphdef,
        params,
        images,
        labels,
        num_classes=setting.num_classes,
        scale=setting.scale,
      ).accuracy

    mine = jax.tree.map(lambda x: x[honest], params)
    accuracies = jax.vmap(accuracy)(mine)
    return {'accuracy': accuracies.mean(), 'worst_node': accuracies.min()}

  return study.Cell(
    make_round,
    {'part': part, 'graph': graph_name, 'rule': rule, 'attack': attack},
    {'learning_rate': study.floats('learning_rates')},
    len(honest),
    FLAGS.rounds,
    FLAGS.batch_size,
    partition,
    make_batch=lambda batch: jax.tree.map(lambda x: x[source], batch),
    model_of=lambda params: jax.tree.map(
      lambda x: x[honest].mean(axis=0), params
    ),
    measure=of_nodes,
  )


def cells() -> list[study.Cell]:
  queue = [
    cell('gap', name, graph, 'plain', 'none', (), FLAGS.partition)
    for name, graph in GRAPHS.items()
  ]
  q = FLAGS.clique_size
  for share in (0.0, *SHARES):
    attack = 'dissensus' if share else 'none'
    liars = (2 * q, 2 * q + 1) if share else ()
    for rule in bridge_rules(share):
      graph = bridge(share)
      name = f'share {share:g}'
      queue.append(
        cell('bridge', name, graph, rule, attack, liars, FLAGS.partition)
      )
  dense = GRAPHS['exponential']
  honest = np.setdiff1d(np.arange(16), LIARS)
  assert dense.adjacency[honest][:, LIARS].sum(axis=1).max() <= 2
  for attack in DENSE:
    for rule in rules(2):
      queue.append(
        cell(
          'dense',
          'exponential',
          dense,
          rule,
          attack,
          LIARS,
          FLAGS.dense_partition,
        )
      )
  return queue


def rank_correlation(x, y) -> float:
  """Of Spearman."""
  x, y = (np.argsort(np.argsort(v)) for v in (x, y))
  return float(np.corrcoef(x, y)[0, 1])


def main(argv):
  del argv
  folder, rows = study.run('gossip', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  seeds = FLAGS.num_seeds
  rates = measure.consensus_rates(GRAPHS, seeds)
  slopes = measure.consensus_slopes(seeds, FLAGS.steps)
  saddles = measure.saddle(seeds, FLAGS.num_runs, 1500)
  for name, records in (
    ('rates', rates),
    ('slopes', slopes),
    ('saddle', saddles),
  ):
    output.write_rows(folder / f'{name}.csv', records)

  gaps = {name: topology.spectral_gap(graph) for name, graph in GRAPHS.items()}
  table, deviation = {}, 0.0
  for name in GRAPHS:
    rate = np.array([r['rate'] for r in report.select(rates, graph=name)])
    table[name, 'gap'] = np.full(seeds, gaps[name])
    table[name, '1 - gap'] = np.full(seeds, 1 - gaps[name])
    table[name, 'measured'] = rate
    deviation = max(deviation, np.abs(rate - 1 + gaps[name]).max())
  print('What plain gossip multiplies the distance to the mean by, 16 nodes')
  print(report.pivot(table, 4))

  def tuned(tail=3, **labels):
    best = report.tuned(report.select(rows, **labels), 'learning_rate')

    def last(column):
      return report.final(best, column, tail)

    return 100 * last('accuracy'), 100 * last('worst_node'), best, last

  accuracy, errors, chosen = {}, {}, {}
  for name in GRAPHS:
    mean, worst, best, last = tuned(part='gap', graph=name)
    accuracy[name, 'nodes'], accuracy[name, 'worst node'] = mean, worst
    early = np.array([r['accuracy'] for r in best if r['round'] == _early()])
    accuracy[name, f'nodes, {_early()} rounds'] = 100 * early
    errors[name, 'consensus distance'] = last('aggregation_error')
    chosen[name] = best[0]['learning_rate']
  print(f'\nTraining, {FLAGS.partition}: test accuracy (%)')
  print(report.pivot(accuracy))
  print(report.pivot(errors, 3))
  print('learning rates:', chosen)

  slope_table = {}
  for tau_a, tau_b in measure.DECAYS:
    fits = report.select(slopes, tau_a=tau_a, tau_b=tau_b)
    name = f'{tau_a:g}, {tau_b:g}'
    slope_table[name, 'theory'] = np.array([r['expected'] for r in fits])
    slope_table[name, 'measured'] = np.array([r['slope'] for r in fits])
  print('\nD-SGD: exponent of the consensus error, by the decays of both')
  print(report.pivot(slope_table, 3))
  saddle_table = {}
  for noise in measure.NOISES:
    runs = report.select(saddles, noise=noise)
    for key, factor in (('left', 100), ('to_the_right', 100), ('value', 1)):
      values = np.array([r[key] for r in runs])
      saddle_table[f'noise {noise:g}', key] = factor * values
    saddle_table[f'noise {noise:g}', 'disagreement'] = np.array(
      [r['disagreement'] for r in runs]
    )
  print('\nD-SGD at a saddle of value 0, with minima of value -0.25:')
  print('runs that left it (%), for the right-hand minimum (%), mean value,')
  print('and the largest difference of values between the agents of a run')
  print(report.pivot(saddle_table, 3))

  bridges, bridge_worst = {}, {}
  for share in (0.0, *SHARES):
    column = f'share {share:g}' if share else 'no liars'
    for rule in bridge_rules(share):
      bridges[rule, column], bridge_worst[rule, column], *_ = tuned(
        part='bridge', graph=f'share {share:g}', rule=rule
      )
  print('\nDumbbell, dissensus at both ends of the bridge: test accuracy (%),')
  print('by what a liar weighs there, as a share of what the bridge weighs')
  print(report.pivot(bridges))
  print('worst node')
  print(report.pivot(bridge_worst))
  dense, dense_worst = {}, {}
  for attack in DENSE:
    for rule in rules(2):
      dense[rule, attack], dense_worst[rule, attack], *_ = tuned(
        part='dense', rule=rule, attack=attack
      )
  print('\nExponential graph, 3 of 16 nodes lie: test accuracy (%)')
  print(report.pivot(dense))
  print('worst node')
  print(report.pivot(dense_worst))
  picture(gaps, accuracy, errors, slopes, bridges, folder / 'gossip.png')

  order = [gaps[name] for name in GRAPHS]
  over = {
    attack: [
      (dense[rule, attack] - dense['plain', attack]).mean()
      for rule in rules(2)
      if rule != 'plain'
    ]
    for attack in DENSE
  }
  study.finish(
    [
      study.claim(
        'rate of consensus, largest distance to 1 - gap in thousandths,'
        ' negative',
        -1000 * deviation,
        -5,
      ),
      study.claim(
        'gap and accuracy, rank correlation (%)',
        100
        * rank_correlation(
          order, [accuracy[n, 'nodes'].mean() for n in GRAPHS]
        ),
        80,
      ),
      study.claim(
        'gap and consensus distance, rank correlation (%), negative',
        -100
        * rank_correlation(
          order, [errors[n, 'consensus distance'].mean() for n in GRAPHS]
        ),
        80,
      ),
      study.claim(
        'accuracy, complete graph over chain',
        (accuracy['complete', 'nodes'] - accuracy['chain', 'nodes']).mean(),
        2,
      ),
      study.claim(
        'exponents, largest distance to theory in hundredths, negative',
        -100 * max(abs(r['slope'] - r['expected']) for r in slopes),
        -5,
      ),
      study.claim(
        'saddle, runs that stay there without noise (%)',
        100 - saddle_table['noise 0', 'left'].mean(),
        100,
      ),
      study.claim(
        'saddle, runs that leave it with noise, fewest (%)',
        min(
          saddle_table[f'noise {x:g}', 'left'].mean()
          for x in measure.NOISES[1:]
        ),
        95,
      ),
      study.claim(
        'bridge without liars, plain over trimmed',
        (bridges['plain', 'no liars'] - bridges['trimmed', 'no liars']).mean(),
        20,
      ),
      study.claim(
        'bridge, share 0.25: clipped over plain',
        (
          bridges['clipped', 'share 0.25'] - bridges['plain', 'share 0.25']
        ).mean(),
        20,
      ),
      study.claim(
        'denser graph, sign flip: the worst robust rule over plain',
        min(over['sign flip']),
        30,
      ),
      study.claim(
        'denser graph, alie: the best robust rule over plain',
        max(over['alie']),
        0,
      ),
    ]
  )


def _early() -> int:
  """A quarter of the rounds, rounded to an evaluation."""
  length = max(FLAGS.rounds // 20, 1)
  return max(FLAGS.rounds // 4 // length, 1) * length


if __name__ == '__main__':
  app.run(main)
