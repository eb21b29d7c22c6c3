"""Bad inputs, one row each: refused with the name of the file or argument and a remedy, nothing left half-written.

A case is files to write in an empty folder, a call there, and words that the error must hold. `counts` counts the cases
by kind for results/reliability.json, see tests/torture/malformed.py.
"""

import contextlib
import io
import json
import math
import os
import pickle
import shlex
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import doctor
import numpy as np
import pytest
import run
import torch
from PIL import Image, ImageOps
from safetensors.torch import save
from test_pipeline import TINY, do_stages, tiny

from conftest import NO_IMAGES
from plg_utils import cams, check, checkpoints, class_files, datasets, devices, encoders, files, generators, labels

# isort: split
from plg_utils import losses, metrics, review, score, segmenters, store, tables, tags, training
from plg_utils import masks as mask_models
from plg_utils.cams import classifier
from plg_utils.records import SPLITS, Masks, Sample

H, W = 6, 8
PHOTO = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
LABEL = (np.arange(H * W, dtype=np.uint8) % 4).reshape(H, W)
ZEROS, ONES = np.zeros((H, W), np.uint8), np.ones((1, H, W), bool)
NETWORK = torch.nn.Linear(3, 2)
OPTIMIZER = torch.optim.SGD(NETWORK.parameters(), lr=0.1)
ZERO = torch.zeros(1)
CAMVID = class_files.read(datasets.CLASS_FILES / "camvid.yaml")


class Case(NamedTuple):
    """A row of the table."""

    kind: str
    wrong: str
    files: dict[str, Any]  # path -> content, see `write`
    call: Callable[[], Any]  # in the folder of the files
    words: tuple[str, ...]  # which the error must hold


def of_file(kind: str, call: Callable, file: str, remedy: str, *rows: tuple, beside: dict | None = None) -> list[Case]:
    """Cases of one file that a call reads; rows: what is wrong, the content, words besides file and remedy."""
    always = (Path(file).name, remedy)
    return [Case(kind, wrong, (beside or {}) | {file: bad}, call, (*always, *words)) for wrong, bad, *words in rows]


def cases(kind: str, sound: dict, *rows: tuple, call: Callable[[], Any] | None = None) -> list[Case]:
    """Cases beside sound files; rows: what is wrong, the bad files that `call` reads, or a bad call, words."""
    parts = [(wrong, bad, call, words) if call else (wrong, {}, bad, words) for wrong, bad, *words in rows]
    return [Case(kind, wrong, sound | bad, call, tuple(words)) for wrong, bad, call, words in parts]


# Files


def write(content: dict[str, Any]) -> None:
    """Write text, bytes, images or JSON below the working directory; a function writes its file, None is no file."""
    for path, bad in [(Path(name), bad) for name, bad in content.items()]:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(bad, bytes | str | dict | list):
            bad = json.dumps(bad) if isinstance(bad, dict | list) else bad
            path.write_bytes(bad.encode() if isinstance(bad, str) else bad)
        elif isinstance(bad, np.ndarray):
            Image.fromarray(bad).save(path)
        elif bad is not None:
            bad(path)


def encoded(pixels: np.ndarray, form: str = "PNG", mode: str | None = None, **options) -> bytes:
    """An image file's bytes."""
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, form, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colours: int, body: bytes = b"", comment: bytes = b"") -> bytes:
    """A PNG with any header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"zTXt", b"a\0\0" + zlib.compress(comment)) * bool(comment)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def training_state(path: Path, size: int | None = None) -> None:
    """Write a sound training state, or only its first bytes."""
    training.save_state(path, {"steps": 5}, NETWORK, OPTIMIZER, None, [{"step": 1, "total": 0.5}], 1)
    path.write_bytes(path.read_bytes()[:size])


EVIL = type("Evil", (), {"__reduce__": lambda self: (os.mkdir, ("pwned",))})()  # its unpickling runs a command


def mask(**changes) -> dict:
    """A sound file of masks, whose only mask covers the image, with some values changed."""
    return {"size": [H, W], "masks": [{"counts": "0`1", "predicted_iou": 0.5, "stability": None} | changes]}


IMAGE, CAT = {"id": 1, "file_name": "a.png", "height": H, "width": W}, {"id": 7, "name": "cat"}


def objects(image: dict | None = None, **annotation) -> dict:
    """A sound json of one object, with some values changed."""
    sound = {"id": 5, "image_id": 1, "category_id": 7, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    return {"images": [IMAGE | (image or {})], "categories": [CAT], "annotations": [sound | annotation]}


RUNNING = {"masks/manifest.json": {"state": "running", "fingerprint": "x", "parents": {}}}
PHOTOS = {f"photos/{id}.png": PHOTO for id in "abc"} | {f"maps/{id}.png": LABEL for id in "abc"}
LISTS = "voc/ImageSets/Segmentation"
VOC = {f"voc/JPEGImages/{id}.jpg": PHOTO for id in "abcd"} | {f"voc/SegmentationClass/{id}.png": LABEL for id in "abcd"}
VOC |= {f"{LISTS}/train.txt": "a\nb\n", f"{LISTS}/val.txt": "c\nd\n"}


# Calls


def load(name: str = "folder", /, **options) -> datasets.Dataset:
    """Load a data set, and read every image and every open truth."""
    data = datasets.load(name, **options)
    for sample in (*data.labelled, *data.unlabelled, *data.val):
        sample.image()
        if sample.read_truth:
            sample.truth()
    return data


SOUND = {"root": "photos", "labels": "maps", "classes": ["x", "y", "z"], "truth_of": SPLITS}
load_folder, load_voc = partial(load, **SOUND), partial(load, "voc", root="voc", labelled=1)
load_objects = partial(load_folder, labels="objects.json", classes=["cat"])
folder, voc = partial(partial, load_folder), partial(partial, load_voc)
read_photo, read_label = partial(files.read_image, "a.jpg"), partial(files.read_label, "a.png", 4)
read_masks, read_rows = partial(files.read_masks, "a.json", (H, W)), partial(tables.rows_of, ["mine"])
read_weights = partial(files.read_weights, "a.safetensors", NETWORK)
read_embeddings = partial(files.read_embeddings, "a.safetensors")
read_classes, read_tags = partial(class_files.read, "pets.yaml"), partial(tags.read, "tags.yaml", CAMVID)
load_state = partial(training.load_state, "state.safetensors", optimiser=OPTIMIZER, average=None)
load_sound = partial(load_state, settings={"steps": 5}, model=NETWORK)
load_classifier = partial(classifier.load, "c.safetensors", CAMVID)
stage = partial(store.stage, dataset=NO_IMAGES, parameters={})
sam, clip = partial(partial, checkpoints.load_sam_state), partial(partial, checkpoints.load_clip_state)


class Stopped(Exception):
    """A command ended with another exit code than 0; the text is what it printed."""


def command(main: Callable[..., int], line: str, **more) -> None:
    """Call a command; what it prints becomes the text of an error."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            code = main(shlex.split(line), **more)
        except SystemExit as stop:
            code = stop.code
    assert code in (0, 1, 2), code
    if code:
        raise Stopped(printed.getvalue())


