"""Data sets: from a name to samples in four splits. One file is one data set, found by its name.

A file `name.py` here has

    load(*, root, labelled, seed, truth_of, limit, ...) -> Dataset    all keyword-only, all with a default
        root        folder of the data set, by default one below `files.data_root()`
        labelled    how many images carry labels
        seed        of the draw of the labelled images, where there is something to draw
        truth_of    splits whose truth may be read; the others raise TruthHidden
        limit       keep only the first images of unlabelled, val and test, for trials
    SMOKE           options with which `load` takes about a second; the tests give a tiny `root` besides

The same options give the same samples in the same order.
"""

from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path

import numpy as np

from plg_utils import files
from plg_utils.records import SPLITS, Dataset, Sample

CLASS_FILES = Path(__file__).parent / "classes"


def choices() -> list[str]:
    """Names of the data sets that there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str, **options) -> Dataset:
    """Load the data set in the file `name`.py."""
    if name not in choices():
        raise ValueError(f"there is no data set {name!r}, only {', '.join(choices())}")
    load_it = import_module(f"{__name__}.{name}").load
    known = list(signature(load_it).parameters)
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"the data set {name!r} has no option {option!r}; {hint}it has {', '.join(known)}")
    splits = options.get("truth_of", ())
    if isinstance(splits, str) or not set(splits) <= set(SPLITS):
        raise ValueError(f"truth_of={splits!r} must be a list of splits, of {', '.join(SPLITS)}")
    limit = options.get("limit")
    if limit is not None and limit < 0:
        raise ValueError(f"limit={limit} must be a number of images, or None for all")
    return load_it(**options)


def photo(path: Path, truth: Path | None = None, *, id: str | None = None, num_classes: int = 0) -> Sample:
    """Make the sample of a photo, and of its label map if there is one that may be seen; neither is read yet."""

    def read_truth() -> np.ndarray:
        label = files.read_label(truth, num_classes)
        size = files.image_size(path)
        if label.shape != size:
            raise ValueError(f"{truth} is {label.shape}, its photo {path} is {size} (height, width): they must agree")
        return label

    return Sample(files.check_stem(id or path.stem), lambda: files.read_image(path), read_truth if truth else None)


def draw(items: list, count: int, seed: int) -> tuple[list, list]:
    """Draw `count` of the items: (drawn, rest), both in their old order; the draw of 12 is part of the draw of 24."""
    chosen = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    drawn = [item for index, item in enumerate(items) if index in chosen]
    return drawn, [item for index, item in enumerate(items) if index not in chosen]
