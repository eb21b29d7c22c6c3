"""Label maps for other people's tools, and corrected ones back.

    python -m plg_utils.review RUN --least 20 --labels labels_enhanced --to DIR    # what is trusted least
    python -m plg_utils.review --read DIR --to LABELS                              # what a person has made of it

A folder that `write` makes holds the same labels in up to three forms:

    images/ID.jpg, images/ID.json    the photos, upright, and beside each its polygons as labelme keeps them
    coco.json                        COCO's form, with run lengths
    labels/ID.png                    palette PNG, values and colours as in a run
    classes.yaml, names.txt          the class file; the names alone, as labelme --labels takes them
    index.json, index.csv            trust of each image, the least first, and SHA-256 of its labels in each form

**A region** is a part of a label map that has one value and hangs together by sides of its pixels (4-connectivity).
In labelme and COCO each is an annotation. What no annotation covers is background, as it is where `labels:` of the data
set `folder` reads a json. Pixels of no class (IGNORE: void, or in no mask) are regions called "void". In COCO they are
marked `iscrowd`, which its own scores leave out and `folder` paints as void, so that it may read that file directly. In
a data set without background what no annotation covers is void.

**Order.** An outline has no holes. labelme's shapes stand from the largest outline to the smallest, and a later one
covers an earlier: what lies in a hole comes back, background too, which has shapes there and nowhere else. COCO's
regions do not overlap; if a person draws some that do, the smaller one is on top, the rule of datasets/_instances.py.

**Exactness.** PNG and run lengths give back the very same pixels. So do outlines, which run along the borders of pixels
(the corner of the image is 0, 0) and are filled by pycocotools; `simplify` leaves out corners as long as the IoU of
each region stays at LEAST_IOU or above. labelme's own scripts also count the pixels under the line, and draw regions
wider by up to a pixel.
"""

import argparse
import base64
import binascii
import hashlib
import io
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from pycocotools import mask as coco

from plg_utils import class_files, datasets, devices, encoders, files, notebooks, run_lengths, store, trust
from plg_utils.datasets import _instances, folder
from plg_utils.records import IGNORE, Classes, Masks, Sample

FORMS = ("png", "coco", "labelme")
LEAST_IOU = 0.98  # of each region, if its outline is simplified
VOID = ("void", "ignore", "unlabelled")  # what IGNORE is called in other tools: the first that is no class
LABELME = "5.5.0"  # version of labelme whose files ours are like; it opens those of others too
WITNESSES = ("labels_zero_shot", "labels_sepl", "labels_boxes")  # made in different ways, see notebook 06
AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # x, y of a step along a border: east, south, west, north


# Regions and their outlines


@dataclass(frozen=True, eq=False)
class Region:
    """A 4-connected part of a label map that has one value."""

    value: int
    outline: np.ndarray  # (M, 2) x, y of its corners, clockwise, on the borders of pixels; holes are not cut out


def regions(label: np.ndarray) -> list[Region]:
    """Find the regions of a label map, from the largest outline to the smallest.

    label: (H, W) uint8
    returns: painted in this order they give the label map again. Two outlines never cross; if one lies in another it
        encloses fewer pixels, so it comes later
    """
    height, width = label.shape
    stride = width + 2
    values = np.pad(label.astype(np.int16), 1, constant_values=-1).ravel()
    inside = (np.arange(1, height + 1)[:, None] * stride + np.arange(1, width + 1)).ravel()  # positions of the pixels
    ahead = [x + y * stride for x, y in AHEAD]
    # Each side of a pixel where the value changes is walked with the pixel on the right hand. It is known by its
    # direction and its pixel; where it ends, the walk turns right, goes on or turns left.
    following = np.full(4 * values.size, -1)
    for direction in range(4):
        to_the_left = ahead[direction - 1]
        pixel = inside[values[inside + to_the_left] != values[inside]]
        onward, aslant = pixel + ahead[direction], pixel + ahead[direction] + to_the_left
        turns_right = values[onward] != values[pixel]
        goes_on = values[aslant] != values[pixel]
        straight = np.where(goes_on, direction * values.size + onward, (direction - 1) % 4 * values.size + aslant)
        turned = (direction + 1) % 4 * values.size + pixel
        following[direction * values.size + pixel] = np.where(turns_right, turned, straight)

    upper = np.flatnonzero(following[: values.size] >= 0).tolist()  # each walk comes along the upper side of a pixel
    following = following.tolist()
    found, walked = [], set()
    for first in upper:
        if first in walked:
            continue
        walk = [first]
        while (side := following[walk[-1]]) != first:
            walk.append(side)
        walked.update(walk)
        direction, pixel = np.divmod(walk, values.size)
        y, x = np.divmod(pixel, stride)
        corners = np.stack([x - 1 + np.isin(direction, (1, 2)), y - 1 + np.isin(direction, (2, 3))], axis=1)
        outline = corners[direction != np.roll(direction, 1)]  # (M, 2)
        area = _area(outline)
        if area > 0:  # the walk around a hole goes the other way
            found.append((area, Region(int(values[first]), outline)))
    return [region for _, region in sorted(found, key=lambda pair: -pair[0])]


