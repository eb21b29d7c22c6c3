"""Label maps from a json in COCO's form: read, painted once, kept in a folder, with a report of what painting told.

COCO gives single objects, which overlap, and no label maps, so each work paints its own. **What follows is our
choice**, and mIoU on these maps need not equal mIoU on those of others:

- Every pixel of no object is the background (IGNORE where the classes have no background).
- Objects are painted from the largest to the smallest, counted in pixels, so that small things lie on top; of two
  equally large ones the later annotation lies on top.
- A crowd (`iscrowd`) is painted in the same order, with IGNORE: somebody is there, and nobody has said where.
- Pixels that more than one annotation claims are counted (`Map`), those apart where the values differ.
"""

import hashlib
import json
import reprlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from pycocotools import mask as coco

from plg_utils import datasets, files, run_lengths, store
from plg_utils.records import IGNORE, Classes, Sample

RULE = "1: by descending area in pixels, then as listed; crowd is void"  # part of the cache's name
REPORT = "maps.json"  # of the cache: id -> Map
SAVED_EVERY = 60.0  # seconds between two writings of the report; what came after the last is painted again
FORM = """it needs the lists images (id, file_name, height, width), annotations (image_id, category_id, segmentation) \
and categories (id, name)"""
INFINITE = (float("inf"), float("-inf"))  # math.isfinite() fails on whole numbers that no float can hold
LARGEST = 2**28  # pixels of an image; what is larger is a mistake, or wants to fill the memory


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
class Instances:
    """What a json says, by the ids of images, which are the stems of their file names."""

    path: Path
    sizes: dict[str, tuple[int, int]]  # (H, W)
    annotations: dict[str, list]
    categories: dict[int, str]  # names
    strays: int = 0  # annotations of images that it does not list
    repeated: frozenset[str] = frozenset()  # ids that more than one of its images has


