r"""FedBR: less local bias in features and classifiers (Guo, Tang, Lin).

  python -m experiments.fedbr.run --check                         # digits
  python -m experiments.fedbr.run --dataset=mnist --data_dir=FOLDER

Ten clients, all in every round, hold few classes each and images at angles of
their own; they take local steps of plain SGD, whatever the objective: cross
entropy (FedAvg), with a spring (FedProx), with the two terms of FedBR, and with
each of them alone. Pseudo-data are blurred examples, made before the first
round. Then two clients attack messages, of which the projection is a part,
before the mean or a robust rule. At last the first comparison again, over more
rounds. Learning rates and weights are chosen on a validation split.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import data, models, objectives
from experiments import opponents, report, study
from experiments.fedbr import measure

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 10, 'n.', 1)
flags.DEFINE_integer('num_byzantine', 2, 'f, in the second part.', 1)
flags.DEFINE_integer('rounds', 40, 'Rounds of training.', 1)
flags.DEFINE_integer('long', 4, 'Times the rounds, in the third part.', 1)
flags.DEFINE_integer('local_steps', 20, 'H.', 1)
flags.DEFINE_integer('batch_size', 16, 'Examples per worker and step.', 1)
flags.DEFINE_list('concentrations', '0.1,10', 'Of labels, over all classes.')
flags.DEFINE_list('learning_rates', '0.3,1', 'To choose from.')
flags.DEFINE_list('proximal_weights', '0.01,0.1,1', 'To choose from.')
flags.DEFINE_list('contrast_weights', '0,0.5', 'mu, 0 is without.')
flags.DEFINE_list('pseudo_weights', '0,0.1,1', 'lambda, 0 is without.')

ANGLES = range(0, 150, 15)
METHODS = ('fedavg', 'fedprox', 'fedbr', 'fedbr, mixed')
WEIGHTS = ('proximal_weight', 'contrast_weight', 'pseudo_weight')


def rotated(images, partition, seed: int) -> jax.Array:
  """Training images at angles of their worker, others at any of the angles."""
  if partition is None:
    rng = np.random.default_rng(seed)
    angles = rng.choice(np.array(ANGLES, np.float32), len(images))
  else:
    angles = data.rotation_shift(
      partition, ANGLES, concentration=1.0, num_examples=len(images), seed=seed
    )
  return data.rotate(jnp.asarray(images, jnp.float32), jnp.asarray(angles))


def num_features() -> int:
  """d, what the last layer of the model of the flags is given."""
  dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
  shape = dataset.train_images.shape[1:]
  graphdef, params = models.split(
    models.make(FLAGS.model, shape, dataset.num_classes, seed=0)
  )
  features, _ = models.features_and_classifier(graphdef)
  return jax.eval_shape(features, params, jnp.zeros((1, *shape))).shape[1]


def weight_grid(method: str, part: str) -> dict[str, list[float]]:
  """What to choose the weights from; zero is without a term."""
  grid = {name: [0.0] for name in WEIGHTS}
  if method == 'fedprox':
    grid['proximal_weight'] = study.floats('proximal_weights')
  if 'fedbr' in method:
    for name in WEIGHTS[1:]:
      values = study.floats(f'{name}s')
      # The components alone are looked at without attackers.
      whole = part == 'attacks' or 'mixed' in method
      positive = [v for v in values if v > 0]
      grid[name] = positive if whole else values
      if part == 'long':
        grid[name] = [0.0, min(positive)]
  return grid


def cell(
  method: str,
  concentration: float,
  *,
  part: str = 'methods',
  attack: str = 'none',
  rule: str = 'mean',
  sizes: tuple[int, int],
) -> study.Cell:
  n, size, (num_model, width) = FLAGS.num_workers, FLAGS.batch_size, sizes
  f = 0 if attack == 'none' else FLAGS.num_byzantine

  def objective(loss_fn, key, setting, learning_rate, weights):
    if method == 'fedprox':
      return objectives.proximal(loss_fn, mu=weights['proximal_weight'])
    if method == 'fedavg':
      return loss_fn
    # Nobody's training should depend on what attackers call examples.
    trusted = jax.tree.map(lambda x: x[f:], setting.partition)
    return objectives.fedbr(
      *models.features_and_classifier(setting.graphdef),
      pseudo_inputs=objectives.random_sample_means(
        setting.images, trusted, key, num_pseudo=size, scale=setting.scale
      ),
      ascent_step_size=learning_rate,
      num_mixed=int('mixed' in method),
      contrast_weight=weights['contrast_weight'],
      pseudo_weight=weights['pseudo_weight'],
    )

  def make_round(loss_fn, key, setting, learning_rate, **weights):
    training = byzjax.fed_avg(
      objective(loss_fn, key, setting, learning_rate, weights),
      learning_rate=learning_rate,
      num_local_steps=FLAGS.local_steps,
      num_workers=n,
      aggregator=opponents.RULES[rule](FLAGS.num_byzantine),
      attack=measure.measured(opponents.ATTACKS[attack](), num_model),
      byzantine=f,
      sampler=data.local_sampler(
        setting.images, setting.labels, batch_size=size, scale=setting.scale
      ),
    )

    def step(state, batch, key):
      state, info = training.step(state, batch, key)
      return state, info._replace(aggregation_error=state.attack[-1])

    return training._replace(step=step)

  has_projection = 'fedbr' in method

  def make_params(params, key):
    if not has_projection:
      return params
    # The sizes of the paper, which are 512, 256 and 128, in proportion.
    head = objectives.projection(
      key, num_features=width, width=width // 2, out=width // 4
    )
    return {'model': params, 'projection': head}

  return study.Cell(
    make_round,
    {
      'part': part,
      'concentration': concentration,
      'method': method,
      'attack': attack,
      'rule': rule,
    },
    {'learning_rate': study.floats('learning_rates')}
    | weight_grid(method, part),
    n,
    FLAGS.rounds * (FLAGS.long if part == 'long' else 1),
    FLAGS.batch_size,
    f'dirichlet_total(concentration={concentration})',
    is_local=True,
    make_images=rotated,
    make_params=make_params,
    model_of=lambda params: params['model'] if has_projection else params,
  )


def cells() -> list[study.Cell]:
  sizes = (study.num_parameters(), num_features())
  concentrations = study.floats('concentrations')
  return (
    [
      cell(method, concentration, sizes=sizes)
      for concentration in concentrations
      for method in METHODS
      if method != 'fedbr, mixed' or concentration == concentrations[0]
    ]
    + [
      cell(
        method,
        concentrations[0],
        part='attacks',
        attack=attack,
        rule=rule,
        sizes=sizes,
      )
      for method in ('fedavg', 'fedbr')
      for attack in opponents.ATTACKS
      for rule in opponents.RULES
      if (attack, rule) != ('none', 'mean')
    ]
    + [cell('fedbr', concentrations[0], part='long', sizes=sizes)]
  )


def tuned(rows: report.Rows, *names: str) -> report.Rows:
  """Of the combination of numbers that is best on the validation split."""
  name, *more = names
  if more:
    values = dict.fromkeys(row[name] for row in rows)
    parts = [tuned(report.select(rows, **{name: v}), *more) for v in values]
    rows = [row for part in parts for row in part]
  return report.tuned(rows, name)


def by_method(rows: report.Rows) -> dict[str, report.Rows]:
  """The best runs of every method, and of each part of FedBR alone.

  FedBR without its parts is FedAvg, where there is no other.
  """
  of = {m: report.select(rows, method=m) for m in METHODS}
  whole = of['fedbr']

  def uses(row, contrast, pseudo):
    used = row['contrast_weight'] > 0, row['pseudo_weight'] > 0
    return used == (contrast, pseudo)

  without = [row for row in whole if uses(row, False, False)]
  of['fedavg'] = of['fedavg'] or without
  of['fedbr'] = [row for row in whole if uses(row, True, True)]
  of['component 1'] = [row for row in whole if uses(row, False, True)]
  of['component 2'] = [row for row in whole if uses(row, True, False)]
  return {m: tuned(r, 'learning_rate', *WEIGHTS) for m, r in of.items() if r}


def rounds_to(rows: report.Rows, accuracy: float) -> np.ndarray:
  """Per seed, up to the first evaluation that is as good, or all rounds."""
  last = max(row['round'] for row in rows)
  return np.array(
    [
      min(
        (r['round'] for r in of_seed if r['accuracy'] >= accuracy),
        default=last,
      )
      for seed in sorted({row['seed'] for row in rows})
      for of_seed in [report.select(rows, seed=seed)]
    ]
  )


def chosen(rows: report.Rows) -> str:
  names = ('learning_rate', *WEIGHTS)
  return ', '.join(f'{name} {rows[0][name]:g}' for name in names)


def picture(results: dict[float, dict[str, report.Rows]], path) -> None:
  """Accuracy over rounds, a panel for every concentration."""
  figure, panels = plt.subplots(
    1,
    len(results),
    figsize=(5.5 * len(results), 4),
    layout='constrained',
    sharey=True,
    squeeze=False,
  )
  for (concentration, methods), axes in zip(results.items(), panels[0]):
    for method, rows in methods.items():
      rounds = sorted({row['round'] for row in rows})
      at = [report.select(rows, round=r) for r in rounds]
      mean = [100 * np.mean([r['accuracy'] for r in a]) for a in at]
      color = f'C{list(results[min(results)]).index(method)}'
      axes.plot(rounds, mean, label=method, color=color)
    axes.set(xlabel='round', ylim=(0, 100))
    axes.set_title(f'labels Dirichlet({concentration:g} in all)')
    axes.grid(alpha=0.3)
  panels[0][0].set_ylabel('test accuracy (%)')
  panels[0][0].legend(fontsize=8)
  report.save(figure, path, dpi=100)
  plt.close(figure)


def largest_difference(rows: report.Rows) -> float:
  """Between FedBR without its terms and FedAvg; points."""
  fedavg = report.select(rows, method='fedavg')
  nothing = {name: 0.0 for name in WEIGHTS}
  without = report.select(rows, method='fedbr', **nothing)
  columns = [report.column(r, 'accuracy') for r in (fedavg, without)]
  return 100 * float(np.abs(columns[0] - columns[1]).max())


def main(argv):
  del argv
  folder, rows = study.run('fedbr', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  methods = report.select(rows, part='methods')
  results, table, gains = {}, {}, {}
  for concentration in study.floats('concentrations'):
    part = report.select(methods, concentration=concentration)
    results[concentration] = best_of = by_method(part)
    fedavg = report.final(best_of['fedavg'])
    print(f'Labels Dirichlet({concentration:g} in all), chosen on validation')
    for method, best in best_of.items():
      print(f'  {method:12} {chosen(best)}')
      accuracy = report.final(best)
      gain = 100 * (accuracy - fedavg)
      rounds = rounds_to(best, 0.95 * fedavg.mean())
      gains[method, concentration] = gain.mean(), rounds.mean()
      at = f'{concentration:g}'
      early = [row for row in best if row['round'] <= FLAGS.rounds // 4]
      table[method, f'{at}: early'] = 100 * report.final(early, tail=1)
      table[method, f'{at}: %'] = 100 * accuracy
      table[method, f'{at}: gain'] = gain
      table[method, f'{at}: rounds'] = rounds
  print('\nTest accuracy at a quarter of the rounds and at the end, its gain')
  print('over FedAvg, and the rounds to 0.95 of the accuracy of FedAvg')
  print(report.pivot(table))
  picture(results, folder / 'accuracy.png')

  f, n = FLAGS.num_byzantine, FLAGS.num_workers
  attacks = report.select(rows, part='attacks')
  table, errors = {}, {}
  for rule, attack in dict.fromkeys((r['rule'], r['attack']) for r in attacks):
    for method in ('fedavg', 'fedbr'):
      part = report.select(attacks, rule=rule, attack=attack, method=method)
      best = tuned(part, 'learning_rate', *WEIGHTS)
      error = report.final(best, 'aggregation_error', tail=len(best))
      errors[method, rule, attack] = error.mean()
      table[f'{rule}, {attack}', f'{method}: %'] = 100 * report.final(best)
      table[f'{rule}, {attack}', f'{method}: err'] = 100 * error
  print(
    f'\n{f} of {n} attack: test accuracy, and error of the rule in % of |m|'
  )
  print(report.pivot(table))

  long = by_method(report.select(rows, part='long'))
  finals = {method: 100 * report.final(best) for method, best in long.items()}
  table = {(m, '%'): final for m, final in finals.items()}
  table |= {(m, 'gain'): x - finals['fedavg'] for m, x in finals.items()}
  print(f'\n{FLAGS.long} times the rounds: test accuracy, gain over FedAvg')
  print(report.pivot(table))

  skewed, mild, *_ = study.floats('concentrations')

  def faster(method):
    return gains['fedavg', skewed][1] / gains[method, skewed][1]

  study.finish(
    [
      study.claim('skewed: FedBR over FedAvg', gains['fedbr', skewed][0], 2),
      study.claim(
        'skewed: component 1 over FedAvg', gains['component 1', skewed][0], 0.5
      ),
      study.claim(
        'skewed: component 2 over FedAvg', gains['component 2', skewed][0], -2
      ),
      study.claim(
        'skewed: FedAvg needs times the rounds', faster('fedbr'), 1.2
      ),
      study.claim('mild: FedBR over FedAvg', gains['fedbr', mild][0], -1),
      study.claim(
        'FedBR without its terms from FedAvg',
        -largest_difference(methods),
        -0.5,
      ),
      *[
        study.claim(
          f'{rule}, {attack}: error, FedAvg over FedBR',
          errors['fedavg', rule, attack] / errors['fedbr', rule, attack],
          1,
        )
        for rule in ['nnm, median']
        for attack in ['none', 'sign flip']
      ],
    ]
  )


if __name__ == '__main__':
  app.run(main)
