"""Data sets: the contract that each file of the folder keeps, then what is particular to voc and folder."""

import re
import subprocess
import sys
from importlib import import_module
from inspect import Parameter, signature

import numpy as np
import pytest
from test_camvid import tiny_camvid
from test_coco import CAR, CAT, PERSON, SIZE, box, ids, note, tiny_coco, write_json, write_photos
from test_splits import lines, write

from plg_utils import class_files, datasets, files
from plg_utils.datasets import _instances
from plg_utils.records import IGNORE, SPLITS, Classes, TruthHidden

OPTIONS = {"root", "labelled", "seed", "truth_of", "limit"}


@pytest.fixture
def tiny_root(tiny_root, tmp_path, monkeypatch):
    """Add the layouts of camvid and coco to the folder; the label maps that coco paints go beside it."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    tiny_camvid(tiny_root)
    tiny_coco(tiny_root)
    return tiny_root


@pytest.mark.parametrize("name", datasets.choices())
def test_contract(name, tiny_root):
    module = import_module(f"plg_utils.datasets.{name}")
    parameters = signature(module.load).parameters
    assert set(parameters) >= OPTIONS
    assert all(option.kind is Parameter.KEYWORD_ONLY for option in parameters.values())

    def load(**options):
        return datasets.load(name, root=tiny_root, **module.SMOKE | options)

    dataset = load()
    assert dataset.name == name and "label" in datasets.provenance(dataset)
    every, again = ([ids(getattr(data, split)) for split in SPLITS] for data in (dataset, load()))
    assert every == again
    assert len({*sum(every, [])}) == len(sum(every, [])) > 0  # an image is in one split
    for sample in (sample for split in SPLITS for sample in getattr(dataset, split)[:2]):
        assert files.check_stem(sample.id)
        image = sample.image()
        assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    for sample in dataset.labelled[:2]:
        truth = sample.truth()
        assert (truth.dtype, truth.shape) == (np.uint8, sample.image().shape[:2])
        assert set(np.unique(truth)) <= {*range(dataset.classes.num_classes), IGNORE}

    opened = load(truth_of=("val", "test"), limit=1)
    assert len(opened.unlabelled) <= 1
    for sample in (*opened.val, *opened.test):
        assert sample.truth().shape == sample.image().shape[:2]

    splits = ("labelled", "unlabelled")
    tagged, truths = load(truth_of=(), tags_of=splits), load(truth_of=splits)
    shut = [sample.tags for sample in (*truths.labelled, *opened.val, *opened.test)]
    shut += [sample.truth for sample in (*tagged.labelled, *tagged.unlabelled, *dataset.unlabelled, *dataset.val)]
    for read in shut:
        with pytest.raises(TruthHidden):
            read()
    for split in splits:
        for sample, with_truth in zip(getattr(tagged, split), getattr(truths, split), strict=True):
            assert sample.id == with_truth.id
            assert bool(sample.read_tags) == bool(with_truth.read_truth)
            if with_truth.read_truth:
                present = set(np.unique(with_truth.truth()).tolist())
                assert sample.tags() == tuple(sorted(present & set(tagged.classes.foreground)))


def test_class_files_in_the_package():
    names = ("voc", "storybook", "camvid", "coco")
    voc, storybook, camvid, coco = (class_files.read(datasets.CLASS_FILES / f"{name}.yaml") for name in names)
    assert [classes.num_classes for classes in (voc, storybook, camvid, coco)] == [21, 11, 11, 81]
    for classes in (voc, coco):
        assert [list(colour) for colour in classes.colours] == files.voc_palette()[: classes.num_classes].tolist()
    assert (voc.names[11], len(voc.words[0])) == ("dining table", 25)
    assert [coco.names[index] for index in (1, 12, 80)] == ["person", "stop sign", "toothbrush"]
    assert (camvid.background, camvid.names[0], camvid.names[10]) == (None, "sky", "bicyclist")
    assert storybook.names[1:] == import_module("plg_utils.datasets.storybook").NAMES
    for classes in (voc, storybook, camvid):
        assert len(set(classes.colours)) == classes.num_classes


# PASCAL VOC


def test_voc_without_lists_draws_them(tiny_root):
    few, more = (datasets.load("voc", root=tiny_root, labelled=count) for count in (2, 4))
    assert len(few.val) == 1  # a quarter of six
    assert ids(few.val) == ids(more.val)
    assert set(ids(few.labelled)) < set(ids(more.labelled))
    assert set(ids(few.unlabelled)) >= {"06", "07"}  # they have no label map
    assert len(few.labelled) + len(few.unlabelled) + len(few.val) == 8
    write(tiny_root / "ImageSets" / "Segmentation" / "all.txt", "00\n01\n02\n03\n")
    listed = datasets.load("voc", root=tiny_root, labelled=3)
    assert set(ids(listed.labelled) + ids(listed.val)) == {"00", "01", "02", "03"}
    assert len(datasets.load("voc", root=tiny_root, labelled="1/2").labelled) == 2  # of three, rounded up


def test_voc_with_its_own_lists(tiny_root):
    lists = tiny_root / "ImageSets" / "Segmentation"
    write(lists / "train.txt", "00\n01\n02\n")
    write(lists / "val.txt", "04\n05\n")
    dataset = datasets.load("voc", root=tiny_root, labelled=3)
    assert (ids(dataset.labelled), ids(dataset.unlabelled), ids(dataset.val)) == (["00", "01", "02"], [], ["04", "05"])
    write(lists / "train_aug.txt", "00\n01\n02\n03\n")
    dataset = datasets.load("voc", root=tiny_root, labelled=1, limit=1)
    assert len(ids(dataset.unlabelled)) == len(ids(dataset.val)) == 1
    assert ids(datasets.load("voc", root=tiny_root, labelled=3).unlabelled) == ["03"]
    judged = datasets.load("voc", root=tiny_root, labelled=3, label_val=True, truth_of=("unlabelled",))
    assert (ids(judged.unlabelled), judged.val) == (["04", "05"], ()) and judged.unlabelled[0].truth().shape == (16, 24)


def test_voc_with_unimatch_lists(tiny_root, tmp_path):
    split = tmp_path / "splits" / "2"
    write(split / "labeled.txt", lines([3, 1]))
    write(split.parent / "val.txt", lines([5]))
    write(split.parent / "train_aug.txt", lines([0, 1, 2, 3]))
    dataset = datasets.load("voc", root=tiny_root, split=split, labelled=2)
    assert (ids(dataset.labelled), ids(dataset.unlabelled), ids(dataset.val)) == (["03", "01"], ["00", "02"], ["05"])
    write(split / "unlabeled.txt", lines([4]) + "JPEGImages/07.jpg\n")
    dataset = datasets.load("voc", root=tiny_root, split=split, labelled=2, truth_of=("unlabelled",))
    assert ids(dataset.unlabelled) == ["04", "07"]
    assert dataset.unlabelled[0].truth().shape == (16, 24)
    with pytest.raises(TruthHidden):
        dataset.unlabelled[1].truth()
    assert dataset.unlabelled[1].image().shape == (16, 24, 3)


# Your own photos


def test_folder_with_and_without_labels(tiny_root):
    (tiny_root / "Photo 9.JPG").write_bytes((tiny_root / "JPEGImages" / "00.jpg").read_bytes())
    (tiny_root / "notes.txt").write_text("not a photo")
    (tiny_root / "._00.png").write_text("what macOS leaves on other disks")
    dataset = datasets.load("folder", root=tiny_root, classes=["red", "blue"], labelled=12, background=["wall"])
    assert ids(dataset.unlabelled) == [f"{number:02d}" for number in range(8)] + ["Photo 9"]
    assert (dataset.labelled, dataset.val, dataset.test) == ((), (), ())
    assert dataset.classes.names == ("background", "red", "blue")
    assert dataset.classes.words == (("wall",), ("red",), ("blue",))
    from_file = datasets.load("folder", root=tiny_root, classes=datasets.CLASS_FILES / "camvid.yaml")
    assert from_file.classes.num_classes == 11
    options = {"root": tiny_root, "classes": ["red", "green", "blue"], "labels": tiny_root / "SegmentationClass"}
    some = datasets.load("folder", **options, labelled=2, val=3, truth_of=("labelled", "val"))
    assert (len(some.labelled), len(some.unlabelled), len(some.val)) == (2, 4, 3)
    assert some.labelled[0].truth().shape == some.val[0].truth().shape == (16, 24)
    shut = datasets.load("folder", **options, labelled=2, val=3)
    for sample in (*shut.unlabelled, *shut.val):  # some of the unlabelled have a label map, too
        with pytest.raises(TruthHidden):
            sample.truth()


# Your own photos, with a json of objects

NAMES = [f"{number:012d}.jpg" for number in range(4)]
NOTES = [
    note(PERSON, box(0, 0, 8, 6), image=0, id=1),
    note(CAT, box(1, 1, 5, 5), image=0, id=2),
    note(CAR, box(2, 2, 4, 4), image=0, id=3),
    note(CAR, box(0, 0, 2, 2), image=1, crowd=1, id=4),
    note(CAT, box(6, 0, 8, 2), image=1, id=5),
]


@pytest.fixture
def objects(tmp_path, monkeypatch):
    """Load four photos with a json; keyword options go to the loader, the json can be changed in between."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    write_photos(tmp_path / "photos", NAMES)
    write_json(tmp_path / "objects.json", NAMES[:3], NOTES)
    options = {"root": tmp_path / "photos", "labels": tmp_path / "objects.json"}
    return lambda **more: datasets.load("folder", **options | more)


