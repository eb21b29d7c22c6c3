"""What comes malformed: one table of bad inputs, each tried. A clear error, a remedy, and nothing left half-written.

A row of CASES says what kind of input it is, what is wrong with it, how it is made in an empty folder, what is called,
and words that the error must hold: the name of the file (or of the argument) and what to do. `counts`
counts the rows by kind; tests/torture/malformed.py writes them down.
"""

import contextlib
import io
import json
import math
import os
import pickle
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
import safetensors.torch
import torch
from PIL import Image
from test_pipeline import TINY, do_stages, tiny

from conftest import NO_IMAGES
from plg_utils import (  # fmt: skip
    cams,
    checkpoints,
    class_files,
    datasets,
    devices,
    encoders,
    files,
    generators,
    labels,
    losses,
    metrics,
    score,
    segmenters,
    store,
    tags,
    training,
)
from plg_utils import masks as mask_models
from plg_utils.check import main as validator
from plg_utils.records import SPLITS, Masks, Sample

LEAST = 80  # the number
H, W = 6, 8
PHOTO = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
LABEL = (np.arange(H * W, dtype=np.uint8) % 4).reshape(H, W)
ONE = {"size": [H, W], "masks": [{"counts": "0`1", "predicted_iou": 0.5, "stability": None}]}  # a mask that is all
NETWORK = torch.nn.Linear(3, 2)
OPTIMIZER = torch.optim.SGD(NETWORK.parameters(), lr=0.1)


class Case(NamedTuple):
    """A row of the table."""

    kind: str
    wrong: str
    make: Callable[[Path], Any]  # in an empty folder
    call: Callable[[Path], Any]
    words: tuple[str, ...]  # which the error must hold


class Stopped(Exception):
    """A command ended with another exit code than 0; the text is what it said."""


# How bad files are made


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Write a file."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def picture(name: str, pixels: np.ndarray, mode: str | None = None, **options) -> Callable[[Path], None]:
    """Write an image, perhaps of another mode or format than its name says."""

    def make(folder: Path) -> None:
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(folder / name, **options)

    return make


def encoded(image: np.ndarray, format: str) -> bytes:
    """An image file's bytes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format)
    return file.getvalue()


def png(width: int, height: int, bits: int, colours: int, body: bytes = b"", comment: bytes = b"") -> bytes:
    """A PNG that says of itself whatever it likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"zTXt", b"a\0\0" + zlib.compress(comment)) * bool(comment)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def both(*makers: Callable[[Path], None]) -> Callable[[Path], None]:
    """Make one thing after the other."""

    def make(folder: Path) -> None:
        for maker in makers:
            maker(folder)

    return make


def nothing(folder: Path) -> None:
    """Leave the folder empty."""


def photos(folder: Path) -> None:
    """Three photos with label maps, for the data set `folder`."""
    for name in "abc":
        files.write_image(folder / "photos" / f"{name}.png", PHOTO)
        files.write_label(folder / "maps" / f"{name}.png", LABEL)


