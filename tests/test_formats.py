"""Labels in the forms of other tools: written and read back to the pixel, and understood or refused as they come."""

import base64
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_own_labels import LABEL, SIZE, both, ids, load, place, warns, write_json, write_maps  # noqa: F401  all use place
from test_review import MAPS
from test_splits import write

from conftest import COLOURS, colour_squares
from plg_utils import datasets, files, review
from plg_utils.datasets import _formats
from plg_utils.records import IGNORE, Classes, Sample

HEIGHT, WIDTH = SIZE
FOUR = Classes(("background", "ball", "box", "cup"), ((), ("ball",), ("box",), ("cup",)), COLOURS.colours[:4])
LOOSE = Classes(("sky", "road", "a 'b' <c>", "é"), (("sky",), ("road",), ("c",), ("é",)), COLOURS.colours[:4], None)


@pytest.mark.parametrize("form", ["png", "coco", "labelme", "yolo", "label_studio", "cvat"])
@pytest.mark.parametrize("classes", [FOUR, LOOSE], ids=["background", "no background"])
def test_every_form_holds_every_pixel(form, classes, tmp_path):
    """Holes, diagonal neighbours, single pixels, void; read by the review, and as labels of a data set."""
    maps = {name: np.where((label > 3) & (label != IGNORE), 3, label).astype(np.uint8) for name, label in MAPS.items()}
    samples = [Sample(name, lambda size=label.shape: np.zeros((*size, 3), np.uint8)) for name, label in maps.items()]
    out = tmp_path / "ou t"
    review.write(out, samples, lambda sample: maps[sample.id], classes, forms=[form])
    reviewed, _ = review.read(out)
    assert [image.id for image in reviewed] == [*maps] and not any(image.changed for image in reviewed)
    for image in reviewed:
        np.testing.assert_array_equal(image.label, maps[image.id])
    where = {"coco": "coco.json", "yolo": "", "label_studio": "label_studio.json", "cvat": "cvat", "labelme": "images"}
    if form == "label_studio":  # a prediction is no annotation of a person
        tasks = files.read_json(out / "label_studio.json")
        files.write_json(out / "label_studio.json", [t | {"annotations": t.pop("predictions")} for t in tasks])
    names = {"classes": str(out / "classes.yaml"), "labels": str(out / where.get(form, "labels"))}
    with warnings.catch_warnings(action="ignore"):
        data = datasets.load("folder", root=out / "images", **names)
    drawn = {sample.id: sample.truth() for sample in data.labelled}
    nothing = IGNORE if classes.background is None else 0
    assert drawn.keys() == {
        id for id, label in maps.items() if (label != nothing).any() or form in ("png", "cvat", "label_studio")
    }
    for id, label in drawn.items():
        np.testing.assert_array_equal(label, maps[id])


def test_a_written_form_says_what_it_cannot_hold(tmp_path):
    maps = {"ring": MAPS["ring"], "plain": np.ones((4, 5), np.uint8)}
    samples = [Sample(id, lambda size=label.shape: np.zeros((*size, 3), np.uint8)) for id, label in maps.items()]
    names = {0: "ball", 1: "box", 2: "cup"}
    for name, given, more in (("a", samples, {3: "void"}), ("b", samples[1:], {})):  # in the second void is no class
        index = review.write(tmp_path / name, given, lambda s: maps[s.id], FOUR, forms=("yolo", "cvat"))
        assert files.read_yaml(tmp_path / name / "data.yaml")["names"] == names | more
        said = str(index["remarks"])
        assert ("1 regions with holes are cut" in said and "1 void regions are the class 3: do" in said) == bool(more)
    text = (tmp_path / "a" / "data.yaml").read_text()
    assert text.startswith("# Class 3, void, is no label. Remove it, and its lines")
    assert not (tmp_path / "a" / "coco.json").exists()
    with pytest.raises(ValueError, match="was written without coco: read yolo, cvat, or write it again"):
        review.read(tmp_path / "a", forms=["coco"])
    colon = Classes(("background", "a:b"), ((), ("a",)), COLOURS.colours[:2])
    with pytest.raises(ValueError, match="'a:b': rename it without the colon"):
        review.write(tmp_path / "c", samples[1:], lambda s: maps[s.id], colon, forms=["cvat"])


# What tools write: the photos are p0 to p3 of test_own_labels, LABEL has a ball and a box

CORNERS = {"ball": [(2, 2), (8, 2), (8, 6), (2, 6)], "box": [(9, 6), (14, 6), (14, 11), (9, 11)]}  # x, y of sides


def yolo_text(corners=CORNERS, scale=SIZE[::-1], names=("ball", "box"), contours=False):
    """Lines of YOLO; contours: as OpenCV's findContours names the border's pixels, down at first."""
    lines = []
    for name, box in corners.items():
        (left, top), _, (right, bottom), _ = box
        right, bottom = right - contours, bottom - contours
        box = [(left, top), (left, bottom), (right, bottom), (right, top)] if contours else box
        numbers = [f"{number / side:.6f}" for corner in box for number, side in zip(corner, scale, strict=True)]
        lines.append(" ".join([str(names.index(name)), *numbers]))
    return "\n".join([*lines, ""])


