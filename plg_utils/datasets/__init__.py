"""Data sets: from a name to samples in four splits. One file is one data set, found by its name.

A file `name.py` here has

    load(*, root, labelled, seed, truth_of, limit, ...) -> Dataset    all keyword-only, all with a default
        root        folder of the data set, by default one below `files.data_root()`
        labelled    how many images carry labels
        seed        of the draw of the labelled images, where there is something to draw
        truth_of    splits whose truth may be read; the others raise TruthHidden
        limit       keep only the first images of unlabelled, val and test, for trials
    SMOKE           options with which `load` takes about a second; the tests give a tiny `root` besides
    ON_BAD_IMAGE    perhaps: what happens to a photo that cannot be read if the caller does not say (`load`)

A load that knows how the labelled images were chosen, or has more to say to `plg_utils.check`, returns `Loaded`. Files
whose name starts with an underscore are no data sets: `_splits` finds lists of labelled images, `_instances` paints
label maps from COCO's form, `_photos` finds photos that cannot be read.

The same options give the same samples in the same order. `python -m plg_utils.check NAME` reads all files once and
lists what is wrong with them.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from inspect import signature
from math import ceil
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from plg_utils import class_files, contents, files
from plg_utils.choices import choice, one_of
from plg_utils.records import IGNORE, SPLITS, Classes, Dataset, Sample

CLASS_FILES = Path(__file__).parent / "classes"
BAD_IMAGE = ("stop", "skip", "when_read")  # what `load` does about a photo that cannot be read
SKIP = "on_bad_image: skip in dataset_options"
SHOWN = 100  # bad photos that are told one by one


@dataclass(frozen=True)
class Photo(Sample):
    """A sample that is read from files: where they are."""

    path: Path | None = None
    truth_path: Path | None = None  # None: as for read_truth


@dataclass(frozen=True)
class Loaded(Dataset):
    """A data set together with what its loader knows about it: `plg_utils.check` prints it."""

    provenance: str = ""  # how the labelled images were chosen
    remarks: tuple[tuple[str, str, int, str], ...] = ()  # rows for `plg_utils.check`: level, finding, count, detail
    left_out: tuple[str, ...] = ()  # ids of the photos that cannot be read, if the caller asked to skip them


def choices() -> list[str]:
    """Names of the data sets that there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str, *, tags_of: tuple[str, ...] = (), on_bad_image: str | None = None, **options) -> Dataset:
    """Load the data set in the file `name`.py.

    tags_of: splits whose image-level labels may be read: the foreground classes of the label map, and nothing else of
        it. VOC's XML files also name things that its label maps leave out
    on_bad_image: "stop": if photos cannot be read, refuse to load, with a list of all of them. "skip": warn with that
        list, and leave them out of their splits; nothing else moves. Both decode each photo of the splits once, and
        remember which could be read (`_photos`). "when_read": nobody looks, and a stage stops at the first one. By
        default your own photos (folder) are looked at, and the published sets, which come in archives, are not
    options: of that file's load; where it has no option `classes` of its own, `classes` names a class file with other
        words, templates or colours for the same classes
    """
    source = {"name": name, "tags_of": list(tags_of), "on_bad_image": on_bad_image} | files.plain(options)
    module = choice(__name__, name, "data set")
    known = list(signature(module.load).parameters)
    other_words = options.pop("classes", None) if "classes" not in known else None
    for option in options:
        if option not in known:
            near = get_close_matches(option, [*known, "on_bad_image"], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(
                f"the data set {name!r} has no option {option!r}; {hint}it has {', '.join(known)}, on_bad_image"
            )
    on_bad_image = getattr(module, "ON_BAD_IMAGE", "when_read") if on_bad_image is None else on_bad_image
    one_of(on_bad_image, BAD_IMAGE, "on_bad_image")
    whole = signature(module.load).parameters["labelled"].annotation is int
    _check({"tags_of": tags_of} | options, takes_parts=not whole)
    if options.get("root"):
        options["root"] = Path(options["root"]).expanduser()
    dataset = module.load(**options)
    if other_words is not None:
        dataset = replace(dataset, classes=_reworded(dataset, other_words))
    if tags_of:
        opened = module.load(**options | {"truth_of": tuple(tags_of)})
        tagged = {
            split: tuple(
                replace(sample, read_tags=_tags(other, dataset.classes) if other.read_truth else None)
                for sample, other in zip(getattr(dataset, split), getattr(opened, split), strict=True)
            )
            for split in tags_of
        }
        dataset = replace(dataset, **tagged)
    dataset = replace(dataset, source=source)
    return dataset if on_bad_image == "when_read" else _without_bad(dataset, skip=on_bad_image == "skip")


def _reworded(dataset: Dataset, path: str | Path) -> Classes:
    """Read a class file that has other words, templates or colours for a data set's own classes.

    path: if not absolute, it is meant from the repository's top
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"classes={path!r}: {dataset.name} has classes of its own; give a class file with other words")
    path = files.ROOT / path
    classes, own = class_files.read(path), dataset.classes
    if (classes.names, classes.background) != (own.names, own.background):
        differ = sorted(set(classes.names) ^ set(own.names)) or ["their order"]
        raise ValueError(
            f"{path} has other classes than {dataset.name}: {', '.join(differ)}; the label maps hold its "
            f"{own.num_classes} classes in this order: {', '.join(own.names)}. Change words, templates and colours only"
        )
    return classes


def _check(options: dict[str, Any], *, takes_parts: bool) -> None:
    """Refuse values of the options that all data sets have, where they would fail later and less clearly."""
    for option in ("truth_of", "tags_of"):
        splits = options.get(option, ())
        if not isinstance(splits, list | tuple | set) or not set(splits) <= set(SPLITS):
            raise ValueError(f"{option}={splits!r} must be a list of splits, of {', '.join(SPLITS)}")
    limit, seed, root = options.get("limit"), options.get("seed", 0), options.get("root")
    if limit is not None and not is_count(limit):
        raise ValueError(f"limit={limit!r} must be a number of images, or None for all")
    if not is_count(seed):
        raise ValueError(f"seed={seed!r} must be a whole number from 0 on")
    if not isinstance(root, str | Path | None):
        raise ValueError(f"root={root!r} must be the path of a folder, or None")
    if not takes_parts and not is_count(options.get("labelled", 0)):
        raise ValueError(f"labelled={options['labelled']!r} must be a whole number of images in this data set")


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 0


def _without_bad(dataset: Dataset, *, skip: bool) -> Dataset:
    """Look at all photos; without those that cannot be read, or an error that lists them."""
    from plg_utils.datasets import _photos  # it imports torch, which those who only score labels need not wait for

    splits = {split: getattr(dataset, split) for split in SPLITS}
    every = [sample for samples in splits.values() for sample in samples]
    paths = {_file(sample): sample.id for sample in every if _file(sample)}
    bad = _photos.unreadable(list(paths))
    if not bad:
        return dataset
    listed = [f"  {told}" for told in list(bad.values())[:SHOWN]]
    listed += [f"  ... and {len(bad) - SHOWN} more"] * (len(bad) > SHOWN)
    told = f"{len(bad)} of {len(paths)} photos cannot be read"
    if not skip or len(bad) == len(paths):
        raise ValueError("\n".join([f"{told}:", *listed, f"Mend or remove them, or leave them out by {SKIP}"]))
    warnings.warn("\n".join([f"{told} and are left out:", *listed]), stacklevel=3)
    kept = {split: tuple(sample for sample in samples if _file(sample) not in bad) for split, samples in splits.items()}
    ids = tuple(paths[path] for path in bad)
    more = {}
    if isinstance(dataset, Loaded):
        row = ("warning", "photos that cannot be read, left out", len(ids), ", ".join(ids[:SHOWN]))
        more = {"left_out": ids, "remarks": (*dataset.remarks, row)}
        more["provenance"] = f"{provenance(dataset)}; {told} and are left out"
    return replace(dataset, **kept, **more)


def _file(sample: Sample) -> Path | None:
    """File that a sample's photo is read from, as it is (`path`) or changed in reading (`source`)."""
    return getattr(sample, "path", None) or getattr(sample, "source", None)


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
    path: Path,
    truth: Path | None = None,
    *,
    id: str | None = None,
    num_classes: int = 0,
    void: bool = False,
    origin: Path | None = None,
    root: Path | None = None,
) -> Photo:
    """Make the sample of a photo, and of its label map if there is one that may be seen; neither is read yet.

    void: whether the file may hold one value more, `num_classes`, which stands for void and is read as IGNORE
    origin: the json that the label map was painted from, if it was
    root: folder that neither may lie outside of, if their names come from a list
    """

    def inside(place: Path) -> Path:
        return files.check_inside(place, root) if root else place

    def read_truth() -> np.ndarray:
        label = files.read_label(inside(truth), num_classes + void)
        if void:
            label[label == num_classes] = IGNORE
        size = files.image_size(inside(path))
        if label.shape != size:
            what = f"{truth} of {origin}" if origin else truth
            told = f"{what} is {label.shape}, its photo {path} is {size} (height, width): they must agree"
            raise ValueError(f"{told}; is it another photo's, or was one of them resized or turned?")
        return label

    stem = files.check_stem(id or path.stem)
    return Photo(
        stem,
        lambda: read_photo(inside(path)),
        read_truth if truth else None,
        read_content=lambda: contents.sha256(inside(path)),
        read_truth_content=lambda: contents.sha256(inside(truth)),
        path=path,
        truth_path=truth,
    )


