"""COCO: label maps that can be counted by hand, what is broken is told and never reaches C, and where files lie."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from plg_utils import class_files, datasets, files
from plg_utils.datasets import _instances as instances
from plg_utils.datasets import coco
from plg_utils.records import IGNORE, TruthHidden

pytestmark = pytest.mark.filterwarnings("ignore:COCO's labelled images are drawn")

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not (SHARED / "coco_sample").is_dir(), reason=f"{SHARED}/coco_sample is absent: no real photos of COCO are at hand"
)
CLASSES = class_files.read(coco.CLASS_FILE)
IDS = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91)]
CATEGORIES = [{"id": id, "name": name} for id, name in zip(IDS, CLASSES.names[1:], strict=True)]
VALUES = {category["id"]: index for index, category in enumerate(CATEGORIES, start=1)}
PERSON, CAR, CAT = 1, 3, 17  # ids in the json; 17 is class 16, since the json has no category 12
SIZE = (6, 8)


def box(left, top, right, bottom):
    """A rectangle as polygon: [left, right) x [top, bottom) pixels."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def note(category, segmentation, *, image=0, crowd=0, id=1):
    return {"id": id, "image_id": image, "category_id": category, "iscrowd": crowd, "segmentation": segmentation}


def dense(mask):
    """Run lengths of a mask as the json writes a crowd: a list, column by column, zeros first."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def write_json(path, names, annotations, categories=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for n, name in enumerate(names)]
    categories = CATEGORIES[::-1] if categories is None else categories  # they are found by name, not by place
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def paint(*annotations):
    return instances.paint(list(annotations), SIZE, VALUES)


def write_photos(folder, names):
    for number, name in enumerate(names):
        files.write_image(folder / name, np.full((*SIZE, 3), 20 * number, dtype=np.uint8))


def tiny_coco(root, annotations=None):
    """Write eight photos in one folder, and a json in which the first seven hold a car."""
    names = [f"{number:012d}.jpg" for number in range(8)]
    write_photos(root / "images", names)
    cars = [note(CAR, box(1, 1, 4, 3), image=number, id=number) for number in range(7)]
    write_json(root / "instances.json", names, cars if annotations is None else annotations)
    return root


def official(root, annotations=(), year=2017, train=6, val=3):
    """Write COCO's own layout."""
    for part, count in (("train", train), ("val", val)):
        prefix = f"COCO_{part}2014_" if year == 2014 else ""
        first = 0 if part == "train" else 100
        names = [f"{prefix}{first + number:012d}.jpg" for number in range(count)]
        write_photos(root / f"{part}{year}", names)
        write_json(root / "annotations" / f"instances_{part}{year}.json", names, list(annotations))
    return root


def ids(samples):
    return [sample.id for sample in samples]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load with the label maps in a folder of the test."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    return lambda **options: datasets.load("coco", **options)


# Painting


def test_the_smaller_is_on_top_and_of_equal_ones_the_later():
    large, small = note(CAR, box(0, 0, 6, 4), id=1), note(CAT, box(2, 1, 4, 3), id=2)
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[:4, :6] = 3
    expected[1:3, 2:4] = 16
    for order in ((large, small), (small, large)):
        np.testing.assert_array_equal(paint(*order), expected, strict=True)
    first, second = note(CAR, box(0, 0, 4, 2)), note(CAT, box(2, 0, 6, 2))
    assert paint(first, second)[0].tolist() == [3, 3, 16, 16, 16, 16, 0, 0]
    assert paint(second, first)[0].tolist() == [3, 3, 3, 3, 16, 16, 0, 0]


def test_a_crowd_is_void_and_painted_in_the_same_order():
    crowd = np.zeros(SIZE, dtype=bool)
    crowd[1:5, 2:6] = True
    label = paint(note(PERSON, dense(crowd), crowd=1), note(CAR, box(0, 0, 8, 4)), note(PERSON, box(3, 2, 4, 3), id=3))
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[:4] = 3  # the car is larger than the crowd, the single person smaller
    expected[crowd] = IGNORE
    expected[2, 3] = 1
    np.testing.assert_array_equal(label, expected)


