"""Label maps for annotation tools, and corrected ones back.

    plg export OUT --least 20 --to DIR                      # after plg label ... --to OUT: the least trusted images
    plg export RUN --least 20 --labels labels_enhanced --to DIR                           # the same of a run's labels
    plg export --read DIR --to LABELS                                                     # what a person made of them
    plg export RUN --corrected DIR --least 20 --to DIR2                        # the next round: learn, name again

`write` fills a folder with the photos (images/ID.png), the same labels in several forms, each exact to the pixel
(docs/review.md lists them, datasets/_formats.py writes and reads them), and

    classes.yaml, names.txt     the class file; the names alone, for labelme --labels
    index.json, index.csv       the trust of each image, the least first, and SHA-256 of its labels

Tools get one annotation for each region: connected pixels of one value. Pixels without annotation are background, or
void if the classes have no background; other void regions are called "void", and are `iscrowd` in COCO. Where shapes
overlap, the later one is on top in labelme, and the smaller one elsewhere (datasets/_instances.py).
"""

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
import torch

from plg_utils import class_files, datasets, devices, encoders, files, store, trust
from plg_utils.datasets import _formats, _instances, folder
from plg_utils.generators import few_shot, segment_match
from plg_utils.records import IGNORE, Classes, Dataset, Masks, Sample

