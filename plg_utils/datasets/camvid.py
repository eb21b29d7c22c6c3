"""CamVid, street scenes filmed from a car: the usual 11 classes at 480 x 360, in the layout of the SegNet tutorial.

    root/train/ID.png  root/trainannot/ID.png  root/train.txt      and the same for val and, where present, test

The frames of a video are one second apart, and neighbours are nearly the same image. So the labelled frames are not
drawn at random, but evenly spaced over the videos.
"""

import re
from dataclasses import replace
from math import gcd
from pathlib import Path, PurePosixPath

import numpy as np

from plg_utils import class_files, datasets, files
from plg_utils.records import SPLITS, Dataset, Sample

CLASS_FILE = datasets.CLASS_FILES / "camvid.yaml"
SUFFIXES = (".png", ".jpg", ".jpeg")
SMOKE = {"labelled": 2, "limit": 2}


def load(
    *,
    root: str | Path | None = None,
    labelled: int | str = 12,
    seed: int = 0,
    truth_of: tuple[str, ...] = ("labelled",),
    limit: int | None = None,
    shrink: int = 1,
) -> Dataset:
    """CamVid as a data set: 367 frames to train with, 101 val and 233 test frames in the usual split.

    root: folder with train, trainannot, val, valannot and perhaps test, testannot; by default `camvid` in the data
        folder. `train.txt`, `val.txt` and `test.txt` list the pairs; of a folder without list all frames are taken.
    labelled: how many frames of train have labels, or which part of them, as "1/8" (rounded up); evenly spaced, so 12
        are not among the 24. The rest of train is unlabelled.
    seed: moves the labelled frames along the videos (`spaced`): of 12 of 367 the first has 30 places, another one for
        each of 30 seeds. If more than half of the frames are labelled there is one place, and the seed does nothing.
    shrink: 2 reads photos and label maps at half the size (`smaller`), for machines that cannot train at full size. A
        mean IoU at another size does not compare.

    Void is 11 in the files and IGNORE here. There is no background class. We know no published numbers for these
    labelled frames.
    """
    root = Path(root) if root else files.data_root() / "camvid"
    train, val = _entries(root, "train"), _entries(root, "val")
    test = _entries(root, "test") if (root / "test").is_dir() else []
    splits = {"train": train, "val": val, "test": test}
    datasets.check_disjoint(**{split: [image.stem for image, _ in entries] for split, entries in splits.items()})
    datasets.check_count("shrink", shrink, "a whole number from 1 on: 2 is half the size", least=1)
    train = sorted(train, key=lambda entry: _video_and_frame(entry[0].stem))
    taken = set(spaced(len(train), datasets.count(labelled, len(train)), seed))
    dataset = datasets.from_pairs(
        "camvid",
        class_files.read(CLASS_FILE),
        {
            "labelled": [entry for index, entry in enumerate(train) if index in taken],
            "unlabelled": [entry for index, entry in enumerate(train) if index not in taken],
            "val": val,
            "test": test,
        },
        root=root,
        truth_of=truth_of,
        limit=limit,
        listed=root / ("train.txt" if (root / "train.txt").is_file() else "train"),
        void=True,
        provenance=f"the {len(taken)} labelled frames are evenly spaced over the videos, moved by seed {seed}: "
        "no published numbers are known for them",
    )
    if shrink == 1:
        return dataset
    return replace(
        dataset, **{split: tuple(smaller(sample, shrink) for sample in getattr(dataset, split)) for split in SPLITS}
    )


def smaller(sample: Sample, factor: int) -> Sample:
    """Sample at 1 / factor of its height and width, rounded down.

    A pixel of the photo is the mean of factor x factor pixels. A pixel of the label map is the value in the middle of
    these (right and below of it, if the factor is even), so that no new class appears.
    """

    def image() -> np.ndarray:
        photo = sample.image()
        height, width = photo.shape[0] // factor, photo.shape[1] // factor
        blocks = photo[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
        return blocks.mean(axis=(1, 3)).round().astype(np.uint8)

    def truth() -> np.ndarray:
        label = sample.truth()
        height, width = label.shape[0] // factor, label.shape[1] // factor
        return np.ascontiguousarray(label[factor // 2 :: factor, factor // 2 :: factor][:height, :width])

    readers = {"read_image": image, "read_truth": truth if sample.read_truth else None}
    readers["read_truth_content"] = lambda: f"{sample.truth_content}/{factor}"
    return datasets.otherwise(sample, f"1/{factor}", **readers)


def spaced(frames: int, count: int, seed: int) -> list[int]:
    """Positions of `count` evenly spaced frames in a row of videos, one after the other.

    Each video gets its share to within one frame. Neighbours are frames // count or one more apart. There are
    `frames // count` places for the first frame: seed 0 takes the middle, and each next seed is about 0.6 of the
    distance further, so that a few seeds are far apart, and none repeats before all places were used.
    """
    if not count:
        return []
    places = frames // count
    stride = next(step for step in range(round(0.618 * places), places + 1) if gcd(step, places) == 1)
    first = (places // 2 + seed * stride) % places
    return [first + index * frames // count for index in range(count)]


def _video_and_frame(stem: str) -> tuple[str, int, str]:
    """Video and number of a frame: 0001TP_006690 is frame 6690 of 0001TP, 0006R0_f00930 is frame 930 of 0006R0."""
    video, frame = re.fullmatch(r"(.*?)_?f?(\d*)", stem).groups()
    return video, int(frame or 0), stem


def _entries(root: Path, part: str) -> list[datasets.Entry]:
    """Photos and label maps of train, val or test: those of the list if there is one, else all.

    The lists of the SegNet tutorial have the folders of its authors in front (/SegNet/CamVid/train/ID.png): only the
    last folder and the name count.
    """
    photos, maps, listed = root / part, root / f"{part}annot", root / f"{part}.txt"
    for folder in (photos, maps):
        if not folder.is_dir():
            raise FileNotFoundError(f"{root} has no folder {folder.name}: root must hold {part} and {part}annot")
    if not listed.is_file():
        return [(path, maps / f"{path.stem}.png") for path in datasets.files_in(photos, SUFFIXES)]
    entries = []
    for where, words in datasets.read_list(listed):
        paths = [PurePosixPath(word) for word in words]
        if [path.parent.name for path in paths] != [photos.name, maps.name] or paths[0].stem != paths[1].stem:
            line = " ".join(words)
            raise ValueError(f"{where}: {line!r} is not {part}/ID.png {part}annot/ID.png, with one ID")
        entries.append((photos / paths[0].name, maps / paths[1].name))
    return entries
