"""Labels as people and tools make them: understood where the meaning is plain, else refused or told at loading."""

import json
import re
import unicodedata
import warnings
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_coco import dense
from test_splits import write

from conftest import COLOURS, colour_squares
from plg_utils import check, class_files, datasets, files, review, score
from plg_utils.datasets import _instances
from plg_utils.records import IGNORE, Sample

SIZE = (12, 16)
LABEL = np.zeros(SIZE, np.uint8)  # ball is 1, box is 2
LABEL[2:6, 2:8], LABEL[6:11, 9:14] = 1, 2
OWN = {"ball": (200, 10, 10), "box": (10, 10, 200)}  # colours of a class file


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Work in a folder with four photos p0 to p3."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        files.write_image(f"photos/p{number}.jpg", np.full((*SIZE, 3), 40 * number, np.uint8))
    return tmp_path


def load(labels="maps", classes=("ball", "box"), **options):
    """Load the photos with their labels."""
    classes = str(classes) if isinstance(classes, Path) else list(classes)
    return datasets.load("folder", root="photos", labels=labels, classes=classes, **options)


def warns(text):
    """Expect a warning that holds this text."""
    return pytest.warns(UserWarning, match=re.escape(text))


def ids(samples):
    return [sample.id for sample in samples]


def write_maps(*labels, folder="maps"):
    for number, label in enumerate(labels):
        files.write_label(f"{folder}/p{number}.png", label)


