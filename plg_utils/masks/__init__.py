"""Mask models: from an image to its segments, which have no names yet. One file is one model.

What `build` returns is a function from a list of images, (H, W, 3) uint8, to a list of `Masks` of the same order. Each
model takes the options tile and tile_overlap, by which it sees a large image in parts: see `tiles`.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar

import numpy as np

from plg_utils import choices, tiles
from plg_utils.records import Masks

Generate = Callable[[Sequence[np.ndarray]], list[Masks]]
LOOKED_AT = ContextVar("the image that a model looks at, as warnings call it", default="an image")


def build(name: str, *, tile: int | None = None, tile_overlap: int | None = None, **options) -> Generate:
    """Build the mask model in the file `name`.py; tile, tile_overlap: pixels, see `tiles`."""
    cut = tiles.check(tile, tile_overlap)
    find = choices.choice(__name__, name, "mask model").build(**options)
    return (lambda images: [tiles.segment(find, image, *cut) for image in images]) if cut else find