def yolo(text, names="names: {0: ball, 1: box}", path="yolo/labels/train/p0.txt"):
    write(Path("yolo/data.yaml"), f"train: images\n{names}\n")
    write(Path(path), text)
    return "yolo"


EDGES = {"ball": [(2.2, 1.9), (8.1, 2), (8, 6.2), (2, 6)], "box": CORNERS["box"]}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (yolo_text(contours=True), "names: [ball, box]"),  # pixels of the border, as findContours gives them
        (yolo_text({name: [(x + 0.3, y + 0.3) for x, y in box] for name, box in CORNERS.items()}, contours=True), None),
        (yolo_text(), None),  # whole pixels, too, but sides
        (yolo_text(EDGES), None),  # no pixels, but the sides that a person has drawn
        (yolo_text(names=("x", "box", "ball"), contours=True), "nc: 3\nnames: [x, box, ball]"),
        (yolo_text(contours=True) + "\n\n", "names: {1: 'BOX ', 0: ball}"),
    ],
)
def test_polygons_of_yolo(text, names):
    root = yolo(text, names or "names: [ball, box]")
    write(Path("yolo/labels/train/p2.txt"), "")
    write(Path("yolo/labels/train/notes.json"), "{}")  # of no form
    for labels in (root, "yolo/data.yaml", "yolo/labels", "yolo/labels/train"):
        with warns("1 photos are listed in yolo without annotation, e.g. p2"):
            data = load(labels)
        assert ids(data.labelled) == ["p0"]
        np.testing.assert_array_equal(data.labelled[0].truth(), LABEL)
    write(Path("yolo/labels/train/p0.txt"), text.splitlines()[0])
    truth = load(root).labelled[0].truth()  # the maps are painted anew
    np.testing.assert_array_equal(truth, LABEL == truth.max())


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([(2, 1), (2, 5), (6, 5), (6, 1)], (1, 6), (2, 7)),  # against the clock: a contour, both ends belong to it
        ([(2.5, 1.5), (2.5, 5.5), (6.5, 5.5), (6.5, 1.5)], (1, 6), (2, 7)),
        ([(2, 1), (6, 1), (6, 5), (2, 5)], (1, 5), (2, 6)),  # with the clock: sides
        ([(2, 1), (2, 8), (6, 8), (6, 1)], (1, 8), (2, 6)),  # to the last side of the image, which no pixel has
        ([(2, 1), (2, 5), (10, 5), (10, 1)], (1, 5), (2, 10)),
        ([(2, 1), (2, 5.2), (6, 5.2), (6, 1)], (1, 5), (2, 6)),  # no pixels
        ([(6, 3), (6, 3), (6, 3)], (3, 4), (6, 7)),
    ],
)
def test_contours_are_told_from_sides(box, rows, columns):
    """On an image of 10 x 8 pixels, by the rules that the docstring of _formats gives."""
    expected = np.zeros((8, 10), bool)
    expected[slice(*rows), slice(*columns)] = True
    polygon = np.array(box) / (10, 8)
    np.testing.assert_array_equal(_formats._yolo_mask(polygon, [polygon.ravel()], (8, 10)), expected)


def test_polygons_of_yolo_are_of_the_upright_photo():
    """EXIF turns the photo: the polygon is in parts of the photo as it is seen."""
    exif = Image.Exif()
    exif[files.ORIENTATION] = 6
    Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8)).save("photos/p0.jpg", exif=exif)
    np.testing.assert_array_equal(load(yolo(yolo_text(contours=True))).labelled[0].truth(), LABEL)
    files.write_image("photos/p0.jpg", np.zeros((HEIGHT, 2 * WIDTH, 3), np.uint8))  # the same texts, another photo
    assert load("yolo").labelled[0].truth().shape == (HEIGHT, 2 * WIDTH)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (yolo_text(scale=(1, 1)), "the number 2 is not from 0 to 1: divide x by the width"),
        (yolo_text(scale=(0.16, 0.12)), "the number .* is not from 0 to 1"),
        ("0 0.5 0.5 0.2 0.2\n", "it is a box .* a box alone is no outline"),
        ("0 0.5 0.5 0.2 0.2 0.9\n", "it is a box"),
        ("0 .1 .1 .5 .1 .5 .5 0.97\n", "7 numbers are no x and y of three corners"),
        ("5 .1 .1 .5 .1 .5 .5\n", "its category 5 stands for no class"),
        ("ball .1 .1 .5 .1 .5 .5\n", "'ball .*' is no number of a class"),
        ("0 .1 .1 .5 nan .5 .5\n", "the number nan"),
    ],
)
def test_a_bad_line_of_yolo_is_named(text, says):
    with pytest.raises(ValueError, match=f"p0 has no label map: annotation in line 1 of p0.txt: {says}"):
        load(yolo(text))


