"""UniMatch's lists: names, counts, fetching, hashes, and how many of a list are labelled."""

import hashlib
import re
import threading
import warnings
from pathlib import Path

import pytest
from test_checkpoints import Site
from test_coco import ids, official

from plg_utils import checkpoints, datasets, files
from plg_utils.datasets import _splits, coco, voc
from plg_utils.records import Dataset

SHARED = Path(__file__).parents[2] / "shared" / "data" / "splits"
needs_lists = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: the published lists are not at hand")
CLASSIC = {"92": 92, "183": 183, "366": 366, "732": 732, "1464": 1464}
BLENDED = {"1_4": 2646, "1_8": 1323, "1_16": 662}
PASCAL = CLASSIC | BLENDED | {f"u2pl_{name}": count for name, count in BLENDED.items()}
COCO = {"1_512": 232, "1_256": 463, "1_128": 925, "1_64": 1849, "1_32": 3697}


def lines(numbers):
    return "".join(f"JPEGImages/{number:02d}.jpg SegmentationClass/{number:02d}.png\n" for number in numbers)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def data_root(tmp_path, monkeypatch):
    """Keep the data folder, and all lists in it, in the test's folder."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# The published lists


@needs_lists
def test_the_lists_themselves(data_root):
    """The hashes in the code are those of the files, and each list is a part of the training images."""
    data_root.mkdir()
    (data_root / "splits").symlink_to(SHARED)  # put there by hand
    recorded = (line.split() for line in (SHARED / "SHA256SUMS").read_text().splitlines())
    assert _splits.SHA256 == {path.removeprefix("./"): sha256 for sha256, path in recorded}
    assert _splits.names("pascal") == [*PASCAL] and {*_splits.names("coco")} == {*COCO}
    for name, count in PASCAL.items():
        lists = _splits.find(name, "pascal")
        labelled, train, val = (
            [voc._id(entry) for entry in voc._read_list(path)] for path in (lists.labelled, lists.train, lists.val)
        )
        assert (len(labelled), len(set(train) - set(labelled)), len(val)) == (count, 10582 - count, 1449)
        assert set(labelled) < set(train) and not set(train) & set(val)
        assert len(lists.choose(labelled, None, 0, 10582)[0]) == count
        with pytest.raises(ValueError, match="labelled='1/2', 5291 images, is more than the"):
            lists.choose(labelled, "1/2", 0, 10582)
        if name not in CLASSIC:  # those are parts of 1,464
            part = name.removeprefix("u2pl_").replace("_", "/")
            assert len(lists.choose(labelled, part, 0, 10582)[0]) == count
    for name, count in COCO.items():
        assert datasets.count(name.replace("_", "/"), 118287) == count
        lists = _splits.find(name, "coco")
        assert len(set(coco._read_list(lists.labelled))) == count
        assert len(set(coco._read_list(lists.val))) == 5000


# Names


@pytest.mark.parametrize(
    ("name", "split", "complaint"),
    [
        ("pascal", "1/16", "called '1/16', only 92, 183, 366, 732, 1464, 1_4, .*u2pl_1_16; did you mean '1_16'"),
        ("pascal", 1465, "no folder or list of UniMatch's called '1465', .*; did you mean '1464'"),
        ("pascal", "1_512", "no folder or list"),
        ("coco", "92", "no folder or list of UniMatch's called '92', only 1_32, 1_64, 1_128, 1_256, 1_512$"),
        ("pascal", "/nowhere/at/all", "no folder or list of UniMatch's called '/nowhere/at/all'"),
    ],
)
def test_an_unknown_name_is_told(name, split, complaint):
    with pytest.raises(ValueError, match=complaint):
        _splits.find(split, name)


# Fetching, from a server in a thread


LISTS = {
    "pascal/92/labeled.txt": lines([3, 1]),
    "pascal/val.txt": lines([5]),
    "pascal/train_aug.txt": lines([0, 1, 2, 3]),
    "coco/1_512/labeled.txt": "train2017/000000000004.jpg masks/000000000004.png",
    "coco/val.txt": "val2017/000000000101.jpg masks/000000000101.png\n",
}


@pytest.fixture
def server(monkeypatch):
    """Small lists under UniMatch's names, with their hashes in the code, and a server that gives them."""
    with Site() as site:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        site.pages = {f"/{path}": (text.encode(), {}) for path, text in LISTS.items()}
        sums = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in LISTS.items()}
        monkeypatch.setattr(_splits, "SHA256", sums)
        monkeypatch.setattr(_splits, "ADDRESS", site.address)
        monkeypatch.setattr(checkpoints, "ALLOWED", (site.address,))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield site
        site.shutdown()


def test_what_is_missing_is_fetched_once(server, data_root, tiny_root, tmp_path):
    write(data_root / "splits" / "pascal" / "val.txt", LISTS["pascal/val.txt"])
    fetched = ["/pascal/92/labeled.txt", "/pascal/train_aug.txt"]
    for split in ("92", 92):  # for YAML, 92 is a number
        data = datasets.load("voc", root=tiny_root, split=split)
        assert (ids(data.labelled), ids(data.unlabelled), ids(data.val)) == (["03", "01"], ["00", "02"], ["05"])
        assert [path for _, path, _ in server.asked] == fetched
    data = datasets.load("coco", root=official(tmp_path / "coco"), split="1_512", truth_of=())
    assert (ids(data.labelled), ids(data.val), len(data.unlabelled)) == (["000000000004"], ["000000000101"], 5)
    fetched += ["/coco/1_512/labeled.txt", "/coco/val.txt"]  # COCO has no list of all training images
    assert [path for _, path, _ in server.asked] == fetched
    assert all((data_root / f"splits{path}").read_text() == LISTS[path[1:]] for path in fetched)


