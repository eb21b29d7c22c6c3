"""Label maps for annotation tools, and corrected ones back.

    plg export OUT --least 20 --to DIR                      # after plg label ... --to OUT: the least trusted images
    plg export RUN --least 20 --labels labels_enhanced --to DIR                           # the same of a run's labels
    plg export --read DIR --to LABELS                                                     # what a person made of them
    plg export RUN --corrected DIR --least 20 --to DIR2                        # the next round: learn, name again

`write` fills a folder with the same labels in several forms, each exact to the pixel:

    images/ID.png               the photos
    images/ID.json              labelme: the shapes of each photo, as labelme reads and writes them
    coco.json                   coco: COCO's form, with run lengths, also for CVAT
    labels/ID.png               png: palette PNG, values and colours as in a run
    data.yaml, labels/ID.txt    yolo: polygons as Ultralytics and supervision read them    (only if named by --form)
    label_studio.json, .xml     label_studio: tasks with brushes, and the labelling interface            (the same)
    cvat/                       cvat: zip what is in it, and import it as "Segmentation mask 1.1"        (the same)
    classes.yaml, names.txt     the class file; the names alone, for labelme --labels
    index.json, index.csv       the trust of each image, the least first, and SHA-256 of its labels

Tools get one annotation for each region: connected pixels of one value. Pixels without annotation are background, or
void if the classes have no background; other void regions are called "void", and are `iscrowd` in COCO. Where shapes
overlap, the later one is on top in labelme, and the smaller one elsewhere (datasets/_instances.py).
"""

import argparse
import base64
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import quote as url_quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from plg_utils import class_files, datasets, devices, encoders, files, store, trust
from plg_utils.datasets import _formats, _instances, folder
from plg_utils.generators import few_shot, segment_match
from plg_utils.records import IGNORE, Classes, Dataset, Masks, Sample
from plg_utils.regions import connected

FORMS = ("png", "coco", "labelme")
MORE_FORMS = ("yolo", "label_studio", "cvat")
WITNESSES = ("labels_zero_shot", "labels_sepl", "labels_boxes")  # made in different ways, see notebook 06


# Regions and forms


def regions(label: np.ndarray, classes: Classes) -> Iterator[tuple[int, np.ndarray]]:
    """Value and pixels (H, W) bool of each 4-connected region of a label map (H, W) uint8 that gets an annotation."""
    pixels = np.flatnonzero(label != _nothing(classes))
    firsts = connected(label).ravel()[pixels]  # the first pixel of each one's region
    order = np.argsort(firsts, kind="stable")  # once: a look at the whole map for each region was 80 times slower
    begins = np.flatnonzero(np.diff(firsts[order], prepend=-1))
    for own in np.split(pixels[order], begins[1:]) if pixels.size else ():
        mask = np.zeros(label.shape, dtype=bool)
        mask.flat[own] = True
        yield int(label.flat[own[0]]), mask


def labelme_json(label: np.ndarray, classes: Classes, photo: str) -> dict:
    """The content of a file of labelme for a label map (H, W) uint8; photo: its file name, as seen from the json."""
    names, shapes = _names(classes), []
    for value, mask in regions(label, classes):
        picture, stream = Image.fromarray(mask.astype(np.uint8)), io.BytesIO()
        left, top, right, bottom = box = picture.getbbox()
        picture.crop(box).save(stream, "PNG")
        shape = {"label": names[value], "shape_type": "mask", "points": [[left, top], [right - 1, bottom - 1]]}
        shape["mask"] = base64.b64encode(stream.getvalue()).decode("ascii")
        shapes.append(shape | {"group_id": None, "description": "", "flags": {}})
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": photo, "imageData": None}
    return content | {"imageHeight": label.shape[0], "imageWidth": label.shape[1]}


