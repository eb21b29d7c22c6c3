"""Whether a data set will work: every photo and label map is read once, and what is wrong is listed with a remedy.

    plg check PHOTOS --classes "cat, dog" --labels MAPS
    plg check camvid --root CAMVID --labelled 46 --shrink 2

Options are those of the data set's `load`, with or without --, as YAML; paths are taken as they are. The exit code is 1
if a problem would stop a run, else 0.

The label maps of all splits are opened, but only to see whether a run can use them. Classes are counted in the labelled
images alone.
"""

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from plg_utils import class_files, datasets, files
from plg_utils.datasets import _maps
from plg_utils.records import IGNORE, SPLITS, Classes, Dataset, Sample

LEVELS = ("stop", "warning", "note")  # a run will stop; its numbers may mean something else; for information
PATHS = ("root", "labels", "split", "cache")  # options whose values are paths, or names
SHOWN = 3  # cases of each problem that are shown
FIXES = {  # problem: remedy
    "the data set cannot be loaded": "do what the message says; if the folder is elsewhere: --root FOLDER",
    "no images": "name the folder of the data set: --root FOLDER",
    "photos that cannot be read": "fetch or export these files again, or remove them from the folder or the list",
    "label maps that cannot be used": "correct these maps or annotations as the message says, or remove them",
    "ids used more than once": "rename one of the photos, or keep each photo in one split",
    "images without any class": "look at these label maps, and annotate what they should show, or remove them",
    "label maps that are doubtful": "look at these label maps beside their photos",
    "no label map of a split shows a class": "look at these label maps, or choose others (options labelled and seed)",
    "classes that no labelled image shows": "label more images (option labelled), or other images (option seed)",
}

Row = tuple[str, str, int, str]  # level, finding, count of images, detail


def data_set(dataset: Dataset) -> list[Row]:
    """Rows (level, finding, count, detail) of what is wrong with a data set, the worst first, then of what it holds.

    Photos and label maps are read as a run reads them, through the samples. Label maps that are not open are not read.
    """
    from plg_utils import store  # it imports torch

    cases: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)  # (level, finding): split and message
    splits_of: dict[str, list[str]] = defaultdict(list)  # id: the splits that have it
    with_map: Counter = Counter()  # split: images with a label map that can be used
    surveys = {split: _maps.Survey(dataset.classes) for split in SPLITS}
    every = [(split, sample) for split in SPLITS for sample in getattr(dataset, split)]
    for split, sample in store.progress(every, what=f"reading {dataset.name}"):
        splits_of[sample.id.casefold()].append(split)  # some file systems do not distinguish A from a
        problems, truth = read(sample, dataset.classes)
        for finding, message in problems.items():
            cases["stop", finding].append((split, message))
        if truth is not None:
            with_map[split] += 1
            surveys[split].add(sample, truth)
    pixels = surveys["labelled"].pixels
    for split, survey in surveys.items():
        doubts = [f"{id}: {doubt}" for doubt, ids in survey.doubts.items() for id in ids]
        doubts += [survey.doubt] if split == "labelled" and survey.doubt else []
        finding = "warning", "images without any class"
        if len(survey.empty) == with_map[split]:
            finding = "stop", "no label map of a split shows a class"
        cases["warning", "label maps that are doubtful"] += [(split, doubt) for doubt in doubts]
        if split in ("labelled", "val"):
            cases[finding] += [(split, message) for message in survey.empty]
    for id, splits in splits_of.items():
        if len(splits) > 1:
            cases["stop", "ids used more than once"].append((splits[-1], f"{id} in {' and '.join(splits)}"))

    rows = [] if every else [("stop", "no images", 0, "every split is empty")]
    for (level, finding), found in ((key, found) for key, found in cases.items() if found):
        where = ", ".join(f"{split} {count}" for split, count in Counter(split for split, _ in found).items())
        messages = " | ".join(message for _, message in found[:SHOWN])
        rows.append((level, finding, len(found), f"{where}; e.g. {messages}"))
    names = datasets.absent(dataset.classes, set(np.flatnonzero(pixels[:IGNORE]).tolist()))
    if with_map["labelled"] and names:
        rows.append(("warning", "classes that no labelled image shows", len(names), ", ".join(names)))
    rows += dataset.remarks
    if dataset.labelled:
        how = datasets.provenance(dataset)
        rows.append(("note", "how the labelled images were chosen", len(dataset.labelled), how))
    for split in SPLITS:
        count = len(getattr(dataset, split))
        rows.append(("note", f"images, {split}", count, f"{with_map[split]} with a label map that is open"))
    for value, name in [*enumerate(dataset.classes.names), (IGNORE, "void")] if with_map["labelled"] else []:
        share = f"{pixels[value] / pixels.sum():.2%} of the labelled pixels"
        rows.append(("note", f"pixels of {value} {name}", int(pixels[value]), share))
    return sorted(rows, key=lambda row: LEVELS.index(row[0]))