def test_no_annotation_several_polygons_and_run_lengths_in_both_forms():
    assert not paint().any()
    assert (paint(note(CAR, box(0, 0, 2, 2) + box(1, 1, 4, 3))) == 3).sum() == 4 + 6 - 1
    mask = np.random.default_rng(0).random(SIZE) < 0.5
    text = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    text = {"size": list(text["size"]), "counts": text["counts"].decode()}
    for segmentation in (text, dense(mask)):
        np.testing.assert_array_equal(instances.decode(segmentation, SIZE), mask)


BROKEN = {  # segmentation, and what the error says
    "no polygon": ([], "it has no polygon"),
    "one of two is broken": (box(0, 0, 2, 2) + [[0, 0, 3, 3, 1]], "polygon .0, 0, 3, 3, 1. is not a list of x and y"),
    "flat list": ([0, 0, 3, 0, 3, 3], "the polygon 0 is not"),
    "text": ([["0", 0, 3, 0, 3, 3]], "the coordinate '0', not a number in or near the image"),
    "bool": ([[True, 0, 3, 0, 3, 3]], "the coordinate True"),
    "not a number": ([[float("nan"), 0, 3, 0, 3, 3]], "the coordinate nan"),
    "far away": ([[0, 0, 17, 0, 3, 3]], "the coordinate 17, not a number in or near the image .6, 8."),
    "counts too few": ({"size": [6, 8], "counts": "11"}, "add up to 2, the image has 48"),
    "list too few": ({"size": [6, 8], "counts": [40, 7]}, "add up to 47, the image has 48"),
    "list negative": ({"size": [6, 8], "counts": [50, -2]}, "neither a text nor a list of numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_told_and_never_reaches_c(case, monkeypatch):
    segmentation, complaint = BROKEN[case]
    monkeypatch.setattr(instances, "coco", None)
    with pytest.raises(instances.BrokenAnnotation, match=f"annotation 5: .*{complaint}"):
        paint(note(CAR, segmentation, id=5))


def test_a_broken_image_does_not_stop_the_others(load, tmp_path):
    annotations = [
        note(CAR, box(1, 1, 4, 3), image=0, id=1),
        note(CAR, {"size": [6, 8], "counts": "11"}, image=1, id=2),
        note(12, box(0, 0, 2, 2), image=2, id=3),
    ]
    root = tiny_coco(tmp_path, annotations)
    with pytest.warns(UserWarning, match="2 images have no label map, e.g. .*annotation [23]: "):
        data = load(root=root, labelled=6, truth_of=("labelled", "val"))
    samples = {sample.id: sample for sample in (*data.labelled, *data.val)}
    assert (samples["000000000000"].truth() == 3).sum() == 6
    with pytest.raises(ValueError, match="001 has no label map: annotation 2: its run lengths .*instances.json"):
        samples["000000000001"].truth()
    with pytest.raises(ValueError, match="its category 12"):
        samples["000000000002"].truth()
    assert not samples["000000000003"].truth().any()


# The cache


def test_only_open_splits_are_painted_once_for_each_json_and_rule(load, tmp_path, monkeypatch):
    root, real, painted = tiny_coco(tmp_path), instances.paint, []
    monkeypatch.setattr(instances, "paint", lambda *arguments: painted.append(arguments) or real(*arguments))
    data = load(root=root, labelled=2)
    (cache,) = (tmp_path / "data" / "coco_labels").iterdir()
    assert {path.stem for path in cache.glob("*.png")} == set(ids(data.labelled))
    for sample in (*data.unlabelled, *data.val):
        with pytest.raises(TruthHidden):
            sample.truth()
    load(root=root, labelled=2)
    assert len(painted) == 2
    next(cache.glob("*.png")).unlink()  # a map that is gone, or was not made when a run stopped
    load(root=root, labelled=6)
    assert len(painted) == 7
    with monkeypatch.context() as patch:
        patch.setattr(instances, "read", None)
        load(root=root, labelled=6)
        with pytest.raises(TypeError, match="NoneType"):  # the json would be read again
            load(root=root, labelled=2, truth_of=("val",))
    tiny_coco(tmp_path, [note(CAT, box(0, 0, 8, 6), image=number, id=number) for number in range(8)])
    assert (load(root=root, labelled=6).labelled[0].truth() == 16).all()
    monkeypatch.setattr(instances, "RULE", "2: by name")
    load(root=root, labelled=1, cache=tmp_path / "data" / "coco_labels")
    assert len(list((tmp_path / "data" / "coco_labels").iterdir())) == 3


# Layouts and splits


@pytest.mark.parametrize("year", [2014, 2017])
def test_the_official_layout_also_below_images_and_what_is_missing(load, tmp_path, year):
    with pytest.raises(FileNotFoundError, match=f"neither train{year}, val{year} and annotations, nor images"):
        load(root=tmp_path, year=year)
    data = load(root=official(tmp_path, year=year), labelled=2, year=year, limit=2)
    assert (len(data.labelled), len(data.unlabelled), len(data.val), len(data.test)) == (2, 2, 2, 0)
    assert data.labelled[0].truth().shape == SIZE
    assert data.labelled[0].image().shape == (*SIZE, 3)
    (tmp_path / "images").mkdir()
    for part in ("train", "val"):
        (tmp_path / f"{part}{year}").rename(tmp_path / "images" / f"{part}{year}")
    assert len(load(root=tmp_path, labelled="1/3", year=year).labelled) == 2
    (tmp_path / "annotations" / f"instances_val{year}.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"has no annotations/instances_val{year}.json"):
        load(root=tmp_path, year=year)
    with pytest.raises(ValueError, match="year=2015"):
        load(root=tmp_path, year=2015)


def write_splits(folder, labelled, val):
    folder.mkdir(parents=True)
    for name, part, numbers in (("labeled.txt", "train", labelled), ("../val.txt", "val", val)):
        lines = [f"{part}2017/{number:012d}.jpg masks/{number:012d}.png" for number in numbers]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_unimatch_lists_are_followed_and_checked(load, tmp_path, recwarn):
    root, splits = official(tmp_path), write_splits(tmp_path / "splits" / "1_3", [4, 1], [102, 100])
    data = load(root=root, split=splits, labelled=2)
    assert ids(data.labelled) == ["000000000004", "000000000001"]
    assert ids(data.unlabelled) == [f"{number:012d}" for number in (0, 2, 3, 5)]
    assert ids(data.val) == ["000000000102", "000000000100"]
    assert not [told for told in recwarn if "published" in str(told.message)]
    for name, labelled, val, complaint in (
        ("a", [1, 2], [2], "1 images are both in labelled and in val, e.g. 000000000002"),
        ("b", [1, 9], [100], "1 images of .*labeled.txt are not in .*train2017, e.g. 000000000009"),
        ("c", [1, 2], [1000], "1 images of .*val.txt are not in .*val2017"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=complaint):
            load(root=root, split=write_splits(tmp_path / name / "1_3", labelled, val), labelled=1)
    (splits / "labeled.txt").write_text("train2017/1.jpg masks/2.png\n")
    with pytest.raises(ValueError, match="labeled.txt, line 1: .* with one ID"):
        load(root=root, split=splits, labelled=1)


@needs_shared
def test_real_photos(load):
    data = load(root=SHARED / "coco_sample", labelled=24, truth_of=("labelled", "unlabelled", "val"))
    every = {sample.id: sample for sample in (*data.labelled, *data.unlabelled, *data.val)}
    assert (len(every), len(data.labelled), len(data.val)) == (64, 24, 16)
    assert all(sample.truth().shape == files.image_size(sample.path) for sample in every.values())
    with Image.open(every["000000000086"].path) as grey:
        assert grey.mode == "L"
    assert every["000000000086"].image().shape == (640, 512, 3)
    # Measured once: if this changes, the rule has changed, and with it all that was measured on these maps.
    digest = hashlib.sha256(b"".join(every[id].truth().tobytes() for id in sorted(every))).hexdigest()
    assert digest == "4e7fbb8933d5bcf18d13a250a6072db6c183d3732ef439f39f7ca07034eee1eb"
