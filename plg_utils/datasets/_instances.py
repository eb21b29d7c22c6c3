"""Label maps from objects, such as those of a COCO json: painted once and kept in a folder.

COCO gives single objects, which overlap, and no label maps, so each work paints its own. **This rule is our choice**,
and mIoU on these maps need not equal mIoU on those of other works:

- A pixel of no object is background, or IGNORE if the classes have no background.
- Objects are painted from the largest to the smallest, counted in pixels, so that small objects are on top. Of two
  equally large objects the later annotation is on top. labelme's shapes are painted in their own order (`in_order`).
- A crowd (`iscrowd`) is painted in the same order with IGNORE: its single objects have no outlines. Some tools flag
  each mask of a brush so (CVAT). Where they show it, these masks are objects: each annotation of the json is flagged,
  or the flagged one has CVAT's `attributes`.
"""

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

import numpy as np
from pycocotools import mask as coco

from plg_utils import class_files, datasets, files, run_lengths, store
from plg_utils.records import IGNORE, Classes, Sample

# Part of the name of the folder of maps
RULE = "3: by descending area in pixels, then as listed; crowd is void, unless a tool flags what a brush drew"
LOOKED_AT = 30  # annotations of a json whose outlines are compared with their boxes
VOID = ("void", "ignore", "unlabelled", "unlabeled")  # names for IGNORE in other tools
LARGEST = 2**28  # pixels of an image; a larger size is a mistake, or an attempt to fill the memory
FORM = (
    "it needs the lists images (id, file_name, height, width), annotations (image_id, category_id, segmentation) "
    "and categories (id, name)"
)


class BrokenAnnotation(ValueError):
    """An annotation that cannot be painted."""


@dataclass(frozen=True)
class Instances:
    """The content of a json, or of other files of objects (`_formats`), by the ids of images (`stem_of`)."""

    path: Path  # of the json, or of a folder
    sizes: dict[str, tuple[int, int] | None]  # (H, W); None: that of the photo
    annotations: dict[str, list]  # COCO's; a segmentation may also be a function from (H, W) to a mask (H, W) bool
    categories: dict[int | str, str]  # names
    strays: int = 0  # annotations of images that the json does not list
    repeated: frozenset[str] = frozenset()  # ids of more than one image
    sources: tuple[Path, ...] = ()  # what was read, if it is not `path` alone
    in_order: bool = False  # a later annotation is on top, whatever its size


def read(path: Path) -> Instances:
    """Read a COCO json of instances. Segmentations are checked later, when they are painted (`paint`)."""
    # pycocotools' COCO would refuse the whole file for one annotation without id, and prints.
    content = files.read_json(path, "correct it, or export it again")
    with files.reading(path, "COCO's json of instances", FORM):
        images, categories, annotations = (content[part] for part in ("images", "categories", "annotations"))
        for part, rows in (("images", images), ("categories", categories), ("annotations", annotations)):
            if not isinstance(rows, list):
                raise TypeError(f"{part} is not a list")
            if part != "annotations" and (twice := files.repeated(_text(row["id"]) for row in rows)):
                raise ValueError(f"{part} have the id {twice[0]} more than once")
        names = {category["id"]: category["name"] for category in categories}
        if strange := [id for id, name in names.items() if not isinstance(name, str)]:
            raise TypeError(f"the name of category {strange[0]!r} is not text")
        stems = {_text(image["id"]): stem_of(image["file_name"]) for image in images}
        sizes = {stems[_text(image["id"])]: _size(image) for image in images}
        by_image, known = defaultdict(list), {_text(id): id for id in names}
        for annotation in annotations:
            if annotation.get("iscrowd") in (None, "0", "1"):
                annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
            category = annotation.get("category_id")
            annotation["category_id"] = known.get(_text(category), category)
            by_image[stems.get(_text(annotation["image_id"]))].append(annotation)
    flagged = [annotation for annotation in annotations if annotation["iscrowd"] == 1]
    brushed = [one for one in flagged if len(flagged) == len(annotations) or "attributes" in one]
    for annotation in brushed:
        annotation["iscrowd"] = 0
    # If an image has nothing but clicks, it is not known what it shows, and `paint` refuses it.
    drawn = {stem: [row for row in by_image[stem] if not _is_click(row)] or by_image[stem] for stem in sizes}
    things = sum(plain(names.get(annotation["category_id"], "")) not in VOID for annotation in brushed)
    clicks = sum(len(by_image[stem]) - len(rows) for stem, rows in drawn.items())
    sizeless = sum(size is None for size in sizes.values())
    looked_at = annotations[:LOOKED_AT]  # the program that wrote one wrong wrote all wrong
    doubts = Counter(filter(None, map(_doubt, looked_at)))
    if things:
        problem = f"{path}: {things} masks are flagged as crowds (iscrowd 1), as CVAT flags what a brush drew"
        remedy = "give a real crowd the category void"
        warnings.warn(f"{problem}. They count as objects of their categories; {remedy}", stacklevel=1)
    if clicks:
        warnings.warn(f"{path}: {clicks} annotations without outline and area are left out", stacklevel=1)
    if sizeless:
        warnings.warn(f"{path}: {sizeless} images have no height and width: those of the photos count", stacklevel=1)
    for doubt, count in doubts.items():
        warnings.warn(f"{path}: {count} of {len(looked_at)} annotations {doubt}", stacklevel=1)
    return Instances(path, sizes, drawn, names, len(by_image[None]), frozenset(files.repeated(stems.values())))