def test_objects_are_painted_as_coco_paints_them(objects, tmp_path):
    data = objects(classes=datasets.CLASS_FILES / "coco.yaml", truth_of=("labelled", "unlabelled"))
    assert ids(data.labelled) == [name[:-4] for name in NAMES[:2]]
    assert ids(data.unlabelled) == [name[:-4] for name in NAMES[2:]]  # without annotation, and not in the json
    for sample in data.unlabelled:
        with pytest.raises(TruthHidden):
            sample.truth()
    expected = np.full(SIZE, 1, dtype=np.uint8)
    expected[1:5, 1:5] = 16
    expected[2:4, 2:4] = 3
    np.testing.assert_array_equal(data.labelled[0].truth(), expected)
    crowd = np.zeros(SIZE, dtype=np.uint8)
    crowd[:2, :2], crowd[:2, 6:] = IGNORE, 16
    np.testing.assert_array_equal(data.labelled[1].truth(), crowd)
    with pytest.warns(UserWarning):
        coco = datasets.load("coco", root=tiny_coco(tmp_path / "coco", NOTES), labelled=6, truth_of=("labelled", "val"))
    theirs = {sample.id: sample for sample in (*coco.labelled, *coco.val)}
    for sample in data.labelled:
        np.testing.assert_array_equal(sample.truth(), theirs[sample.id].truth())


