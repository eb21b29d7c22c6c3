"""Read all files of a data set once, and tell in one table what is wrong with them.

    python -m plg_utils.datasets NAME [--root FOLDER] [option value ...]

for instance

    python -m plg_utils.datasets camvid --root ~/CamVid labelled 46
    python -m plg_utils.datasets folder --root ~/photos classes "[cat, dog]" labels ~/maps

Options are those of the data set's `load`. The exit code is 1 if something was found that would stop a run, else 0.

Truth is opened here, of all splits, but for its format alone: is it there, can it be read, has it the photo's size,
does it hold classes. What it says is counted for the labelled images only.
"""

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from plg_utils import datasets, files, store
from plg_utils.records import IGNORE, SPLITS, Classes, Dataset, Sample

LEVELS = ("stop", "warning", "note")  # a run will stop; its result may not mean what it seems to; to know
SHOWN = 3  # cases of each kind of finding that are named


class _Findings:
    """What was found so far: how often, in which splits, and the first cases of each."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counter] = {}  # (level, finding) -> images of each split
        self.cases: dict[tuple[str, str], list[str]] = {}

    def add(self, level: str, finding: str, split: str, case: object) -> None:
        """Count one more image with this finding."""
        self.counts.setdefault((level, finding), Counter())[split] += 1
        cases = self.cases.setdefault((level, finding), [])
        if len(cases) < SHOWN:
            cases.append(str(case))

    def rows(self) -> list[tuple[str, str, int, str]]:
        """Rows of the table, as found."""
        rows = []
        for (level, finding), splits in self.counts.items():
            where = ", ".join(f"{split} {count}" for split, count in splits.items())
            cases = " | ".join(self.cases[level, finding])
            rows.append((level, finding, splits.total(), f"{where}; e.g. {cases}"))
        return rows


def validate(dataset: Dataset) -> pd.DataFrame:
    """Read every photo, and every label map that is open, and tell what was found.

    returns: columns level ("stop", "warning", "note"), finding, count (images, for class shares pixels), detail; a row
        for each kind of finding, the worst first, then the class shares of the labelled images
    """
    found = _Findings()
    sizes: dict[str, Counter] = {split: Counter() for split in SPLITS}
    mapped: Counter = Counter()
    pixels = np.zeros(256, dtype=np.int64)  # of each value, in the labelled images
    images = np.zeros(256, dtype=np.int64)
    every = [(split, sample) for split in SPLITS for sample in getattr(dataset, split)]
    for split, sample in store.progress(every, what=f"reading {dataset.name}"):
        size = _look_at_photo(sample, split, found)
        sizes[split][size] += 1
        if sample.read_truth is None:
            continue
        truth = _look_at_truth(sample, split, size, dataset.classes, found)
        mapped[split] += truth is not None
        if truth is not None and split == "labelled":
            counts = np.bincount(truth.ravel(), minlength=256)
            pixels += counts
            images += counts > 0

    _look_at_ids(every, found)
    rows = found.rows() + _unclaimed(every)
    if not every:
        rows.append(("stop", "no images", 0, "every split is empty"))
    if mapped["labelled"]:
        absent = datasets.absent(dataset.classes, set(np.flatnonzero(pixels[:IGNORE]).tolist()))
        if absent:
            rows.append(("warning", "classes that no labelled image shows", len(absent), ", ".join(absent)))
    rows += getattr(dataset, "remarks", ())
    if dataset.labelled:
        rows.append(
            ("note", "how the labelled images were chosen", len(dataset.labelled), datasets.provenance(dataset))
        )
    for split in SPLITS:
        listed = ", ".join(f"{count} of {_written(size)}" for size, count in sizes[split].most_common(4))
        more = f" and {len(sizes[split]) - 4} more sizes" if len(sizes[split]) > 4 else ""
        count = sizes[split].total()
        rows.append(("note", f"images, {split}", count, f"{mapped[split]} with label map; {listed}{more}"))
    rows.sort(key=lambda row: LEVELS.index(row[0]))
    if mapped["labelled"]:
        rows += _shares(pixels, images, dataset.classes)
    return pd.DataFrame(rows, columns=["level", "finding", "count", "detail"])


def _look_at_photo(sample: Sample, split: str, found: _Findings) -> tuple[int, int] | None:
    """Decode a photo; its size (H, W), or None if it has none."""
    path = getattr(sample, "path", None)
    try:
        image = sample.image()
    except FileNotFoundError as error:
        found.add("stop", "photo missing", split, error)
        return None
    except (OSError, ValueError) as error:
        found.add("stop", "photo corrupt, truncated or closed", split, error)
        return None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found.add("stop", "photo of another kind", split, f"{sample.id} is {image.dtype} {image.shape}")
        return None
    if path is not None:
        with Image.open(path) as file:
            _look_at_format(file, path, split, getattr(sample, "truth_path", None) is not None, found)
    return image.shape[:2]


def _look_at_format(file: Image.Image, path: Path, split: str, mapped: bool, found: _Findings) -> None:
    """Tell what `files.read_image` has to change to make a photo RGB, 8 bits, upright."""
    bits = files.png_bits(path) if file.format == "PNG" else 8
    if file.mode in ("1", "L", "LA") or file.mode.startswith("I;16"):
        found.add("note", "grey photo, read as RGB", split, path)
    if file.mode == "CMYK":
        found.add("warning", "CMYK photo, turned into RGB without its colour profile", split, path)
    if bits == 16 or file.mode.startswith("I;16"):
        found.add("note", "16-bit photo, read with 8 bits", split, path)
    if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
        found.add("note", "photo with transparency, which is left out", split, path)
    if file.getexif().get(files.ORIENTATION, 1) != 1:
        if mapped:
            found.add("warning", "EXIF rotation: the photo is turned, its map must stand upright", split, path)
        else:
            found.add("note", "EXIF rotation: the photo is turned", split, path)


def _look_at_truth(
    sample: Sample, split: str, size: tuple[int, int] | None, classes: Classes, found: _Findings
) -> np.ndarray | None:
    """Read a label map, for its format; None if it cannot be used."""
    path = getattr(sample, "truth_path", None)
    is_file = path is not None and path.is_file()
    if is_file and not _look_at_map(path, split, size, classes, found):
        return None
    try:
        truth = sample.truth()
    except FileNotFoundError as error:
        if path is None or not is_file:  # else it is the photo, which was told already
            found.add("stop", "label map missing", split, error)
        return None
    except (OSError, ValueError) as error:
        if size is not None:
            what = "values outside the class map" if is_file else "label map cannot be made"
            found.add("stop", what, split, error)
        return None
    if size is not None and truth.shape != size:
        found.add("stop", "sizes differ", split, f"{sample.id}: map {_written(truth.shape)}, photo {_written(size)}")
        return None
    return truth


def _look_at_map(path: Path, split: str, size: tuple[int, int] | None, classes: Classes, found: _Findings) -> bool:
    """Look at the file of a label map; whether its values can be read."""
    try:
        with Image.open(path, formats=files.FORMATS) as file:
            file.load()
    except files.BROKEN_IMAGE as error:
        found.add("stop", "label map corrupt, truncated or closed", split, f"{path} ({error})")
        return False
    if file.format != "PNG" or file.mode not in ("P", "L") or (file.mode == "L" and files.png_bits(path) < 8):
        found.add(
            "stop", "label map of another kind", split, f"{path}: {file.format} {file.mode}, not 8-bit palette PNG"
        )
        return False
    if size is not None and (file.height, file.width) != size:
        both = f"map {_written((file.height, file.width))}, photo {_written(size)}"
        found.add("stop", "sizes differ", split, f"{path}: {both}")
        return False
    if file.mode == "L":
        found.add("note", "label map without palette: grey in a viewer", split, path)
        return True
    values = np.unique(np.asarray(file))
    values = values[values < classes.num_classes]
    palette = np.zeros((256, 3), dtype=np.uint8)
    given = np.array(file.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    palette[: len(given)] = given
    ours = (palette[values] == np.array(classes.colours)[values]).all(axis=1)
    vocs = (palette[values] == files.voc_palette()[values]).all(axis=1)
    if not (ours.all() or vocs.all()):
        found.add("warning", "wrong palette: are these the classes' values?", split, path)
    return True


def _look_at_ids(every: list[tuple[str, Sample]], found: _Findings) -> None:
    """Tell ids that occur more than once: stages write files that are called so."""
    seen: dict[str, str] = {}
    for split, sample in every:
        other = seen.setdefault(sample.id.casefold(), split)  # some file systems do not tell A from a
        if other != split:
            found.add("stop", "id in two splits", split, f"{sample.id}, {other} and {split}")
    for split in SPLITS:
        ids = Counter(sample.id.casefold() for where, sample in every if where == split)
        for id, count in ids.items():
            if count > 1:
                found.add("stop", "id twice in a split", split, id)


def _unclaimed(every: list[tuple[str, Sample]]) -> list[tuple[str, str, int, str]]:
    """Files beside photos and label maps that belong to no sample; `limit` and shut splits leave some, too."""
    rows = []
    photos = {sample.path for _, sample in every if getattr(sample, "path", None)}
    maps = {sample.truth_path for _, sample in every if getattr(sample, "truth_path", None)}
    for what, claimed, suffixes in (
        ("photos that are in no split", photos, {path.suffix for path in photos}),
        ("label maps without photo in the splits", maps, {path.suffix for path in maps}),
    ):
        beside = {path for folder in {path.parent for path in claimed} if folder.is_dir() for path in folder.iterdir()}
        left = sorted(path for path in beside - photos - maps if path.suffix in suffixes and path.name[0] != ".")
        if left:
            rows.append(("note", what, len(left), f"e.g. {left[0]}"))
    return rows


def _shares(pixels: np.ndarray, images: np.ndarray, classes: Classes) -> list[tuple[str, str, int, str]]:
    """A row for each class of the labelled images, and one for void. pixels, images: (256,), by value"""
    total = pixels.sum()
    rows = []
    for value, name in [*enumerate(classes.names), (IGNORE, "void")]:
        share = f"{pixels[value] / total:.2%} of the labelled pixels, in {images[value]} images"
        rows.append(("note", f"share of {name}", int(pixels[value]), share))
    return rows


def _written(size: tuple[int, int] | None) -> str:
    return "unknown size" if size is None else f"{size[0]}x{size[1]}"


def _load(name: str, options: dict) -> tuple[Dataset | None, list[tuple[str, str, int, str]]]:
    """Load with all truth open; if it refuses, say so and try without labels, to look at the files all the same."""
    rows = []
    for more in ({}, {"labelled": 0}):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                dataset = datasets.load(name, **{"truth_of": SPLITS, "on_bad_image": "when_read"} | options | more)
            except (OSError, ValueError) as error:
                if not more:
                    rows.append(("stop", "the data set cannot be loaded", 1, str(error)))
                continue
        return dataset, rows + [
            ("warning", "said while loading", 1, str(warning.message))
            for warning in told
            if issubclass(warning.category, UserWarning)
        ]
    return None, rows


def main(arguments: list[str] | None = None) -> int:
    """Validate the data set that the command line names, print the table; 1 if something would stop a run."""
    parser = argparse.ArgumentParser(prog="python -m plg_utils.datasets", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=datasets.choices())
    parser.add_argument("--root", help="folder of the data set, by default one in the data folder")
    parser.add_argument("options", nargs="*", metavar="option value", help="options of the data set's load()")
    given = parser.parse_intermixed_args(arguments)
    if len(given.options) % 2:
        parser.error(f"options come with a value each, not {' '.join(given.options)}")
    pairs = zip(given.options[::2], given.options[1::2], strict=True)
    try:
        options = {option: files.parse_yaml(value, f"the value of {option}") for option, value in pairs}
    except ValueError as error:
        parser.error(str(error))
    if given.root is not None:
        options["root"] = Path(given.root).expanduser()
    try:
        dataset, rows = _load(given.name, options)
    except TypeError as error:  # an option that it does not have
        parser.error(str(error))
    table = pd.DataFrame(rows, columns=["level", "finding", "count", "detail"])
    if dataset is not None:
        table = pd.concat([table, validate(dataset)], ignore_index=True)
    width = table["finding"].str.len().max()
    for level, finding, count, detail in table.itertuples(index=False, name=None):
        print(f"{level:<8} {finding:<{width}} {count:>12,}  {detail}")
    stops = int((table["level"] == "stop").sum())
    several = "s" if stops > 1 else ""
    print(f"{stops} kind{several} of finding would stop a run" if stops else "nothing was found that would stop a run")
    return 1 if stops else 0


if __name__ == "__main__":
    sys.exit(main())
