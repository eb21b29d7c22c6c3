"""Data sets: the contract that each file of the folder keeps, then what is particular to voc and folder."""

from importlib import import_module
from inspect import Parameter, signature

import numpy as np
import pytest
from test_camvid import tiny_camvid
from test_coco import tiny_coco

from plg_utils import datasets, files
from plg_utils.records import IGNORE, SPLITS, TruthHidden

OPTIONS = {"root", "labelled", "seed", "truth_of", "limit"}


def ids(samples):
    return [sample.id for sample in samples]


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

    dataset = datasets.load(name, root=tiny_root, **module.SMOKE)
    again = datasets.load(name, root=tiny_root, **module.SMOKE)
    assert dataset.name == name
    every = [sample for split in SPLITS for sample in getattr(dataset, split)]
    assert ids(every) == ids(sample for split in SPLITS for sample in getattr(again, split))
    assert len(set(ids(every))) == len(every) > 0  # an image is in one split
    for split in SPLITS:
        for sample in getattr(dataset, split)[:2]:
            assert files.check_stem(sample.id)
            image = sample.image()
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            if split == "labelled":
                truth = sample.truth()
                assert truth.dtype == np.uint8
                assert truth.shape == image.shape[:2]
                assert set(np.unique(truth)) <= {*range(dataset.classes.num_classes), IGNORE}
            else:
                with pytest.raises(TruthHidden):
                    sample.truth()

    shut = datasets.load(name, root=tiny_root, **module.SMOKE | {"truth_of": ()})
    for sample in shut.labelled[:1]:
        with pytest.raises(TruthHidden):
            sample.truth()
    opened = datasets.load(name, root=tiny_root, **module.SMOKE | {"truth_of": ("val", "test"), "limit": 1})
    assert len(opened.unlabelled) <= 1
    for sample in (*opened.val, *opened.test):
        assert sample.truth().shape == sample.image().shape[:2]
        with pytest.raises(TruthHidden):
            sample.tags()

    tagged = datasets.load(name, root=tiny_root, **module.SMOKE | {"truth_of": ()}, tags_of=("labelled", "unlabelled"))
    truths = datasets.load(name, root=tiny_root, **module.SMOKE | {"truth_of": ("labelled", "unlabelled")})
    for split in ("labelled", "unlabelled"):
        assert ids(getattr(tagged, split)) == ids(getattr(truths, split))
        for sample, with_truth in zip(getattr(tagged, split)[:2], getattr(truths, split)[:2], strict=True):
            if with_truth.read_truth:
                present = set(np.unique(with_truth.truth()).tolist())
                assert sample.tags() == tuple(sorted(present & set(tagged.classes.foreground)))
            for closed in (sample.truth, with_truth.tags):
                with pytest.raises(TruthHidden):
                    closed()


def test_misspelt_names_and_options_are_told():
    with pytest.raises(ValueError, match="no data set 'vok', only .*voc"):
        datasets.load("vok")
    with pytest.raises(TypeError, match="no option 'labeled'; did you mean 'labelled'"):
        datasets.load("voc", labeled=3)
    for truth_of in ("val", ["vall"]):
        with pytest.raises(ValueError, match="truth_of"):
            datasets.load("voc", truth_of=truth_of)
        with pytest.raises(ValueError, match="tags_of"):
            datasets.load("voc", tags_of=truth_of)
    with pytest.raises(ValueError, match="limit=-1"):
        datasets.load("voc", limit=-1)


def test_a_small_draw_is_part_of_a_large_one():
    items = list("abcdefgh")
    small, large = (datasets.draw(items, count, seed=1) for count in (2, 5))
    assert set(small[0]) < set(large[0])
    assert sorted(large[0] + large[1]) == items
    assert datasets.draw(items, 5, seed=2) != large


def test_class_files_in_the_package():
    voc, storybook, camvid = (
        files.read_classes(datasets.CLASS_FILES / f"{name}.yaml") for name in ("voc", "storybook", "camvid")
    )
    assert (voc.num_classes, storybook.num_classes, camvid.num_classes) == (21, 11, 11)
    assert [list(colour) for colour in voc.colours] == files.voc_palette()[:21].tolist()
    assert (voc.names[11], len(voc.words[0])) == ("dining table", 25)
    assert (camvid.background, camvid.names[0], camvid.names[10]) == (None, "sky", "bicyclist")
    assert storybook.names[1:] == import_module("plg_utils.datasets.storybook").NAMES
    for classes in (voc, storybook, camvid):
        assert len(set(classes.colours)) == classes.num_classes


