"""plg_utils.check: each kind of broken file is found, named and counted; only what stops a run gives exit code 1."""

import re

import numpy as np
import pytest
from PIL import Image
from test_camvid import tiny_camvid
from test_coco import CAR, CAT, SIZE, box, note, tiny_coco, write_json

from plg_utils import check, datasets, files
from plg_utils.check import main
from plg_utils.records import IGNORE, SPLITS, Classes, Dataset, Sample

PHOTO, LABEL = "photos that cannot be read", "label maps that cannot be used"
ZEROS = np.zeros(SIZE, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three photos with label maps of 6 x 8, in the layout of the data set `folder`."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    for number, name in enumerate("abc"):
        files.write_image(tmp_path / "photos" / f"{name}.png", np.full((*SIZE, 3), 50 + number, dtype=np.uint8))
        label = ZEROS.copy()
        label[: number + 1] = 1
        label[5] = IGNORE
        files.write_label(tmp_path / "maps" / f"{name}.png", label)
    return tmp_path


def look(folder, **options):
    """Rows of the check, by finding."""
    options = {"root": folder / "photos", "labels": folder / "maps", "classes": ["cat"], "truth_of": SPLITS} | options
    return by_finding(datasets.load("folder", on_bad_image="when_read", **options))


def by_finding(dataset):
    rows = check.data_set(dataset)
    assert len({row[1] for row in rows}) == len(rows)
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), key=check.LEVELS.index)
    return {finding: (level, count, detail) for level, finding, count, detail in rows}


def stops(rows):
    return {finding for finding, (level, *_) in rows.items() if level == "stop"}


def test_nothing_is_wrong(folder):
    rows = look(folder)
    assert {level for level, *_ in rows.values()} == {"note"}
    assert rows["images, labelled"][1:] == (3, "3 with a label map that is open")
    assert [rows[f"pixels of {name}"][1] for name in ("0 background", "1 cat", "255 void")] == [72, 48, 24]
    assert rows["pixels of 1 cat"][2] == "33.33% of the labelled pixels"
    some = look(folder, labelled=1, val=1)  # one map of 6 x 8 is counted, though two are open
    assert sum(count for finding, (_, count, _) in some.items() if finding.startswith("pixels of")) == 48
    for path in (folder / "maps").iterdir():
        path.write_bytes(b"this is no label map")
    assert not stops(look(folder, labelled=0, val=2, truth_of=("labelled",)))  # shut truth is not opened
    assert stops(look(folder, labelled=0, val=2)) == {LABEL}


def quarter_turn(photo, path):
    exif = Image.Exif()
    exif[files.ORIENTATION] = 6
    Image.open(photo).convert("RGB").save(photo, format="JPEG", exif=exif)


