"""Data sets: from a name to samples in four splits. One file is one data set, found by its name.

A file `name.py` here has

    load(*, root, labelled, seed, truth_of, limit, ...) -> Dataset    all keyword-only, all with a default
        root        folder of the data set, by default one below `files.data_root()`
        labelled    how many images have labels
        seed        of the draw of the labelled images, where there is something to draw
        truth_of    splits whose truth may be read; the others raise TruthHidden
        limit       keep only the first images of unlabelled, val and test, for trials
    SMOKE           options with which `load` takes about a second; the tests give a tiny `root` besides
    ON_BAD_IMAGE    optional: what happens to a photo that cannot be read if the caller does not say (`load`)

`from_pairs` makes a data set of photos and label maps. Files whose name starts with an underscore are no data sets:
`_splits` finds lists of labelled images, `_formats` reads what other tools write, `_instances` paints label maps from
COCO's form, `_maps` reads label maps, `_photos` finds photos that cannot be read. The same options give
the same samples in the same order.

To import this module replaces `warnings.formatwarning` for the whole process: a warning of this package is then printed
as one plain line, once; other warnings are printed as before.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from inspect import signature
from math import ceil, inf
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from plg_utils import class_files, contents, files
from plg_utils.choices import choice, one_of
from plg_utils.datasets import _maps
from plg_utils.records import IGNORE, SPLITS, Classes, Dataset, Sample

CLASS_FILES = Path(__file__).parent / "classes"
BAD_IMAGE = ("stop", "skip", "when_read")  # what `load` does about a photo that cannot be read
SKIP = "on_bad_image: skip in dataset_options (plg label: --skip-unreadable)"
SHOWN = 100  # bad photos that an error lists

_plain_format, _said = warnings.formatwarning, set()


def _one_line(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> str:
    """A warning of this package as one line without its source, and only once in a process."""
    if not Path(filename).is_relative_to(CLASS_FILES.parents[1]):
        return _plain_format(message, category, filename, *rest)
    if (text := f"warning: {message}\n") in _said:
        return ""
    _said.add(text)
    return text


warnings.formatwarning = _one_line


def choices() -> list[str]:
    """Names of the data sets that there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str, *, tags_of: tuple[str, ...] = (), on_bad_image: str | None = None, **options) -> Dataset:
    """Load the data set in the file `name`.py.

    tags_of: splits whose image-level labels may be read: the foreground classes of the label map, and nothing else of
        it. VOC's XML files also name things that its label maps leave out
    on_bad_image: "stop": if photos cannot be read, refuse to load, with a list of all of them. "skip": warn with that
        list, and leave them out of their splits; nothing else moves. Both decode each photo of the splits once, and
        remember which could be read (`_photos`). "when_read": a stage stops at the first one that it reads. By
        default your own photos (folder) are checked, and the published sets, which come in archives, are not
        Where photos are checked, a split whose label maps show no class is refused, else there is a warning
    options: of that file's load; where it has no option `classes`, `classes` names a class file with other words,
        templates or colours for the same classes
    """
    source = {"name": name, "tags_of": list(tags_of), "on_bad_image": on_bad_image} | files.plain(options)
    module = choice(__name__, name, "data set")
    known = signature(module.load).parameters
    other_words = options.pop("classes", None) if "classes" not in known else None
    for option in options:
        one_of(option, [*known, "on_bad_image"], "option")
    on_bad_image = getattr(module, "ON_BAD_IMAGE", "when_read") if on_bad_image is None else on_bad_image
    one_of(on_bad_image, BAD_IMAGE, "on_bad_image")
    _check({"tags_of": tags_of} | options, takes_parts=known["labelled"].annotation is not int)
    if options.get("root"):
        options["root"] = Path(options["root"]).expanduser()
    folders = {option: options[option] for option in ("root", "labels") if isinstance(options.get(option), str | Path)}
    # Who opens the run later may be in another folder.
    source |= {option: Path(path).expanduser().absolute().as_posix() for option, path in folders.items() if path}
    dataset = replace(module.load(**options), source=source)
    if other_words is not None:
        dataset = replace(dataset, classes=_reworded(dataset, other_words))
    if tags_of:
        opened = module.load(**options | {"truth_of": tuple(tags_of)})
        for split in tags_of:
            pairs = zip(getattr(dataset, split), getattr(opened, split), strict=True)
            tagged = (replace(one, read_tags=_tag_reader(other, dataset.classes)) for one, other in pairs)
            dataset = replace(dataset, **{split: tuple(tagged)})
    if on_bad_image == "when_read":
        for sample in (sample for split in SPLITS for sample in getattr(dataset, split)):
            files.check_stem(sample.id)  # `_photos` does it otherwise, so that skip leaves such a photo out
        _maps.check(dataset, refuse=False)
        return dataset
    dataset = _without_bad(dataset, skip=on_bad_image == "skip", bands=options.get("bands") or ())
    if dataset.labelled or dataset.val:
        with warnings.catch_warnings(action="ignore"):  # they were said above
            opened = module.load(**options | {"truth_of": ("labelled", "val")})  # as stages would find them later
        _maps.check(opened, refuse=True, left_out=dataset.left_out)
    return dataset


