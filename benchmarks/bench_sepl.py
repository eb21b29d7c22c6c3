"""How fast SEPL's merge is, beside the plain loop over classes and masks: python benchmarks/bench_sepl.py

The same cue map and masks for all. The loop is that of `tests/reference_sepl.py`, which counts each mask again for each
class, as the authors' code does. It is timed with

    files       each mask read from its PNG whenever it is asked for, as the authors' code does
    in memory   all masks loaded before: "original"
    lean        in memory, and np.count_nonzero for np.sum, which is several times faster on bool arrays

and `merge` with the same masks in memory ("ours"), and with masks as they are stored, run lengths, decoded each time.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import side_by_side
import torch
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


def main() -> None:
    """Compare and write results/bench/sepl_max_iou_imp2.json."""
    parser = side_by_side.arguments(__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), help="height and width; VOC's are about this")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--masks", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # SEPL is numpy's and needs none; the file tells them
    label, masks = scene(tuple(options.size), options.classes, options.masks, seed=0)
    encoded = Masks.from_dense(masks)
    n = {"repeats": options.repeats, "classes": options.classes, "masks": len(masks), "size": list(options.size)}
    with tempfile.TemporaryDirectory() as folder:
        stored = MaskFiles(Path(folder), masks)
        how = {"num_classes": options.classes}
        calls = {
            "ours": partial(sepl.merge, label, masks, **how),
            "original": partial(reference.official, label, masks, **how),
            "original, files": partial(reference.official, label, stored, **how),
            "original, lean": partial(reference.official, label, masks, count=np.count_nonzero, **how),
            "ours, run lengths": lambda: sepl.merge(label, encoded.dense(), **how),
        }
        equal = float(np.mean(calls["ours"]() == calls["original"]()))
        taken = side_by_side.seconds(calls, options.repeats)
        found = side_by_side.compare(taken["ours"], taken["original"])
        found["others_s"] = {name: float(np.median(taken[name])) for name in list(calls)[2:]}
        what = "sepl_max_iou_imp2"  # the variant of the authors' code, its default
        side_by_side.report(options.write, what, options.device, **found, unit="seconds an image", n=n, agreement=equal)


if __name__ == "__main__":
    main()