SEGMENTATION = "SegmentationClass"


@pytest.mark.parametrize(
    ("files_of", "says"),
    [
        ({"texts/p0.txt": yolo_text()}, "no labels but files .txt; for texts such as p0.txt name YOLO's data.yaml"),
        ({"texts/data.yaml": "names: [ball]", "texts/labels/x.md": ""}, "texts holds no text of labels"),
        ({f"texts/{SEGMENTATION}/p0.png": "x"}, "texts itself holds no labels; its folder SegmentationClass holds"),
        ({"texts/p0.xml": "x"}, "texts itself holds no labels but files .xml; right are a folder of"),
        ({"texts/data.yaml": "train: x"}, "has no `names`: it should be YOLO's data.yaml"),
        ({"texts/data.yaml": "nc: 2\nnames: [a]"}, "as many names as `nc` says"),
        ({"texts/data.yaml": "names: [a]\nkpt_shape: [5, 2]"}, "has `kpt_shape`, so its labels are boxes and points"),
        ({"texts/one.json": '{"images": []}'}, "one.json is no json of labelme: name a single json itself"),
        ({"texts/labelmap.txt": "ball:1,2\n", f"texts/{SEGMENTATION}/p0.png": ""}, "has the line 'ball:1,2': right"),
        ({"texts/labelmap.txt": "a:1,2,3::\nb:1,2,3::", f"texts/{SEGMENTATION}/x": ""}, "a colour of its own"),
        ({"texts/job/labelmap.txt": "a", "texts/job/sub/x.txt": ""}, "its folder job holds labelmap.txt: name that"),
        ({"texts": "", "texts.zip": "x"}, "texts.zip is no form of labels that is known: unpack it and name"),
        (
            {"texts": "", "texts.json": '[{"image": "p0.jpg", "label": []}]'},
            "another form, with .'image', .* not JSON-MIN",
        ),
        ({"texts": "", "texts.json": "[1, 2]"}, "another form, a list: export objects"),
        ({"texts": "", "texts.json": "[]"}, "another form, a list: export objects"),
        ({"texts": "", "texts.json": '"p0"'}, "another form, a text: export objects"),
        ({"texts": "", "texts.json": '{"p0.jpg12": {}}'}, "another form, with .'p0.jpg12'.: export objects"),
        ({"texts": "", "texts.json": '{"annotations": [{"segments_info": []}]}'}, "a json of COCO's panoptic form"),
    ],
)
def test_labels_of_no_form_are_refused_with_what_would_be_right(files_of, says):
    for path, text in files_of.items():
        if text or "/" in path:
            write(Path(path), text)
    path = next((path for path in files_of if path.startswith("texts.")), "texts")
    with pytest.raises((ValueError, OSError), match=says):
        load(path)


@pytest.mark.parametrize("folder", ["train/labels", ".", "labels/val/a"])
def test_where_tools_put_the_texts_of_yolo(folder):
    yolo(yolo_text(contours=True), path=f"yolo/{folder}/p1.txt")
    write(
        Path("here/data.yaml"),
        f"path: ../yolo/{'' if 'labels' not in folder else folder.split('labels')[0]}\nnames: [ball, box]",
    )
    for labels in ("yolo", "yolo/data.yaml", *(["here/data.yaml"] if "labels" in folder else [])):
        np.testing.assert_array_equal(load(labels).labelled[0].truth(), LABEL)
    Path("yolo/data.yaml").unlink()
    write(Path("yolo/classes.txt"), "ball\nbox\n")
    np.testing.assert_array_equal(load("yolo").labelled[0].truth(), LABEL)


@pytest.mark.parametrize("labels", ["yolo", "yolo/labels", "yolo/data.yaml"])
def test_two_lists_of_names_of_yolo_must_agree(labels):
    """LabelImg writes a classes.txt of its own among the texts."""
    yolo(yolo_text(), path="yolo/labels/p0.txt")
    write(Path("yolo/labels/classes.txt"), "ball\nbox\n")
    write(Path("yolo/dataset.yaml"), "of: something else")
    np.testing.assert_array_equal(load(labels).labelled[0].truth(), LABEL)
    for names in ("box\nball\n", "Box\nBALL\n"):
        write(Path("yolo/labels/classes.txt"), names)
        with pytest.raises(ValueError, match="yolo/.* and yolo/.* number the classes otherwise: correct the wrong one"):
            load(labels)


def test_the_notes_that_label_studio_writes_beside_yolo_are_no_labels():
    yolo(yolo_text(), path="yolo/labels/p0.txt")
    files.write_json("yolo/notes.json", {"categories": [{"id": 0, "name": "ball"}], "info": {"version": "1.0"}})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(load("yolo").labelled[0].truth(), LABEL)
    assert not any("notes.json" in str(warning.message) for warning in caught)


