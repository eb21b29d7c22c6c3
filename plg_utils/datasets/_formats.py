"""Labels in the forms of other tools: what reads each of them, and what `review` writes of label maps.

    png             a folder of label maps, palette PNG (read by `_maps`, or here with the palette of before)
    coco            a json with images, annotations and categories, as CVAT and Label Studio write it, too
    labelme         a folder with a json for each photo, or one such json
    yolo            data.yaml (names), and a labels/*.txt for each photo: a class and a polygon from 0 to 1 in each line
    label_studio    a json of tasks, not JSON-MIN: brushes as run lengths, polygons in percent
    cvat            the folder of "Segmentation mask 1.1", unpacked: labelmap.txt, SegmentationClass/*.png

All but label maps are read as objects (`_instances.Instances`). `read` recognises a form by what it holds; FORMS has a
writer and a reader of each. The segmentation of an object may be a function from the size (H, W) of its image to its
mask: what is costly is done when the label map is painted. A size of None is that of the photo.

Polygons of YOLO may be contours of OpenCV's findContours, as Ultralytics and supervision write them: they name the
pixels of the border, which belong to the region. They are known by this: multiplied by the size, all numbers of an
image have the same fraction, none is the last side, and the regions are gone round against the clock. Any other
polygon covers the pixels whose centre is inside of it, as in COCO.

Sources: ultralytics (data/utils.py, data/converter.py), label-studio-sdk (converter/brush.py), labelme
(_label_file.py), datumaro (plugins/data_formats/voc).
"""

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote
from xml.sax.saxutils import quoteattr

import numpy as np
import yaml
from PIL import Image, ImageDraw

from plg_utils import class_files, files
from plg_utils.datasets import _instances
from plg_utils.datasets._instances import Instances
from plg_utils.records import IGNORE, Classes, Masks
from plg_utils.regions import connected

KNOWN = (
    "right are a folder of label maps (PNG), a json of COCO or Label Studio, a folder of labelme's json, YOLO's "
    "data.yaml with labels/*.txt, or the unpacked folder of CVAT's Segmentation mask 1.1"
)
EXPORTED = ("index.json", "names.txt", "classes.yaml")  # what plg export writes into each folder
NAMES = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt")  # YOLO's files of names
IMAGES = "images"  # folder of the photos that plg export writes, beside labelme's json
AGAIN = "correct it, or export it again"
STEP = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # rows and columns: right, down, left, up
Maps = dict[str, np.ndarray]  # id: label map (H, W) uint8


# Reading: which form it is


def read(place: Path, *, has_maps: bool = False) -> Instances | None:
    """Read a file or a folder of labels; None for a folder of another kind, such as one of label maps.

    has_maps: whether the folder holds label maps of photos: then other files beside them do not count
    """
    if place.is_dir():
        return _read_folder(place, has_maps)
    suffix = place.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return read_yolo(place)
    if suffix != ".json":
        if not place.exists():
            return None
        unpack = "unpack it and name the folder; " if suffix in (".zip", ".gz", ".7z") else ""
        raise ValueError(f"{place} is no form of labels that is known: {unpack}{KNOWN}")
    content = files.read_json(place, AGAIN)
    keys, form = _keys_and_form(content)
    if form in ("labelme", "Label Studio"):
        return read_labelme(place) if form == "labelme" else read_label_studio(place)
    rows = content.get("annotations") if isinstance(content, dict) else None
    is_panoptic = isinstance(rows, list) and any(isinstance(row, dict) and "segments_info" in row for row in rows[:1])
    if is_panoptic or not form:
        kinds = {list: "a list", str: "a text"}
        held = f"with {files.shown([*keys])}" if keys else kinds.get(type(content), files.shown(content))
        held = "COCO's panoptic form" if is_panoptic else f"another form, {held}"
        remedy = "export objects (COCO's instances, or Label Studio's JSON, not JSON-MIN)"
        raise ValueError(f"{place} is a json of {held}: {remedy}; {KNOWN}")
    return _instances.read(place)


def _keys_and_form(content: Any) -> tuple[Set[str], str]:
    """Keys of the content of a json, or of the first in a list, and the tool whose labels it seems to be; "": none."""
    first = content[0] if isinstance(content, list) and content else content
    keys = (first if isinstance(first, dict) else {}).keys()
    if "shapes" in keys:
        return keys, "labelme"
    if "data" in keys and keys & {"annotations", "predictions", "completions"}:
        return keys, "Label Studio"
    # Label Studio writes a notes.json, with categories alone, beside YOLO's texts.
    return keys, "COCO" * (isinstance(content, dict) and bool(keys & {"images", "annotations"}))


