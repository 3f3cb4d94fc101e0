"""Rules, rounds and ResNet-20 on an accelerator; `benchmarks/gpu.sh` runs it.

A share of --budget goes to calls of rules and rounds, and what is left to
ResNet-20, less what saving takes. Results are written table by table.
"""

import pathlib
import sys
import time

import jax
from absl import app, flags

from benchmarks import program, resnet, rounds, rules

_RESERVE = 45.0  # Seconds to compile the last rule and to evaluate.
_ONLY = ('mean', 'median', 'trimmed', 'clipping, 1', 'krum', 'majority')


def _define() -> None:
  flags.DEFINE_string('output_dir', None, 'Folder of the results.')
  flags.DEFINE_float('budget', 600.0, 'Seconds in all.', 0.0)
  flags.DEFINE_string('data_dir', '', 'Folder with cifar10 in TFDS format.')
  flags.DEFINE_bool('allow_cpu', False, 'Run where jax sees no GPU, too.')
  flags.DEFINE_bool('quick', False, 'Toy sizes.')
  flags.mark_flag_as_required('output_dir')


def main(argv):
  del argv
  given, start = flags.FLAGS, time.monotonic()
  backend = jax.default_backend()
  if backend != 'gpu' and not given.allow_cpu:
    sys.exit(
      f'jax sees no GPU, only {jax.devices()}: install jax for it, such as'
      ' jax[cuda13], or run with --allow_cpu'
    )
  folder = pathlib.Path(given.output_dir)

  def part(name, runs):
    command = f'bash benchmarks/gpu.sh OUTPUT_DIR --budget={given.budget:g}'
    program.record(name, runs, folder, command=command, quick=given.quick)

  if given.quick:
    part('rules', rules.measure(rules.QUICK))
    part('rounds', rounds.measure(rounds.QUICK))
    part('resnet', resnet.measure(resnet.QUICK))
    return
  sizes = ('20x10000000', '50x1000000') if backend == 'gpu' else ('20x1000000',)
  few = given.budget / 15
  of_rules = rules.Settings(sizes, _ONLY, numpy=False, seconds=few)
  part('rules', rules.measure(of_rules))
  worker_map = 'vmap' if backend == 'gpu' else 'auto'
  of_rounds = rounds.Settings(worker_map=worker_map, seconds=few)
  part('rounds', rounds.measure(of_rounds))
  left = given.budget - (time.monotonic() - start) - _RESERVE
  of_resnet = resnet.Settings(data_dir=given.data_dir, seconds=max(left, 1.0))
  part('resnet', resnet.measure(of_resnet))


if __name__ == '__main__':
  _define()
  app.run(main)
