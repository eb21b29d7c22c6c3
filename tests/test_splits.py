"""UniMatch's lists: names, counts, fetching, hashes, and how many of a list are labelled."""

import hashlib
import re
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_coco import official, tiny_coco

from plg_utils import checkpoints, datasets, files
from plg_utils.check import main
from plg_utils.datasets import _splits, coco, voc
from plg_utils.records import Dataset

SHARED = Path(__file__).parents[2] / "shared" / "data" / "splits"
needs_lists = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: the published lists are not at hand")
CLASSIC = {"92": 92, "183": 183, "366": 366, "732": 732, "1464": 1464}
BLENDED = {"1_16": 662, "1_8": 1323, "1_4": 2646}
COCO = {"1_512": 232, "1_256": 463, "1_128": 925, "1_64": 1849, "1_32": 3697}
PASCAL = CLASSIC | BLENDED | {f"u2pl_{name}": count for name, count in BLENDED.items()}


def ids(samples):
    return [sample.id for sample in samples]


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
@pytest.mark.parametrize("name", PASCAL)
def test_the_lists_themselves(name, data_root):
    data_root.mkdir()
    (data_root / "splits").symlink_to(SHARED)  # put there by hand
    lists = _splits.find(name, "pascal")
    labelled, train, val = (
        [voc._id(entry) for entry in voc._read_list(path)] for path in (lists.labelled, lists.train, lists.val)
    )
    assert (len(labelled), len(set(train) - set(labelled)), len(val)) == (PASCAL[name], 10582 - PASCAL[name], 1449)
    assert set(labelled) < set(train)
    assert not set(train) & set(val)


@needs_lists
def test_counts_of_voc(data_root, tmp_path):
    """Empty files stand for the labelled photos and maps; nobody looks at the others before they are read."""
    data_root.mkdir()
    (data_root / "splits").symlink_to(SHARED)
    listed = (SHARED / "pascal" / "92" / "labeled.txt").read_text().split()
    for path in listed:
        write(tmp_path / "voc" / path, "")
    data = datasets.load("voc", root=tmp_path / "voc", split="92")
    assert (len(data.labelled), len(data.unlabelled), len(data.val)) == (92, 10490, 1449)
    assert not set(ids(data.labelled)) & set(ids(data.unlabelled))
    assert ids(data.labelled) == [Path(path).stem for path in listed[::2]]  # in the list's order
    assert data.provenance == "the 92 labelled images are UniMatch's list pascal/92 (commit 0324f3d)"


@pytest.mark.parametrize("name", PASCAL)
def test_labelled_within_a_published_list(name):
    listed = PASCAL[name]
    count = partial(_splits.Lists(Path("labeled.txt"), Path("val.txt"), None).count, listed=listed, training=10582)
    assert count(None) == count(listed) == listed
    assert count(1) == 1
    with pytest.raises(ValueError, match=f"labelled={listed + 1} is more than the {listed} that labeled.txt lists"):
        count(listed + 1)
    with pytest.raises(ValueError, match="labelled='1/2', 5291 images, is more than the"):
        count("1/2")
    if name not in CLASSIC:  # those are parts of 1,464
        assert count(name.removeprefix("u2pl_").replace("_", "/")) == listed


@needs_lists
def test_92_and_183_share_nine():
    few, more = (set((SHARED / "pascal" / name / "labeled.txt").read_text().split()) for name in ("92", "183"))
    assert len(few & more) == 2 * 9  # photos and maps; so a curve over the lists is none over more labels


@needs_lists
def test_counts_of_coco(data_root, tmp_path, monkeypatch):
    """The other lists' counts are tested in test_coco; here the photos of one are only said to be there."""
    data_root.mkdir()
    (data_root / "splits").symlink_to(SHARED)
    listed = {part: SHARED / "coco" / path for part, path in (("train", "1_512/labeled.txt"), ("val", "val.txt"))}
    photos = {part: [Path(word) for word in path.read_text().split()[::2]] for part, path in listed.items()}
    photos["train"] += [Path(f"train2017/extra_{number}.jpg") for number in range(7)]
    for part in photos:
        (tmp_path / f"{part}2017").mkdir()
        write(tmp_path / "annotations" / f"instances_{part}2017.json", "{}")  # not read: no truth is open
    monkeypatch.setattr(coco, "_photos", lambda folder: {path.stem: path for path in photos[folder.name[:-4]]})
    data = datasets.load("coco", root=tmp_path, split="1_512", truth_of=())
    assert (len(data.labelled), len(data.unlabelled), len(data.val)) == (232, 7, 5000)
    assert data.provenance == "the 232 labelled images are UniMatch's list coco/1_512 (commit 0324f3d)"


