"""COCO, 2014 and 2017: 80 kinds of things and background, with label maps made here from the official json.

    root/train2017/ID.jpg  root/val2017/ID.jpg  root/annotations/instances_train2017.json, instances_val2017.json

or root/images/train2017 and so on, or one set of photos that is divided here: root/images/ID.jpg, root/instances.json.

COCO gives single objects, which overlap, and no label maps, so each work paints its own. **What follows is our
choice**, and mIoU on these maps need not equal mIoU on those of others (UniMatch's come as a ready folder `masks`):

- 0 is the background: every pixel of no object. 1 to 80 are the categories in the order of the json.
- Objects are painted from the largest to the smallest, counted in pixels, so that small things lie on top; of two
  equally large ones the later annotation lies on top.
- A crowd (`iscrowd`) is painted in the same order, with IGNORE: somebody is there, and nobody has said where.
- Pixels that more than one annotation claims are counted (`Map`), those apart where the values differ.
"""

import hashlib
import json
import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from pycocotools import mask as coco

from plg_utils import datasets, files, runs
from plg_utils.records import IGNORE, Classes, Dataset, Sample

CLASS_FILE = datasets.CLASS_FILES / "coco.yaml"
RULE = "1: by descending area in pixels, then as listed; crowd is void"  # part of the cache's name
YEARS = (2014, 2017)
REPORT = "maps.json"  # of the cache: id -> Map
SAVED_EVERY = 60.0  # seconds between two writings of the report; what came after the last is painted again
SMOKE = {"labelled": 2, "limit": 2}


class BrokenAnnotation(ValueError):
    """An annotation that cannot be painted."""


@dataclass(frozen=True)
class Map:
    """What painting an image told."""

    pixels: int  # H·W
    annotations: int = 0
    crowds: int = 0
    overlap: int = 0  # pixels that more than one annotation claims
    contested: int = 0  # of those, pixels for which they do not claim the same value
    classes: tuple[int, ...] = ()  # values in the label map, IGNORE left out
    broken: str = ""  # why there is no label map


@dataclass(frozen=True)
class _Set:
    """Photos that share a json: those of train or of val."""

    instances: Path
    photos: dict[str, Path]  # by id, in the order of the ids
    cache: Path  # folder of the label maps


def load(
    *,
    root: str | Path | None = None,
    labelled: int | str = 232,
    seed: int = 0,
    truth_of: tuple[str, ...] = ("labelled",),
    limit: int | None = None,
    year: int = 2017,
    splits: str | Path | None = None,
    cache: str | Path | None = None,
) -> Dataset:
    """COCO as a data set; it has no test split, since those labels are not public.

    root: folder with train2017, val2017 and annotations (or the same below `images`, or the other layout above), by
        default `coco` in the data folder
    labelled: how many of the train images carry labels, or which part of them, as "1/512" (rounded up)
    seed: of the draw of the labelled images, 12 within 24; and, if there is one set of photos only, of the quarter of
        it that is kept for val
    year: 2017 (118,287 train, 5,000 val images; UniMatch) or 2014 (the same photos, otherwise divided; most weakly
        supervised works): numbers of the two do not compare
    splits: folder with UniMatch's labeled.txt, and here or one level up val.txt; lines are "train2017/ID.jpg
        masks/ID.png", of which the id counts: label maps are made here. If it lists more images than `labelled`, these
        are drawn from it by the seed. Unlabelled is the rest of train.
    cache: folder of the label maps, by default `coco_labels` in the data folder; theirs is a subfolder that is called
        after the content of the json and the rule by which they are painted

    Without `splits` the labelled images are drawn by the seed, with a warning: such a draw compares with nothing
    published. Label maps are made for the splits in `truth_of` and for no others (the json holds all truth, but only
    these images' annotations are painted); what is there is not made again, so it can be stopped anywhere. An image
    with an annotation that cannot be painted has no label map: a warning counts them, and `truth` says why.
    """
    if year not in YEARS:
        raise ValueError(f"year={year!r}: COCO's divisions are those of {' and '.join(map(str, YEARS))}")
    root = Path(root).expanduser() if root else files.data_root() / "coco"
    cache = Path(cache).expanduser() if cache else files.data_root() / "coco_labels"
    train, val = _parts(root, year, seed, cache)
    if splits is None:
        warnings.warn("COCO's labelled images are drawn by a seed: this compares with nothing published", stacklevel=2)
        pool, val_ids = list(train.photos), list(val.photos)
    else:
        pool, val_ids = _unimatch_lists(Path(splits).expanduser(), train, val)
    chosen, _ = datasets.draw(pool, datasets.count(labelled, len(pool)), seed)
    taken = set(chosen)
    ids = {
        "labelled": chosen,
        "unlabelled": [id for id in train.photos if id not in taken][:limit],
        "val": val_ids[:limit],
    }
    datasets.check_disjoint(**ids)

    classes = files.read_classes(CLASS_FILE)
    maps: dict[str, Map] = {}
    for part, parts_splits in ((train, ("labelled", "unlabelled")), (val, ("val",))):
        wanted = [id for split in parts_splits if split in truth_of for id in ids[split]]
        maps |= _make_maps(part, wanted, classes)
    _warn(maps, ids, classes, truth_of)

    def samples(split: str) -> tuple[Sample, ...]:
        part = val if split == "val" else train
        return tuple(_sample(part, id, maps.get(id), classes.num_classes) for id in ids[split])

    return Dataset("coco", classes, samples("labelled"), samples("unlabelled"), samples("val"))


