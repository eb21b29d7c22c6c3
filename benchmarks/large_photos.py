"""What large photos cost, and whether seams show: python benchmarks/large_photos.py

Storybook scenes are enlarged and pasted into one photo. Each photo goes through the stages masks, segments and labels
of notebook 02 in a process of its own, whose largest memory is listed with the seconds by the wall. The agreement is
that of the label maps of the same image, whole and in tiles, away from the middle of the overlaps:

- A mask model that is always right (a mask for each annotated region) leaves the seams alone to make a difference.
- The miniatures see a part of an image otherwise than the whole. `one part alone` says how much that is by itself: the
  first tile as an image of its own, against the whole image in the same pixels.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import side_by_side
import torch
from bench_scaling import peak_memory_mb
from PIL import Image

from plg_utils import datasets, encoders, files, stages, tiles
from plg_utils.datasets import storybook
from plg_utils.generators import segment_match
from plg_utils.labels import pool
from plg_utils.records import IGNORE, Masks
from plg_utils.regions import components

PHOTOS = {  # scenes along a side, pixels of a scene (H, W), options of masks and encoder
    "12 megapixels": (4, (750, 1000), {}),
    "100 megapixels in tiles": (10, (1000, 1000), {"tile": 1024, "tile_overlap": 128}),
    "100 megapixels, one scene": (1, (10_000, 10_000), {}),
}
THRESHOLD = 0.2  # cosine
MOSAICS = 4
FAR = 16  # a pixel is away from a seam if that is further than this part of a tile


def mosaic(first: int, side: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and truth (H, W), both uint8, of side x side scenes of a size."""
    scenes = datasets.load("storybook", labelled=12, truth_of=("unlabelled",)).unlabelled[first : first + side**2]

    def paste(pictures: list[np.ndarray], how: Image.Resampling) -> np.ndarray:
        large = [np.asarray(Image.fromarray(picture).resize(size[::-1], how)) for picture in pictures]
        return np.concatenate([np.concatenate(large[row * side : (row + 1) * side], axis=1) for row in range(side)])

    truths = paste([scene.truth() for scene in scenes], Image.Resampling.NEAREST)
    return paste([scene.image() for scene in scenes], Image.Resampling.BICUBIC), truths


def label(name: str, folder: Path, threads: int) -> dict:
    """Label one of PHOTOS as notebook 02 does it; seconds of each stage, and the process's largest memory."""
    torch.set_num_threads(threads)
    options = PHOTOS[name][2]
    clip = {"encoder": "clip", "encoder_options": {"checkpoint": "miniature_clip", **options}}
    steps = {
        "load": lambda: datasets.load("folder", root=folder, classes=storybook.CLASS_FILE),
        "masks": lambda: stages.masks(run, mask_model="sam", mask_options={"checkpoint": "miniature_sam", **options}),
        "segments": lambda: stages.segments(run, **clip, embedding_options={}),
        "labels": lambda: stages.labels(
            run, **clip, rule="cosine", threshold=THRESHOLD, default_threshold=THRESHOLD, overlap="score"
        ),
    }
    seconds, run = {}, None
    for step, call in steps.items():
        start = time.perf_counter()
        made = call()
        run = run or stages.open_run("large", made, device="cpu")
        seconds[step] = round(time.perf_counter() - start, 1)
    truth, found = files.read_label(folder / "truth" / "photo.png"), run.label_of("labels_zero_shot", run.images[0])
    right = float((np.where(found == IGNORE, 0, found) == truth).mean())
    return {
        "masks": sum(stages.mask_counts(run)),
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "accuracy": right,
    }


def make(name: str, folder: Path) -> None:
    """Draw one of PHOTOS and its truth."""
    image, truth = mosaic(0, *PHOTOS[name][:2])
    files.write_image(folder / "photo.jpg", image)
    files.write_label(folder / "truth" / "photo.png", truth)


