"""Label maps of the user's own: what a file says, by numbers or by colours, and whether maps show a class at all."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from plg_utils import files
from plg_utils.records import IGNORE, Classes, Dataset


def read(path: Path, classes: Classes, void: bool = False) -> np.ndarray:
    """Read a label map (H, W) uint8: a PNG with the numbers of the classes, or with their colours.

    Colours count if the file holds no numbers (RGB), or if its palette gives numbers the colours of other classes. The
    latter is refused if the classes have VOC's colours, which no one may have chosen: both meanings are likely then.
    """
    num_values, voc = classes.num_classes + void, files.voc_palette()
    how = "a readable label map", "write it again with the stage or the tool that made it"
    with files.reading(path, *how), Image.open(path, formats=files.FORMATS) as image:
        palette = np.array(image.getpalette("RGB") or [] if image.mode == "P" else [], dtype=np.uint8).reshape(-1, 3)
        kind = image.format, image.mode
        usual = any(_starts(palette, colours) for colours in (classes.colours, voc[:num_values]))
        coloured = kind in (("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P")) and not usual
        numbers = np.array(image) if image.mode == "P" and coloured else None  # (H, W)
        pixels = np.array(image.convert("RGB")) if coloured else None
    if pixels is None:
        return files.read_label(path, num_values)
    void_colours = [tuple(voc[IGNORE].tolist())] + ([(0, 0, 0)] if classes.background is None else [])
    meaning = dict.fromkeys(void_colours, IGNORE) | {colour: value for value, colour in enumerate(classes.colours)}
    colours, place = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    colours = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in colours]
    unknown = [colour for colour in colours if colour not in meaning]
    if unknown and numbers is None:
        raise ValueError(
            f"{path} holds colours, not numbers, and {unknown[0]} is the colour of no class: give a class file with "
            "these colours, or save the numbers of the classes as 8-bit grey or palette PNG"
        )
    if unknown:
        return files.read_label(path, num_values)
    label = np.array([meaning[colour] for colour in colours], dtype=np.uint8)[place].reshape(pixels.shape[:2])
    if numbers is not None and (label != numbers).any() and _starts(voc, classes.colours):
        value = int(numbers[label != numbers][0])
        other = int(label[label != numbers][0])
        raise ValueError(
            f"{path} shows the value {value} in the colour of {other}: which class it means is not known. Save the "
            "numbers of the classes as 8-bit grey, or with the palette of the classes"
        )
    return label


def _starts(palette: np.ndarray, colours: Sequence) -> bool:
    """Whether a palette (n, 3) begins with these colours."""
    count = min(len(palette), len(colours))
    return count > 0 and np.array_equal(palette[:count], np.asarray(colours)[:count])


def check(dataset: Dataset, *, refuse: bool, left_out: Sequence[str] = ()) -> None:
    """Read the open label maps, and refuse a split whose maps show no class at all; warn of single maps of this kind.

    refuse: else only warn, and read no further than to a map that shows a class
    """
    foreground = set(dataset.classes.foreground)
    for split in ("labelled", "val"):
        samples = [sample for sample in getattr(dataset, split) if sample.read_truth and sample.path]
        empty: dict[str, set[int]] = {}  # id: the values of a map without class
        for sample in (sample for sample in samples if sample.id not in left_out):
            try:
                values = set(np.unique(sample.truth()).tolist())
            except (OSError, ValueError):
                if refuse:
                    raise
                break
            if not values & foreground:
                empty[sample.id] = values
            elif not refuse:
                break
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


def why_empty(values: set[int]) -> str:
    """What label maps with these values show, and what to do."""
    if values == {IGNORE}:
        return f"every pixel is void ({IGNORE}). Annotate it, or remove the label map"
    if IGNORE in values:
        remedy = f"If {IGNORE} is the object, as in black and white masks, write the number of its class instead"
        return f"every pixel is background or void ({IGNORE}). {remedy}"
    return "every pixel is background. If it shows an object, annotate it"
