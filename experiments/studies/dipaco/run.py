r"""DiPaCo: paths through shared modules, each for its own documents.

  python -m experiments.dipaco.run --check
  python -m experiments.dipaco.run --text=tiny_shakespeare --data_dir=FOLDER

A small transformer is trained for a while on all documents and then goes on in
several ways, each path for as many steps of AdamW: as it is (dense), with its
average over four workers (DiLoCo), as four paths through two levels of two
modules (DiPaCo), and as four networks (flat mixture). Documents are in 16
languages of 4 families. Paths get theirs by k-means on hidden states, or by a
router that has learned which path does best; at the end a document is read by
the one path it is routed to. `data` changes how many documents there are, and
`attacks` has three workers on each path; on two paths one of them lies.
"""

import itertools

import numpy as np
from absl import app, flags

from byzjax import models
from experiments import report, study
from experiments.dipaco import measure, paths, tables

FLAGS = flags.FLAGS
flags.DEFINE_list('parts', 'paths,data,attacks', 'Parts of the study.')
flags.DEFINE_string(
  'text', 'languages', 'languages, sonnets, or a text of --data_dir.'
)
flags.DEFINE_integer('num_documents', 8192, 'For training.', 16)
flags.DEFINE_list('few_documents', '256,1024,4096', 'Of the part data.')
flags.DEFINE_integer('length', 40, 'Letters of a document.', 2)
flags.DEFINE_integer('prefix', 16, 'Letters that routers see.', 1)
flags.DEFINE_integer('width', 16, 'Of the transformer.', 2)
flags.DEFINE_integer('pretraining_steps', 400, 'Of the dense model.', 0)
flags.DEFINE_float('first_rate', 0.01, 'Of AdamW in pretraining.', 0.0)
flags.DEFINE_integer('rounds', 30, 'Of each path.', 2)
flags.DEFINE_integer('num_local_steps', 20, 'H.', 1)
flags.DEFINE_integer('batch_size', 8, 'Documents.', 1)
flags.DEFINE_list('learning_rates', '0.005,0.01', 'Of AdamW; a grid.')
flags.DEFINE_integer('num_evals', 4, 'Evaluations of a run; even.', 2)


def as_tuple(table: np.ndarray) -> tuple[tuple[int, ...], ...]:
  return tuple(map(tuple, table.tolist()))


def cells() -> list[measure.Cell]:
  if len(set(FLAGS.few_documents)) != 3 or FLAGS.num_evals % 2:
    raise ValueError(
      '--few_documents must be three numbers and --num_evals even, got'
      f' {FLAGS.few_documents} and {FLAGS.num_evals}'
    )
  grid = as_tuple(models.grid_paths(measure.GRID))
  one, alike = ((0, 0),), ((0, 0),) * 4
  flat = tuple((i, i) for i in range(4))
  rates = tuple(map(float, FLAGS.learning_rates))
  everything = FLAGS.num_documents

  def cell(part, method, routes, routing, count=everything, **more):
    labels = {'part': part, 'method': method, 'documents': count}
    given = rates if part == 'paths' else rates[-1:]
    return measure.Cell(labels, routes, routing, count, given, **more)

  queue = [
    cell('paths', 'dense', one, 'none', outer=(1.0, 0.0)),
    cell(
      'paths', 'dense, 4 x steps', one, 'none', outer=(1.0, 0.0),
      rounds_factor=4,
    ),
    cell('paths', 'DiLoCo', alike, 'none'),
    cell('paths', 'DiPaCo, k-means', grid, 'k-means'),
    cell('paths', 'DiPaCo, product k-means', grid, 'product'),
    cell('paths', 'DiPaCo, discriminative', grid, 'discriminative'),
    cell('paths', 'DiPaCo, pre-empted', grid, 'k-means', num_preempted=1),
    cell('paths', 'flat mixture', flat, 'k-means'),
  ]  # fmt: skip
  for count in map(int, FLAGS.few_documents):
    queue += [
      cell('data', 'dense', one, 'none', count, outer=(1.0, 0.0)),
      cell('data', 'DiPaCo, k-means', grid, 'k-means', count),
    ]
  for rule, liars in itertools.product(paths.RULES, ((), (0, 9))):
    queue.append(
      cell(
        'attacks', f'{rule}, {len(liars)} of 12', grid, 'k-means', rule=rule,
        liars=liars, workers_per_path=3, rounds_factor=0.5,
      )
    )  # fmt: skip
  return [cell for cell in queue if cell.labels['part'] in FLAGS.parts]


def main(argv):
  del argv
  folder, rows = study.run('dipaco', cells, measure.run_cell)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  claims = []
  if 'paths' in FLAGS.parts:
    claims += tables.show_paths(report.select(rows, part='paths'))
  if 'data' in FLAGS.parts:
    claims += tables.show_data(report.select(rows, part='data'), folder)
  if 'attacks' in FLAGS.parts:
    claims += tables.show_attacks(report.select(rows, part='attacks'))
  study.finish(claims)


if __name__ == '__main__':
  app.run(main)