def outline(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


BALL, BOX = outline(2, 2, 6, 8), outline(6, 9, 11, 14)


def write_json(*rows, images=4, name="p{}.jpg", types=(int, int), names=("ball", "box", "void")):
    """Write a json of objects; rows: (image, category, segmentation, more); types: of ids in images and in rows."""
    size = {"height": SIZE[0], "width": SIZE[1]}
    content = {
        "images": [{"id": types[0](number), "file_name": name.format(number)} | size for number in range(images)],
        "categories": [{"id": types[0](number), "name": name} for number, name in enumerate(names, start=1)],
        "annotations": [
            {"id": number, "image_id": types[1](image), "category_id": types[1](category), "segmentation": drawn} | more
            for number, (image, category, drawn, more) in enumerate(rows)
        ],
    }
    files.write_json("objects.json", content)
    return "objects.json"


def both(image, **more):
    return (image, 1, BALL, more), (image, 2, BOX, more)


# Maps that show no class


VOID, EMPTY, MASK = np.full(SIZE, IGNORE, np.uint8), np.zeros(SIZE, np.uint8), (LABEL > 0) * np.uint8(255)


@pytest.mark.parametrize(
    ("label", "says"),
    [(VOID, "every pixel is void"), (EMPTY, "background. If it shows an object"), (MASK, "If 255 is the object")],
)
def test_label_maps_without_any_class_are_refused_before_any_work(label, says):
    write_maps(label, label)
    with pytest.raises(ValueError, match=f"no labelled image shows a class: .*{says}"):
        load()
    write_maps(LABEL, LABEL, label)
    with pytest.warns(UserWarning, match=f"^1 of 3 labelled images show no class, e.g. p2: .*{says}") as said:
        load()
    assert len(said) == 1
    write_maps(LABEL, LABEL, LABEL)
    files.write_label(f"maps/{load(val=1).val[0].id}.png", label)
    with pytest.raises(ValueError, match=f"no val image shows a class: .*{says}"):  # stages would see it much later
        load(val=1)
    write_maps(LABEL, label, label)
    Path("photos/p0.jpg").write_bytes(b"no photo")
    for val in (0, 2):  # of the three photos with a map one cannot be read
        with pytest.warns(UserWarning, match="1 of 4 photos"), pytest.raises(ValueError, match="no label|no val"):
            load(on_bad_image="skip", val=val)


def test_the_check_says_the_same(capsys, tiny_root):
    call = ["folder", "--root", "photos", "classes", "[ball, box]", "labels"]
    write_maps(LABEL, VOID, folder="maps #2")
    write_maps(MASK, MASK, folder="maps")
    for folder, code, says in (("maps #2", 0, "images without any class"), ("maps", 1, "If 255 is the object")):
        assert check.main([*call, folder]) == code  # a path is no YAML
        assert says in capsys.readouterr().out
    for path in (tiny_root / "SegmentationClass").iterdir():
        files.write_label(path, (files.read_label(path) > 0) * np.uint8(255))
    with pytest.warns(UserWarning, match="no labelled image shows a class: .* If 255 is the object"):
        datasets.load("voc", root=tiny_root, labelled=3)  # a published layout


def test_values_past_the_classes_are_refused_at_loading():
    write_maps(LABEL, LABEL + 1)
    says = r"p1.png holds the values \[3\], not classes 0 to 2 .* write 255 where a value means void"
    with pytest.raises(ValueError, match=says):
        load()


CAMVID = list(class_files.read(class_files.OURS["camvid"]).colours)


@pytest.mark.parametrize("kind", ["ids to 11", "ids to 31", "palette", "colours"])
@pytest.mark.parametrize("classes", [class_files.OURS["camvid"], ("sky", "building", "pole", "road")])
def test_camvids_own_label_maps_are_refused_with_what_to_do_about_void(kind, classes):
    label = LABEL.copy()
    label[0] = 11 if kind == "ids to 11" else 21
    palette = [*CAMVID, *((9, 9, number) for number in range(11, 32))]
    files.write_label("maps/p0.png", label, palette if kind == "palette" else ())
    if kind == "colours":
        save(np.array(palette, np.uint8)[label])
    says = "write 255 where a value means void"
    says = "paint what is void in .224, 224, 192.*void as 255" if kind == "colours" else says
    with pytest.raises(ValueError, match=says):
        load(classes=classes)


def turn_photo(orientation):
    with Image.open("photos/p0.jpg") as photo:
        exif = photo.getexif()
        exif[files.ORIENTATION] = orientation
        photo.save("photos/p0.jpg", exif=exif)


@pytest.mark.parametrize(
    ("label", "orientation", "says"),
    [
        (LABEL, 3, "EXIF turns the photo, and its size stays the same"),
        (LABEL, 2, "EXIF turns the photo, and its size stays the same"),
        (np.ones(SIZE, np.uint8), 1, "every pixel is ball. Is that right?"),
        (
            np.where(LABEL == 0, IGNORE, LABEL - 1).astype(np.uint8),
            1,
            "none is cup, the last class. Is 0 the first class",
        ),
    ],
)
def test_what_is_doubtful_about_label_maps_is_told(label, orientation, says, capsys):
    write_maps(label)
    turn_photo(orientation)
    classes = ("ball", "cup") if label.max() == IGNORE else ("ball", "a", "b", "c", "box")
    with warns(says):
        load(classes=classes)
    assert check.main(["folder", "--root", "photos", "classes", json.dumps(classes), "labels", "maps"]) == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("last", [2, 60])
@pytest.mark.parametrize("way", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST])
def test_maps_that_were_resized_smoothly_are_told(last, way):
    label = np.array([0, 1, last], np.uint8)[np.kron(LABEL, np.ones((8, 8), np.uint8))]
    for size in ((100, 70), (170, 130)):
        files.write_label("maps/p0.png", np.array(Image.fromarray(label).resize(size, way)))
        files.write_image("photos/p0.jpg", np.zeros((*size[::-1], 3), np.uint8))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            load(classes=[f"class {number}" for number in range(1, 80)])
        doubted = any("smooth interpolation" in str(one.message) for one in said)
        assert doubted == (way != Image.Resampling.NEAREST)


def test_right_maps_are_not_doubted(recwarn):
    """Void borders, thin things and photos that EXIF turns by a quarter are usual."""
    label = np.kron(LABEL, np.ones((4, 4), np.uint8))
    label[8:10, :] = label[:, 33] = IGNORE
    label[12:20, 2] = 2
    files.write_label("maps/p0.png", label.T)
    files.write_image("photos/p0.jpg", np.zeros((*label.shape, 3), np.uint8))
    turn_photo(6)
    load()
    assert not [str(one.message) for one in recwarn if issubclass(one.category, UserWarning)]
    write_maps(LABEL, LABEL, folder="maps/more")
    with warns("maps: label maps in its folders more are not used"):
        load()
    exif = Image.Exif()
    exif[files.ORIENTATION] = 3
    Image.fromarray(LABEL).save("maps/p0.png", exif=exif)
    with pytest.raises(ValueError, match="p0.png is a label map that EXIF turns, .*: save it upright"):
        load()


LISTED = {  # as labelme2voc, labelme, YOLO and Roboflow list the classes that the numbers of maps mean
    "class_names.txt": "_background_\nbox\nBall\n",
    "maps/labels.txt": "__ignore__\n_background_\nbox\nball\n",
    "maps/classes.txt": "box\nball\ncup\n",
    "maps/_classes.csv": "Pixel Value, Class\n0, background\n1, box\n2, ball\n",
    "_classes.csv": "Pixel Value, Class\n0, background\n1, box\n2, ball\n",
}


