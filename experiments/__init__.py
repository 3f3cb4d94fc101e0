"""Runs, grids and studies; what they need beside the library is an extra."""

import importlib.util

_MISSING = [
  package
  for module, package in {
    'bokeh': 'bokeh',
    'matplotlib': 'matplotlib',
    'orbax': 'orbax-checkpoint',
    'sklearn': 'scikit-learn',
    'tqdm': 'tqdm',
  }.items()
  if importlib.util.find_spec(module) is None
]
if _MISSING:
  raise ImportError(
    f'experiments need {" and ".join(_MISSING)}, too:'
    " pip install 'byzjax[experiments]', or '.[experiments]' in the clone"
  )
