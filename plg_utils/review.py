"""Label maps for annotation tools, and corrected ones back.

    python -m plg_utils.review RUN --least 20 --labels labels_enhanced --to DIR    # the least trusted images
    python -m plg_utils.review --read DIR --to LABELS                              # what a person made of them

`write` fills a folder with the same labels in three forms, each exact to the pixel:

    images/ID.png, images/ID.json    the photos, and beside each its shapes as labelme reads and writes them
    coco.json                        COCO's form, with run lengths
    labels/ID.png                    palette PNG, values and colours as in a run
    classes.yaml, names.txt          the class file; the names alone, for labelme --labels
    index.json, index.csv            the trust of each image, the least first, and SHA-256 of its labels

labelme and COCO get one annotation for each region: connected pixels of one value. Pixels without annotation are
background, or void if the classes have no background; other void regions are called "void", and are `iscrowd` in COCO.
Where shapes overlap, the later one is on top in labelme, and the smaller one in COCO (datasets/_instances.py).
"""

import argparse
import base64
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from plg_utils import class_files, datasets, devices, encoders, files, store, trust
from plg_utils.datasets import _instances, folder
from plg_utils.records import IGNORE, Classes, Dataset, Masks, Sample

FORMS = ("png", "coco", "labelme")
WITNESSES = ("labels_zero_shot", "labels_sepl", "labels_boxes")  # made in different ways, see notebook 06


# Regions and forms


def regions(label: np.ndarray, classes: Classes) -> Iterator[tuple[int, np.ndarray]]:
    """Value and pixels (H, W) bool of each 4-connected region of a label map (H, W) uint8 that gets an annotation."""
    place = np.arange(label.size).reshape(label.shape)
    below, right = label[1:] == label[:-1], label[:, 1:] == label[:, :-1]
    one = np.concatenate([place[1:][below], place[:, 1:][right]])  # pixels of the same value as `other`, beside them
    other = np.concatenate([place[:-1][below], place[:, :-1][right]])
    root = place.ravel().copy()  # for each pixel: a pixel of its region; in the end the first one
    while (root[one] != root[other]).any():
        smaller = np.minimum(root[one], root[other])
        np.minimum.at(root, root[one], smaller)
        np.minimum.at(root, root[other], smaller)
        root = root[root]
    for first in np.unique(root[label.ravel() != _nothing(classes)]):
        yield int(label.flat[first]), root.reshape(label.shape) == first


def labelme_json(label: np.ndarray, classes: Classes, photo: str) -> dict:
    """The content of a file of labelme for a label map (H, W) uint8; photo: its file name, as seen from the json."""
    names, shapes = _names(classes), []
    for value, mask in regions(label, classes):
        picture, stream = Image.fromarray(mask.astype(np.uint8)), io.BytesIO()
        left, top, right, bottom = picture.getbbox()
        picture.crop((left, top, right, bottom)).save(stream, "PNG")
        shape = {"label": names[value], "shape_type": "mask", "points": [[left, top], [right - 1, bottom - 1]]}
        shape |= {"mask": base64.b64encode(stream.getvalue()).decode("ascii")}
        shapes.append(shape | {"group_id": None, "description": "", "flags": {}})
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": photo, "imageData": None}
    return content | {"imageHeight": label.shape[0], "imageWidth": label.shape[1]}


def coco_json(labels: dict[str, np.ndarray], classes: Classes) -> dict:
    """The content of a json in COCO's form for label maps.

    labels: file name of the photo -> (H, W) uint8. Categories count from 1, without background, and void is the last
    """
    names, images, annotations = _names(classes), [], []
    ids = {value: id for id, value in enumerate([*classes.foreground, IGNORE], start=1)}
    for photo, label in labels.items():
        images.append({"id": len(images) + 1, "file_name": photo, "height": label.shape[0], "width": label.shape[1]})
        for value, region in regions(label, classes):
            mask = Masks.from_dense(region[None])
            row = {"id": len(annotations) + 1, "image_id": len(images), "category_id": ids[value]}
            row |= {"segmentation": mask.rles[0], "area": mask.areas()[0], "bbox": mask.boxes()[0]}
            annotations.append(row | {"iscrowd": int(value == IGNORE)})
    categories = [{"id": id, "name": names[value], "supercategory": ""} for value, id in ids.items()]
    return files.plain({"images": images, "annotations": annotations, "categories": categories})