def test_label_maps_count_before_objects_beside_them():
    write_maps(LABEL)
    write(Path("maps/p0.txt"), yolo_text())
    with warns("1 files of maps may hold objects of photos that have a PNG there, too"):
        np.testing.assert_array_equal(load().labelled[0].truth(), LABEL)


# labelme


def labelme_file(path, *shapes, photo="p0.jpg", size=SIZE):
    content = {"version": "6.3.1", "flags": {}, "shapes": shapes, "imagePath": photo, "imageData": None}
    files.write_json(path, content | {"imageHeight": size and size[0], "imageWidth": size and size[1]})


def shapes(kind="polygon"):
    points = {name: [box[0], box[2]] if kind == "rectangle" else box for name, box in CORNERS.items()}
    return [{"label": name, "points": box, "shape_type": kind, "flags": {}} for name, box in points.items()]


@pytest.mark.parametrize("folder", ["photos", "labels"])
def test_a_folder_of_labelme(folder):
    whole = {"label": "ball", "points": [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]], "shape_type": "polygon"}
    void = {"label": "__ignore__", "points": [[0, 0], [3, 0], [3, 1], [0, 1]], "shape_type": "polygon"}
    labelme_file(f"{folder}/p0.json", *shapes(), void, photo="..\\photos\\p0.jpg")
    labelme_file(f"{folder}/p1.json", *shapes(), whole, photo="p1.jpg", size=None)
    labelme_file(f"{folder}/p2.json", photo="p2.jpg")
    with warns("e.g. p2"):
        data = load(folder)
    assert ids(data.labelled) == ["p0", "p1"]
    expected = LABEL.copy()
    expected[0, :3] = IGNORE
    np.testing.assert_array_equal(data.labelled[0].truth(), expected)
    assert (data.labelled[1].truth() == 1).all()  # a later shape is on top, though it is larger
    np.testing.assert_array_equal(load(f"{folder}/p0.json").labelled[0].truth(), expected)


def test_a_json_that_is_no_label_decides_nothing():
    labelme_file("labels/p0.json", *shapes())
    write(Path("labels/a_package.json"), '{"name": "x", "version": "1.0.0"}')
    write(Path("labels/b.json"), "[]")
    with warns("2 files of labels are not labelme's and not used, e.g. a_package.json (no labels)"):
        np.testing.assert_array_equal(load("labels").labelled[0].truth(), LABEL)
    write_json(*both(0))
    Path("objects.json").rename("labels/a_coco.json")
    write(Path("labels/p0.txt"), yolo_text())
    with warns("4 files of labels are not labelme's and not used, e.g. a_coco.json (COCO)"):
        np.testing.assert_array_equal(load("labels").labelled[0].truth(), LABEL)
    write(Path("labels/data.yaml"), "names: [ball, box]")
    for name, form in (("p0.json", "labelme"), ("a_coco.json", "COCO")):
        with warns(f"labels/{name} holds labels of {form}, and is not used: YOLO's texts count"):
            np.testing.assert_array_equal(load("labels").labelled[0].truth(), LABEL)
        Path("labels/p0.json").unlink(missing_ok=True)
    for name in ("p0.txt", "data.yaml"):
        Path("labels", name).unlink()
    write(Path("labels/a.json"), "{}")
    with pytest.raises(FileNotFoundError, match="a_coco.json is no json of labelme: name a single json itself"):
        load("labels")
    write(Path("labels/a.json"), "{'a'}")
    with pytest.raises(ValueError, match="a.json is not readable JSON .* export it again, or move it away"):
        load("labels")


@pytest.mark.parametrize("kind", ["rectangle", "rotation"])
@pytest.mark.parametrize("photo", ["", None])
def test_files_of_x_anylabeling(kind, photo):
    """It writes all four corners, a list of classes beside the files, and no path of an image pasted in."""
    labelme_file("labels/p0.json", *({**shape, "shape_type": kind} for shape in shapes()), photo=photo)
    write(Path("labels/classes.txt"), "ball\nbox\n")
    with warnings.catch_warnings(action="ignore"):
        np.testing.assert_array_equal(load("labels").labelled[0].truth(), LABEL)


@pytest.mark.parametrize("mask", [None, "", "AAAA", 5])
def test_a_damaged_mask_of_labelme_is_told_in_plain_words(mask):
    labelme_file("labels/p0.json", {"label": "ball", "points": [[2, 2], [7, 5]], "shape_type": "mask", "mask": mask})
    with pytest.raises(ValueError, match="annotation 1: its mask is no PNG in base64, as labelme writes it"):
        load("labels")


def test_files_of_labelme_before_3_16_have_the_size_of_their_picture():
    content = {"shapes": shapes(), "imagePath": "p0.jpg", "lineColor": [0, 255, 0, 128]}
    for size in (SIZE, (24, 32)):
        files.write_image("a.jpg", np.zeros((*size, 3), np.uint8))
        picture = base64.b64encode(Path("a.jpg").read_bytes()).decode()
        files.write_json("labels/p0.json", content | {"imageData": picture})
        if size == SIZE:
            np.testing.assert_array_equal(load("labels").labelled[0].truth(), LABEL)
    with pytest.raises(ValueError, match=r"p0.png of labels is \(24, 32\), its photo .* resized or turned"):
        load("labels")