@pytest.mark.parametrize("name", LISTED)
def test_a_list_beside_the_maps_in_another_order_is_refused(name):
    write_maps(LABEL)
    write(Path("classes.txt"), "box\nball\n")  # one level up, of a data set for YOLO: nothing of these maps
    load()
    write(Path(name), LISTED[name])
    listed = "(background, )?box, ball(, cup)?"
    with pytest.raises(ValueError, match=f"{name} lists {listed}, the classes are .*ball, box: which order"):
        load()
    np.testing.assert_array_equal(load(classes=("box", "ball")).labelled[0].truth(), LABEL)
    np.testing.assert_array_equal(load(classes=("cat", "dog")).labelled[0].truth(), LABEL)  # nothing to compare
    with chdir("maps"), pytest.raises(ValueError, match=f"{Path(name).name} lists {listed}, the classes are .*ball"):
        datasets.load("folder", root="../photos", labels=".", classes=["ball", "box"])
    save(coloured(LABEL, OWN.values()))
    np.testing.assert_array_equal(load(classes=pets()).labelled[0].truth(), LABEL)  # colours have no order


def test_maps_that_this_package_wrote_carry_their_classes():
    """Maps of "box, ball" were taken with "ball, box", and with classes that count from 0, without a word."""
    write_maps(LABEL)
    own, from_0 = (class_files.parse(content) for content in (["a, b", "box"], {"classes": ["a, b", "box"]}))
    class_files.write_beside(Path("maps"), own)
    write(Path("class_names.txt"), "cup\nball\nbox\n")  # one level up, of other maps: that beside them counts
    for right in (["a, b", "box"], Path("maps/classes.yaml")):
        np.testing.assert_array_equal(load(classes=right).labelled[0].truth(), LABEL)
    says = "Give maps/classes.yaml as class file, or move maps/class_names.txt"
    for wrong in (["box", "a, b"], write(Path("from_0.yaml"), json.dumps({"classes": ["a, b", "box"]}))):
        with pytest.raises(ValueError, match=says):
            load(classes=wrong)
    class_files.write_beside(Path("maps"), from_0)
    with pytest.raises(ValueError, match=says):
        load(classes=["a, b", "box"])


@pytest.mark.parametrize(
    ("listed", "right"),
    [
        ("background, ball, box", True),
        ("_background_, Ball, box, void", True),
        ("background, Hund, Katze", True),  # other names may be words of another language
        ("background, ball", True),
        ("background, dog, ball", False),  # box is not in it, and ball has another number
        ("ball, box", False),
    ],
)
def test_the_names_beside_maps_say_what_each_number_is(listed, right):
    write_maps(LABEL)
    write(Path("maps/class_names.txt"), listed.replace(", ", "\n"))
    if right:
        np.testing.assert_array_equal(load(classes=("ball", "box")).labelled[0].truth(), LABEL)
        return
    more = ", the background's too," if listed == "ball, box" else ","
    with pytest.raises(ValueError, match=f"the same names in the same order{more} or move maps/class_names.txt away"):
        load(classes=("ball", "box"))


# Objects of a json


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 1, dense(LABEL == 1), {"iscrowd": 1}), (0, 2, dense(LABEL == 2), {"iscrowd": 1})],
        [(0, 1, BALL, {"iscrowd": 0}), (0, 2, dense(LABEL == 2), {"iscrowd": 1, "attributes": {"occluded": False}})],
        [(0, 1, BALL, {"iscrowd": 1}), (0, 2, BOX, {"iscrowd": 1})],
    ],
    ids=["all are flagged", "beside polygons of CVAT", "polygons"],
)
@pytest.mark.parametrize("void", ["void", "Unlabeled"])
def test_masks_that_a_tool_flags_as_crowds_are_objects(rows, void):
    with pytest.warns(UserWarning, match="flagged as crowds .* They count as objects"):
        data = load(write_json(*rows))
    np.testing.assert_array_equal(data.labelled[0].truth(), LABEL)
    data = load(
        write_json(*rows, (0, 3, dense(LABEL == 2), {"iscrowd": 1, "attributes": {}}), names=("ball", "box", void))
    )
    np.testing.assert_array_equal(data.labelled[0].truth() == IGNORE, LABEL == 2)  # the category void