def renamed(folder: Path) -> None:
    """Give the label maps other names."""
    for path in sorted((folder / "maps").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_labels"))


def voc(folder: Path) -> None:
    """Four photos with label maps, as VOC lays them out, with a list for train and one for val."""
    for name in ("a", "b", "c", "d"):
        files.write_image(folder / "voc" / "JPEGImages" / f"{name}.jpg", PHOTO)
        files.write_label(folder / "voc" / "SegmentationClass" / f"{name}.png", LABEL)
    split("train", "a\nb\n")(folder)
    split("val", "c\nd\n")(folder)


def split(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Write a list of VOC's."""
    return text(f"voc/ImageSets/Segmentation/{name}.txt", content)


def weights(name: str, metadata: dict | None = None, **tensors: torch.Tensor) -> Callable[[Path], None]:
    """Write tensors as safetensors."""
    return lambda folder: safetensors.torch.save_file(tensors, folder / name, metadata)


class Evil:
    """Something whose unpickling runs a command."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("pwned",)


# What is called


def load_folder(folder: Path, **options) -> datasets.Dataset:
    """Load the three photos, and read every truth."""
    given = {"root": folder / "photos", "labels": folder / "maps", "classes": ["x", "y", "z"], "truth_of": SPLITS}
    data = datasets.load("folder", **given | options)
    for sample in (*data.labelled, *data.unlabelled, *data.val):
        sample.image()
        if sample.read_truth:
            sample.truth()
    return data


def load_voc(folder: Path, **options) -> datasets.Dataset:
    """Load the four photos; read the labelled ones."""
    data = datasets.load("voc", **{"root": folder / "voc", "labelled": 1} | options)
    for sample in data.labelled:
        sample.image()
        sample.truth()
    return data


def command(main: Callable[..., int], *arguments: str | Path, **more) -> Callable[[Path], None]:
    """Call a command; {} in an argument stands for the folder. Its words become the text of an error."""

    def call(folder: Path) -> None:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                code = main([str(each).replace("{}", str(folder)) for each in arguments], **more)
            except SystemExit as stop:
                code = stop.code
        assert code in (0, 1, 2), code
        if code:
            raise Stopped(said.getvalue())

    return call


def planned(folder: Path) -> None:
    """Plan the run of the parameter file in the folder."""
    command(run.main, "mine", "--dry-run", published=folder / "published")(folder)


def state(folder: Path, network: torch.nn.Module = NETWORK, settings: dict | None = None) -> None:
    """Take up the training whose state lies in the folder."""
    training.load_state(folder / "state.safetensors", settings or {"steps": 5}, network, OPTIMIZER, None)


def saved_state(folder: Path) -> None:
    """Write a sound state."""
    history = [{"step": 1, "total": 0.5}]
    training.save_state(folder / "state.safetensors", {"steps": 5}, NETWORK, OPTIMIZER, None, history, 1)


def cut(name: str, end: int, whole: Callable[[Path], None]) -> Callable[[Path], None]:
    """Make a file, then cut its end off."""

    def make(folder: Path) -> None:
        whole(folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:end])

    return make


scorer = partial(command, score.main)


def read_tags(folder: Path) -> None:
    """Read the tags of somebody's tagger."""
    tags.read(folder / "tags.yaml", class_files.read(datasets.CLASS_FILES / "camvid.yaml"))


def fit(**options) -> None:
    """Train on one image."""
    sample = Sample("a", lambda: PHOTO, lambda: LABEL)
    given = {"steps": 1, "batch_size": 1, "crop_size": 8, "lr": 0.1, "progress": None} | options
    network = segmenters.build("deeplabv3plus", 4, encoder="miniature", pretrained=False)
    training.fit(network, losses.build("supervised"), [sample], **given)


# The table

AGAIN = "fetch or export it again"
PLAIN_PNG = "as 8-bit grey or palette PNG"


def photo(wrong: str, make: Callable[[Path], None], *words: str) -> Case:
    """A bad photo, read as a stage does."""
    return Case("photo", wrong, make, lambda folder: files.read_image(folder / "a.jpg"), ("a.jpg", *words))


def label_map(wrong: str, make: Callable[[Path], None], *words: str) -> Case:
    """A bad label map of four classes."""
    return Case("label map", wrong, make, lambda folder: files.read_label(folder / "a.png", 4), ("a.png", *words))


def masks(wrong: str, content: Any, *words: str, make: Callable | None = None) -> Case:
    """A bad file of masks; content is JSON, or its text."""
    written = content if isinstance(content, str | bytes) else json.dumps(content)
    call = lambda folder: files.read_masks(folder / "a.json", (H, W)).dense()  # noqa: E731
    return Case("masks", wrong, make or text("a.json", written), call, ("a.json", "make the masks again", *words))


def one_mask(**changes) -> dict:
    """A file of masks whose only mask has these values."""
    return ONE | {"masks": [ONE["masks"][0] | changes]}


def classes(wrong: str, content: str | bytes, *words: str) -> Case:
    """A bad class file."""
    call = lambda folder: class_files.read(folder / "pets.yaml")  # noqa: E731
    return Case("class file", wrong, text("pets.yaml", content), call, ("pets.yaml", *words))


def listed(wrong: str, content: str | bytes, *words: str) -> Case:
    """A bad list of VOC's images."""
    return Case("split list", wrong, both(voc, split("train", content)), load_voc, ("train.txt", *words))


def parameters(wrong: str, content: str | bytes, *words: str) -> Case:
    """A bad parameter file of a run."""
    return Case("parameter file", wrong, text("published/mine/parameters.yaml", content), planned, words)


def annotations(wrong: str, change: Callable[[dict], Any] | str, *words: str) -> Case:
    """A bad json of objects; `change` alters a sound one."""
    content: Any = {
        "images": [{"id": 1, "file_name": "a.png", "height": H, "width": W}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 7, "segmentation": [[1, 1, 5, 1, 5, 5]]}],
    }
    if callable(change):
        change(content)
    written = change if isinstance(change, str) else json.dumps(content)
    call = lambda folder: load_folder(folder, labels=folder / "objects.json", classes=["cat"])  # noqa: E731
    return Case("annotations", wrong, both(photos, text("objects.json", written)), call, ("objects.json", *words))


def annotation(**changes) -> Callable[[dict], None]:
    """Change the only annotation."""
    return lambda content: content["annotations"][0].update(changes)


def option(wrong: str, load: Callable, *words: str, **options) -> Case:
    """A bad option of a data set."""
    return Case("data set option", wrong, both(photos, voc), partial(load, **options), words)


def argument(wrong: str, call: Callable[[], Any], *words: str) -> Case:
    """A bad argument of a public function."""
    return Case("function argument", wrong, nothing, lambda folder: call(), words)


def line(wrong: str, *arguments: str, words: tuple[str, ...]) -> Case:
    """Bad arguments of notebooks/run.py."""
    return Case("run.py", wrong, nothing, command(run.main, *arguments), words)


ONES = np.ones((1, H, W), bool)
ZEROS = np.zeros((H, W), np.uint8)
POISON = "&a [x, x, x, x, x, x, x, x, x], &b [*a, *a, *a, *a, *a, *a, *a, *a, *a], &c [*b, *b, *b, *b, *b, *b, *b, *b]"
CASES = [
    # Photos
    photo("is missing", nothing, "is not there", AGAIN),
    photo("is empty", text("a.jpg", b""), "not a readable image", AGAIN),
    photo("is text", text("a.jpg", "hello"), "not a readable image", AGAIN),
    photo("is a web page that says 404", text("a.jpg", "<html>404 Not Found</html>"), AGAIN),
    photo("is cut in the middle", text("a.jpg", encoded(PHOTO, "JPEG")[:-40]), "truncated", AGAIN),
    photo("is a PNG that is cut", text("a.jpg", encoded(PHOTO, "PNG")[:-30]), AGAIN),
    photo("is a PNG of nothing but a header", text("a.jpg", png(W, H, 8, 2)[:33]), AGAIN),
    photo("says 50,000 x 50,000 pixels", text("a.jpg", png(50_000, 50_000, 8, 2)), "fill the memory",
        "make it smaller"),
    photo("has no pixels", text("a.jpg", png(0, 0, 8, 2)), AGAIN),
    photo("has a comment of 3 MB in 3 kB", text("a.jpg", png(W, H, 8, 2, comment=b"x" * 3_000_000)), "too large",
        AGAIN),
    photo("has numbers of 32 bits", picture("a.jpg", ZEROS.astype(np.int32), format="TIFF"), "32 bits", AGAIN),
    photo("has floating numbers", picture("a.jpg", ZEROS.astype(np.float32), format="TIFF"), "32 bits", AGAIN),
    photo("is PostScript, for which PIL starts a program",
        text("a.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n"), "cannot identify", AGAIN),
    photo("is a folder", lambda folder: (folder / "a.jpg").mkdir(), "is a folder", AGAIN),
    Case("photo", "is called as another one", both(photos, picture("photos/a.jpg", PHOTO)), load_folder,
        ("a.jpg and a.png", "rename one")),
    Case("photo", "differs from another one in case alone", both(photos, picture("photos/A.png", PHOTO)), load_folder,
        ("A.png and a.png", "rename one")),
    Case("photo", "is a folder among photos", both(photos, lambda folder: (folder / "photos" / "d.png").mkdir()),
        load_folder, ("d.png is a folder", "rename it")),
    Case("photo", "is broken among others: all such are told",
        both(photos, text("photos/b.png", "no"), text("photos/d.jpg", "no")), load_folder,
        ("2 of 4 photos", "b.png", "d.jpg", "on_bad_image: skip")),
    Case("photo", "has a name that is too long", both(photos, picture(f"photos/{'x' * 210}.png", PHOTO)), load_folder,
        ("xxxx", "shorten it")),
    Case("photo", "is called manifest", both(photos, picture("photos/manifest.png", PHOTO)), load_folder,
        ("manifest", "keeps a manifest.json")),
    # Label maps
    label_map("is missing", nothing, "is not there", "write it again"),
    label_map("is empty", text("a.png", b""), "not a readable label map", "write it again"),
    label_map("is a JPEG", picture("a.png", LABEL, format="JPEG"), "JPEG", PLAIN_PNG),
    label_map("is an image in colours", picture("a.png", PHOTO), "(6, 8, 3)", PLAIN_PNG),
    label_map("has 16 bits", picture("a.png", LABEL.astype(np.uint16)), "uint16", PLAIN_PNG),
    label_map("has an alpha channel", picture("a.png", LABEL, "LA"), "(6, 8, 2)", PLAIN_PNG),
    label_map("has one bit", picture("a.png", LABEL, "1"), "bool", PLAIN_PNG),
    label_map("is grey of 2 bits, where readers turn 3 into 255", text("a.png", png(W, H, 2, 0, b"\0\x1b\x1b" * H)),
        "2 bits", PLAIN_PNG),
    label_map("has values of no class", picture("a.png", LABEL + 7), "[7, 8, 9, 10]", "classes 0 to 3",
        "the classes that it was made with"),
    label_map("says 50,000 x 50,000 pixels", text("a.png", png(50_000, 50_000, 8, 0)), "make it smaller"),
    label_map("is a folder", lambda folder: (folder / "a.png").mkdir(), "is a folder"),
    Case("label map", "is not of its photo's size", both(photos, picture("maps/b.png", LABEL.T)), load_folder,
        ("b.png is (8, 6)", "photos/b.png is (6, 8)", "resized or turned")),
    Case("label map", "has CamVid's void, 11, where 255 is void", both(photos, picture("maps/b.png", ZEROS + 11)),
        load_folder, ("b.png", "[11]", "255 (void)")),
    Case("label map", "belongs to no photo", both(photos, renamed), load_folder,
        ("maps", "no PNG with the name of a photo, e.g. a.png")),
    # Masks
    masks("are missing", "", "is not there", make=nothing),
    masks("are not JSON", "{", "not readable JSON"),
    masks("are not UTF-8", b"\xff\xfe{}", "not readable JSON"),
    masks("are nested a hundred thousand times", "[" * 100_000, "recursion"),
    masks("have the key of the size twice", json.dumps(ONE)[:-1] + ', "size": [6, 8]}', "'size' stands there twice"),
    masks("are a list", [1], "not a file of masks"),
    masks("have no size", {"masks": []}, "size"),
    masks("are those of another image", ONE | {"size": [W, H]}, "the image has (6, 8)"),
    masks("have a size of texts", ONE | {"size": ["6", "8"]}, "[height, width]"),
    masks("have a size below zero", ONE | {"size": [-6, -8]}, "[height, width]"),
    masks("have a size of infinity", '{"size": [1e999, 8], "masks": []}', "[height, width]"),
    masks("are a mapping, not a list", ONE | {"masks": {}}, "no list"),
    masks("lack a score", ONE | {"masks": [{"counts": "0`1"}]}, "predicted_iou"),
    masks("have a score that is not a number", json.dumps(one_mask(stability=float("nan"))),
        "NaN is not JSON, use null"),
    masks("have a score that is a text", one_mask(stability="high"), "neither a number nor null"),
    masks("have a score of a list", one_mask(stability=[1, 2]), "neither a number nor null"),
    masks("have an infinite score", json.dumps(ONE).replace("0.5", "1e999"), "finite"),
    masks("have a score of 400 digits", json.dumps(ONE).replace("0.5", "9" * 400), "too large"),
    masks("have run lengths as numbers", one_mask(counts=[0, 48]), "no text"),
    masks("have run lengths that do not fill the image", one_mask(counts="6"), "mask 0",
        "add up to 6, the image has 48"),
    masks("have run lengths with a strange character", one_mask(counts="~"), "mask 0", "does not occur"),
    masks("have run lengths that stop early", one_mask(counts="P"), "mask 0", "ends within"),
    masks("have run lengths without end", one_mask(counts="o" * 9), "mask 0", "no end"),
    masks("have run lengths below zero", one_mask(counts="0O`1"), "mask 0", "negative"),
    # Class files
    classes("is missing a bracket", "classes: [", "not readable YAML", "line 1"),
    classes("is not UTF-8", b"classes: [{name: \xff}]", "UTF-8", "save it as plain text"),
    classes("is empty", "", "a mapping with the keys"),
    classes("is a list", "- cat", "a mapping with the keys"),
    classes("has a key of another spelling", "classes: [{name: cat, color: [1, 2, 3]}]", "no key color, only colour"),
    classes("lists no class", "classes: []", "at least one"),
    classes("lists a class twice", "classes: [{name: cat}, {name: cat}]", "more than once: cat"),
    classes("has the key of the classes twice", "classes: [{name: cat}]\nclasses: [{name: dog}]", "twice: keep one"),
    classes("calls a class background beside the background", "classes: [{name: background}]\nbackground: []",
        "more than once"),
    classes("has a template without a place for the word", "classes: [{name: cat}]\ntemplates: [a photo]",
        "needs one {}"),
    classes("has a template with another brace", "classes: [{name: cat}]\ntemplates: ['{} {0}']", "no other brace"),
    classes("has a number for a name", "classes: [{name: 7}]", "put it in quotes"),
    classes("has `no` for a name, which YAML reads as false", "classes: [{name: no}]", "put it in quotes"),
    classes("has a date that there is not", "classes: [{name: 2001-99-99}]", "month must be in 1..12"),
    classes("has a number for a word", "classes: [{name: cat, words: [cat, 1]}]", "words of cat", "put it in quotes"),
    classes("has a text for the background's words", "classes: [{name: cat}]\nbackground: ''",
        "background must be a list"),
    classes("has a colour by name", "classes: [{name: cat, colour: red}]", "not [red, green, blue]"),
    classes("has a colour of 256", "classes: [{name: cat, colour: [1, 2, 256]}]", "0 to 255 each"),
    classes("has 256 classes", f"classes: [{', '.join(f'{{name: c{k}}}' for k in range(256))}]",
        "256 classes do not fit"),
    classes("is of a later version", "classes: [{name: cat}]\nversion: 2", "only 1"),
    classes("holds an object of Python", "classes: [{name: !!python/object/apply:os.mkdir [pwned]}]",
        "could not determine a constructor"),
    classes("is a bomb of aliases", f"classes: [{POISON}]", "alias", "write out what it stands for"),
    classes("refers to itself", "classes: &a [*a]", "alias", "write out what it stands for"),
    classes("is nested fifteen hundred times", "[" * 1500, "not readable YAML"),
    # Split lists
    listed("holds an id twice", "a\na\n", "more than once, e.g. a", "keep each once"),
    listed("holds an id of val", "a\nc\n", "both in val and in the training lists, e.g. c", "keep each image in one"),
    listed("holds an id that there is not", "z\n", "JPEGImages/z.jpg", "correct the list"),
    listed("leads out of the folder", "../a\n", "line 1", "'../a' is neither an id nor"),
    listed("leads out of the folder in Windows' way", "..\\a\n", "line 1"),
    listed("holds an absolute path", "/etc/passwd\n", "line 1", "is neither an id nor"),
    listed("is empty", "", "lists no image", "write an id in each line"),
    listed("has three columns", "a b c\n", "line 1", "is neither an id nor a photo and a label map"),
    listed("has two ids in a line", "a b\n", "line 1", "is neither an id nor a photo and a label map"),
    listed("gives a photo without label map", "JPEGImages/a.jpg\n", "no label map for 1 photos", "write the id alone"),
    listed("is UTF-16", "a\nb\n".encode("utf-16"), "no text in UTF-8", "save it as plain text"),
    listed("holds a control character", "a\0b\n", "line 1", "cannot be a file name"),
    listed("hides a file", ".a\n", "line 1", "start with a dot"),
    option("is a list that there is not", load_voc, "'1_9' is neither a folder", "did you mean '1_8'?", split="1_9"),
    # Options of data sets
    option("is misspelt", load_voc, "no option 'labeled'", "did you mean 'labelled'", labeled=3),
    option("asks for more labels than there are", load_voc, "labelled=9", "from 0 to 2", labelled=9),
    option("asks for fewer than none", load_voc, "labelled=-1", "from 0 to 2", labelled=-1),
    option("asks for a part that gives no image", load_voc, "'1/99' of 2 images is less than one", "larger part",
        labelled="1/99"),
    option("asks for a part above one", load_voc, "labelled='3/2'", 'such as "1/8"', labelled="3/2"),
    option("asks for a word of labels", load_voc, "labelled='some'", 'such as "1/8"', labelled="some"),
    option("asks for one and a half labels", load_voc, "labelled=1.5", 'such as "1/8"', labelled=1.5),
    option("is a seed below zero", load_voc, "seed=-1", "from 0 on", seed=-1),
    option("is a seed of text", load_voc, "seed='x'", "from 0 on", seed="x"),
    option("is a limit of text", load_voc, "limit='x'", "None for all", limit="x"),
    option("is a limit of half an image", load_voc, "limit=0.5", "None for all", limit=0.5),
    option("opens a split that there is not", load_voc, "truth_of=['vall']", "labelled, unlabelled, val, test",
        truth_of=["vall"]),
    option("is a root that is a number", load_voc, "root=5", "path of a folder", root=5),
    option("is a root that there is not", load_voc, "nowhere has no folder JPEGImages", "VOCdevkit", root="nowhere"),
    option("is no way to take bad photos", load_voc, "no on_bad_image 'ignore'", "stop, skip, when_read",
        on_bad_image="ignore"),
    option("names no classes", load_folder, "name what to look for", 'classes=["cat", "dog"]', classes=None),
    option("names the classes by a word", load_folder, "cat is no class file", '["cat"]', classes="cat"),
    option("names a class twice", load_folder, "more than once: cat", classes=["cat", "cat"]),
    option("gives the background one word, not a list", load_folder, "background='wall'", "list of words",
        background="wall"),
    option("names fewer classes than the maps have", load_folder, "a.png", "[2, 3]",
        "the classes that it was made with", classes=["x"]),
    option("keeps more for val than there are", load_folder, "val=9", "only 3 of the photos", "ask for fewer", val=9),
    option("keeps a part of a photo for val", load_folder, "val=0.5", "number of photos", val=0.5),
    option("gives labels that are not there", load_folder, "none is not a folder", "COCO's form", labels="none"),
    option("gives a json that is not there", load_folder, "none.json is not there", "export it again",
        labels="none.json"),
    Case("data set option", "names a data set that there is not", nothing, lambda folder: datasets.load("vok"),
        ("no data set 'vok'", "did you mean 'voc'?")),
    # Annotations
    annotations("are not JSON", "{", "not readable JSON", "correct it, or export it again"),
    annotations("have a key twice", '{"images": [], "images": []}', "'images' stands there twice"),
    annotations("lack the categories", lambda content: content.pop("categories"), "categories", "it needs the lists"),
    annotations("are a mapping where a list belongs", lambda content: content.update(annotations={}),
        "annotations is not a list", "it needs"),
    annotations("have an image's id twice",
        lambda content: content["images"].append(content["images"][0] | {"file_name": "b.png"}),
        "images have the id 1 more than once"),
    annotations("have a category's id twice", lambda content: content["categories"].append({"id": 7, "name": "dog"}),
        "categories have the id 7 more than once"),
    annotations("have a category without name", lambda content: content["categories"][0].update(name=None),
        "the name of category 7 is not text"),
    annotations("are of other photos", lambda content: content["images"][0].update(file_name="z.png"), "e.g. z"),
    annotations("are of other classes", lambda content: content["categories"][0].update(name="dog"),
        "categories are dog, the classes are cat"),
    annotations("give an image another size", lambda content: content["images"][0].update(height=H + 1),
        "a.png is (6, 8)", "resized or turned"),
    annotations("give an image 10^18 pixels", lambda content: content["images"][0].update(height=10**9, width=10**9),
        "size"),
    annotations("give an image a size of text", lambda content: content["images"][0].update(height="6"), "size"),
    annotations("have a polygon of two corners", annotation(segmentation=[[1, 1, 5, 5]]),
        "annotation 5: the polygon [1, 1, 5, 5] is not", "correct it"),
    annotations("have a corner far away", annotation(segmentation=[[1, 1, 5, 5, 5, 1e9]]), "annotation 5",
        "in or near the image", "correct it"),
    annotations("have a corner of 400 digits", annotation(segmentation=[[1, 1, 5, 5, 5, 10**400]]), "annotation 5",
        "in or near the image", "correct it"),
    annotations("have a text for a corner", annotation(segmentation=[["1", 1, 5, 5, 5, 1]]), "annotation 5",
        "the coordinate '1'", "correct it"),
    annotations("have no outline at all", annotation(segmentation=None), "annotation 5", "not COCO's form",
        "correct it"),
    annotations("have run lengths that do not fill the image", annotation(segmentation={"size": [H, W], "counts": [1]}),
        "add up to 1", "correct it"),
    annotations("have run lengths below zero", annotation(segmentation={"size": [H, W], "counts": [-1, 49]}),
        "from 0 on", "correct it"),
    annotations("have broken run lengths as text", annotation(segmentation={"size": [H, W], "counts": "zz"}),
        "does not occur", "correct it"),
    annotations("have a category of nobody", annotation(category_id=99), "its category 99 stands for no class",
        "correct it"),
    annotations("have a crowd that is neither yes nor no", annotation(iscrowd="maybe"),
        "iscrowd is 'maybe', not 0 or 1", "correct it"),
    # Parameter files of runs
    parameters("is not YAML", "steps: [", "parameters.yaml", "not readable YAML", "line 1"),
    parameters("is not UTF-8", b"steps: \xff", "parameters.yaml", "UTF-8"),
    parameters("is a list", "- steps", "parameters.yaml holds a list", "`name: value`"),
    parameters("misspells a parameter", "stpes: 5", "'stpes'", "did you mean 'steps'?"),
    parameters("has a word for a number", "steps: many", "steps is 'many'", "such as the default 120"),
    parameters("sets the name of the run", "run: other", "`run`", "first argument"),
    parameters("names a notebook that there is not", "notebooks: [99_none]", "no 99_none.ipynb"),
    parameters("has a parameter twice", "steps: 5\nsteps: 6", "parameters.yaml", "'steps' twice: keep one"),
    parameters("is a bomb of aliases", f"steps: [{POISON}]", "parameters.yaml", "alias",
        "write out what it stands for"),
    parameters("names its notebooks by a word", "notebooks: 05_evaluation", "`notebooks`", "a list of names"),
    parameters("names a preset that there is not", "preset: fats", "'fats'", "only fast, balanced, paper"),
    parameters("has a grid that is a list", "grid: [1]", "`grid`", "`name: [value, value]`"),
    parameters("has a grid with a value, not a list", "grid: {seed: 5}", "seed: 5", "give a list"),
    parameters("has a grid with an empty list", "grid: {seed: []}", "the grid has seed: []", "at least one value"),
    parameters("has a parameter in the grid too", "seed: 1\ngrid: {seed: [1]}",
        "seed both as a parameter and in its grid", "keep one"),
    parameters("shares a stage that there is not", "grid: {seed: [1]}\nshared: [nope]", "nope cannot be shared"),
    parameters("holds an object of Python", "steps: !!python/object/apply:os.mkdir [pwned]",
        "could not determine a constructor"),
    # Arguments of notebooks/run.py
    line("there is no such run", "dmo", words=("no run", "did you mean 'demo'?", "parameters.yaml")),
    line("the run's name leads elsewhere", "../demo", words=("no run", "'../demo'")),
    line("no run is named", words=("the following arguments are required: RUN",)),
    line("-p lacks its value", "demo", "-p", "steps", words=("-p", "expected 2 arguments")),
    line("-p misspells a parameter", "demo", "-p", "stpes", "5", words=("'stpes'", "did you mean 'steps'?")),
    line("-p gives a word for a number", "demo", "-p", "steps", "many",
        words=("steps is 'many'", "such as the default 120")),
    line("-p gives half a step", "demo", "-p", "steps", "1.5", words=("steps is 1.5", "type int")),
    line("-p is not YAML", "demo", "-p", "steps", "[1", words=("the value of steps is not readable YAML",)),
    line("-p names a preset that there is not", "demo", "-p", "preset", "fats",
        words=("'fats'", "only fast, balanced, paper")),
    line("-p names a folder that there is not", "demo", "-p", "data_root", "/none", words=("data_root is /none",)),
    line("-g has an empty list", "demo", "-g", "seed", "[]", words=("the grid has seed: []", "at least one value")),
    line("-g has a value twice", "demo", "-g", "seed", "1,1", words=("holds 1 twice",)),
    line("-g has an empty place", "demo", "-g", "seed", "1,,2", words=("the list of seed is not readable YAML",)),
    line("-g and -p name the same", "demo", "-g", "seed", "1,2", "-p", "seed", "1", words=("seed", "by -g seed alone")),
    line("-p gives a preset as a list", "demo", "-p", "preset", "[fast]",
        words=("['fast']", "only fast, balanced, paper")),
    line("-p gives a date that there is not", "demo", "-p", "steps", "2001-99-99",
        words=("the value of steps", "month")),
    line("-p gives a key twice", "demo", "-p", "dataset_options", "{limit: 1, limit: 2}", words=("'limit' twice",)),
    line("-p is nested without end", "demo", "-p", "steps", "[" * 1500, words=("the value of steps", "recursion")),
    line("-p gives fewer steps than one", "demo", "-p", "steps", "-1", words=("steps is -1", "from 1 on")),
    line("-p gives a number for a file", "demo", "-p", "class_file", "5", words=("class_file is 5", "path of a file")),
    line("an option that there is not", "demo", "--stpes", words=("unrecognized arguments: --stpes",)),
    line("--keep without a grid", "demo", "--keep", words=("add -g NAME VALUES",)),
    # Other commands
    Case("doctor.py", "there is no such run", nothing, command(doctor.main, "dmo"), ("did you mean 'demo'?",)),
    Case("doctor.py", "-p misspells a parameter", nothing, command(doctor.main, "demo", "-p", "stpes", "5"),
        ("did you mean 'steps'?",)),
    Case("doctor.py", "-p lacks its value", nothing, command(doctor.main, "demo", "-p", "steps"),
        ("expected 2 arguments",)),
    Case("scorer", "no classes are named", photos, scorer("{}/maps", "{}/maps"), ("required: --classes",)),
    Case("scorer", "the classes are not known", photos, scorer("{}/maps", "{}/maps", "--classes", "vox"),
        ("--classes vox", "path of a class file")),
    Case("scorer", "a folder is missing", photos, scorer("{}/none", "{}/maps", "--classes", "voc"),
        ("none is not a folder", "give one")),
    Case("scorer", "the predictions are photos", photos, scorer("{}/photos", "{}/maps", "--classes", "voc"),
        ("a.png holds", PLAIN_PNG)),
    Case("scorer", "a prediction is missing",
        both(photos, lambda folder: os.rename(folder / "maps", folder / "truth"), picture("a.png", LABEL)),
        scorer("{}", "{}/truth", "--classes", "voc"), ("no PNG for b, c", "--allow-missing")),
    Case("scorer", "the list of ids is empty", both(photos, text("ids.txt", "")),
        scorer("{}/maps", "{}/maps", "--classes", "voc", "--ids", "{}/ids.txt"), ("ids.txt is empty", "one line")),
    Case("scorer", "the file to write is a folder: known before the work", photos,
        scorer("{}/maps", "{}/maps", "--classes", "voc", "--json", "{}"), ("--json", "give the name of a file")),
    Case("validator", "the data set is not known", nothing, command(validator, "vok"), ("invalid choice: 'vok'",)),
    Case("validator", "the folder is missing", nothing,
        command(validator, "folder", "--root", "{}/none", "classes", "[x]"),
        ("none is not a folder", "folder of your photos")),
    Case("validator", "an option has no value", photos, command(validator, "folder", "--root", "{}/photos", "classes"),
        ("each option needs a value",)),
    Case("validator", "an option is not YAML", photos,
        command(validator, "folder", "--root", "{}/photos", "classes", "[x"),
        ("the value of classes is not readable YAML",)),
    Case("validator", "photos are broken: all are told",
        both(photos, text("photos/b.png", "no"), text("photos/d.jpg", "")),
        command(validator, "folder", "--root", "{}/photos", "classes", "[x]"), ("b.png", "d.jpg", "would stop a run")),
    # Checkpoints
    Case("checkpoint", "has no such name", nothing, lambda folder: checkpoints.locate("sam_vit_x"),
        ("'sam_vit_x'", "known are", "sam_vit_b")),
    Case("checkpoint", "is a branch of the hub", nothing, lambda folder: checkpoints.locate("hub:a/b@main"),
        ("hub:a/b@main", "branches and tags may move")),
    Case("checkpoint", "has another SHA-256", text("data/checkpoints/sam_vit_b_01ec64.pth", "x" * 99),
        lambda folder: checkpoints.locate("sam_vit_b"), ("sam_vit_b_01ec64.pth", "delete it and run again")),
    Case("checkpoint", "is pickled code", lambda folder: (folder / "a.pth").write_bytes(pickle.dumps(Evil(), 2)),
        lambda folder: checkpoints.load_sam_state(folder / "a.pth"), ("a.pth", "fetch it again")),
    Case("checkpoint", "is torch's archive of code", lambda folder: torch.save({"a": Evil()}, folder / "a.pt"),
        lambda folder: checkpoints.load_clip_state(folder / "a.pt"), ("a.pt", "fetch it again")),
    Case("checkpoint", "is cut", cut("a.safetensors", -9, weights("a.safetensors", a=torch.zeros(9))),
        lambda folder: checkpoints.load_sam_state(folder / "a.safetensors"), ("a.safetensors", "fetch it again")),
    Case("weights", "are missing", nothing, lambda folder: files.read_weights(folder / "a.safetensors", NETWORK),
        ("a.safetensors is not there", "train the network again")),
    Case("weights", "are those of another network", weights("a.safetensors", other=torch.zeros(3)),
        lambda folder: files.read_weights(folder / "a.safetensors", NETWORK),
        ("a.safetensors", "Missing key", "build the network that it was written for")),
    Case("weights", "are not numbers", weights("a.safetensors", weight=torch.zeros(2, 3) / 0, bias=torch.zeros(2)),
        lambda folder: files.read_weights(folder / "a.safetensors", NETWORK),
        ("a.safetensors", "weight holds what is no finite number", "train the network again")),
    Case("weights", "are text", text("a.safetensors", "hello"),
        lambda folder: files.read_weights(folder / "a.safetensors", NETWORK),
        ("a.safetensors", "train the network again")),
    Case("embeddings", "are missing", nothing, lambda folder: files.read_embeddings(folder / "a.safetensors"),
        ("a.safetensors is not there", "make it again")),
    Case("embeddings", "have no rows", weights("a.safetensors", embeddings=torch.zeros(3)),
        lambda folder: files.read_embeddings(folder / "a.safetensors"), ("a.safetensors", "(N, D)", "make it again")),
    Case("embeddings", "are not numbers", weights("a.safetensors", embeddings=torch.zeros(2, 3) / 0),
        lambda folder: files.read_embeddings(folder / "a.safetensors"), ("a.safetensors", "finite", "make it again")),
    Case("tags", "name a class that there is not", text("tags.yaml", "a: [cow]"), read_tags,
        ("tags.yaml", "cow", "the classes are")),
    Case("tags", "name an image twice", text("tags.yaml", "a: []\na: []"), read_tags,
        ("tags.yaml", "'a' twice: keep one")),
    Case("tags", "hold a list for a name", text("tags.yaml", "a: [[cow]]"), read_tags,
        ("tags.yaml", "cow", "the classes are")),
    Case("tags", "are not there", nothing, read_tags, ("tags.yaml is not there",)),
    # States of trainings, manifests
    Case("training state", "is cut", cut("state.safetensors", -5, saved_state), state,
        ("state.safetensors", "remove it to train again")),
    Case("training state", "is text", text("state.safetensors", "hello"), state,
        ("state.safetensors", "remove it to train again")),
    Case("training state", "has no notes", weights("state.safetensors", a=torch.zeros(1)), state,
        ("state.safetensors", "remove it to train again")),
    Case("training state", "has notes without end",
        weights("state.safetensors", {"training": "[" * 99_999}, a=torch.zeros(1)), state,
        ("state.safetensors", "remove it to train again")),
    Case("training state", "is that of another network", saved_state, partial(state, network=torch.nn.Linear(4, 2)),
        ("state.safetensors", "remove it to train again")),
    Case("training state", "is that of other settings", saved_state, partial(state, settings={"steps": 6}),
        ("other steps: 5, now 6", "remove it to train again")),
    Case("manifest", "is not JSON", text("masks/manifest.json", "{"),
        lambda folder: store.stage(folder / "masks", dataset=NO_IMAGES, parameters={}), ("manifest.json", "delete it")),
    Case("manifest", "is another file", text("masks/manifest.json", '{"a": 1}'),
        lambda folder: store.stage(folder / "masks", dataset=NO_IMAGES, parameters={}), ("manifest.json", "delete it")),
    Case("manifest", "of the stage before is missing", lambda folder: (folder / "masks").mkdir(),
        lambda folder: store.stage(folder / "next", dataset=NO_IMAGES, parameters={}, parents=[folder / "masks"]),
        ("masks has no manifest.json", "run the stage")),
    Case("manifest", "of the stage before is unfinished",
        text("masks/manifest.json", '{"state": "running", "fingerprint": "x"}'),
        lambda folder: store.stage(folder / "next", dataset=NO_IMAGES, parameters={}, parents=[folder / "masks"]),
        ("masks is not finished", "to its end first")),
    # Arguments of public functions
    argument("maps of different sizes are counted", lambda: metrics.confusion(LABEL, LABEL[1:], 4), "(6, 8)",
        "exact size"),
    argument("a map of floats is counted", lambda: metrics.confusion(LABEL / 2, LABEL, 4), "float64", "integer"),
    argument("values of no class are counted", lambda: metrics.confusion(LABEL, LABEL + 7, 4), "the value 7", "0..3"),
    argument("no class is counted", lambda: metrics.confusion(LABEL, LABEL, 0), "num_classes is 0", "1 to 255"),
    argument("a text of classes is counted", lambda: metrics.confusion(LABEL, LABEL, "4"), "num_classes is '4'",
        "1 to 255"),
    argument("a square matrix is scored", lambda: metrics.scores(np.zeros((4, 4), int)), "(K, K+1)"),
    argument("a background of no class", lambda: metrics.scores(np.zeros((3, 4), int), background=7), "background is 7",
        "0..2"),
    argument("uncovered pixels as a word", lambda: metrics.scores(np.zeros((3, 4), int), uncovered="x"),
        '"background" and "miss"'),
    argument("masks without their axis", lambda: Masks.from_dense(LABEL > 0), "(N, H, W) bool", "(6, 8)"),
    argument("masks of logits", lambda: Masks.from_dense(LABEL[None] - 0.5), "float64", "`> 0`"),
    argument("fewer scores than masks", lambda: Masks.from_dense(LABEL[None] == np.arange(4)[:, None, None], [0.5]),
        "4 masks", "(1,)"),
    argument("masks chosen by too few bools", lambda: Masks.from_dense(np.ones((3, H, W), bool)).take(np.array([True])),
        "3 masks", "(1,)"),
    argument("a label map of int64 is written", lambda: files.write_label("a.png", LABEL.astype(int)), "a.png",
        "int64"),
    argument("a label map is written as JPEG", lambda: files.write_label("a.jpg", LABEL), "a.jpg", "is a PNG"),
    argument("a label map without pixels is written", lambda: files.write_label("a.png", LABEL[:0]), "a.png",
        "without pixels"),
    argument("a photo of floats is written", lambda: files.write_image("a.png", PHOTO / 2), "a.png", "float64"),
    argument("a table with infinity is written", lambda: files.write_json("a.json", [float("inf")]),
        "a.json was not written"),
    argument("a table with a set is written", lambda: files.write_json("a.json", {1, 2}), "a.json was not written"),
    argument("embeddings of one axis are written", lambda: files.write_embeddings("a.safetensors", torch.zeros(3)),
        "a.safetensors", "(N, D)"),
    argument("a run's name leads elsewhere", lambda: store.run_folder("../x"), "'../x'", "slash"),
    argument("a run's name is a number", lambda: store.run_folder(5), "5 cannot be a file name", "quotes"),
    argument("a device that there is not", lambda: devices.choose("gpu"), "'gpu' is not known", "use 'auto'"),
    argument("embeddings of another encoder are assigned", lambda: labels.assign(torch.ones(2, 3), torch.ones(2, 4)),
        "(2, 3)", "(2, 4)", "of one encoder"),
    argument("embeddings that are not numbers are assigned",
        lambda: labels.assign(torch.full((2, 3), math.nan), torch.ones(2, 3)), "finite", "sound checkpoint"),
    argument("a threshold that is not a number",
        lambda: labels.assign(torch.ones(2, 3), torch.ones(2, 3), threshold=math.nan), "threshold is nan", "or None"),
    argument("a temperature of nothing",
        lambda: labels.assign(torch.ones(2, 3), torch.ones(2, 3), rule="softmax", temperature=0), "above 0"),
    argument("a class that no label map holds is painted", lambda: labels.paint(ONES, [300], [0.5]), "0 to 254"),
    argument("a score that is not a number is painted", lambda: labels.paint(ONES, [1], [math.nan]), "finite"),
    argument("a mask model that there is not", lambda: mask_models.build("samm"), "no mask model 'samm'",
        "did you mean 'sam'?"),
    argument("an encoder that there is not", lambda: encoders.build("clap"), "no encoder 'clap'", "only clip"),
    argument("a segmenter that there is not", lambda: segmenters.build("unet", 3), "no segmenter 'unet'", "smp"),
    argument("a loss that there is not", lambda: losses.build("unimatsh"), "did you mean 'unimatch'?"),
    argument("a generator that there is not", lambda: generators.build("boxs", None), "did you mean 'boxes'?"),
    argument("a source of cue maps that there is not", lambda: cams.build("cam", None), "only classifier"),
    argument("a training of no step", lambda: fit(steps=0), "steps is 0", "from 1 on"),
    argument("a training of no image", lambda: fit(batch_size=0), "batch_size is 0", "from 1 on"),
    argument("a training of no pixel", lambda: fit(crop_size=0), "crop_size is 0", "from 1 on"),
    argument("a training that unlearns", lambda: fit(lr=-0.1), "lr=-0.1", "above 0"),
    argument("a training on images of no size", lambda: fit(scale=(0, 0)), "scale is (0, 0)", "above 0"),
    argument("a precision that there is not", lambda: devices.precision("fp16", torch.device(0)), '"fp16"', '"auto"'),
]  # fmt: skip


def counts() -> dict[str, int]:
    """Rows of the table by kind, with their sum: for results/reliability.json."""
    found = Counter(case.kind for case in CASES)
    return {"cases": found.total(), **{kind: found[kind] for kind in sorted(found)}}


# The tests


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in; data, results and checkpoints lie elsewhere in it."""
    for name in ("data", "results"):
        monkeypatch.setenv(f"PLG_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path / "data" / "checkpoints"))
    monkeypatch.setenv("PLG_PROGRESS", "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for what was remembered of sound files, and maps painted of sound annotations."""
    kept = ("data/checked_photos", "data/folder_labels")
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: path.read_bytes() if path.is_file() else b""
        for name, path in paths.items()
        if not name.startswith(kept) and name != "data"
    }


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind} {case.wrong}".replace(" ", "-") for case in CASES])
@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_refused_clearly(case, place):
    case.make(place)
    before = contents(place)
    with pytest.raises((ValueError, OSError, TypeError, Stopped)) as error:
        case.call(place)
    told = str(error.value)
    assert not [word for word in case.words if word not in told], told
    assert "Traceback" not in told
    assert len(told) < 3000, "nobody reads that"
    assert contents(place) == before, "something was left behind"
    if isinstance(error.value, TypeError):
        assert case.kind in ("function argument", "data set option"), "a file cannot be a TypeError"


