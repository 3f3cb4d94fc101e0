"""What a vote sends, read from programs; and what its attackers can do."""

import numpy as np
import pytest

from byzjax import data
from experiments.harness import loop, programs
from experiments.reporting import tables
from experiments.studies.sign_majority import cost, study, tuned


@pytest.mark.parametrize('name', [cost.VOTE, cost.MEAN, cost.SUM])
def test_the_program_sends_what_the_formula_says(name):
  make_rows = cost.cell(name, 'million', 4).make_rows
  assert make_rows is not None
  (row,) = make_rows([0])
  ops = [op for op in cost.PER_BYTE if row[op]]
  expected = [*cost.PER_BYTE] if name == cost.VOTE else ['all_reduce']
  assert ops == expected
  # Beside its messages a round sends a few numbers, such as the loss.
  assert 0 <= row['sent'] - row['formula'] <= 100


def test_the_formula_pads_to_whole_words_on_every_device():
  assert cost.formula(cost.VOTE, 64, 2) == 8
  assert cost.formula(cost.VOTE, 65, 2) == 16
  assert cost.formula(cost.MEAN, 65, 2) == 4 * 65


def test_a_collective_of_unknown_bytes_is_an_error():
  text = '"stablehlo.collective_permute"(%0) : (tensor<8xf32>) -> tensor<8xf32>'
  with pytest.raises(ValueError, match='no bytes are known for'):
    cost.collectives(text)


def test_a_vote_does_not_see_how_loud_an_inverter_is(tmp_path):
  config = study.Settings(rounds=3, batch_size=2, parts=('tuned',))
  options = programs.Options('mlp', [0])
  quiet, loud, alone = (
    loop.run(
      programs.of_images(
        tuned.cell(config, 'signum', attack, f), data.load('digits'), options
      ),
      tmp_path,
      save_seconds=1e9,
    )
    for attack, f in [(tuned.OWN, 1), (tuned.LOUD, 1), (tuned.OWN, 0)]
  )
  losses = [tables.column(rows, 'loss') for rows in (quiet, loud, alone)]
  np.testing.assert_array_equal(losses[0], losses[1])
  assert (losses[0] != losses[2]).all()


BEST = {'signum': 2, 'SGD': 1, 'Adam': 1}


def rows(accuracy):
  """As if the best rates of the methods were those at BEST."""
  return [
    {
      **cell.labels,
      'learning_rate': rate,
      'seed': seed,
      'round': 1,
      'accuracy': accuracy(**cell.labels) - 0.1 * (i != BEST[method]),
      'validation_accuracy': 0.9 - 0.1 * (i != BEST[method]),
      'train_loss': 1.0,
    }
    for cell in tuned.define(study.Settings())
    for method in [cell.labels['method']]
    for i, rate in enumerate(tuned.RATES[method])
    for seed in range(2)
  ]


def test_every_method_is_judged_at_its_own_rate():
  def accuracy(method, attack, num_byzantine):
    if num_byzantine == 4 or (attack == tuned.LOUD and method != 'signum'):
      return 0.1
    return 0.97

  config = study.Settings(parts=('tuned',))
  said = study.summarise(rows(accuracy), config)
  assert len(said.checks) == 9
  assert all(check.holds for check in said.checks), said.checks
  (line,) = [x for x in said.tables[2].text.split('\n') if 'no att' in x]
  best = [tuned.RATES[name][i] for name, i in BEST.items()]
  assert [float(number) for number in line.split()[2:]] == best


def test_a_vote_that_falls_behind_is_not_reproduced():
  def accuracy(method, attack, num_byzantine):
    del attack, num_byzantine
    return 0.9 if method == 'signum' else 0.95

  said = study.summarise(rows(accuracy), study.Settings(parts=('tuned',)))
  assert [claim.verdict for claim in said.claims] == [
    'partly',
    'not reproduced',
    'partly',
    'reproduced',
  ]
