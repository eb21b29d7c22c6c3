"""CamVid: labelled frames evenly spaced over the videos, void, and lists that are checked."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_coco import ids

from plg_utils import datasets, files
from plg_utils.datasets import camvid
from plg_utils.records import IGNORE, Sample, TruthHidden

SHARED = Path(__file__).parents[2] / "shared" / "data" / "camvid"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: the real CamVid is not at hand")


def tiny_camvid(root, frames=(5, 3)):
    """Write two videos into train, two frames into val and one into test; the classes run 0 to 10, void is 11."""
    value = 0
    train = [f"0001TP_{30 * n:06d}" for n in range(frames[0])] + [f"0006R0_f{30 * n:05d}" for n in range(frames[1])]
    parts = {"train": train, "val": ["0016E5_07959", "0016E5_07961"], "test": ["Seq05VD_f00000"]}
    for part, names in parts.items():
        for name in names:
            label = np.full((6, 8), value % 12, dtype=np.uint8)
            label[0, 0] = 11
            value += 1
            files.write_image(root / part / f"{name}.png", np.full((6, 8, 3), value, dtype=np.uint8))
            files.write_label(root / f"{part}annot" / f"{name}.png", label)
    return root


@pytest.fixture
def root(tmp_path):
    return tiny_camvid(tmp_path / "camvid")


def test_splits_and_void(root):
    data = datasets.load("camvid", root=root, labelled=2, truth_of=("labelled", "val"))
    assert (len(data.labelled), len(data.unlabelled), len(data.val), len(data.test)) == (2, 6, 2, 1)
    assert ids(data.val) == ["0016E5_07959", "0016E5_07961"]
    for value, sample in zip((8, 9), data.val, strict=True):  # the values that tiny_camvid has come to
        expected = np.full((6, 8), value, np.uint8)
        expected[0, 0] = IGNORE  # 11 on disk
        np.testing.assert_array_equal(sample.truth(), expected, strict=True)
    with pytest.raises(TruthHidden):
        data.test[0].truth()


def test_a_value_above_void_is_refused_and_the_test_folder_may_be_missing(root):
    for path in (root / "trainannot").iterdir():
        files.write_label(path, np.full((6, 8), 12, dtype=np.uint8))
    (root / "test").rename(root / "elsewhere")
    data = datasets.load("camvid", root=root, labelled=1)
    assert data.test == ()
    with pytest.raises(ValueError, match=r"values \[12\]"):
        data.labelled[0].truth()


def test_counted_by_hand():
    assert camvid.spaced(12, 3, 0) == [2, 6, 10]  # 4 places: the middle one is 2
    assert camvid.spaced(12, 3, 1) == [1, 5, 9]  # 3 further, of 4
    assert camvid.spaced(12, 3, 4) == camvid.spaced(12, 3, 0)
    assert camvid.spaced(7, 2, 0) == [1, 4]  # 3 or 4 apart
    assert camvid.spaced(8, 3, 0) == [1, 3, 6]  # over all of the row
    assert camvid.spaced(5, 5, 3) == [0, 1, 2, 3, 4]
    assert camvid.spaced(5, 0, 3) == []
    for count in (1, 11, 12, 46, 122):  # each video gets its share to within one frame, and seeds differ
        draws = [camvid.spaced(367, count, seed) for seed in range(3)]
        for places in draws:
            assert len(set(places)) == count and 0 <= places[0] and places[-1] < 367
            assert set(np.diff(places)) <= {367 // count, 367 // count + 1}
        assert not set(draws[0]) & set(draws[1]) and len({tuple(places) for places in draws}) == 3


def test_half_the_size_counted_by_hand(root):
    photo = np.zeros((5, 4, 3), np.uint8)
    photo[:2, :2, 0] = [[10, 20], [30, 41]]  # mean 25.25
    photo[2, 2:] = 3  # of four pixels two: mean 1.5, to the even 2
    label = np.arange(20, dtype=np.uint8).reshape(5, 4)
    sample = camvid.smaller(Sample("a", lambda: photo, lambda: label), 2)
    expected = np.array([[[25, 0, 0], [0, 0, 0]], [[0, 0, 0], [2, 2, 2]]], np.uint8)
    np.testing.assert_array_equal(sample.image(), expected, strict=True)
    assert sample.truth().tolist() == [[5, 7], [13, 15]]  # right and below of the middle; the last row is cut off
    assert camvid.smaller(Sample("a", lambda: photo), 3).read_truth is None

    data = datasets.load("camvid", root=root, labelled=2, shrink=2)
    assert data.labelled[0].image().shape == (3, 4, 3) and data.labelled[0].truth().shape == (3, 4)
    assert set(np.unique(data.labelled[0].truth())) <= {*range(11), IGNORE}
    found = {
        camvid.smaller(Sample("a", None, read_content=lambda c=c: c * 64), n).content for c in "ab" for n in (2, 3)
    }
    assert len(found) == 4 and all(re.fullmatch("[0-9a-f]{64}", content) for content in found)
    with pytest.raises(TruthHidden):
        data.unlabelled[0].truth()
    for wrong in (0, 1.5, "2", True):
        with pytest.raises(ValueError, match="must be a whole number from 1 on: 2 is half the size"):
            datasets.load("camvid", root=root, labelled=2, shrink=wrong)


def test_lists_say_what_is_taken(root, tmp_path):
    """The lists of the tutorial have the folders of its authors."""
    with pytest.raises(FileNotFoundError, match="no folder train: root must hold train and trainannot"):
        datasets.load("camvid", root=tmp_path)
    for folder in ("train", "trainannot"):  # in the order of frames: sorted as text, f9 would come last
        (root / folder / "0006R0_f00060.png").rename(root / folder / "0006R0_f9.png")
    frames = ids(datasets.load("camvid", root=root, labelled=8).labelled)
    assert frames[5:] == ["0006R0_f00000", "0006R0_f9", "0006R0_f00030"]
    names = ("0001TP_000060", "0001TP_000000")
    lines = [f"/SegNet/CamVid/train/{id}.png /SegNet/CamVid/trainannot/{id}.png\n" for id in names]
    (root / "train.txt").write_text("".join(lines) + "\n")
    data = datasets.load("camvid", root=root, labelled=2)
    assert (ids(data.labelled), data.unlabelled) == (["0001TP_000000", "0001TP_000060"], ())
    assert data.labelled[0].truth().shape == (6, 8)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("train/a.png", "train.txt, line 1: 'train/a.png' is not train/ID.png trainannot/ID.png"),
        ("train/a.png trainannot/b.png", "with one ID"),
        ("train/0016E5_07961.png trainannot/0016E5_07961.png", "both in train and in val, e.g. 0016E5_07961"),
        ("train/a.png trainannot/a.png", "2 files of the labelled images in .*train.txt are not below .*a.png"),
        ("", "lists no image"),
    ],
)
def test_lists_are_checked(root, line, complaint):
    (root / "train.txt").write_text(line + "\n")
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        datasets.load("camvid", root=root, labelled=1)


def test_a_broken_photo_is_found_at_half_the_size(root, monkeypatch, tmp_path):
    """The photos that are looked at are the files, also where another size is read."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    (root / "val" / "0016E5_07961.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="1 of 11 photos cannot be read"):
        datasets.load("camvid", root=root, labelled=2, shrink=2, on_bad_image="stop")
    with pytest.warns(UserWarning, match="0016E5_07961.png is not a readable image"):
        data = datasets.load("camvid", root=root, labelled=2, shrink=2, on_bad_image="skip")
    assert (ids(data.val), data.left_out) == (["0016E5_07959"], ("0016E5_07961",))
    assert len(datasets.load("camvid", root=root, labelled=2, shrink=2).val) == 2  # a published set: only if asked for


@needs_shared
def test_the_real_one():
    draws = []
    for seed in range(3):
        data = datasets.load("camvid", root=SHARED, labelled="1/16", seed=seed)
        assert (len(data.labelled), len(data.unlabelled), len(data.val)) == (23, 344, 101)
        videos = Counter(id.split("_")[0] for id in ids(data.labelled))
        for video, frames in {"0001TP": 62, "0006R0": 101, "0016E5": 204}.items():
            assert abs(videos[video] - 23 * frames / 367) < 1
        draws.append(set(ids(data.labelled)))
    assert len(set.union(*draws)) == 69
    assert len(datasets.load("camvid", root=SHARED, labelled="1/8").labelled) == 46
    truth = data.labelled[0].truth()
    assert truth.shape == data.labelled[0].image().shape[:2] == (360, 480)
    assert set(np.unique(truth)) <= {*range(11), IGNORE}