def stem_of(place: str) -> str:
    """Id of the image that a tool names by a path or an address, such as those of Label Studio's /data/."""
    if place.startswith(("http://", "https://", "file://", "/data/")):
        place = unquote(place.partition("?d=")[2] or place.partition("?")[0])
    path = PureWindowsPath(place)  # a path of Windows may have both kinds of slash
    return path.name if path.suffix[1:].isdigit() else path.stem  # v1.2 has no suffix


def plain(name: str) -> str:
    """A name of a category as it is compared."""
    return files.same_name(re.sub(r"[\s_-]+", " ", name).strip())


def values_of(categories: dict, classes: Classes) -> dict[int | str, int | None]:
    """The value in a label map of each category (id: name): its class's, IGNORE for a name of void, None if no one's.

    A category means the class of that name, else the one with a name or word that reads the same (`plain`).
    """
    words: dict[str, list[int]] = defaultdict(list)
    for value, (name, own) in enumerate(zip(classes.names, classes.words, strict=True)):
        for word in {plain(word) for word in (name, *own)}:
            words[word].append(value)
    words |= {name: [IGNORE] for name in VOID if name not in words}
    values: dict[int | str, int | None] = {}
    for id, name in categories.items():
        fitting = [classes.names.index(name)] if name in classes.names else words.get(plain(name), [None])
        if len(fitting) > 1:
            both = " and of ".join(classes.names[value] for value in fitting)
            raise ValueError(f"the category {name!r} could be a word of {both}: give it to one of them")
        values[id] = fitting[0]
    return values


def is_nothing(name: str, classes: Classes) -> bool:
    """Whether a category means the background of classes that have none: its pixels stay unpainted."""
    return classes.background is None and class_files.is_background(name)


def _text(id: object) -> str:
    """An id as text: tools write 1, 1.0 or "1" for the same."""
    return str(int(id) if isinstance(id, float) and id.is_integer() else id).strip()


def _size(image: dict) -> tuple | None:
    """(H, W) as a json gives it, None if it gives none."""
    size = tuple(int(_text(side)) if _text(side).isdigit() else side for side in map(image.get, ("height", "width")))
    return None if {None, "", 0, -1}.issuperset(size) else size


def _doubt(annotation: dict) -> str:
    """What is doubtful about the outline of an annotation, though it can be painted; "" if nothing is."""
    outline, box = annotation.get("segmentation"), annotation.get("bbox")
    try:
        if isinstance(outline, dict):
            size, each = tuple(outline["size"]), [outline]
        else:
            size = tuple(int(max(number for part in outline for number in part[start::2])) + 2 for start in (1, 0))
            each = [[part] for part in outline]
        if len(each) * size[0] * size[1] > LARGEST // 2:
            return ""
        parts = [decode(part, size) for part in each]
        mask = np.logical_or.reduce(parts)
        left, top, *ends = (max(0, round(number)) for number in box or (0, 0, *mask.shape[::-1]))
        boxes = (left + ends[0], top + ends[1]), ends  # width and height, or, of some tools, the other corner
        inside = (mask[top:bottom, left:right].sum() for right, bottom in boxes)
        misplaced = min(ends) > 0 and all(2 * pixels < mask.sum() for pixels in inside)
    except (KeyError, TypeError, ValueError, OverflowError):
        return ""  # `paint` says what is wrong
    if misplaced:
        problem = "are not where their bbox says. Are x and y swapped, are outlines or boxes of another size"
        return f"{problem}, or do run lengths go row by row, not column by column?"
    inner = any(one.any() and not (one & ~two).any() for one, two in permutations(parts, 2))
    return "have a polygon inside of another one: COCO fills it. If it is a hole, write run lengths" if inner else ""