def _nothing(classes: Classes) -> int:
    """The value of a pixel without annotation."""
    return IGNORE if classes.background is None else classes.background


def _names(classes: Classes) -> dict[int, str]:
    """Names of the values of a label map."""
    void = next((name for name in folder.VOID if folder.class_of(name, classes) is None), None)
    if void is None:
        raise ValueError(f"{', '.join(folder.VOID)} are all classes: no name is left for void pixels. Rename one")
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
) -> dict:
    """Write images and their labels into a new folder, for a person to correct; returns the index.

    label_of: gives the label map (H, W) uint8 of a sample
    trusts: numbers for each id, and source: what the labels are; both are only written into the index
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
        photo, digest = f"images/{sample.id}.png", hashlib.sha256(label.tobytes()).hexdigest()
        files.write_image(target / photo, image)
        files.write_label(target / "labels" / f"{sample.id}.png", label, classes.colours)
        files.write_json(target / "images" / f"{sample.id}.json", labelme_json(label, classes, f"{sample.id}.png"))
        maps[photo] = label
        images.append({"id": sample.id, "photo": photo, "size": label.shape, "sha256": dict.fromkeys(FORMS, digest)})
        images[-1]["trust"] = (trusts or {}).get(sample.id, {})
    files.write_json(target / "coco.json", coco_json(maps, classes))
    class_files.write(target / "classes.yaml", classes)
    (target / "names.txt").write_text("\n".join([*names.values(), ""]), encoding="utf-8")
    rows = [{"id": row["id"], "photo": row["photo"], **row["trust"], "sha256": row["sha256"]["png"]} for row in images]
    pd.DataFrame(rows).to_csv(target / "index.csv", index=False)
    index = files.plain({"version": 1, "labels": source, "forms": FORMS, "images": images})
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


def read(source: str | Path, *, forms: Sequence[str] = FORMS) -> tuple[list[Reviewed], Classes]:
    """Read a folder of `write` after a person's review: the images in the index's order, and their classes.

    A ValueError names what cannot be read, the first problem of each image.
    """
    source = Path(source)
    index = files.read_json(source / "index.json", "give a folder that was written by this command")
    with files.reading(source / "index.json", "the index that was written", "restore it from a copy"):
        sizes = {files.check_stem(entry["id"]): tuple(entry["size"]) for entry in index["images"]}
        written = {entry["id"]: (entry["trust"], entry["sha256"]["png"]) for entry in index["images"]}
    classes = class_files.read(source / "classes.yaml")
    coco = _instances.read(source / "coco.json") if "coco" in forms else None
    listed = {f"{coco.path}, {id}": id for id in coco.sizes} if coco else {}
    if "labelme" in forms:
        listed |= {str(path): path.stem for path in sorted((source / "images").glob("*.json"))}
    problems = [f"{what} is not in index.json: rename or remove it" for what, id in listed.items() if id not in sizes]
    if coco and coco.strays:
        problems.append(f"{coco.path} has {coco.strays} annotations of images that it does not list: restore these")
    readers = {
        "png": lambda id: read_png(source / "labels" / f"{id}.png", classes, sizes[id]),
        "coco": lambda id: _read_coco(coco, id, classes, sizes[id]),
        "labelme": lambda id: read_labelme(source / "images" / f"{id}.json", classes, sizes[id]),
    }
    reviewed = []
    for id, (trusted, digest) in written.items():  # all forms are written with the same pixels
        try:
            maps = {form: readers[form](id) for form in forms}
            found = {form: hashlib.sha256(label.tobytes()).hexdigest() for form, label in maps.items()}
            changed = tuple(form for form in forms if found[form] != digest)
            if len({found[form] for form in changed}) > 1:
                raise ValueError(f"{id} was changed in {' and in '.join(changed)}, and they differ: read one by --form")
            reviewed.append(Reviewed(id, maps[(*changed, *forms)[0]], changed, trusted))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{len(problems)} problems in {source}, and nothing was written:\n" + "\n".join(problems))
    return reviewed, classes


def save(target: str | Path, reviewed: Sequence[Reviewed], classes: Classes) -> None:
    """Write label maps as `labels` of the data set `folder` reads them; maps with other labels are not replaced."""
    paths = {Path(target) / f"{image.id}.png": image.label for image in reviewed}
    for path, label in paths.items():
        if path.exists() and not np.array_equal(files.read_label(path), label):
            raise FileExistsError(f"{path} holds other labels: name a new folder, or delete what is not needed")
    for path, label in paths.items():
        files.write_label(path, label, classes.colours)


def _value_of(name: Any, classes: Classes, what: str) -> int:
    """The value in a label map of a region with this name."""
    names, value = _names(classes), folder.value_of(name if isinstance(name, str) else "", classes)
    if value is None:
        raise ValueError(f"{what} has the name {name!r}, which is no class: use {', '.join(names.values())[:300]}")
    return value


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


def _read_coco(coco: _instances.Instances, id: str, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    """The label map (H, W) uint8 of an image of a json in COCO's form, painted by the rule of `_instances`."""
    what = f"{coco.path}, {id}"
    if coco.sizes.get(id) != size or id in coco.repeated:
        raise ValueError(f"{what}: it is listed more than once, not at all, or not as {size} (height, width): fix it")
    used = {str(row.get("category_id")) for row in coco.annotations[id]}
    values = {key: _value_of(name, classes, what) for key, name in coco.categories.items() if str(key) in used}
    rows = [row | {"iscrowd": 0} for row in coco.annotations[id]]  # CVAT flags each mask; void is a category here
    try:
        return _instances.paint(rows, size, values, _nothing(classes))
    except _instances.BrokenAnnotation as error:
        raise ValueError(f"{what}, {error}: remove it, or draw it again") from error


