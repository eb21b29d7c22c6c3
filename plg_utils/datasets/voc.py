"""PASCAL VOC 2012 (20 classes and background), in its own layout.

    root/JPEGImages/ID.jpg  root/SegmentationClass/ID.png  root/ImageSets/Segmentation/train.txt, val.txt

The labelled images come from a list of UniMatch's (`split`), or are drawn at random from the train list.
"""

import warnings
from pathlib import Path, PurePosixPath

from plg_utils import class_files, datasets, files
from plg_utils.datasets import _splits
from plg_utils.records import Dataset, Sample

CLASS_FILE = datasets.CLASS_FILES / "voc.yaml"
SMOKE = {"labelled": 2, "limit": 2}

Entry = tuple[str, str | None]  # photo and label map, below the root


def load(
    *,
    root: str | Path | None = None,
    labelled: int | str | None = None,
    seed: int = 0,
    truth_of: tuple[str, ...] = ("labelled",),
    limit: int | None = None,
    split: str | Path | None = None,
) -> Dataset:
    """PASCAL VOC 2012 as a data set; it has no test split, since those labels are not public.

    root: folder with JPEGImages and SegmentationClass, by default `VOC2012` in the data folder
    labelled: how many images have labels, or a part such as "1/8"; drawn by the seed, 12 are among the 24. With
        `split`, None for all that it lists, and a part is a part of all training images (1/8 of 10,582 are the 1,323 of
        1_8). Without it, None for 92, and a part is a part of the images that could be labelled
    split: a list of UniMatch's by its name, 92 to 1464, 1_16 to 1_4, u2pl_1_16 to u2pl_1_4 (`_splits`: fetched if
        missing), or a folder with lists in its format: labeled.txt, and here or one level up val.txt, and
        unlabeled.txt or train_aug.txt, of which the labelled ones are left out. If fewer are `labelled` than it lists,
        these are drawn from it by the seed, with a warning: they are not the published list any more

    The lists 1_16 to 1_4 and u2pl_1_4 name label maps of the augmented set (SBD), which are not in VOCdevkit: put them
    into SegmentationClass.

    Without `split`, the labelled images are drawn from ImageSets/Segmentation/train.txt, and the unlabelled ones are
    the rest of train_aug.txt, or of train.txt if there is no train_aug.txt. If train.txt or val.txt is missing, a
    quarter of the images that have label maps (listed in all.txt, else found in the folder) is drawn for val by the
    seed, the labelled images are drawn from the others, and the photos without label map are unlabelled, too.
    """
    root = Path(root) if root else files.data_root() / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"{root} has no folder {part}: root must be the folder VOC2012 of VOCdevkit (for run.py: -p data_root)"
            )
    lists = root / "ImageSets" / "Segmentation"
    listed = _splits.find(split, "pascal") if split is not None else None
    if listed:
        pool, val = _read_list(listed.labelled), _read_list(listed.val)
        others = _read_list(listed.train) if listed.train else []
    elif (lists / "train.txt").is_file() and (lists / "val.txt").is_file():
        pool, val = _read_list(lists / "train.txt"), _read_list(lists / "val.txt")
        others = _read_list(lists / "train_aug.txt") if (lists / "train_aug.txt").is_file() else []
    else:
        pool, others, val = _drawn_lists(root, lists, seed)
    named = listed.labelled if listed else lists / "train.txt"
    if not pool and named.is_file():
        raise ValueError(f"{named} lists no image: write an id in each line")
    if listed:
        count = listed.count(labelled, len(pool), len({_id(entry) for entry in pool + others}))
        provenance = listed.provenance(count, len(pool), seed)
        if 0 < count < len(pool):
            warnings.warn(provenance, stacklevel=2)
    else:
        count = datasets.count(92 if labelled is None else labelled, len(pool))
        provenance = datasets.drawn(count, seed)
    chosen, rest = datasets.draw(pool, count, seed)
    taken = {_id(entry) for entry in chosen}
    unlabelled = [entry for entry in {_id(entry): entry for entry in others + rest}.values() if _id(entry) not in taken]
    leaked = sorted((taken | {_id(entry) for entry in unlabelled}) & {_id(entry) for entry in val})
    if leaked:
        what = f"{len(leaked)} images are both in val and in the training lists, e.g. {leaked[0]}"
        raise ValueError(f"{what}; the labelled ones are from {named}: keep each image in one of them")
    classes = class_files.read(CLASS_FILE)

    def samples(split: str, entries: list[Entry]) -> tuple[Sample, ...]:
        is_open, options = split in truth_of, {"num_classes": classes.num_classes, "root": root}
        return tuple(
            datasets.photo(root / image, root / label if label and is_open else None, **options)
            for image, label in entries
        )

    mapless = [photo for photo, label in chosen if label is None]
    if mapless:
        what = f"{named} gives no label map for {len(mapless)} photos, e.g. {mapless[0]}"
        raise ValueError(f"{what}; write the id alone, or the label map behind the photo")
    missing = [path for entry in chosen for path in entry if not (root / path).is_file()]
    if missing:
        without_sbd = listed is not None and missing[0].endswith(".png")  # its photo is there
        hint = "; VOCdevkit has 2,913 label maps, those of the 10,582 images of train_aug are SBD's" * without_sbd
        what = f"{len(missing)} files of the labelled images in {named} are not below {root}, e.g. {missing[0]}{hint}"
        raise FileNotFoundError(f"{what}; correct the list, or fetch the files that it names")
    return datasets.Loaded(
        "voc",
        classes,
        labelled=samples("labelled", chosen),
        unlabelled=samples("unlabelled", unlabelled[:limit]),
        val=samples("val", val[:limit]),
        provenance=provenance,
    )


