"""Data sets: from a name to samples in four splits. One file is one data set, found by its name.

A file `name.py` here has

    load(*, root, labelled, seed, truth_of, limit, ...) -> Dataset    all keyword-only, all with a default
        root        folder of the data set, by default one below `files.data_root()`
        labelled    how many images carry labels
        seed        of the draw of the labelled images, where there is something to draw
        truth_of    splits whose truth may be read; the others raise TruthHidden
        limit       keep only the first images of unlabelled, val and test, for trials
    SMOKE           options with which `load` takes about a second; the tests give a tiny `root` besides

A load that knows how the labelled images were chosen, or has more to say to the validator, returns `Loaded`. Files
whose name starts with an underscore are no data sets: `_splits` finds lists of labelled images, `_instances` paints
label maps from COCO's form.

The same options give the same samples in the same order. `python -m plg_utils.datasets NAME` reads all files once and
tells what is wrong with them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from importlib import import_module
from inspect import signature
from math import ceil
from pathlib import Path

import numpy as np

from plg_utils import files
from plg_utils.records import IGNORE, SPLITS, Classes, Dataset, Sample

CLASS_FILES = Path(__file__).parent / "classes"


@dataclass(frozen=True)
class Photo(Sample):
    """A sample that lies in files, and where: the validator looks at the files themselves."""

    path: Path | None = None
    truth_path: Path | None = None  # None: as for read_truth


@dataclass(frozen=True)
class Loaded(Dataset):
    """A data set together with what its loader knows about it: the validator prints it."""

    provenance: str = ""  # how the labelled images were chosen
    remarks: tuple[tuple[str, str, int, str], ...] = ()  # rows for the validator: level, finding, count, detail


def choices() -> list[str]:
    """Names of the data sets that there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str, *, tags_of: tuple[str, ...] = (), **options) -> Dataset:
    """Load the data set in the file `name`.py.

    tags_of: splits whose image-level labels may be read: the foreground classes of the label map, and nothing else of
        it. VOC's XML files also name things that its label maps leave out
    options: of that file's load; where it has no option `classes` of its own, `classes` names a class file with other
        words, templates or colours for the same classes
    """
    if name not in choices():
        raise ValueError(f"there is no data set {name!r}, only {', '.join(choices())}")
    load_it = import_module(f"{__name__}.{name}").load
    known = list(signature(load_it).parameters)
    other_words = options.pop("classes", None) if "classes" not in known else None
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"the data set {name!r} has no option {option!r}; {hint}it has {', '.join(known)}")
    for option, splits in (("truth_of", options.get("truth_of", ())), ("tags_of", tags_of)):
        if isinstance(splits, str) or not set(splits) <= set(SPLITS):
            raise ValueError(f"{option}={splits!r} must be a list of splits, of {', '.join(SPLITS)}")
    limit = options.get("limit")
    if limit is not None and limit < 0:
        raise ValueError(f"limit={limit} must be a number of images, or None for all")
    dataset = load_it(**options)
    if other_words is not None:
        dataset = replace(dataset, classes=_reworded(dataset, other_words))
    if not tags_of:
        return dataset
    opened = load_it(**options | {"truth_of": tuple(tags_of)})
    tagged = {
        split: tuple(
            replace(sample, read_tags=_tags(other, dataset.classes) if other.read_truth else None)
            for sample, other in zip(getattr(dataset, split), getattr(opened, split), strict=True)
        )
        for split in tags_of
    }
    return replace(dataset, **tagged)


def _reworded(dataset: Dataset, path: str | Path) -> Classes:
    """Read a class file that has other words, templates or colours for a data set's own classes.

    path: if not absolute, it is meant from the repository's top
    """
    path = files.ROOT / path
    classes, own = files.read_classes(path), dataset.classes
    if (classes.names, classes.background) != (own.names, own.background):
        differ = sorted(set(classes.names) ^ set(own.names)) or ["their order"]
        raise ValueError(
            f"{path} has other classes than {dataset.name}: {', '.join(differ)}; the label maps hold its "
            f"{own.num_classes} classes in this order: {', '.join(own.names)}. Change words, templates and colours only"
        )
    return classes