def _is_click(annotation: dict) -> bool:
    """Whether an annotation has neither an outline nor a box with an area: somebody clicked by mistake."""
    outline, box = annotation.get("segmentation"), annotation.get("bbox")
    flat = not isinstance(box, list) or len(box) != 4 or 0 in box[2:]
    if isinstance(outline, dict) and isinstance(outline.get("counts"), list):
        return len(outline["counts"]) == 1  # a mask without pixel
    if not isinstance(outline, list) or not flat:
        return False
    pairs = (zip(one[::2], one[1::2], strict=False) if isinstance(one, list) else (0, 1) for one in outline)
    return len({str(pair) for own in pairs for pair in own}) < 2  # of all parts: a list of corners [x, y] is no click


def paint(
    annotations: list[dict], size: tuple[int, int], values: dict, nothing: int = 0, in_order: bool = False
) -> np.ndarray:
    """Label map (H, W) uint8 of the annotations of an image, by the rule above.

    annotations: as in the json; size: (H, W) of the image; values: category id -> value in the label map; nothing: the
        value of a pixel without annotation
    """
    layers = []
    for annotation in annotations:
        try:
            if annotation.get("iscrowd", 0) not in (0, 1):
                raise ValueError(f"iscrowd is {annotation['iscrowd']!r}, not 0 or 1")
            if annotation["category_id"] not in values:
                raise ValueError(f"its category {annotation['category_id']!r} stands for no class")
            value = IGNORE if annotation.get("iscrowd", 0) else values[annotation["category_id"]]
            segmentation = annotation.get("segmentation", [])
            where = np.flatnonzero(decode(segmentation, size))
            if len(where) < 2 and isinstance(segmentation, list):
                _check_place(segmentation, size)
            layers.append((value, where))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            why = error if isinstance(error, ValueError) else f"it is not COCO's form ({error!r})"
            name = annotation.get("id") if isinstance(annotation, dict) else files.shown(annotation)
            raise BrokenAnnotation(f"annotation {name}: {why}") from error
    label = np.full(size[0] * size[1], nothing, dtype=np.uint8)  # flat: an annotation is the positions of its pixels
    for value, where in sorted(layers, key=lambda layer: -len(layer[1]) * (not in_order)):  # equals keep their order
        label[where] = value
    return label.reshape(size)


def decode(segmentation: list | dict | Callable, size: tuple[int, int]) -> np.ndarray:
    """Mask (H, W) bool of a segmentation: a list of polygons, run lengths as text or as a list, or a function of size.

    pycocotools does not check its input, and wrong input crashes the process: all is checked here, before.
    """
    height, width = size
    if callable(segmentation):
        try:
            return segmentation(size)
        except Exception as error:  # of a damaged PNG, PIL raises nearly anything
            raise ValueError(str(error) or type(error).__name__) from error
    if isinstance(segmentation, list):
        areas = [part for part in segmentation if not (isinstance(part, list) and len(part) in (2, 4))]
        segmentation = areas or segmentation  # a point or a line beside a polygon has no pixel
        _check_polygons(segmentation, size)
        rle = coco.merge(coco.frPyObjects(segmentation, height, width))
        return np.ascontiguousarray(coco.decode(rle), dtype=bool)  # it comes column by column
    if not isinstance(segmentation, dict):
        problem = f"its segmentation is {files.shown(segmentation)}"
        raise ValueError(f"{problem}, not of COCO's form: polygons or run lengths")
    if list(segmentation["size"]) != list(size):
        raise ValueError(f"run lengths of size {files.shown(tuple(segmentation['size']))}, the image has {size}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        masks = run_lengths.decode([counts])
        run_lengths.check(masks, size)
    else:  # zeros are allowed here
        if not isinstance(counts, list) or any(type(run) is not int or run < 0 for run in counts):
            raise ValueError("run lengths that are neither a text nor a list of numbers from 0 on")
        if sum(counts) != height * width:
            raise ValueError(f"its run lengths add up to {sum(counts)}, the image has {height * width} pixels")
        masks = [np.array(counts)]
    return np.ascontiguousarray(run_lengths.dense(masks, size)[0])


def _check_polygons(polygons: list, size: tuple[int, int]) -> None:
    """Refuse what is not a list of polygons [x, y, x, y, x, y, ...] in or near the image."""
    if not polygons:
        raise ValueError("it has no polygon; a box alone is no outline")
    near = max(size)  # pixels that a corner may be outside: pycocotools walks along each side, pixel by pixel
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"the polygon {files.shown(polygon)} is not a list of x and y of three corners or more")
        for number in polygon:
            if type(number) not in (int, float) or not -near <= number <= 2 * near:  # nan is not in between
                where = f"not a number in or near the image {size}"
                raise ValueError(f"a polygon has the coordinate {files.shown(number)}, {where}")


