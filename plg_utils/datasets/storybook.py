"""Storybook: a small drawn world that the repository carries, so that every notebook runs without a download.

A scene shows one to six of ten named things, with ink outlines, texture and shade, by day and by night, partly hidden
by each other, before sky, hills, paths, rocks and seven kinds of ground. `draw(seed)` gives the picture together with
everything that is true about it: the label map, the single objects, their parts, the regions behind them, a caption.
The same seed gives the same bytes.

A scene is first composed (who stands where), then drawn as one map of part numbers at twice the size, and only then
coloured: image, label map, objects and parts all come from the same map, so they cannot disagree.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from plg_utils import class_files, files
from plg_utils.records import Dataset, Sample

SIZE = 128  # pixels, height and width
NAMES = ("house", "tree", "car", "boat", "person", "flower", "mushroom", "balloon", "cloud", "fish")  # labels 1 to 10
REGIONS = ("sky", "water", "ground", "hills", "path", "rock", "sun")  # values of Scene.stuff
SMALLEST = 150  # pixels of an object that must be seen; one that is hidden more is left out of the scene
SCALE = 2  # drawn at twice the size, then averaged: smooth edges

SPLITS = {  # first seed and number of scenes; the miniatures were trained on seeds from 1,000,000
    "labelled": (0, 48),  # the pool from which the labelled images are drawn
    "unlabelled": (1000, 300),
    "val": (2000, 200),
    "test": (3000, 200),
}
CLASS_FILE = Path(__file__).parent / "classes" / "storybook.yaml"
SMOKE = {"labelled": 12, "limit": 2}

COLOURS = {
    "red": (203, 52, 45),
    "blue": (56, 96, 196),
    "green": (66, 150, 72),
    "yellow": (236, 203, 66),
    "white": (238, 236, 230),
    "orange": (233, 132, 46),
    "purple": (134, 76, 168),
    "pink": (238, 148, 174),
    "brown": (136, 90, 56),
    "gray": (138, 138, 144),
    "black": (52, 52, 60),
}
SKIES = {  # colour above, colour at the horizon, light on the whole scene
    "clear": ((92, 156, 226), (196, 224, 246), (1.0, 1.0, 1.0)),
    "gray": ((146, 156, 170), (204, 208, 214), (0.93, 0.94, 0.97)),
    "sunset": ((112, 92, 162), (250, 172, 112), (1.03, 0.93, 0.85)),
    "dawn": ((150, 176, 216), (250, 216, 204), (1.02, 0.98, 0.96)),
    "night": ((30, 36, 78), (72, 80, 130), (0.60, 0.64, 0.84)),
}
GROUNDS = {  # near the horizon, near the viewer, preposition
    "meadow": ((124, 176, 88), (74, 130, 56), "on"),
    "beach": ((236, 216, 164), (214, 186, 130), "on"),
    "snow": ((238, 243, 250), (214, 224, 240), "in"),
    "road": ((140, 140, 144), (104, 104, 110), "on"),
    "desert": ((228, 182, 118), (196, 140, 84), "in"),
    "forest floor": ((116, 104, 66), (78, 74, 44), "on"),
}
WATER = ((84, 146, 190), (44, 98, 150))
HILLS = ((104, 134, 140), (86, 124, 92), (154, 134, 114), (132, 138, 164))
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
PLURALS = {"person": "people", "fish": "fish"}
TEMPLATES = ("a photo of {}.", "a picture of {}.", "{}.", "an image with {}.", "a scene with {}.", "a drawing of {}.")


@dataclass(frozen=True)
class Scene:
    """A drawn picture and all that is true about it; H = W = 128."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    label: np.ndarray  # (H, W) uint8, 0 = background, else 1 + position in NAMES
    instances: np.ndarray  # (H, W) uint8, 0 = none, else the number of the object
    parts: np.ndarray  # (H, W) uint8, 0 = none, else the number of the part, counted over all objects
    stuff: np.ndarray  # (H, W) uint8, position in REGIONS; goes on behind the objects
    objects: tuple  # class name of each object, in the order of its number
    caption: str  # names every object and every region


def draw(seed: int) -> Scene:
    """Draw the scene of a seed: the same seed, the same bytes."""
    rng = np.random.default_rng(seed)
    place = _place(rng)
    objects = _compose(rng, place)
    picture, tables = _part_map(objects)
    seen = np.bincount(tables["instance"][picture[::SCALE, ::SCALE]].ravel(), minlength=len(objects) + 1)[1:]
    hidden = [k for k in range(len(objects)) if seen[k] < max(SMALLEST, 0.35 * objects[k]["area"])]
    if hidden:
        objects = [thing for k, thing in enumerate(objects) if k not in hidden]
        picture, tables = _part_map(objects)
    background, stuff = _background(rng, place, objects)
    image = _colour(rng, place, background, picture, tables)
    small = picture[::SCALE, ::SCALE]  # (H, W)
    return Scene(
        image=image,
        label=tables["label"][small],
        instances=tables["instance"][small],
        parts=tables["part"][small],
        stuff=stuff,
        objects=tuple(thing["name"] for thing in objects),
        caption=_caption(rng, place, objects, stuff),
    )