def read(path: Path) -> Instances:
    """Read a json of instances."""
    content = files.read_json(path, "mend it, or export it again")
    try:
        for part in ("images", "annotations", "categories"):
            if not isinstance(content[part], list):
                raise TypeError(f"{part} is no list")
            ids = [item.get("id") for item in content[part]] if part != "annotations" else []
            twice = [id for id, count in Counter(ids).items() if count > 1]
            if twice:
                raise KeyError(f"{part} have the id {twice[0]!r} more than once")
        nameless = [item["id"] for item in content["categories"] if not isinstance(item["name"], str)]
        if nameless:
            raise TypeError(f"the name of category {nameless[0]!r} is no text")
        # Tools of Windows write images\\a.jpg; a path of Windows may have both kinds of slash.
        stems = {image["id"]: PureWindowsPath(image["file_name"]).stem for image in content["images"]}
        sizes = {stems[image["id"]]: (image["height"], image["width"]) for image in content["images"]}
        annotations: dict[str, list] = {stem: [] for stem in sizes}
        strays = 0
        for annotation in content["annotations"]:
            stem = stems.get(annotation["image_id"])
            if stem is None:
                strays += 1
            else:
                annotations[stem].append(annotation)
        categories = {category["id"]: category["name"] for category in content["categories"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not COCO's json of instances ({error!r}); {FORM}") from error
    seen: set[str] = set()
    repeated = frozenset(stem for stem in stems.values() if stem in seen or seen.add(stem))
    return Instances(path, sizes, annotations, categories, strays, repeated)


def paint(
    annotations: list[dict], size: tuple[int, int], values: dict[int, int], nothing: int = 0
) -> tuple[np.ndarray, Map]:
    """Paint the annotations of an image into a label map, by the rule above.

    annotations: as in the json; size: (H, W) of the image; values: category id -> value in the label map; nothing: the
        value where there is no annotation
    returns: (H, W) uint8, and what was counted on the way
    """
    layers = []
    for annotation in annotations:
        try:
            if annotation.get("iscrowd", 0) not in (0, 1):
                raise BrokenAnnotation(f"iscrowd is {annotation['iscrowd']!r}, not 0 or 1")
            crowd = bool(annotation.get("iscrowd", 0))
            if annotation["category_id"] not in values:
                raise BrokenAnnotation(f"its category {annotation['category_id']!r} stands for no class")
            mask = decode(annotation["segmentation"], size)
        except (BrokenAnnotation, KeyError, TypeError, AttributeError) as error:
            why = error if isinstance(error, BrokenAnnotation) else f"it is not COCO's form ({error!r})"
            name = annotation.get("id") if isinstance(annotation, dict) else repr(annotation)
            raise BrokenAnnotation(f"annotation {name}: {why}") from error
        layers.append((IGNORE if crowd else values[annotation["category_id"]], np.flatnonzero(mask)))
    label = np.full(size[0] * size[1], nothing, dtype=np.uint8)  # flat: an annotation is the positions of its pixels
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

    pycocotools trusts what it gets: wild polygons crash the process, so they are checked.
    """
    height, width = size
    if isinstance(segmentation, list):
        _check_polygons(segmentation, size)
        rle = coco.merge(coco.frPyObjects(segmentation, height, width))
        return np.ascontiguousarray(coco.decode(rle), dtype=bool)  # it comes column by column
    if list(segmentation["size"]) != list(size):
        raise BrokenAnnotation(f"run lengths of size {tuple(segmentation['size'])}, the image has {tuple(size)}")
    if isinstance(segmentation["counts"], str):
        try:
            masks = run_lengths.decode([segmentation["counts"]])
            run_lengths.check(masks, size)
        except run_lengths.BrokenRunLengths as error:
            raise BrokenAnnotation(f"run lengths: {error}") from error
    else:
        _check_runs(segmentation["counts"], size)
        masks = [np.array(segmentation["counts"])]
    return np.ascontiguousarray(run_lengths.dense(masks, size)[0])


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
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or number in INFINITE
                or number != number
            ):
                raise BrokenAnnotation(f"a polygon with {number!r} for a coordinate")
            if not -near <= number <= 2 * near:
                raise BrokenAnnotation(
                    f"a polygon with a corner at {reprlib.repr(number)}, far outside the image {tuple(size)}"
                )


def _check_runs(counts: list, size: tuple[int, int]) -> None:
    """Refuse run lengths, as a list of numbers, that are not those of an image of this size."""
    if not isinstance(counts, list) or any(type(run) is not int or run < 0 for run in counts):
        raise BrokenAnnotation("run lengths that are neither a text nor a list of numbers from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise BrokenAnnotation(f"its run lengths add up to {sum(counts)}, the image has {size[0] * size[1]} pixels")


# The label maps of a json


@dataclass(frozen=True)
class Painted:
    """Label maps of a json, each in a file, and what painting told of those that were asked for."""

    instances: Path
    cache: Path  # folder of the label maps
    maps: dict[str, Map]  # by id

    def sample(self, photo: Path, num_classes: int) -> Sample:
        """Make the sample of a photo, with its label map if that was asked for."""
        told, label = self.maps.get(photo.stem), self.cache / f"{photo.stem}.png"
        if told is None or not told.broken:
            return datasets.photo(photo, label if told else None, num_classes=num_classes, origin=self.instances)

        def read_truth() -> np.ndarray:
            remedy = "mend it in the json, or remove it, or leave the image out"
            raise BrokenAnnotation(f"{photo.stem} has no label map: {told.broken} ({self.instances}); {remedy}")

        stem = files.check_stem(photo.stem)
        return datasets.Photo(stem, lambda: datasets.read_photo(photo), read_truth, path=photo, truth_path=label)


def cache_of(instances: Path, cache: Path, classes: Classes, *more: object) -> Path:
    """Folder of the label maps: another json, other classes, another rule or anything more never take these."""
    painted = f"{files.sha256(instances)} {classes.names} {classes.colours} {RULE}"  # the words are not in the maps
    key = hashlib.sha256(" ".join([painted, *map(str, more)]).encode()).hexdigest()
    return cache / f"{instances.stem}-{key[:12]}"


def make_maps(
    instances: Path,
    cache: Path,
    ids: Iterable[str],
    classes: Classes,
    read_it: Callable[[], tuple[Instances, dict[int, int]]],
) -> Painted:
    """Paint the label maps of these images that are not there yet.

    read_it: gives the json's content and the value of each category; called only if something is to be painted
    """
    ids = list(ids)
    report = _read_report(cache)
    missing = [id for id in ids if id not in report or not (report[id].broken or (cache / f"{id}.png").is_file())]
    if missing:
        content, values = read_it()
        saved = time.monotonic()
        try:
            for id in store.progress(missing, what=f"label maps of {instances.name}"):
                report[id] = _make_map(cache / f"{id}.png", content, id, values, classes)
                if time.monotonic() - saved > SAVED_EVERY:
                    _write_report(cache, report)
                    saved = time.monotonic()
        finally:  # what is painted is painted, even if somebody stops it
            _write_report(cache, report)
    return Painted(instances, cache, {id: report[id] for id in ids})


def remarks(maps: Iterable[Map]) -> list[tuple[str, str, int, str]]:
    """Rows for the validator: how much of these label maps more than one annotation claims."""
    maps = [told for told in maps if not told.broken]
    pixels = max(1, sum(told.pixels for told in maps))
    overlap, contested = (sum(getattr(told, field) for told in maps) for field in ("overlap", "contested"))
    return [
        ("note", "annotations painted", sum(told.annotations for told in maps), f"on {len(maps)} images"),
        ("note", "crowds, painted as void", sum(told.crowds for told in maps), ""),
        ("note", "pixels of two or more annotations", overlap, f"{overlap / pixels:.2%} of all"),
        ("note", "of these, of different classes", contested, f"{contested / pixels:.2%} of all; the smaller wins"),
    ]


def warn_of_broken(maps: dict[str, Map], name: str) -> None:
    """Warn of the images of the data set `name` whose label maps could not be painted."""
    broken = [id for id, told in maps.items() if told.broken]
    if broken:
        warnings.warn(
            f"{len(broken)} images have no label map, e.g. {broken[0]}: {maps[broken[0]].broken}; "
            f"`python -m plg_utils.datasets {name}` lists them",
            stacklevel=4,
        )


def _make_map(path: Path, content: Instances, id: str, values: dict[int, int], classes: Classes) -> Map:
    size = content.sizes.get(id)
    try:
        if size is None:
            raise BrokenAnnotation("the json does not list this image")
        if id in content.repeated:
            raise BrokenAnnotation("the json lists more than one image of this name")
        if any(type(length) is not int or length < 1 for length in size) or size[0] * size[1] > LARGEST:
            raise BrokenAnnotation(f"the json gives it the size {size}")
        nothing = IGNORE if classes.background is None else classes.background
        label, told = paint(content.annotations[id], size, values, nothing)
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
