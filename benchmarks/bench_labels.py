"""How long it takes to name segments and to paint them: python benchmarks/bench_labels.py

Three comparisons, each of images with masks that overlap (ellipses) and random features:

    labels_pool     mean feature of each mask: one matrix product, beside features enlarged to all pixels, (H, W, D)
    labels_paint    painting, the best score on top: whole masks at a time, beside a loop over pixels
    labels_again    a cached image labelled again, as in notebook 02 for other words or another threshold: masks and
                    embeddings read from disk, named, painted, written. There is no original, only the time of 1,000
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import side_by_side
import torch
import torch.nn.functional as F

from plg_utils import files, labels
from plg_utils.generators import segment_match
from plg_utils.records import IGNORE, Masks

IMAGES_AT_ONCE = 8  # notebook 02's default


def ellipses(size: tuple[int, int], count: int, seed: int) -> np.ndarray:
    """Draw masks (count, H, W) bool that lie anywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centres, radii = (
        rng.random((count, 2, 1, 1)) * np.array(size)[:, None, None],
        rng.uniform(0.03, 0.25, (count, 2, 1, 1)),
    )
    distance = [((axis - centres[:, k]) / (radii[:, k] * size[k])) ** 2 for k, axis in enumerate((y, x))]
    return sum(distance) < 1


def pool_by_pixel(features: torch.Tensor, masks: np.ndarray) -> torch.Tensor:
    """Enlarge features (D, h, w) to the image, and average them in each mask: (N, D)."""
    pixels = F.interpolate(features[None], masks.shape[1:], mode="bilinear")[0].permute(1, 2, 0)  # (H, W, D)
    return torch.stack([pixels[torch.from_numpy(mask)].mean(dim=0) for mask in masks])


def paint_by_pixel(masks: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Give each pixel the class of its best foreground mask, else background where a mask is: (H, W) uint8."""
    label = np.full(masks.shape[1:], IGNORE, np.uint8)
    for y in range(label.shape[0]):
        for x in range(label.shape[1]):
            best = -1.0
            for mask, index, score in zip(masks, classes, scores, strict=True):
                if mask[y, x] and index and score > best:
                    label[y, x], best = index, score
                elif mask[y, x] and best < 0:
                    label[y, x] = 0
    return label


def label_again(folder: Path, numbers: Sequence[int], texts: torch.Tensor, owner: torch.Tensor) -> None:
    """Name, paint and write stored images, some at once as notebook 02 does; as there, the old labels go first."""
    for number in numbers:
        (folder / f"{number}.png").unlink(missing_ok=True)
    for start in range(0, len(numbers), IMAGES_AT_ONCE):
        batch = numbers[start : start + IMAGES_AT_ONCE]
        stored = [files.read_masks(folder / f"{number}.json") for number in batch]
        embeddings = [files.read_embeddings(folder / f"{number}.safetensors") for number in batch]
        guesses = segment_match.labels_from_embeddings(stored, embeddings, texts, owner, background=0, threshold=0.1)
        for number, guess in zip(batch, guesses, strict=True):
            files.write_label(folder / f"{number}.png", guess.label)


def main() -> None:
    """Compare and write results/bench/labels_*.json."""
    parser = side_by_side.arguments(__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), help="height and width")
    parser.add_argument("--masks", type=int, default=7, help="of an image, as many as the miniature SAM finds")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--dimensions", type=int, default=128, help="of the features")
    parser.add_argument("--images", type=int, default=1000, help="labelled again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, rng = tuple(options.size), np.random.default_rng(0)
    masks = ellipses(size, options.masks, 0)
    features = torch.randn(options.dimensions, 14, 14, generator=torch.Generator().manual_seed(0))
    classes, scores = rng.integers(0, options.classes, len(masks)), rng.random(len(masks)).astype(np.float32)
    n = {"repeats": options.repeats, "masks": len(masks), "size": list(size), "dimensions": options.dimensions}
    tell = partial(side_by_side.report, options.write, device=options.device)

    ours, original = partial(labels.pool, features, masks, size), partial(pool_by_pixel, features, masks)
    taken = side_by_side.seconds({"ours": ours, "original": original}, options.repeats)
    difference = (ours() - original()).abs().max().item()
    tell("labels_pool", **side_by_side.compare(**taken), unit="seconds an image", n=n, agreement=difference)

    ours = partial(labels.paint, masks, classes, scores)
    original = partial(paint_by_pixel, masks, classes, scores)
    taken = side_by_side.seconds({"ours": ours, "original": original}, options.repeats)
    equal = float(np.mean(ours().label == original()))
    tell("labels_paint", **side_by_side.compare(**taken), unit="seconds an image", n=n, agreement=equal)

    texts, owner = torch.randn(options.classes - 1, options.dimensions), torch.arange(1, options.classes)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for number in range(options.images):
            files.write_masks(folder / f"{number}.json", Masks.from_dense(ellipses(size, options.masks, number)))
            files.write_embeddings(folder / f"{number}.safetensors", torch.randn(options.masks, options.dimensions))

        again = partial(label_again, folder, range(options.images), texts, owner)
        taken = side_by_side.seconds({"ours": again}, options.repeats)["ours"]
    n |= {"images": options.images}
    found = {"ours_s": float(np.median(taken)), "original_s": None, "ratio": None, "agreement": None}
    found |= {"best_s": [min(taken), None], "best_ratio": None}
    tell("labels_again", **found, unit=f"seconds for {options.images:,} images", n=n)


if __name__ == "__main__":
    main()
