"""The attacks of the study, by name."""

import numpy as np

import byzjax

# By name, made for a number of classes; of "many" nearly half take part.
ATTACKS = {
  'none': lambda k: None,
  'none, many': lambda k: None,  # What rules lose by expecting many.
  'ipm 0.1, many': lambda k: byzjax.inner_product_manipulation(epsilon=0.1),
  'alie': lambda k: byzjax.alie(),
  'alie 1.5': lambda k: byzjax.alie(z=1.5),
  'alie, many': lambda k: byzjax.alie(),
  'bit flip': lambda k: byzjax.sign_flip(own=True),
  'label flip': lambda k: byzjax.label_flip(num_classes=k),
  '-10 mean': lambda k: byzjax.sign_flip(scale=10.0),
  'constant 1e6': lambda k: byzjax.constant(value=1e6),
  'constant inf': lambda k: byzjax.constant(value=np.inf),
  'drift': lambda k: byzjax.drift(),
  'drift, many': lambda k: byzjax.drift(),
}
MORE_ATTACKS = {
  'ipm 0.1': ATTACKS['ipm 0.1, many'],
  'bit flip, many': ATTACKS['bit flip'],
  'label flip, many': ATTACKS['label flip'],
  'mimic': lambda k: byzjax.mimic(),
  'mimic, many': lambda k: byzjax.mimic(),
}
RADIUS_ATTACKS = {
  'none': ATTACKS['none'],
  '-10 mean': ATTACKS['-10 mean'],
  '-10 mean, many': ATTACKS['-10 mean'],
  'ipm 5': lambda k: byzjax.inner_product_manipulation(epsilon=5.0),
  'ipm 0.1, many': ATTACKS['ipm 0.1, many'],
}

ALL = {**ATTACKS, **MORE_ATTACKS, **RADIUS_ATTACKS}
# Five by 5 and by 11 of 25, and nobody: the table on photographs.
TABLE = (
  *('none', 'none, many', 'ipm 0.1', 'ipm 0.1, many', 'alie', 'alie, many'),
  *('bit flip', 'bit flip, many', 'label flip', 'label flip, many'),
  *('mimic', 'mimic, many'),
)