def test_a_category_of_no_class_is_background_and_told(objects):
    says = r"2 annotations have categories that are no class: car \(2\); they count as background"
    with pytest.warns(UserWarning, match=says):
        data = objects(classes=["cat", "person"])
    truth = data.labelled[0].truth()
    assert truth[3, 3] == 0  # the car, which lies on the cat
    assert (truth[1, 1], truth[0, 0]) == (1, 2)
    assert data.labelled[1].truth()[0].tolist() == [IGNORE] * 2 + [0] * 4 + [1] * 2  # a crowd of cars hides what it is


def test_categories_are_found_by_name_then_by_words():
    cat, tom = {"name": "cat", "words": ["kitten", "tom-cat"]}, {"name": "Tom", "words": ["man", "ignore"]}
    classes = class_files.parse({"background": ["wall", "Brick Wall"], "classes": [cat, tom]})
    values = {
        "cat": 1,
        "Tom": 2,
        "tom": 2,
        "CAT": 1,
        "tom_cat": 1,
        "brick-wall": 0,
        "dog": None,
        "Void": IGNORE,
        "IGNORE": 2,
    }
    assert _instances.values_of({name: name for name in values}, classes) == values
    twice = Classes(("cat", "dog"), (("pet",), ("Pet",)), ((0, 0, 0), (1, 1, 1)), None)
    with pytest.raises(ValueError, match="the category 'pet' could be a word of cat and of dog"):
        _instances.values_of({1: "pet"}, twice)


def test_other_words_give_other_maps_and_without_a_background_nothing_is_void(objects, tmp_path):
    """The same names and colours: what differs is which category they take."""
    path, truths = tmp_path / "words.yaml", []
    for words in ("[cat]", "[cat, car]"):
        path.write_text(f"background: []\nclasses: [{{name: pet, words: {words}}}]")
        with pytest.warns(UserWarning, match="are no class"):
            truths.append(objects(classes=path).labelled[0].truth())
    assert (truths[0][3, 3], truths[1][3, 3]) == (0, 1)
    path.write_text("classes: [{name: cat}, {name: person}]")
    with pytest.warns(UserWarning, match="they count as void"):
        data = objects(classes=path)
    assert data.labelled[0].truth()[[0, 1, 3], [0, 1, 3]].tolist() == [1, 0, IGNORE]


def test_what_loading_says_is_one_line_and_once_in_a_process(tiny_root):
    """Each notebook loads the data set anew, and tags open it once more."""
    code = (
        "import sys, warnings; from plg_utils import datasets\n"
        "for _ in range(3): datasets.load('voc', root=sys.argv[1], labelled=2, tags_of=('labelled',))\n"
        "warnings.warn('another')"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_root], capture_output=True, text=True, check=True)
    first, *others = done.stderr.splitlines()
    assert re.fullmatch("warning: .*Segmentation has no train.txt and no val.txt: both are drawn by seed 0", first)
    assert others == ["<string>:3: UserWarning: another"]


@pytest.mark.parametrize("which", ["photo", "label map"])
def test_a_link_in_a_data_set_does_not_lead_out(which, tiny_root, monkeypatch):
    """An archive of somebody's may bring links; its lists would then choose among all your files."""
    lists = tiny_root / "ImageSets" / "Segmentation"
    write(lists / "train.txt", "00\n")
    write(lists / "val.txt", "01\n")
    path = tiny_root / {"photo": "JPEGImages/00.jpg", "label map": "SegmentationClass/00.png"}[which]
    elsewhere = tiny_root.parent / f"mine{path.suffix}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)

    def read():
        (sample,) = datasets.load("voc", root=tiny_root, labelled=1).labelled
        return sample.image(), sample.truth()

    says = f"{path} is a link that leads out of {tiny_root}, to {elsewhere}. A downloaded list"
    with pytest.raises(ValueError, match=says):
        read()
    monkeypatch.setenv("PLG_LINKS", "1")
    read()
    monkeypatch.delenv("PLG_LINKS")
    path.unlink()  # a link that stays inside is none of these
    elsewhere.rename(path.with_name(f"other{path.suffix}"))
    path.symlink_to(f"other{path.suffix}")
    read()