def read_labelme(path: Path, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    """The label map (H, W) uint8 of a file of labelme, its shapes painted in their order, a later over an earlier."""
    remedy, label = "save the image again in labelme", np.full(size, _nothing(classes), dtype=np.uint8)
    content = files.read_json(path, remedy)
    with files.reading(path, "a file of labelme", remedy):
        found, shapes = (content["imageHeight"], content["imageWidth"]), content["shapes"]
        names = [shape["label"] for shape in shapes]
    if found != size:
        raise ValueError(f"{path} is of an image of {found}, not {size} (height, width): open the photo of {path.stem}")
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True), start=1):
        what = f"{path}, shape {number} ({name})"
        value = _value_of(name, classes, what)
        try:
            inside = _inside(shape, size)
        except Exception as error:  # of a damaged PNG, PIL raises nearly anything
            raise ValueError(f"{what} cannot be read ({error}): remove it, or draw it again") from error
        if not inside.any():
            raise ValueError(f"{what} covers the centre of no pixel: remove it, or draw it larger")
        label[inside] = value
    return label


def _inside(shape: dict, size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) bool whose centre a shape of labelme covers."""
    kind, corners = shape.get("shape_type") or "polygon", np.array(shape["points"], dtype=np.float64)
    x, y = corners.T
    if not ((x >= -1) & (y >= -1) & (x <= size[1] + 1) & (y <= size[0] + 1)).all():  # false for nan
        raise ValueError(f"a corner is outside the image of {size[1]} x {size[0]}")
    if kind == "mask":  # a small PNG, and the position of its upper left pixel
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True)), formats=["PNG"]) as picture:
            part = np.array(picture.convert("L")) > 0
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
        (left, top), (right, bottom) = corners
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind not in ("polygon", "oriented_rectangle"):
        raise ValueError(f"a {kind} has no area; right are polygons, rectangles, circles and masks")
    return _instances.decode([corners.ravel().tolist()], size)


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
    if labels not in stages or not data.unlabelled:
        has = f"it has {', '.join(stages) or 'no labels'}"
        raise FileNotFoundError(f"{run} has no unlabelled images with {labels}, {has}: run notebooks/run.py {run.name}")
    if reason := store.outdated(run / labels, data):
        raise ValueError(f"{run / labels} cannot be used: {reason}. Run notebooks/run.py {run.name} again")

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
    ranked = [data.unlabelled[k] for k in np.argsort(signals["trust"].to_numpy(), kind="stable")]
    return ranked, signals.to_dict("index")


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or read, as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m plg_utils.review",
        description="Write the images whose labels are trusted least for annotation tools, and read corrected ones.",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="the run whose labels are written, such as demo")
    parser.add_argument("--least", type=int, metavar="N", help="how many images, the least trusted first (default: 20)")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="write these images instead of the least trusted ones")
    parser.add_argument("--labels", metavar="STAGE", help=f"folder of the run (default: {WITNESSES[0]})")
    parser.add_argument("--read", metavar="DIR", help="a folder that was written and corrected, to be read")
    parser.add_argument("--form", nargs="+", choices=FORMS, help="read only these forms (default: all)")
    parser.add_argument("--untouched", action="store_true", help="take the unchanged images too: all of them are right")
    parser.add_argument("--to", required=True, metavar="DIR", help="where to write: a new folder, or label maps")
    options = parser.parse_args(arguments)
    writes = options.least is not None or options.ids or options.labels
    reads = options.form or options.untouched
    if bool(options.run) == bool(options.read) or (reads if options.run else writes):
        parser.error("give either a RUN (and --least, --ids, --labels), or --read DIR (and --form, --untouched)")
    try:
        _read_back(options) if options.read else _write_out(options)
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _write_out(options: argparse.Namespace) -> None:
    """Write the chosen images of a run."""
    run, labels = store.run_folder(options.run), options.labels or WITNESSES[0]
    count = 20 if options.least is None else options.least
    if count < 1:
        raise ValueError(f"--least is {count}: give a number from 1 on")
    remedy = f"run notebooks/run.py {run.name} again, which writes it and skips what is done"
    content = files.read_json(run / "run.json", remedy)
    with files.reading(run / "run.json", "the record of a run", remedy):
        made = content["parameters"]
        draw = {key: made[key] for key in ("labelled", "seed")} | made["dataset_options"]
        name, encoder, encoder_options, device = (made[k] for k in ("dataset", "encoder", "encoder_options", "device"))
    data = datasets.load(name, **draw)
    ranked, trusts = least_trusted(
        run, labels, data, lambda: encoders.build(encoder, device=str(devices.choose(device)), **encoder_options)
    )
    if unknown := set(options.ids or ()) - trusts.keys():
        raise ValueError(f"--ids names {', '.join(sorted(unknown))}: these are no unlabelled images of {options.run}")
    chosen = [sample for sample in ranked if sample.id in options.ids] if options.ids else ranked[:count]

    def label_of(sample: Sample) -> np.ndarray:
        return files.read_label(run / labels / f"{sample.id}.png", data.classes.num_classes)

    write(options.to, chosen, label_of, data.classes, trusts=trusts, source=f"{options.run}/{labels}")
    first, last = (trusts[sample.id] for sample in (chosen[0], chosen[-1]))
    print(
        f"{len(chosen)} of {len(ranked)} images with their {labels} in {options.to}, the least trusted first "
        f"({', '.join(name for name in first if name != 'trust')}: {first['trust']:.2f} to {last['trust']:.2f})\n"
        f"correct them: labelme {quote(f'{options.to}/images')} --labels {quote(f'{options.to}/names.txt')} --nodata\n"
        f"read them:    python -m plg_utils.review --read {quote(options.to)} --to LABELS"
    )


def _read_back(options: argparse.Namespace) -> None:
    """Read corrected images, and write their label maps."""
    reviewed, classes = read(options.read, forms=options.form or FORMS)
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
    target, class_file = str(Path(options.to).absolute()), f"{Path(options.read).absolute()}/classes.yaml"
    labels = f"{{labels: {target if quote(target) == target else json.dumps(target)}}}"
    print(
        f"{len(taken)} label maps in {options.to}; to learn from them:\n  python notebooks/run.py RUN "
        f"-p dataset folder -p data_root PHOTOS -p class_file {quote(class_file)} "
        f"-p labelled {len(taken)} -p dataset_options {quote(labels)}"
    )


if __name__ == "__main__":
    sys.exit(main())