def test_labelmes_files_of_another_photo_or_of_boxes():
    labelme_file("labels/p0.json", *shapes("rectangle"))
    with warns("all 2 shapes of labels are rectangles"):
        np.testing.assert_array_equal(load("labels").labelled[0].truth(), LABEL)
    labelme_file("labels/p1.json", *shapes(), photo="p2.jpg")
    with pytest.raises(ValueError, match="p1.json is of the photo p2.jpg: give both the same name"):
        load("labels")
    labelme_file("labels/p1.json", *shapes(), photo="p1.jpg", size=(24, 32))
    with pytest.raises(ValueError, match=r"p1.png of labels is \(24, 32\), its photo .* resized or turned"):
        load("labels")


# Label Studio


def region(name, value, kind="brushlabels", **more):
    item = {"id": name, "type": kind, "from_name": "label", "to_name": "image", "original_height": HEIGHT}
    return item | {"original_width": WIDTH, "image_rotation": 0, "value": {kind: [name], **value}} | more


def brush(name, **more):
    value = {"format": "rle", "rle": _formats.brush_rle(LABEL == ["ball", "box"].index(name) + 1)}
    return region(name, value, **more)


def percent(name):
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in CORNERS[name]]
    return region(name, {"points": points, "closed": True}, "polygonlabels")


def tasks(*annotations, image="/data/upload/3/0a1b2c3d-p0.jpg", **more):
    listed = [{"id": number, "was_cancelled": False, "result": result} for number, result in enumerate(annotations)]
    task = {"id": 9, "data": {"image": image}, "annotations": listed, "predictions": []}
    files.write_json("tasks.json", [task | more])
    return "tasks.json"


@pytest.mark.parametrize(
    "result",
    [
        [brush("ball"), brush("box")],
        [percent("ball"), brush("box")],
        [percent("ball"), percent("box"), region("x", {"x": 1, "y": 2, "width": 3}, "keypointlabels")],
        [brush("ball") | {"type": "brush"}, {"id": "0", "type": "choices", "value": {"choices": ["x"]}}, brush("box")],
    ],
)
def test_tasks_of_label_studio(result):
    np.testing.assert_array_equal(load(tasks(result)).labelled[0].truth(), LABEL)


def test_a_caption_is_no_path_of_a_photo():
    content = files.read_json(tasks([brush("ball"), brush("box")]))
    content[0]["data"] = {"caption": "A ball. And a box"} | content[0]["data"]
    files.write_json("tasks.json", content)
    np.testing.assert_array_equal(load("tasks.json").labelled[0].truth(), LABEL)


def test_of_several_images_of_a_task_the_one_that_was_drawn_on_counts():
    content = files.read_json(tasks([brush("ball"), brush("box")]))
    for before, after in (({"before": "p1.jpg"}, {}), ({"thumbnail": "small/p0.jpg"}, {}), ({}, {"other": "p2.jpg"})):
        files.write_json("tasks.json", [content[0] | {"data": before | content[0]["data"] | after}])
        assert ids(load("tasks.json").labelled) == ["p0"]
    for data in ({"one": "p0.jpg", "two": "p1.jpg"}, {"images": ["p0.jpg", "p1.jpg"]}):
        files.write_json("tasks.json", [content[0] | {"data": data}])
        with pytest.raises(ValueError, match="which of .* is the image of a task is unknown: keep one in its data"):
            load("tasks.json")


def test_a_task_without_regions_has_the_image_on_which_the_others_are_drawn():
    """Such a task among those of two images stopped the reading of all."""
    content = files.read_json(tasks([brush("ball"), brush("box")]))
    others = {"thumbnail": "small_p1.jpg", "image": "p1.jpg"}
    for annotations in ([], [{"result": [], "was_cancelled": False}]):
        first = content[0] | {"data": {"thumbnail": "small/p0.jpg"} | content[0]["data"]}
        files.write_json("tasks.json", [first, {"data": others, "annotations": annotations}])
        with warns("without annotation, e.g. p1" if not annotations else "submitted without a region, e.g. p1"):
            assert "p0" in ids(load("tasks.json").labelled)


def test_drafts_of_label_studio_are_told():
    content = files.read_json(tasks([brush("ball"), brush("box")]))
    draft = {"data": {"image": "p1.jpg"}, "annotations": [], "drafts": [{"result": [brush("ball")]}]}
    files.write_json("tasks.json", [*content, draft])
    with warns("1 tasks of tasks.json hold a draft that was not submitted, e.g. p1: drafts are not used"):
        assert ids(load("tasks.json").labelled) == ["p0"]