def test_real_crowds_stay_void_and_are_told():
    flagged = (0, 2, dense(LABEL == 2), {"iscrowd": 1})
    with warns("1 annotations of objects.json are crowds (iscrowd 1), which are void"):
        data = load(write_json((0, 1, BALL, {}), flagged))
    np.testing.assert_array_equal(data.labelled[0].truth(), np.where(LABEL == 2, IGNORE, LABEL))
    with warns("1 masks are flagged as crowds"):
        load(write_json(flagged, (0, 3, BALL, {"iscrowd": 1}), names=("ball", "box", "Void")))
    label = np.where(LABEL == 2, IGNORE, 0).astype(np.uint8)  # of our own export, where only void is flagged
    files.write_json("objects.json", review.coco_json({"p0.jpg": label}, class_files.parse(["ball", "box"])))
    with warnings.catch_warnings(action="error"):
        assert len(_instances.read(Path("objects.json")).annotations["p0"]) > 0


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("more", [{"attributes": {"occluded": False}}, {}], ids=["CVAT", "another tool, some masks"])
def test_corrections_survive_a_round_trip_through_cvat(more):
    """CVAT flags each mask, writes plain counts, numbers categories anew, and may drop the folder of the photos."""
    squares, wrong = colour_squares(0), colour_squares(1)
    squares.truth[:4, :5] = IGNORE
    sample = Sample("p0", lambda: squares.image)
    review.write("out", [sample], lambda sample: wrong.truth, COLOURS)
    content = review.coco_json({"p0.png": squares.truth}, COLOURS)
    for row, (_, mask) in zip(content["annotations"], review.regions(squares.truth, COLOURS), strict=True):
        row |= {"segmentation": dense(mask), "iscrowd": int(bool(more) or row["id"] > 1)} | more
        row["category_id"] += 10
    for row in content["categories"]:
        row["id"] += 10
    files.write_json("out/coco.json", content)
    ((image,), _) = review.read("out", forms=["coco"])
    assert image.changed == ("coco",)
    np.testing.assert_array_equal(image.label, squares.truth)


@pytest.mark.parametrize("types", [(int, str), (str, int), (int, float), (str, lambda number: f" {number}")])
def test_ids_of_another_type_are_the_same_ids(types):
    data = load(write_json(*both(0), *both(2), types=types))
    assert ids(data.labelled) == ["p0", "p2"]
    np.testing.assert_array_equal(data.labelled[1].truth(), LABEL)


def test_annotations_of_no_image_are_told_or_refused():
    with warns("2 annotations of objects.json have an image_id that no image has"):
        load(write_json(*both(0), *both(7)))
    with pytest.raises(ValueError, match="objects.json has no annotation of the 4 photos that it lists"):
        load(write_json(*both(7)))


@pytest.mark.parametrize(
    ("outline", "says"),
    [
        ([[number / 16 for number in BALL[0]]], "from 0 to 1: multiply x by the width"),
        ([[number + 16 for number in BALL[0]]], r"all of it is outside of the image \(12, 16\)"),
        ([[-number for number in BALL[0]]], "all of it is outside"),
        (outline(-1, 2, 0, 8), "all of it is outside"),
        (outline(2, -3, 6, 0), "all of it is outside"),
    ],
)
def test_polygons_of_no_pixel_of_the_image_are_refused(outline, says):
    with pytest.raises(ValueError, match=f"p0 has no label map: annotation 1: .*{says}"):
        load(write_json((0, 1, BALL, {}), (0, 2, outline, {})))


@pytest.mark.parametrize(
    ("size", "lacks"),
    [((12.0, 16.0), False), (("12", "16"), False), ((None, None), True), ((0, 0), True), ((-1, -1), True)],
)
def test_sizes_as_tools_write_them(size, lacks):
    content = files.read_json(write_json(*both(0)))
    for row in content["images"]:
        row |= {"height": size[0], "width": size[1]}
    files.write_json("objects.json", content)
    with warns("4 images have no height and width: those of the photos count" if lacks else "without annotation"):
        np.testing.assert_array_equal(load("objects.json").labelled[0].truth(), LABEL)


@pytest.mark.parametrize("flag", ["0", None, False])
def test_flags_and_lines_that_mean_nothing(flag):
    rows = [(0, 1, [*BALL, [0, 0, 9, 9], [3, 3]], {"iscrowd": flag}), (0, 2, BOX, {"iscrowd": flag})]
    np.testing.assert_array_equal(load(write_json(*rows)).labelled[0].truth(), LABEL)


def rows_first(mask):
    """Run lengths that go row by row, as COCO's do not."""
    return {"size": SIZE, "counts": dense(mask.T)["counts"]}


