"""What a compiled program reads and writes, from its text."""

import math
import re
from typing import NamedTuple

_BYTES = {'pred': 1, 'bf16': 2, 'f32': 4, 's32': 4, 'u32': 4, 'f64': 8}
_SHAPE = re.compile(r'\b(pred|bf16|f32|s32|u32|f64)\[([\d,]*)\]')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*->.*\{$')
_LINE = re.compile(r'(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$')
# These hand on what is there already, or are counted inside.
_FREE = {'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant'}
_SLICES = {'slice', 'dynamic-slice'}


class Instruction(NamedTuple):
  name: str
  size: int  # bytes
  op: str
  operands: list[str]
  calls: str | None
  is_root: bool


def computations(text: str) -> dict[str, list[Instruction]]:
  """The instructions of every computation of `compiled.as_text()`."""
  found: dict[str, list[Instruction]] = {}
  current = None
  for line in text.split('\n'):
    if head := _HEAD.match(line):
      current = found.setdefault(head[2], [])
    elif current is not None and (match := _LINE.match(line.strip())):
      name, kind, op, rest = match.groups()
      calls = re.search(r'calls=%?([\w.\-]+)', rest)
      arguments = rest.split('), ')[0].split('metadata=')[0]
      current.append(
        Instruction(
          name,
          _size(kind),
          op,
          re.findall(r'%([\w.\-]+)', arguments),
          calls and calls[1],
          line.strip().startswith('ROOT'),
        )
      )
  return found


def passes(text: str, num_bytes: int) -> float:
  """Reads and writes of an array of so many bytes, in the largest loop body.

  Each instruction counts what it writes and what it reads, where that is a
  quarter of the array or more. A loop over blocks inside is one read, and the
  branches of conditions are not counted: those of interest are for numbers that
  are not finite.
  """
  every = computations(text)
  bodies = re.findall(r'body=%?([\w.\-]+)', text)
  totals = [
    sum(_traffic(every, every[body], x, num_bytes / 4) for x in every[body])
    for body in bodies
  ]
  return max(totals) / num_bytes


def _traffic(every, body, instruction, least):
  """Bytes that one instruction moves between memory and the processor."""
  if instruction.op in _FREE or instruction.op == 'conditional':
    return 0
  sizes = {x.name: x.size for x in body}
  operands = list(dict.fromkeys(instruction.operands))
  if instruction.op == 'while':
    # Its operand is a tuple of all that the loop needs.
    inputs = [x.operands for x in body if x.name in operands]
    large = {name for names in inputs for name in names}
    return max([sizes.get(name, 0) for name in large], default=0)
  written = instruction.size
  reads = [sizes.get(name, 0) for name in operands]
  if instruction.calls:
    inside = every[instruction.calls]
    written, reads = _inside(inside, written, len(instruction.operands))
  return sum(x for x in [written, *reads] if x >= least)


def _inside(inside, written, num_operands):
  """What a fusion writes, and what it reads of each operand."""
  sizes = {x.name: x.size for x in inside}
  root = next(x for x in inside if x.is_root)
  updated = None
  if root.op == 'dynamic-update-slice':
    written, updated = sizes[root.operands[1]], root.operands[0]
  reads = []
  for parameter in (x for x in inside if x.op == 'parameter'):
    names = {parameter.name}
    for x in inside:
      if x.op == 'bitcast' and names & set(x.operands):
        names.add(x.name)
    users = [x for x in inside if names & set(x.operands) and x.op != 'bitcast']
    if all(x.op in _SLICES for x in users):
      reads.append(min(sum(x.size for x in users), parameter.size))
    elif parameter.name != updated:
      reads.append(parameter.size)
  assert len(reads) <= num_operands
  return written, reads


def _size(kind):
  return sum(
    _BYTES[dtype] * math.prod(int(k) for k in dims.split(',') if k)
    for dtype, dims in _SHAPE.findall(kind)
  )
