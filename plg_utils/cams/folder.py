"""Cue maps from a folder: what any method wrote, one PNG for each image, named by the image's id."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plg_utils import files
from plg_utils.cams import Cue
from plg_utils.records import Classes, Sample

SMOKE: dict = {}  # the tests give a tiny `root` besides


def build(classes: Classes, *, root: str | Path) -> Cue:
    """Read cue maps from a folder.

    root: folder of `ID.png`, grey or palette, whose values are the indices of `classes`, 255 for void. It is not
        searched deeper, and what belongs to no sample is not read
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: root must be the folder of the cue maps")

    def read(samples: Sequence[Sample]) -> list[np.ndarray]:
        """Read the map of each sample: (H, W) uint8, of its image's exact size."""
        paths = [root / f"{sample.id}.png" for sample in samples]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            names = ", ".join(missing[:3] + ["..."] * (len(missing) > 3))
            raise FileNotFoundError(f"{root} lacks the cue map of {len(missing)} of {len(paths)} images: {names}")
        labels = [files.read_label(path, classes.num_classes) for path in paths]
        for path, label, sample in zip(paths, labels, samples, strict=True):
            if label.shape != (size := sample.image().shape[:2]):
                raise ValueError(f"{path} is {label.shape}, its image {size}: a cue map has the size of its image")
        return labels

    return read