def read(sample: Sample, classes: Classes) -> tuple[dict[str, str], np.ndarray | None]:
    """Problems of a sample with their messages, and its label map, None if that is not open or broken."""
    problems, size = {}, None
    try:
        image = sample.image()
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise ValueError(f"{sample.id} is {image.dtype} {image.shape}, not a uint8 (H, W, 3) image")
        size = image.shape[:2]
    except (OSError, ValueError) as error:
        problems["photos that cannot be read"] = str(error)
    try:
        label = sample.truth() if sample.read_truth else None
        if label is None:
            return problems, None
        if label.dtype != np.uint8 or label.ndim != 2 or label.shape != (size or label.shape):
            problem = f"the label map of {sample.id} is {label.dtype} {label.shape}"
            raise ValueError(f"{problem}, not uint8 {size or '(H, W)'} as its image")
        if unknown := sorted({*np.unique(label).tolist()} - {*range(classes.num_classes), IGNORE}):
            raise ValueError(f"the label map of {sample.id} has the values {unknown}, which are no classes")
        return problems, label
    except (OSError, ValueError) as error:
        if str(error) not in "".join(problems.values()):  # else the photo is the problem
            problems["label maps that cannot be used"] = str(error)
        return problems, None


def load(name: str, options: dict) -> tuple[Dataset | None, list[Row]]:
    """Load a data set with all label maps open: the data set, or None, and rows of what went wrong.

    A data set that is refused is loaded without labelled images, so that its files can be read all the same.
    """
    rows: list[Row] = []
    for more in ({}, {"labelled": 0}):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                dataset = datasets.load(name, **{"truth_of": SPLITS, "on_bad_image": "when_read"} | options | more)
            except (OSError, TypeError, ValueError) as error:
                rows = rows or [("stop", "the data set cannot be loaded", 1, str(error))]
                continue
        texts = [str(warning.message) for warning in said if issubclass(warning.category, UserWarning)]
        return dataset, rows + [("warning", "said while loading", 1, text) for text in texts]
    return None, rows


def main(arguments: list[str] | None = None) -> int:
    """Check the data set that the command line names and print the rows; 1 if a problem would stop a run."""
    head, examples, *_ = __doc__.split("\n\n")
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("plg check", description=head, epilog=examples, formatter_class=shape)
    known = ", ".join(datasets.choices())
    parser.add_argument("name", metavar="PHOTOS", help=f"a folder of photos, or the name of a data set: {known}")
    options_of = "--root FOLDER of a data set, --classes, --labels, --val, and the other options of its load()"
    parser.add_argument("options", nargs="*", metavar="--option value", help=options_of)
    arguments = sys.argv[1:] if arguments is None else arguments
    pairs = [text[2:].split("=", 1) if text[:2] == "--" and text != "--help" else [text] for text in arguments]
    given, options = parser.parse_args(sum(pairs, [])), {}
    if len(given.options) % 2:
        parser.error(f'each option needs a value, such as --classes "cat, dog": {" ".join(given.options)}')
    if given.name not in datasets.choices():
        if not Path(given.name).is_dir():
            parser.error(f"{given.name} is neither a folder of photos nor a data set, which are {known}")
        given.name, options = "folder", {"root": given.name}
    try:
        for option, value in zip(given.options[::2], given.options[1::2], strict=True):
            if option == "background":
                options[option] = class_files.words_of(value)
                continue
            if option == "bands" and value[:1] != "[":
                value = f"[{value}]"  # 4,3,2
            if option == "classes":
                found = class_files.path_or_names(value)
                options[option] = str(found) if isinstance(found, Path) else found
                continue
            path = option in PATHS and value[:1] not in ("[", "{")  # a folder may be called `trip #2`
            options[option] = value if path else files.parse_yaml(value, f"the value of {option}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    dataset, rows = load(given.name, options)
    rows += [] if dataset is None else data_set(dataset)
    width = max(len(finding) for _, finding, *_ in rows)
    for level, finding, count, detail in rows:
        print(f"{level:<8} {finding:<{width}} {count:>12,}  {detail}")
        if finding in FIXES:
            print(f"{'':<8} {'':<{width}} {'':>12}  -> {FIXES[finding]}")
    stops = len({finding for level, finding, *_ in rows if level == "stop"})
    print(f"{stops} kind{'s' * (stops > 1)} of problem would stop a run" if stops else "no problem would stop a run")
    return 1 if stops else 0


if __name__ == "__main__":
    sys.exit(main())
