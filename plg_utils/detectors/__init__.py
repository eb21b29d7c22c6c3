"""Detectors: from an image and the classes it shows to boxes. One file is one detector.

What `build` returns is a function of images (H, W, 3) uint8 RGB, and for each the classes to look for, to a list of
`Boxes` of the same order. A class that is not found has no box.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plg_utils import choices
from plg_utils.records import Classes


@dataclass(frozen=True, eq=False)
class Boxes:
    """What a detector found in an image, in its own order."""

    xyxy: np.ndarray  # (N, 4) float32 pixels: left, top, right, bottom as lines between pixels, so (0, 0, W, H) is all
    classes: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,) float32 in [0, 1]

    def __len__(self) -> int:
        return len(self.xyxy)

    @classmethod
    def of(cls, xyxy: Sequence, classes: Sequence, scores: Sequence) -> "Boxes":
        """Make them of lists or arrays, perhaps empty."""
        return cls(
            np.asarray(xyxy, dtype=np.float32).reshape(-1, 4),
            np.asarray(classes, dtype=np.int64).reshape(-1),
            np.asarray(scores, dtype=np.float32).reshape(-1),
        )


Detect = Callable[[Sequence[np.ndarray], Sequence[Sequence[int]]], list[Boxes]]


def build(name: str, classes: Classes, **options) -> Detect:
    """Build the detector in the file `name`.py for these classes."""
    return choices.choice(__name__, name, "detector").build(classes, **options)


def check_tags(tags: Sequence[Sequence[int]], classes: Classes, images: int) -> list[list[int]]:
    """Return what to look for in each image as lists, or refuse what is no foreground class."""
    if len(tags) != images:
        raise ValueError(f"{images} images need as many lists of classes to look for, not {len(tags)}")
    checked = [[int(index) for index in of_image] for of_image in tags]
    wrong = sorted({index for of_image in checked for index in of_image} - set(classes.foreground))
    if wrong:
        raise ValueError(f"{wrong} are no foreground classes; those are {list(classes.foreground)}")
    return checked