def _read_folder(folder: Path, has_maps: bool) -> Instances | None:
    root = folder.parent if folder.name == "SegmentationClass" else folder
    if (root / "labelmap.txt").is_file() and (root / "SegmentationClass").is_dir():
        return read_cvat(root)
    inner = [path for path in _visible(folder.glob("*/*")) if path.suffix.lower() in (".png", ".json", ".txt")]
    whole = [path for path in inner if path.suffix.lower() == ".png" or path.name == "labelmap.txt"]
    exported = [place for place in (folder, folder.parent) if all((place / name).is_file() for name in EXPORTED)]
    remedy = f"plg export --read {exported[0]} --to LABELS makes label maps of it: name LABELS" if exported else ""
    if has_maps and exported and folder.name == IMAGES:
        raise ValueError(f"{folder} holds photos that plg export has written, and their labels: {remedy}")
    if has_maps:
        if deeper := sorted({path.parent.name for path in whole}):
            warnings.warn(f"{folder}: label maps in its folders {', '.join(deeper)} are not used", stacklevel=1)
        return None
    jsons = _visible(folder.glob("*.json"))
    likely, form = None, ""  # the first json of labelme, else one of another form; what is no label does not decide
    for path in jsons:
        if found := _keys_and_form(files.read_json(path, f"{AGAIN}, or move it away"))[1]:
            likely, form = path, found
        if found == "labelme":
            break
    names = next((path for name in NAMES if (path := folder / name).is_file()), None)
    if form == "labelme" and (names is None or names.suffix == ".txt"):
        return read_labelme(folder)
    texts = [path for path in _visible(folder.rglob("*.txt")) if path.name != class_files.NAMES]
    above = (path / name for path in list(folder.parents)[:2] for name in NAMES)
    listed = next((path for path in above if path.is_file()), None)
    beside = any(path.parent == folder for path in texts)  # then a json is a stray one
    if names or (texts and listed and not whole and (beside or not jsons)):
        if likely:
            warnings.warn(f"{likely} holds labels of {form}, and is not used: YOLO's texts count", stacklevel=1)
        return read_yolo(names) if names else read_yolo(listed, folder)
    if not jsons and _visible(folder.glob("*.[pP][nN][gG]")):
        return None
    shown = [(path.parent.name, path.name) for path in (whole or inner)[:1]]
    hint = "".join(f"its folder {parent} holds {name}: name that; " for parent, name in shown)
    if jsons:
        more = "".join(f", or its folder {parent}, which holds {name}" for parent, name in shown)
        first = (likely or jsons[0]).name
        hint = f"{first} is no json of labelme: name a single json itself, of COCO or Label Studio{more}; "
    elif texts and not whole:
        hint = f"for texts such as {texts[0].name} name YOLO's data.yaml, which says which class a number is; "
    held = {path.suffix for path in _visible(folder.glob("*.*")) if path.is_file()}
    held = f" but files {', '.join(sorted(held))}" if held else ""
    raise FileNotFoundError(f"{folder} itself holds no labels{held}; {f'{remedy}; ' if remedy else hint}{KNOWN}")


def _visible(paths: Iterator[Path]) -> list[Path]:
    return sorted(path for path in paths if path.name[0] != ".")


def _gathered(place: Path, images: list, categories: dict, sources: list[Path], **more: Any) -> Instances:
    """Instances of images (id, size, rows), of which none is lost if two have the same id."""
    annotations: dict[str, list] = {}
    for stem, _, rows in images:
        annotations.setdefault(stem, []).extend(rows)
    sizes, repeated = {stem: size for stem, size, _ in images}, frozenset(files.repeated(stem for stem, *_ in images))
    return Instances(place, sizes, annotations, categories, 0, repeated, tuple(sources), **more)


def _refuse(why: str, size: tuple[int, int]) -> np.ndarray:
    raise ValueError(why)


# Writing: regions, names and numbers


def regions(label: np.ndarray, classes: Classes) -> Iterator[tuple[int, np.ndarray]]:
    """Value and pixels (H, W) bool of each 4-connected region of a label map (H, W) uint8 that gets an annotation."""
    pixels = np.flatnonzero(label != classes.nothing)
    firsts = connected(label).ravel()[pixels]  # the first pixel of each one's region
    order = np.argsort(firsts, kind="stable")  # once: a look at the whole map for each region was 80 times slower
    begins = np.flatnonzero(np.diff(firsts[order], prepend=-1))
    for own in np.split(pixels[order], begins[1:]) if pixels.size else ():
        mask = np.zeros(label.shape, dtype=bool)
        mask.flat[own] = True
        yield int(label.flat[own[0]]), mask


def names_of(classes: Classes) -> dict[int, str]:
    """Names of the values of a label map, void the last."""
    values = _instances.values_of({name: name for name in _instances.VOID}, classes)
    void = next((name for name, value in values.items() if value == IGNORE), None)
    if void is None:
        raise ValueError(f"{', '.join(_instances.VOID)} are all classes: no name is left for void pixels. Rename one")
    return dict(enumerate(classes.names)) | {IGNORE: void}


def _ids(classes: Classes) -> dict[int, int]:
    """Numbers of categories of the values in a label map, from 1 on; void is the last."""
    return {value: id for id, value in enumerate([*classes.foreground, IGNORE], start=1)}


# PNG and COCO


def _write_png(target: Path, maps: Maps, classes: Classes) -> None:
    for id, label in maps.items():
        files.write_label(target / "labels" / f"{id}.png", label, classes.colours)


