"""The validator: every malformed case is found, named and counted, and only what would stop a run gives exit code 1."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_camvid import tiny_camvid
from test_coco import CAR, CAT, SIZE, box, note, tiny_coco, write_json

from plg_utils import class_files, datasets, files
from plg_utils.datasets.__main__ import main, validate
from plg_utils.records import IGNORE, SPLITS, Classes, Dataset, Sample

SHARED = Path(__file__).parents[2] / "shared" / "data"
EXIF = 0x0112


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three photos with label maps of 6 x 8, in the layout of the data set `folder`; coco's maps go beside them."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    for number, name in enumerate("abc"):
        files.write_image(tmp_path / "photos" / f"{name}.png", np.full((6, 8, 3), 50 + number, dtype=np.uint8))
        label = np.zeros((6, 8), dtype=np.uint8)
        label[:number] = 1
        label[5] = IGNORE
        files.write_label(tmp_path / "maps" / f"{name}.png", label)
    return tmp_path


def look(folder, **options):
    """Rows of the table, by finding."""
    options = {"root": folder / "photos", "labels": folder / "maps", "classes": ["cat"], "truth_of": SPLITS} | options
    table = validate(datasets.load("folder", **options))
    assert list(table.columns) == ["level", "finding", "count", "detail"]
    assert table["finding"].is_unique
    return {row.finding: row for row in table.itertuples()}


def stops(rows):
    return {name for name, row in rows.items() if row.level == "stop"}


def test_nothing_is_wrong(folder):
    rows = look(folder)
    assert {row.level for row in rows.values()} == {"note"}
    assert rows["images, labelled"].count == 3
    assert rows["images, labelled"].detail == "3 with label map; 3 of 6x8"
    assert rows["share of background"].count == 40 + 32 + 24
    assert rows["share of cat"].count == 8 + 16
    assert rows["share of cat"].detail == "16.67% of the labelled pixels, in 2 images"  # 24 of 144
    assert rows["share of void"].count == 24


def test_classes_are_counted_for_the_labelled_images_alone(folder):
    rows = look(folder, labelled=0, val=1)
    assert rows["images, val"].detail.startswith("1 with label map")
    assert not [name for name in rows if name.startswith("share of")]
    one = look(folder, labelled=1, val=1)
    assert sum(row.count for name, row in one.items() if name.startswith("share of")) == 48  # one map of 6 x 8
    shut = look(folder, labelled=1, truth_of=())
    assert shut["images, labelled"].detail.startswith("0 with label map")


def test_shut_truth_is_not_opened(folder):
    for path in (folder / "maps").iterdir():
        path.write_bytes(b"nobody may read this")
    assert not stops(look(folder, labelled=0, val=2, truth_of=("labelled",)))
    assert stops(look(folder, labelled=0, val=2)) == {"label map corrupt, truncated or closed"}


def as_jpeg(photo, mode, **options):
    """Put a JPEG of this mode in the place of a photo; PIL reads what a file is from its content."""
    with Image.open(photo) as image:
        image.convert(mode).save(photo, format="JPEG", **options)


def turned(photo, _):
    exif = Image.Exif()
    exif[EXIF] = 3
    as_jpeg(photo, "RGB", exif=exif)


def write_map(label, colours=()):
    return lambda photo, path: files.write_label(path, label, colours)


ZEROS = np.zeros((6, 8), dtype=np.uint8)
CASES = {
    "photo gone": (lambda photo, path: photo.unlink(), "stop", "photo missing"),
    "photo corrupt": (lambda photo, path: photo.write_bytes(b"no"), "stop", "photo corrupt, truncated or closed"),
    "photo truncated": (
        lambda photo, path: photo.write_bytes(photo.read_bytes()[:-30]),
        "stop",
        "photo corrupt, truncated or closed",
    ),
    "photo truncated, JPEG": (
        lambda photo, path: (as_jpeg(photo, "RGB"), photo.write_bytes(photo.read_bytes()[:-8])),
        "stop",
        "photo corrupt, truncated or closed",
    ),
    "map gone": (lambda photo, path: path.unlink(), "stop", "label map missing"),
    "map corrupt": (lambda photo, path: path.write_bytes(b"no"), "stop", "label map corrupt, truncated or closed"),
    "map truncated": (
        lambda photo, path: path.write_bytes(path.read_bytes()[:-30]),
        "stop",
        "label map corrupt, truncated or closed",
    ),
    "map in colours": (
        lambda photo, path: files.write_image(path, np.zeros((6, 8, 3), np.uint8)),
        "stop",
        "label map of another kind",
    ),
    "map as JPEG": (lambda photo, path: as_jpeg(path, "L"), "stop", "label map of another kind"),
    "map of 16 bits": (
        lambda photo, path: Image.fromarray(ZEROS.astype(np.uint16)).save(path),
        "stop",
        "label map of another kind",
    ),
    "map turned": (write_map(ZEROS.T.copy()), "stop", "sizes differ"),
    "value of no class": (write_map(ZEROS + 2), "stop", "values outside the class map"),
    "other colours": (write_map(ZEROS, [(9, 9, 9)]), "warning", "wrong palette: are these the classes' values?"),
    "no palette": (
        lambda photo, path: Image.fromarray(ZEROS).save(path),
        "note",
        "label map without palette: grey in a viewer",
    ),
    "grey": (lambda photo, path: as_jpeg(photo, "L"), "note", "grey photo, read as RGB"),
    "CMYK": (
        lambda photo, path: as_jpeg(photo, "CMYK"),
        "warning",
        "CMYK photo, turned into RGB without its colour profile",
    ),
    "16 bits": (
        lambda photo, path: Image.fromarray(ZEROS.astype(np.uint16)).save(photo),
        "note",
        "16-bit photo, read with 8 bits",
    ),
    "transparent": (
        lambda photo, path: Image.new("RGBA", (8, 6)).save(photo),
        "note",
        "photo with transparency, which is left out",
    ),
    "turned": (turned, "warning", "EXIF rotation: the photo is turned, its map must stand upright"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_found(case, folder):
    break_it, level, finding = CASES[case]
    data = datasets.load("folder", root=folder / "photos", labels=folder / "maps", classes=["cat"], truth_of=SPLITS)
    break_it(folder / "photos" / "a.png", folder / "maps" / "a.png")
    rows = {row.finding: row for row in validate(data).itertuples()}
    assert (rows[finding].level, rows[finding].count) == (level, 1)
    assert rows[finding].detail.startswith("labelled 1; e.g. ")
    assert "a.png" in rows[finding].detail
    assert stops(rows) == ({finding} if level == "stop" else set())


def test_16_bit_colours_are_found_in_the_header(folder):
    """PIL opens such a PNG as 8-bit RGB and does not tell."""
    photo = folder / "photos" / "a.png"
    photo.write_bytes(rgb_of_16_bits())
    with Image.open(photo) as image:
        assert image.mode == "RGB"
    assert look(folder)["16-bit photo, read with 8 bits"].count == 1


def rgb_of_16_bits():
    """A PNG of 6 x 8 with 16 bits for each of three channels, which PIL cannot write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\1\2" * 24) * 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_turned_photo_needs_a_turned_map(folder):
    exif = Image.Exif()
    exif[EXIF] = 6  # a quarter turn: 6 x 8 becomes 8 x 6
    as_jpeg(folder / "photos" / "a.png", "RGB", exif=exif)
    rows = look(folder)
    assert stops(rows) == {"sizes differ"}
    assert "map 6x8, photo 8x6" in rows["sizes differ"].detail
    assert "EXIF rotation: the photo is turned" in look(folder, labels=None)