def load(
    *,
    root: str | Path | None = None,
    labelled: int = 12,
    seed: int = 0,
    truth_of: tuple[str, ...] = ("labelled",),
    limit: int | None = None,
) -> Dataset:
    """The embedded world as a data set: a pool of 48 labelled scenes, 300 unlabelled, 200 val, 200 test.

    Each scene is drawn when it is first asked for, and kept below `root` as `images/ID.png` and `labels/ID.png`.

    root: where the drawn files lie, by default a folder in the data folder that is called after this file's content,
        so that scenes drawn by other code are never taken for these
    labelled: how many of the pool carry labels; a seed's 12 are among its 24, and those among its 48, and each class
        occurs in at least two of the 12
    seed: of the draw of the labelled scenes; the other splits are always the same
    truth_of: splits whose label maps may be read
    limit: keep only the first scenes of unlabelled, val and test
    """
    if not 1 <= labelled <= SPLITS["labelled"][1]:
        raise ValueError(f"labelled={labelled}: the storybook has a pool of {SPLITS['labelled'][1]} labelled scenes")
    root = Path(root) if root else files.data_root() / f"storybook-{files.sha256(__file__)[:8]}"
    classes = class_files.read(CLASS_FILE)
    splits = {}
    for split, (_, count) in SPLITS.items():
        numbers = _labelled_order(root, seed)[:labelled] if split == "labelled" else range(count)[:limit]
        splits[split] = tuple(_sample(root, split, number, classes.colours, split in truth_of) for number in numbers)
    return Dataset("storybook", classes, **splits)


def _sample(root, split, number, colours, open_truth):
    """A scene as a sample that draws itself when its files are not there yet."""
    name = f"{split}_{number:03d}"
    image, label = root / "images" / f"{name}.png", root / "labels" / f"{name}.png"

    def drawn(path):
        if not path.exists():
            scene = draw(SPLITS[split][0] + number)
            files.write_label(label, scene.label, colours)
            files.write_image(image, scene.image)
        return path

    def read_truth():
        return files.read_label(drawn(label), len(NAMES) + 1)

    return Sample(name, lambda: files.read_image(drawn(image)), read_truth if open_truth else None)


@cache
def _labelled_order(root, seed):
    """The pool in the order in which scenes are labelled: the first 12 show each class in at least two scenes."""
    shows = np.array([[name in objects for name in NAMES] for objects in _pool(root)])  # (48, 10)
    rng = np.random.default_rng(seed)
    while True:  # about one order in three will do
        order = rng.permutation(len(shows))
        if shows[order[:12]].sum(axis=0).min() >= 2:
            return tuple(int(i) for i in order)


def _pool(root):
    """The objects of each scene of the labelled pool; they are looked up once, then kept in a file."""
    path = root / "pool.json"
    if not path.exists():
        first, count = SPLITS["labelled"]
        files.write_json(path, [draw(first + i).objects for i in range(count)])
    return files.read_json(path)


# ---------------------------------------------------------------------------------------------------------------------
# The ten things. Each returns ([(polygon in the unit square, colour, part name)], width / height, colour word);
# later parts cover earlier ones, and neighbours of the same name are one part.


def _near(rng, colour, spread=10):
    """A colour near the given one."""
    return np.clip(np.asarray(colour, float) + rng.normal(0, spread, 3), 8, 250)


def _pick(rng, *names):
    """One of the named colours: (word, colour)."""
    word = names[rng.integers(len(names))]
    return word, _near(rng, COLOURS[word])


