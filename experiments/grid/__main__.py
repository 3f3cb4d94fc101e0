"""`python -m experiments.grid`."""

from absl import app, flags

from ..harness import distributed
from ..harness import settings as options
from . import run, settings

# For --help.
__doc__ = run.__doc__
settings.define_flags()
for module in (distributed, options, settings):
  flags.adopt_module_key_flags(module)
app.run(run.main)