def test_files_of_nobody_and_classes_of_nobody(folder):
    files.write_label(folder / "maps" / "d.png", ZEROS)
    rows = look(folder, classes=["cat", "dog", "cow"])
    assert (
        rows["label maps without photo in the splits"].count,
        rows["label maps without photo in the splits"].level,
    ) == (1, "note")
    assert "d.png" in rows["label maps without photo in the splits"].detail
    absent = rows["classes that no labelled image shows"]
    assert (absent.level, absent.count, absent.detail) == ("warning", 2, "dog, cow")


def test_the_background_is_never_absent():
    classes = class_files.parse({"background": [], "classes": [{"name": "cat"}, {"name": "dog"}]})
    assert datasets.absent(classes, {1}) == ["dog"]


def test_ids_in_two_splits_and_nothing_at_all():
    classes = Classes(("a", "b"), (("a",), ("b",)), ((0, 0, 0), (1, 1, 1)))
    image, truth = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    one, same = (Sample(id, lambda: image, lambda: truth) for id in ("x1", "X1"))
    found = {row.finding: row for row in validate(Dataset("ours", classes, (one, one), (), (same,))).itertuples()}
    assert stops(found) == {"id in two splits", "id twice in a split"}
    assert "X1, labelled and val" in found["id in two splits"].detail
    assert found["classes that no labelled image shows"].detail == "b"
    empty = {row.finding: row for row in validate(Dataset("ours", classes, ())).itertuples()}
    assert stops(empty) == {"no images"}
    odd = Sample("odd", lambda: image[..., 0], lambda: truth.T)
    other = Sample("other", lambda: image, lambda: truth.T)
    found = {row.finding: row for row in validate(Dataset("ours", classes, (odd, other))).itertuples()}
    assert found["photo of another kind"].count == found["sizes differ"].count == 1