def _box(x0, y0, x1, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def _round(x, y, rx, ry, corners=18, start=0.0, stop=2 * np.pi):
    """An ellipse, or the arc of one, as a polygon."""
    angle = np.linspace(start, stop, corners, endpoint=stop - start < 6)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _house(rng):
    word, wall = _pick(rng, "white", "red", "yellow", "blue", "gray", "brown", "pink", "orange")
    roof = _near(rng, [(134, 70, 56), (92, 70, 70), (66, 84, 106), (150, 96, 60)][rng.integers(4)])
    eaves = rng.uniform(0.34, 0.44)
    ridge = [[[0.5, 0.0]], [[0.24, 0.04], [0.76, 0.04]], [[0.3, 0.0]]][rng.integers(3)]
    glass = [(160, 200, 228), (250, 226, 140)][rng.integers(2)]
    parts = [(_box(0.7, 0.04, 0.82, eaves), _near(rng, (126, 86, 76)), "chimney")] if rng.random() < 0.5 else []
    parts += [
        (_box(0.08, eaves - 0.02, 0.92, 1), wall, "wall"),
        (np.array([[0, eaves], *ridge, [1, eaves]]), roof, "roof"),
    ]
    door = rng.uniform(0.2, 0.6)
    parts.append((_box(door, 0.64, door + 0.18, 1), _near(rng, (104, 68, 46), 16), "door"))
    for x in (0.14, 0.42, 0.69):
        if abs(x - door) > 0.22:
            parts.append((_box(x, eaves + 0.12, x + 0.17, eaves + 0.3), _near(rng, glass, 6), "window"))
    return parts, rng.uniform(0.9, 1.25), word


def _tree(rng):
    word, crown = [
        ("green", (58, 128, 58)),
        ("green", (92, 156, 66)),
        ("orange", (219, 128, 48)),
        ("pink", (234, 164, 188)),
        ("yellow", (210, 184, 64)),
    ][rng.choice(5, p=[0.35, 0.3, 0.14, 0.1, 0.11])]
    crown = _near(rng, crown)
    parts = [(np.array([[0.42, 0.5], [0.58, 0.5], [0.62, 1], [0.38, 1]]), _near(rng, (104, 74, 52)), "trunk")]
    if rng.random() < 0.4:  # a fir
        for i in range(3):
            y, half = 0.04 + 0.2 * i, 0.3 + 0.09 * i
            fir = np.array([[0.5, y - 0.04], [0.5 + half, y + 0.33], [0.5 - half, y + 0.33]])
            parts.append((fir, crown * (1 - 0.05 * i), "crown"))
        return parts, rng.uniform(0.55, 0.72), word
    for _ in range(rng.integers(3, 6)):
        leaves = _round(rng.uniform(0.32, 0.68), rng.uniform(0.24, 0.46), 0.3, 0.22)
        parts.append((leaves, crown * rng.uniform(0.94, 1.06), "crown"))
    return parts, rng.uniform(0.72, 0.95), word


def _car(rng):
    word, paint = _pick(rng, "red", "blue", "green", "yellow", "white", "orange", "gray", "black", "purple")
    left, right = rng.uniform(0.14, 0.26), rng.uniform(0.68, 0.84)
    glass = _near(rng, (176, 208, 226), 8)
    parts = [
        (np.array([[left, 0.5], [left + 0.12, 0.06], [right - 0.12, 0.06], [right, 0.5]]), paint * 0.95, "cabin"),
        (np.array([[left + 0.07, 0.46], [left + 0.15, 0.15], [0.46, 0.15], [0.46, 0.46]]), glass, "window"),
        (np.array([[0.52, 0.46], [0.52, 0.15], [right - 0.15, 0.15], [right - 0.06, 0.46]]), glass, "windscreen"),
        (np.array([[0, 0.54], [0.08, 0.44], [0.92, 0.44], [1, 0.58], [1, 0.82], [0, 0.82]]), paint, "body"),
        (_round(0.95, 0.6, 0.04, 0.07, 10), _near(rng, (252, 242, 176), 6), "lamp"),
    ]
    for x, name in ((0.22, "wheel"), (0.78, "front wheel")):
        parts.append((_round(x, 0.8, 0.12, 0.21), _near(rng, (44, 44, 50), 5), name))
        parts.append((_round(x, 0.8, 0.05, 0.09, 10), _near(rng, (178, 178, 184), 6), name))
    return parts, rng.uniform(1.8, 2.2), word


def _boat(rng):
    word, hull = _pick(rng, "red", "blue", "white", "brown", "black", "green", "yellow")
    parts = [(np.array([[0, 0.68], [1, 0.68], [0.84, 1], [0.14, 1]]), hull, "hull")]
    if rng.random() < 0.6:
        sail = _near(rng, [(242, 240, 232), (236, 156, 70), (204, 72, 68), (242, 222, 156)][rng.integers(4)])
        parts += [
            (_box(0.46, 0.02, 0.53, 0.68), _near(rng, (100, 76, 56)), "mast"),
            (np.array([[0.53, 0.04], [0.96, 0.62], [0.53, 0.62]]), sail, "sail"),
            (np.array([[0.46, 0.1], [0.1, 0.62], [0.46, 0.62]]), sail * 0.94, "fore sail"),
        ]
        return parts, rng.uniform(0.9, 1.1), word
    parts += [
        (_box(0.26, 0.34, 0.78, 0.68), _near(rng, (240, 238, 234), 6), "cabin"),
        (_box(0.52, 0.04, 0.68, 0.34), _near(rng, (190, 60, 54)), "funnel"),
    ]
    parts += [(_box(x, 0.43, x + 0.09, 0.57), _near(rng, (100, 140, 170), 6), "window") for x in (0.34, 0.49, 0.63)]
    return parts, rng.uniform(1.2, 1.5), word


def _person(rng):
    word, shirt = _pick(rng, "red", "blue", "green", "yellow", "white", "orange", "purple", "pink", "black")
    skin = _near(rng, [(238, 200, 172), (206, 156, 122), (142, 100, 74), (106, 72, 54)][rng.integers(4)], 6)
    trousers = _near(rng, [(58, 70, 122), (74, 60, 52), (120, 120, 126), (48, 48, 56)][rng.integers(4)])
    hair = _near(rng, [(52, 40, 34), (122, 80, 44), (214, 180, 96), (160, 160, 164)][rng.integers(4)], 6)
    stride = rng.uniform(0.0, 0.08)
    parts = [
        (np.array([[0.3, 0.6], [0.52, 0.6], [0.47 - stride, 1], [0.24 - stride, 1]]), trousers, "legs"),
        (np.array([[0.48, 0.6], [0.7, 0.6], [0.76 + stride, 1], [0.53 + stride, 1]]), trousers * 0.93, "legs"),
        (np.array([[0.28, 0.26], [0.38, 0.32], [0.2, 0.6], [0.04, 0.56]]), skin, "left arm"),
        (np.array([[0.72, 0.26], [0.62, 0.32], [0.8, 0.6], [0.96, 0.56]]), skin, "right arm"),
    ]
    if rng.random() < 0.35:
        parts.append((np.array([[0.3, 0.24], [0.7, 0.24], [0.86, 0.76], [0.14, 0.76]]), shirt, "dress"))
    else:
        parts.append((np.array([[0.24, 0.25], [0.76, 0.25], [0.72, 0.66], [0.28, 0.66]]), shirt, "shirt"))
    parts += [
        (_round(0.5, 0.13, 0.21, 0.125, 16), skin, "head"),
        (_round(0.5, 0.105, 0.22, 0.105, 12, np.pi, 2 * np.pi), hair, "hair"),
    ]
    return parts, rng.uniform(0.46, 0.54), word


def _flower(rng):
    word, petal = _pick(rng, "red", "yellow", "white", "orange", "purple", "pink", "blue")
    aspect, count, turn = rng.uniform(0.62, 0.74), rng.integers(5, 8), rng.uniform(0, 6)
    green = _near(rng, (70, 142, 60))
    parts = [
        (_box(0.44, 0.4, 0.56, 1), green, "stem"),
        (np.array([[0.54, 0.92], [0.7, 0.66], [0.96, 0.6], [0.84, 0.8]]), green * 1.08, "leaf"),
        (np.array([[0.46, 0.86], [0.3, 0.66], [0.06, 0.64], [0.18, 0.8]]), green, "left leaf"),
    ]
    for i in range(count):
        angle = turn + 2 * np.pi * i / count
        spin = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        leaf = _round(0.27, 0, 0.21, 0.15, 12) @ spin  # a petal along the angle, in units of the width
        parts.append((leaf * [1, aspect] + [0.5, 0.31], petal * (1 - 0.05 * (i % 2)), "petals"))
    heart = _near(rng, [(238, 196, 58), (118, 78, 48)][rng.integers(2)], 8)
    parts.append((_round(0.5, 0.31, 0.16, 0.16 * aspect, 14), heart, "heart"))
    return parts, aspect, word


def _mushroom(rng):
    word, cap = _pick(rng, "red", "brown", "orange", "white", "purple", "gray")
    parts = [
        (np.array([[0.37, 0.46], [0.63, 0.46], [0.7, 1], [0.3, 1]]), _near(rng, (236, 226, 206), 6), "stalk"),
        (
            np.concatenate(
                [
                    _round(0.5, 0.52, 0.5, 0.5, 16, np.pi, 2 * np.pi),
                    _round(0.5, 0.52, 0.5, 0.1, 8, 0, np.pi),
                ]
            ),
            cap,
            "cap",
        ),
    ]
    if rng.random() < 0.75:
        spot = _near(rng, (250, 244, 232) if word != "white" else (206, 120, 110), 5)
        for x, y in ((0.28, 0.34), (0.54, 0.17), (0.75, 0.38), (0.48, 0.44)):
            parts.append((_round(x, y, rng.uniform(0.05, 0.08), rng.uniform(0.045, 0.07), 10), spot, "spots"))
    return parts, rng.uniform(0.9, 1.2), word


def _balloon(rng):
    word, silk = _pick(rng, "red", "blue", "green", "yellow", "orange", "purple", "pink")
    envelope = np.concatenate(
        [
            _round(0.5, 0.37, 0.49, 0.37, 18, np.pi, 2 * np.pi),
            np.array([[0.97, 0.46], [0.64, 0.79], [0.36, 0.79], [0.03, 0.46]]),
        ]
    )
    parts = [(_box(0.38, 0.77, 0.62, 0.88), _near(rng, (178, 158, 128)), "ropes"), (envelope, silk, "envelope")]
    if rng.random() < 0.75:
        stripe = _near(rng, COLOURS[("white", "yellow", "orange", "pink", "blue")[rng.integers(5)]])
        for side in (-1, 1):
            curve = [[0.5 + 0.08 * side, 0.01], [0.5 + 0.3 * side, 0.37], [0.5 + 0.09 * side, 0.79]]
            outer = [[0.5 + 0.12 * side, 0.79], [0.5 + 0.44 * side, 0.37], [0.5 + 0.16 * side, 0.02]]
            parts.append((np.array(curve + outer), stripe, "stripes"))
    parts.append((_box(0.33, 0.85, 0.67, 1), _near(rng, (146, 102, 60)), "basket"))
    return parts, rng.uniform(0.72, 0.86), word


def _cloud(rng):
    word, vapour = [("white", (246, 247, 250)), ("gray", (176, 180, 190)), ("pink", (247, 212, 212))][
        rng.choice(3, p=[0.65, 0.22, 0.13])
    ]
    vapour, count = _near(rng, vapour, 5), rng.integers(3, 5)
    parts = [(_box(0.12, 0.6, 0.88, 0.97), vapour, "puffs")]
    for i in range(count):
        t = i / (count - 1)
        height = 0.6 - rng.uniform(0.05, 0.25) * np.sin(np.pi * t)
        parts.append((_round(0.2 + 0.6 * t, height, 0.2, rng.uniform(0.32, 0.4), 16), vapour, "puffs"))
    return parts, rng.uniform(1.7, 2.3), word


def _fish(rng):
    word, skin = _pick(rng, "red", "blue", "yellow", "orange", "gray", "purple", "green", "pink")
    parts = [
        (np.array([[0.24, 0.5], [0, 0.12], [0.07, 0.5], [0, 0.88]]), skin * 0.85, "tail"),
        (np.array([[0.4, 0.22], [0.54, 0.0], [0.76, 0.24]]), skin * 0.82, "fin"),
        (np.array([[0.46, 0.78], [0.5, 1.0], [0.68, 0.76]]), skin * 0.82, "lower fin"),
        (_round(0.58, 0.5, 0.42, 0.37, 22), skin, "body"),
    ]
    if rng.random() < 0.5:
        band = _near(rng, (246, 242, 236), 6)
        for x in (0.42, 0.6):
            stripe = [[x, 0.19], [x + 0.09, 0.17], [x + 0.12, 0.5], [x + 0.09, 0.83], [x, 0.81], [x + 0.03, 0.5]]
            parts.append((np.array(stripe), band, "bands"))
    parts.append((_round(0.83, 0.41, 0.06, 0.1, 12), _near(rng, (248, 248, 248), 3), "eye"))
    parts.append((_round(0.845, 0.42, 0.028, 0.05, 8), np.array([24.0, 24, 24]), "eye"))
    return parts, rng.uniform(1.5, 1.9), word


THINGS = dict(
    zip(NAMES, (_house, _tree, _car, _boat, _person, _flower, _mushroom, _balloon, _cloud, _fish), strict=True)
)
HEIGHTS = {  # of the image
    "house": (0.36, 0.58),
    "tree": (0.42, 0.68),
    "car": (0.2, 0.32),
    "boat": (0.32, 0.5),
    "person": (0.42, 0.66),
    "flower": (0.36, 0.56),
    "mushroom": (0.28, 0.46),
    "balloon": (0.36, 0.56),
    "cloud": (0.16, 0.25),
    "fish": (0.2, 0.34),
}


# ---------------------------------------------------------------------------------------------------------------------
# Composition: the place, and who stands where.


def _place(rng):
    """The sky, the ground and the height of the horizon, all in fractions of the image."""
    kind = ("land", "water", "underwater")[rng.choice(3, p=[0.6, 0.28, 0.12])]
    place = {
        "kind": kind,
        "sky": list(SKIES)[rng.choice(5, p=[0.42, 0.16, 0.16, 0.12, 0.14])],
        "ground": list(GROUNDS)[rng.choice(6, p=[0.32, 0.16, 0.14, 0.12, 0.14, 0.12])],
        "horizon": rng.uniform(0.36, 0.56),
        "shore": rng.uniform(0.74, 0.86) if kind == "water" else 0.0,
        "hills": rng.random() < 0.4 and kind != "underwater",
        "path": rng.random() < 0.3 and kind == "land",
        "rocks": int(rng.integers(1, 4)) if rng.random() < 0.3 else 0,
        "dream": rng.random() < 0.15,  # things may float anywhere, so that a thing is not known by its place alone
        "light": rng.uniform(-1, 1),
    }
    place["sun"] = kind != "underwater" and place["sky"] in ("clear", "sunset", "night") and rng.random() < 0.4
    if kind == "underwater":
        place["sky"] = "clear"
    return place


def _base(rng, name, height, place):
    """How far down an object ends, as a fraction of the image."""
    if place["dream"] or (place["kind"] == "underwater" and name != "boat"):
        return rng.uniform(height * 0.9, 1.0)
    if name in ("balloon", "cloud"):
        return rng.uniform(height, max(height + 0.02, place["horizon"] + 0.06))
    if place["kind"] == "underwater":
        return rng.uniform(height * 0.8, height + 0.15)
    if place["kind"] == "water" and name in ("boat", "fish"):
        return rng.uniform(place["horizon"] + 0.1, max(place["horizon"] + 0.12, place["shore"]))
    if place["kind"] == "water":
        return rng.uniform(place["shore"] + 0.05, 1.0)
    return rng.uniform(max(place["horizon"] + 0.08, height * 0.9), 1.0)


def _compose(rng, place):
    """Choose the things and a place for each, so that little is hidden; the far ones come first."""
    wanted = rng.choice(np.arange(1, 7), p=[0.06, 0.14, 0.3, 0.27, 0.15, 0.08])
    weights = {
        "land": [1.1, 1.1, 1.1, 0.6, 1.1, 1, 1, 1, 1, 0.3],
        "water": [0.8, 0.8, 0.7, 2.0, 0.8, 0.8, 0.8, 1, 1, 1.3],
        "underwater": [0.5, 0.4, 0.6, 1.2, 0.6, 0.6, 0.6, 0.4, 0.3, 3.0],
    }[place["kind"]]
    objects = []
    for name in rng.choice(NAMES, size=wanted, p=np.array(weights) / sum(weights)):
        parts, aspect, word = THINGS[name](rng)
        height = rng.uniform(*HEIGHTS[name]) * (1.1 if wanted <= 2 else 0.95 if wanted <= 4 else 0.85)
        width = height * aspect
        for _ in range(12):  # a place where it hides little and is hidden little
            base, left = _base(rng, name, height, place), rng.uniform(-0.08 * width, 1 - 0.92 * width)
            box = (left, base - height, left + width, base)
            if all(_shared(box, other["box"]) < 0.3 for other in objects):
                break
        else:
            continue
        objects.append({"name": str(name), "parts": parts, "word": word, "box": box, "flip": rng.random() < 0.5})
        objects[-1]["tilt"] = 0.0 if name == "cloud" else rng.normal(0, 0.04)
    return sorted(objects, key=lambda thing: 0 if thing["name"] in ("cloud", "balloon") else thing["box"][3])


def _shared(a, b):
    """The share of the smaller box that the two boxes have in common."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, width) * max(0.0, height) / smaller


# ---------------------------------------------------------------------------------------------------------------------
# Drawing: one map of part numbers, from which everything else follows.


def _part_map(objects):
    """Draw all parts by number, two numbers a part: its surface and its ink line.

    returns: (2H, 2W) uint8 part numbers, and the tables number -> colour, ink, label, instance, part
    """
    size = SIZE * SCALE
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    rows, part_ids = [((0, 0, 0), 0, 0, 0)], 0
    for k, thing in enumerate(objects, start=1):
        x0, y0, x1, y1 = (edge * size for edge in thing["box"])
        turn = np.array(
            [
                [np.cos(thing["tilt"]), np.sin(thing["tilt"])],
                [-np.sin(thing["tilt"]), np.cos(thing["tilt"])],
            ]
        )
        names, area = {}, Image.new("1", (size, size)) if "area" not in thing else None
        silhouette = ImageDraw.Draw(area) if area else None
        for polygon, colour, name in thing["parts"]:
            if name not in names:
                part_ids += 1
                names[name] = part_ids
            corners = (polygon - 0.5) * [-1 if thing["flip"] else 1, 1] * [x1 - x0, y1 - y0] @ turn
            corners = [tuple(corner) for corner in (corners + [(x0 + x1) / 2, (y0 + y1) / 2]).tolist()]
            number = len(rows)
            pen.polygon(corners, fill=number)
            pen.line([*corners, corners[0]], fill=number + 1, width=2)
            if silhouette:
                silhouette.polygon(corners, fill=1)
            label = 1 + NAMES.index(thing["name"])
            merged = sum(other == name for _, _, other in thing["parts"]) > 1
            ink = 0.86 if merged else 0.5  # leaves, petals and puffs flow into each other
            rows += [(tuple(colour), label, k, names[name]), (tuple(np.multiply(colour, ink)), label, k, names[name])]
        if area:  # of the whole object, seen or not
            thing["area"] = int(np.asarray(area)[::SCALE, ::SCALE].sum())
    colours, labels, instances, parts = zip(*rows, strict=True)
    tables = {
        "colour": np.clip(np.array(colours), 0, 255).astype(np.uint8),
        "label": np.array(labels, np.uint8),
        "instance": np.array(instances, np.uint8),
        "part": np.array(parts, np.uint8),
        "boxes": np.array([(0, 0, 1, 1), *(thing["box"] for thing in objects)], np.float32),
    }
    return np.asarray(canvas), tables


@cache
def _texture():
    """A fixed sheet of (fine, coarse) noise, (2, 512, 512) float32 of about unit variance; scenes cut windows of it."""
    rng = np.random.default_rng(7)
    sheets = []
    for cells in (256, 40):
        noise = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        sheet = np.asarray(noise.resize((512, 512), Image.Resampling.BICUBIC))
        sheets.append(sheet / sheet.std())
    return np.stack(sheets)


def _window(rng, which, size=SIZE):
    y, x = rng.integers(0, 512 - size, 2)
    return _texture()[which, y : y + size, x : x + size]


def _gradient(rng, top, bottom, start, stop):
    """(H, 1, 3): from one colour to the other between two heights."""
    t = np.clip((np.linspace(0, 1, SIZE, dtype=np.float32) - start) / (stop - start), 0, 1)[:, None, None]
    top, bottom = _near(rng, top, 7).astype(np.float32), _near(rng, bottom, 7).astype(np.float32)
    return top + (bottom - top) * t


def _background(rng, place, objects):
    """The picture without objects, (H, W, 3) float32, and its regions, (H, W) uint8."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    fine, coarse = _window(rng, 0)[..., None], _window(rng, 1)[..., None]
    stuff = np.zeros((SIZE, SIZE), np.uint8)
    if place["kind"] == "underwater":
        image = _gradient(rng, (84, 170, 204), (24, 76, 126), 0, 1) + 7 * coarse + 2 * fine
        stuff[:] = REGIONS.index("water")
    else:
        above, below, _ = SKIES[place["sky"]]
        image = _gradient(rng, above, below, 0, place["horizon"]) + 4 * coarse
        if place["sky"] == "night":
            image[(_texture()[0, :SIZE, :SIZE] > 2.6) & (rows < place["horizon"])] += 110  # stars
        if place["sun"]:
            x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.25), rng.uniform(0.05, 0.08)
            disc = (columns - x) ** 2 + (rows - y) ** 2 < r**2
            image[disc] = (244, 240, 214) if place["sky"] == "night" else (255, 226, 130)
            stuff[disc] = REGIONS.index("sun")
        if place["hills"]:
            line = (
                place["horizon"]
                - rng.uniform(0.06, 0.14)
                + 0.045 * np.sin(columns * rng.uniform(5, 12) + 6 * rng.random())
            )
            _fill(image, stuff, rows > line, _near(rng, HILLS[rng.integers(4)]) + 3 * coarse, "hills")
        line = place["horizon"] + rng.choice([0, 0.012]) * np.sin(columns * rng.uniform(4, 9) + 6 * rng.random())
        if place["kind"] == "water":
            waves = 5 * np.sin(rows * 180 + 3 * _window(rng, 1))[..., None] * (rows[..., None] + 0.2)
            water = _gradient(rng, *WATER, place["horizon"], place["shore"]) + waves + 4 * coarse
            _fill(image, stuff, rows > line, water, "water")
            line = place["shore"] + 0.025 * np.sin(columns * rng.uniform(4, 9) + 6 * rng.random())
        top, bottom, _ = GROUNDS[place["ground"]]
        ground = _gradient(rng, top, bottom, place["horizon"], 1) + 6 * fine + 5 * coarse
        _fill(image, stuff, rows > line, ground, "ground")
        if place["path"]:
            t = np.clip((rows - place["horizon"]) / (1 - place["horizon"]), 0, 1)
            near, far = rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.8)
            on_path = (np.abs(columns - far - (near - far) * t) < 0.02 + rng.uniform(0.07, 0.14) * t) & (rows > line)
            _fill(image, stuff, on_path, _near(rng, (186, 158, 122)) + 4 * fine, "path")
    lowest = 0.6 if place["kind"] == "underwater" else max(place["horizon"] + 0.08, place["shore"] + 0.02)
    for _ in range(place["rocks"]):
        x, y, r = rng.uniform(0.05, 0.95), rng.uniform(lowest, 0.96), rng.uniform(0.03, 0.06)
        rock = ((columns - x) / 1.5) ** 2 + (rows - y) ** 2 < r**2 * (
            1 + 0.2 * np.sin(7 * np.arctan2(rows - y, columns - x))
        )
        shade = 18 * (y - rows)[..., None] / r
        _fill(image, stuff, rock, np.array([132, 128, 124]) + shade + 5 * fine, "rock")
    if place["kind"] == "land" and not place["dream"]:
        for thing in objects:
            if thing["name"] not in ("cloud", "balloon", "fish"):  # the shadow at its feet
                x0, _, x1, y1 = thing["box"]
                far = ((columns - (x0 + x1) / 2) / (0.6 * (x1 - x0))) ** 2 + ((rows - y1) / 0.035) ** 2
                image *= (1 - 0.3 * np.exp(-far))[..., None]
    return image, stuff


