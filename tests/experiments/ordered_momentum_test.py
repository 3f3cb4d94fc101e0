"""The study of OrMo: orders of arrival, limits, and what its rows say."""

import numpy as np
import pytest

from byzjax import data
from experiments.harness import loop, study
from experiments.studies.ordered_momentum import stability, training
from experiments.studies.ordered_momentum import study as ordered_momentum

TINY = {'num_messages': 12, 'num_evals': 3, 'batch_size': 2, 'rates': (0.02,)}


def run(cell, seeds, folder):
  program = cell.make_program(seeds)
  return loop.run(program, folder, save_seconds=1e9)


def test_every_seed_has_its_order_whichever_are_with_it(tmp_path):
  settings = ordered_momentum.Settings(num_orders=2, **TINY)
  (cell,) = [
    x for x in training.define(settings) if x.name == 'OrMo, 16, equal, none'
  ]
  rows = run(cell, [0, 1], tmp_path)
  alone = run(cell, [1], tmp_path)
  mine = [row for row in rows if row['seed'] == 1]
  assert [row['round'] for row in alone] == [4, 8, 12]
  for name in ('time', 'local_steps', 'loss'):
    np.testing.assert_allclose(
      [row[name] for row in mine], [row[name] for row in alone], rtol=1e-6
    )
  orders = [
    training.events_of(settings, '16, equal', 'OrMo', seed) for seed in range(3)
  ]
  assert (orders[0].worker != orders[1].worker).any()
  assert (orders[0].worker == orders[2].worker).all()
  assert mine[-1]['time'] == pytest.approx(orders[1].time[-1], rel=1e-6)


def test_images_are_dealt_to_workers_and_measured(monkeypatch, tmp_path):
  rng = np.random.default_rng(0)

  def draw(count):
    labels = np.arange(count, dtype=np.int32) % 10
    return rng.integers(0, 256, (count, 8, 8, 1), np.uint8), labels

  some = data.Dataset(
    'some', *draw(400), *draw(20), num_classes=10, scale=255.0
  )
  monkeypatch.setattr(training.data, 'load', lambda name, folder: some)
  settings = ordered_momentum.Settings(dataset='some', num_seeds=1, **TINY)
  (cell,) = [
    x for x in training.define(settings) if x.name == 'SSGDm, 16, equal, none'
  ]
  *_, last = run(cell, [0], tmp_path)
  assert {'loss', 'accuracy', 'validation_loss'} <= set(last)
  assert 0 < last['loss'] < 5 and 0 <= last['accuracy'] <= 1


@pytest.mark.parametrize(
  ('method', 'k', 'exact'), [('SSGDm', 4, 3.8), ('ASGD', 1, 2.0)]
)
def test_limits_are_those_that_are_known(method, k, exact):
  found = stability.limit(method, k, 0.9)
  assert found <= exact <= 1.03 * found


BEST = 0.02


def rows_of(settings, loss):
  return [
    {
      **cell.labels,
      'rate': rate,
      'seed': seed,
      'round': settings.num_messages,
      'loss': loss(cell.labels['method'], rate),
      'validation_loss': loss(cell.labels['method'], rate),
      'accuracy': 0.8,
      'seconds': 10.0 if cell.labels['method'] == 'SSGDm' else 1.0,
    }
    for cell in training.define(settings)
    for rate in training.rates_of(settings, cell.labels['method'])
    for seed in range(settings.num_seeds)
  ]


def verdicts(loss, name='long'):
  settings = study.variant(ordered_momentum, name)
  said = ordered_momentum.summarise(rows_of(settings, loss), settings)
  return [claim.verdict for claim in said.claims]


@pytest.mark.parametrize('name', ['long', 'fashion_mnist'])
def test_ormo_that_leads_reproduces_the_claims(name):
  def loss(method, rate):
    other = 0.0 if method in ('OrMo', 'SSGDm', 'SMEGA2') else 0.1
    return 1 + other + abs(np.log(rate / BEST))

  assert set(verdicts(loss, name)) == {'reproduced'}


def test_ormo_that_diverges_does_not():
  def loss(method, rate):
    return (9.0 if method == 'OrMo' else 1.0) + abs(np.log(rate / BEST))

  assert verdicts(loss) == [
    'not reproduced',
    'not reproduced',
    'reproduced',
    'not reproduced',
  ]


def test_a_schedule_that_is_not_known_is_refused():
  with pytest.raises(ValueError, match='16, fast is none of 16, equal; 16, 1'):
    ordered_momentum.define(ordered_momentum.Settings(schedules=('16, fast',)))
