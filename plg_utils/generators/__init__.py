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


def with_image(item: Sample | np.ndarray, image: np.ndarray) -> Sample | np.ndarray:
    """Let a sample keep the image that was read, because the next step may need it too."""
    return replace(item, read_image=lambda: image) if isinstance(item, Sample) else item