def inside(top, left, bottom, right):
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


MISPLACED = "are not where their bbox says"


@pytest.mark.parametrize(
    ("outline_of", "doubt"),
    [
        (outline, ""),
        (lambda y, x, *end: [[*outline(y, x, *end)[0], x + 1, y + 1]], ""),
        (lambda *box: dense(inside(*box)), ""),
        (lambda y, x, bottom, right: outline(x, y, right, bottom), f"{MISPLACED}. Are x and y swapped"),
        (lambda *box: outline(*np.array(box) / 2), MISPLACED),
        (lambda *box: rows_first(inside(*box)), MISPLACED),
        (lambda *box: outline(*box) + outline(*np.add(box, (1, 1, -1, -1)).tolist()), "have a polygon inside of"),
    ],
)
@pytest.mark.parametrize("corners", [False, True])
def test_outlines_that_disagree_with_their_boxes_and_holes_are_told(outline_of, doubt, corners, recwarn):
    rows = []
    for category, (top, left, bottom, right) in enumerate(((1, 4, 5, 10), (5, 11, 11, 15)), start=1):
        bbox = [left, top, right - left * (not corners), bottom - top * (not corners)]
        rows.append((0, category, outline_of(top, left, bottom, right), {"bbox": bbox}))
    load(write_json(*rows, images=1))
    said = " ".join(str(one.message) for one in recwarn)
    assert f"objects.json: 2 of 2 annotations {doubt}" in said if doubt else "2 of 2" not in said


def test_photos_that_no_one_has_annotated_are_unlabelled():
    with warns("2 photos are listed in objects.json without annotation, e.g. p1"):
        data = load(write_json(*both(0), *both(3)))
    assert ids(data.labelled) == ["p0", "p3"] and len(data.unlabelled) == 2
    empty = load(write_json(*both(0), (1, 1, outline(0, 0, 12, 16), {}), names=("background", "ball", "box")))
    assert ids(empty.labelled) == ["p0", "p1"]
    assert not empty.labelled[1].truth().any()
    with pytest.raises(ValueError, match="no annotation of the 4 photos"):
        load(write_json())


@pytest.mark.parametrize(
    ("segmentation", "more"),
    [
        ([], {}),
        ([], {"bbox": [3, 4, 0, 0], "area": 0}),
        ([[3, 4, 3, 4, 3, 4]], {"bbox": [3, 4, 0, 0]}),
        ({"size": list(SIZE), "counts": [192]}, {"area": 0}),
    ],
)
def test_a_stray_click_among_objects_is_left_out_and_told(segmentation, more):
    with warns("1 annotations without outline and area are left out"):
        data = load(write_json(*both(0), (0, 1, segmentation, more)))
    np.testing.assert_array_equal(data.labelled[0].truth(), LABEL)


@pytest.mark.parametrize("nested", [False, True])
def test_a_list_of_corners_is_no_click(nested):
    corners = [[2, 2], [8, 2], [8, 6], [2, 6]]
    with pytest.raises(ValueError, match="p0 has no label map: annotation 0: the polygon .* three corners or more"):
        load(write_json((0, 1, [corners] if nested else corners, {}), (0, 2, BOX, {})))


def test_names_with_signs_of_addresses_or_without_suffix_are_found():
    for name in ("p 0", "v1", "v1.2"):
        files.write_image(f"photos/{name}.jpg", np.zeros((*SIZE, 3), np.uint8))
    for named, id in (("x/p%200.jpg", "p 0"), ("v1.2", "v1.2"), ("v1.2.jpg", "v1.2"), ("v1", "v1")):
        with warnings.catch_warnings(action="ignore"):
            data = load(write_json(*both(0), images=1, name=named))
        assert ids(data.labelled) == [id]


def test_a_box_without_outline_is_no_click():
    box, huge = {"bbox": [2, 2, 6, 4], "area": 24}, {"size": [1 << 20, 1 << 20], "counts": [1 << 40]}
    says = "it has no polygon; a box alone is no outline"
    cases = ([*both(0), (0, 1, [], box)], says), ([(0, 1, [], box)], says), ([(0, 1, [], {})], says)
    huge = [(0, 1, huge, box)], "run lengths of size"  # which is not drawn to be compared
    for rows, problem in (*cases, huge):
        with pytest.raises(ValueError, match=f"p0 has no label map: annotation .: {problem}"):
            load(write_json(*rows))
    content = files.read_json(write_json(*both(0)))
    del content["annotations"][1]["segmentation"]
    files.write_json("objects.json", content)
    with pytest.raises(ValueError, match=f"annotation 1: {says}"):
        load("objects.json")