def test_the_table_is_long_enough():
    assert counts()["cases"] == len(CASES) >= LEAST
    assert len({(case.kind, case.wrong) for case in CASES}) == len(CASES)
    assert all(case.words for case in CASES)


def test_the_sound_files_that_rows_begin_with_are_read(place):
    both(photos, voc, saved_state)(place)
    assert len(load_folder(place).labelled) == 3
    assert len(load_voc(place).labelled) == 1
    state(place)
    text("a.json", json.dumps(ONE))(place)
    assert files.read_masks(place / "a.json", (H, W)).dense().all()
    sound = annotations("are sound", lambda content: None)
    sound.make(place)
    assert len(sound.call(place).labelled) == 1


UNUSUAL = {
    "with transparency": picture("a.jpg", PHOTO, "RGBA", format="PNG"),
    "CMYK": picture("a.jpg", PHOTO, "CMYK"),
    "grey": picture("a.jpg", PHOTO[..., 0]),
    "grey of 16 bits": picture("a.jpg", LABEL.astype(np.uint16) * 256, format="PNG"),
    "black and white": picture("a.jpg", LABEL, "1", format="PNG"),
    "palette": picture("a.jpg", PHOTO, "P", format="PNG"),
    "animated": picture("a.jpg", LABEL, "P", format="GIF", save_all=True, append_images=[Image.new("P", (W, H))]),
    "WebP": picture("a.jpg", PHOTO, format="WEBP"),
    "TIFF": picture("a.jpg", PHOTO, format="TIFF"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_photos_are_read(kind, place):
    """They are what a file says that is called a.jpg; of an animation it is the first picture."""
    UNUSUAL[kind](place)
    image = files.read_image(place / "a.jpg")
    assert (image.shape, image.dtype) == ((H, W, 3), np.uint8)
    assert files.image_size(place / "a.jpg") == (H, W)


@pytest.mark.parametrize("orientation", [0, 1, 2, 5, 6, 8, 9, 99, 65535])
def test_a_strange_orientation_turns_neither_image_nor_size(orientation, place):
    exif = Image.Exif()
    exif[files.ORIENTATION] = orientation
    Image.fromarray(PHOTO).save(place / "a.jpg", exif=exif)
    turned = orientation in (5, 6, 7, 8)
    assert files.read_image(place / "a.jpg").shape[:2] == files.image_size(place / "a.jpg")
    assert files.image_size(place / "a.jpg") == ((W, H) if turned else (H, W))


@pytest.mark.filterwarnings("ignore")
def test_broken_exif_never_gets_through_unnamed(place):
    """Each byte of the EXIF in turn: the photo is read, or refused by name; and image and size agree."""
    exif = Image.Exif()
    exif[files.ORIENTATION] = 6
    whole = io.BytesIO()
    Image.fromarray(PHOTO).save(whole, "JPEG", exif=exif)
    start = whole.getvalue().index(b"Exif\0\0")
    read = 0
    for offset in range(start, start + 40):
        for value in (0, 255):
            changed = bytearray(whole.getvalue())
            changed[offset] = value
            (place / "a.jpg").write_bytes(changed)
            try:
                shape = files.read_image(place / "a.jpg").shape[:2]
            except ValueError as error:
                assert "a.jpg" in str(error)
            else:
                read += 1
                assert shape == files.image_size(place / "a.jpg")
    assert read > 40


def test_marks_of_windows_are_read_over(place):
    """Three bytes before the text say that it is UTF-8, lines end with two."""
    voc(place)
    for name, content in (("train", "a\nb\n"), ("val", "c\nd\n")):
        split(name, b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())(place)
    assert len(load_voc(place, labelled=2).labelled) == 2
    text("a.json", b"\xef\xbb\xbf" + json.dumps(ONE).encode())(place)
    assert len(files.read_masks(place / "a.json")) == 1
    text("pets.yaml", b"\xef\xbb\xbfclasses: [{name: cat}]\r\n")(place)
    assert class_files.read(place / "pets.yaml").names == ("cat",)


def test_a_class_that_no_labelled_image_shows_is_named(place):
    """That may be as it should be, so it is a warning."""
    photos(place)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        options = ["labels", str(place / "maps"), "classes", "[x, y, z, cow, hen]"]
        assert validator(["folder", "--root", str(place / "photos"), *options]) == 0
    (row,) = [row for row in said.getvalue().splitlines() if "classes that no labelled image shows" in row]
    assert row.startswith("warning")
    assert row.endswith("2  cow, hen")


COMMANDS = {
    "run.py": ["notebooks/run.py", "demo", "-p", "stpes", "5"],
    "doctor.py": ["notebooks/doctor.py", "dmo"],
    "scorer": ["-m", "plg_utils.score", "none", "none", "--classes", "voc"],
    "validator": ["-m", "plg_utils.check", "voc", "--root", "none"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_real_command_ends_without_traceback(name, place):
    call = [sys.executable, *COMMANDS[name]]
    done = subprocess.run(call, capture_output=True, text=True, cwd=files.ROOT, check=False)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr + done.stdout
    assert not contents(place)


# One bad photo among many


@pytest.fixture
def many(place):
    """Twenty photos, of which two are broken; all have label maps."""
    for number in range(20):
        files.write_image(place / "photos" / f"{number:02d}.jpg", np.roll(PHOTO, number, axis=0))
        files.write_label(place / "maps" / f"{number:02d}.png", LABEL)
    text("photos/07.jpg", encoded(PHOTO, "JPEG")[:-40])(place)
    text("photos/13.jpg", "")(place)
    return place


def load_many(folder: Path, **options) -> datasets.Dataset:
    """Load the twenty photos, ten of them labelled, four for val."""
    given = {"root": folder / "photos", "labels": folder / "maps", "classes": ["x", "y", "z"], "labelled": 10, "val": 4}
    return datasets.load("folder", **given | options)


def ids(data: datasets.Dataset) -> dict[str, list[str]]:
    return {split: [sample.id for sample in getattr(data, split)] for split in SPLITS}


def test_bad_photos_stop_and_are_all_told(many):
    for name, more in (("the default", {}), ("asked for", {"on_bad_image": "stop"})):
        with pytest.raises(ValueError, match="2 of 20 photos cannot be read") as error:
            load_many(many, **more)
        assert "07.jpg is not a readable image (image file is truncated" in str(error.value), name
        assert "13.jpg is not a readable image" in str(error.value)
        assert "on_bad_image: skip in dataset_options" in str(error.value)


def test_bad_photos_are_skipped_if_asked_for(many):
    with pytest.warns(UserWarning, match="2 of 20 photos cannot be read and are left out") as told:
        data = load_many(many, on_bad_image="skip")
    assert all(name in str(told[0].message) for name in ("07.jpg", "13.jpg"))
    assert sorted(data.left_out) == ["07", "13"]
    assert datasets.provenance(data).endswith("; 2 of 20 photos cannot be read and are left out")
    kept = ids(data)
    assert sum(map(len, kept.values())) == 18
    everything = ids(load_many(many, on_bad_image="when_read"))
    for split, names in everything.items():  # nobody takes the place of one that is left out
        assert kept[split] == [name for name in names if name not in ("07", "13")]
    for sample in (*data.labelled, *data.unlabelled, *data.val):
        sample.image()


@pytest.mark.filterwarnings("ignore")
def test_all_notebooks_leave_out_the_same(many, monkeypatch):
    """What could be read is remembered while its file stays; what could not is tried again."""
    first = ids(load_many(many, on_bad_image="skip"))
    looked_at = []
    read = files.read_image
    monkeypatch.setattr(files, "read_image", lambda path: looked_at.append(path.name) or read(path))
    assert ids(load_many(many, on_bad_image="skip")) == first
    assert sorted(looked_at) == ["07.jpg", "13.jpg"]
    looked_at.clear()
    text("photos/07.jpg", encoded(PHOTO, "JPEG"))(many)
    text("photos/05.jpg", "broken since")(many)
    again = load_many(many, on_bad_image="skip")
    assert set(again.left_out) == {"05", "13"}
    assert sorted(looked_at) == ["05.jpg", "07.jpg", "13.jpg"]


@pytest.mark.filterwarnings("ignore")
def test_the_stages_of_a_run_leave_out_the_same(many):
    """By default nothing is begun; with skip every stage has 18 of 20, and a second start finds them done."""
    options = {"root": str(many / "photos"), "labels": str(many / "maps"), "classes": ["x", "y", "z"]}
    given = TINY | {"dataset": "folder", "dataset_options": options, "labelled": 10, "images_at_once": 9}

    def execute(number: str) -> None:
        do_stages(tiny([number], **given))

    results = many / "results" / "tiny"
    with pytest.raises(ValueError, match="2 of 20 photos cannot be read"):
        execute("02")
    assert not results.exists()
    options["on_bad_image"] = "skip"
    written = []
    for numbers in (["02", "03"], ["02"]):
        for number in numbers:
            execute(number)
        paths = [path for path in results.glob("*/*.*") if path.stem not in ("manifest", "outputs")]
        written.append({path: path.stat().st_mtime_ns for path in paths})
    assert written[0] == written[1]
    kept = {f"{number:02d}" for number in range(20)} - {"07", "13"}
    for name in ("masks", "segments", "labels_zero_shot"):
        assert {path.stem for path in written[0] if path.parent.name == name} == kept, name
    assert {path.stem for path in (results / "labels_enhanced").glob("*.png")} < kept


def test_what_is_remembered_may_be_broken_or_nowhere(many, monkeypatch):
    for name in ("07", "13"):
        text(f"photos/{name}.jpg", encoded(PHOTO, "JPEG"))(many)
    load_many(many)
    (memory,) = (many / "data" / "checked_photos").iterdir()
    assert len(json.loads(memory.read_text())["photos"]) == 20
    memory.write_text("[")
    load_many(many)
    assert len(json.loads(memory.read_text())["photos"]) == 20
    monkeypatch.setenv("PLG_DATA", str(many / "photos" / "00.jpg" / "x"))  # below a file nothing can be written
    load_many(many)


def test_nothing_is_looked_at_if_nobody_asks(many):
    """A photo that turns out to be broken stops the stage that reads it, with its name and the option."""
    data = load_many(many, on_bad_image="when_read")
    assert not (many / "data" / "checked_photos").exists()
    by_id = {sample.id: sample for split in SPLITS for sample in getattr(data, split)}
    with pytest.raises(ValueError, match=r"07.jpg is not a readable image .*on_bad_image: skip in dataset_options"):
        by_id["07"].image()


def test_published_sets_are_looked_at_if_asked_for(place):
    voc(place)
    text("voc/JPEGImages/d.jpg", "")(place)
    assert len(load_voc(place).val) == 2
    with pytest.raises(ValueError, match="1 of 4 photos cannot be read"):
        load_voc(place, on_bad_image="stop")
    (place / "voc" / "JPEGImages" / "d.jpg").unlink()  # listed, and not there
    with pytest.warns(UserWarning, match="d.jpg is not there"):
        data = load_voc(place, on_bad_image="skip")
    assert (ids(data)["val"], data.left_out) == (["c"], ("d",))


def test_not_a_single_photo_can_be_read(place):
    photos(place)
    for name in "abc":
        text(f"photos/{name}.png", "")(place)
    with pytest.raises(ValueError, match="3 of 3 photos cannot be read"):
        load_folder(place, on_bad_image="skip")


def test_a_long_list_of_bad_photos_is_cut(place, monkeypatch):
    monkeypatch.setattr(datasets, "SHOWN", 2)
    photos(place)
    for name in "abc":
        text(f"photos/{name}.png", "")(place)
    with pytest.raises(ValueError, match=r"(?s)a.png.*b.png.*\n  \.\.\. and 1 more") as error:
        load_folder(place)
    assert "c.png" not in str(error.value)


def test_a_photo_that_disappears_is_named(place):
    """Between listing and reading, as on a disk that somebody tidies up."""
    photos(place)
    data = datasets.load("folder", root=place / "photos", classes=["x"])
    (place / "photos" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.png is not there.*on_bad_image: skip in dataset_options"):
        data.unlabelled[1].image()


def test_a_photo_that_may_not_be_read_is_named(place, monkeypatch):
    """Root may read everything, so the system's refusal is played."""
    photos(place)
    opened = Image.open

    def closed(path, *rest, **options):
        if Path(path).name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **options)

    monkeypatch.setattr(Image, "open", closed)
    with pytest.raises(ValueError, match=r"1 of 3 photos cannot be read:\n  .*b.png may not be read by this user"):
        load_folder(place)
