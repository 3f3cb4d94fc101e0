"""The number of random units that a sampled convex program needs."""

import math

from byzjax._src import checks


def sampled_program_size(
  num_examples: int, *, improvement: float, failure: float
) -> int:
  """The number of samples after which another one rarely lowers the optimum.

  The smallest integer N with::

      N >= min((n + 1) / (psi xi) - 1, (2 / psi) (n + 1 - log xi))

  Then, except with probability xi over the N samples, one more random unit (or
  arrangement) lowers the optimum with probability at most psi. The dual program
  has n variables, an objective, and one constraint per sample: this is the
  scenario bound for n + 1 variables, by Markov's inequality or by a tail bound.

  Args:
    num_examples: n, a Python int >= 1.
    improvement: psi in (0, 1], the probability that another sample helps.
    failure: xi in (0, 1], the probability that this statement is false.

  Returns:
    N.

  Raises:
    ValueError: if an argument is out of its range.

  References:
    Bai, Gautam, Sojoudi, 2022, arXiv:2201.01965; Calafiore, Campi, 2005,
    doi:10.1007/s10107-003-0499-y; 2006, doi:10.1109/TAC.2006.875041.

  Example:
    >>> import byzjax
    >>> byzjax.theory.sampled_program_size(99, improvement=0.5, failure=0.5)
    399
    >>> byzjax.theory.sampled_program_size(99, improvement=0.1, failure=0.01)
    2093
  """
  name = 'sampled_program_size'
  checks.check_count(name, 'num_examples', num_examples, 1)
  checks.check_range(name, 'improvement', improvement, 0, 1, exclusive=True)
  checks.check_range(name, 'failure', failure, 0, 1, exclusive=True)
  by_mean = (num_examples + 1) / (improvement * failure) - 1
  by_tail = 2 / improvement * (num_examples + 1 - math.log(failure))
  return math.ceil(min(by_mean, by_tail))