def test_a_brush_and_its_label_may_be_two_items():
    drawn = brush("ball", type="brush")
    del drawn["value"]["brushlabels"]
    named = drawn | {"type": "labels", "value": drawn["value"] | {"labels": ["ball"]}}
    np.testing.assert_array_equal(load(tasks([drawn, named])).labelled[0].truth(), LABEL == 1)


def test_which_annotation_of_a_task_counts():
    result = [brush("ball"), brush("box")]
    for number, mark in ((1, "was_cancelled"), (0, "ground_truth")):
        content = files.read_json(tasks(result, [brush("ball")]))
        content[0]["annotations"][number][mark] = True
        files.write_json("tasks.json", content)
        np.testing.assert_array_equal(load("tasks.json").labelled[0].truth(), LABEL)
        content[0]["completions"] = content[0].pop("annotations")  # before version 1.0
        files.write_json("tasks.json", content)
        np.testing.assert_array_equal(load("tasks.json").labelled[0].truth(), LABEL)
    with pytest.raises(ValueError, match="the task has 2 annotations: keep one of them"):
        load(tasks(result, result))
    with pytest.raises(ValueError, match="tasks.json has no annotation of the 1 photos that it lists"):
        load(tasks(predictions=[{"result": result}]))  # what a model proposed


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (brush("box", original_width=HEIGHT, original_height=WIDTH), "regions of two sizes"),
        (brush("box", image_rotation=90), "the image was turned by 90 degrees"),
        (region("box", {"x": 10, "y": 10, "width": 20, "height": 5}, "rectanglelabels"), "of the type rectanglelabels"),
        (region("box", {"points": []}, "polygonlabels"), "it has no points"),
        (
            {key: value for key, value in percent("box").items() if not key.startswith("original")},
            "regions of two sizes, .12, 16. and .None, None. .original_height",
        ),
        (region("box", {"rle": [0, 0, 0, 9]}), "run lengths are not those of a brush"),
        (region("box", {"rle": _formats.brush_rle(np.ones((3, 3), bool))}), r"36 values, not 4 for each pixel"),
        (region("box", {"rle": _formats.brush_rle(LABEL > 0)[:-3]}), "they end too early"),
        (region("box", {"vertices": [{"x": 1, "y": 1}], "vectorlabels": ["box"]}, "vectorlabels"), "type vectorlabels"),
        (brush("box") | {"value": {"rle": [1], "brushlabels": ["ball", "box"]}}, "labels .'ball', 'box'., and one"),
        (region("box", {"points": [[0, 0], [300, 0], [300, 300]]}, "polygonlabels"), "not a number in or near"),
    ],
)
def test_a_bad_region_of_label_studio_is_named(item, says):
    with pytest.raises(ValueError, match=f"p0 has no label map: annotation .*{says}"):
        load(tasks([brush("ball", id="a"), item]))


def test_boxes_that_label_studio_adds_to_polygons_from_coco():
    box = region("ball", {"x": 12.5, "y": 100 / 6, "width": 37.5, "height": 100 / 3}, "rectanglelabels", id="r")
    result = [brush("box"), percent("ball"), box]
    np.testing.assert_array_equal(load(tasks(result)).labelled[0].truth(), LABEL)
    box["value"]["width"] = 30
    with pytest.raises(ValueError, match="of the type rectanglelabels; right are brushes and polygons"):
        load(tasks(result))


def test_literal_runs_of_a_brush():
    """A stream of another word size with blocks of single values, by hand: 1 x 2 pixels, the second is drawn."""
    bits = f"{8:032b}{4 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "0" + "00" + "111" + "0000" * 3 + "0000" + "0000" * 3 + "0001"  # eight values of four bits
    stream = [int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8)]
    assert _formats.brush_mask(stream, (1, 2)).tolist() == [[False, True]]


# Names that tools change


@pytest.mark.parametrize(
    ("photo", "image"),
    [
        ("my photo (1)", "/data/upload/3/0a1b2c3d-my_photo_1.jpg"),
        ("forêt", "/data/upload/3/0a1b2c3d-for%C3%AAt.jpg"),
        ("forêt 2", "/data/local-files/?d=my%20photos/for%C3%AAt%202.jpg"),
        ("a%20b", "s3://bucket/sub/a%20b.jpg"),
        ("c d", "https://example.org/c%20d.jpg?signature=a/b.c"),
        ("dog", "images/0A1B2C3D-dog.jpg"),
        ("deadbeef-x", "images\\DEADBEEF-x.jpg"),
    ],
)
def test_names_as_label_studio_changes_them(photo, image):
    files.write_image(f"photos/{photo}.jpg", np.zeros((*SIZE, 3), np.uint8))
    for labels in (tasks([brush("ball"), brush("box")], image=image), write_json(*both(0), images=1, name=image)):
        with warnings.catch_warnings(action="error", category=UserWarning):
            data = load(labels)
        assert ids(data.labelled) == [photo]
        np.testing.assert_array_equal(data.labelled[0].truth(), LABEL)


