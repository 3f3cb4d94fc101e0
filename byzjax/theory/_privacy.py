"""Privacy accounting of a run, by the package dp-accounting."""

import functools
import importlib
import math
from typing import Any

from byzjax._src import checks

_ACCOUNTANTS = ('pld', 'rdp')


def privacy_epsilon(
  *,
  noise_multiplier: float,
  sampling_rate: float,
  num_rounds: int,
  delta: float,
  accountant: str = 'pld',
) -> float:
  r"""The epsilon of a run with `differentially_private_gradient`.

  What an honest worker sends in all T rounds is (epsilon, delta)-differentially
  private: for data sets D and D' that differ in the presence of one example,

  .. math::
    P(\text{messages} \in S \mid D)
      \le e^\epsilon P(\text{messages} \in S \mid D') + \delta

  This guarantee protects each worker's own examples against all others: the
  server, Byzantine workers and anyone who sees the model. It also holds for
  everything computed from the messages. The accounting is for T Gaussian
  mechanisms on Poisson-sampled batches; it does not hold for batches of fixed
  size, or for the best of several runs.

  Args:
    noise_multiplier: z >= 0, of the gradient; epsilon is inf for 0.
    sampling_rate: q in [0, 1], the probability that an example is in a batch: B
      / N for a worker with N examples. The worker with the fewest examples has
      the largest epsilon.
    num_rounds: T >= 1, a Python int, rounds in which the worker sends a
      message.
    delta: in (0, 1); should be below 1 / N to be meaningful.
    accountant: 'pld', privacy loss distributions, or 'rdp', Renyi divergences,
      which is faster and slightly less tight.

  Returns:
    Epsilon, as a float; an upper bound for both accountants.

  Raises:
    ValueError: if an argument is out of its range.
    ImportError: if dp-accounting is not installed; install `byzjax[privacy]`.

  References:
    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, 2016,
    arXiv:1607.00133; Mironov, Talwar, Zhang, 2019, arXiv:1908.10530 (rdp);
    Doroshenko, Ghazi, Kamath, Kumar, Manurangsi, 2022, arXiv:2207.04380 (pld).

  Example:
    >>> import byzjax
    >>> byzjax.theory.privacy_epsilon(
    ...   noise_multiplier=0.0, sampling_rate=0.1, num_rounds=100, delta=1e-5)
    inf
  """
  name = 'privacy_epsilon'
  checks.check_range(name, 'noise_multiplier', noise_multiplier, 0)
  _check(name, sampling_rate, num_rounds, delta, accountant)
  if sampling_rate == 0:
    return 0.0
  if noise_multiplier == 0:
    return math.inf
  if noise_multiplier == math.inf:
    return 0.0
  dp = _dp_accounting(name)
  made = _make_accountant(dp, accountant)
  made.compose(
    _event(dp, sampling_rate, 1, float(noise_multiplier)), num_rounds
  )
  return float(made.get_epsilon(float(delta)))


def privacy_noise_multiplier(
  *,
  epsilon: float,
  sampling_rate: float,
  num_rounds: int,
  delta: float,
  accountant: str = 'pld',
) -> float:
  r"""The smallest noise multiplier for a given epsilon.

  .. math::
    z = \min \{ z : \epsilon(z, q, T, \delta) \le \epsilon \}

  This is the inverse of `privacy_epsilon`.

  Args:
    epsilon: the privacy budget, > 0.
    sampling_rate: q in [0, 1], as in `privacy_epsilon`.
    num_rounds: T >= 1, a Python int.
    delta: in (0, 1).
    accountant: 'pld' or 'rdp', as in `privacy_epsilon`.

  Returns:
    z, as a float, for `differentially_private_gradient(noise_multiplier=z)`; 0
    if nothing is sent. It is rounded up by at most 1e-6.

  Raises:
    ValueError: if an argument is out of its range.
    ImportError: if dp-accounting is not installed; install `byzjax[privacy]`.

  References:
    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, 2016,
    arXiv:1607.00133.

  Example:
    >>> import byzjax
    >>> byzjax.theory.privacy_noise_multiplier(
    ...   epsilon=1.0, sampling_rate=0.0, num_rounds=100, delta=1e-5)
    0.0
  """
  name = 'privacy_noise_multiplier'
  checks.check_range(name, 'epsilon', epsilon, 0, exclusive=True)
  _check(name, sampling_rate, num_rounds, delta, accountant)
  if sampling_rate == 0 or epsilon == math.inf:
    return 0.0
  dp = _dp_accounting(name)
  return float(
    dp.calibrate_dp_mechanism(
      functools.partial(_make_accountant, dp, accountant),
      functools.partial(_event, dp, sampling_rate, num_rounds),
      float(epsilon),
      float(delta),
    )
  )


def _check(name, sampling_rate, num_rounds, delta, accountant):
  checks.check_range(name, 'sampling_rate', sampling_rate, 0, 1)
  checks.check_count(name, 'num_rounds', num_rounds, 1)
  checks.check_range(name, 'delta', delta, 0, 1, exclusive=True)
  if delta == 1:
    raise ValueError(f'{name} needs delta < 1, got {delta}')
  checks.check_choice(name, 'accountant', accountant, _ACCOUNTANTS)


def _dp_accounting(name: str) -> Any:
  # Not at the import of byzjax: it is an extra, and brings SciPy's statistics.
  try:
    return importlib.import_module('dp_accounting')
  except ImportError as error:
    raise ImportError(
      f"{name} needs dp-accounting: pip install 'byzjax[privacy]'"
    ) from error


def _make_accountant(dp: Any, accountant: str) -> Any:
  if accountant == 'pld':
    return dp.pld.PLDAccountant()
  return dp.rdp.RdpAccountant()


def _event(dp: Any, sampling_rate, num_rounds, noise_multiplier) -> Any:
  """The rounds of one worker with this much noise."""
  event = dp.GaussianDpEvent(noise_multiplier)
  if sampling_rate < 1:
    event = dp.PoissonSampledDpEvent(float(sampling_rate), event)
  return dp.SelfComposedDpEvent(event, num_rounds)