def remarks(dataset: Dataset) -> list[tuple[str, str, int, str]]:
    """What the validator should say: how much of the open label maps more than one annotation claims."""
    painted = [sample for sample in (*dataset.labelled, *dataset.unlabelled, *dataset.val) if sample.truth_path]
    reports = {path: _read_report(path) for path in {sample.truth_path.parent for sample in painted}}
    known = (reports[sample.truth_path.parent].get(sample.id) for sample in painted)
    maps = [told for told in known if told and not told.broken]
    pixels = max(1, sum(told.pixels for told in maps))
    overlap, contested = (sum(getattr(told, field) for told in maps) for field in ("overlap", "contested"))
    return [
        ("note", "annotations painted", sum(told.annotations for told in maps), f"on {len(maps)} images"),
        ("note", "crowds, painted as void", sum(told.crowds for told in maps), ""),
        ("note", "pixels of two or more annotations", overlap, f"{overlap / pixels:.2%} of all"),
        ("note", "of these, of different classes", contested, f"{contested / pixels:.2%} of all; the smaller wins"),
    ]


def paint(annotations: list[dict], size: tuple[int, int], values: dict[int, int]) -> tuple[np.ndarray, Map]:
    """Paint the annotations of an image into a label map, by the rule above.

    annotations: as in the json; size: (H, W) of the image; values: category id -> value in the label map
    returns: (H, W) uint8, and what was counted on the way
    """
    layers = []
    for annotation in annotations:
        try:
            crowd = bool(annotation.get("iscrowd", 0))
            if annotation["category_id"] not in values:
                raise BrokenAnnotation(f"its category {annotation['category_id']!r} is none of the 80 classes")
            mask = decode(annotation["segmentation"], size)
        except (BrokenAnnotation, KeyError, TypeError) as error:
            why = error if isinstance(error, BrokenAnnotation) else f"it is not COCO's form ({error!r})"
            raise BrokenAnnotation(f"annotation {annotation.get('id')}: {why}") from error
        layers.append((IGNORE if crowd else values[annotation["category_id"]], np.flatnonzero(mask)))
    label = np.zeros(size[0] * size[1], dtype=np.uint8)  # flat: an annotation is the positions of its pixels
    claimed, overlap, contested = (np.zeros(label.size, dtype=bool) for _ in range(3))
    for value, where in sorted(layers, key=lambda layer: -len(layer[1])):  # sorted keeps the order of equal ones
        again = where[claimed[where]]
        overlap[again] = True
        contested[again[label[again] != value]] = True
        claimed[where] = True
        label[where] = value
    return label.reshape(size), Map(
        pixels=label.size,
        annotations=len(layers),
        crowds=sum(bool(annotation.get("iscrowd", 0)) for annotation in annotations),
        overlap=int(overlap.sum()),
        contested=int(contested.sum()),
        classes=tuple(int(value) for value in np.unique(label) if value != IGNORE),
    )


