"""Mask models: from an image to its segments, which have no names yet. One file is one model.

What `build` returns is a function from a list of images, (H, W, 3) uint8, to a list of `Masks` of the same order.
"""

from collections.abc import Callable, Sequence

import numpy as np

from plg_utils import choices
from plg_utils.records import Masks

Generate = Callable[[Sequence[np.ndarray]], list[Masks]]


def build(name: str, **options) -> Generate:
    """Build the mask model in the file `name`.py."""
    return choices.choice(__name__, name, "mask model").build(**options)
