"""D-SGD: distributed SGD by consensus over the graph Laplacian."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax import gossip
from byzjax._src import base, checks, local
from byzjax.gossip import _sending
from byzjax.rounds import _gossip_arguments
from byzjax.rounds._gossip_round import gossip_round
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad
from byzjax.topology import Topology, laplacian


def d_sgd(
  loss_fn: LossFn,
  *,
  topology: Topology,
  learning_rate: base.Scalar,
  learning_rate_decay: base.Scalar = 1.0,
  consensus: base.Scalar,
  consensus_decay: base.Scalar = 0.0,
  gradient_noise: base.Scalar = 0.0,
  annealing: base.Scalar = 0.0,
  sampler: local.LocalSampler | None = None,
  rule: gossip.GossipRule | gossip.AggregateRule = gossip.plain(),
  attack: _sending.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  codec: base.Codec | None = None,
  value_and_grad: ValueAndGrad | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  """Distributed SGD over a network, with consensus by the Laplacian (D-SGD).

  `x_i <- x_i + beta_k sum_{j neighbour of i} (x_j - x_i) - alpha_k (g_i(x_i) +
  xi_i) + gamma_k w_i`, both parts from the models before the step, with

  `alpha_k = a (k + 1)^-tau_a`, `beta_k = b (k + 1)^-tau_b`, `xi ~ N(0, sigma^2
  I)`, `gamma_k = c / (sqrt(k + 1) sqrt(log log max(k + 1, 3)))`, `w ~ N(0, I)`,

  where k is the number of steps done before. All edges have weight 1: the
  mixing weights of the topology are not used. Consensus must decay more slowly
  than the step size, `tau_b < tau_a`: then the distance between the nodes
  decreases as `alpha_k / beta_k`. Either kind of noise drives nodes away from
  strict saddle points, where gradients vanish; annealing noise finds global
  minima, with `tau_a = 1` and `tau_b < 1/2`.

  With a rule other than `gossip.plain()`, `beta_k (G_i(x) - x_i)` replaces the
  sum; if the rule uses weights, all edges have weight 1.

  Args:
    loss_fn: `(params, batch_i) -> scalar`, or an `Objective`.
    topology: a connected graph of n nodes.
    learning_rate: a >= 0, the step size at k = 0.
    learning_rate_decay: tau_a, in (1/2, 1].
    consensus: b, in `0 <= b < 2 / lambda_max(L)`, with L the Laplacian of the
      graph.
    consensus_decay: tau_b, `0 <= tau_b < tau_a`.
    gradient_noise: sigma >= 0, of the noise scaled by alpha_k.
    annealing: c >= 0, of the annealing noise, scaled by gamma_k.
    sampler: source of the batch of a step, if the round gets all the data of a
      node; see `gossip_round`.
    rule: a rule of `byzjax.gossip`.
    attack: this and all arguments below are as for `gossip_round`.
    byzantine: the Byzantine workers; required with an attack.
    codec: compression of the nodes' public copies, or None for float32.
    value_and_grad: replaces the gradient of `loss_fn`, or None.
    needs_key: whether the loss is `loss_fn(params, batch_i, key_i)`.
    has_aux: whether the loss is `(loss, aux)`; aux is in `RoundInfo.aux`.
    worker_map: 'vmap', 'map' or an int.
    mesh: devices to split nodes over.
    axis_name: the axis of the mesh.

  All real numbers may be traced; then their ranges are not checked.

  Returns:
    A `Round`; see `gossip_round`.

  Raises:
    ValueError: if an argument is out of range.

  References:
    Swenson, Murray, Poor, Kar, 2022, arXiv:2003.02818. Annealing: Swenson, Kar,
    Poor, Moura, 2019, "Annealing for Distributed Global Optimization".

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> from byzjax import topology
    >>> def loss_fn(params, batch):
    ...   return jnp.sum((params - batch) ** 2) / 2
    >>> training = byzjax.d_sgd(
    ...   loss_fn, topology=topology.ring(4), learning_rate=1.0, consensus=0.3)
    >>> state = training.init(jnp.zeros([]))
    >>> for _ in range(300):
    ...   state, info = jax.jit(training.step)(
    ...     state, jnp.array([0., 1., 2., 5.]), jax.random.key(0))
    >>> [f'{x:.1f}' for x in state.params]
    ['2.0', '2.0', '2.0', '2.0']
  """
  name = 'd_sgd'
  _gossip_arguments.check_slots(name, topology, rule, attack)
  checks.check_range(name, 'learning_rate', learning_rate, 0)
  checks.check_range(
    name, 'learning_rate_decay', learning_rate_decay, 0.5, 1, exclusive=True
  )
  checks.check_range(name, 'consensus', consensus, 0)
  checks.check_range(name, 'consensus_decay', consensus_decay, 0)
  checks.check_range(name, 'gradient_noise', gradient_noise, 0)
  checks.check_range(name, 'annealing', annealing, 0)
  decays = (consensus_decay, learning_rate_decay)
  if not any(isinstance(x, jax.core.Tracer) for x in decays):
    if not np.all(np.asarray(consensus_decay) < learning_rate_decay):
      raise ValueError(
        f'{name} needs consensus_decay < learning_rate_decay, got'
        f' {consensus_decay} and {learning_rate_decay}'
      )
  matrix = laplacian(topology)
  # Rounded up: at the bound itself nothing contracts.
  largest = np.linalg.eigvalsh(matrix)[-1] * (1 + 1e-9)
  if not isinstance(consensus, jax.core.Tracer):
    if not np.all(np.asarray(consensus) * largest < 2):
      raise ValueError(
        f'{name} needs consensus < 2 / lambda_max(L) = {2 / largest:.4g} on'
        f' this graph, got {consensus}'
      )

  def alpha(step):
    return learning_rate * _count(step) ** -jnp.asarray(learning_rate_decay)

  def beta(step):
    return consensus * _count(step) ** -jnp.asarray(consensus_decay)

  def noise(step):
    count = _count(step)
    slow = jnp.sqrt(count * jnp.log(jnp.log(jnp.maximum(count, 3))))
    return jnp.hypot(gradient_noise * alpha(step), annealing / slow)

  def is_zero(x):
    return not isinstance(x, jax.core.Tracer) and not np.any(x)

  noiseless = is_zero(gradient_noise) and is_zero(annealing)
  return gossip_round(
    loss_fn,
    topology=topology._replace(mixing=np.eye(len(matrix)) - matrix),
    optimizer=optax.sgd(alpha),
    sampler=sampler,
    rule=rule,
    order='combine_while_adapt',
    consensus=beta,
    noise=None if noiseless else noise,
    attack=attack,
    byzantine=byzantine,
    codec=codec,
    value_and_grad=value_and_grad,
    needs_key=needs_key,
    has_aux=has_aux,
    worker_map=worker_map,
    mesh=mesh,
    axis_name=axis_name,
  )


def _count(step):
  """The number of this step, from 1 on, as a float."""
  return jnp.asarray(step, jnp.result_type(float)) + 1
