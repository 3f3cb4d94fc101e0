"""What triggers of backdoors look like: a row of images for each.

python -m experiments.reporting.triggers    # writes triggers.png
"""

import pathlib
from collections.abc import Mapping

import numpy as np

import byzjax
from byzjax import data

from . import pictures

TRIGGERS = {
  'none': lambda images: images,
  'patch': byzjax.patch_trigger(size=2, margin=0),
  'blended': byzjax.blended_trigger(alpha=0.3),
  'distributed': byzjax.distributed_trigger(length=3, gap=1),
}


def picture(images, triggers: Mapping, path: pathlib.Path) -> None:
  """A row for each trigger, a column for each image; pixels in [0, 1]."""
  figure, axes = pictures.panels(
    len(triggers), len(images), figsize=(1.2 * len(images), 5)
  )
  for row, (name, trigger) in zip(axes, triggers.items()):
    for panel, image in zip(row, np.asarray(trigger(images))):
      panel.imshow(image.squeeze(), cmap='gray', vmin=0, vmax=1)
      panel.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
  pictures.save(figure, path)


if __name__ == '__main__':
  digits = data.load('digits')
  picture(
    digits.test_images[:6] / digits.scale,
    TRIGGERS,
    pathlib.Path('triggers.png'),
  )