def coco_json(labels: dict[str, np.ndarray], classes: Classes) -> dict:
    """The content of a json in COCO's form for label maps.

    labels: file name of the photo -> (H, W) uint8. Categories count from 1, without background, and void is the last
    """
    names, images, annotations, ids = _names(classes), [], [], _ids(classes)
    for photo, label in labels.items():
        images.append({"id": len(images) + 1, "file_name": photo, "height": label.shape[0], "width": label.shape[1]})
        for value, region in regions(label, classes):
            mask = Masks.from_dense(region[None])
            row = {"id": len(annotations) + 1, "image_id": len(images), "category_id": ids[value]}
            row |= {"segmentation": mask.rles[0], "area": mask.areas()[0], "bbox": mask.boxes()[0]}
            annotations.append(row | {"iscrowd": int(value == IGNORE)})
    categories = [{"id": id, "name": names[value], "supercategory": ""} for value, id in ids.items()]
    return files.plain({"images": images, "annotations": annotations, "categories": categories})


def studio_task(label: np.ndarray, classes: Classes, photo: str) -> dict:
    """A task of Label Studio for a label map (H, W) uint8, a prediction with a brush for each region.

    photo: its path below the folder that Label Studio serves (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT)
    """
    names, size, result = _names(classes), {"original_height": label.shape[0], "original_width": label.shape[1]}, []
    for value, mask in regions(label, classes):
        drawn = {"format": "rle", "rle": _formats.brush_rle(mask), "brushlabels": [names[value]]}
        item = {"id": f"region{len(result)}", "type": "brushlabels", "from_name": "label", "to_name": "image"}
        result.append(item | size | {"image_rotation": 0, "value": drawn})
    prediction = {"model_version": "plg_utils", "result": result}
    return {"data": {"image": f"/data/local-files/?d={url_quote(photo)}"}, "predictions": [prediction]}


def studio_interface(classes: Classes) -> str:
    """The labelling interface of Label Studio that the tasks belong to, as XML."""
    colours = [*classes.colours, files.voc_palette()[IGNORE]]
    lines = ["<View>", '  <Image name="image" value="$image"/>', '  <BrushLabels name="label" toName="image">']
    for name, colour in zip(_names(classes).values(), colours, strict=True):
        lines.append('    <Label value={} background="#{:02x}{:02x}{:02x}"/>'.format(quoteattr(name), *colour))
    return "\n".join([*lines, "  </BrushLabels>", "</View>", ""])


def _write_yolo(target: Path, maps: dict[str, np.ndarray], classes: Classes) -> list[str]:
    """Write data.yaml and labels/ID.txt for maps (id: (H, W) uint8); returns what the form cannot hold."""
    ids, cut, void = _ids(classes), 0, 0
    for id, label in maps.items():
        lines = [(value, _formats.yolo_lines(mask, ids[value] - 1)) for value, mask in regions(label, classes)]
        cut, void = cut + sum(len(one) > 1 for _, one in lines), void + sum(value == IGNORE for value, _ in lines)
        text = "".join(f"{line}\n" for _, one in lines for line in one)
        _write_text(target / "labels" / f"{id}.txt", text)
    names = {id - 1: _names(classes)[value] for value, id in ids.items() if void or value != IGNORE}
    content = {"train": "images", "val": "images", "names": names}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    said = [f"{cut} regions with holes are cut into pieces, as it has no holes"] if cut else []
    if void:
        number = ids[IGNORE] - 1
        said.append(f"it has no void, so {void} void regions are the class {number}: do not train on it")
        remedy = "Remove it, and its lines in labels/*.txt, before you train"
        text = f"# Class {number}, {names[number]}, is no label. {remedy}.\n{text}"
    _write_text(target / "data.yaml", text)
    return [f"yolo: {'; '.join(said)}"] if said else []


def _write_cvat(target: Path, maps: dict[str, np.ndarray], classes: Classes) -> None:
    """Write a folder as CVAT's Segmentation mask 1.1 for maps (id: (H, W) uint8).

    The colours are VOC's, in the order of the lines, so that a reader of numbers and one of colours find the same. Each
    class is one instance, for without instances CVAT would draw the background, too.
    """
    ids, names = _ids(classes) | {_nothing(classes): 0}, _names(classes)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += ["{}:{},{},{}::".format(names[value], *files.voc_palette()[id]) for value, id in ids.items() if id]
    if strange := [name for name in names.values() if ":" in name]:
        raise ValueError(f"CVAT's labelmap.txt cannot hold the name {strange[0]!r}: rename it without the colon")
    _write_text(target / "labelmap.txt", "\n".join([*lines, ""]))
    _write_text(target / "ImageSets" / "Segmentation" / "default.txt", "\n".join([*maps, ""]))
    number_of = np.zeros(256, dtype=np.uint8)
    number_of[list(ids)] = list(ids.values())
    for id, label in maps.items():
        for folder_name in ("SegmentationClass", "SegmentationObject"):
            files.write_label(target / folder_name / f"{id}.png", number_of[label])