def read_png(path: Path, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    """The label map (H, W) uint8 of a PNG, grey or with the palette that it was written with."""
    label = files.read_label(path, classes.num_classes)
    with Image.open(path) as image:
        palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    expected = np.array([*classes.colours, *files.voc_palette()[classes.num_classes :]])
    used = np.unique(label[label < len(palette)])
    if (palette[used] != expected[used]).any():
        remedy = "save it with the palette unchanged, or as 8-bit grey with the numbers of the classes"
        raise ValueError(f"{path} has another palette than the classes: {remedy}")
    if label.shape != size:
        raise ValueError(f"{path} is of size {label.shape}, not {size} (height, width): save it at this size")
    return label


def coco_json(labels: Maps, classes: Classes) -> dict:
    """The content of a json in COCO's form for label maps.

    labels: file name of the photo -> (H, W) uint8. Categories count from 1, without background, and void is the last
    """
    names, images, annotations, ids = names_of(classes), [], [], _ids(classes)
    for photo, label in labels.items():
        images.append({"id": len(images) + 1, "file_name": photo, "height": label.shape[0], "width": label.shape[1]})
        for value, region in regions(label, classes):
            mask = Masks.from_dense(region[None])
            row = {"id": len(annotations) + 1, "image_id": len(images), "category_id": ids[value]}
            row |= {"segmentation": mask.rles[0], "area": mask.areas()[0], "bbox": mask.boxes()[0]}
            annotations.append(row | {"iscrowd": int(value == IGNORE)})
    categories = [{"id": id, "name": names[value], "supercategory": ""} for value, id in ids.items()]
    return files.plain({"images": images, "annotations": annotations, "categories": categories})


def _write_coco(target: Path, maps: Maps, classes: Classes) -> None:
    of_photos = {f"{IMAGES}/{id}.png": label for id, label in maps.items()}
    files.write_json(target / "coco.json", coco_json(of_photos, classes))


# labelme


def read_labelme(place: Path) -> Instances:
    """Read a json, or all of a folder; a later shape is on top of an earlier one, as labelme draws them."""
    remedy, images, others = "save the image again in labelme", [], []
    paths = [place] if place.suffix.lower() == ".json" else _visible(place.glob("*.json"))
    for path in paths:
        content = files.read_json(path, remedy)
        keys, form = _keys_and_form(content)
        if path != place and "shapes" not in keys:
            others.append(f"{path.name} ({form or 'no labels'})")
            continue
        with files.reading(path, "a file of labelme", remedy):
            size = content.get("imageHeight"), content.get("imageWidth")
            if None in size and content.get("imageData"):  # before version 3.16 the photo alone tells
                with Image.open(io.BytesIO(base64.b64decode(content["imageData"])), formats=files.FORMATS) as picture:
                    size = picture.height, picture.width
            if not all(isinstance(shape["label"], str) for shape in content["shapes"]):
                raise TypeError("a label is no text")
            rows = [
                {"id": number, "category_id": shape["label"], "segmentation": partial(labelme_mask, shape)}
                for number, shape in enumerate(content["shapes"], start=1)
            ]
            stem = _instances.stem_of(content.get("imagePath") or path.name)
        if files.same_name(stem) != files.same_name(path.stem):
            others = {files.same_name(other.stem) for other in path.parent.glob("*.json")}
            is_copy = files.same_name(stem) in others
            remedy = "another json has its name: rename or remove this one" if is_copy else "give both the same name"
            raise ValueError(f"{path} is of the photo {content['imagePath']}: {remedy}")
        images.append((path.stem, None if None in size else size, rows))
    others += [f"{path.stem}.txt (YOLO)" for path in paths if path != place and path.with_suffix(".txt").is_file()]
    if others:
        warnings.warn(f"{len(others)} files of {place} are not labelme's and not used, e.g. {others[0]}", stacklevel=1)
    kinds = [row["segmentation"].args[0].get("shape_type") for *_, rows in images for row in rows]
    names = {row["category_id"]: row["category_id"] for *_, rows in images for row in rows}
    if set(kinds) == {"rectangle"}:
        problem = f"all {len(kinds)} shapes of {place} are rectangles: each counts as an object that fills it"
        warnings.warn(f"{problem}. If they are boxes around objects, outline the objects", stacklevel=1)
    return _gathered(place, images, names, paths, in_order=True)


def labelme_json(label: np.ndarray, classes: Classes, photo: str) -> dict:
    """The content of a file of labelme for a label map (H, W) uint8; photo: its file name, as seen from the json."""
    names, shapes = names_of(classes), []
    for value, mask in regions(label, classes):
        picture, stream = Image.fromarray(mask.astype(np.uint8)), io.BytesIO()
        left, top, right, bottom = box = picture.getbbox()
        picture.crop(box).save(stream, "PNG")
        shape = {"label": names[value], "shape_type": "mask", "points": [[left, top], [right - 1, bottom - 1]]}
        shape["mask"] = base64.b64encode(stream.getvalue()).decode("ascii")
        shapes.append(shape | {"group_id": None, "description": "", "flags": {}})
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": photo, "imageData": None}
    return content | {"imageHeight": label.shape[0], "imageWidth": label.shape[1]}


def _write_labelme(target: Path, maps: Maps, classes: Classes) -> None:
    for id, label in maps.items():
        files.write_json(target / IMAGES / f"{id}.json", labelme_json(label, classes, f"{id}.png"))


def labelme_mask(shape: dict, size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) bool whose centre a shape of labelme covers."""
    kind, corners = shape.get("shape_type") or "polygon", np.array(shape["points"], dtype=np.float64).reshape(-1, 2)
    x, y = corners.T
    if not ((x >= -1) & (y >= -1) & (x <= size[1] + 1) & (y <= size[0] + 1)).all():  # false for nan
        raise ValueError(f"a corner is outside the image of {size[1]} x {size[0]}")
    if kind == "mask":  # a small PNG, and the position of its upper left pixel
        try:
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True)), formats=["PNG"]) as picture:
                part = np.array(picture.convert("L")) > 0
        except Exception as error:  # of a damaged PNG, PIL raises nearly anything
            raise ValueError("its mask is no PNG in base64, as labelme writes it") from error
        left, top = corners[0].round().astype(int)
        if left < 0 or top < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
            raise ValueError("a mask crosses the border of the image")
        inside = np.zeros(size, dtype=bool)
        inside[top : top + part.shape[0], left : left + part.shape[1]] = part
        return inside
    if kind == "circle":  # its centre, and a point on it
        (centre_x, centre_y), (edge_x, edge_y) = corners
        rows, columns = np.indices(size) + 0.5
        return np.hypot(columns - centre_x, rows - centre_y) <= np.hypot(edge_x - centre_x, edge_y - centre_y)
    if kind == "rectangle":
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)  # of two points, or of all four
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind not in ("polygon", "oriented_rectangle", "rotation"):
        raise ValueError(f"a {kind} has no area; right are polygons, rectangles, circles and masks")
    return _instances.decode([corners.ravel().tolist()], size)


# YOLO


def read_yolo(names: Path, labels: Path | None = None) -> Instances:
    """Read YOLO's polygons; names: data.yaml or classes.txt; labels: the folder of texts, by default near the names.

    Numbers of classes count from 0, in the order of the names. An empty text is an image without annotation.
    """
    content, listed = _yolo_names(names)
    root = names.parent  # Roboflow has train/labels, and some tools write each text beside its photo
    places = (root / "labels", "**/*.txt"), (root, "*/labels/*.txt"), (root, "*.txt")
    places += ((root / str(content.get("path") or "") / "labels", "**/*.txt"),)
    found = (place.glob(shape) for place, shape in ([(labels, "**/*.txt")] if labels else places))
    found = ([path for path in _visible(paths) if path.name not in NAMES] for paths in found)
    texts = next((texts for texts in found if texts), None)
    if not texts:
        raise FileNotFoundError(f"{labels or root} holds no text of labels: YOLO has a labels/NAME.txt for each photo")
    near = {root, root.parent if root.name == "labels" else root, *(path.parent for path in texts)}
    for other in sorted(place / name for place in near for name in NAMES if (place / name).is_file()):
        numbers = {}
        with suppress(ValueError):  # it is of something else
            numbers = {_instances.plain(name): number for number, name in enumerate(_yolo_names(other)[1])}
        if any(numbers.get(_instances.plain(name), number) != number for number, name in enumerate(listed)):
            raise ValueError(f"{names} and {other} number the classes otherwise: correct the wrong one, or remove it")
    images = [(path.stem, None, _yolo_rows(path)) for path in texts]
    return _gathered(names.parent, images, dict(enumerate(listed)), [names, *texts])


def _yolo_names(names: Path) -> tuple[dict, list[str]]:
    """The content of data.yaml, and the names of the classes; classes.txt has no more than these."""
    if names.suffix.lower() == ".txt":
        return {}, [line.strip() for line in files.read_lines(names) if line.strip()]
    content = files.read_yaml(names)
    if not isinstance(content, dict) or "names" not in content:
        raise ValueError(f"{names} has no `names`: it should be YOLO's data.yaml, with the name of each class")
    if "kpt_shape" in content:
        raise ValueError(f"{names} has `kpt_shape`, so its labels are boxes and points of poses: no outlines")
    with files.reading(names, "YOLO's data.yaml", AGAIN):
        return content, [str(name) for name in class_files.yolo_names(content)]


def _yolo_rows(path: Path) -> list[dict]:
    """The lines of a text of YOLO as annotations. What is wrong with a line is said when it is painted."""
    rows, polygons = [], []
    for number, line in enumerate(files.read_lines(path), start=1):
        if not line.split():
            continue
        name, *numbers = line.split()
        try:
            corners = np.array(numbers, dtype=np.float64)
            category, why = int(float(name)) if float(name).is_integer() else name, _why_no_polygon(corners)
        except ValueError:
            category, why = 0, f"{line[:40]!r} is no number of a class and numbers from 0 to 1"
        polygons += [] if why else [corners]
        mask = partial(_refuse, why) if why else partial(_yolo_mask, corners.reshape(-1, 2), polygons)
        rows.append({"id": f"in line {number} of {path.name}", "category_id": category, "segmentation": mask})
    return rows


def _why_no_polygon(corners: np.ndarray) -> str:
    if len(corners) in (4, 5):
        return "it is a box (x, y, width, height); a box alone is no outline"
    if len(corners) < 6 or len(corners) % 2:
        return f"{len(corners)} numbers are no x and y of three corners or more"
    far = corners[~((corners >= -0.01) & (corners <= 1.01))]  # nan, too; Ultralytics' tolerance
    remedy = "divide x by the width of the image, and y by the height"
    return f"the number {far[0]:g} is not from 0 to 1: {remedy}" if len(far) else ""


def _yolo_mask(polygon: np.ndarray, polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) bool of a polygon (C, 2) from 0 to 1; polygons: all of this image, (2C,) each."""
    scale = np.array([size[1], size[0]])
    every = np.concatenate(polygons).reshape(-1, 2) * scale
    shift = every.ravel()[0] % 1
    are_pixels = (np.abs((every - shift + 0.5) % 1 - 0.5) < 0.02).all() and (every < scale - 0.25).all()
    around = ((ring := corners.reshape(-1, 2), np.roll(ring, -1, axis=0)) for corners in polygons)
    twice_area = sum((one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]).sum() for one, two in around)
    if not are_pixels or twice_area > 1e-9:
        return _instances.decode([(polygon * scale).clip(0, scale).ravel().tolist()], size)
    canvas = Image.new("1", (size[1], size[0]))
    pixels = np.floor(polygon * scale + 0.02).astype(int)
    ImageDraw.Draw(canvas).polygon([tuple(pixel) for pixel in pixels.tolist()], fill=1, outline=1)
    return np.array(canvas)