# A json of objects


def objects(folder, names, annotations, **options):
    """Rows of the table for the three photos with a json that lists images of these names."""
    write_json(folder / "objects.json", [f"{name}.png" for name in names], annotations)
    return look(folder, labels=folder / "objects.json", **options)


CATS = [note(CAT, box(0, 0, 4, 4), image=number, id=number) for number in range(3)]


def test_nothing_is_wrong_with_objects(folder):
    rows = objects(folder, "abc", CATS)
    assert {row.level for row in rows.values()} == {"note"}
    assert rows["annotations painted"].count == 3
    assert rows["share of cat"].count == 3 * 16
    assert "all 3 photos with a label map" in rows["how the labelled images were chosen"].detail


def test_an_unknown_category_is_counted(folder):
    with pytest.warns(UserWarning, match="1 annotations are of categories that no class has: car"):
        rows = objects(folder, "abc", [*CATS, note(CAR, box(5, 0, 6, 1), image=2, id=9)])
    row = rows["annotations of no class, painted as background"]
    assert (row.level, row.count, row.detail) == ("warning", 1, "car")
    assert not stops(rows)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (note(CAT, [[0, 0, 3, 3]], id=9), "annotation 9: a polygon of 4 numbers"),
        (note(CAT, box(0, 0, 1e9, 2), id=9), "annotation 9: a polygon with a corner at 1000000000.0, far outside"),
        (note(99, box(0, 0, 2, 2), id=9), "annotation 9: its category 99 stands for no class"),
        ({"image_id": 0, "category_id": CAT, "id": 9}, "annotation 9: it is not COCO's form"),
    ],
)
def test_a_broken_annotation_stops_its_image_alone(folder, broken, why):
    with pytest.warns(UserWarning, match=f"1 images have no label map, e.g. a: {why}"):
        rows = objects(folder, "abc", [*CATS, broken])
    assert stops(rows) == {"label map cannot be made"}
    assert rows["label map cannot be made"].count == 1
    assert f"a has no label map: {why}" in rows["label map cannot be made"].detail
    assert rows["share of cat"].count == 2 * 16


def test_photos_and_json_that_do_not_meet(folder):
    names = ["a", "b", "gone", "lost"]
    rows = objects(folder, names, [*CATS[:1], note(CAT, box(0, 0, 2, 2), image=77, id=9)])
    found = {name: (rows[name].level, rows[name].count, rows[name].detail) for name in rows}
    assert found["images of the json that are not in the folder"] == ("note", 2, "e.g. gone")
    assert found["photos that the json does not list"] == ("note", 1, "e.g. c")
    assert found["listed photos without annotation: all background"] == ("warning", 1, "e.g. b")
    assert found["annotations of images that the json does not list"][:2] == ("warning", 1)
    assert rows["images, unlabelled"].detail.startswith("0 with label map")
    assert not stops(rows)