MAINS = (run.main, doctor.main, score.main, check.main, review.main)
runner, doctor_of, scorer, validate, review_of = (partial(partial, command, main) for main in MAINS)


def fit(**options) -> None:
    """Train on one image."""
    given = {"steps": 1, "batch_size": 1, "crop_size": 8, "lr": 0.1, "progress": None} | options
    network = segmenters.build("deeplabv3plus", 4, encoder="miniature", pretrained=False)
    training.fit(network, losses.build("supervised"), [Sample("a", lambda: PHOTO, lambda: LABEL)], **given)


def cue_maps() -> list[np.ndarray]:
    """Read the cue map of a photo."""
    return cams.build("folder", CAMVID, root="maps")([Sample("a", lambda: PHOTO)])


# The table

CASES: list[Case] = []
DIR = Path.mkdir
CUT = encoded(PHOTO, "JPEG")[:-40]
POISON = "&a [x, x, x, x, x, x, x, x, x], &b [*a, *a, *a, *a, *a, *a, *a, *a, *a], &c [*b, *b, *b, *b, *b, *b, *b, *b]"

# fmt: off
CASES += of_file("photo", read_photo, "a.jpg", "",
    ("is cut in the middle", CUT, "truncated", "remove"),
    ("says 50,000 x 50,000 pixels", png(50_000, 50_000, 8, 2), "268 megapixels are the most", "smaller"),
    ("has a comment of 3 MB in 3 kB", png(W, H, 8, 2, comment=b"x" * 3_000_000), "too large", "remove"),
    ("has integers of 32 bits", encoded(ZEROS.astype(np.int32), "TIFF"), "32-bit", "remove"),
    ("is PostScript, for which PIL starts a program", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n", "remove"))
CASES += cases("photo", PHOTOS,
    ("has the name of another one", {"photos/a.jpg": PHOTO}, "a.jpg and a.png", "rename"),
    ("differs from another one in case alone", {"photos/A.png": PHOTO}, "A.png and a.png", "rename"),
    ("is a folder among photos", {"photos/d.png": DIR}, "d.png", "rename"),
    ("is broken, as another one is", {"photos/b.png": "no", "photos/d.jpg": "no"}, "2 of 4", "b.png", "d.jpg", "skip"),
    ("has a name that is too long", {f"photos/{'x' * 210}.png": PHOTO}, "xxxx", "Shorten"),
    ("has a line separator in its name", {"photos/a\u2028b.png": PHOTO}, "LINE SEPARATOR", "Rename"),
    ("has the name of a manifest", {"photos/manifest.png": PHOTO}, "manifest.json", "Rename"), call=load_folder)

CASES += of_file("label map", read_label, "a.png", "",
    ("is a JPEG", encoded(LABEL, "JPEG"), "is a JPEG file", "other formats may change class values", "8-bit"),
    ("is a colour image", PHOTO, "(6, 8, 3)", "8-bit"),
    ("has 16 bits", LABEL.astype(np.uint16), "uint16", "8-bit"),
    ("is grey of 2 bits, where readers turn 3 into 255", png(W, H, 2, 0, b"\0\x1b\x1b" * H), "grey of 2 bits", "8-bit"),
    ("has values of no class", LABEL + 7, "[7, 8, 9, 10]", "0 to 3", "classes"),
    ("says 50,000 x 50,000 pixels", png(50_000, 50_000, 8, 0), "smaller"))
CASES += cases("label map", PHOTOS,
    ("has another size than its photo", {"maps/b.png": LABEL.T.copy()}, "b.png is (8, 6)", "(6, 8)", "resized"),
    ("has CamVid's void, 11, where 255 is void", {"maps/b.png": ZEROS + 11}, "b.png", "[11]", "255"),
    ("belongs to no photo", {f"maps/{id}.png": None for id in "abc"} | {"maps/z.png": LABEL}, "maps", "a.png"),
    call=load_folder)

CASES += of_file("masks", read_masks, "a.json", "again",
    ("are nested a hundred thousand times", "[" * 100_000, "recursion"),
    ("have the key of the size twice", json.dumps(mask())[:-1] + ', "size": [6, 8]}', "'size'", "twice"),
    ("are those of another image", mask() | {"size": [W, H]}, "(6, 8)"),
    ("have a size of texts", mask() | {"size": ["6", "8"]}, "[height, width]"),
    ("are a mapping, not a list", mask() | {"masks": {}}, "no list"),
    ("lack a score", {"size": [H, W], "masks": [{"counts": "0`1"}]}, "predicted_iou"),
    ("have a score of NaN", mask(stability=math.nan), "NaN", "null"),
    ("have a score that is a text", mask(stability="high"), "number"),
    ("have an infinite score", json.dumps(mask()).replace("0.5", "1e999"), "finite"),
    ("have a score of 400 digits", json.dumps(mask()).replace("0.5", "9" * 400), "too large"),
    ("have run lengths as numbers", mask(counts=[0, 48]), "text"),
    ("have run lengths that do not fill the image", mask(counts="6"), "mask 0", "6", "48"),
    ("have run lengths with a strange character", mask(counts="~"), "mask 0", "~"),
    ("have run lengths that stop early", mask(counts="P"), "mask 0", "ends"),
    ("have run lengths without end", mask(counts="o" * 9), "mask 0", "end"),
    ("have run lengths below zero", mask(counts="0O`1"), "mask 0", "negative"))

CASES += of_file("class file", read_classes, "pets.yaml", "",
    ("is missing a bracket", "classes: [", "YAML", "line 1"),
    ("has a key of another spelling", "classes: [{name: cat, color: [1, 2, 3]}]", "color", "only colour"),
    ("lists no class", "classes: []", "at least one"),
    ("lacks the classes", "templates: ['a {}']", "needs the key classes"),
    ("lists a class twice", "classes: [{name: cat}, {name: cat}]", "more than once", "cat"),
    ("has the key of the classes twice", "classes: [{name: cat}]\nclasses: [{name: dog}]", "twice", "keep one"),
    ("has a template without a place for the word", "classes: [{name: cat}]\ntemplates: [a photo]", "one {}"),
    ("has `no` for a name, which YAML reads as false", "classes: [{name: no}]", "False", "quotes"),
    ("has a date that does not exist", "classes: [{name: 2001-99-99}]", "month"),
    ("has a number for a word", "classes: [{name: cat, words: [cat, 1]}]", "words of cat", "quotes"),
    ("has a text for the background's words", "classes: [{name: cat}]\nbackground: ''", "background", "list"),
    ("has a colour by name", "classes: [{name: cat, colour: red}]", "'red'", "[red, green, blue]"),
    ("has 256 classes", f"classes: [{', '.join(f'{{name: c{k}}}' for k in range(256))}]", "256 classes"),
    ("is of a later version", "classes: [{name: cat}]\nversion: 2", "version 2", "only 1"),
    ("holds an object of Python", "classes: [{name: !!python/object/apply:os.mkdir [pwned]}]", "constructor"),
    ("is a bomb of aliases", f"classes: [{POISON}]", "alias", "write out"),
    ("is nested fifteen hundred times", "[" * 1500, "YAML"))

CASES += of_file("split list", load_voc, f"{LISTS}/train.txt", "",
    ("holds an id twice", "a\na\n", "a", "keep each once"),
    ("holds an id of val", "a\nc\n", "val", "c", "keep each"),
    ("holds an id without a photo", "z\n", "z.jpg", "correct the list"),
    ("leads out of the folder", "../a\n", "line 1", "'../a'"),
    ("leads out of the folder in Windows' way", "..\\a\n", "line 1"),
    ("is empty", "", "write an id"),
    ("has three columns", "a b c\n", "line 1", "id"),
    ("gives a photo without label map", "JPEGImages/a.jpg\n", "label map", "write the id alone"),
    ("is UTF-16 without its mark", "a\nb\n".encode("utf-16-le"), "UTF-8", "save"),
    ("holds a control character", "a\x07b\n", "line 1", "Rename"),
    ("hides a file", ".a\n", "line 1", "Rename"), beside=VOC)
CASES += cases("split list", VOC | {"mine/labeled.txt": "a\n"},
    ("is not UniMatch's", voc(split="1_9"), "1_9", "did you mean '1_8'?"),
    ("has no val.txt beside it", voc(split="mine"), "mine", "val.txt"))

CASES += cases("data set option", PHOTOS | VOC,
    ("is misspelt", voc(labeled=3), "'labeled'", "did you mean 'labelled'"),
    ("asks for more labels than there are", voc(labelled=9), "labelled=9", "0 to 2"),
    ("asks for a part that gives no image", voc(labelled="1/99"), "1/99", "larger part"),
    ("asks for a part above one", voc(labelled="3/2"), "3/2", '"1/8"'),
    ("asks for one and a half labels", voc(labelled=1.5), "1.5", '"1/8"'),
    ("is a seed below zero", voc(seed=-1), "seed=-1", "from 0 on"),
    ("is a limit of half an image", voc(limit=0.5), "limit=0.5", "None for all"),
    ("opens an unknown split", voc(truth_of=["vall"]), "vall", "labelled, unlabelled, val, test"),
    ("is a root that is a number", voc(root=5), "root=5", "path"),
    ("is a root that does not exist", voc(root="nowhere"), "nowhere", "JPEGImages", "root"),
    ("is no way to treat bad photos", voc(on_bad_image="ignore"), "'ignore'", "stop, skip, when_read"),
    ("names no classes", folder(classes=None), "classes=None", 'classes=["cat", "dog"]'),
    ("names the classes by a word", folder(classes="cat"), "cat", '["cat"]'),
    ("gives the background one word, not a list", folder(background="wall"), "'wall'", "list of words"),
    ("names fewer classes than the maps have", folder(classes=["x"]), "a.png", "[2, 3]", "classes"),
    ("keeps more for val than there are", folder(val=9), "val=9", "3", "fewer"),
    ("keeps a part of a photo for val", folder(val=0.5), "val=0.5", "number of photos"),
    ("gives photos without a photo", folder(root="voc"), "voc", "jpg"),
    ("gives labels that do not exist", folder(labels="none"), "none", "COCO"),
    ("gives a json that does not exist", folder(labels="none.json"), "none.json", "exist", "export it again"),
    ("names an unknown data set", partial(datasets.load, "vok"), "'vok'", "did you mean 'voc'?"))

CASES += of_file("annotations", load_objects, "objects.json", "",
    ("lack the categories", {"images": [], "annotations": []}, "categories", "needs"),
    ("are a mapping where a list belongs", objects() | {"annotations": {}}, "annotations is not a list", "needs"),
    ("have an image's id twice", objects() | {"images": [IMAGE, IMAGE | {"file_name": "b.png"}]}, "images", "id 1"),
    ("have a category without name", objects() | {"categories": [{"id": 7, "name": None}]}, "category 7"),
    ("are of other photos", objects({"file_name": "z.png"}), "e.g. z"),
    ("are of other classes", objects() | {"categories": [CAT | {"name": "dog"}]}, "dog", "the classes are cat"),
    ("give an image another size", objects({"height": H + 1}), "a.png is (6, 8)", "resized"),
    ("give an image 10^18 pixels", objects({"height": 10**9, "width": 10**9}), "size"),
    beside=PHOTOS)
CASES += of_file("annotations", load_objects, "objects.json", "correct it", *((*row, "annotation 5") for row in (
    ("have a polygon of two corners", objects(segmentation=[[1, 1, 5, 5]]), "three corners"),
    ("have a corner far away", objects(segmentation=[[1, 1, 5, 5, 5, 1e9]]), "near the image"),
    ("have no outline", objects(segmentation=None), "form"),
    ("have an empty outline", objects(segmentation=[]), "polygon"),
    ("have run lengths of another size", objects(segmentation={"size": [W, H], "counts": [48]}), "(8, 6)"),
    ("have run lengths that do not fill the image", objects(segmentation={"size": [H, W], "counts": [1]}), "48"),
    ("have run lengths below zero", objects(segmentation={"size": [H, W], "counts": [-1, 49]}), "from 0 on"),
    ("have broken run lengths as text", objects(segmentation={"size": [H, W], "counts": "zz"}), "z"),
    ("have a category that is not listed", objects(category_id=99), "99"),
    ("have a crowd that is neither yes nor no", objects(iscrowd="maybe"), "'maybe'", "0 or 1"))), beside=PHOTOS)

plan = partial(command, run.main, "mine --dry-run", published=Path("published"))
RUN = "published/mine/parameters.yaml"
CASES += cases("parameter file", {}, *((wrong, {RUN: bad}, *words) for wrong, bad, *words in (
    ("is not YAML", "steps: [", "parameters.yaml", "YAML", "line 1"),
    ("is a list", "- steps", "parameters.yaml", "`name: value`"),
    ("misspells a parameter", "stpes: 5", "'stpes'", "did you mean 'steps'"),
    ("has a word for a number", "steps: many", "steps is 'many'", "default 120"),
    ("sets the name of the run", "run: other", "`run`", "first argument"),
    ("names an unknown notebook", "notebooks: [99_none]", "99_none.ipynb", "correct"),
    ("has a parameter twice", "steps: 5\nsteps: 6", "parameters.yaml", "'steps'", "keep one"),
    ("names its notebooks by a word", "notebooks: 05_evaluation", "`notebooks`", "list of names"),
    ("names an unknown method", "methods: [direkt]", "'direkt'", "did you mean 'direct'?"),
    ("has a short name of -p", "data_root: photos", "data_root is for -p alone", "dataset_options: {root: 'photos'}"),
    ("has a grid that is a list", "grid: [1]", "`grid`", "`name: [value, value]`"),
    ("has a grid with a value, not a list", "grid: {seed: 5}", "seed: 5", "list of at least one value"),
    ("has a grid of a misspelt parameter", "grid: {sede: [1]}", "'sede'", "did you mean 'seed'"),
    ("has a parameter in the grid too", "seed: 1\ngrid: {seed: [1]}", "seed", "keep one"))), call=plan)

CASES += cases("run.py", {},
    ("does not know the run", runner("dmo"), "'dmo'", "did you mean 'demo'", "parameters.yaml"),
    ("gets a run that leads elsewhere", runner("../demo"), "'../demo'"),
    ("gets no run", runner(""), "required: RUN"),
    ("gets -p without a value", runner("demo -p steps"), "-p", "expected 2"),
    ("gets -p with broken YAML", runner("demo -p steps [1"), "the value of steps", "YAML"),
    ("gets -p with a folder that does not exist", runner("demo -p data_root /none"), "data_root is /none", "correct"),
    ("gets -g with a value twice", runner("demo -g seed 1,1"), "1 twice", "keep one"),
    ("gets -g and -p of the same", runner("demo -g seed 1,2 -p seed 1"), "seed", "by -g seed alone"),
    ("gets -p with fewer steps than one", runner("demo -p steps -1"), "steps is -1", "from 1 on"),
    ("gets -p with a number for a file", runner("demo -p class_file {a:5}"), "class_file is {", "path of a file"),
    ("gets an unknown option", runner("demo --stpes"), "unrecognized arguments: --stpes"),
    ("gets --stages of a grid", runner("demo -g seed 1 --stages"), "--stages is of single runs", "several times"),
    ("gets --against without a grid", runner("demo --against full"), "add -g NAME VALUES"))
CASES += cases("doctor.py", {},
    ("does not know the run", doctor_of("dmo"), "did you mean 'demo'"),
    ("gets -p with a misspelt parameter", doctor_of("demo -p stpes 5"), "did you mean 'steps'"),
    ("gets -p without a value", doctor_of("demo -p steps"), "expected 2"))

CASES += cases("scorer", PHOTOS | {"a/a.png": LABEL, "ids.txt": "", "twice.txt": "a\na\n", "other.txt": "a.png\n"},
    ("gets no classes", scorer("maps maps"), "required: --classes"),
    ("does not know the classes", scorer("maps maps --classes vox"), "--classes vox: did you mean voc?", "\"vox,\""),
    ("misses the class file", scorer("maps maps --classes my.yaml"), "my.yaml", "give one of"),
    ("misses a folder", scorer("none maps --classes voc"), "none", "give one"),
    ("gets photos as predictions", scorer("photos maps --classes voc"), "a.png", "8-bit"),
    ("misses a prediction", scorer("a maps --classes voc"), "b, c", "--allow-missing"),
    ("gets an id twice", scorer("maps maps --classes voc --ids twice.txt"), "twice.txt", "one line"),
    ("gets file names for ids", scorer("maps maps --classes voc --ids other.txt"), "a.png", "list of ids"),
    ("is to write into a folder's name", scorer("maps maps --classes voc --json ."), "--json", "name of a"))
CASES += cases("validator", PHOTOS,
    ("does not know the data set", validate("vok"), "vok is neither a folder of photos nor a data set", "voc"),
    ("misses the folder", validate("folder --root none classes [x]"), "none", "folder of your photos"),
    ("gets an option without a value", validate("folder --root photos classes"), "each option needs a value"),
    ("gets an unknown option", validate("folder --root photos clases [x]"), "'clases'", "did you mean 'classes'"),
    ("gets broken YAML", validate("folder --root photos classes [x"), "the list of names", "YAML"),
    ("gets broken YAML of another option", validate("folder --root photos val [x"), "the value of val", "YAML"))
CASES += cases("validator", PHOTOS | {"photos/b.png": "no", "photos/d.jpg": ""},
    ("meets two broken photos", validate("folder --root photos classes [x]"), "b.png", "d.jpg", "would stop a run"))
CASES += cases("review", {"full/a.txt": "x"},
    ("gets neither a run nor a folder", review_of("--to new"), "--read"),
    ("gets a run that was not made", review_of("none --to new"), "none was not written by plg label", "name of a run"),
    ("gets a folder that is no run", review_of("full --to new"), "full was not written by plg label", "after its --to"),
    ("is to write no image", review_of("none --least 0 --to new"), "--least is 0", "from 1 on"),
    ("reads a folder that it did not write", review_of("--read full --to new"), "full"),
    ("reads only forms of a run", review_of("none --form masks --to new"), "--form"))

locate = partial(partial, checkpoints.locate)
CASES += cases("checkpoint", {"data/checkpoints/sam_vit_b_01ec64.pth": "x" * 99},
    ("has an unknown name", locate("sam_vit_x"), "'sam_vit_x'", "sam_vit_b"),
    ("is a branch of the hub", locate("hub:a/b@main"), "hub:a/b@main", "commit"),
    ("has another SHA-256", locate("sam_vit_b"), "sam_vit_b_01ec64.pth", "delete it"))
CASES += of_file("checkpoint", sam("a.pth"), "a.pth", "again",
    ("is pickled code", pickle.dumps(EVIL, 2)),
    ("is torch's archive of code", partial(torch.save, {"a": EVIL})),
    ("is torch's archive of a list", partial(torch.save, [1]), "state dict"))
CASES += of_file("checkpoint", clip("a.pt"), "a.pt", "again", ("of CLIP is code", partial(torch.save, {"a": EVIL})))
CASES += of_file("checkpoint", sam("a.safetensors"), "a.safetensors", "again", ("is cut", save({"a": ZERO})[:-2]))

CASES += of_file("weights", read_weights, "a.safetensors", "train the network again",
    ("are those of another network", save({"other": torch.zeros(3)}), "Missing key", "build"),
    ("are not numbers", save({"weight": torch.zeros(2, 3) / 0, "bias": torch.zeros(2)}), "weight", "finite"))
CASES += of_file("embeddings", read_embeddings, "a.safetensors", "again",
    ("have no rows", save({"embeddings": torch.zeros(3)}), "(N, D)"),
    ("are integers", save({"embeddings": torch.zeros(2, 3).long()}), "floating"),
    ("are not numbers", save({"embeddings": torch.zeros(2, 3) / 0}), "finite"),
    ("are another tensor", save({"other": torch.zeros(2, 3)}), "embeddings"))
CASES += of_file("tags", read_tags, "tags.yaml", "",
    ("name an unknown class", "a: [cow]", "cow", "the classes are"),
    ("name an image twice", "a: []\na: []", "'a'", "keep one", "line 2"),
    ("hold a name for a list", "a: car", "{id: [names of classes]}"))
CASES += of_file("cue map", cue_maps, "maps/a.png", "",
    ("has another size than its image", LABEL.T.copy(), "(8, 6)", "size"),
    ("has values of no class", ZEROS + 99, "[99]", "classes"))
CASES += cases("cue map", {}, ("is in a folder that does not exist", cue_maps, "maps", "root"))

CASES += of_file("training state", load_sound, "state.safetensors", "remove it",
    ("is cut", partial(training_state, size=-5)),
    ("has no notes", save({"a": ZERO})),
    ("has notes without end", save({"a": ZERO}, {"training": "[" * 99_999})))
CASES += cases("training state", {"state.safetensors": training_state},
    ("is that of another network", partial(load_sound, model=torch.nn.Linear(4, 2)), "state.safetensors", "remove it"),
    ("is that of other settings", partial(load_sound, settings={"steps": 6}), "steps: 5, now 6", "remove it"))

CASES += of_file("manifest", partial(stage, "masks"), "masks/manifest.json", "delete it",
    ("is another file", {"a": 1}),
    ("has an unknown state", {"state": "ready", "fingerprint": "x"}))
CASES += cases("manifest", {},
    ("of the stage before is missing", {"masks": DIR}, "masks", "manifest.json", "run the stage"),
    ("of the stage before is unfinished", RUNNING, "masks", "not finished", "run the stage"),
    call=partial(stage, "next", parents=["masks"]))

CASES += of_file("results", read_rows, "results/mine/summary.json", "run.py mine", ("have no rows", {"rows": 5}))

# Each kind of file is missing, empty, random bytes, or a folder; where "missing" is left out, that is a fresh start
NO_FILE = {"missing": None, "empty": b"", "noise": bytes(range(128, 256)), "a folder": DIR}
CASES += [case for kind, call, file, remedy, left_out, beside in (
    ("photo", read_photo, "a.jpg", "remove", (), {}),
    ("label map", read_label, "a.png", "again", (), {}),
    ("masks", read_masks, "a.json", "again", (), {}),
    ("class file", read_classes, "pets.yaml", "", (), {}),
    ("annotations", load_objects, "objects.json", "", (), PHOTOS),
    ("tags", read_tags, "tags.yaml", "", (), {}),
    ("cue map", cue_maps, "maps/a.png", "", (), {}),
    ("weights", read_weights, "a.safetensors", "train", (), {}),
    ("weights", load_classifier, "c.safetensors", "classifier", (), {}),
    ("embeddings", read_embeddings, "a.safetensors", "again", (), {}),
    ("checkpoint", sam("a.pth"), "a.pth", "again", (), {}),
    ("checkpoint", clip("a.pt"), "a.pt", "again", (), {}),
    ("checkpoint", sam("a.safetensors"), "a.safetensors", "again", (), {}),
    ("training state", load_sound, "state.safetensors", "remove it", ("missing", "a folder"), {}),
    ("manifest", partial(stage, "masks"), "masks/manifest.json", "again", ("missing",), {}),
    ("manifest", lambda: stage("masks").register(["a"]), "masks/outputs.json", "delete", ("missing",), RUNNING),
    ("results", read_rows, "results/mine/summary.json", "again", ("missing", "a folder"), {}),
    ("review", review_of("mine --to new"), "results/mine/run.json", "again", (), {}),
    ("review", review_of("--read full --to new"), "full/index.json", "give", (), {}),
    ("scorer", scorer("maps maps --classes voc --ids ids.txt"), "ids.txt", "one", (), PHOTOS),
    ("scorer", scorer("maps maps --classes c.yaml"), "c.yaml", "", (), PHOTOS)
) for case in of_file(kind, call, file, remedy, *(
    (f"{file} is {what}", bad) for what, bad in NO_FILE.items() if what not in left_out), beside=beside)]

embeddings = torch.ones(2, 3)
assign = partial(labels.assign, embeddings, embeddings)
confusion = partial(metrics.confusion, LABEL)
CASES += cases("function argument", {},
    ("maps of different sizes are counted", lambda: confusion(LABEL[1:], 4), "(6, 8)", "exact size"),
    ("a map of floats is counted", lambda: metrics.confusion(LABEL / 2, LABEL, 4), "float64", "integer"),
    ("values of no class are counted", lambda: confusion(LABEL + 7, 4), "the value 7", "0..3"),
    ("no class is counted", lambda: confusion(LABEL, 0), "num_classes is 0", "1 to 255"),
    ("a square matrix is scored", lambda: metrics.scores(np.zeros((4, 4), int)), "(K, K+1)"),
    ("a background of no class", lambda: metrics.scores(np.zeros((3, 4), int), background=7), "7", "0..2"),
    ("uncovered pixels as a word", lambda: metrics.scores(np.zeros((3, 4), int), uncovered="x"), "background", "miss"),
    ("masks of logits", lambda: Masks.from_dense(LABEL[None] - 0.5), "float64", "`> 0`"),
    ("fewer scores than masks", lambda: Masks.from_dense(np.ones((4, H, W), bool), [0.5]), "4 masks", "(1,)"),
    ("masks chosen by too few bools", lambda: Masks.from_dense(ONES).take(np.ones(2, bool)), "1 masks", "(2,)"),
    ("a label map of int64 is written", lambda: files.write_label("a.png", LABEL.astype(int)), "a.png", "int64"),
    ("a label map is written as JPEG", lambda: files.write_label("a.jpg", LABEL), "a.jpg", "PNG"),
    ("a label map without pixels is written", lambda: files.write_label("a.png", LABEL[:0]), "a.png", "pixels"),
    ("a photo of floats is written", lambda: files.write_image("a.png", PHOTO / 2), "a.png", "float64"),
    ("a photo of four channels is written", lambda: files.write_image("a.png", PHOTO[..., [0, 1, 2, 2]]), "(6, 8, 4)"),
    ("a table with infinity is written", lambda: files.write_json("a.json", [math.inf]), "a.json"),
    ("embeddings of one axis are written", lambda: files.write_embeddings("a.st", torch.zeros(3)), "a.st", "(N, D)"),
    ("a run's name leads elsewhere", lambda: store.run_folder("../x"), "'../x'", "dot"),
    ("a run's name is a number", lambda: store.run_folder(5), "5", "quotes"),
    ("an unknown device", lambda: devices.choose("gpu"), "'gpu'", "'auto'"),
    ("embeddings of another encoder", lambda: labels.assign(embeddings, torch.ones(2, 4)), "(2, 3)", "(2, 4)", "again"),
    ("embeddings that are not numbers", lambda: labels.assign(embeddings * math.nan, embeddings), "finite", "again"),
    ("a threshold that is not a number", lambda: assign(threshold=math.nan), "threshold is nan", "None"),
    ("a temperature of nothing", lambda: assign(rule="softmax", temperature=0), "temperature is 0", "above 0"),
    ("a class that no label map holds is painted", lambda: labels.paint(ONES, [300], [0.5]), "300", "0 to 254"),
    ("a score that is not a number is painted", lambda: labels.paint(ONES, [1], [math.nan]), "finite"),
    ("an unknown mask model", lambda: mask_models.build("samm"), "'samm'", "did you mean 'sam'?"),
    ("an unknown encoder", lambda: encoders.build("clap"), "'clap'", "clip"),
    ("an unknown segmenter", lambda: segmenters.build("unet", 3), "'unet'", "smp"),
    ("an unknown loss", lambda: losses.build("unimatsh"), "did you mean 'unimatch'?"),
    ("an unknown generator", lambda: generators.build("boxs", None), "did you mean 'boxes'?"),
    ("an unknown source of cue maps", lambda: cams.build("cam", None), "'cam'", "classifier"),
    ("a training of no step", lambda: fit(steps=0), "steps is 0", "from 1 on"),
    ("a training that unlearns", lambda: fit(lr=-0.1), "lr=-0.1", "above 0"),
    ("a training on images of no size", lambda: fit(scale=(0, 0)), "scale is (0, 0)", "above 0"),
    ("an unknown precision", lambda: devices.precision("fp16", torch.device(0)), "fp16", "auto"))
# fmt: on


def counts() -> dict[str, int]:
    """Cases by kind, with their sum: for results/reliability.json."""
    kinds = Counter(case.kind for case in CASES)
    return {"cases": kinds.total(), **{kind: kinds[kind] for kind in sorted(kinds)}}


# The tests


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in; data, results and checkpoints are below it."""
    for name, below in (("DATA", "data"), ("RESULTS", "results"), ("CHECKPOINTS", "data/checkpoints")):
        monkeypatch.setenv(f"PLG_{name}", str(tmp_path / below))
    monkeypatch.setenv("PLG_PROGRESS", "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents() -> dict[str, bytes]:
    """What the folder holds, without the memory of sound photos and the maps painted from a json."""
    paths = {path.as_posix(): path for path in Path().rglob("*")}
    kept = [name for name in paths if not name.startswith(("data/checked_photos", "data/folder_labels"))]
    return {name: paths[name].read_bytes() if paths[name].is_file() else b"" for name in kept if name != "data"}


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind} {case.wrong}".replace(" ", "-") for case in CASES])
@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_refused_clearly(case, place):
    write(case.files)
    before = contents()
    with pytest.raises((ValueError, OSError, TypeError, Stopped)) as error:
        case.call()
    message = str(error.value)
    assert not [word for word in case.words if word not in message], message
    assert "Traceback" not in message
    assert len(message) < 3000, "too long to be read"
    assert contents() == before, "something was left behind"
    if isinstance(error.value, TypeError):
        assert case.kind in ("function argument", "data set option"), "a file cannot be a TypeError"


def test_the_table_does_not_shrink():
    assert counts()["cases"] >= 265
    assert len(counts()) - 1 >= 19
    assert len({(case.kind, case.wrong) for case in CASES}) == len(CASES)
    assert all(case.words for case in CASES)


def test_the_sound_files_of_the_rows_are_read(place):
    write(PHOTOS | VOC | {"a.json": mask(), "state.safetensors": training_state, "objects.json": objects()})
    assert (len(load_folder().labelled), len(load_voc().labelled), len(load_objects().labelled)) == (3, 1, 1)
    assert files.read_masks("a.json", (H, W)).dense().all()
    load_sound()


UNUSUAL = {
    "RGBA": encoded(PHOTO, mode="RGBA"), "CMYK": encoded(PHOTO, "JPEG", "CMYK"), "grey": encoded(ZEROS, "JPEG"),
    "16 bits": encoded(LABEL.astype(np.uint16) * 256), "1 bit": encoded(LABEL, mode="1"),
    "TIFF": encoded(PHOTO, "TIFF"), "palette": encoded(PHOTO, mode="P"), "WebP": encoded(PHOTO, "WEBP"),
    "animated": encoded(LABEL, "GIF", "P", save_all=True, append_images=[Image.new("P", (W, H))]),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_photos_are_read(kind, place):
    """Whatever the name ends in; of an animation the first picture."""
    write({"a.jpg": UNUSUAL[kind]})
    image = files.read_image("a.jpg")
    assert (image.shape, image.dtype) == ((H, W, 3), np.uint8)
    assert files.image_size("a.jpg") == (H, W)


@pytest.mark.filterwarnings("ignore")
def test_strange_or_broken_exif_never_parts_image_and_size(place):
    """Any orientation, and each byte of the EXIF in turn: image and size agree, or the photo is refused by name."""
    exif = Image.Exif()
    for orientation in (0, 1, 2, 5, 8, 9, 99, 65535, 6):
        exif[files.ORIENTATION] = orientation
        whole = encoded(PHOTO, "JPEG", exif=exif)
        write({"a.jpg": whole})
        turned = orientation in (5, 6, 7, 8)
        assert files.read_image("a.jpg").shape[:2] == files.image_size("a.jpg") == ((W, H) if turned else (H, W))
    num_read, start = 0, whole.index(b"Exif\0\0")
    for offset in range(start, start + 40):
        for value in (0, 255):
            write({"a.jpg": whole[:offset] + bytes([value]) + whole[offset + 1 :]})
            try:
                assert files.read_image("a.jpg").shape[:2] == files.image_size("a.jpg")
                num_read += 1
            except ValueError as error:
                assert "a.jpg" in str(error)
    assert num_read > 40


def test_text_files_of_windows_are_read(place):
    """They begin with three bytes that mean UTF-8, and their lines end with two bytes."""
    mark = b"\xef\xbb\xbf"
    write(VOC | {f"{LISTS}/train.txt": mark + b"a\r\nb\r\n", "a.json": mark + json.dumps(mask()).encode()})
    write({"pets.yaml": mark + b"classes: [{name: cat}]\r\n"})
    assert len(load_voc(labelled=2).labelled) == 2
    assert len(files.read_masks("a.json")) == 1
    assert class_files.read("pets.yaml").names == ("cat",)


@pytest.mark.parametrize("line", ["notebooks/run.py demo -p stpes 5", "-m plg_utils.check voc --root none"])
def test_a_real_command_ends_without_traceback(line, place):
    done = subprocess.run([sys.executable, *line.split()], capture_output=True, text=True, cwd=files.ROOT, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not contents()


# A few bad photos among many


@pytest.fixture
def many(place):
    """Twenty photos with label maps, of which 07 and 13 are broken."""
    for index in range(20):
        write({f"photos/{index:02d}.jpg": np.roll(PHOTO, index, axis=0), f"maps/{index:02d}.png": LABEL})
    write({"photos/07.jpg": CUT, "photos/13.jpg": b""})


def load_many(**options) -> datasets.Dataset:
    """Load the twenty photos, ten of them labelled, four for val."""
    return datasets.load("folder", **SOUND | {"truth_of": ("labelled",), "labelled": 10, "val": 4} | options)


def ids(data: datasets.Dataset) -> dict[str, list[str]]:
    """Ids of the images by split."""
    return {split: [sample.id for sample in getattr(data, split)] for split in SPLITS}


def test_bad_photos_stop_a_load_and_are_all_listed(many, monkeypatch):
    """By default for a folder, if asked for elsewhere; a long list is cut."""
    for options in ({}, {"on_bad_image": "stop"}):
        with pytest.raises(ValueError, match=r"(?s)2 of 20 photos cannot be read.*07.jpg.*13.jpg.*on_bad_image: skip"):
            load_many(**options)
    monkeypatch.setattr(datasets, "SHOWN", 1)
    with pytest.raises(ValueError, match=r"(?s)07.jpg.*and 1 more") as error:
        load_many()
    assert "13.jpg" not in str(error.value)
    write({f"photos/{index:02d}.jpg": b"" for index in range(20)})
    with pytest.raises(ValueError, match="20 of 20 photos cannot be read"):
        load_many(on_bad_image="skip")


def test_bad_photos_are_skipped_if_asked_for(many):
    with pytest.warns(UserWarning, match=r"(?s)2 of 20 photos cannot be read and are left out.*07.jpg.*13.jpg"):
        data = load_many(on_bad_image="skip")
    assert sorted(data.left_out) == ["07", "13"]
    assert datasets.provenance(data).endswith("; 2 of 20 photos cannot be read and are left out")
    everything = ids(load_many(on_bad_image="when_read"))
    kept = {split: [id for id in of_split if id not in ("07", "13")] for split, of_split in everything.items()}
    assert ids(data) == kept  # no other photo takes the place of one that is left out
    assert sum(map(len, kept.values())) == 18
    for sample in (*data.labelled, *data.unlabelled, *data.val):
        sample.image()


def test_a_photo_for_which_there_is_no_memory_is_no_bad_photo(many, monkeypatch):
    def full(image, in_place):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(ImageOps, "exif_transpose", full)
    with pytest.raises(MemoryError, match=r"\d.jpg was not read: the memory is full \(Unable to allocate 9 GiB"):
        load_many(on_bad_image="skip")


@pytest.mark.filterwarnings("ignore")
def test_readable_photos_are_remembered_while_their_files_stay(many, monkeypatch):
    """The others are tried again; the memory itself may be broken, or a place where nothing can be written."""
    tried, read = [], files.read_photo
    monkeypatch.setattr(files, "read_photo", lambda path, bands: tried.append(path.name) or read(path, bands))

    def left_out_and_tried() -> tuple[list[str], list[str]]:
        tried.clear()
        return sorted(load_many(on_bad_image="skip").left_out), sorted(tried)

    assert left_out_and_tried()[0] == ["07", "13"]
    assert left_out_and_tried() == (["07", "13"], ["07.jpg", "13.jpg"])
    old = Path("photos/05.jpg").stat()
    write({"photos/07.jpg": PHOTO, "photos/05.jpg": "broken since".ljust(old.st_size)})
    os.utime("photos/05.jpg", ns=(old.st_atime_ns, old.st_mtime_ns))  # as programs do that unpack or copy
    assert left_out_and_tried() == (["05", "13"], ["05.jpg", "07.jpg", "13.jpg"])
    (memory,) = Path("data/checked_photos").iterdir()
    write({memory: "["})
    assert len(left_out_and_tried()[1]) == 20
    assert len(json.loads(memory.read_text())["read"]) == 18
    monkeypatch.setenv("PLG_DATA", str(Path("photos/00.jpg/x").absolute()))
    assert left_out_and_tried()[0] == ["05", "13"]


@pytest.mark.filterwarnings("ignore")
def test_the_stages_of_a_run_leave_out_the_same(many, place):
    """By default nothing is begun; with skip every stage has 18 of 20, and a second start finds them done."""
    options = {name: str(place / SOUND[name]) for name in ("root", "labels")} | {"classes": SOUND["classes"]}
    given = TINY | {"dataset": "folder", "dataset_options": options, "labelled": 10, "images_at_once": 9}
    results = place / "results" / "tiny"
    with pytest.raises(ValueError, match="2 of 20 photos cannot be read"):
        do_stages(tiny(["02"], **given))
    assert not results.exists()
    options["on_bad_image"] = "skip"

    def files_of(number: str) -> dict[Path, int]:
        do_stages(tiny([number], **given))
        return {path: path.stat().st_mtime_ns for path in results.glob("*/*.*") if "outputs" not in path.stem}

    written = files_of("02")
    kept = {f"{index:02d}" for index in range(20)} - {"07", "13"}
    for name in ("masks", "segments", "labels_zero_shot"):
        assert {path.stem for path in written if path.parent.name == name} - {"manifest"} == kept, name
    again = files_of("02")
    assert {path for path in again if again[path] != written.get(path)} <= set(results.glob("*/manifest.json"))


def test_a_photo_that_no_check_saw_is_named_when_it_is_read(many, monkeypatch):
    """It is broken, or gone since the load, or closed; root may read everything, so that refusal is simulated."""
    data = load_many(on_bad_image="when_read", labelled=0, val=0)
    assert not Path("data/checked_photos").exists()
    by_id, opened = {sample.id: sample for sample in data.unlabelled}, Image.open
    Path("photos/01.jpg").unlink()
    for id, kind in (("07", ValueError), ("01", FileNotFoundError)):
        with pytest.raises(kind, match=rf"{id}.jpg.*on_bad_image: skip in dataset_options"):
            by_id[id].image()

    def closed(path, *rest, **options):
        if Path(path).name == "02.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **options)

    monkeypatch.setattr(Image, "open", closed)
    with pytest.raises(ValueError, match=r"3 of 19 photos cannot be read[\s\S]*02.jpg may not be read by this user"):
        load_many()