def provenance(dataset: Dataset) -> str:
    """Say in a sentence how the labelled images were chosen: whether numbers on them compare with published ones."""
    told = getattr(dataset, "provenance", "")
    return (
        told or f"the {len(dataset.labelled)} labelled images are {dataset.name}'s own: no published list is followed"
    )


def _tags(sample: Sample, classes: Classes) -> Callable[[], tuple[int, ...]]:
    """Make the reader of a sample's tags from the sample with its truth, which nobody else gets to see."""
    return lambda: tuple(index for index in np.unique(sample.truth()).tolist() if index in classes.foreground)


def photo(
    path: Path, truth: Path | None = None, *, id: str | None = None, num_classes: int = 0, void: bool = False
) -> Photo:
    """Make the sample of a photo, and of its label map if there is one that may be seen; neither is read yet.

    void: whether the file may hold one value more, `num_classes`, which stands for void and is read as IGNORE
    """

    def read_truth() -> np.ndarray:
        label = files.read_label(truth, num_classes + void)
        if void:
            label[label == num_classes] = IGNORE
        size = files.image_size(path)
        if label.shape != size:
            raise ValueError(f"{truth} is {label.shape}, its photo {path} is {size} (height, width): they must agree")
        return label

    stem = files.check_stem(id or path.stem)
    return Photo(stem, lambda: files.read_image(path), read_truth if truth else None, path=path, truth_path=truth)


def draw(items: list, count: int, seed: int) -> tuple[list, list]:
    """Draw `count` of the items: (drawn, rest), both in their old order; the draw of 12 is part of the draw of 24."""
    chosen = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    drawn = [item for index, item in enumerate(items) if index in chosen]
    return drawn, [item for index, item in enumerate(items) if index not in chosen]


def drawn(count: int, seed: int, pool: str = "") -> str:
    """Say that labelled images were drawn by a seed, perhaps from a pool, and what that means."""
    if not count:
        return "no image is labelled"
    source = f" from the {pool}" if pool else ""
    return f"the {count} labelled images were drawn by seed {seed}{source}: this compares with nothing published"


def count(labelled: int | str, pool: int) -> int:
    """How many images of a pool are labelled: a number of images, or a part of the pool written as "1/8".

    A part is rounded up, as in UniMatch's splits: 1/16 of the 10,582 images of VOC are 662.
    """
    if isinstance(labelled, str):
        try:
            part = Fraction(labelled)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f'labelled={labelled!r} is neither a number of images nor a part such as "1/8"') from None
        if not 0 < part <= 1:
            raise ValueError(f'labelled={labelled!r} is no part of the images such as "1/8"')
        if part * pool < 1:
            raise ValueError(f"labelled={labelled!r} of {pool} images is less than one image")
        return ceil(part * pool)
    if isinstance(labelled, bool) or not isinstance(labelled, int) or not 0 <= labelled <= pool:
        raise ValueError(f"labelled={labelled!r}: {pool} images have labels to choose from")
    return labelled


def check_disjoint(**splits: list[str]) -> None:
    """Refuse ids that stand in a split twice, or in two splits."""
    seen: dict[str, str] = {}
    for split, ids in splits.items():
        repeated = len(ids) - len(set(ids))
        if repeated:
            raise ValueError(f"{split} lists {repeated} ids more than once")
        for other in dict.fromkeys(seen.values()):
            shared = sorted(id for id in ids if seen.get(id) == other)
            if shared:
                raise ValueError(f"{len(shared)} images are both in {other} and in {split}, e.g. {shared[0]}")
        seen.update(dict.fromkeys(ids, split))


def absent(classes: Classes, present: set[int]) -> list[str]:
    """Names of the classes, the background left out, whose values are not among those present."""
    return [classes.names[index] for index in classes.foreground if index not in present]