@needs_lists
def test_the_hashes_in_the_code_are_those_of_the_files():
    recorded = (line.split() for line in (SHARED / "SHA256SUMS").read_text().splitlines())
    assert _splits.SHA256 == {path.removeprefix("./"): sha256 for sha256, path in recorded}
    assert {path: files.sha256(SHARED / path) for path in _splits.SHA256} == _splits.SHA256


def test_names_are_the_parts_of_the_training_images():
    assert _splits.names("pascal") == [*CLASSIC, "1_4", "1_8", "1_16", "u2pl_1_4", "u2pl_1_8", "u2pl_1_16"]
    assert set(_splits.names("coco")) == set(COCO)
    for name, count in (BLENDED | COCO).items():
        training = 118287 if name in COCO else 10582
        assert datasets.count(name.replace("_", "/"), training) == count


# Names


def test_a_name_that_yaml_made_a_number():
    for name in (*PASCAL, *COCO):
        assert _splits._name(name, "pascal" if name in PASCAL else "coco") == name
    assert _splits._name(92, "pascal") == "92"
    assert _splits._name(116, "pascal") == "1_16"  # YAML reads 1_16 so
    assert _splits._name(1512, "coco") == "1_512"
    assert _splits._name(True, "pascal") is None


@pytest.mark.parametrize(
    ("name", "split", "complaint"),
    [
        ("voc", "1/16", "did you mean '1_16'. they are 92, 183, 366, 732, 1464, 1_4, .*u2pl_1_16$"),
        ("voc", 1465, "split=1465 is neither a folder nor one of UniMatch's lists; did you mean '1464'"),
        ("voc", "1_512", "neither a folder nor one"),
        ("coco", "92", "neither a folder nor one of UniMatch's lists; .*they are 1_32, 1_64, 1_128, 1_256, 1_512$"),
        ("voc", "/nowhere/at/all", "split='/nowhere/at/all' is neither a folder"),
    ],
)
def test_an_unknown_name_is_told(tiny_root, name, split, complaint):
    tiny_coco(tiny_root)
    with pytest.raises(ValueError, match=complaint):
        datasets.load(name, root=tiny_root, split=split)


# Fetching, from a server in a thread


