"""How fast SEPL's merge is, beside the plain loop over classes and masks: python benchmarks/bench_sepl.py

One process, one thread (numpy has no more for this), the same cue map and masks for all; the time is the processor's,
not the clock's, because other programs disturb it less. The loop is that of `tests/reference_sepl.py`, which counts
each mask again for each class, as the authors' code does. It is timed with

    files       each mask read from its PNG whenever it is asked for, as the authors' code does
    in memory   all masks loaded before
    lean        in memory, and np.count_nonzero for np.sum, which is several times faster on bool arrays

and `merge` with the same masks in memory ("merge", what the last column compares with), and with masks as they are
stored, run lengths: after the decoding, which leaves them column by column in memory, and with the decoding timed too.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import reference_sepl as reference  # noqa: E402  it is beside the tests

from plg_utils.generators import sepl  # noqa: E402
from plg_utils.records import Masks  # noqa: E402


def scene(size: tuple[int, int], num_classes: int, num_masks: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a cue map in which every class occurs, and masks that overlap.

    The map is ellipses of each class on background. Half of the masks are its ellipses, grown or shrunk and moved a
    little; the others lie anywhere.

    returns: (H, W) uint8, (N, H, W) bool
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]

    def ellipse(centre, radius):
        return ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1

    label = np.zeros(size, dtype=np.uint8)
    things = []
    for index in [*range(1, num_classes)] * 2:
        things.append((rng.random(2) * size, (0.05 + 0.1 * rng.random(2)) * size))
        label[ellipse(*things[-1])] = index
    masks = np.zeros((num_masks, *size), dtype=bool)
    for number, mask in enumerate(masks):
        if number % 2:
            centre, radius = things[number % len(things)]
            mask[:] = ellipse(centre + rng.normal(0, 5, 2), radius * rng.uniform(0.6, 1.4))
        else:
            mask[:] = ellipse(rng.random(2) * size, (0.03 + 0.2 * rng.random(2)) * size)
    assert len(np.unique(label)) == num_classes, "a class is hidden: take another seed"
    return label, masks


class MaskFiles:
    """Masks of one image, each read from its PNG (255 inside) whenever it is asked for."""

    def __init__(self, folder: Path, masks: np.ndarray):
        self.paths = [folder / f"{number}.png" for number in range(len(masks))]
        for path, mask in zip(self.paths, masks, strict=True):
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        return np.array(Image.open(self.paths[number])) == 255


def processor() -> str:
    """Name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), help="height and width; VOC's are about this")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5, help="of each row")
    options = parser.parse_args()
    label, masks = scene(tuple(options.size), options.classes, options.masks, options.seed)
    encoded = Masks.from_dense(masks)
    decoded = encoded.dense()
    print(f"{processor()}, 1 thread, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"{options.classes} classes, {len(masks)} masks of {masks.mean():.1%} of {label.shape} pixels on average")
    with tempfile.TemporaryDirectory() as folder:
        stored = MaskFiles(Path(folder), masks)
        for variant in sepl.VARIANTS:
            ours = sepl.merge(label, decoded, options.classes, variant=variant)
            assert (ours == reference.official(label, masks, options.classes, variant)).all()
            options_of = {"num_classes": options.classes, "variant": variant}
            rows = {
                "loop, files": partial(reference.official, label, stored, **options_of),
                "loop, in memory": partial(reference.official, label, masks, **options_of),
                "loop, lean": partial(reference.official, label, masks, count=np.count_nonzero, **options_of),
                "merge": partial(sepl.merge, label, masks, **options_of),
                "merge, decoded": partial(sepl.merge, label, decoded, **options_of),
                "merge, decoding": lambda of=options_of: sepl.merge(label, encoded.dense(), **of),
            }
            report(variant, rows, options.repeats)
    report('mode "paper"', {"merge": partial(sepl.merge, label, masks, options.classes, "paper")}, options.repeats)


def report(title: str, rows: dict[str, Callable], repeats: int) -> None:
    """Time all rows in turn, after one turn that does not count; print median, range and how often "merge" fits in."""
    times = {name: [] for name in rows}
    for turn in range(repeats + 1):
        for name, call in rows.items():
            start = time.process_time()
            call()
            if turn:
                times[name].append((time.process_time() - start) * 1e3)
    print(f"\n{title:<20}{'median ms':>12}{'from':>10}{'to':>10}{'x merge':>10}")
    for name, values in times.items():
        ratio = statistics.median(values) / statistics.median(times["merge"])
        print(f"{name:<20}{statistics.median(values):12.1f}{min(values):10.1f}{max(values):10.1f}{ratio:10.1f}")


if __name__ == "__main__":
    main()