def read_photo(path: Path) -> np.ndarray:
    """Read a photo of a data set, (H, W, 3) uint8; the error of one that is broken or gone says how to do without."""
    try:
        return files.read_image(path)
    except (OSError, ValueError) as error:
        raise type(error)(f"{error}; or leave out what cannot be read by {SKIP}") from error


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
            raise ValueError(f'labelled={labelled!r} is no part of the images, above 0 and up to 1, such as "1/8"')
        if part * pool < 1:
            raise ValueError(f"labelled={labelled!r} of {pool} images is less than one image; give a larger part")
        return ceil(part * pool)
    if not is_count(labelled) or labelled > pool:
        raise ValueError(
            f"labelled={labelled!r}: {pool} images have labels to choose from; give a number from 0 to {pool}, or a "
            'part such as "1/8"'
        )
    return labelled


def files_in(folder: Path, suffixes: tuple[str, ...], what: str = "photo") -> list[Path]:
    """Files of a folder that end in one of these suffixes, sorted, without hidden ones. Not searched deeper."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
    if not found:
        raise FileNotFoundError(f"{folder} holds no {what} whose name ends in {', '.join(suffixes)}")
    return found


def read_list(path: Path) -> list[tuple[str, list[str]]]:
    """Lines of a list of images that are not empty: the place, such as "train.txt, line 3", and the words."""
    lines = enumerate(files.read_lines(path), start=1)
    return [(f"{path}, line {number}", line.split()) for number, line in lines if line.strip()]


def check_disjoint(**splits: list[str]) -> None:
    """Refuse ids that stand in a split twice, or in two splits."""
    seen: dict[str, str] = {}
    for split, ids in splits.items():
        repeated = [id for id, count in Counter(ids).items() if count > 1]
        if repeated:
            raise ValueError(f"{split} lists {len(repeated)} ids more than once, e.g. {repeated[0]}; keep each once")
        for other in dict.fromkeys(seen.values()):
            shared = sorted(id for id in ids if seen.get(id) == other)
            if shared:
                told = f"{len(shared)} images are both in {other} and in {split}, e.g. {shared[0]}"
                raise ValueError(f"{told}; keep each in one split")
        seen.update(dict.fromkeys(ids, split))


def absent(classes: Classes, present: set[int]) -> list[str]:
    """Names of the classes, the background left out, whose values are not among those present."""
    return [classes.names[index] for index in classes.foreground if index not in present]