def measure(name: str, threads: int) -> dict:
    """Make one of PHOTOS and label it, each in a new process, which would count the memory of its parent."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, __file__, "--folder", temporary, "--threads", str(threads)]
        places = {"PLG_RESULTS": temporary + "/results", "PLG_DATA": temporary + "/data"}
        subprocess.run([*command, "--make", name], check=True)
        done = subprocess.run([*command, "--one", name], stdout=subprocess.PIPE, check=True, env=os.environ | places)
        return json.loads(done.stdout)


def agreement(side: int, pixels: int, tile: int, overlap: int) -> dict:
    """Share of pixels away from seams that have the same class, whole and in tiles, over some mosaics."""
    cut, classes = {"tile": tile, "tile_overlap": overlap}, datasets.load("storybook").classes
    build = lambda **options: segment_match.build(  # noqa: E731
        classes, threshold=THRESHOLD, masks_options=options, encoder_options=options
    )
    whole, tiled, length = build(), build(**cut), side * pixels
    encode, first = encoders.build("clip"), slice(0, tile - overlap)
    begins = tiles.starts(length, tile, overlap)
    seams = [(before + tile + after) / 2 for before, after in zip(begins, begins[1:], strict=False)]
    far = np.array([all(abs(pixel + 0.5 - seam) > tile / FAR for seam in seams) for pixel in range(length)])
    far = far[:, None] & far
    same = {"annotated regions": [], "miniatures": [], "one part alone": []}
    joined, accuracy = [], {"whole": [], "in tiles": []}
    for number in range(MOSAICS):
        image, truth = mosaic(number * side**2, side, (pixels, pixels))
        drawn = np.repeat(truth[..., None], 3, axis=2)  # the truth as an image
        one, parts = annotated([drawn])[0], tiles.segment(annotated, drawn, tile, overlap)
        counts = [{rle["counts"] for rle in masks.rles} for masks in (one, parts)]
        joined.append((len(counts[0] & counts[1]) / len(counts[0]), len(counts[1] - counts[0])))
        features = encode.images([image])[0]
        named = [by_name(features, found, encode.class_embeddings(classes)) for found in (one, parts)]
        same["annotated regions"].append((named[0] == named[1])[far].mean())
        made = [generate([image])[0].label for generate in (whole, tiled)]
        same["miniatures"].append((made[0] == made[1])[far].mean())
        alone = whole([np.ascontiguousarray(image[:tile, :tile])])[0].label
        same["one part alone"].append((made[0][first, first] == alone[first, first]).mean())
        for name, found in zip(accuracy, made, strict=True):
            accuracy[name].append((np.where(found == IGNORE, 0, found) == truth).mean())
    return {
        "image": [length, length],
        **cut,
        "same": {name: float(np.mean(values)) for name, values in same.items()},
        "annotated regions that come out whole": float(np.mean([share for share, _ in joined])),
        "masks that are no annotated region": sum(others for _, others in joined),
        "accuracy": {name: float(np.mean(values)) for name, values in accuracy.items()},
    }


def annotated(images: list[np.ndarray]) -> list[Masks]:
    """A mask for each connected region of a class, in images (H, W, 3) whose colours are the numbers of classes."""
    found = []
    for image in images:
        regions = [components(image[..., 0] == value) for value in np.unique(image[..., 0])]
        masks = np.array([region == number for region in regions for number in np.unique(region[region > 0])])
        found.append(Masks.from_dense(masks, np.ones(len(masks))))
    return found


def by_name(features: torch.Tensor, found: Masks, texts: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    """Label map (H, W) of masks by the features (D, h, w) of the whole image."""
    embeddings = pool(features, found, found.size)
    return segment_match.label_from_embeddings(found, embeddings, *texts, background=0, threshold=THRESHOLD).label


def main() -> None:
    """Measure and write results/bench/large_photos.json."""
    parser = side_by_side.arguments(__doc__)
    parser.add_argument("--one", choices=PHOTOS, help="label this photo, which lies in the folder, and print JSON")
    parser.add_argument("--make", choices=PHOTOS, help="draw this photo into the folder, and stop")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=PHOTOS, default=list(PHOTOS))
    options = parser.parse_args()
    if options.make:
        make(options.make, options.folder)
        return
    if options.one:
        print(json.dumps(label(options.one, options.folder, options.threads)))
        return
    torch.set_num_threads(options.threads)
    found = {"photos": {name: measure(name, options.threads) for name in options.only}}
    found["agreement"] = [agreement(*case) for case in ((1, 128, 120, 60), (2, 128, 128, 32), (2, 128, 192, 64))]
    side_by_side.report(options.write, "large_photos", options.device, **found)


if __name__ == "__main__":
    main()