def _check_place(polygons: list, size: tuple[int, int]) -> None:
    """Refuse polygons that cover hardly a pixel because their numbers are no pixels of this image."""
    x, y = ([number for polygon in polygons for number in polygon[start::2]] for start in (0, 1))
    if max(x) <= 0 or min(x) >= size[1] or max(y) <= 0 or min(y) >= size[0]:
        raise ValueError(f"all of it is outside of the image {size}: is it of the photo at another size?")
    if 0 <= min(x + y) and max(x + y) <= 1 and not all(number in (0, 1) for number in x + y):
        raise ValueError("its corners are from 0 to 1: multiply x by the width of the image, and y by the height")


# The label maps of a json


def make_maps(
    instances: Path,
    maps: Path,
    ids: Iterable[str],
    classes: Classes,
    read_it: Callable[[], tuple[Instances, dict[int, int]]],
    *more: object,
) -> tuple[dict[str, str], Callable[[Path], Sample]]:
    """Paint the label maps of these images that are missing.

    maps: folder of all label maps; the subfolder's name changes with the json, the classes, the rule, and `more`. It
        holds ID.png, or ID.txt with the reason why there is no label map
    read_it: returns the content of the json and the value of each category; only called if a map is missing
    returns: this reason for each id, "" for an image with label map; and what makes the sample of a photo, with its
        label map if that was asked for
    """
    digest = files.sha256(instances) if instances.is_file() else ""
    painted = f"{digest} {classes.names} {classes.colours} {RULE}"  # words do not change the maps
    key = hashlib.sha256(" ".join([painted, *map(str, more)]).encode()).hexdigest()
    cache = maps / f"{instances.stem}-{key[:12]}"
    ids, present = list(ids), {path.name for path in cache.glob("*")}
    if missing := [id for id in ids if not {f"{id}.png", f"{id}.txt"} & present]:
        content, values = read_it()
        for id in store.progress(missing, what=f"label maps of {instances.name}"):
            try:
                size, rows = _checked_size(content, id), content.annotations.get(id, [])
                label = paint(rows, size, values, classes.nothing, content.in_order)
                files.write_label(cache / f"{id}.png", label, classes.colours)
            except BrokenAnnotation as error:
                files.write_text(cache / f"{id}.txt", str(error))
    reasons = {path.stem: path.read_text(encoding="utf-8") for path in cache.glob("*.txt")}
    broken = {id: reasons.get(id, "") for id in ids}

    def sample(photo: Path) -> Sample:
        label = cache / f"{photo.stem}.png" if photo.stem in broken else None
        of_photo = datasets.photo(photo, label, classes=classes, origin=instances)
        reason = broken.get(photo.stem)

        def read_truth() -> np.ndarray:
            remedy = "correct it there, or remove it, or leave the image out"
            raise BrokenAnnotation(f"{photo.stem} has no label map: {reason} ({instances}); {remedy}")

        return replace(of_photo, read_truth=read_truth) if reason else of_photo

    return broken, sample


def _checked_size(content: Instances, id: str) -> tuple[int, int]:
    size = content.sizes.get(id)
    if size is None or id in content.repeated:
        listed = "more than one image" if id in content.repeated else "no image, or none with a size,"
        raise BrokenAnnotation(f"the json lists {listed} of this name")
    if any(type(length) is not int or length < 1 for length in size) or size[0] * size[1] > LARGEST:
        raise BrokenAnnotation(f"the json gives it the size {files.shown(size)}")
    return size


def warn_of_broken(broken: dict[str, str], name: str) -> None:
    """Warn of the images of the data set `name` whose label maps could not be painted."""
    reasons = [f"{id}: {reason}" for id, reason in broken.items() if reason]
    if reasons:
        more = f"`plg check {name}` lists more of them"
        warnings.warn(f"{len(reasons)} images have no label map, e.g. {reasons[0]}; {more}", stacklevel=1)
