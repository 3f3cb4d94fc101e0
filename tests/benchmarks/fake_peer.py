"""Rows of a library that hangs and dies, for the test of what meets that."""

import dataclasses
import os
import time

from benchmarks import records


@dataclasses.dataclass(frozen=True)
class Settings:
  timeout: float = 1.0
  answer: int = 42


def row_of(settings: Settings, name: str) -> records.Figure:
  print('talk of the library')
  if name == 'hangs':
    time.sleep(3600)
  if name == 'dies':
    os._exit(3)
  return records.Figure(name, values={'answer': settings.answer})
