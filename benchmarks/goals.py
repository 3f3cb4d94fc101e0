"""Speeds that the project set itself, and whether the records reach them."""
from typing import NamedTuple
class Row(NamedTuple):
  what: str
def rows(folder):
  return []
