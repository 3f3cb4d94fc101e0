import inspect

import pytest

from byzjax import objectives


def test_all_is_sorted_and_complete():
  public = {
    name
    for name, value in vars(objectives).items()
    if not name.startswith('_') and not inspect.ismodule(value)
  }
  assert objectives.__all__ == sorted(public)


@pytest.mark.parametrize('name', objectives.__all__)
def test_every_name_is_documented(name):
  function = getattr(objectives, name)
  for section in ['Args:', 'Returns:', 'Example:', '>>> ']:
    assert section in function.__doc__, section
  for parameter in inspect.signature(function).parameters:
    assert f'{parameter}:' in function.__doc__, parameter
