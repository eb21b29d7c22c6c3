"""COCO, 2014 and 2017: 80 kinds of things and background, with label maps made here from the official json.

    root/train2017/ID.jpg  root/val2017/ID.jpg  root/annotations/instances_train2017.json, instances_val2017.json

or root/images/train2017 and so on, or one set of photos that is divided here: root/images/ID.jpg, root/instances.json.

COCO gives single objects, which overlap, and no label maps, so each work paints its own. Ours follow the rule of
`_instances`: 0 is the background, 1 to 80 are the categories in the order of the json, small objects are on top, and a
crowd is void. mIoU on these maps need not equal mIoU on those of others (UniMatch's come as a ready folder `masks`).
"""

import warnings
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from plg_utils import class_files, datasets, files
from plg_utils.datasets import _instances, _splits
from plg_utils.records import Classes, Dataset

CLASS_FILE = datasets.CLASS_FILES / "coco.yaml"
YEARS = (2014, 2017)
SMOKE = {"labelled": 2, "limit": 2}


class _Set(NamedTuple):  # train or val
    instances: Path
    photos: dict[str, Path]  # by id, in the order of the ids


def load(
    *,
    root: str | Path | None = None,
    labelled: int | str | None = None,
    seed: int = 0,
    truth_of: tuple[str, ...] = ("labelled",),
    limit: int | None = None,
    year: int = 2017,
    split: str | Path | None = None,
    cache: str | Path | None = None,
) -> Dataset:
    """COCO as a data set; it has no test split, since those labels are not public.

    root: folder with train2017, val2017 and annotations (or the same below `images`, or the other layout above), by
        default `coco` in the data folder
    labelled: how many of the train images have labels, or which part of them, as "1/512" (rounded up); None for all
        that `split` lists, or for 232 without it
    seed: of the draw of the labelled images, 12 within 24; and, if there is one set of photos only, of the quarter of
        it that is kept for val
    year: 2017 (118,287 train, 5,000 val images; UniMatch) or 2014 (the same photos, otherwise divided; most weakly
        supervised works): numbers of the two do not compare
    split: a list of UniMatch's by its name, 1_512 to 1_32 (`_splits`: fetched if missing), or a folder with lists in
        its format: labeled.txt, and here or one level up val.txt; lines are "train2017/ID.jpg masks/ID.png", of which
        the id counts. Unlabelled is the rest of train; `labelled`: see `Lists.choose`. Without it the labelled images
        are drawn by the seed, with a warning: numbers on them do not compare with published ones
    cache: folder of the label maps, by default `coco_labels` in the data folder. They are painted once, for the splits
        in `truth_of`; a load can be stopped at any time. An image with an annotation that cannot be painted has no
        label map: a warning counts these images, and `truth` says why
    """
    if year not in YEARS:
        raise ValueError(f"year={year!r}: COCO's divisions are those of {' and '.join(map(str, YEARS))}")
    root = Path(root).expanduser() if root else files.data_root() / "coco"
    cache = Path(cache).expanduser() if cache else files.data_root() / "coco_labels"
    train, val = _parts(root, year, seed)
    if split is None:
        pool, val_ids = list(train.photos), list(val.photos)
        chosen, _, provenance = datasets.choose(pool, 232 if labelled is None else labelled, seed)
        warnings.warn("COCO's labelled images are drawn by a seed: this compares with nothing published", stacklevel=1)
    else:
        lists = _splits.find(split, "coco")
        pool, val_ids = _listed(lists, train, val)
        chosen, _, provenance = lists.choose(pool, labelled, seed, training=len(train.photos))
    taken = set(chosen)
    unlabelled = [id for id in train.photos if id not in taken][:limit]
    ids = {"labelled": chosen, "unlabelled": unlabelled, "val": val_ids[:limit]}
    datasets.check_disjoint(**ids)

    classes = class_files.read(CLASS_FILE)
    samples, broken = {}, {}
    for part, splits in ((train, ("labelled", "unlabelled")), (val, ("val",))):
        wanted = [id for name in splits if name in truth_of for id in ids[name]]
        of_part, sample = _instances.make_maps(part.instances, cache, wanted, classes, partial(_read, part, classes))
        broken |= of_part
        samples |= {name: tuple(sample(part.photos[id]) for id in ids[name]) for name in splits}
    _instances.warn_of_broken(broken, "coco")
    return Dataset("coco", classes, **samples, provenance=provenance)


def _read(part: _Set, classes: Classes) -> tuple[_instances.Instances, dict[int, int]]:
    content = _instances.read(part.instances)
    values = _instances.values_of(content.categories, classes)
    return content, {id: value for id, value in values.items() if value is not None}


# Which photos there are, and which are in which split


def _photos(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in datasets.files_in(folder, (".jpg",))}


def _parts(root: Path, year: int, seed: int) -> tuple[_Set, _Set]:
    """Train and val: two folders and two json files, or one of each, of which a quarter is drawn for val."""
    for folder in (root, root / "images"):
        if (folder / f"train{year}").is_dir():
            names = [f"{part}{year}" for part in ("train", "val")]
            places = [(root / "annotations" / f"instances_{name}.json", folder / name) for name in names]
            missing = [path for pair in places for path in pair if not path.exists()]
            if missing:
                raise FileNotFoundError(f"{root} has no {missing[0].relative_to(root)}, which belongs to train{year}")
            return tuple(_Set(path, _photos(photos)) for path, photos in places)
    if not ((root / "images").is_dir() and (root / "instances.json").is_file()):
        problem = f"{root} has neither train{year}, val{year} and annotations, nor images and instances.json"
        raise FileNotFoundError(f"{problem}: root must be the folder of COCO")
    photos = _photos(root / "images")
    val_ids, train_ids = datasets.draw(list(photos), len(photos) // 4, seed)
    return tuple(_Set(root / "instances.json", {id: photos[id] for id in ids}) for ids in (train_ids, val_ids))


def _listed(lists: _splits.Lists, train: _Set, val: _Set) -> tuple[list[str], list[str]]:
    """Labelled and val ids of the lists."""
    labelled, measured = _read_list(lists.labelled), _read_list(lists.val)
    datasets.check_disjoint(labelled=labelled, val=measured)
    for path, ids, part in ((lists.labelled, labelled, train), (lists.val, measured, val)):
        missing = [id for id in ids if id not in part.photos]
        if missing:
            where = next(iter(part.photos.values())).parent
            raise FileNotFoundError(f"{len(missing)} images of {path} are not in {where}, e.g. {missing[0]}")
    return labelled, measured


def _read_list(path: Path) -> list[str]:
    """Ids of a list with a photo and its label map in each line, or an id alone."""
    ids = []
    for where, words in datasets.read_list(path):
        stems = {PurePosixPath(word).stem for word in words}
        if len(words) > 2 or len(stems) != 1:
            raise ValueError(f"{where}: {' '.join(words)!r} is not train2017/ID.jpg masks/ID.png, with one ID")
        ids.append(files.check_stem(stems.pop(), where))
    return ids