def _write_yolo(target: Path, maps: Maps, classes: Classes) -> str:
    """Write data.yaml and labels/ID.txt; returns what the form cannot hold."""
    ids, names, cut, void = _ids(classes), names_of(classes), 0, 0
    for id, label in maps.items():
        lines = [(value, yolo_lines(mask, ids[value] - 1)) for value, mask in regions(label, classes)]
        cut, void = cut + sum(len(one) > 1 for _, one in lines), void + sum(value == IGNORE for value, _ in lines)
        files.write_text(target / "labels" / f"{id}.txt", "".join(f"{line}\n" for _, one in lines for line in one))
    shown = {id - 1: names[value] for value, id in ids.items() if void or value != IGNORE}
    text = yaml.safe_dump({"train": "images", "val": "images", "names": shown}, allow_unicode=True, sort_keys=False)
    said = [f"{cut} regions with holes are cut into pieces, as it has no holes"] if cut else []
    if void:
        number = ids[IGNORE] - 1
        said.append(f"it has no void, so {void} void regions are the class {number}: do not train on it")
        remedy = "Remove it, and its lines in labels/*.txt, before you train"
        text = f"# Class {number}, {names[IGNORE]}, is no label. {remedy}.\n{text}"
    files.write_text(target / "data.yaml", text)
    return "; ".join(said)