def _tag_reader(opened: Sample, classes: Classes) -> Callable[[], tuple[int, ...]] | None:
    def read_tags() -> tuple[int, ...]:
        return tuple(value for value in np.unique(opened.truth()).tolist() if value in classes.foreground)

    return read_tags if opened.read_truth else None


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
        remedy = "For other classes take the data set folder (root: the photos, labels: the label maps)"
        raise ValueError(
            f"{path} has other classes than {dataset.name}: {', '.join(differ)}; the label maps hold its "
            f"{own.num_classes} classes in this order: {', '.join(own.names)}. Change words, templates and colours "
            f"only. {remedy}"
        )
    return classes


def _check(options: dict[str, Any], *, takes_parts: bool) -> None:
    """Refuse values of the options that all data sets have, where they would fail later and less clearly."""
    for option in ("truth_of", "tags_of"):
        splits = options.get(option, ())
        if not isinstance(splits, list | tuple | set) or not set(splits) <= set(SPLITS):
            raise ValueError(f"{option}={splits!r} must be a list of splits, of {', '.join(SPLITS)}")
    if options.get("limit") is not None:
        check_count("limit", options["limit"], "a number of images, or None for all")
    check_count("seed", options.get("seed", 0), "a whole number from 0 on")
    if not takes_parts:
        check_count("labelled", options.get("labelled", 0), "a whole number of images in this data set")
    if not isinstance(options.get("root"), str | Path | None):
        raise ValueError(f"root={options['root']!r} must be the path of a folder, or None")