FORMS = ("png", "coco", "labelme")  # of `_formats.FORMS`: those that are written if none are named
coco_json, labelme_json, regions = _formats.coco_json, _formats.labelme_json, _formats.regions  # notebooks take them
WITNESSES = ("labels_zero_shot", "labels_sepl", "labels_boxes")  # made in different ways, see notebook 06


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
    forms: of `_formats.FORMS`; `remarks` of the index says what one of them cannot hold
    """
    target, maps, images = Path(target), {}, []
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not an empty folder, and may hold a person's work: name a new one")
    if not samples:
        raise ValueError("there is no image to write")
    names = _formats.names_of(classes)
    if twice := files.repeated(files.same_name(sample.id) for sample in samples):
        both = " and ".join(sample.id for sample in samples if files.same_name(sample.id) == twice[0])
        problem = f"{both} differ only in case or in how accents are written, and some systems take them for one file"
        raise ValueError(f"{problem}: rename a photo, or write one without the other")
    for sample in store.progress(samples, what="images for review"):
        image, label = sample.image(), label_of(sample)
        if label.shape != image.shape[:2]:
            raise ValueError(f"labels of {sample.id} are {label.shape}, its photo {image.shape[:2]}: make them again")
        maps[sample.id], photo = label, f"images/{sample.id}.png"
        files.write_image(target / photo, image)
        row = {"id": sample.id, "photo": photo, "size": label.shape, "trust": (trusts or {}).get(sample.id, {})}
        images.append(row | {"sha256": dict.fromkeys(forms, _sha256(label))})
    said = {form: _formats.FORMS[form][0](target, maps, classes) for form in forms}
    class_files.write(target / "classes.yaml", classes)
    files.write_text(target / "names.txt", "\n".join([*names.values(), ""]))
    table = pd.DataFrame([{"id": row["id"], "photo": row["photo"], **row["trust"]} for row in images])
    table.assign(sha256=[_sha256(maps[row["id"]]) for row in images]).to_csv(target / "index.csv", index=False)
    remarks = [f"{form}: {remark}" for form, remark in said.items() if remark]
    index = files.plain({"version": 1, "labels": source, "forms": forms, "remarks": remarks, "images": images})
    files.write_json(target / "index.json", index)
    return index


def _sha256(label: np.ndarray) -> str:
    return hashlib.sha256(label.tobytes()).hexdigest()


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
    problems, readers = [], {id: {} for id in sizes}  # id: form: what gives the label map of a size
    for form in forms:
        try:
            place, drawn = _drawn(source, form, classes)
            names = folder.match(drawn, photos, place)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        others = sorted(drawn.keys() - names.keys())
        problems += [f"{place}, {name} is not in index.json: rename or remove it" for name in others]
        absent = sorted(sizes.keys() - names.values())
        if absent and form == "label_studio":
            problem = f"{len(absent)} images have no annotation in {place}, e.g. {absent[0]}"
            remedy = "They count as untouched; if no other form holds them, they are left out"
            warnings.warn(f"{problem}. {remedy}", stacklevel=1)
        else:
            problems += [f"{place} lacks {id}: restore it" for id in absent]
        for name, id in names.items():
            readers[id][form] = drawn[name]
    reviewed = []
    for id, of_forms in readers.items():
        trusted, digest = written[id]  # all forms are written with the same pixels
        try:
            maps = {form: read_it(sizes[id]) for form, read_it in of_forms.items()}
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        changed = {form: found for form, label in maps.items() if (found := _sha256(label)) != digest}
        if len({*changed.values()}) > 1:
            problems.append(f"{id} was changed in {' and in '.join(changed)}, and they differ: read one by --form")
        if maps:
            reviewed.append(Reviewed(id, maps[[*changed, *maps][0]], tuple(changed), trusted))
    if problems:
        raise ValueError(f"{len(problems)} problems in {source}, and nothing was written:\n" + "\n".join(problems))
    if strays := _strays(source):
        problem = f"{len(strays)} files in {source} are not read, e.g. {strays[0]}"
        warnings.warn(f"{problem}: if corrected labels are in it, put them where the export has them", stacklevel=1)
    return reviewed, classes


def _strays(source: Path) -> list[Path]:
    """Files of a review in which a tool may have saved labels at another place, or in another form, than is read."""
    painted, exports = {*files.SUFFIXES} - {".png"}, (".json", ".zip")
    places = ("labels/*", painted), ("*", exports), ("annotations/*", exports)
    found = [path for place, ends in places for path in source.glob(place) if path.suffix.lower() in ends]
    own = ("index.json", "coco.json", "label_studio.json")
    return sorted(path for path in found if path.name[0] != "." and path.name not in own)


def _drawn(source: Path, form: str, classes: Classes) -> tuple[Path, dict[str, Callable[[tuple], np.ndarray]]]:
    """Where a form lies, and for each image in it what gives the label map (H, W) uint8 of a size (H, W)."""
    _, read_objects = _formats.FORMS[form]
    if not read_objects:
        of_photo = {"png": ("labels", ".png", _formats.read_png), "labelme": (_formats.IMAGES, ".json", _of_labelme)}
        inner, suffix, read_one = of_photo[form]
        try:
            paths = datasets.files_in(source / inner, (suffix,), f"file of {form}")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{source / inner} lacks all {suffix}: restore it from a copy") from error
        if twice := files.repeated(path.stem for path in paths):
            raise ValueError(f"{source / inner} holds two files {twice[0]}, whose names end in other letters: keep one")
        return source / inner, {path.stem: partial(read_one, path, classes) for path in paths}
    objects = read_objects(source)
    if objects.strays:
        problem = f"{objects.path} has {objects.strays} annotations of images that it does not list"
        raise ValueError(f"{problem}: restore these")
    return objects.path, {name: partial(_painted, objects, name, classes) for name in objects.sizes}


def _of_labelme(path: Path, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"):  # one photo may well hold rectangles alone
        objects = _formats.read_labelme(path)
    return _painted(objects, path.stem, classes, size)


def _painted(objects: _instances.Instances, name: str, classes: Classes, size: tuple[int, int]) -> np.ndarray:
    """The label map (H, W) uint8 of the image that a form of objects calls `name`, painted by `_instances`' rule."""
    what = f"{objects.path}, {name}"
    if objects.sizes[name] not in (size, None) or name in objects.repeated:
        raise ValueError(f"{what}: it is listed more than once, or not as {size} (height, width): fix it")
    rows = [row | {"iscrowd": 0} for row in objects.annotations[name]]  # CVAT flags each mask; void is a category here
    if odd := [row["id"] for row in rows if isinstance(row.get("category_id"), list | dict)]:
        raise ValueError(f"{what}, annotation {odd[0]}: its category_id is no number: give that of a category")
    values = _instances.values_of(objects.categories, classes)
    values |= {id: IGNORE for id, name in objects.categories.items() if _instances.is_nothing(name, classes)}
    if unknown := [row["category_id"] for row in rows if values.get(row.get("category_id"), 0) is None]:
        listed = ", ".join(_formats.names_of(classes).values())[:300]
        raise ValueError(f"{what} has the name {objects.categories[unknown[0]]!r}, which is no class: use {listed}")
    try:
        label = _instances.paint(rows, size, values, classes.nothing, objects.in_order)
        if objects.in_order and (thin := [row["id"] for row in rows if not row["segmentation"](size).any()]):
            raise _instances.BrokenAnnotation(f"shape {thin[0]} covers the centre of no pixel")
    except _instances.BrokenAnnotation as error:
        raise ValueError(f"{what}, {error}: remove it, or draw it again") from error
    return label


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
    _check_stage(run, labels, data)

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
        masks = _masks(run, sample)
        rows.append({"mask stability": trust.mean_over_things(masks.stability, masks, maps[0], background=outside)})
        if len(owner.unique()) > 1:  # with one class and no background word there is no margin
            margins = trust.margins(_embeddings(run, sample), text_embeddings, owner, background=background)
            rows[-1]["CLIP margin"] = trust.mean_over_things(margins, masks, maps[0], background=outside)
    signals = pd.DataFrame(rows, index=[sample.id for sample in data.unlabelled])
    one = len(signals.columns) == 1
    signals.insert(0, "trust", signals.iloc[:, 0] if one else trust.combine(signals.to_dict("list")))
    return _ranked(data.unlabelled, signals["trust"]), signals.to_dict("index")


def _command(run: Path) -> str:
    """The command that makes a run: that of `plg label` is called run."""
    return "plg label" if run.name == "run" else f"notebooks/run.py {run.name}"


def _check_stage(run: Path, stage: str, data: Dataset) -> None:
    if reason := store.outdated(run / stage, data):
        raise ValueError(f"{run / stage} cannot be used: {reason}. Run {_command(run)} again")


