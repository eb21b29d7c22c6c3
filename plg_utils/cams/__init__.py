"""Cue maps: from samples to coarse class maps by a weakly supervised method, such as CAMs. One file is one source.

A file `name.py` here has

    build(classes, **options)   -> a function from a list of samples to a list of (H, W) uint8 maps of the same order,
                                each of its image's exact size, with values of `classes` or IGNORE
    SMOKE                       options with which `build` takes about a second

The maps are hard: one class for each pixel, and the background where no class was found. SEPL (`generators/sepl.py`)
takes them so, in order to fit any method; a source that has scores cuts them at its own threshold.
"""

from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np

from plg_utils.records import Classes, Sample

Cue = Callable[[Sequence[Sample]], list[np.ndarray]]


def build(name: str, classes: Classes, **options) -> Cue:
    """Build the source in the file `name`.py for these classes."""
    return import_module(f"{__name__}.{name}").build(classes, **options)