def check_count(option: str, value: Any, meaning: str, least: int = 0, most: float = inf) -> None:
    """Refuse the value of an option that is no whole number from `least` to `most`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{option}={value!r} must be {meaning}")


def _without_bad(dataset: Dataset, *, skip: bool, bands: Sequence[int]) -> Dataset:
    """Decode all photos; the data set without those that cannot be read, or an error that lists them."""
    from plg_utils.datasets import _photos  # it imports torch, which those who only score labels need not wait for

    ids = {sample.path: sample.id for split in SPLITS for sample in getattr(dataset, split) if sample.path}
    bad = _photos.unreadable(list(ids), bands)
    if not bad:
        return dataset
    problem, listed = f"{len(bad)} of {len(ids)} photos cannot be read", _photos.listed(bad.values(), SHOWN)
    if not skip or len(bad) == len(ids):
        raise ValueError(f"{problem}:{listed}\nFix or remove them, or leave them out by {SKIP}")
    warnings.warn(f"{problem} and are left out:{listed}", stacklevel=1)
    left_out = tuple(ids[path] for path in bad)
    row = ("warning", "photos that cannot be read, left out", len(bad), ", ".join(left_out[:SHOWN]))
    return replace(
        dataset,
        **{split: tuple(sample for sample in getattr(dataset, split) if sample.path not in bad) for split in SPLITS},
        left_out=left_out,
        remarks=(*dataset.remarks, row),
        provenance=f"{provenance(dataset)}; {problem} and are left out",
    )


def provenance(dataset: Dataset) -> str:
    """Say in a sentence how the labelled images were chosen: whether numbers on them compare with published ones."""
    default = f"the {len(dataset.labelled)} labelled images are {dataset.name}'s own: no published list is followed"
    return dataset.provenance or default


# For the files of this folder: samples


def photo(
    path: Path,
    truth: Path | None = None,
    *,
    classes: Classes | None = None,
    void: bool = False,
    origin: Path | None = None,
    root: Path | None = None,
) -> Sample:
    """Make the sample of a photo, and of its label map if there is one that may be seen; neither is read yet.

    classes: those of the label map
    void: whether the file may hold one value more, `num_classes`, which stands for void and is read as IGNORE
    origin: the json that the label map was painted from, if it was
    root: folder that neither may lie outside of, if their names come from a list
    """

    def inside(place: Path) -> Path:
        return files.check_inside(place, root) if root else place

    def read_image() -> np.ndarray:
        try:
            return files.read_image(inside(path))
        except (OSError, ValueError) as error:
            raise type(error)(f"{error}; or leave out what cannot be read by {SKIP}") from error

    def read_truth() -> np.ndarray:
        label = _maps.read(inside(truth), classes, void)
        if void:
            label[label == classes.num_classes] = IGNORE
        size = files.image_size(inside(path))
        if label.shape != size:
            what = f"{truth} of {origin}" if origin else truth
            problem = f"{what} is {label.shape}, its photo {path} is {size} (height, width): they must agree"
            raise ValueError(f"{problem}; is it another photo's, or was one of them resized or turned?")
        return label

    return Sample(
        path.stem,  # checked with the photo, see `load`
        read_image,
        read_truth if truth else None,
        read_content=lambda: contents.sha256(inside(path)),
        read_truth_content=lambda: contents.sha256(inside(truth)),
        path=path,
    )


def otherwise(sample: Sample, how: str, **readers: Callable) -> Sample:
    """The sample of the same file read in another way; `how` says which, and is part of its content."""
    # A digest, because stages compare the begin of the content only.
    content = lambda: hashlib.sha256(f"{how} {sample.content}".encode()).hexdigest()  # noqa: E731
    return replace(sample, read_content=content, **readers)


# A photo and its label map below the root, None: it has no label map. Of many thousands paths take longer than texts.
Entry = tuple[str | Path, str | Path | None]


def from_pairs(
    name: str,
    classes: Classes,
    splits: dict[str, list[Entry]],
    *,
    root: Path,
    truth_of: Sequence[str],
    limit: int | None,
    listed: Path,
    void: bool = False,
    hint: str = "",
    provenance: str = "",
) -> Dataset:
    """Make a data set of photos and label maps; void: as in `photo`.

    listed: what names the labelled images; an error about those that are not there names it, and ends with the hint
    """
    missing = [path for entry in splits["labelled"] for path in entry if not (root / path).is_file()]
    if missing:
        what = f"{len(missing)} files of the labelled images in {listed} are not below {root}, e.g. {missing[0]}"
        raise FileNotFoundError(f"{what}; correct the list, or fetch the files that it names{hint}")
    read = partial(photo, classes=classes, void=void, root=root)
    samples = {}
    for split, entries in splits.items():
        kept, is_open = entries if split == "labelled" else entries[:limit], split in truth_of
        samples[split] = tuple(read(root / image, root / label if label and is_open else None) for image, label in kept)
    return Dataset(name, classes, **samples, provenance=provenance)


# For the files of this folder: which images are labelled


def draw(items: list, count: int, seed: int) -> tuple[list, list]:
    """Draw `count` of the items: (drawn, rest), both in their old order; the draw of 12 is part of the draw of 24."""
    chosen = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    drawn = [item for index, item in enumerate(items) if index in chosen]
    return drawn, [item for index, item in enumerate(items) if index not in chosen]


def drawn(count: int, seed: int, source: str = "") -> str:
    """Say that labelled images were drawn by a seed, and what that means; source: such as " from the list"."""
    said = f"the {count} labelled images were drawn by seed {seed}{source}: this compares with nothing published"
    return said if count else "no image is labelled"


def choose(pool: list, labelled: int | str, seed: int) -> tuple[list, list, str]:
    """Draw the labelled images of a pool: (labelled, rest, a sentence that says so); labelled: as in `count`."""
    number = count(labelled, len(pool))
    return *draw(pool, number, seed), drawn(number, seed)


def count(labelled: int | str, pool: int) -> int:
    """How many images of a pool are labelled: a number of images, or a part of the pool written as "1/8".

    A part is rounded up, as in UniMatch's splits: 1/16 of the 10,582 images of VOC are 662.
    """
    if isinstance(labelled, str):
        try:
            part = Fraction(labelled)
        except (ValueError, ZeroDivisionError):
            part = Fraction(0)
        if not 0 < part <= 1:
            raise ValueError(f'labelled={labelled!r} is no number of images, and no part of them up to 1 such as "1/8"')
        if part * pool < 1:
            raise ValueError(f"labelled={labelled!r} of {pool} images is less than one image; give a larger part")
        return ceil(part * pool)
    meaning = f'a number from 0 to {pool}, since {pool} images have labels, or a part of them such as "1/8"'
    check_count("labelled", labelled, meaning, most=pool)
    return labelled


def files_in(folder: Path, suffixes: tuple[str, ...], what: str = "photo") -> list[Path]:
    """Files of a folder that end in one of these suffixes, sorted, without hidden ones. Not searched deeper."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
    if not found:
        known = f"{folder} holds no {what} whose name ends in {', '.join(suffixes)}"
        rest = [path for path in folder.iterdir() if path.name[0] != "."]
        held = Counter("folders" if path.is_dir() else path.suffix.lower() or "without suffix" for path in rest)
        holds = ", ".join(f"{count} {kind}" for kind, count in held.most_common(5)) or "nothing"
        raise FileNotFoundError(f"{known}; it holds {holds}")
    return found