def _id(entry: Entry) -> str:
    return entry[0].rsplit("/", 1)[-1].rsplit(".", 1)[0]  # a path object takes as long as all the rest of a load


def _read_list(path: Path) -> list[Entry]:
    """Read a list: an id in each line (VOC), or a photo and perhaps its label map (UniMatch)."""
    entries = []
    for where, words in datasets.read_list(path):
        outside = any(word.startswith("/") or "\\" in word or ".." in word.split("/") for word in words)
        if outside or len(words) > 2 or (len(words) == 2 and not words[1].endswith(".png")):
            raise ValueError(
                f"{where}: {' '.join(words)!r} is neither an id nor a photo and a label map below the root"
            )
        if len(words) == 1 and not PurePosixPath(words[0]).suffix:
            id = files.check_stem(words[0], where)
            words = [f"JPEGImages/{id}.jpg", f"SegmentationClass/{id}.png"]
        entries.append((words[0], words[1] if len(words) == 2 else None))
    datasets.check_disjoint(**{str(path): [_id(entry) for entry in entries]})
    return entries


def _drawn_lists(root: Path, lists: Path, seed: int) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Lists where train.txt or val.txt is missing: pool, val (a quarter of all label maps), and photos without map."""
    photos = sorted(path.stem for path in datasets.files_in(root / "JPEGImages", (".jpg",)))
    if (lists / "all.txt").is_file():
        mapped = [_id(entry) for entry in _read_list(lists / "all.txt")]
    else:
        maps = {path.stem for path in datasets.files_in(root / "SegmentationClass", (".png",), "label map")}
        mapped = [id for id in photos if id in maps]
        if not mapped:
            raise FileNotFoundError(f"no photo of {root}/JPEGImages has a label map in SegmentationClass")
    entries = [(f"JPEGImages/{id}.jpg", f"SegmentationClass/{id}.png") for id in mapped]
    val, pool = datasets.draw(entries, len(entries) // 4, seed)
    return pool, [(f"JPEGImages/{id}.jpg", None) for id in sorted({*photos} - {*mapped})], val