def test_names_of_two_photos_or_uploads_are_refused():
    for name in ("a b", "a_b"):
        files.write_image(f"photos/{name}.jpg", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match="'0a1b2c3d-a_b' of tasks.json could be a b or a_b: rename one"):
        load(tasks([brush("ball")], image="/data/upload/1/0a1b2c3d-a_b.jpg"))
    content = files.read_json(tasks([brush("ball")]))
    content.append(content[0] | {"data": {"image": "/data/upload/3/ffffffff-p0.jpg"}})
    files.write_json("tasks.json", content)
    with pytest.raises(ValueError, match="could each belong to p0.jpg"):
        load("tasks.json")


# CVAT


def cvat(label, lines, mode="RGB", path="cvat/SegmentationClass/p0.png"):
    """Write a map (H, W) of numbers of lines (name, colour), as CVAT does."""
    text = "".join(f"{name}:{','.join(map(str, colour))}::\n" for name, colour in lines)
    write(Path("cvat/labelmap.txt"), f"# label:color_rgb:parts:actions\n{text}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    colours = np.array([colour for _, colour in lines], np.uint8)
    Image.fromarray(label if mode == "L" else colours[label]).convert(mode if mode != "P" else "RGB").save(path)
    return "cvat"


BLACK, RED, DARK = ("background", (0, 0, 0)), (128, 0, 0), (0, 128, 0)  # VOC's first two colours


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_segmentation_mask_of_cvat(mode):
    # Box has the colour that ball has in the palette of VOC, and the lines are in another order
    lines = [("Box", RED), BLACK, ("ball", DARK)]
    numbers = np.array([1, 2, 0], np.uint8)[LABEL]
    for path in ("cvat/SegmentationClass/p0.png", "cvat/SegmentationClass/sub/p1.png"):
        root = cvat(numbers, lines, mode, path)
    for labels in (root, "cvat/SegmentationClass"):
        data = load(labels)
        assert ids(data.labelled) == ["p0", "p1"]
        for sample in data.labelled:
            np.testing.assert_array_equal(sample.truth(), LABEL)
    Path("cvat/SegmentationClass/p0.png").unlink()  # a person goes on, and the map that was read last is another one
    cvat(np.roll(numbers, 1, axis=1), lines, mode, "cvat/SegmentationClass/sub/p1.png")
    np.testing.assert_array_equal(load(root).labelled[0].truth(), np.roll(LABEL, 1, axis=1))


def test_an_export_of_cvat_in_a_folder_of_its_own_is_read_by_review(tmp_path):
    sample = Sample("p0", lambda: np.zeros((*SIZE, 3), np.uint8))
    review.write(tmp_path / "out", [sample], lambda _: LABEL, FOUR, forms=["cvat"])
    (tmp_path / "out" / "cvat").rename(tmp_path / "job_1")
    (tmp_path / "out" / "cvat").mkdir()
    (tmp_path / "job_1").rename(tmp_path / "out" / "cvat" / "job_1")
    assert not review.read(tmp_path / "out")[0][0].changed


def test_colours_and_names_of_cvat():
    lines = [BLACK, ("ball", RED), ("ignore", (9, 9, 9))]
    np.testing.assert_array_equal(load(cvat(LABEL, lines)).labelled[0].truth(), np.where(LABEL == 2, IGNORE, LABEL))
    cvat(LABEL, [BLACK, ("ball", RED), ("other", (9, 9, 9))])
    np.testing.assert_array_equal(load("cvat").labelled[0].truth(), LABEL == 1)
    with pytest.raises(ValueError, match="p0 has no label map: .*the colour .9, 9, 9., which labelmap.txt does not"):
        load(cvat(LABEL, [BLACK, ("ball", RED), ("box", (9, 9, 9))]) and write(
            Path("cvat/labelmap.txt"), "background:0,0,0::\nball:128,0,0::\n").parent.as_posix())  # fmt: skip
    with pytest.raises(ValueError, match="where labelmap.txt has 2 lines"):
        load(cvat(LABEL, [BLACK, ("ball", RED)], "L"))
    with pytest.raises(ValueError, match=r"is \(16, 12\), its photo \(12, 16\)"):
        load(cvat(LABEL.T.copy(), [BLACK, ("ball", RED), ("box", DARK)]))


def test_label_studio_exports_annotated_tasks_only(tmp_path):
    maps = {f"p{number}": colour_squares(number).truth for number in range(3)}
    samples = [Sample(id, lambda: colour_squares(0).image) for id in maps]
    review.write("out", samples, lambda sample: maps[sample.id], COLOURS, forms=["label_studio", "png"])
    files.write_json("out/label_studio.json", files.read_json("out/label_studio.json")[1:2])
    for forms, names in ((None, ["p0", "p1", "p2"]), (["label_studio"], ["p1"])):
        with pytest.warns(UserWarning, match="2 images have no annotation in .*json, e.g. p0. They count as untouched"):
            reviewed, _ = review.read("out", forms=forms)
        assert [(image.id, image.changed) for image in reviewed] == [(id, ()) for id in names]


def test_a_review_in_label_studio_s_json_min_is_refused():
    """It counted as tasks that no one had annotated."""
    photo = colour_squares(0)
    review.write("out", [Sample("p0", lambda: photo.image)], lambda _: photo.truth, COLOURS, forms=["label_studio"])
    files.write_json("out/label_studio.json", [{"image": "/data/upload/1/p0.png", "id": 1, "label": []}])
    with pytest.raises(ValueError, match="label_studio.json is not .* Label Studio .*JSON-MIN.*export the tasks again"):
        review.read("out")


def test_a_task_that_no_one_annotated_is_untouched():
    photos = {f"p{number}": colour_squares(number) for number in range(4)}
    samples = [Sample(id, lambda: photos["p0"].image) for id in photos]
    review.write("out", samples, lambda sample: photos[sample.id].truth, COLOURS, forms=["label_studio", "png"])
    content = files.read_json("out/label_studio.json")
    content[0] |= {"annotations": [{"was_cancelled": True, "result": []}], "predictions": []}
    content[1] |= {"annotations": [], "predictions": [7]}
    content[2] |= {"completions": [{"result": []}]}  # a person has removed everything; it was written before 1.0
    files.write_json("out/label_studio.json", content)
    with warns("2 images have no annotation in out/label_studio.json, e.g. p0. They count as untouched"):
        reviewed, _ = review.read("out")
    assert [image.changed for image in reviewed] == [(), (), ("label_studio",), ()]
    assert not reviewed[2].label.any()
    with warns("p0. They count as untouched"):
        assert [image.id for image in review.read("out", forms=["label_studio"])[0]] == ["p2", "p3"]
    content[3]["annotations"] = content[3].pop("predictions")
    files.write_json("out/label_studio.json", content)
    with warns("2 photos are listed in out/label_studio.json without annotation, e.g. p0. They count as unlabelled"):
        data = datasets.load("folder", root="out/images", classes="out/classes.yaml", labels="out/label_studio.json")
    assert ids(data.labelled) == ["p2", "p3"]
    assert not data.labelled[0].truth().any()


def test_a_task_that_was_submitted_without_a_region_is_background():
    content = files.read_json(tasks([brush("ball"), brush("box")]))
    for number, own in ((1, [{"result": []}]), (2, []), (3, [{"result": [], "was_cancelled": True}])):
        content.append({"data": {"image": f"p{number}.jpg"}, "annotations": own})
    files.write_json("tasks.json", content)
    with warns("1 tasks of tasks.json were submitted without a region, e.g. p1: they count as background"):
        data = load("tasks.json")
    assert ids(data.labelled) == ["p0", "p1"] and not data.labelled[1].truth().any()
    files.write_json("tasks.json", content[1:])
    with pytest.raises(ValueError, match="no category of tasks.json is a class: its categories are background"):
        load("tasks.json")  # maps that show no class at all are not taken


def test_a_review_of_each_form_after_a_tool_has_changed_it(tmp_path):
    """Other names, as tools change them, other numbers and colours; the changed pixels come back."""
    squares, wrong = colour_squares(0), colour_squares(1)
    squares.truth[:4, :5] = IGNORE
    forms = ("yolo", "label_studio", "cvat")
    review.write("out", [Sample("p 0", lambda: squares.image)], lambda _: wrong.truth, COLOURS, forms=forms)
    review.write("new", [Sample("p 0", lambda: squares.image)], lambda _: squares.truth, COLOURS, forms=forms)
    (task,) = files.read_json("new/label_studio.json")
    task |= {"annotations": task.pop("predictions"), "data": {"image": "/data/upload/1/0a1b2c3d-p_0.png"}}
    old = files.read_json("out/label_studio.json")[0]["predictions"]
    files.write_json("out/label_studio.json", [task | {"predictions": old}])
    names = [*COLOURS.names[:0:-1], "void"]
    numbers = {str(number): names.index(name) for number, name in enumerate([*COLOURS.names[1:], "void"])}
    lines = [line.split(" ", 1) for line in Path("new/labels/p 0.txt").read_text().splitlines()]
    write(Path("out/labels/p 0.txt"), "".join(f"{numbers[number]} {rest}\n" for number, rest in lines))
    write(Path("out/data.yaml"), f"names: {names}\n")
    lines = [("background", (0, 0, 0)), *((name, (9, 9, number)) for number, name in enumerate(names))]
    values = {name: value for value, name in enumerate(COLOURS.names)} | {"void": IGNORE}
    table = np.zeros(256, np.uint8)
    table[[values[name] for name, _ in lines]] = np.arange(len(lines))
    Path("out/cvat").rename("old")
    Path(cvat(table[squares.truth], lines, path="cvat/SegmentationClass/p 0.png")).rename("out/cvat")
    ((image,), _) = review.read("out")
    assert image.changed == forms
    np.testing.assert_array_equal(image.label, squares.truth)
