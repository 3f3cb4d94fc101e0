"""`python -m experiments.grid`."""

from absl import app, flags

from experiments import distributed
from experiments.grid import run

# For --help.
__doc__ = run.__doc__
flags.adopt_module_key_flags(run)
flags.adopt_module_key_flags(distributed)
app.run(run.main)