def test_an_image_listed_twice_and_one_of_another_size(folder):
    with pytest.warns(UserWarning, match="the json lists more than one image of this name"):
        rows = objects(folder, ["a", "b", "a"], CATS)
    assert stops(rows) == {"label map cannot be made"}
    files.write_image(folder / "photos" / "b.png", np.zeros((8, 6, 3), dtype=np.uint8))
    rows = objects(folder, "abc", CATS)
    assert stops(rows) == {"sizes differ"}
    assert "map 6x8, photo 8x6" in rows["sizes differ"].detail


# The command


def test_exit_code_and_options(folder, capsys):
    call = ["folder", "--root", str(folder / "photos"), "labels", str(folder / "maps"), "classes"]
    assert main([*call, "[cat]"]) == 0
    told = capsys.readouterr().out
    assert "nothing was found that would stop a run" in told
    assert "share of cat" in told
    assert main([*call, "[cat]", "labelled", "1"]) == 0
    assert "2 with label map" in capsys.readouterr().out  # the others' maps are looked at, too
    (folder / "photos" / "b.png").write_bytes(b"no")
    assert main([*call, "[cat]"]) == 1
    told = capsys.readouterr().out
    assert "b.png is not a readable image" in told
    assert "1 kind of finding would stop a run" in told
    for wrong, complaint in [
        ([*call, "[cat]", "labeled", "3"], "did you mean 'labelled'"),
        ([*call], "options come with a value each"),
        (["folders"], "invalid choice"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
        assert complaint in capsys.readouterr().err


def test_what_cannot_be_loaded_is_looked_at_all_the_same(folder, capsys):
    root = tiny_camvid(folder / "camvid")
    (root / "trainannot" / "0001TP_000060.png").unlink()
    (root / "val" / "0016E5_07959.png").write_bytes(b"no")
    assert main(["camvid", "--root", str(root), "labelled", "8"]) == 1
    told = capsys.readouterr().out
    assert "the data set cannot be loaded" in told
    assert "label map missing" in told
    assert "0016E5_07959.png is not a readable image" in told
    assert "3 kinds of finding" in told
    assert main(["camvid", "--root", str(folder / "absent")]) == 1
    assert "has no folder train" in capsys.readouterr().out


def test_coco_tells_overlaps_and_broken_annotations(folder, capsys):
    annotations = [note(CAR, box(0, 0, 4, 4)), note(CAR, box(2, 0, 5, 4)), note(99, box(0, 0, 1, 1), image=1, id=7)]
    root = tiny_coco(folder / "coco", annotations)
    assert main(["coco", "--root", str(root), "labelled", "6"]) == 1
    told = capsys.readouterr().out
    assert "label map cannot be made" in told
    assert "annotation 7: its category 99 stands for no class" in told
    assert "pixels of two or more annotations" in told
    assert "this compares with nothing published" in told


def test_the_storybook_has_no_files_to_look_at(folder, capsys):
    assert main(["storybook", "--root", str(folder / "storybook"), "limit", "1"]) == 0
    assert "images, test" in capsys.readouterr().out


def test_it_runs_as_a_command(folder):
    environment = os.environ | {"PLG_PROGRESS": "1"}
    root = tiny_camvid(folder / "camvid")
    call = [sys.executable, "-m", "plg_utils.datasets", "camvid", "--root", root, "labelled", "8"]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=files.ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "reading camvid" in done.stderr  # the bar
    assert "share of road" in done.stdout


@pytest.mark.skipif(not (SHARED / "voc_sample").is_dir(), reason=f"{SHARED}/voc_sample is absent")
def test_the_shared_voc(capsys):
    assert main(["voc", "--root", str(SHARED / "voc_sample"), "labelled", "20"]) == 0
    told = capsys.readouterr().out
    assert "images, labelled" in told


@pytest.mark.skipif(not (SHARED / "coco_sample").is_dir(), reason=f"{SHARED}/coco_sample is absent")
def test_the_shared_coco_as_a_folder_of_photos(folder, capsys):
    root, classes = SHARED / "coco_sample", str(datasets.CLASS_FILES / "voc.yaml")
    call = ["folder", "--root", str(root / "images"), "labels", str(root / "instances.json"), "classes", classes]
    assert main([*call, "labelled", "12"]) == 0
    told = capsys.readouterr().out
    assert "couch (" in told  # VOC says sofa: it would be lost, and is told
    assert "52 with label map" in told
