"""Label maps of the user's own: what a file says, by numbers or by colours, and whether maps show a class at all."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from plg_utils import class_files, files
from plg_utils.records import IGNORE, Classes, Dataset, Sample

LISTS = (class_files.NAMES, "labels.txt", "classes.txt", "_classes.csv")  # as tools call lists of the classes


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
        kind = image.format, image.mode
        turned = image.info.get("exif") and image.getexif().get(files.ORIENTATION, 1) > 1
        usual = any(_starts(palette, colours) for colours in (classes.colours, voc[:num_values]))
        coloured = kind in (("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P")) and not usual
        numbers = np.array(image) if image.mode == "P" and coloured else None  # (H, W)
        pixels = np.array(image.convert("RGB")) if coloured else None
        clear = coloured and image.mode == "RGBA" and np.array(image.getchannel("A")) == 0  # (H, W)
    if not coloured or numbers is not None:
        _check_order(path, classes)
    if turned:
        raise ValueError(f"{path} is a label map that EXIF turns, which few tools see: save it upright, without EXIF")
    if pixels is None:
        return files.read_label(path, num_values if check else None)
    void_colours = [tuple(voc[IGNORE].tolist())] + ([(0, 0, 0)] if classes.background is None else [])
    meaning = dict.fromkeys(void_colours, IGNORE) | {colour: value for value, colour in enumerate(classes.colours)}
    pixels[clear] = voc[IGNORE]
    colours, place = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    colours = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in colours]
    unknown = [colour for colour in colours if colour not in meaning]
    grey = all(red == green == blue and (red < num_values or red == IGNORE) for red, green, blue in colours)
    if unknown and numbers is None and not grey:
        raise ValueError(
            f"{path} holds colours, not numbers, and {unknown[0]} is the colour of no class (void: {void_colours[0]}): "
            "give a class file with these colours, or save the numbers of the classes as 8-bit grey or palette PNG"
        )
    if unknown and numbers is None:
        return np.ascontiguousarray(pixels[:, :, 0])
    if unknown:
        black = numbers[(pixels == 0).all(axis=2) & (numbers != IGNORE)]
        if classes.background == 0 and black.any():
            problem = f"{path} shows the value {black.max()} in black, as if it were the background"
            raise ValueError(f"{problem}: save the numbers of the classes as 8-bit grey")
        return files.read_label(path, num_values if check else None)
    label = np.array([meaning[colour] for colour in colours], dtype=np.uint8)[place].reshape(pixels.shape[:2])
    label[clear] = classes.nothing
    if numbers is not None and (label != numbers).any() and _starts(voc, classes.colours):
        value = int(numbers[label != numbers][0])
        other = int(label[label != numbers][0])
        raise ValueError(
            f"{path} shows the value {value} in the colour of {other}: which class it means is not known. Save the "
            "numbers of the classes as 8-bit grey, or with the palette of the classes"
        )
    return label


def _check_order(path: Path, classes: Classes) -> None:
    """Refuse the numbers of a map if a tool has left a list of classes in another order beside it, or one level up."""
    places = (folder / name for folder in path.parents[:2] for name in LISTS)
    if place := next((place for place in places if place.is_file()), None):
        lines = [line for line in files.read_lines(place) if line.strip()]
        if place.suffix == ".csv":
            lines = [line.rpartition(",")[2] for line in lines[1:]]  # the first is a head
        listed, own = _plain(lines), _plain(classes.names)
        if place.name != class_files.NAMES:  # which has a line for each value: others may lack the background
            listed, own = ([name for name in names if name != "background"] for names in (listed, own))
        numbers = {name: value for value, name in enumerate(listed)}
        moved = any(numbers.get(name, value) != value for value, name in enumerate(own))
        whole = {*own} - {"background"} <= {*listed}  # other lists may be of other files than the maps
        if (whole and listed[: len(own)] != own) or (moved and place.name == class_files.NAMES):
            problem = f"{place} lists {', '.join(listed)}, the classes are {', '.join(own)}"
            file = place.with_name("classes.yaml")
            remedy = "Give both the same names in the same order" + ", the background's too" * (own[1:] == listed)
            remedy = f"Give {file} as class file" if file.is_file() else remedy
            raise ValueError(
                f"{problem}: which order the numbers of {path} have is not known. {remedy}, or move {place} away if it "
                "is not of these maps"
            )


def _plain(names: Sequence[str]) -> list[str]:
    """Names as they are compared, without the one that stands for 255."""
    names = [name.strip() for name in names if name.strip() != "__ignore__"]
    return ["background" if class_files.is_background(name) else files.same_name(name) for name in names]


def _starts(palette: np.ndarray, colours: Sequence) -> bool:
    """Whether a palette (n, 3) begins with these colours."""
    count = min(len(palette), len(colours))
    return count > 0 and np.array_equal(palette[:count], np.asarray(colours)[:count])


def check(dataset: Dataset, *, refuse: bool, left_out: Sequence[str] = ()) -> None:
    """Read the open label maps, and refuse a split whose maps show no class at all; warn of what is doubtful.

    refuse: else only warn, and read no further than to a map that shows a class
    left_out: ids of photos that cannot be read
    """
    foreground = set(dataset.classes.foreground)
    for split in ("labelled", "val"):
        samples = [sample for sample in getattr(dataset, split) if sample.read_truth and sample.path]
        samples = [sample for sample in samples if sample.id not in left_out]
        empty: dict[str, set[int]] = {}  # id: the values of a map without class
        doubtful: dict[str, list[str]] = defaultdict(list)  # what is doubtful: ids
        pixels = np.zeros(256, dtype=np.int64)  # of each value
        for sample in samples:
            try:
                label = sample.truth()
            except (OSError, ValueError):
                if refuse:
                    raise
                break
            counts = np.bincount(label.ravel(), minlength=256)
            pixels += counts
            values = set(np.flatnonzero(counts).tolist())
            if not values & foreground:
                empty[sample.id] = values
            elif not refuse:
                break
            for doubt in doubts(sample, label) if refuse else ():
                doubtful[doubt].append(sample.id)
        else:
            if len(empty) == len(samples) > 0:
                problem = f"no {split} image shows a class: {why_empty(set.union(*empty.values()))}"
                if refuse:
                    raise ValueError(f"{problem}. Or label other images (options labelled and seed)")
                warnings.warn(problem, stacklevel=3)
            elif empty:
                id, values = next(iter(empty.items()))
                problem = f"{len(empty)} of {len(samples)} {split} images show no class, e.g. {id}"
                warnings.warn(f"{problem}: {why_empty(values)}", stacklevel=3)
        for doubt, ids in doubtful.items():
            warnings.warn(f"{len(ids)} {split} images, e.g. {ids[0]}: {doubt}", stacklevel=3)
        if doubt := refuse and doubt_of_all(pixels, dataset.classes):
            warnings.warn(f"label maps of {split} images: {doubt}", stacklevel=3)


def doubts(sample: Sample, label: np.ndarray) -> list[str]:
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


def doubt_of_all(pixels: np.ndarray, classes: Classes) -> str:
    """What is doubtful about all label maps of a split together; pixels: of each value (256,); "" if nothing is."""
    shown = set(np.flatnonzero(pixels[:IGNORE]).tolist())
    if len(shown) == 1 < classes.num_classes and not shown - set(classes.foreground):
        return f"every pixel is {classes.names[min(shown)]}. Is that right?"
    last = classes.num_classes - 1
    if classes.background == 0 and last > 1 and last not in shown and pixels[IGNORE] > 0.3 * pixels.sum():
        problem = f"{pixels[IGNORE] / pixels.sum():.0%} are void, and none is {classes.names[last]}, the last class"
        return f"{problem}. Is 0 the first class in them? Here 0 is the background, and the classes start at 1"
    return ""


def why_empty(values: set[int]) -> str:
    """What label maps with these values show, and what to do."""
    if values == {IGNORE}:
        return f"every pixel is void ({IGNORE}). Annotate it, or remove the label map"
    if IGNORE in values:
        remedy = f"If {IGNORE} is the object, as in black and white masks, write the number of its class instead"
        return f"every pixel is background or void ({IGNORE}). {remedy}"
    return "every pixel is background. If it shows an object, annotate it"