# Colours and palettes


def pets(colours=OWN):
    rows = [{"name": name, "colour": list(colour)} for name, colour in colours.items()]
    return write(Path("pets.yaml"), json.dumps({"background": [], "classes": rows}))


def coloured(label, colours):
    return np.array([(0, 0, 0), *colours, *[(0, 0, 0)] * 252, (224, 224, 192)], np.uint8)[label]


def save(image, mode="RGB"):
    Path("maps").mkdir(exist_ok=True)
    Image.fromarray(image).convert(mode).save("maps/p0.png")


def swapped(label, colours):
    """Save a palette PNG whose numbers are in another order than the classes: the last first."""
    order = np.array([2, 1, 0], np.uint8)
    files.write_label("maps/p0.png", order[label], np.array([(0, 0, 0), *colours])[order].tolist())


WITH_VOID = LABEL.copy()
WITH_VOID[0] = IGNORE


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_the_classes_are_understood(mode):
    save(coloured(WITH_VOID, OWN.values()), mode)
    np.testing.assert_array_equal(load(classes=pets()).labelled[0].truth(), WITH_VOID)
    save(coloured(LABEL, files.voc_palette()[1:3].tolist()), mode)  # VOC's colours, of a list of names
    np.testing.assert_array_equal(load().labelled[0].truth(), LABEL)
    save(coloured(LABEL, [(1, 2, 3), (200, 10, 10)]), mode)
    with pytest.raises(ValueError, match=r"p0.png holds colours, not numbers, and \(1, 2, 3\) is the colour of no"):
        load()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_numbers_in_three_equal_channels_are_understood(mode):
    save(np.repeat(WITH_VOID[:, :, None], 3, axis=2), mode)
    np.testing.assert_array_equal(load().labelled[0].truth(), WITH_VOID)
    save(np.repeat(MASK[:, :, None], 3, axis=2), mode)
    with pytest.raises(ValueError, match="no labelled image shows a class: .* If 255 is the object"):
        load()
    pixels = np.dstack([coloured(LABEL, OWN.values()), np.where(LABEL == 1, 255, 0).astype(np.uint8)])
    pixels[LABEL == 0] = 255, 255, 255, 0  # of no class, but nothing is painted where a map is transparent
    save(pixels, "RGBA")
    np.testing.assert_array_equal(load(classes=pets()).labelled[0].truth(), LABEL * (LABEL == 1))


def score_of():
    return score.main(["given", "maps", "--classes", str(pets()), "--json", "scores.json"])


def test_scores_of_colours_and_of_names_with_accents(capsys):
    for number, name in enumerate(("a", "caf\u00e9")):
        write_maps(LABEL)
        Path("maps/p0.png").rename(f"maps/{unicodedata.normalize('NFC', name)}.png")
        save(coloured(LABEL, OWN.values()))
        Path("given").mkdir(exist_ok=True)
        Path("maps/p0.png").rename(f"given/{unicodedata.normalize('NFD', name.upper() if number else name)}.png")
    swapped(LABEL, OWN.values())
    Path("maps/p0.png").replace("given/a.png")
    assert score_of() == 0 and files.read_json("scores.json")["miou"] == 1 and not capsys.readouterr().err
    files.write_label("given/a.png", EMPTY)
    files.write_label(next(path for path in Path("given").iterdir() if path.stem != "a"), EMPTY)
    assert score_of() == 0
    assert "no map in given shows a class: every pixel is background or void" in capsys.readouterr().err
    for path in Path("maps").iterdir():
        files.write_label(path, MASK)
    assert score_of() == 1
    assert "error: no map in maps shows a class: " in capsys.readouterr().err


def test_a_palette_in_another_order_is_understood_by_its_colours_or_refused():
    swapped(LABEL, OWN.values())
    np.testing.assert_array_equal(load(classes=pets()).labelled[0].truth(), LABEL)
    swapped(LABEL, files.voc_palette()[1:3].tolist())
    with pytest.raises(ValueError, match="p0.png shows the value 2 in the colour of 0: which class it means is not"):
        load()
    files.write_label("maps/p0.png", (LABEL == 0).astype(np.uint8), [(255, 255, 255), (0, 0, 0)])  # ImageJ's, inverted
    with pytest.raises(ValueError, match="p0.png shows the value 1 in black, as if it were the background: save"):
        load()
    for palette in ((), files.voc_palette()[:3], OWN.values()):  # numbers in order, whatever colours they have
        files.write_label("maps/p0.png", LABEL, list(palette))
        np.testing.assert_array_equal(load().labelled[0].truth(), LABEL)
    files.write_label("maps/p0.png", LABEL)  # VOC's palette is what tools write for numbers
    classes = pets(colours=dict(zip(OWN, files.voc_palette()[[2, 1]].tolist(), strict=True)))
    np.testing.assert_array_equal(load(classes=classes).labelled[0].truth(), LABEL)