def numbered(found: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """Paint regions, a later one over an earlier: (H, W) int32, the position of each in the list, -1 where none is."""
    numbers = np.full(size, -1, dtype=np.int32)
    for number, region in enumerate(found):
        where, inside = _filled(region.outline, size)
        numbers[where][inside] = number
    return numbers


def simplified(
    found: Sequence[Region], size: tuple[int, int], tolerance: float, least_iou: float = LEAST_IOU
) -> tuple[list[Region], np.ndarray]:
    """Leave out corners of the outlines of all regions of an image (Douglas and Peucker), but not too many.

    tolerance: how far, in pixels, a border may move; less where the IoU of a region would fall below `least_iou`
    returns: the regions in their order, and the IoU (N,) of each with what it was, once all are painted
    """
    true, count = numbered(found, size), len(found)
    moves, finer = np.full(count, float(tolerance)), np.ones(count, dtype=bool)
    coarse = list(found)
    while True:
        for index in np.flatnonzero(finer):
            coarse[index] = Region(found[index].value, _thinned(found[index].outline, moves[index]))
        drawn = numbered(coarse, size)
        same = np.bincount(true[true == drawn], minlength=count)
        either = np.bincount(true.ravel(), minlength=count) + np.bincount(drawn[drawn >= 0], minlength=count) - same
        finer = same < least_iou * either
        if not finer.any():
            return coarse, same / either
        # Where it is exact already, those are to blame who cover its pixels, or leave it theirs.
        exact = finer & (moves == 0)
        wrong = (true != drawn) & (exact[true] | (exact[drawn] & (drawn >= 0)))
        finer[true[wrong]] = True
        finer[drawn[wrong & (drawn >= 0)]] = True
        finer &= moves > 0
        moves[finer] = np.where(moves[finer] > 0.5, 0.75 * moves[finer], 0)  # half a pixel changes no pixel


def _thinned(outline: np.ndarray, tolerance: float) -> np.ndarray:
    """The outline without corners that lie within the tolerance of the line between those that stay."""
    corners = np.concatenate([outline, outline[:1]]).astype(float)
    while tolerance > 0:
        far = int(((outline - outline[0]) ** 2).sum(axis=1).argmax())
        kept, parts = {0, far}, [(0, far), (far, len(outline))]
        while parts:
            first, last = parts.pop()
            line, between = corners[last] - corners[first], corners[first + 1 : last] - corners[first]
            if len(between) == 0:
                continue
            along = (between @ line / max(line @ line, 1e-9)).clip(0, 1)
            away = ((between - along[:, None] * line) ** 2).sum(axis=1)
            if away.max() > tolerance**2:
                middle = first + 1 + int(away.argmax())
                kept.add(middle)
                parts += [(first, middle), (middle, last)]
        thin = outline[sorted(kept)]
        if len(thin) > 2 and _crossing(thin) is None:
            return thin
        tolerance = 0.75 * tolerance if tolerance > 0.5 else 0
    return outline


def _area(outline: np.ndarray) -> float:
    """Area of a polygon, above 0 if its corners go clockwise on the screen."""
    (x, y), (next_x, next_y) = outline.T, np.roll(outline, -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


def _filled(outline: np.ndarray, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """Pixels of a polygon, to the pixel for one that runs along their borders: the box around it, and (h, w) bool."""
    left, top = np.floor(outline.min(axis=0)).astype(int).clip(0, np.array(size[::-1]) - 1)
    right, bottom = np.ceil(outline.max(axis=0)).astype(int).clip((left + 1, top + 1), size[::-1])
    corners = [(outline - (left, top)).astype(float).ravel().tolist()]
    rle = coco.frPyObjects(corners, bottom - top, right - left)[0]
    runs_of_it = run_lengths.decode([rle["counts"].decode("ascii")])
    return (slice(top, bottom), slice(left, right)), run_lengths.dense(runs_of_it, (bottom - top, right - left))[0]


def _crossing(corners: np.ndarray) -> np.ndarray | None:
    """Where a polygon (M, 2) crosses itself: x, y of a corner nearby, or None; it may touch itself."""
    start, end = corners.astype(float), np.roll(corners, -1, axis=0).astype(float)

    def side(of_start, of_end, point):
        line, away = of_end - of_start, point - of_start
        return np.sign(line[..., 0] * away[..., 1] - line[..., 1] * away[..., 0])

    for index in range(len(corners) - 2):
        others = slice(index + 2, len(corners) - (index == 0))  # neighbours share a corner
        one, other = start[index], end[index]
        apart = side(one, other, start[others]) * side(one, other, end[others]) < 0
        if (apart & (side(start[others], end[others], one) * side(start[others], end[others], other) < 0)).any():
            return corners[index]
    return None


# The three forms


def void_name(classes: Classes) -> str:
    """What pixels of no class are called in other tools: "void", unless that is a class."""
    free = [name for name in VOID if folder.class_of(name, classes) is None]
    if not free:
        raise ValueError(f"the classes are called {', '.join(VOID)}, so that no name is left for pixels of no class")
    return free[0]


def labelme(
    label: np.ndarray, classes: Classes, photo: str, *, simplify: float = 0.0
) -> tuple[dict, np.ndarray, np.ndarray]:
    """The content of a file of labelme's for a label map.

    label: (H, W) uint8; photo: its file name, as seen from the json; simplify: tolerance in pixels, see `simplified`
    returns: the content, the label map (H, W) uint8 that it gives when it is read, and the IoU (N,) of each region
    """
    nothing, names = _nothing(classes), _names(classes)
    found = regions(label)
    found, iou = simplified(found, label.shape, simplify) if simplify else (found, np.ones(len(found)))
    drawn = np.full(label.shape, nothing, dtype=np.uint8)
    shapes = []
    for region in found:
        where, inside = _filled(region.outline, label.shape)
        if region.value == nothing and (drawn[where][inside] == nothing).all():
            continue  # it lies in no hole
        drawn[where][inside] = region.value
        shape = {"label": names[region.value], "points": region.outline, "shape_type": "polygon"}
        shapes.append(shape | {"group_id": None, "description": "", "flags": {}, "mask": None})
    content = {"version": LABELME, "flags": {}, "shapes": shapes, "imagePath": photo, "imageData": None}
    content |= {"imageHeight": label.shape[0], "imageWidth": label.shape[1]}
    return files.plain(content), drawn, iou


def coco_json(labels: dict[str, np.ndarray], classes: Classes) -> dict:
    """The content of a json in COCO's form for label maps.

    labels: file name of the photo -> (H, W) uint8. Categories count from 1, the background left out, void comes last
    """
    nothing, names = _nothing(classes), _names(classes)
    number = {value: index for index, value in enumerate([*classes.foreground, IGNORE], start=1)}
    images, annotations = [], []
    for photo, label in labels.items():
        height, width = label.shape
        images.append({"id": len(images) + 1, "file_name": photo, "height": height, "width": width})
        found = regions(label)
        numbers = numbered(found, label.shape)
        for index, region in enumerate(found):
            if region.value == nothing:
                continue
            mask = Masks.from_dense((numbers == index)[None])
            annotations.append(
                {"id": len(annotations) + 1, "image_id": len(images), "category_id": number[region.value],
                 "segmentation": mask.rles[0], "area": mask.areas()[0], "bbox": mask.boxes()[0],
                 "iscrowd": int(region.value == IGNORE)}
            )  # fmt: skip
    categories = [{"id": id, "name": names[value], "supercategory": ""} for value, id in number.items()]
    info = {"description": "label maps of plg_utils, a region an annotation"}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    return files.plain(content)


def _nothing(classes: Classes) -> int:
    """The value of a pixel that no annotation covers."""
    return IGNORE if classes.background is None else classes.background


def _names(classes: Classes) -> dict[int, str]:
    """Names of the values of a label map."""
    return dict(enumerate(classes.names)) | {IGNORE: void_name(classes)}


def _palette(classes: Classes) -> np.ndarray:
    """Colours of the values of a label map, as `files.write_label` writes them: (256, 3) uint8."""
    palette = files.voc_palette().copy()
    palette[: classes.num_classes] = classes.colours
    return palette


# Writing


def write(
    target: str | Path,
    samples: Sequence[Sample],
    label_of: Callable[[Sample], np.ndarray],
    classes: Classes,
    *,
    trusts: dict[str, dict[str, float]] | None = None,
    forms: Sequence[str] = FORMS,
    simplify: float = 0.0,
    source: str = "",
) -> dict:
    """Write images and their labels into a new folder, for a person to correct; see the top of this file.

    label_of: gives the label map (H, W) uint8 of a sample; trusts: numbers for each id, kept in the index
    simplify: how far, in pixels, polygons may leave the borders of regions; see `simplified`
    source: what the labels are, for the index
    returns: the index
    """
    target = Path(target)
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        raise ValueError(f"there is no form {', '.join(map(repr, unknown))}: right are {', '.join(FORMS)}")
    if not 0 <= simplify <= 16:
        raise ValueError(f"simplify={simplify} is a tolerance in pixels, from 0 (exact) to 16")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not an empty folder, and may hold a person's work: name a new one")
    if not samples:
        raise ValueError("there is no image to write")
    void_name(classes)  # refuses what cannot be written before anything is

    images, maps = [], {}
    for sample in store.progress(samples, what="images for review"):
        image, label = sample.image(), label_of(sample)
        _check(label, image.shape[:2], classes, f"the label map of {sample.id}")
        photo = _write_photo(target / "images", sample, image)
        maps[f"images/{photo}"] = label
        entry: dict[str, Any] = {"id": sample.id, "photo": f"images/{photo}", "size": label.shape}
        entry |= {"trust": (trusts or {}).get(sample.id, {}), "sha256": dict.fromkeys(forms, _sha256(label))}
        if "png" in forms:
            files.write_label(target / "labels" / f"{sample.id}.png", label, classes.colours)
        if "labelme" in forms:
            content, drawn, iou = labelme(label, classes, photo, simplify=simplify)
            files.write_json(target / "images" / f"{sample.id}.json", content)
            entry["sha256"]["labelme"] = _sha256(drawn)
            entry["polygon_iou"] = iou.min()
        images.append(entry)
    if "coco" in forms:
        files.write_json(target / "coco.json", coco_json(maps, classes))
    with files.atomic(target / "classes.yaml") as partial:
        partial.write_text(_class_file(classes), encoding="utf-8")
    with files.atomic(target / "names.txt") as partial:
        partial.write_text("".join(f"{name}\n" for name in _names(classes).values()), encoding="utf-8")
    rows = [
        {"id": entry["id"], "photo": entry["photo"], **entry["trust"]}
        | {f"sha256_{form}": entry["sha256"][form] for form in forms}
        for entry in images
    ]
    with files.atomic(target / "index.csv") as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    index = files.plain({"version": 1, "labels": source, "forms": forms, "simplify": simplify, "images": images})
    files.write_json(target / "index.json", index)
    return index


def _write_photo(target: Path, sample: Sample, image: np.ndarray) -> str:
    """Write a photo as every tool sees it alike, copied where that is so already; returns its name."""
    path = getattr(sample, "path", None)
    if path is not None:
        with Image.open(path) as file:
            alike = file.format in ("JPEG", "PNG") and path.suffix.lower() in folder.SUFFIXES
            alike = alike and file.mode in ("L", "RGB") and file.getexif().get(files.ORIENTATION, 1) == 1
        if alike:
            name = f"{sample.id}{path.suffix}"
            with files.atomic(target / name) as partial:
                shutil.copyfile(path, partial)
            return name
    files.write_image(target / f"{sample.id}.png", image)
    return f"{sample.id}.png"


def _class_file(classes: Classes) -> str:
    """Text of the class file that gives these classes."""
    rows = [
        {"name": name, "words": list(words), "colour": list(colour)}
        for name, words, colour in zip(classes.names, classes.words, classes.colours, strict=True)
    ]
    content: dict[str, Any] = {"version": 1, "templates": list(classes.templates)}
    if classes.background is not None:
        content["background"] = rows.pop(classes.background)["words"]
    return yaml.safe_dump(content | {"classes": rows}, sort_keys=False, allow_unicode=True)


def _sha256(label: np.ndarray) -> str:
    """SHA-256 of the pixels of a label map, row by row: saved again without a change it stays the same."""
    return hashlib.sha256(label.tobytes()).hexdigest()


def _check(label: np.ndarray, size: tuple[int, int], classes: Classes, what: str) -> None:
    """Refuse a label map of another size than the photo, or with values that are no class."""
    if label.shape != tuple(size):
        raise ValueError(f"{what} is {label.shape}, the photo {tuple(size)} (height, width): they must agree")
    unknown = [int(value) for value in np.unique(label) if value >= classes.num_classes and value != IGNORE]
    if unknown:
        raise ValueError(f"{what} holds the values {unknown}, not classes 0 to {classes.num_classes - 1} or {IGNORE}")


# Reading


@dataclass(frozen=True, eq=False)
class Reviewed:
    """The labels of an image after a person had it."""

    id: str
    label: np.ndarray  # (H, W) uint8, of the photo's size
    changed: tuple[str, ...]  # forms in which it is another one than was written; empty if nobody has changed it
    trust: dict[str, float]  # as it was written


def read(source: str | Path, *, forms: Sequence[str] | None = None) -> tuple[list[Reviewed], Classes]:
    """Read a folder that `write` made, after a person had it: all of it is checked, and nothing is written.

    forms: which to read; None for all that were written. An image may be changed in one of them
    returns: the images in the index's order, and their classes. A ValueError names each file that is not in order
    """
    source = Path(source)
    index, classes = _index(source), class_files.read(source / "classes.yaml")
    absent = [form for form in forms or () if form not in index["forms"]]
    if absent:
        raise ValueError(f"{source} was written as {', '.join(index['forms'])}, not as {', '.join(absent)}")
    forms = [form for form in index["forms"] if not forms or form in forms]
    entries = {entry["id"]: entry for entry in index["images"]}
    problems: list[str] = []
    for entry in entries.values():
        _tried(problems, _check_photo, source / entry["photo"], entry["size"])
    read_form = {"png": _read_pngs, "coco": _read_coco, "labelme": _read_labelmes}
    maps = {form: read_form[form](source, entries, classes, problems) for form in forms}
    reviewed = []
    for id, entry in entries.items():
        found = {form: maps[form][id] for form in forms if id in maps[form]}
        changed = tuple(form for form in found if _sha256(found[form]) != entry["sha256"][form])
        if len({_sha256(found[form]) for form in changed}) > 1:
            both = " and as ".join(changed)
            problems.append(f"{id} was changed as {both}, not in the same way: read one of them, --form {changed[0]}")
        elif found:
            reviewed.append(Reviewed(id, found[(*changed, *found)[0]], changed, entry["trust"]))
    if problems:
        raise ValueError(f"{len(problems)} things to mend, and nothing was written:\n" + "\n".join(problems))
    return reviewed, classes


def save(target: str | Path, reviewed: Sequence[Reviewed], classes: Classes, *, replace: bool = False) -> None:
    """Write label maps, as `labels` of the data set `folder` reads them.

    replace: whether a label map of another content may be replaced
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file: name a folder for the label maps")
    if not replace:
        others = [each.id for each in reviewed if not _holds(target / f"{each.id}.png", each.label)]
        if others:
            raise FileExistsError(
                f"{target} holds other label maps of {len(others)} of these images, e.g. {others[0]}.png: name a new "
                "folder, or add --replace to lose what is there"
            )
    for each in reviewed:
        files.write_label(target / f"{each.id}.png", each.label, classes.colours)


def _holds(path: Path, label: np.ndarray) -> bool:
    """Whether a file is not there, or holds this label map."""
    try:
        return np.array_equal(files.read_label(path), label)
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def _index(source: Path) -> dict:
    path = source / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{source} has no index.json: give the folder that was named by --to when it was made")
    try:
        index = files.read_json(path)
        if index["version"] != 1:
            raise ValueError(f"its version is {index['version']!r}, not 1")
        for entry in index["images"]:
            entry["size"] = tuple(entry["size"])
            for form in index["forms"]:
                entry["sha256"][form]
            files.check_stem(entry["id"])
            entry["photo"], entry["trust"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not as it was written ({error!r}); take it from a copy of the folder") from error
    return index


def _tried(problems: list[str], step: Callable, *arguments: Any) -> Any:
    """What a step gives; what it raises is noted instead."""
    try:
        return step(*arguments)
    except (OSError, ValueError) as error:
        problems.append(str(error))
        return None


def _check_photo(path: Path, size: tuple[int, int]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put the photo back")
    if files.image_size(path) != size:
        raise ValueError(
            f"{path} is {files.image_size(path)} (height, width), and was written as {size}: put the photo back, since "
            "labels of another size do not fit the data set's"
        )


def _value_of(name: Any, classes: Classes, what: str) -> int:
    """Value of a region that a person has called so."""
    if not isinstance(name, str):
        raise ValueError(f"{what} has {name!r} for a name, not a text: give it the name of a class")
    if name.strip().casefold() == void_name(classes):
        return IGNORE
    value = folder.class_of(name, classes)
    if value is None:
        names = list(_names(classes).values())
        near = get_close_matches(name.casefold(), names, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"{what} is called {name!r}, which is no class; {hint}the names are {', '.join(names)[:300]}")
    return value


def _check_corners(corners: Any, size: tuple[int, int], what: str) -> np.ndarray:
    """Refuse corners that are no polygon in the image; returns them, (M, 2) float64."""
    height, width = size
    try:
        points = np.array(corners, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{what} has no corners, or some that are not pairs of numbers: draw it again, or remove it")
    if len(np.unique(points, axis=0)) < 3:
        raise ValueError(f"{what} has {len(np.unique(points, axis=0))} different corners, not three or more: remove it")
    # Some tools let the pen run half a pixel over the border; nan is nowhere.
    within = ((points >= -1) & (points <= (width + 1, height + 1))).all(axis=1)
    if not within.all():
        x, y = points[~within][0]
        raise ValueError(
            f"{what} has a corner at {x:g}, {y:g}, outside the image of {width} x {height}: move it inside"
        )
    crossing = _crossing(points)
    if crossing is not None:
        x, y = crossing
        raise ValueError(f"{what} crosses itself near {x:g}, {y:g}: move a corner, or draw two polygons")
    return points


# PNG


def _read_pngs(source: Path, entries: dict[str, dict], classes: Classes, problems: list[str]) -> dict[str, np.ndarray]:
    maps = {}
    for id, entry in entries.items():
        label = _tried(problems, read_png, source / "labels" / f"{id}.png", classes, entry["size"])
        maps |= {} if label is None else {id: label}
    return maps


def read_png(path: str | Path, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    """Read a label map that somebody's program has saved, grey by its values, in colours by the classes' colours.

    A program may have put a palette into another order, or have written RGB; colours tell the classes all the same
    returns: (H, W) uint8 of this size
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: put it back, or read another form (--form)")
    try:
        with Image.open(path) as image:
            image.load()
    except files.BROKEN_IMAGE as error:
        raise ValueError(f"{path} is not a readable PNG ({error}): save it again") from error
    if image.format != "PNG" or image.mode not in ("L", "P", "RGB", "RGBA"):
        raise ValueError(f"{path} is {image.format} with mode {image.mode}: save it as PNG, with a palette or as RGB")
    palette = _palette(classes)
    label = np.array(image)
    if image.mode == "P":
        own = np.zeros((256, 3), dtype=np.uint8)
        colours = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        own[: len(colours)] = colours
        used = np.unique(label)
        if (own[used] != palette[used]).any():
            label = own[label]
    if label.ndim == 3:
        if label.shape[2] == 4 and (label[..., 3] < 255).any():
            raise ValueError(f"{path} has pixels that are transparent: fill them with a class's colour, or with void's")
        label = _of_colours(label[..., :3], palette, classes, path)
    _check(label, size, classes, str(path))
    return label


def _of_colours(image: np.ndarray, palette: np.ndarray, classes: Classes, path: str | Path) -> np.ndarray:
    """The label map (H, W) uint8 of an image (H, W, 3) uint8 in the classes' colours."""
    weights = np.array([1 << 16, 1 << 8, 1])
    values = np.array([*range(classes.num_classes), IGNORE], dtype=np.uint8)
    known, codes = palette[values] @ weights, image @ weights
    if len(np.unique(known)) < len(known):
        raise ValueError(f"{path} is in colours, of which two classes share one: save the numbers of the classes, grey")
    order = np.argsort(known)
    place = order[np.searchsorted(known[order], codes).clip(0, len(known) - 1)]
    strange = known[place] != codes
    if strange.any():
        y, x = np.argwhere(strange)[0]
        raise ValueError(
            f"{path} has {strange.sum()} pixels of a colour that is no class's, e.g. {tuple(image[y, x].tolist())} at "
            f"{x}, {y}: draw with the colours of classes.yaml, without smooth edges, or save the classes' numbers, grey"
        )
    return values[place]


# COCO


def _read_coco(source: Path, entries: dict[str, dict], classes: Classes, problems: list[str]) -> dict[str, np.ndarray]:
    path = source / "coco.json"
    if not path.is_file():
        problems.append(f"{path} is missing: save it under this name, or read another form (--form)")
        return {}
    content = _tried(problems, _instances.read, path)
    if content is None:
        return {}
    for id in sorted(content.sizes.keys() - entries.keys()):
        problems.append(f"{path} lists {id!r}, which was not written: take it out, or call it as it was")
    if content.strays:
        problems.append(f"{path} has {content.strays} annotations of images that it does not list: remove them")
    maps = {}
    for id, entry in entries.items():
        label = _tried(problems, _coco_map, content, id, entry["size"], classes)
        maps |= {} if label is None else {id: label}
    return maps


def _coco_map(content: _instances.Instances, id: str, size: tuple[int, int], classes: Classes) -> np.ndarray:
    """Paint the annotations of an image, by the rule of `_instances`."""
    if id not in content.sizes or id in content.repeated:
        how = "more than once" if id in content.repeated else "no more"
        raise ValueError(f"{content.path} lists {id} {how}: list it once, without annotations if it is all background")
    if content.sizes[id] != size:
        raise ValueError(f"{content.path} gives {id} the size {content.sizes[id]}, it is {size} (height, width)")
    values = {}
    for annotation in content.annotations[id]:
        what = f"{content.path}, {id}, annotation {annotation.get('id')!r}"
        category = annotation.get("category_id")
        if isinstance(category, int) and category in content.categories:
            values[category] = _value_of(content.categories[category], classes, what)
        if isinstance(annotation.get("segmentation"), list):
            for polygon in annotation["segmentation"]:
                if not isinstance(polygon, list) or len(polygon) % 2:
                    raise ValueError(f"{what} has a polygon that is no list of x, y, x, y, ...: draw it again")
                _check_corners(list(zip(polygon[::2], polygon[1::2], strict=True)), size, what)
    try:
        return _instances.paint(content.annotations[id], size, values, _nothing(classes))
    except _instances.BrokenAnnotation as error:
        raise ValueError(f"{content.path}, {id}, {error}: draw it again, or remove it") from error


# labelme


def _read_labelmes(
    source: Path, entries: dict[str, dict], classes: Classes, problems: list[str]
) -> dict[str, np.ndarray]:
    maps = {}
    for id, entry in entries.items():
        label = _tried(problems, read_labelme, source / "images" / f"{id}.json", classes, entry["size"])
        maps |= {} if label is None else {id: label}
    for path in sorted((source / "images").glob("*.json")):
        if path.stem not in entries:
            problems.append(f"{path} is of an image that was not written: move it away, or call it as it was")
    return maps


def read_labelme(path: str | Path, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    """Paint the shapes of a file of labelme's in their order, a later one over an earlier.

    returns: (H, W) uint8 of this size; what no shape covers is the background, or void if there is none
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: save the image in labelme, or read another form (--form)")
    content = files.read_json(path, "save it again in labelme")
    try:
        shapes, given = list(content["shapes"]), (content["imageHeight"], content["imageWidth"])
        found = [(shape["label"], shape.get("shape_type") or "polygon", shape["points"], shape) for shape in shapes]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of labelme's ({error!r}): save it again in labelme") from error
    if given != tuple(size):
        raise ValueError(f"{path} is of an image of {given}, the photo is {tuple(size)} (height, width): open this one")
    label = np.full(size, _nothing(classes), dtype=np.uint8)
    for number, (name, kind, points, shape) in enumerate(found, start=1):
        what = f"{path}, shape {number}"
        value = _value_of(name, classes, what)
        what = f"{what} ({name})"
        if kind == "mask":
            where, inside = _labelme_mask(shape, size, what)
        elif kind in ("polygon", "rectangle"):
            corners = _check_corners(_four(points, what) if kind == "rectangle" else points, size, what)
            where, inside = _filled(corners, size)
        else:
            raise ValueError(f"{what} is a {kind}, and not a polygon, a rectangle or a mask: draw one of these instead")
        if not inside.any():
            raise ValueError(f"{what} covers the centre of no pixel: remove it, or draw it larger")
        label[where][inside] = value
    return label


def _four(points: Any, what: str) -> list[list[float]]:
    """Corners of a rectangle of which two are given."""
    try:
        (left, top), (right, bottom) = points
    except (TypeError, ValueError):
        raise ValueError(f"{what} is a rectangle of other than two corners: draw it again") from None
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _labelme_mask(shape: dict, size: tuple[int, int], what: str) -> tuple[tuple[slice, slice], np.ndarray]:
    """Pixels of a shape that is a small PNG, with the place of its upper left pixel: the box, and (h, w) bool."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True))) as picture:
            inside = np.array(picture.convert("L")) > 0
        left, top = (round(number) for number in shape["points"][0])
    except (KeyError, IndexError, TypeError, binascii.Error, *files.BROKEN_IMAGE) as error:
        raise ValueError(f"{what} is a mask that cannot be read ({error!r}): draw it again") from error
    rows, columns = inside.shape
    if left < 0 or top < 0 or top + rows > size[0] or left + columns > size[1]:
        raise ValueError(f"{what} is a mask that reaches over the image's border: draw it again")
    return (slice(top, top + rows), slice(left, left + columns)), inside


# The images that are trusted least


def signals(run: Path, labels: str, samples: Sequence[Sample], classes: Classes, encode=None) -> dict[str, list[float]]:
    """What tells, without a truth, how far to trust the labels of each image: M numbers of each kind, more is better.

    run: folder of the run; labels: name of the folder of label maps in it; encode: gives the encoder if it is needed

    If the run has labels that were made in another way, it is the mean agreement with them: with those of notebook 06,
    else of zero-shot labels with enhanced ones, of enhanced ones with zero-shot labels. On a hundred scenes of the demo
    Spearman's correlation with the real mean IoU was 0.65 to 0.78. Else it is mask stability and CLIP's margin of
    notebook 02's files, which together came to 0.27 to 0.46.
    """
    others = [name for name in WITNESSES if name != labels and (run / name / "manifest.json").exists()]
    if not others and labels == WITNESSES[0] and (run / "labels_enhanced" / "manifest.json").exists():
        others = ["labels_enhanced"]
    num_classes, background = classes.num_classes, classes.background

    def stored(name: str, sample: Sample) -> np.ndarray:
        return files.read_label(run / name / f"{sample.id}.png", num_classes)

    if others and background is not None:
        found = []
        for sample in store.progress(samples, what="agreement"):
            maps = [stored(name, sample) for name in (labels, *others)]
            found.append(trust.agreement(maps, num_classes, background=background)[0, 1:].mean())
        return {"agreement": found}
    outside = -1 if background is None else background
    text_embeddings, owner = (tensor.cpu() for tensor in encode().class_embeddings(classes))
    found = {"mask stability": [], "CLIP margin": []}
    for sample in store.progress(samples, what="stability and margin"):
        masks, label = files.read_masks(run / "masks" / f"{sample.id}.json"), stored(labels, sample)
        found["mask stability"].append(trust.mean_over_things(masks.stability, masks, label, background=outside))
        if len(owner.unique()) > 1:  # one class and no word for the background: there is nothing to be nearer to
            embeddings = files.read_embeddings(run / "segments" / f"{sample.id}.safetensors")
            gaps = trust.margins(embeddings, text_embeddings, owner, background=background)
            found["CLIP margin"].append(trust.mean_over_things(gaps, masks, label, background=outside))
    return {name: values for name, values in found.items() if values}


def trusted(found: dict[str, Sequence[float]]) -> np.ndarray:
    """One number for each of M images from what `signals` gives: a single signal as it is, several by their ranks."""
    (first, *others) = found.values()
    return trust.combine(found) if others else np.asarray(first)


def least_trusted(
    run: Path, labels: str, samples: Sequence[Sample], classes: Classes, count: int, encode=None
) -> tuple[list[Sample], dict[str, dict[str, float]]]:
    """The images whose labels are trusted least, the least first, and for each id its signals and their sum, `trust`.

    run, labels, encode: as for `signals`
    """
    if count < 1:
        raise ValueError(f"{count} images are to be written; right is a number from 1 on")
    missing = [sample.id for sample in samples if not (run / labels / f"{sample.id}.png").exists()]
    if missing or not samples:
        kinds = [path.parent.name for path in sorted(run.glob("labels_*/manifest.json"))]
        raise FileNotFoundError(
            f"{run / labels} has no label map of {len(missing)} of the {len(samples)} unlabelled images: the run has "
            f"{', '.join(kinds) or 'no labels yet'}; if it was made with other parameters, name them by -p"
        )
    found = signals(run, labels, samples, classes, encode)
    values = trusted(found)
    chosen = np.argsort(values, kind="stable")[:count]
    numbers = {
        samples[k].id: {"trust": float(values[k])} | {name: float(each[k]) for name, each in found.items()}
        for k in chosen
    }
    return [samples[k] for k in chosen], numbers


# The commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or read, as the command line says; returns the exit status."""
    options = _parsed(arguments)
    try:
        _read_back(options) if options.read else _write_out(options)
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m plg_utils.review",
        description="Write the images whose labels are trusted least for other people's tools; read corrected ones.",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="whose labels are written, such as demo")
    parser.add_argument("--read", metavar="DIR", help="a folder that was written, to be read back")
    parser.add_argument("--to", required=True, metavar="DIR", help="where to write: a new folder; label maps, if read")
    parser.add_argument("--form", nargs="+", choices=FORMS, help="by default all three, or all that were written")
    out = parser.add_argument_group("to write")
    out.add_argument("--least", type=int, metavar="N", help="how many images, the least trusted first; by default 20")
    out.add_argument("--labels", metavar="STAGE", help="folder of the run; by default labels_zero_shot")
    out.add_argument("--simplify", type=float, metavar="PIXELS", help="how far polygons may move; by default 0: exact")
    out.add_argument(
        "-p", nargs=2, action="append", metavar=("NAME", "VALUE"), help="a parameter of the run (YAML), such as dataset"
    )
    back = parser.add_argument_group("to read")
    back.add_argument("--untouched", action="store_true", help="take those too that nobody has changed: all are right")
    back.add_argument("--replace", action="store_true", help="replace label maps of another content that are there")
    options = parser.parse_args(arguments)
    if bool(options.run) == bool(options.read):
        parser.error("name a RUN to write from, or a folder by --read")
    for name in ("least", "labels", "simplify", "p"):
        if options.read and getattr(options, name) is not None:
            parser.error(f"{'-p' if name == 'p' else f'--{name}'} is for writing, and --read reads")
    if options.run and (options.untouched or options.replace):
        parser.error("--untouched and --replace are for --read")
    return options


def _write_out(options: argparse.Namespace) -> None:
    """Write the least trusted images of a run."""
    run, labels = store.run_folder(options.run), options.labels or WITNESSES[0]
    if not run.is_dir():
        raise FileNotFoundError(f"there is no {run}: run notebooks/run.py {options.run} first")
    values = parameters(run, dict(options.p or []))
    data = datasets.load(
        values["dataset"], labelled=values["labelled"], seed=values["seed"], **values["dataset_options"]
    )

    def encode() -> Any:
        return encoders.build(
            values["encoder"], device=str(devices.choose(values["device"])), **values["encoder_options"]
        )

    count = 20 if options.least is None else options.least
    chosen, trusts = least_trusted(run, labels, data.unlabelled, data.classes, count, encode)
    index = write(
        options.to, chosen, lambda sample: files.read_label(run / labels / f"{sample.id}.png"), data.classes,
        trusts=trusts, forms=options.form or FORMS, simplify=options.simplify or 0.0, source=f"{options.run}/{labels}",
    )  # fmt: skip
    kinds = [name for name in trusts[chosen[0].id] if name != "trust"]
    ends = [trusts[sample.id]["trust"] for sample in (chosen[0], chosen[-1])]
    print(
        f"{len(chosen)} of {len(data.unlabelled)} images with their {labels} in {options.to}, the least trusted first "
        f"({', '.join(kinds)}: {ends[0]:.2f} to {ends[1]:.2f})"
    )
    if "labelme" in index["forms"]:
        worst = min(entry["polygon_iou"] for entry in index["images"])
        print(f"polygons: IoU of each region with its label map {worst:.3f} or more")
        print(f"open them: labelme {options.to}/images --labels {options.to}/names.txt --nodata")
    print(f"and then:  python -m plg_utils.review --read {options.to} --to LABELS")


def parameters(run: Path, changes: dict[str, str]) -> dict[str, Any]:
    """Parameters with which notebook 02 has made a run: those of its executed copy, else the notebook's own.

    changes: name -> YAML
    """
    executed = run / "notebooks" / "02_zero_shot_labels.ipynb"
    notebook = executed if executed.is_file() else files.ROOT / "notebooks" / executed.name
    values = notebooks.defaults(notebook)
    values |= notebooks.assigned("\n".join(notebooks.tagged(notebook, "injected-parameters")))
    for name, text in changes.items():
        if name not in values:
            near = get_close_matches(name, values, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"there is no parameter {name!r}; {hint}there are {', '.join(values)}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"the value of {name} is not readable YAML: {error}") from error
        both = isinstance(value, dict) and isinstance(values[name], dict)
        values[name] = values[name] | value if both else value  # as in notebooks/run.py
    return values


def _read_back(options: argparse.Namespace) -> None:
    """Read corrected images, and write their label maps."""
    reviewed, classes = read(options.read, forms=options.form)
    changed = [each for each in reviewed if each.changed]
    taken = reviewed if options.untouched else changed
    how = Counter(form for each in changed for form in each.changed)
    told = f" ({', '.join(f'{form} {count}' for form, count in how.items())})" if how else ""
    print(f"{len(reviewed)} images, {len(changed)} changed{told}, {len(reviewed) - len(changed)} untouched")
    if not taken:
        raise ValueError(
            f"nobody has changed a label in {options.read}, so there is nothing to write; if you have looked at all "
            "of them and they are right, add --untouched"
        )
    save(options.to, taken, classes, replace=options.replace)
    for each in taken:
        print(f"  {each.id}  {', '.join(each.changed) or 'untouched'}")
    if len(taken) < len(reviewed):
        print("the untouched ones were left out; --untouched takes them too: then all count as looked at and right")
    print(
        f"{len(taken)} label maps in {options.to}; to learn from them:\n  python notebooks/run.py RUN "
        f"-p dataset folder -p data_root PHOTOS -p class_file {Path(options.read).absolute()}/classes.yaml "
        f"-p labelled {len(taken)} -p dataset_options '{{labels: {Path(options.to).absolute()}}}'"
    )


if __name__ == "__main__":
    sys.exit(main())