# PASCAL VOC


def write_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def lines(numbers):
    return [f"JPEGImages/{number:02d}.jpg SegmentationClass/{number:02d}.png" for number in numbers]


def test_voc_without_lists_draws_them(tiny_root):
    few, more = (datasets.load("voc", root=tiny_root, labelled=count) for count in (2, 4))
    assert len(few.val) == 1  # a quarter of six
    assert ids(few.val) == ids(more.val)
    assert set(ids(few.labelled)) < set(ids(more.labelled))
    assert set(ids(few.unlabelled)) >= {"06", "07"}  # they have no label map
    assert len(few.labelled) + len(few.unlabelled) + len(few.val) == 8
    write_list(tiny_root / "ImageSets" / "Segmentation" / "all.txt", ["00", "01", "02", "03"])
    listed = datasets.load("voc", root=tiny_root, labelled=3)
    assert set(ids(listed.labelled) + ids(listed.val)) == {"00", "01", "02", "03"}
    with pytest.raises(ValueError, match="labelled=5: 3 images"):
        datasets.load("voc", root=tiny_root, labelled=5)
    assert len(datasets.load("voc", root=tiny_root, labelled="1/2").labelled) == 2  # of three, rounded up


def test_voc_with_its_own_lists(tiny_root):
    lists = tiny_root / "ImageSets" / "Segmentation"
    write_list(lists / "train.txt", ["00", "01", "02"])
    write_list(lists / "val.txt", ["04", "05"])
    dataset = datasets.load("voc", root=tiny_root, labelled=3)
    assert (ids(dataset.labelled), ids(dataset.unlabelled), ids(dataset.val)) == (["00", "01", "02"], [], ["04", "05"])
    write_list(lists / "train_aug.txt", ["00", "01", "02", "03"])
    dataset = datasets.load("voc", root=tiny_root, labelled=1, limit=1)
    assert len(ids(dataset.unlabelled)) == len(ids(dataset.val)) == 1
    assert ids(datasets.load("voc", root=tiny_root, labelled=3).unlabelled) == ["03"]
    write_list(lists / "val.txt", ["02"])
    with pytest.raises(ValueError, match="1 images are both in val"):
        datasets.load("voc", root=tiny_root, labelled=3)


def test_voc_with_unimatch_lists(tiny_root, tmp_path):
    split = tmp_path / "splits" / "2"
    write_list(split / "labeled.txt", lines([3, 1]))
    write_list(split.parent / "val.txt", lines([5]))
    write_list(split.parent / "train_aug.txt", lines([0, 1, 2, 3]))
    dataset = datasets.load("voc", root=tiny_root, split=split, labelled=2)
    assert (ids(dataset.labelled), ids(dataset.unlabelled), ids(dataset.val)) == (["03", "01"], ["00", "02"], ["05"])
    write_list(split / "unlabeled.txt", [*lines([4]), "JPEGImages/07.jpg"])
    dataset = datasets.load("voc", root=tiny_root, split=split, labelled=2, truth_of=("unlabelled",))
    assert ids(dataset.unlabelled) == ["04", "07"]
    assert dataset.unlabelled[0].truth().shape == (16, 24)
    with pytest.raises(TruthHidden):
        dataset.unlabelled[1].truth()
    assert dataset.unlabelled[1].image().shape == (16, 24, 3)
    with pytest.raises(FileNotFoundError, match="has no labeled.txt"):
        datasets.load("voc", root=tiny_root, split=split.parent, labelled=2)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("../secret.jpg SegmentationClass/01.png", "line 1: .*below the root"),
        ("/etc/passwd SegmentationClass/01.png", "line 1: .*below the root"),
        ("a b c", "line 1"),
        (".hidden", "cannot name files"),
        ("JPEGImages/01.jpg", "no label map for 1 photos"),
        ("99", "2 files of the labelled images are not below"),
        ("01\n01", "1 ids more than once"),
    ],
)
def test_voc_lists_are_checked(tiny_root, tmp_path, line, complaint):
    write_list(tmp_path / "split" / "labeled.txt", [line])
    write_list(tmp_path / "split" / "val.txt", lines([5]))
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        datasets.load("voc", root=tiny_root, split=tmp_path / "split", labelled=1)


