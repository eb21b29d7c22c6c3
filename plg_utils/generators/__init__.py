"""Generators of pseudo labels: from samples to label maps, without training. One file is one method.

What `build` returns is a function from a list of samples, or of images (H, W, 3) uint8 RGB where a method needs no
more, to a list of `PseudoLabel` of the same order.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from plg_utils import choices
from plg_utils.records import Classes, PseudoLabel, Sample

Generate = Callable[[Sequence[Sample | np.ndarray]], list[PseudoLabel]]


def build(name: str, classes: Classes, **options) -> Generate:
    """Build the generator in the file `name`.py for these classes."""
    return choices.choice(__name__, name, "generator").build(classes, **options)


def with_images(samples: Sequence[Sample | np.ndarray], images: Sequence[np.ndarray]) -> list[Sample | np.ndarray]:
    """Let samples keep the images that were read, because the next step may need them too."""
    pairs = zip(samples, images, strict=True)
    return [replace(each, read_image=lambda i=image: i) if isinstance(each, Sample) else each for each, image in pairs]