def yolo_lines(mask: np.ndarray, category: int) -> list[str]:
    """The lines of YOLO's text for a region (H, W) bool: one, or more if the region has holes, which YOLO has not.

    Both readers that round the corners down (Ultralytics) and to the nearest pixel (supervision) get the same pixels.
    """
    top, left = (np.flatnonzero(mask.any(axis=axis))[0] for axis in (1, 0))
    height, width = mask.shape
    part = mask[mask.any(axis=1)][:, mask.any(axis=0)]  # of a connected region no row in between is empty
    rings = [ring[::-1, ::-1] for ring in pieces(part)]  # (C, 2) x and y, against the clock
    scaled = [(ring + (left + 0.25, top + 0.25)) / (width, height) for ring in rings]
    return [" ".join([str(category), *(f"{number:.8g}" for number in ring.ravel())]) for ring in scaled]


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines (C, 2), rows and columns of border pixels, of a 4-connected mask (H, W) bool, cut up where it has holes.

    A mask without holes is one piece. Else it is cut at the left side of each hole, from top to bottom.
    """
    outer, *holes = _rings(mask)
    if not holes:
        return [outer]
    cuts = np.unique([hole[:, 1].min() + 1 for hole in holes])  # columns
    bands = np.where(mask, 1 + cuts.searchsorted(np.arange(mask.shape[1]), "right"), 0)  # (H, W)
    root = connected(bands)
    return [_rings(root == first)[0] for first in np.unique(root[mask])]


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of a 4-connected mask, the outer one first, then those of holes: (C, 2) of the pixels at their turns."""
    inside, sides = np.pad(mask, 1), {}  # (row, column, direction): a side of a pixel, with the mask on the right
    for direction, (row, column) in enumerate(STEP):
        outwards = np.roll(inside, (column, -row), (0, 1))[1:-1, 1:-1]  # the neighbour on the left of the step
        starts = np.argwhere(mask & ~outwards) + [(0, 0), (0, 1), (1, 1), (1, 0)][direction]
        sides |= dict.fromkeys((*start, direction) for start in starts.tolist())
    rings = []
    while sides:
        first = side = next(iter(sides))
        ring = []
        while side in sides:
            del sides[side]
            direction = side[2]
            row, column = STEP[direction] + side[:2]
            for turn in (1, 0, 3):  # to the right, which keeps to pixels that share a side; straight on; to the left
                side = int(row), int(column), (direction + turn) % 4
                if side in sides or side == first:
                    break
            if turn:
                inwards = STEP[(direction + 1) % 4] + STEP[(side[2] + 1) % 4]
                ring.append(np.array(side[:2]) + (inwards - 1) // 2)
        rings.append(np.array(ring))
    return rings


# Label Studio


def read_label_studio(path: Path, *, predictions: bool = False) -> Instances:
    """Read the tasks of a json; predictions: take those of a task without annotation, as `review` writes them.

    Cancelled annotations are left out, and with `predictions` a task that has neither. Of a task with several the one
    that is marked as ground truth counts; if none is, no one knows which is right, and it is not painted. One that was
    submitted without a region says that nothing is there: background.
    """
    remedy, images, categories, bare = "export the tasks again as JSON", [], {}, []
    content = files.read_json(path, remedy)
    with files.reading(path, "a json of tasks of Label Studio", remedy):
        tasks, everyones = content if isinstance(content, list) else [content], []
        if tasks and "data" not in tasks[0]:
            raise ValueError("a task has no data; is it JSON-MIN?")
        for task in tasks:
            everyone = task.get("annotations") or task.get("completions") or []  # the latter: before version 1.0
            everyones.append([one for one in everyone if not one.get("was_cancelled")])
        aimed_at = {item.get("to_name") for one in chain(*everyones) for item in one.get("result", ())}
        drafts = [_studio_id(task["data"], aimed_at) for task in tasks if task.get("drafts")]
        for task, drawn in zip(tasks, everyones, strict=True):
            drawn = submitted = [one for one in drawn if one.get("ground_truth")] or drawn
            drawn = drawn or ([one for one in task.get("predictions") or [] if isinstance(one, dict)] * predictions)
            if predictions and not drawn:
                continue  # skipped, or not annotated yet
            rows, size = [], None
            for annotation in drawn:
                own, size = _studio_rows(annotation["result"], size)
                rows += own
            if len(drawn) > 1:
                why = f"the task has {len(drawn)} annotations: keep one of them, or mark it as ground truth"
                rows = [row | {"segmentation": partial(_refuse, why)} for row in rows]
            own = {item.get("to_name") for one in drawn for item in one["result"]}
            stem = _studio_id(task["data"], own or aimed_at)  # without a region, those of the other tasks tell
            if submitted and not rows:
                bare.append(stem)
                rows = [{"id": "none", "category_id": "background", "segmentation": partial(np.zeros, dtype=bool)}]
            categories |= {row["category_id"]: row["category_id"] for row in rows}
            images.append((stem, size, rows))
    if bare:
        problem = f"{len(bare)} tasks of {path} were submitted without a region, e.g. {bare[0]}"
        warnings.warn(f"{problem}: they count as background. Skip a task that no one has looked at", stacklevel=1)
    if drafts:
        problem = f"{len(drafts)} tasks of {path} hold a draft that was not submitted, e.g. {drafts[0]}"
        warnings.warn(f"{problem}: drafts are not used. Submit or update them, and {remedy}", stacklevel=1)
    return _gathered(path, images, categories, [path])


def _studio_id(fields: dict, aimed_at: set) -> str:
    """Id of the image among the fields of a task; aimed_at: names (to_name) of what its regions are drawn on."""
    texts = {key: value for key, value in fields.items() if isinstance(value, str)}
    ends = {key: Path(value.split("?")[0]).suffix.lower() for key, value in texts.items()}  # a caption may hold a dot
    pictures = [key for key, value in texts.items() if ends[key] in files.SUFFIXES or "?d=" in value] or [*texts]
    found = {_instances.stem_of(texts[key]) for key in [key for key in pictures if key in aimed_at] or pictures}
    if len(found) != 1:
        raise ValueError(f"which of {files.shown(fields)} is the image of a task is unknown: keep one in its data")
    return found.pop()


def _studio_rows(result: list[dict], size: tuple | None) -> tuple[list[dict], tuple | None]:
    """The regions of a result as annotations, and the size (H, W) of the image; size: if it is known already."""
    regions: dict[str, dict] = {}  # a brush and its label may be two items of the same id
    for number, item in enumerate(result):
        value = item.get("value", {})
        drawn = value.keys() & {"rle", "points", "x"} or any(key.endswith("labels") for key in value)
        if drawn if "original_height" in item else value.keys() & {"rle", "points", "x"}:
            region = regions.setdefault(str(item.get("id", number)), {"turned": item.get("image_rotation")})
            region |= {key: value[key] for key in ("rle", "points", "x", "y", "width", "height") if key in value}
            region |= {"size": (item.get("original_height"), item.get("original_width")), "type": item.get("type")}
            named = [names for key, names in value.items() if key.endswith("labels")]
            region |= {"names": named[0]} if named else {}
    rows, outlined = [], [_box(region) for region in regions.values() if region.get("points")]
    for id, region in regions.items():
        box = region["type"] == "rectanglelabels" and _box(region)
        if region["type"] == "keypointlabels" or (box and any(np.allclose(box, one, atol=0.5) for one in outlined)):
            continue  # points that asked a model; the box that an import from COCO adds to each polygon
        size, names = size or (region["size"] if all(region["size"]) else None), region.get("names") or []
        why = ""
        if len(names) != 1:
            why = f"a region has the labels {files.shown(names)}, and one is right"
        elif region["size"] != size:
            why = f"regions of two sizes, {size} and {region['size']} (original_height and original_width)"
        elif region["turned"]:
            why = f"the image was turned by {region['turned']} degrees: turn it back and export again"
        elif "rle" in region:
            shape = partial(brush_mask, region["rle"])
        elif region.get("points"):  # in percent of width and height
            shape = [[number / 100 * size[1 - axis] for x_y in region["points"] for axis, number in enumerate(x_y)]]
        elif "points" in region:
            why = "it has no points"
        else:
            why = f"it is of the type {region['type']}; right are brushes and polygons"
        shape = partial(_refuse, why) if why else shape
        rows.append({"id": id, "category_id": names[0] if names else "", "segmentation": shape})
    return rows, size


def _box(region: dict) -> list[float]:
    """Left, top, right and bottom of a rectangle or a polygon of Label Studio, in percent."""
    left, top = region.get("x", 0), region.get("y", 0)
    corners = region.get("points") or [[left, top], [left + region["width"], top + region["height"]]]
    return [*np.min(corners, axis=0), *np.max(corners, axis=0)]


def brush_mask(rle: list[int], size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of Label Studio's run lengths of a brush: where the last of four channels is not 0.

    A stream of bits: 32 for the number of values, 5 for the bits of a value, 4 x 4 for the sizes of lengths, all of
    these less 1 but the first; then blocks: 1 bit (1: one value, repeated), 2 bits for which size, a length less 1, and
    one value or as many as the length says.
    """
    try:
        bits, at = (np.unpackbits(np.array(rle, dtype=np.uint8)) + 48).tobytes().decode(), 0

        def take(count: int) -> int:
            nonlocal at
            at += count
            if at > len(bits):
                raise ValueError("they end too early")
            return int(bits[at - count : at], 2)

        total, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
        if total != 4 * size[0] * size[1]:
            raise ValueError(f"{total} values, not 4 for each pixel of {size}")
        values, done = np.zeros(total, dtype=bool), 0
        while done < total:
            repeats, length = take(1), take(sizes[take(2)]) + 1
            if done + length > total:
                raise ValueError("runs past the end")
            values[done : done + length] = take(word) if repeats else [take(word) for _ in range(length)]
            done += length
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"its run lengths are not those of a brush ({error})") from error
    return values.reshape(*size, 4)[:, :, 3]


def brush_rle(mask: np.ndarray) -> list[int]:
    """Run lengths of a brush, as `brush_mask` reads them, of a mask (H, W) bool."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    begin = 0
    for end in ends.tolist():
        for start in range(4 * begin, 4 * end, 1 << 16):
            bits.append(f"111{min(4 * end - start, 1 << 16) - 1:016b}{255 * int(flat[begin]):08b}")
        begin = end
    return np.packbits(np.frombuffer("".join(bits).encode(), dtype=np.uint8) - 48).tolist()


def _write_studio(target: Path, maps: Maps, classes: Classes) -> None:
    """Write tasks, with a prediction of a brush for each region, and the labelling interface that they belong to.

    A photo is named by its path below the folder that Label Studio serves (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).
    """
    names, tasks = names_of(classes), []
    for id, label in maps.items():
        size, result = {"original_height": label.shape[0], "original_width": label.shape[1]}, []
        for value, mask in regions(label, classes):
            drawn = {"format": "rle", "rle": brush_rle(mask), "brushlabels": [names[value]]}
            item = {"id": f"region{len(result)}", "type": "brushlabels", "from_name": "label", "to_name": "image"}
            result.append(item | size | {"image_rotation": 0, "value": drawn})
        prediction = {"model_version": "plg_utils", "result": result}
        image = f"/data/local-files/?d={url_quote(f'images/{id}.png')}"
        tasks.append({"data": {"image": image}, "predictions": [prediction]})
    files.write_json(target / "label_studio.json", tasks)
    lines = ["<View>", '  <Image name="image" value="$image"/>', '  <BrushLabels name="label" toName="image">']
    for name, colour in zip(names.values(), [*classes.colours, files.voc_palette()[IGNORE]], strict=True):
        lines.append('    <Label value={} background="#{:02x}{:02x}{:02x}"/>'.format(quoteattr(name), *colour))
    files.write_text(target / "label_studio.xml", "\n".join([*lines, "  </BrushLabels>", "</View>", ""]))


# CVAT


def _write_cvat(target: Path, maps: Maps, classes: Classes) -> None:
    """Write the folder cvat as CVAT's Segmentation mask 1.1.

    The colours are VOC's, in the order of the lines, so that a reader of numbers and one of colours find the same. Each
    class is one instance, for without instances CVAT would draw the background, too.
    """
    target, ids, names = target / "cvat", _ids(classes) | {classes.nothing: 0}, names_of(classes)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += ["{}:{},{},{}::".format(names[value], *files.voc_palette()[id]) for value, id in ids.items() if id]
    if strange := [name for name in names.values() if ":" in name]:
        raise ValueError(f"CVAT's labelmap.txt cannot hold the name {strange[0]!r}: rename it without the colon")
    files.write_text(target / "labelmap.txt", "\n".join([*lines, ""]))
    files.write_text(target / "ImageSets" / "Segmentation" / "default.txt", "\n".join([*maps, ""]))
    number_of = np.zeros(256, dtype=np.uint8)
    number_of[list(ids)] = list(ids.values())
    for id, label in maps.items():
        for folder_name in ("SegmentationClass", "SegmentationObject"):
            files.write_label(target / folder_name / f"{id}.png", number_of[label])


def read_cvat(root: Path) -> Instances:
    """Read labelmap.txt and SegmentationClass/*.png: a category for each colour; black is background, if no other."""
    colours: dict[tuple, str] = {}
    if not (root / "labelmap.txt").exists():  # unpacked into a folder of its own
        root = next((path.parent for path in root.glob("*/labelmap.txt")), root)
    path = root / "labelmap.txt"
    lines = [line.strip() for line in files.read_lines(path) if line.strip() and line.strip()[0] != "#"]
    for number, line in enumerate(lines):
        name, _, rest = line.partition(":")
        parts = rest.split(":")[0].split(",") if rest.split(":")[0] else files.voc_palette()[number].tolist()
        try:
            colour = tuple(int(part) for part in parts)
        except ValueError:
            colour = ()
        if len(colour) != 3 or colours.setdefault(colour, name) != name:
            problem = f"{path} has the line {line!r}"
            raise ValueError(f"{problem}: right is a name and a colour of its own, NAME:RED,GREEN,BLUE::")
    colours.setdefault((0, 0, 0), "background")
    maps = _visible((root / "SegmentationClass").rglob("*.png"))
    codes = {(red << 16) + (green << 8) + blue: name for (red, green, blue), name in colours.items()}
    images = []
    for place in maps:
        read = partial(_coloured, place, tuple(codes))
        rows = [{"category_id": name, "segmentation": partial(read, code)} for code, name in codes.items()]
        images.append((place.stem, None, rows))
    return _gathered(root, images, {name: name for name in codes.values()}, [path, *maps])


def _coloured(path: Path, codes: tuple[int, ...], code: int, size: tuple[int, int]) -> np.ndarray:
    found = _codes(path, codes, path.stat().st_mtime_ns)
    if found.shape != size:
        raise ValueError(f"{path} is {found.shape}, its photo {size} (height, width)")
    return found == code


@lru_cache(maxsize=1)
def _codes(path: Path, codes: tuple[int, ...], _: int) -> np.ndarray:
    """The colour (H, W), red << 16 | green << 8 | blue, of each pixel of a map; a grey one holds numbers of lines."""
    with files.reading(path, "a readable label map", "export it again"), Image.open(path, formats=["PNG"]) as image:
        if image.mode == "L":
            numbers = np.array(image)
            if numbers.max() >= len(codes):
                raise ValueError(f"the number {numbers.max()}, where labelmap.txt has {len(codes)} lines")
            return np.array(codes)[numbers]
        found = np.array(image.convert("RGB")) @ np.array([1 << 16, 1 << 8, 1])
        if strange := sorted(set(np.unique(found).tolist()) - set(codes)):
            red_green_blue = strange[0] >> 16, strange[0] >> 8 & 255, strange[0] & 255
            raise ValueError(f"the colour {red_green_blue}, which labelmap.txt does not have")
    return found


# The table


# Of each form what writes it into a folder, which returns what it cannot hold, and what reads it from there after a
# person's work as objects; None: a file for each photo (`read_png`, `read_labelme`).
FORMS: dict[str, tuple[Callable[[Path, Maps, Classes], str | None], Callable[[Path], Instances] | None]] = {
    "png": (_write_png, None),
    "coco": (_write_coco, lambda source: _instances.read(source / "coco.json")),
    "labelme": (_write_labelme, None),
    "yolo": (_write_yolo, lambda source: read_yolo(source / "data.yaml")),
    "label_studio": (_write_studio, lambda source: read_label_studio(source / "label_studio.json", predictions=True)),
    "cvat": (_write_cvat, lambda source: read_cvat(source / "cvat")),
}