def test_voc_says_which_folder_it_wants(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder JPEGImages: root must be the folder VOC2012"):
        datasets.load("voc", root=tmp_path)


def test_voc_values_and_sizes_are_checked(tiny_root):
    for label, complaint in [
        (np.full((16, 24), 21, dtype=np.uint8), r"values \[21\], not classes 0 to 20"),
        (np.zeros((24, 16), dtype=np.uint8), r"\(24, 16\), its photo .* is \(16, 24\)"),
    ]:
        for path in (tiny_root / "SegmentationClass").iterdir():
            files.write_label(path, label)
        with pytest.raises(ValueError, match=complaint):
            datasets.load("voc", root=tiny_root, labelled=1).labelled[0].truth()


# Your own photos


def test_folder_needs_no_labels(tiny_root):
    (tiny_root / "Photo 9.JPG").write_bytes((tiny_root / "JPEGImages" / "00.jpg").read_bytes())
    (tiny_root / "notes.txt").write_text("not a photo")
    (tiny_root / "._00.png").write_text("what macOS leaves on other disks")
    dataset = datasets.load("folder", root=tiny_root, classes=["red", "blue"], labelled=12)
    assert ids(dataset.unlabelled) == [f"{number:02d}" for number in range(8)] + ["Photo 9"]
    assert (dataset.labelled, dataset.val, dataset.test) == ((), (), ())
    assert dataset.classes.names == ("background", "red", "blue")
    assert dataset.classes.words == ((), ("red",), ("blue",))
    with_words = datasets.load("folder", root=tiny_root, classes=["red"], background=["wall"])
    assert with_words.classes.words[0] == ("wall",)
    from_file = datasets.load("folder", root=tiny_root, classes=datasets.CLASS_FILES / "camvid.yaml")
    assert from_file.classes.num_classes == 11


def test_folder_with_labels(tiny_root):
    options = {"root": tiny_root, "classes": ["red", "green", "blue"], "labels": tiny_root / "SegmentationClass"}
    dataset = datasets.load("folder", **options)
    assert ids(dataset.labelled) == [f"{number:02d}" for number in range(6)]
    assert ids(dataset.unlabelled) == ["06", "07"]
    assert dataset.labelled[0].truth().shape == (16, 24)
    some = datasets.load("folder", **options, labelled=2, val=3, truth_of=("labelled", "val"))
    assert (len(some.labelled), len(some.unlabelled), len(some.val)) == (2, 3, 3)
    assert some.val[0].truth().shape == (16, 24)
    shut = datasets.load("folder", **options, labelled=2, val=3)
    for sample in (*shut.unlabelled, *shut.val):  # some of the unlabelled have a label map, too
        with pytest.raises(TruthHidden):
            sample.truth()
    with pytest.raises(ValueError, match="labelled=5 and val=2: only 6 of the photos"):
        datasets.load("folder", **options, labelled=5, val=2)
    with pytest.raises(ValueError, match=r"values \[2, 3\], not classes 0 to 1"):
        datasets.load("folder", **options | {"classes": ["red"]}).labelled[0].truth()


def test_folder_errors_say_what_is_missing(tiny_root, tmp_path):
    with pytest.raises(ValueError, match="name what to look for"):
        datasets.load("folder", root=tiny_root)
    with pytest.raises(FileNotFoundError, match="is not a folder: root must be"):
        datasets.load("folder", root=tmp_path / "absent", classes=["cat"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no photo whose name ends in .jpg"):
        datasets.load("folder", root=tmp_path / "empty", classes=["cat"])
    with pytest.raises(FileNotFoundError, match="no PNG that is called as one of the photos, e.g. 00.png"):
        datasets.load("folder", root=tiny_root, classes=["cat"], labels=tmp_path / "empty")
    (tiny_root / "00.JPG").write_bytes((tiny_root / "JPEGImages" / "00.jpg").read_bytes())
    with pytest.raises(ValueError, match="00.JPG and 00.png .* share the id 00"):
        datasets.load("folder", root=tiny_root, classes=["cat"])
    (tiny_root / "00.JPG").rename(tiny_root / "a.png")
    (tiny_root / "A.jpg").write_bytes((tiny_root / "a.png").read_bytes())
    with pytest.raises(ValueError, match="A.jpg and a.png .* share the id a"):
        datasets.load("folder", root=tiny_root, classes=["cat"])
