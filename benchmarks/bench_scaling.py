"""What a labelling costs with more images, larger ones, and more masks: python benchmarks/bench_scaling.py

Scenes are cut into masks by the miniature SAM, and cached images are labelled again as notebook 02 does it. Seconds are
the processor's. With the number of images: one pass through them all, and what it had taken after so many of them; the
process's peak of memory is listed too, so one that stays is memory that does not grow with the images. With their
size and with the number of masks: the best of the repeats. A line is laid through each.
"""

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import side_by_side
import torch
from bench_labels import IMAGES_AT_ONCE, ellipses, label_again

from plg_utils import datasets, files
from plg_utils import masks as mask_models
from plg_utils.records import Masks

DIMENSIONS, CLASSES = 128, 11


def store(folder: Path, images: int, size: tuple[int, int], masks: int) -> None:
    """Write masks and embeddings of some images."""
    for number in range(images):
        files.write_masks(folder / f"{number}.json", Masks.from_dense(ellipses(size, masks, number)))
        files.write_embeddings(folder / f"{number}.safetensors", torch.randn(masks, DIMENSIONS))


def peak_memory_mb() -> float:
    """Largest memory that this process has held so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def one_pass(marks: Sequence[int], call: Callable[[range], None]) -> dict:
    """Call with the numbers 0, 1, ... some at once, up to the last mark; seconds and memory at each mark."""
    seconds, memory, start = [], [], time.process_time()
    for first in range(0, marks[-1], IMAGES_AT_ONCE):
        call(range(first, first + IMAGES_AT_ONCE))
        if first + IMAGES_AT_ONCE in marks:
            seconds.append(time.process_time() - start)
            memory.append(peak_memory_mb())
    return line(marks, seconds) | {"peak_memory_mb": memory}


def best(sizes: Sequence[int], call: Callable[[int], None], repeats: int) -> dict:
    """Call with each size, several times; the least seconds of each."""
    taken = {size: [] for size in sizes}
    for _ in range(repeats):  # in turn, so that a slow moment of the machine does not fall on one size alone
        for size in sizes:
            start = time.process_time()
            call(size)
            taken[size].append(time.process_time() - start)
    return line(sizes, [min(times) for times in taken.values()])


def line(sizes: Sequence[int], seconds: Sequence[float]) -> dict:
    """Lay a line through the times, and tell how well it fits."""
    slope, intercept = np.polyfit(sizes, seconds, 1)
    rest = np.array(seconds) - (slope * np.array(sizes) + intercept)
    r2 = 1 - (rest**2).sum() / ((np.array(seconds) - np.mean(seconds)) ** 2).sum()
    return {"sizes": list(sizes), "seconds": list(seconds), "slope_s": slope, "intercept_s": intercept, "r2": r2}


def main() -> None:
    """Measure and write results/bench/scaling_*.json."""
    parser = side_by_side.arguments(__doc__)
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segment = mask_models.build("sam", checkpoint="miniature_sam", device=options.device)
    scenes = datasets.load("storybook", labelled=12).unlabelled[:160]
    segment([scene.image() for scene in scenes[:4]])  # warms up
    found = one_pass([24, 40, 80, 120, 160], lambda numbers: segment([scenes[number].image() for number in numbers]))
    side_by_side.report(options.write, "scaling_masks_images", options.device, **found, n={"repeats": 1})
    words = torch.randn(CLASSES - 1, DIMENSIONS), torch.arange(1, CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        store(Path(folder), 1000, (128, 128), 7)
        label_again(Path(folder), range(40), *words)
        found = one_pass([120, 240, 480, 720, 1000], lambda numbers: label_again(Path(folder), numbers, *words))
        side_by_side.report(options.write, "scaling_labels_images", options.device, **found, n={"repeats": 1})
    counted = {"repeats": options.repeats, "images": 20}
    for what, sizes in (("pixels", [128, 256, 384, 512, 768]), ("masks", [5, 25, 50, 100, 200])):
        with tempfile.TemporaryDirectory() as folder:
            places = {}
            for value in sizes:
                shape, masks = ((value, value), 20) if what == "pixels" else ((256, 256), value)
                place = places[shape[0] * shape[1] if what == "pixels" else value] = Path(folder) / str(value)
                place.mkdir()
                store(place, counted["images"], shape, masks)
            again = partial(again_in, places, counted["images"], *words)
            found = best(list(places), again, options.repeats)
        side_by_side.report(options.write, f"scaling_labels_{what}", options.device, **found, n=counted)


def again_in(places: dict[int, Path], images: int, texts: torch.Tensor, owner: torch.Tensor, size: int) -> None:
    """Label the images of a size again."""
    label_again(places[size], range(images), texts, owner)


if __name__ == "__main__":
    main()