def _fill(image, stuff, where, colour, region):
    np.copyto(image, np.broadcast_to(colour, image.shape).astype(np.float32), where=where[..., None])
    stuff[where] = REGIONS.index(region)


def _colour(rng, place, background, picture, tables):
    """Colour the part map over the background, shade the objects, light the whole.

    background: (H, W, 3) float32, picture: (2H, 2W) uint8 part numbers
    returns: (H, W, 3) uint8
    """
    behind = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
    large = np.asarray(behind.resize((SIZE * SCALE, SIZE * SCALE), Image.Resampling.BILINEAR)).copy()
    covered = picture > 0
    large[covered] = tables["colour"][picture[covered]]
    image = np.asarray(Image.fromarray(large).reduce(SCALE)).astype(np.float32)  # (H, W, 3)
    instance = tables["instance"][picture[::SCALE, ::SCALE]]  # (H, W)
    x0, y0, x1, y1 = tables["boxes"].T
    columns, rows = np.arange(SIZE, dtype=np.float32)[None] / SIZE, np.arange(SIZE, dtype=np.float32)[:, None] / SIZE
    across = 2 * (columns - x0[instance]) / (x1 - x0)[instance] - 1  # -1 at the left edge of the object, 1 at its right
    down = 2 * (rows - y0[instance]) / (y1 - y0)[instance] - 1
    shade = 1 + 0.13 * place["light"] * across - 0.07 * down + 0.035 * _window(rng, 1)
    image *= np.where(instance > 0, shade, 1)[..., None]
    image *= np.array(SKIES[place["sky"]][2], np.float32) * rng.uniform(0.94, 1.06)
    image += rng.uniform(0.8, 2.5) * _window(rng, 0)[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Captions.


def _caption(rng, place, objects, stuff):
    """A sentence that names every object and every region of the scene."""
    groups = Counter(thing["name"] for thing in objects)
    phrases = []
    for name in rng.permutation(list(groups)) if groups else ():
        if groups[name] > 1:
            phrases.append(f"{NUMBERS[groups[name]]} {PLURALS.get(name, name + 's')}")
            continue
        word = next(thing["word"] for thing in objects if thing["name"] == name)
        if rng.random() < 0.4:
            phrases.append(f"a {name}")
        elif name == "person":
            phrases.append(f"a person in {word}")
        else:
            phrases.append(f"{'an' if word == 'orange' else 'a'} {word} {name}")
    sentence = _list(phrases) if phrases else "an empty scene"
    seen = {REGIONS[k] for k in np.flatnonzero(np.bincount(stuff.ravel(), minlength=len(REGIONS)) >= 40)}
    extras = [word for region, word in (("hills", "hills"), ("path", "a path"), ("rock", "rocks")) if region in seen]
    if "sun" in seen:
        extras.append("the moon" if place["sky"] == "night" else "the sun")
    if place["kind"] == "underwater":
        sentence += " under the water"
    elif place["kind"] == "water":
        sentence += f" by the water and the {place['ground']}"
    else:
        sentence += f" {GROUNDS[place['ground']][2]} the {place['ground']}"
    if extras:
        sentence += f" with {_list(extras)}"
    if place["kind"] != "underwater":
        sentence += f" under {'a' if place['sky'] != 'clear' else 'the'} {place['sky']} sky"
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(sentence)


def _list(phrases):
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