def decode(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Decode a segmentation, a list of polygons or run lengths: (H, W) bool.

    pycocotools trusts what it gets: malformed run lengths and wild polygons crash the process, so both are checked.
    """
    height, width = size
    if isinstance(segmentation, list):
        _check_polygons(segmentation, size)
        rle = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], str):
        try:
            files.check_rle(segmentation, size)
        except ValueError as error:
            raise BrokenAnnotation(f"run lengths: {error}") from error
        rle = {"size": [height, width], "counts": segmentation["counts"]}
    else:
        _check_runs(segmentation, size)
        rle = coco.frPyObjects({"size": [height, width], "counts": segmentation["counts"]}, height, width)
    return np.ascontiguousarray(coco.decode(rle), dtype=bool)  # it comes column by column


def _check_polygons(polygons: list, size: tuple[int, int]) -> None:
    """Refuse what is not a list of polygons [x, y, x, y, x, y, ...] in or near the image."""
    if not polygons:
        raise BrokenAnnotation("it has no polygon")
    near = max(size)  # how far outside a corner may lie: pycocotools walks along each side, pixel by pixel
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            length = f"{len(polygon)} numbers" if isinstance(polygon, list) else repr(polygon)
            raise BrokenAnnotation(f"a polygon of {length}, not x and y of at least three corners")
        for number in polygon:
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise BrokenAnnotation(f"a polygon with {number!r} for a coordinate")
            if not -near <= number <= 2 * near:
                raise BrokenAnnotation(f"a polygon with a corner at {number}, far outside the image {tuple(size)}")


def _check_runs(rle: dict, size: tuple[int, int]) -> None:
    """Refuse run lengths, as a list of numbers, that are not those of an image of this size."""
    if list(rle["size"]) != list(size):
        raise BrokenAnnotation(f"run lengths of size {tuple(rle['size'])}, the image has {tuple(size)}")
    counts = rle["counts"]
    if not isinstance(counts, list) or any(type(run) is not int or run < 0 for run in counts):
        raise BrokenAnnotation("run lengths that are neither a text nor a list of numbers from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise BrokenAnnotation(f"its run lengths add up to {sum(counts)}, the image has {size[0] * size[1]} pixels")


# The label maps of a json


def _make_maps(part: _Set, ids: list[str], classes: Classes) -> dict[str, Map]:
    """Paint the label maps of these images that are not there yet; what painting told of all of them, by id."""
    report = _read_report(part.cache)
    missing = [id for id in ids if id not in report or not (report[id].broken or (part.cache / f"{id}.png").is_file())]
    if missing:
        sizes, annotations, values = _read_instances(part.instances, set(missing), classes)
        saved = time.monotonic()
        try:
            for id in runs.progress(missing, what=f"label maps of {part.instances.name}"):
                report[id] = _make_map(part.cache / f"{id}.png", annotations[id], sizes.get(id), values, classes)
                if time.monotonic() - saved > SAVED_EVERY:
                    _write_report(part.cache, report)
                    saved = time.monotonic()
        finally:  # what is painted is painted, even if somebody stops it
            _write_report(part.cache, report)
    return {id: report[id] for id in ids}


def _make_map(path: Path, annotations: list, size: tuple[int, int] | None, values: dict, classes: Classes) -> Map:
    try:
        if size is None:
            raise BrokenAnnotation("the json does not list this image")
        if any(type(length) is not int or length < 1 for length in size):
            raise BrokenAnnotation(f"the json gives it the size {size}")
        label, told = paint(annotations, size, values)
    except BrokenAnnotation as error:
        path.unlink(missing_ok=True)
        return Map(pixels=0, broken=str(error))
    files.write_label(path, label, classes.colours)
    return told


def _read_report(cache: Path) -> dict[str, Map]:
    path = cache / REPORT
    if not path.is_file():
        return {}
    return {id: Map(**told | {"classes": tuple(told["classes"])}) for id, told in files.read_json(path).items()}


def _write_report(cache: Path, report: dict[str, Map]) -> None:
    """Write the report, with what another process may have added to it meanwhile."""
    told = {id: asdict(told) for id, told in (_read_report(cache) | report).items()}
    with files.atomic(cache / REPORT) as partial:
        partial.write_text(json.dumps(told, sort_keys=True), encoding="utf-8")


def _read_instances(path: Path, ids: set[str], classes: Classes) -> tuple[dict, dict, dict]:
    """Sizes and annotations of these images, by id, and the value in a label map of each category id."""
    content = files.read_json(path)
    try:
        stems = {image["id"]: PurePosixPath(image["file_name"]).stem for image in content["images"]}
        sizes = {stems[image["id"]]: (image["height"], image["width"]) for image in content["images"]}
        annotations: dict[str, list] = {id: [] for id in ids}
        for annotation in content["annotations"]:
            stem = stems.get(annotation["image_id"])
            if stem in annotations:
                annotations[stem].append(annotation)
        names = {name: index for index, name in enumerate(classes.names) if index != classes.background}
        values = {
            category["id"]: names[category["name"]] for category in content["categories"] if category["name"] in names
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not COCO's json of instances ({error!r})") from error
    return sizes, annotations, values


# Which photos there are, and which are in which split


def _parts(root: Path, year: int, seed: int, cache: Path) -> tuple[_Set, _Set]:
    """Train and val: two folders and two json files, or one of each, of which a quarter is drawn for val."""
    for folder in (root, root / "images"):
        if (folder / f"train{year}").is_dir():
            jsons = [root / "annotations" / f"instances_{part}{year}.json" for part in ("train", "val")]
            parts = [folder / f"{part}{year}" for part in ("train", "val")]
            missing = [path for path in (*jsons, *parts) if not path.exists()]
            if missing:
                raise FileNotFoundError(f"{root} has no {missing[0].relative_to(root)}, which belongs to train{year}")
            train, val = (
                _Set(path, _photos(part), _cache_of(path, cache)) for path, part in zip(jsons, parts, strict=True)
            )
            return train, val
    if not ((root / "images").is_dir() and (root / "instances.json").is_file()):
        raise FileNotFoundError(
            f"{root} has neither train{year}, val{year} and annotations, nor images and instances.json: root must be "
            f"the folder of COCO"
        )
    photos = _photos(root / "images")
    val_ids, train_ids = datasets.draw(list(photos), len(photos) // 4, seed)
    folder = _cache_of(root / "instances.json", cache)
    train, val = (_Set(root / "instances.json", {id: photos[id] for id in ids}, folder) for ids in (train_ids, val_ids))
    return train, val


def _photos(folder: Path) -> dict[str, Path]:
    photos = {path.stem: path for path in sorted(folder.glob("*.jpg")) if path.name[0] != "."}
    if not photos:
        raise FileNotFoundError(f"{folder} holds no photo whose name ends in .jpg")
    return photos


def _cache_of(instances: Path, cache: Path) -> Path:
    """Folder of the label maps: another json, other classes or another rule never take these for theirs."""
    classes = files.read_classes(CLASS_FILE)  # whose words may change: they are not in the maps
    painted = f"{files.sha256(instances)} {classes.names} {classes.colours} {RULE}"
    key = hashlib.sha256(painted.encode()).hexdigest()
    return cache / f"{instances.stem}-{key[:12]}"


def _unimatch_lists(splits: Path, train: _Set, val: _Set) -> tuple[list[str], list[str]]:
    """Labelled and val ids of a folder of lists."""
    listed = next((path for path in (splits / "val.txt", splits.parent / "val.txt") if path.is_file()), None)
    if listed is None or not (splits / "labeled.txt").is_file():
        raise FileNotFoundError(f"{splits} has no labeled.txt, or neither it nor {splits.parent} has val.txt")
    labelled, measured = _read_list(splits / "labeled.txt"), _read_list(listed)
    datasets.check_disjoint(labelled=labelled, val=measured)
    for path, ids, part in ((splits / "labeled.txt", labelled, train), (listed, measured, val)):
        missing = [id for id in ids if id not in part.photos]
        if missing:
            where = next(iter(part.photos.values())).parent
            raise FileNotFoundError(f"{len(missing)} images of {path} are not in {where}, e.g. {missing[0]}")
    return labelled, measured


def _read_list(path: Path) -> list[str]:
    """Ids of a list with a photo and its label map in each line, or an id alone."""
    ids = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = [PurePosixPath(word) for word in line.split()]
        if not words:
            continue
        if len(words) > 2 or len({word.stem for word in words}) != 1:
            raise ValueError(f"{path}, line {number}: {line!r} is not train2017/ID.jpg masks/ID.png, with one ID")
        ids.append(files.check_stem(words[0].stem))
    return ids


def _sample(part: _Set, id: str, told: Map | None, num_classes: int) -> Sample:
    """A photo, with its label map if painting told of one."""
    path, label = part.photos[id], part.cache / f"{id}.png"
    if told is None or not told.broken:
        return datasets.photo(path, label if told else None, num_classes=num_classes)

    def read_truth() -> np.ndarray:
        raise BrokenAnnotation(f"{id} has no label map: {told.broken} ({part.instances})")

    return datasets.Photo(files.check_stem(id), lambda: files.read_image(path), read_truth, path=path, truth_path=label)


def _warn(maps: dict[str, Map], ids: dict[str, list[str]], classes: Classes, truth_of: tuple[str, ...]) -> None:
    """Warn of label maps that could not be painted, and of classes that the labelled images do not show."""
    broken = [id for id, told in maps.items() if told.broken]
    if broken:
        warnings.warn(
            f"{len(broken)} images have no label map, e.g. {broken[0]}: {maps[broken[0]].broken}; "
            f"`python -m plg_utils.datasets coco` lists them",
            stacklevel=3,
        )
    if "labelled" in truth_of and ids["labelled"]:
        absent = datasets.absent(classes, {value for id in ids["labelled"] for value in maps[id].classes})
        if absent:
            count = len(ids["labelled"])
            warnings.warn(f"the {count} labelled images show no pixel of {', '.join(absent)}", stacklevel=3)