def test_palettes_that_differ_between_maps_are_told():
    for number, colours in enumerate(([(9, 9, 9), (8, 8, 8)], [(8, 8, 8), (9, 9, 9)])):
        files.write_label(f"maps/p{number}.png", LABEL, [(0, 0, 0), *colours])
    with warns("p0.png and maps/p1.png show the value 1 in different colours"):
        load()
    write_maps(LABEL, LABEL)
    with warnings.catch_warnings(action="error", category=UserWarning):
        load()


# Names


def test_maps_among_the_photos():
    write_maps(LABEL, LABEL, folder="photos")
    data = load("photos/../photos")
    assert ids(data.labelled) == ["p0", "p1"] and len(data.unlabelled) == 2
    assert data.labelled[0].path.suffix == ".jpg"
    np.testing.assert_array_equal(data.labelled[0].truth(), LABEL)
    with pytest.raises(ValueError, match=r"p0.jpg and p0.png of photos would share .* the option labels names"):
        datasets.load("folder", root="photos", classes=["ball"])


@pytest.mark.parametrize("name", ["p0_mask", "p0-label", "mask_p0"])
def test_what_looks_like_a_map_of_another_photo_is_told(name):
    files.write_label(f"photos/{name}.png", LABEL)
    files.write_image("photos/p0_copy.png", np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8))
    with pytest.warns(UserWarning, match=f"1 files of photos look like label maps of other photos, e.g. {name}.png"):
        datasets.load("folder", root="photos", classes=["ball"])


@pytest.mark.parametrize(
    ("photo", "other"),
    [("été", "été"), ("Forêt", "FORÊT"), ("IMG_1", "img_1"), ("Straße", "straße")],
)
def test_names_that_differ_in_case_or_accents_are_the_same(photo, other):
    photo, other = unicodedata.normalize("NFD", photo), unicodedata.normalize("NFC", other)
    files.write_image(f"photos/{photo}.jpg", np.zeros((*SIZE, 3), np.uint8))
    files.write_label(f"maps/{other}.png", LABEL)
    for labels in ("maps", write_json(*both(0), images=1, name=f"{other}.jpg")):
        with warnings.catch_warnings(action="error", category=UserWarning):
            data = load(labels)
        assert ids(data.labelled) == [photo]
        np.testing.assert_array_equal(data.labelled[0].truth(), LABEL)


def test_two_maps_of_one_photo_and_maps_of_no_photo():
    write_maps(LABEL)
    files.write_label("maps/dog.png", LABEL)
    files.write_image("maps/p1.jpg", np.zeros((*SIZE, 3), np.uint8))
    said = "1 label maps of maps have the name of no photo and are not used, e.g. dog"
    with warns(said), warns("1 files of maps have the name of a photo without label map, but are no PNG"):
        load()
    files.write_label("maps/P0.png", LABEL)
    with pytest.raises(ValueError, match=r"'P0' and 'p0' of maps could each belong to p0.jpg: rename or remove one"):
        load()
    with pytest.raises(FileNotFoundError, match="with the name of a photo, e.g. x0-p0. The photos are called e.g. p0"):
        load(write_json(*both(0), images=1, name="x{0}-p{0}.jpg"))