def _masks(run: Path, sample: Sample) -> Masks:
    return files.read_masks(run / "masks" / f"{sample.id}.json")


def _embeddings(run: Path, sample: Sample) -> torch.Tensor:
    return files.read_embeddings(run / "segments" / f"{sample.id}.safetensors")


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
    _check_stage(run, "segments", data)
    truths = {image.id: image.label for image in corrected}
    if unknown := truths.keys() - {sample.id for sample in data.unlabelled}:
        remedy = "give folders of this run, with images that have no label map yet"
        raise ValueError(f"{', '.join(sorted(unknown))} are no unlabelled images of {run.name}: {remedy}")
    overlap = files.read_json(run / "labels_zero_shot" / "manifest.json")["parameters"]["overlap"]
    rest = [sample for sample in data.unlabelled if sample.id not in truths]
    known = [*data.labelled, *(sample for sample in data.unlabelled if sample.id in truths)]
    labels = [truths[sample.id] if sample.id in truths else sample.truth() for sample in known]
    masks, embeddings = ([read_it(run, sample) for sample in known] for read_it in (_masks, _embeddings))
    texts = (tensor.cpu() for tensor in encode().class_embeddings(data.classes))
    others = (_embeddings(run, sample) for sample in data.unlabelled)
    labelled = few_shot.Labelled(masks, embeddings, labels)
    namer = few_shot.learn(labelled, data.classes, *texts, others=others, overlap=overlap)

    def label_of(sample: Sample) -> np.ndarray:
        named = namer(_embeddings(run, sample))
        return segment_match.paint(_masks(run, sample), named, data.classes.background, overlap).label

    trusts = {}
    for sample in store.progress(rest, what="margins"):
        margins = trust.few_shot_margins(namer, _embeddings(run, sample))
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
    place, which, source = (parser.add_mutually_exclusive_group(required=needed) for needed in (True, False, False))
    what = "what plg label wrote (the folder after its --to), or the name of a run, such as demo"
    place.add_argument("run", nargs="?", metavar="OUT", help=what)
    place.add_argument("--read", metavar="DIR", help="a folder that was written and corrected, to be read")
    which.add_argument("--least", type=int, metavar="N", help="how many images, the least trusted first (default: 20)")
    which.add_argument("--all", action="store_true", help="write all images, also those that have labels")
    which.add_argument("--ids", nargs="+", metavar="ID", help="write these images instead of the least trusted ones")
    source.add_argument("--labels", metavar="STAGE", help=f"folder of the run (default: {WITNESSES[0]})")
    again = "learn from labelled images and from these corrected folders, and write what few-shot labels are unsure of"
    source.add_argument("--corrected", nargs="*", metavar="DIR", help=again)
    every = ", ".join(_formats.FORMS)
    usual = f"write these of {every} (default: {' '.join(FORMS)}), or read only these (default: all that were written)"
    parser.add_argument("--form", nargs="+", metavar="FORM", help=usual)
    parser.add_argument("--untouched", action="store_true", help="take the unchanged images too: all of them are right")
    parser.add_argument("--to", required=True, metavar="DIR", help="where to write: a new folder, or label maps")
    options = parser.parse_args(arguments)
    options.form = [form for text in options.form or () for form in text.split(",") if form] or None
    if unknown := [form for form in options.form or () if form not in _formats.FORMS]:
        parser.error(f"--form {unknown[0]} is not known, only {every}")
    of_writing = options.least, options.all or None, options.ids, options.labels, options.corrected
    for_reading = options.untouched and options.corrected is None
    if for_reading if options.run else any(given is not None for given in of_writing):
        parser.error("give either OUT (and --least, --ids, --labels, --corrected), or --read DIR (and --untouched)")
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
            problem = f"{run / 'segments'} was made by {made}, and run.json names {encoder} with {encoder_options}"
            raise ValueError(f"{problem}: {remedy}")
        return encoders.build(encoder, device=str(devices.choose(device)), **encoder_options)

    def label_of(sample: Sample) -> np.ndarray:
        return files.read_label(run / labels / f"{sample.id}.png", data.classes.num_classes)

    if options.all and data.labelled and not data.unlabelled:
        ranked, trusts = [], {}
    elif options.corrected is None:
        ranked, trusts = least_trusted(run, labels, data, encode)
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
    truths = {sample.id: sample.truth for sample in labelled}

    def map_of(sample: Sample) -> np.ndarray:
        return truths[sample.id]() if sample.id in truths else label_of(sample)

    given = {"trusts": trusts, "source": f"{run.name}/{labels}", "forms": options.form or FORMS}
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
    if not labelled:  # what is corrected in a round has no label map yet
        folders = " ".join(map(quote, [*(options.corrected or ()), options.to]))
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
    if emptied := [image.id for image in taken if image.changed and not np.isin(image.label, classes.foreground).any()]:
        problem = f"{len(emptied)} changed images show no class now, e.g. {emptied[0]}"
        warnings.warn(f"{problem}: if that is a mistake of a tool, remove their maps from {options.to}", stacklevel=1)
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