LISTS = {
    "pascal/92/labeled.txt": lines([3, 1]),
    "pascal/val.txt": lines([5]),
    "pascal/train_aug.txt": lines([0, 1, 2, 3]),
    "coco/1_512/labeled.txt": "train2017/000000000004.jpg masks/000000000004.png",
    "coco/val.txt": "val2017/000000000101.jpg masks/000000000101.png\n",
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Small lists under UniMatch's names, with their hashes in the code, and a server that gives them."""
    folder, asked = tmp_path / "server", []
    for path, text in LISTS.items():
        write(folder / path, text)

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.removeprefix("/"))
            super().do_GET()

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    monkeypatch.setattr(_splits, "SHA256", {path: hashlib.sha256(t.encode()).hexdigest() for path, t in LISTS.items()})
    monkeypatch.setattr(_splits, "ADDRESS", f"http://127.0.0.1:{serving.server_port}")
    monkeypatch.setattr(checkpoints, "ALLOWED", (_splits.ADDRESS,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    serving.asked, serving.folder = asked, folder
    yield serving
    serving.shutdown()
    serving.server_close()


def test_what_is_missing_is_fetched_once(server, data_root, tiny_root):
    write(data_root / "splits" / "pascal" / "val.txt", LISTS["pascal/val.txt"])
    for _ in range(2):
        data = datasets.load("voc", root=tiny_root, split="92")
        assert ids(data.labelled) == ["03", "01"]
        assert (ids(data.unlabelled), ids(data.val)) == (["00", "02"], ["05"])
        assert server.asked == ["pascal/92/labeled.txt", "pascal/train_aug.txt"]
    for path in server.asked:
        assert (data_root / "splits" / path).read_text() == LISTS[path]
    assert not list(data_root.rglob("*.partial"))


def test_coco_has_no_train_list_to_fetch(server, tmp_path):
    data = datasets.load("coco", root=official(tmp_path / "coco"), split="1_512", truth_of=())
    assert (ids(data.labelled), ids(data.val), len(data.unlabelled)) == (["000000000004"], ["000000000101"], 5)
    assert server.asked == ["coco/1_512/labeled.txt", "coco/val.txt"]


def test_a_list_that_is_another_one_is_refused(server, data_root, tiny_root):
    (server.folder / "pascal" / "92" / "labeled.txt").write_text(lines([3]))
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
    (server.folder / "pascal" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError) as told:
        datasets.load("voc", root=tiny_root, split="92")
    message = str(told.value)
    assert "404 Client Error" in message
    for path in ("pascal/val.txt", "pascal/train_aug.txt"):  # what is still missing
        assert f"{_splits.ADDRESS}/{path}\n" in message
        assert f"to {data_root / 'splits' / path}\n" in message
        assert f"SHA-256 {_splits.SHA256[path]}" in message
    assert "labeled.txt" not in message  # this one came


def test_each_published_file_has_its_address(monkeypatch, tiny_root, capsys):
    def fail(*_):
        raise OSError("no route")

    monkeypatch.setattr(checkpoints, "fetch", fail)
    assert main(["voc", "--root", str(tiny_root), "split", "u2pl_1_16"]) == 1
    told = capsys.readouterr().out
    address = "https://raw.githubusercontent.com/LiheYoung/UniMatch/0324f3d/splits/pascal"
    assert [line.strip() for line in told.splitlines() if address in line] == [
        f"{address}/{name}" for name in ("u2pl_1_16/labeled.txt", "val.txt", "train_aug.txt")
    ]
    assert main(["voc", "--root", str(tiny_root), "split", "1_16"]) == 1  # a number for YAML
    assert f"{address}/1_16/labeled.txt" in capsys.readouterr().out


def test_what_is_fetched_is_small_and_https(server, data_root, tiny_root, monkeypatch):
    monkeypatch.setattr(_splits, "LARGEST", 10)
    with pytest.raises(FileNotFoundError, match="labeled.txt gives more than 10 bytes"):
        datasets.load("voc", root=tiny_root, split="92")
    monkeypatch.setattr(checkpoints, "ALLOWED", ("https://",))
    with pytest.raises(FileNotFoundError, match="labeled.txt is not an https address"):
        datasets.load("voc", root=tiny_root, split="92")
    assert not list(data_root.rglob("*.txt"))


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
        drawn = f"the {count} labelled images were drawn by seed 0 from the 3 of .*: this compares with nothing pub"
        assert re.match(drawn, data.provenance)
    else:
        assert (messages, data.provenance) == ([], "no image is labelled")


@pytest.mark.parametrize("labelled", [4, 99, "4/5", -1, 1.5, True, "all"])
def test_labelled_beyond_a_list(own, tiny_root, labelled):
    with pytest.raises(ValueError, match=f"labelled={labelled!r}"):
        datasets.load("voc", root=tiny_root, split=own, labelled=labelled)


def test_maps_of_the_augmented_set_are_named(own, tiny_root):
    (tiny_root / "SegmentationClass" / "02.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 files .* e.g. SegmentationClass/02.png; VOCdevkit .* are SBD's"):
        datasets.load("voc", root=tiny_root, split=own)


def test_every_loader_says_how_the_labelled_images_were_chosen(tiny_root, tmp_path, capsys):
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
    assert main(["voc", "--root", str(tiny_root), "labelled", "2", "seed", "4"]) == 0
    assert re.search(f"how the labelled images were chosen +2  the 2 labelled images {drawn}", capsys.readouterr().out)