# Lists of classes


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("labels.txt", "__ignore__\n_background_\nball\nbox\n", ("ball", "box")),
        ("names.txt", "background\nball\nno\nvoid\n", ("ball", "no")),
        ("list.yaml", "- ball\n- 'box '\n", ("ball", "box")),
        ("rows.yaml", "- name: ball\n- name: box\n", ("ball", "box")),
        ("texts.yaml", "background: []\nclasses: [ball, box]\n", ("ball", "box")),
        ("data.yaml", "train: images/train\nnc: 2\nnames: [ball, box]\n", ("ball", "box")),
        ("mapping.yaml", "path: x\nnames:\n  1: box\n  0: ball\n", ("ball", "box")),
    ],
)
def test_class_lists_of_other_tools_are_read(name, text, names):
    classes = class_files.read(write(Path(name), text))
    assert (classes.names, classes.background) == (("background", *names), 0)
    assert classes.words == ((), *((own,) for own in names))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("cat, dog ,cow", ("cat", "dog", "cow")),
        (["background", "cat"], ("cat",)),
        (["__ignore__", "_background_", "cat"], ("cat",)),
        (["pot, pan", "dog "], ("pot, pan", "dog")),
    ],
)
def test_lists_of_names_as_people_write_them(given, names):
    assert datasets.load("folder", root="photos", classes=given).classes.names == ("background", *names)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("[cat, 'cat ']", "more than once: cat"),
        ("[cat, Cat]", "cat and Cat share the word 'cat'"),
        ("[cat, background]", "`background` is class 0 by itself.*remove it from the list"),
        ("{background: [wall], classes: [cat, wall]}", "background and wall share the word 'wall'"),
        ("{classes: [{name: a, colour: [1, 2, 3]}, {name: b, colour: [1, 2, 3]}]}", r"a and b share the colour \(1, 2"),
        ("{names: {1: cat, 2: dog}}", r"the numbers \[1, 2\], which must count from 0"),
        ("{names: [cat], nc: 2}", "as many names as `nc` says"),
        ("{names: {0: cat, 1: no}}", "False, which is no text"),
    ],
)
def test_class_lists_of_two_meanings_are_refused(given, says):
    with pytest.raises(ValueError, match=f"own.yaml: .*{says}"):
        class_files.read(write(Path("own.yaml"), given))


def test_one_name_with_a_comma_and_colours_that_a_class_has_chosen():
    with pytest.raises(ValueError, match="is one name with a comma: put each name into a text of its own"):
        datasets.load("folder", root="photos", classes=["cat,dog"])
    chosen = class_files.parse({"classes": ["a", "b", {"name": "c", "colour": [128, 0, 0]}]})  # VOC's second
    assert chosen.colours == ((0, 0, 0), tuple(files.voc_palette()[2]), (128, 0, 0))


# VOC's layout with photos of one's own


@pytest.fixture
def own_voc():
    """Write six photos in VOC's layout: names with spaces, four suffixes, val.txt with two."""
    photos = ["IMG 1.jpg", "IMG 2 copy.png", "c.JPG", "d.v2.jpg", "e.jpeg", "f.jpg"]
    for number, name in enumerate(photos):
        drawn = colour_squares(number)
        files.write_image(f"voc/JPEGImages/{name}", drawn.image)
        files.write_label(f"voc/SegmentationClass/{Path(name).stem}.png", drawn.truth)
    lists = Path("voc/ImageSets/Segmentation")
    write(lists / "train.txt", "IMG 1\nIMG 2 copy\nc\nd.v2\n")
    write(lists / "val.txt", "e\nf\n")
    return lists


def test_ids_with_spaces_and_photos_of_other_suffixes_in_vocs_layout(own_voc):
    data = datasets.load("voc", root="voc", labelled=4, truth_of=("labelled", "val"))
    assert (ids(data.labelled), ids(data.val)) == (["IMG 1", "IMG 2 copy", "c", "d.v2"], ["e", "f"])
    for sample in (*data.labelled, *data.val):
        assert sample.truth().shape == sample.image().shape[:2]
    for name in ("train", "val"):
        (own_voc / f"{name}.txt").unlink()
    with pytest.warns(UserWarning, match="has no train.txt and no val.txt: both are drawn by seed 0"):
        drawn = datasets.load("voc", root="voc", labelled=4)
    assert len(drawn.labelled) + len(drawn.unlabelled) + len(drawn.val) == 6
    classes = write(Path("own.yaml"), "background: []\nclasses: [ball, box]").absolute()
    with pytest.raises(ValueError, match="other classes than voc: .* take the data set folder"):
        datasets.load("voc", root="voc", classes=classes, labelled=1)


def test_a_missing_or_empty_val_txt_is_no_other_split(own_voc):
    write(own_voc / "val.txt", "\n")
    with pytest.raises(ValueError, match="val.txt lists no image: write an id in each line"):
        datasets.load("voc", root="voc", labelled=1)
    (own_voc / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="has train.txt and no val.txt: add val.txt, or remove train.txt"):
        datasets.load("voc", root="voc", labelled=1)
    (own_voc / "train.txt").rename(own_voc / "val.txt")
    with pytest.raises(FileNotFoundError, match="has val.txt and no train.txt"):
        datasets.load("voc", root="voc", labelled=1)
