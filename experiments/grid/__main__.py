"""`python -m experiments.grid`."""

from absl import app, flags

from experiments.grid import run, settings
from experiments.harness import distributed
from experiments.harness import settings as options

# For --help.
__doc__ = run.__doc__
settings.define_flags()
for module in (distributed, options, settings):
  flags.adopt_module_key_flags(module)
app.run(run.main)
