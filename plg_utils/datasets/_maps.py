"""Label maps of the user's own: what a file says, by numbers or by colours, and whether maps show a class at all."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from os.path import abspath
from pathlib import Path

import numpy as np
from PIL import Image

from plg_utils import class_files, files
from plg_utils.records import IGNORE, Classes, Dataset, Sample

LISTS = ("labels.txt", "classes.txt", "_classes.csv")  # as tools call lists of the classes, beside class_files.NAMES


def read(path: Path, classes: Classes, void: bool = False, *, check: bool = True) -> np.ndarray:
    """Read a label map (H, W) uint8: a PNG with the numbers of the classes, or with their colours.

    Colours count if the file holds no numbers (RGB), or if its palette gives numbers the colours of other classes. The
    latter is refused if the classes have VOC's colours, which no one may have chosen: both meanings are likely then.
    In a transparent pixel nothing was painted, and three equal channels hold numbers.

    void: whether there may be one value more, for void; check: refuse numbers of no class
    """
    num_values, voc = classes.num_classes + void, files.voc_palette()
    how = "a readable label map", "write it again with the stage or the tool that made it"
    with files.reading(path, *how), Image.open(path, formats=files.FORMATS) as image:
        palette = np.array(image.getpalette("RGB") or [] if image.mode == "P" else [], dtype=np.uint8).reshape(-1, 3)
        usual = any(_starts(palette, colours) for colours in (classes.colours, voc[:num_values]))
        coloured = image.format == "PNG" and image.mode in ("RGB", "RGBA", "P") and not usual
        turned = image.info.get("exif") and image.getexif().get(files.ORIENTATION, 1) > 1
        numbers = np.array(image) if coloured and image.mode == "P" else None  # (H, W)
        pixels = np.array(image.convert("RGB")) if coloured else None
        clear = coloured and image.mode == "RGBA" and np.array(image.getchannel("A")) == 0  # (H, W)
    if turned:
        raise ValueError(f"{path} is a label map that EXIF turns, which few tools see: save it upright, without EXIF")
    if not coloured or numbers is not None:
        _check_order(path, classes)
    if not coloured:
        return _numbers(path, num_values, check)
    void_colours = [tuple(voc[IGNORE].tolist())] + ([(0, 0, 0)] if classes.background is None else [])
    meaning = dict.fromkeys(void_colours, IGNORE) | {colour: value for value, colour in enumerate(classes.colours)}
    pixels[clear] = voc[IGNORE]
    codes, place = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    colours = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
    unknown = [colour for colour in colours if colour not in meaning]
    if not unknown:
        label = np.array([meaning[colour] for colour in colours], dtype=np.uint8)[place].reshape(pixels.shape[:2])
        label[clear] = classes.nothing
        other = label if numbers is None else numbers
        if (label != other).any() and _starts(voc, classes.colours):
            raise ValueError(
                f"{path} shows the value {other[label != other][0]} in the colour of {label[label != other][0]}: which "
                "class it means is not known. Save the numbers of the classes as 8-bit grey, or with their palette"
            )
        return label
    if numbers is None:
        if all(red == green == blue and (red < num_values or red == IGNORE) for red, green, blue in colours):
            return np.ascontiguousarray(pixels[:, :, 0])
        raise ValueError(
            f"{path} holds colours, not numbers, and {unknown[0]} is the colour of no class: give a class file with "
            f"these colours, and paint what is void in {void_colours[0]}; or save the numbers of the classes as 8-bit "
            f"grey or palette PNG, and void as {IGNORE}"
        )
    black = numbers[(pixels == 0).all(axis=2) & (numbers != IGNORE)]
    if classes.background == 0 and black.any():
        problem = f"{path} shows the value {black.max()} in black, as if it were the background"
        raise ValueError(f"{problem}: save the numbers of the classes as 8-bit grey")
    return _numbers(path, num_values, check)


def _numbers(path: Path, num_values: int, check: bool) -> np.ndarray:
    label = files.read_label(path)
    if check and (unknown := [value for value in np.unique(label).tolist() if num_values <= value != IGNORE]):
        right = f"classes 0 to {num_values - 1} or {IGNORE} (void)"
        problem = f"{path} holds the values {files.shown(unknown)}, not {right}"
        remedy = f"give the classes that it was made with, or write {IGNORE} where a value means void"
        raise ValueError(f"{problem}; {remedy}")
    return label


def _check_order(path: Path, classes: Classes) -> None:
    """Refuse the numbers of a map if a tool has left a list of classes in another order beside it, or one level up.

    One level up classes.txt is YOLO's, whose numbers are not those of maps.
    """
    above = Path(abspath(path)).parents[1]  # of the path alone: `.` has no parents
    places = [path.with_name(name) for name in (class_files.NAMES, *LISTS)]
    places += [above / name for name in (class_files.NAMES, *LISTS) if name != "classes.txt"]
    if not (place := next((place for place in places if place.is_file()), None)):
        return
    lines = [line for line in files.read_lines(place) if line.strip()]
    if place.suffix == ".csv":
        lines = [line.rpartition(",")[2] for line in lines[1:]]  # the first is a head
    listed, own = _plain(lines), _plain(classes.names)
    each_value = place.name == class_files.NAMES  # it has a line for each: others may lack the background
    if not each_value:
        listed, own = ([name for name in names if name != "background"] for names in (listed, own))
    numbers = {name: value for value, name in enumerate(listed)}
    moved = any(numbers.get(name, value) != value for value, name in enumerate(own))
    whole = {*own} - {"background"} <= {*listed}  # other lists may be of other files than the maps
    if (whole and listed[: len(own)] != own) or (moved and each_value):
        file = place.with_name("classes.yaml")
        remedy = "Give both the same names in the same order" + ", the background's too" * (own[1:] == listed)
        remedy = f"Give {file} as class file" if file.is_file() else remedy
        raise ValueError(
            f"{place} lists {', '.join(listed)}, the classes are {', '.join(own)}: which order the numbers of {path} "
            f"have is not known. {remedy}, or move {place} away if it is not of these maps"
        )


def _plain(names: Sequence[str]) -> list[str]:
    """Names as they are compared, without the one that stands for 255."""
    names = [name.strip() for name in names if name.strip() != "__ignore__"]
    return ["background" if class_files.is_background(name) else files.same_name(name) for name in names]


def _starts(palette: np.ndarray, colours: Sequence) -> bool:
    """Whether a palette (n, 3) begins with these colours."""
    count = min(len(palette), len(colours))
    return count > 0 and np.array_equal(palette[:count], np.asarray(colours)[:count])


class Survey:
    """What the label maps of a split show, and what is doubtful about them."""

    def __init__(self, classes: Classes):
        """Begin without a label map."""
        self.classes, self.pixels = classes, np.zeros(256, dtype=np.int64)  # of each value
        self.empty: list[str] = []  # id of each map without a class, and why
        self.doubts: dict[str, list[str]] = defaultdict(list)  # what is doubtful: ids

    def add(self, sample: Sample, label: np.ndarray, doubt: bool = True) -> bool:
        """Count a label map (H, W) uint8; returns whether it shows a class. doubt: whether to look for doubts."""
        counts = np.bincount(label.ravel(), minlength=256)
        self.pixels += counts
        shows = counts[list(self.classes.foreground)].any()
        if not shows:
            self.empty.append(f"{sample.id}: {why_empty({*np.flatnonzero(counts).tolist()})}")
        for text in _doubts(sample, label) if doubt and sample.path else ():
            self.doubts[text].append(sample.id)
        return bool(shows)

    @property
    def doubt(self) -> str:
        """What is doubtful about all of them together; "" if nothing is."""
        classes, shown = self.classes, set(np.flatnonzero(self.pixels[:IGNORE]).tolist())
        if len(shown) == 1 < classes.num_classes and not shown - set(classes.foreground):
            return f"every pixel is {classes.names[min(shown)]}. Is that right?"
        last, void = classes.num_classes - 1, self.pixels[IGNORE] / max(1, self.pixels.sum())
        if classes.background == 0 and last > 1 and last not in shown and void > 0.3:
            problem = f"{void:.0%} are void, and none is {classes.names[last]}, the last class"
            return f"{problem}. Is 0 the first class in them? Here 0 is the background, and the classes start at 1"
        return ""


def check(dataset: Dataset, *, refuse: bool, left_out: Sequence[str] = ()) -> None:
    """Read the open label maps, and refuse a split whose maps show no class at all; warn of what is doubtful.

    refuse: else only warn, and read no further than to a map that shows a class
    left_out: ids of photos that cannot be read
    """
    for split in ("labelled", "val"):
        samples = [sample for sample in getattr(dataset, split) if sample.read_truth and sample.path]
        samples = [sample for sample in samples if sample.id not in left_out]
        survey = Survey(dataset.classes)
        try:
            some_show = any(survey.add(sample, sample.truth(), refuse) and not refuse for sample in samples)
        except (OSError, ValueError):
            if refuse:
                raise
            continue
        if some_show:
            continue
        said = [f"{len(ids)} {split} images, e.g. {ids[0]}: {doubt}" for doubt, ids in survey.doubts.items()]
        said += [f"label maps of {split} images: {survey.doubt}"] if refuse and survey.doubt else []
        if len(survey.empty) == len(samples) > 0:
            why = why_empty({*np.flatnonzero(survey.pixels).tolist()})
            said.insert(0, f"no {split} image shows a class: {why}")
            if refuse:
                raise ValueError(f"{said[0]}. Or label other images (options labelled and seed)")
        elif survey.empty:
            some = f"{len(survey.empty)} of {len(samples)} {split} images"
            said.insert(0, f"{some} show no class, e.g. {survey.empty[0]}")
        for text in said:
            warnings.warn(text, stacklevel=1)


def _doubts(sample: Sample, label: np.ndarray) -> list[str]:
    """What is doubtful about the label map (H, W) uint8 of a photo, though its values and its size are right."""
    found = []
    with suppress(OSError), Image.open(sample.path, formats=files.FORMATS) as image:
        turned = image.getexif().get(files.ORIENTATION, 1)
        if turned in (2, 3, 4) or (turned > 1 and image.width == image.height):
            found.append("EXIF turns the photo, and its size stays the same. Is the map that of the upright photo?")
    parted = beside = 0  # places where two numbers that are no neighbours have one in between, or touch
    for rows in (label, label.T):
        one, middle, two = rows[:-2], rows[1:-1], rows[2:]
        low, high = np.minimum(one, two), np.maximum(one, two)
        parted += np.count_nonzero((low < middle) & (middle < high) & (high < IGNORE))
        low, high = np.minimum(rows[:-1], rows[1:]), np.maximum(rows[:-1], rows[1:])
        beside += np.count_nonzero((high - low > 1) & (high < IGNORE))
    if 5 * parted > max(beside, 75):  # of 2,699 maps of CamVid and COCO 26 * parted is below beside in all
        found.append(
            "lines of numbers in between part small numbers from large ones, as after resizing with smooth "
            "interpolation. If so, resize the map by nearest neighbour"
        )
    return found


def why_empty(values: set[int]) -> str:
    """What label maps with these values show, and what to do."""
    if values == {IGNORE}:
        return f"every pixel is void ({IGNORE}). Annotate it, or remove the label map"
    if IGNORE in values:
        remedy = f"If {IGNORE} is the object, as in black and white masks, write the number of its class instead"
        return f"every pixel is background or void ({IGNORE}). {remedy}"
    return "every pixel is background. If it shows an object, annotate it"
