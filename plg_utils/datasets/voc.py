"""PASCAL VOC 2012 (20 classes and background), in its own layout.

    root/JPEGImages/ID.jpg  root/SegmentationClass/ID.png  root/ImageSets/Segmentation/train.txt, val.txt

The labelled images come from a list of UniMatch's (`split`), or are drawn at random from the train list.
"""

import warnings
from pathlib import Path, PurePosixPath

from plg_utils import class_files, datasets, files
from plg_utils.datasets import _splits
from plg_utils.records import Dataset

CLASS_FILE = datasets.CLASS_FILES / "voc.yaml"
SUFFIXES = (".jpg", ".jpeg", ".png")
SMOKE = {"labelled": 2, "limit": 2}


def load(
    *,
    root: str | Path | None = None,
    labelled: int | str | None = None,
    seed: int = 0,
    truth_of: tuple[str, ...] = ("labelled",),
    limit: int | None = None,
    split: str | Path | None = None,
    label_val: bool = False,
) -> Dataset:
    """PASCAL VOC 2012 as a data set; it has no test split, since those labels are not public.

    root: folder with JPEGImages and SegmentationClass, by default `VOC2012` in the data folder
    labelled: how many images have labels, or a part such as "1/8"; drawn by the seed, 12 are among the 24. With
        `split` see `Lists.choose`; without it, None for 92, and a part is a part of the images that could be labelled
    split: a list of UniMatch's by its name, 92 to 1464, 1_16 to 1_4, u2pl_1_16 to u2pl_1_4 (`_splits`: fetched if
        missing), or a folder with lists in its format: labeled.txt, and here or one level up val.txt, and
        unlabeled.txt or train_aug.txt, of which the labelled ones are left out. 1_16 to 1_4 and u2pl_1_4 name label
        maps of the augmented set (SBD), which are not in VOCdevkit: put them into SegmentationClass
    label_val: the images of val take the place of the unlabelled ones, and val is empty: to compare zero-shot labels
        with published numbers, which are counted there. What is trained then has seen val

    Without `split`, the labelled images are drawn from ImageSets/Segmentation/train.txt, and the unlabelled ones are
    the rest of train_aug.txt, or of train.txt if there is no train_aug.txt. If train.txt and val.txt are missing, a
    quarter of the images that have label maps (listed in all.txt, else found in the folder) is drawn for val by the
    seed, the labelled images are drawn from the others, and the photos without label map are unlabelled, too.
    """
    root = Path(root) if root else files.data_root() / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"{root} has no folder {part}: root must be the folder VOC2012 of VOCdevkit (for run.py: -p data_root)"
            )
    folder = root / "ImageSets" / "Segmentation"
    own = _splits.Lists(folder / "train.txt", folder / "val.txt", folder / "train_aug.txt")
    lists = own if split is None else _splits.find(split, "pascal")
    photos = _photos(root)
    there = [path for path in (own.labelled, own.val) if path.is_file()]
    if split is None and len(there) == 1:
        absent = own.val if own.labelled in there else own.labelled
        remedy = f"add {absent.name}, or remove {there[0].name}: then both are drawn by the seed"
        raise FileNotFoundError(f"{folder} has {there[0].name} and no {absent.name}: {remedy}")
    if split is None and not there:
        warnings.warn(f"{folder} has no train.txt and no val.txt: both are drawn by seed {seed}", stacklevel=1)
        pool, others, val = _drawn_lists(folder, photos, root, seed)
    else:
        pool, val = _read_list(lists.labelled, photos), _read_list(lists.val, photos)
        has_others = lists.train and lists.train.is_file()
        others = _read_list(lists.train, photos, may_be_empty=True) if has_others else []
    if split is None:
        chosen, rest, provenance = datasets.choose(pool, 92 if labelled is None else labelled, seed)
    else:
        chosen, rest, provenance = lists.choose(pool, labelled, seed, len({_id(entry) for entry in pool + others}))
    if mapless := [photo for photo, label in chosen if label is None]:
        problem = f"{lists.labelled} gives no label map for {len(mapless)} photos, e.g. {mapless[0]}"
        raise ValueError(f"{problem}; write the id alone, or the label map behind the photo")
    taken = {_id(entry) for entry in chosen}
    unlabelled = {_id(entry): entry for entry in others + rest if _id(entry) not in taken}
    if leaked := sorted((taken | unlabelled.keys()) & {_id(entry) for entry in val}):
        problem = f"{len(leaked)} images are both in val and in the training lists, e.g. {leaked[0]}"
        raise ValueError(f"{problem}; the labelled ones are from {lists.labelled}: keep each image in one of them")
    others = list(unlabelled.values())
    return datasets.from_pairs(
        "voc",
        class_files.read(CLASS_FILE),
        {"labelled": chosen} | ({"unlabelled": val, "val": []} if label_val else {"unlabelled": others, "val": val}),
        root=root,
        truth_of=truth_of,
        limit=limit,
        listed=lists.labelled,
        hint="" if split is None else "; VOCdevkit has 2,913 label maps, those of the 10,582 of train_aug are SBD's",
        provenance=provenance,
    )


def _id(entry: datasets.Entry) -> str:
    return entry[0].rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _photos(root: Path) -> dict[str, str]:
    """Photos in JPEGImages: id -> path below the root."""
    found = datasets.files_in(root / "JPEGImages", SUFFIXES)
    return {path.stem: f"JPEGImages/{path.name}" for path in sorted(found, key=lambda path: path.suffix == ".jpg")}


def _read_list(path: Path, photos: dict[str, str] | None = None, may_be_empty: bool = False) -> list[datasets.Entry]:
    """Read a list: an id in each line (VOC), or a photo and perhaps its label map (UniMatch); photos: by id."""
    entries = []
    for where, words in datasets.read_list(path, may_be_empty=may_be_empty):
        id = " ".join(words)
        if photos and id in photos:  # it may have spaces and dots
            entries.append((photos[id], f"SegmentationClass/{id}.png"))
            continue
        outside = any(word.startswith("/") or "\\" in word or ".." in word.split("/") for word in words)
        if outside or len(words) > 2 or (len(words) == 2 and not words[1].endswith(".png")):
            raise ValueError(f"{where}: {id!r} is neither an id nor a photo and a label map below the root")
        if len(words) == 1 and not PurePosixPath(words[0]).suffix:
            id = files.check_stem(words[0], where)
            words = [f"JPEGImages/{id}.jpg", f"SegmentationClass/{id}.png"]
        entries.append((words[0], words[1] if len(words) == 2 else None))
    datasets.check_disjoint(**{str(path): [_id(entry) for entry in entries]})
    return entries


def _drawn_lists(folder: Path, photos: dict[str, str], root: Path, seed: int) -> tuple[list[datasets.Entry], ...]:
    """Lists where train.txt and val.txt are missing: pool, photos without map, and val (a quarter of all maps)."""
    if (folder / "all.txt").is_file():
        entries = _read_list(folder / "all.txt", photos)
    else:
        maps = {path.stem for path in datasets.files_in(root / "SegmentationClass", (".png",), "label map")}
        entries = [(photos[id], f"SegmentationClass/{id}.png") for id in sorted(photos) if id in maps]
        if not entries:
            raise FileNotFoundError(f"no photo of {root}/JPEGImages has a label map in SegmentationClass")
    val, pool = datasets.draw(entries, len(entries) // 4, seed)
    return pool, [(photos[id], None) for id in sorted(photos.keys() - {_id(entry) for entry in entries})], val
