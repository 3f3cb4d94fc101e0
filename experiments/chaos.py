"""What goes wrong in some replicas of a trainer, round by round.

A fault may act in four places: on the optimizer's state, on what is sent, on
who takes part, and, for liars, on all messages at once. Everything is a
function of the round, so one compiled program serves all rounds.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import byzjax

from .reporting import pictures, tables

FAULTS = ('none', 'crash', 'lag', 'flip', 'nan', 'lie')
# Under `lag` a message is less than so many syncs old. Replicas that crash are
# away from the first of these rounds until the second. Under `nan` a number of
# the optimizer's state becomes NaN in that round.
LAG, AWAY, NAN_ROUND = 4, (3, 8), 3
HIGHEST = 4.0  # Loss in a picture: of a character, when nothing is known.


class Fault(NamedTuple):
  """What is wrong with whom.

  Attributes:
    name: one of `FAULTS`.
    is_faulty: bool[n].
  """

  name: str
  is_faulty: np.ndarray


def make(name: str, num_replicas: int, num_faulty: int) -> Fault:
  """So many faulty replicas, spread evenly over the mesh.

  Raises:
    ValueError: if there is no such fault.
  """
  if name not in FAULTS:
    raise ValueError(f'--faults: {name} is none of {FAULTS}')
  where = np.arange(num_faulty) * num_replicas // max(num_faulty, 1) + 1
  is_faulty = np.zeros(num_replicas, bool)
  is_faulty[where % num_replicas] = name != 'none'
  return Fault(name, is_faulty)


def present(fault: Fault, done: jax.Array) -> jax.Array:
  """Who takes part in the round: bool[n]."""
  first, last = AWAY
  away = (done >= first) & (done < last) & (fault.name == 'crash')
  return ~(jnp.asarray(fault.is_faulty) & away)


def returning(fault: Fault, done: jax.Array) -> jax.Array:
  """Who was away in the round before, and starts from the server's model."""
  return present(fault, done) & ~present(fault, done - 1)


def moments(fault: Fault, done: jax.Array, state: Any) -> Any:
  """The optimizer's states `[n, ...]` after one number became NaN."""
  if fault.name != 'nan':
    return state
  leaves, treedef = jax.tree.flatten(state)
  i = next(i for i, x in enumerate(leaves) if x.ndim > 1)
  first = leaves[i].reshape(len(fault.is_faulty), -1)[:, 0]
  hit = fault.is_faulty & (done == NAN_ROUND)
  index = (slice(None), *[0] * (leaves[i].ndim - 1))
  leaves[i] = leaves[i].at[index].set(jnp.where(hit, jnp.nan, first))
  return jax.tree.unflatten(treedef, leaves)


def sent(fault: Fault, syncs: jax.Array, deltas: Any, kept: Any) -> Any:
  """What is sent, leaves `[n, ...]`, and what is kept for later syncs."""
  if fault.name == 'lag':
    new = {
      k: jnp.where(syncs % LAG == 0, x, kept[k]) for k, x in deltas.items()
    }
    deltas = {
      k: jnp.where(_rows(fault.is_faulty, x), new[k], x)
      for k, x in deltas.items()
    }
    kept = {**kept, **new}
  elif fault.name == 'flip':
    name = min(deltas)
    deltas = {**deltas, name: _flipped(fault.is_faulty, deltas[name])}
  return deltas, kept


def attack(fault: Fault, rule: byzjax.Aggregator) -> byzjax.Attack | None:
  """How liars choose what they send: the worst multiple for this rule."""
  if fault.name != 'lie':
    return None
  return byzjax.adaptive(byzjax.sign_flip(scale=1.0), rule)


def _flipped(rows, x):
  """Bit 30 of one number turned over: the highest of the exponent."""
  index = (slice(None), *[0] * (x.ndim - 1))
  bits = jax.lax.bitcast_convert_type(x[index].astype(jnp.float32), jnp.uint32)
  bits = jnp.where(rows, bits ^ jnp.uint32(1 << 30), bits)
  wrong = jax.lax.bitcast_convert_type(bits, jnp.float32)
  return x.at[index].set(wrong.astype(x.dtype))


def _rows(mask, x):
  return mask.reshape(-1, *[1] * (x.ndim - 1))


def report(rows: tables.Rows, folder: pathlib.Path) -> str:
  """Loss and goodput of every rule under every fault; and a picture."""
  pictures.save(picture(rows), folder / 'chaos.png')
  return table(rows)


def table(rows: tables.Rows) -> str:
  """The last loss and goodput, as text."""
  names = 'loss', 'goodput'
  return tables.plain(
    [
      {'fault': fault, 'rule': rule, **{name: run[-1][name] for name in names}}
      for (fault, rule), run in tables.split_by(rows, 'fault', 'rule')
    ]
  )


def picture(rows: tables.Rows) -> plt.Figure:
  """A panel for every fault; what is NaN or above the panels is not seen."""
  by_fault = tables.split(rows, 'fault')
  columns = min(len(by_fault), 3)
  figure, panels = pictures.panels(
    -(-len(by_fault) // columns), columns, sharex=True, sharey=True
  )
  loss = tables.column(rows, 'loss')
  low, high = np.nanmin(loss), min(np.nanmax(loss), HIGHEST)
  for axes, (fault, of_fault) in zip(panels.flat, by_fault.items()):
    pictures.curves(axes, tables.split(of_fault, 'rule'), y='loss')
    axes.set(title=fault, ylim=(low - 0.1, high + 0.1))
  for axes in panels[-1]:
    axes.set_xlabel('round')
  for axes in panels[:, 0]:
    axes.set_ylabel('held-out loss')
  panels.flat[0].legend(fontsize=7)
  return figure