CASES = {
    "photo gone": (lambda photo, path: photo.unlink(), PHOTO, "a.png does not exist"),
    "photo broken": (lambda photo, path: photo.write_bytes(b"no"), PHOTO, "a.png is not a readable image"),
    "map gone": (lambda photo, path: path.unlink(), LABEL, "a.png does not exist"),
    "map turned": (lambda photo, path: files.write_label(path, ZEROS.T), LABEL, "they must agree"),
    "photo turned": (quarter_turn, LABEL, "is (6, 8), its photo"),
    "value of no class": (lambda photo, path: files.write_label(path, ZEROS + 2), LABEL, "the values [2]"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_found(case, folder):
    break_it, finding, message = CASES[case]
    data = datasets.load("folder", root=folder / "photos", labels=folder / "maps", classes=["cat"], truth_of=SPLITS)
    break_it(folder / "photos" / "a.png", folder / "maps" / "a.png")
    rows = by_finding(data)
    assert stops(rows) == {finding}
    assert rows[finding][1] == 1
    assert rows[finding][2].startswith("labelled 1; e.g. ") and message in rows[finding][2]


def test_samples_that_break_the_contract():
    """Of a loader that somebody wrote."""
    classes = Classes(("a", "b"), (("a",), ("b",)), ((0, 0, 0), (1, 1, 1)))
    image = np.zeros((*SIZE, 3), np.uint8)
    shows = Sample("b", lambda: image, lambda: ZEROS + 1)
    one, same = (Sample(id, lambda: image, lambda: ZEROS) for id in ("x1", "X1"))
    void = Sample("void", lambda: image, lambda: ZEROS + IGNORE)
    rows = by_finding(Dataset("ours", classes, (one, one, void), (), (same,)))
    assert stops(rows) == {"ids used more than once", "no label map of a split shows a class"}
    assert rows["ids used more than once"][2] == "val 1; e.g. x1 in labelled and labelled and val"
    assert rows["classes that no labelled image shows"] == ("warning", 1, "b")
    assert rows["no label map of a split shows a class"][:2] == ("stop", 4)  # three labelled, one of val
    rows = by_finding(Dataset("ours", classes, (shows, void)))
    assert rows["images without any class"][:2] == ("warning", 1)
    assert rows["images without any class"][2].startswith("labelled 1; e.g. void: every pixel is void")
    assert stops(by_finding(Dataset("ours", classes, ()))) == {"no images"}
    rows = by_finding(Dataset("ours", classes, (shows, Sample("high", lambda: image, lambda: ZEROS + 2))))
    assert rows[LABEL][1] == 1 and "values [2]" in rows[LABEL][2]
    for read_image, read_truth, finding, says in (
        (lambda: np.zeros((8, 8, 4), np.float32), None, PHOTO, "odd is float32 (8, 8, 4), not a uint8 (H, W, 3) image"),
        (lambda: image[..., 0], None, PHOTO, "odd is uint8 (6, 8), not a uint8 (H, W, 3) image"),
        (lambda: image, lambda: ZEROS.T, LABEL, "label map of odd is uint8 (8, 6), not uint8 (6, 8) as its image"),
        (
            lambda: image,
            lambda: ZEROS + 0.5,
            LABEL,
            "label map of odd is float64 (6, 8), not uint8 (6, 8) as its image",
        ),
    ):
        rows = by_finding(Dataset("ours", classes, (shows, Sample("odd", read_image, read_truth))))
        assert stops(rows) == {finding} and rows[finding][2].endswith(says)


def test_a_json_of_objects(folder):
    cats = [note(CAT, box(0, 0, 4, 4), image=number, id=number) for number in range(3)]
    write_json(folder / "objects.json", [f"{name}.png" for name in "abc"], cats)
    assert look(folder, labels=folder / "objects.json")["pixels of 1 cat"][1] == 3 * 16
    broken = [*cats[:1], note(CAT, [[0, 0, 3, 3]], id=9), note(CAT, box(0, 0, 2, 2), image=77, id=8)]
    write_json(folder / "objects.json", ["a.png", "b.png", "gone.png", "lost.png"], broken)
    with pytest.warns(UserWarning) as said:
        rows = look(folder, labels=folder / "objects.json")
    for text in (
        "1 images have no label map, e.g. a: annotation 9: the polygon",
        "1 photos are listed in .*objects.json without annotation, e.g. b. They count as unlabelled",
        "1 annotations of .*objects.json have an image_id that no image has",
        "2 images of .*objects.json have the name of no photo and are not used, e.g. gone",
    ):
        assert any(re.match(text, str(warning.message)) for warning in said), text
    assert stops(rows) == {LABEL}
    assert "a has no label map: annotation 9: the polygon" in rows[LABEL][2]
    assert rows["images of the json that are not in the folder"] == ("note", 2, "e.g. gone")
    assert rows["photos that the json does not list"] == ("note", 1, "e.g. c")


# The command


def test_it_is_asked_as_plg_label_is(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["photos", "--classes", "cat, dog", "--labels", "maps", "--val=1"]) == 0
    printed = capsys.readouterr().out
    assert "pixels of 2 dog" in printed and "1 with a label map that is open" in printed
    for arguments, says in (
        (["photo", "--classes", "cat"], "photo is neither a folder of photos nor a data set, which are camvid, coco"),
        (["photos", "--classes", "cat,", "dog"], 'each option needs a value, such as --classes "cat, dog": classes'),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert 'plg check PHOTOS --classes "cat, dog" --labels MAPS\n' in capsys.readouterr().out


def test_exit_code_and_other_data_sets(folder, capsys):
    """Of a data set that cannot be loaded the files are read all the same."""
    own = ["folder", "--root", f"{folder / 'photos'}", "labels", f"{folder / 'maps'}", "classes", "[cat]"]
    annotations = [note(CAR, box(0, 0, 4, 4)), note(99, box(0, 0, 1, 1), image=1, id=7)]
    coco = ["coco", "--root", str(tiny_coco(folder / "coco", annotations)), "labelled", "6"]
    camvid = ["camvid", "--root", str(tiny_camvid(folder / "camvid")), "labelled", "8"]
    for call, says in (
        ([*own, "labelled", "1"], ("no problem would stop a run", "pixels of 1 cat", "2 with a label map")),
        ([*own, "labeled", "3"], ("did you mean 'labelled'", "-> do what the message says", "1 kind of problem")),
        (coco, ("annotation 7: its category 99 stands for no class", "2 kinds of problem would stop a run")),
        ([*camvid, "shrink", "2"], ("no problem",)),  # the files are twice as large as what is read
    ):
        assert main(call) == ("no problem" not in says[0])
        printed = capsys.readouterr().out
        assert all(text in printed for text in says), printed
    (folder / "camvid" / "trainannot" / "0001TP_000060.png").unlink()
    (folder / "camvid" / "val" / "0016E5_07959.png").write_bytes(b"no")
    assert main(camvid) == 1
    printed = capsys.readouterr().out
    assert "the data set cannot be loaded" in printed and "0001TP_000060.png does not exist" in printed
    assert "0016E5_07959.png is not a readable image" in printed and "3 kinds of problem" in printed