def read_list(path: Path, *, may_be_empty: bool = False) -> list[tuple[str, list[str]]]:
    """Lines of a list of images that are not empty: the place, such as "train.txt, line 3", and the words."""
    lines = enumerate(files.read_lines(path), start=1)
    words = [(f"{path}, line {number}", line.split()) for number, line in lines if line.strip()]
    if not words and not may_be_empty:
        raise ValueError(f"{path} lists no image: write an id in each line, or remove the list")
    return words


def check_disjoint(**splits: list[str]) -> None:
    """Refuse ids that are in a split twice, or in two splits."""
    first: dict[str, str] = {}  # id: the split that has it
    for split, ids in splits.items():
        twice = files.repeated(ids)
        if twice:
            raise ValueError(f"{split} lists {len(twice)} ids more than once, e.g. {twice[0]}; keep each once")
        shared = sorted(id for id in ids if id in first)
        if shared:
            problem = f"{len(shared)} images are both in {first[shared[0]]} and in {split}, e.g. {shared[0]}"
            raise ValueError(f"{problem}; keep each in one split")
        first |= dict.fromkeys(ids, split)


def absent(classes: Classes, present: set[int]) -> list[str]:
    """Names of the classes, the background left out, whose values are not among those present."""
    return [classes.names[index] for index in classes.foreground if index not in present]
