"""Mask models: from an image to its segments, which have no names yet. One file is one model.

What `build` returns is a function from a list of images, (H, W, 3) uint8, to a list of `Masks` of the same order.
"""

from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np

from plg_utils.records import Masks

Generate = Callable[[Sequence[np.ndarray]], list[Masks]]


def build(name: str, **options) -> Generate:
    """Build the mask model in the file `name`.py."""
    return import_module(f"{__name__}.{name}").build(**options)