def _write_text(path: Path, text: str) -> None:
    with files.atomic(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8")


def _ids(classes: Classes) -> dict[int, int]:
    """Numbers of categories of the values in a label map, from 1 on; void is the last."""
    return {value: id for id, value in enumerate([*classes.foreground, IGNORE], start=1)}


def _nothing(classes: Classes) -> int:
    """The value of a pixel without annotation."""
    return IGNORE if classes.background is None else classes.background


def _names(classes: Classes) -> dict[int, str]:
    """Names of the values of a label map."""
    void = next((name for name in _instances.VOID if folder.class_of(name, classes) is None), None)
    if void is None:
        raise ValueError(f"{', '.join(_instances.VOID)} are all classes: no name is left for void pixels. Rename one")
    return dict(enumerate(classes.names)) | {IGNORE: void}


# Writing


def write(
    target: str | Path,
    samples: Sequence[Sample],
    label_of: Callable[[Sample], np.ndarray],
    classes: Classes,
    *,
    trusts: dict[str, dict[str, float]] | None = None,
    source: str = "",
    forms: Sequence[str] = FORMS,
) -> dict:
    """Write images and their labels into a new folder, for a person to correct; returns the index.

    label_of: gives the label map (H, W) uint8 of a sample
    trusts: numbers for each id, and source: what the labels are; both are only written into the index
    forms: of FORMS and MORE_FORMS; `remarks` of the index says what one of them cannot hold
    """
    target, maps, images = Path(target), {}, []
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not an empty folder, and may hold a person's work: name a new one")
    if not samples:
        raise ValueError("there is no image to write")
    names = _names(classes)
    for sample in store.progress(samples, what="images for review"):
        image, label = sample.image(), label_of(sample)
        if label.shape != image.shape[:2]:
            raise ValueError(f"labels of {sample.id} are {label.shape}, its photo {image.shape[:2]}: make them again")
        maps[sample.id], photo = label, f"images/{sample.id}.png"
        files.write_image(target / photo, image)
        if "png" in forms:
            files.write_label(target / "labels" / f"{sample.id}.png", label, classes.colours)
        if "labelme" in forms:
            files.write_json(target / "images" / f"{sample.id}.json", labelme_json(label, classes, f"{sample.id}.png"))
        row = {"id": sample.id, "photo": photo, "size": label.shape}
        row["sha256"] = dict.fromkeys(forms, hashlib.sha256(label.tobytes()).hexdigest())
        images.append(row | {"trust": (trusts or {}).get(sample.id, {})})
    photos = {f"images/{id}.png": label for id, label in maps.items()}
    if "coco" in forms:
        files.write_json(target / "coco.json", coco_json(photos, classes))
    if "label_studio" in forms:
        tasks = [studio_task(label, classes, photo) for photo, label in photos.items()]
        files.write_json(target / "label_studio.json", tasks)
        _write_text(target / "label_studio.xml", studio_interface(classes))
    if "cvat" in forms:
        _write_cvat(target / "cvat", maps, classes)
    remarks = _write_yolo(target, maps, classes) if "yolo" in forms else []
    class_files.write(target / "classes.yaml", classes)
    _write_text(target / "names.txt", "\n".join([*names.values(), ""]))
    rows = [
        {"id": row["id"], "photo": row["photo"], **row["trust"], "sha256": row["sha256"][forms[0]]} for row in images
    ]
    pd.DataFrame(rows).to_csv(target / "index.csv", index=False)
    index = files.plain({"version": 1, "labels": source, "forms": forms, "remarks": remarks, "images": images})
    files.write_json(target / "index.json", index)
    return index


# Reading


@dataclass(frozen=True, eq=False)
class Reviewed:
    """The labels of an image after a person's review."""

    id: str
    label: np.ndarray  # (H, W) uint8
    changed: tuple[str, ...]  # the forms whose pixels differ from what was written
    trust: dict[str, float]  # as it was written


def read(source: str | Path, *, forms: Sequence[str] | None = None) -> tuple[list[Reviewed], Classes]:
    """Read a folder of `write` after a person's review: the images in the index's order, and their classes.

    forms: which to read, by default all that were written
    A ValueError names what cannot be read, the first problem of each image.
    """
    source = Path(source)
    index = files.read_json(source / "index.json", "give a folder that was written by this command")
    with files.reading(source / "index.json", "the index that was written", "restore it from a copy"):
        sizes = {files.check_stem(entry["id"]): tuple(entry["size"]) for entry in index["images"]}
        written = {entry["id"]: (entry["trust"], [*entry["sha256"].values()][0]) for entry in index["images"]}
        photos, has = {entry["id"]: Path(entry["photo"]) for entry in index["images"]}, index["forms"]
    forms = has if forms is None else forms
    if lacking := [form for form in forms if form not in has]:
        raise ValueError(f"{source} was written without {lacking[0]}: read {', '.join(has)}, or write it again with it")
    classes = class_files.read(source / "classes.yaml")
    readers = {
        "png": lambda id: read_png(source / "labels" / f"{id}.png", classes, sizes[id]),
        "labelme": lambda id: read_labelme(source / "images" / f"{id}.json", classes, sizes[id]),
    }

    def painted(objects: _instances.Instances, name_of: dict[str, str], id: str) -> np.ndarray:
        return _painted(objects, name_of.get(id, id), classes, sizes[id])

    listed, problems, absent = {}, [], {}
    if "labelme" in forms:
        listed |= {str(path): path.stem for path in sorted((source / "images").glob("*.json"))}
    if "png" in forms:  # a program may have saved a copy under another name
        listed |= {str(path): path.stem for path in sorted((source / "labels").glob("*.png"))}
    for form, read_it in OBJECTS.items():
        if form in forms:
            objects = read_it(source)
            ids = folder.match(objects.sizes, photos, objects.path)
            listed |= {f"{objects.path}, {name}": ids.get(name, name) for name in objects.sizes}
            readers[form] = partial(painted, objects, {id: name for name, id in ids.items()})
            if form == "label_studio" and (rest := sorted(sizes.keys() - ids.values())):
                absent[form] = rest
                problem = f"{len(rest)} images are not in {objects.path}, e.g. {rest[0]}"
                remedy = "They count as untouched, for Label Studio exports annotated tasks only"
                warnings.warn(f"{problem}. {remedy}", stacklevel=2)
            if objects.strays:
                problem = f"{objects.path} has {objects.strays} annotations of images that it does not list"
                problems.append(f"{problem}: restore these")
    problems += [f"{what} is not in index.json: rename or remove it" for what, id in listed.items() if id not in sizes]
    reviewed = []
    for id, (trusted, digest) in written.items():  # all forms are written with the same pixels
        try:
            maps = {form: readers[form](id) for form in forms if id not in absent.get(form, ())}
            if not maps:
                continue
            found = {form: hashlib.sha256(label.tobytes()).hexdigest() for form, label in maps.items()}
            changed = tuple(form for form in maps if found[form] != digest)
            if len({found[form] for form in changed}) > 1:
                raise ValueError(f"{id} was changed in {' and in '.join(changed)}, and they differ: read one by --form")
            reviewed.append(Reviewed(id, maps[(*changed, *maps)[0]], changed, trusted))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{len(problems)} problems in {source}, and nothing was written:\n" + "\n".join(problems))
    return reviewed, classes


def save(target: str | Path, reviewed: Sequence[Reviewed], classes: Classes) -> None:
    """Write label maps as `labels` of the data set `folder` reads them, with a list of the classes.

    Maps with other labels, or of other classes, are not replaced.
    """
    listed = Path(target) / "classes.yaml"
    if listed.is_file() and class_files.read(listed).names != classes.names:
        raise FileExistsError(f"{listed} has other classes than {', '.join(classes.names)}: name a new folder")
    paths = {Path(target) / f"{image.id}.png": image.label for image in reviewed}
    for path, label in paths.items():
        if path.exists() and not np.array_equal(files.read_label(path), label):
            raise FileExistsError(f"{path} holds other labels: name a new folder, or delete what is not needed")
    for path, label in paths.items():
        files.write_label(path, label, classes.colours)
    # A person may have added words to the class file that is there.
    class_files.write_beside(Path(target), class_files.read(listed) if listed.is_file() else classes)


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


OBJECTS: dict[str, Callable[[Path], _instances.Instances]] = {  # forms of objects, and how they are read
    "coco": lambda source: _instances.read(source / "coco.json"),
    "yolo": lambda source: _formats.read_yolo(source / "data.yaml"),
    "label_studio": lambda source: _formats.read_label_studio(source / "label_studio.json", predictions=True),
    "cvat": lambda source: _formats.read_cvat(source / "cvat"),
}


def _painted(objects: _instances.Instances, name: str, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    """The label map (H, W) uint8 of the image that a form of objects calls `name`, painted by `_instances`' rule."""
    what = f"{objects.path}, {name}"
    if objects.sizes.get(name, ()) not in (size, None) or name in objects.repeated:
        raise ValueError(f"{what}: it is listed more than once, not at all, or not as {size} (height, width): fix it")
    annotations, values = objects.annotations[name], {}
    used = {str(row.get("category_id")) for row in annotations}
    for key, category in objects.categories.items():
        if classes.background is None and class_files.is_background(category):
            values[key] = IGNORE
        elif str(key) in used:
            values[key] = folder.value_of(str(category), classes)
            if values[key] is None:
                listed = ", ".join(_names(classes).values())[:300]
                raise ValueError(f"{what} has the name {category!r}, which is no class: use {listed}")
    rows = [row | {"iscrowd": 0} for row in annotations]  # CVAT flags each mask; void is a category here
    try:
        return _instances.paint(rows, size, values, _nothing(classes), objects.in_order)
    except _instances.BrokenAnnotation as error:
        raise ValueError(f"{what}, {error}: remove it, or draw it again") from error


def read_labelme(path: Path, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    """The label map (H, W) uint8 of a file of labelme, its shapes painted in their order, a later over an earlier."""
    with warnings.catch_warnings(action="ignore"):  # one photo may well hold rectangles alone
        objects = _formats.read_labelme([path])
    label = _painted(objects, path.stem, classes, size)
    for row in objects.annotations[path.stem]:
        if not row["segmentation"](size).any():
            raise ValueError(f"{path}, shape {row['id']} covers the centre of no pixel: remove it, or draw it larger")
    return label


# The images that are trusted least


def least_trusted(
    run: Path, labels: str, data: Dataset, encode: Callable | None = None
) -> tuple[list[Sample], dict[str, dict[str, float]]]:
    """The unlabelled images, the least trusted first, and for each id its `trust` and the signals that it comes from.

    The signal is the mean agreement with other labels of the run: those of notebook 06, else zero-shot against
    enhanced. Without others, trust is the mean rank by the stability of the masks and by CLIP's margin. On a hundred
    scenes of the storybook, Spearman's correlation with the real mean IoU was 0.65 to 0.78 for agreement, 0.27 to 0.46
    for the two combined.

    run: folder of the run; labels: a folder of label maps in it; encode: builds the encoder, if it is needed
    """
    stages = [path.parent.name for path in sorted(run.glob("labels_*/manifest.json"))]
    if labels not in stages:
        has = f"it has {', '.join(stages) or 'no labels'}"
        raise FileNotFoundError(f"{run} has no {labels}, {has}: run {_command(run)}")
    if not data.unlabelled:
        raise ValueError(f"all images of {run.name} are labelled, and only unlabelled ones are written for review")
    if reason := store.outdated(run / labels, data):
        raise ValueError(f"{run / labels} cannot be used: {reason}. Run {_command(run)} again")

    def usable(name: str) -> bool:
        if reason := store.outdated(run / name, data):
            print(f"{run / name} is left out of the comparison: {reason}", file=sys.stderr)
        return not reason

    num_classes, background = data.classes.num_classes, data.classes.background
    others = [name for name in WITNESSES if name in stages and name != labels and usable(name)]
    if not others and labels == WITNESSES[0] and "labels_enhanced" in stages and usable("labels_enhanced"):
        others = ["labels_enhanced"]
    compares = others and background is not None
    outside = -1 if background is None else background
    if not compares:
        text_embeddings, owner = (tensor.cpu() for tensor in encode().class_embeddings(data.classes))
    rows = []
    for sample in store.progress(data.unlabelled, what="trust"):
        maps = [files.read_label(run / name / f"{sample.id}.png", num_classes) for name in (labels, *others)]
        if compares:
            rows.append({"agreement": trust.agreement(maps, num_classes, background=background)[0, 1:].mean()})
            continue
        masks = files.read_masks(run / "masks" / f"{sample.id}.json")
        rows.append({"mask stability": trust.mean_over_things(masks.stability, masks, maps[0], background=outside)})
        if len(owner.unique()) > 1:  # with one class and no background word there is no margin
            embeddings = files.read_embeddings(run / "segments" / f"{sample.id}.safetensors")
            margins = trust.margins(embeddings, text_embeddings, owner, background=background)
            rows[-1]["CLIP margin"] = trust.mean_over_things(margins, masks, maps[0], background=outside)
    signals = pd.DataFrame(rows, index=[sample.id for sample in data.unlabelled])
    one = len(signals.columns) == 1
    signals.insert(0, "trust", signals.iloc[:, 0] if one else trust.combine(signals.to_dict("list")))
    return _ranked(data.unlabelled, signals["trust"]), signals.to_dict("index")


def _command(run: Path) -> str:
    """The command that makes a run: that of `plg label` is called run."""
    return "plg label" if run.name == "run" else f"notebooks/run.py {run.name}"


def _ranked(samples: Sequence[Sample], trusts: Sequence[float]) -> list[Sample]:
    return [samples[k] for k in np.argsort(np.asarray(trusts), kind="stable")]


def least_sure(
    run: Path, data: Dataset, encode: Callable, corrected: Sequence[Reviewed] = ()
) -> tuple[list[Sample], dict[str, dict[str, float]], Callable[[Sample], np.ndarray]]:
    """The unlabelled images that are not corrected yet, those first that few-shot labels are least sure of.

    Few-shot labels learn from the run's labelled images and from the corrected ones, so each round names the rest anew.
    An image's `trust` is the mean over its segments of the margin, the score of the best class minus that of the second
    best. To ask where the margin is small is called margin sampling (Scheffer et al., "Active Hidden Markov Models for
    Information Extraction", IDA 2001). An image without segments comes first.

    run: folder of the run, with masks and segments; encode: builds the encoder
    corrected: unlabelled images, with the labels that a person gave them
    returns: samples and numbers as `least_trusted`, and what gives the few-shot label map (H, W) uint8 of a sample
    """
    if reason := store.outdated(run / "segments", data):
        raise ValueError(f"{run / 'segments'} cannot be used: {reason}. Run {_command(run)} again")
    truths = {image.id: image.label for image in corrected}
    if unknown := truths.keys() - {sample.id for sample in data.unlabelled}:
        listed = ", ".join(sorted(unknown))
        remedy = "give folders of this run, with images that have no label map yet"
        raise ValueError(f"{listed} are no unlabelled images of {run.name}: {remedy}")
    overlap = files.read_json(run / "labels_zero_shot" / "manifest.json")["parameters"]["overlap"]

    def masks_of(sample: Sample) -> Masks:
        return files.read_masks(run / "masks" / f"{sample.id}.json")

    def embeddings_of(sample: Sample) -> torch.Tensor:
        return files.read_embeddings(run / "segments" / f"{sample.id}.safetensors")

    known = [*data.labelled, *(sample for sample in data.unlabelled if sample.id in truths)]
    labels = [truths[sample.id] if sample.id in truths else sample.truth() for sample in known]
    labelled = few_shot.Labelled([*map(masks_of, known)], [*map(embeddings_of, known)], labels)
    texts = (tensor.cpu() for tensor in encode().class_embeddings(data.classes))
    namer = few_shot.learn(labelled, data.classes, *texts, others=map(embeddings_of, data.unlabelled), overlap=overlap)

    def label_of(sample: Sample) -> np.ndarray:
        named = namer(embeddings_of(sample))
        return segment_match.paint(masks_of(sample), named, data.classes.background, overlap).label

    rest, trusts = [sample for sample in data.unlabelled if sample.id not in truths], {}
    for sample in store.progress(rest, what="margins"):
        margins = trust.few_shot_margins(namer, embeddings_of(sample))
        sure = float(margins.mean()) if len(margins) else 0.0
        trusts[sample.id] = {"trust": sure, "few-shot margin": sure}
    return _ranked(rest, [row["trust"] for row in trusts.values()]), trusts, label_of


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or read, as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="plg export",
        description="Write the images whose labels are trusted least for annotation tools, and read corrected ones.",
    )
    what = "what plg label wrote (the folder after its --to), or the name of a run, such as demo"
    parser.add_argument("run", nargs="?", metavar="OUT", help=what)
    parser.add_argument("--least", type=int, metavar="N", help="how many images, the least trusted first (default: 20)")
    parser.add_argument("--all", action="store_true", help="write all images, also those that have labels")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="write these images instead of the least trusted ones")
    parser.add_argument("--labels", metavar="STAGE", help=f"folder of the run (default: {WITNESSES[0]})")
    again = "learn from labelled images and from these corrected folders, and write what few-shot labels are unsure of"
    parser.add_argument("--corrected", nargs="*", metavar="DIR", help=again)
    parser.add_argument("--read", metavar="DIR", help="a folder that was written and corrected, to be read")
    every = (*FORMS, *MORE_FORMS)
    usual = f"write these forms (default: {' '.join(FORMS)}), or read only these (default: all that were written)"
    parser.add_argument("--form", nargs="+", metavar="FORM", help=f"{usual}; all: {', '.join(every)}")
    parser.add_argument("--untouched", action="store_true", help="take the unchanged images too: all of them are right")
    parser.add_argument("--to", required=True, metavar="DIR", help="where to write: a new folder, or label maps")
    options = parser.parse_args(arguments)
    if options.form:
        options.form = [form for text in options.form for form in text.split(",") if form]
        if unknown := [form for form in options.form if form not in every]:
            parser.error(f"--form {unknown[0]} is not known, only {' '.join(every)}")
    learns = options.corrected is not None
    writes = options.least is not None or options.all or options.ids or options.labels or learns
    if bool(options.run) == bool(options.read) or (options.untouched and not learns if options.run else writes):
        parser.error("give either OUT (and --least, --ids, --labels, --corrected), or --read DIR (and --untouched)")
    if learns and options.labels:
        parser.error("--corrected writes few-shot labels: leave out --labels")
    if options.all and (options.ids or options.least is not None):
        parser.error("--all writes all images: leave out --least and --ids")
    try:
        _read_back(options) if options.read else _write_out(options)
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _write_out(options: argparse.Namespace) -> None:
    """Write the chosen images of a run."""
    count = 20 if options.least is None else options.least
    if count < 1:
        raise ValueError(f"--least is {count}: give a number from 1 on")
    own, labels = Path(options.run) / "run", options.labels or WITNESSES[0]  # of plg label
    run = own if (own / "run.json").is_file() else files.results_root() / options.run
    if run != own and (run.parent != files.results_root() or not run.is_dir()):
        problem = f"{options.run} was not written by plg label, and is no run in {files.results_root()}"
        raise FileNotFoundError(f"{problem}: give the folder after its --to, or the name of a run that was made")
    remedy = f"run {_command(run)} again, which writes it and skips what is done"
    content = files.read_json(run / "run.json", remedy)
    with files.reading(run / "run.json", "the record of a run", remedy):
        made = content["parameters"]
        draw = {key: made[key] for key in ("labelled", "seed")} | made["dataset_options"]
        name, encoder, encoder_options, device = (made[k] for k in ("dataset", "encoder", "encoder_options", "device"))
    data = datasets.load(name, **draw)

    def encode() -> Any:
        made = files.read_json(run / "segments" / "manifest.json")["parameters"]
        if not {"encoder": encoder, **encoder_options}.items() <= made.items():
            told = f"{run / 'segments'} was made by {made}, and run.json names {encoder} with {encoder_options}"
            raise ValueError(f"{told}: {remedy}")
        return encoders.build(encoder, device=str(devices.choose(device)), **encoder_options)

    if options.all and data.labelled and not data.unlabelled:
        ranked, trusts, label_of = [], {}, None
    elif options.corrected is None:
        ranked, trusts = least_trusted(run, labels, data, encode)

        def label_of(sample: Sample) -> np.ndarray:
            return files.read_label(run / labels / f"{sample.id}.png", data.classes.num_classes)

    else:
        corrected, labels = [], "few-shot labels"
        for source in options.corrected:
            reviewed, classes = read(source)
            if classes.names != data.classes.names:
                raise ValueError(f"{source} has the classes {', '.join(classes.names)}, not those of {options.run}")
            corrected += [image for image in reviewed if image.changed or options.untouched]
        ranked, trusts, label_of = least_sure(run, data, encode, corrected)
    if unknown := set(options.ids or ()) - trusts.keys():
        raise ValueError(f"--ids names {', '.join(sorted(unknown))}: these are no unlabelled images of {options.run}")
    chosen = [sample for sample in ranked if sample.id in options.ids] if options.ids else ranked[:count]
    chosen, labelled = (ranked, data.labelled) if options.all else (chosen, ())
    given = {"trusts": trusts, "source": f"{run.name}/{labels}", "forms": options.form or FORMS}
    truths = {sample.id: sample.truth for sample in labelled}

    def map_of(sample: Sample) -> np.ndarray:
        return truths[sample.id]() if sample.id in truths else label_of(sample)

    index = write(options.to, [*chosen, *labelled], map_of, data.classes, **given)
    if chosen:
        first, last = trusts[chosen[0].id], trusts[chosen[-1].id]
        signals = ", ".join(name for name in first if name != "trust")
        what = f"{len(chosen)} of {len(ranked)} images with their {labels} in {options.to}, the least trusted first"
        print(f"{what} ({signals}: {first['trust']:.2f} to {last['trust']:.2f})")
    if labelled:
        print(f"{len(labelled)} images with the label maps that they have in {options.to}")
    for remark in index["remarks"]:
        print(remark)
    if "labelme" in index["forms"]:
        photos, names = quote(f"{options.to}/images"), quote(f"{options.to}/names.txt")
        print(f"correct them: labelme {photos} --labels {names} --nodata")
    print(f"read them:    plg export --read {quote(options.to)} --to LABELS")
    folders = " ".join(map(quote, [*(options.corrected or ()), options.to]))
    if not labelled:  # what is corrected in a round has no label map yet
        print(f"next round:   the same command with --corrected {folders} --to DIR")


def _read_back(options: argparse.Namespace) -> None:
    """Read corrected images, and write their label maps."""
    reviewed, classes = read(options.read, forms=options.form)
    taken = [image for image in reviewed if image.changed or options.untouched]
    changed = sum(bool(image.changed) for image in reviewed)
    print(f"{len(reviewed)} images, {changed} changed, {len(reviewed) - changed} untouched")
    if not taken:
        remedy = "correct some, or add --untouched if a person has looked at all of them and they are right"
        raise ValueError(f"no label in {options.read} was changed, so there is nothing to write: {remedy}")
    save(options.to, taken, classes)
    for image in taken:
        print(f"  {image.id}  {', '.join(image.changed) or 'untouched'}")
    if len(taken) < len(reviewed):
        print("untouched images were left out; --untouched takes them too, as looked at and right")
    target, class_file = str(Path(options.to).absolute()), f"{Path(options.to).absolute()}/classes.yaml"
    print(f"{len(taken)} label maps in {options.to}; to learn from them:")
    if files.read_json(Path(options.read) / "index.json")["labels"].startswith("run/"):  # of plg label
        print(f"  plg label PHOTOS --classes {quote(class_file)} --labels {quote(target)} --to NEW")
        return
    labels = f"{{labels: {target if quote(target) == target else json.dumps(target, ensure_ascii=False)}}}"
    print(
        f"  python notebooks/run.py RUN -p dataset folder -p data_root PHOTOS -p class_file {quote(class_file)} "
        f"-p labelled {len(taken)} -p dataset_options {quote(labels)}"
    )


if __name__ == "__main__":
    sys.exit(main())