def test_a_list_that_is_another_one_is_refused(server, data_root, tiny_root, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match="labeled.txt gives more than 10 bytes"):
        patch.setattr(_splits, "LARGEST", 10)
        datasets.load("voc", root=tiny_root, split="92")
    server.pages["/pascal/92/labeled.txt"] = (lines([3]).encode(), {})
    with pytest.raises(FileNotFoundError, match=f"expected sha256:{_splits.SHA256['pascal/92/labeled.txt']} but got"):
        datasets.load("voc", root=tiny_root, split="92")
    assert not list(data_root.rglob("*.txt"))
    path = write(data_root / "splits" / "pascal" / "92" / "labeled.txt", lines([3]))
    both = f"labeled.txt is not .* is {files.sha256(path)}, that of .* is {_splits.SHA256['pascal/92/labeled.txt']}"
    with pytest.raises(ValueError, match=both):
        datasets.load("voc", root=tiny_root, split="92")
    assert path.read_text() == lines([3])  # somebody's own list stays where it is
    for name in ("pascal/val.txt", "pascal/train_aug.txt"):
        write(data_root / "splits" / name, LISTS[name])
    assert ids(datasets.load("voc", root=tiny_root, split=path.parent).labelled) == ["03"]  # by its folder


def test_without_a_network_it_says_what_to_put_where(server, data_root, tiny_root):
    del server.pages["/pascal/val.txt"]
    with pytest.raises(FileNotFoundError, match="404 Client Error") as error:
        datasets.load("voc", root=tiny_root, split="92")
    for path in ("pascal/val.txt", "pascal/train_aug.txt"):  # what is still missing
        where = f"{_splits.ADDRESS}/{path}\n    to {data_root / 'splits' / path}\n    SHA-256 {_splits.SHA256[path]}"
        assert where in str(error.value)
    assert "labeled.txt" not in str(error.value)  # this one came


# How many of a list are labelled, and what is said of it


@pytest.fixture
def own(tmp_path):
    """A folder of lists: three labelled images, five for training in all."""
    write(tmp_path / "lists" / "val.txt", lines([5]))
    write(tmp_path / "lists" / "train_aug.txt", lines([0, 1, 2, 3, 4]))
    return write(tmp_path / "lists" / "3" / "labeled.txt", lines([4, 0, 2])).parent


@pytest.mark.parametrize(("labelled", "count"), [(None, 3), (3, 3), ("3/5", 3), ("1/2", 3), ("1/5", 1), (2, 2), (0, 0)])
def test_labelled_within_a_list(own, tiny_root, labelled, count):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = datasets.load("voc", root=tiny_root, split=own, labelled=labelled)
    assert (len(data.labelled), len(data.unlabelled)) == (count, 5 - count)
    messages = [str(warning.message) for warning in told]
    if count == 3:
        assert ids(data.labelled) == ["04", "00", "02"]
        assert messages == []
        assert re.fullmatch("the 3 labelled images are .*labeled.txt", data.provenance)
    elif count:
        assert messages == [data.provenance]
        assert data.provenance.startswith(f"the {count} labelled images were drawn by seed 0 from the 3 of ")
    else:
        assert (messages, data.provenance) == ([], "no image is labelled")


def test_labelled_beyond_a_list_and_maps_that_are_missing(own, tiny_root):
    for labelled in (4, 99, "4/5", -1, 1.5, True, "all"):
        with pytest.raises(ValueError, match=f"labelled={labelled!r}"):
            datasets.load("voc", root=tiny_root, split=own, labelled=labelled)
    (tiny_root / "SegmentationClass" / "02.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 files .* e.g. SegmentationClass/02.png; .*; VOCdevkit .* are SBD's"):
        datasets.load("voc", root=tiny_root, split=own)


def test_every_loader_says_how_the_labelled_images_were_chosen(tiny_root, tmp_path):
    drawn = "were drawn by seed 4: this compares with nothing published"
    data = datasets.load("voc", root=tiny_root, labelled=2, seed=4)
    assert datasets.provenance(data) == f"the 2 labelled images {drawn}"
    tagged = datasets.load("voc", root=tiny_root, labelled=2, seed=4, tags_of=("labelled",))
    assert datasets.provenance(tagged) == datasets.provenance(data)
    with pytest.warns(UserWarning, match="compares with nothing published"):
        theirs = datasets.load("coco", root=official(tmp_path / "coco"), labelled=2, seed=4, truth_of=())
    assert datasets.provenance(theirs) == f"the 2 labelled images {drawn}"
    options = {"root": tiny_root, "classes": ["red", "green", "blue"], "labels": tiny_root / "SegmentationClass"}
    assert drawn in datasets.provenance(datasets.load("folder", **options, labelled=2, seed=4))
    assert "all 6 photos with a label map" in datasets.provenance(datasets.load("folder", **options))
    assert "storybook's own: no published list" in datasets.provenance(Dataset("storybook", data.classes, ()))
