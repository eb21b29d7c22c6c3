"""Labels for other people's tools and back: to the pixel, or with an error that names the file and loses nothing."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools.coco import COCO

from conftest import COLOURS, colour_squares
from plg_utils import class_files, datasets, files, review, trust
from plg_utils.datasets import storybook
from plg_utils.records import IGNORE, Classes, Masks, Sample

THINGS = Classes(
    ("sky", "road"), (("the sky",), ("a road", "street")), ((10, 20, 30), (200, 100, 0)), None
)  # no background

RING = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [0, 1, 0, 2, 0, 1, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [0, 1, 1, 1, 1, 1, 3],
        [255, 0, 0, 0, 0, 3, 0],
    ],
    np.uint8,
)


def parts(label):
    """Number the 4-connected parts of a label map, pixel by pixel: (H, W) int, by their first pixel."""
    numbers = np.full(label.shape, -1)
    for start in np.ndindex(label.shape):
        if numbers[start] >= 0:
            continue
        number, waiting = numbers.max() + 1, [start]
        while waiting:
            y, x = waiting.pop()
            inside = 0 <= y < label.shape[0] and 0 <= x < label.shape[1]
            if inside and numbers[y, x] < 0 and label[y, x] == label[start]:
                numbers[y, x] = number
                waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return numbers


def same_parts(one, other):
    """Whether two maps of numbers divide the pixels alike."""
    pairs = set(zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))
    return len(pairs) == len(set(one.flat)) == len(set(other.flat))


def noise(seed, size=(9, 12)):
    return np.random.default_rng(seed).choice([0, 1, 2, IGNORE], size, p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)


MAPS = {
    "ring": RING,
    **{f"noise {seed}": noise(seed) for seed in range(4)},
    **{f"noise {seed}, one class": (noise(seed) == 1).astype(np.uint8) for seed in range(4)},
    "a pixel": np.array([[1]], np.uint8),
    "a row": np.array([[0, 1, 1, 0, 2]], np.uint8),
    "a column": np.array([[1], [0], [1]], np.uint8),
    "all void": np.full((3, 4), IGNORE, np.uint8),
    "checks": (np.indices((6, 7)).sum(axis=0) % 2).astype(np.uint8),
    "scene": storybook.draw(1003).label % 4,
}
both_kinds = pytest.mark.parametrize("classes", [COLOURS, THINGS], ids=["background", "no background"])


# Regions and outlines


def test_regions_by_hand():
    label = np.array([[1, 1, 0], [1, 0, 0]], np.uint8)
    found = review.regions(label)
    assert [(region.value, region.outline.tolist()) for region in found] == [
        (1, [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]),
        (0, [[2, 0], [3, 0], [3, 2], [1, 2], [1, 1], [2, 1]]),
    ]


def test_an_outline_goes_around_holes_and_what_lies_in_them_comes_later():
    found = review.regions(RING)
    assert sorted(region.value for region in found) == [0, 0, 0, 0, 1, 2, 3, 3, 255]  # corners join nothing
    ring = next(region for region in found if region.value == 1)
    assert ring.outline.tolist() == [[1, 1], [6, 1], [6, 6], [1, 6]]
    order = [region.value for region in found]
    assert order.index(1) < order.index(2)


def test_painted_regions_are_the_connected_parts():
    for name, label in MAPS.items():
        found = review.regions(label)
        numbers = review.numbered(found, label.shape)
        assert same_parts(numbers, parts(label)), name
        assert np.array_equal(np.array([region.value for region in found], np.uint8)[numbers], label), name
        assert all(review._crossing(region.outline) is None for region in found), name


@pytest.mark.parametrize("tolerance", [0.7, 1.5, 4])
def test_simplified_outlines_keep_each_region(tolerance):
    for name, label in MAPS.items():
        found = review.regions(label)
        coarse, iou = review.simplified(found, label.shape, tolerance)
        true, drawn = review.numbered(found, label.shape), review.numbered(coarse, label.shape)
        counted = [((true == k) & (drawn == k)).sum() / ((true == k) | (drawn == k)).sum() for k in range(len(found))]
        assert iou.tolist() == counted, name
        assert min(counted) >= review.LEAST_IOU, name
        assert [region.value for region in coarse] == [region.value for region in found], name
        assert all(review._crossing(region.outline) is None for region in coarse), name


def test_simplifying_leaves_out_corners():
    found = review.regions(storybook.draw(1003).label)
    corners = [sum(len(region.outline) for region in each) for each in
               (found, review.simplified(found, (128, 128), 1.0)[0])]  # fmt: skip
    assert corners[1] < 0.7 * corners[0]


def test_a_simplified_outline_does_not_cross_itself():
    horseshoe = np.zeros((5, 6), np.uint8)  # by two pixels its legs would change places
    horseshoe[0, 4:], horseshoe[1, 3:], horseshoe[2:4, 3], horseshoe[2:, 5] = 1, 1, 1, 1
    coarse, iou = review.simplified(review.regions(horseshoe), (5, 6), 2.0, least_iou=0.0)
    assert iou.min() < 1
    assert all(review._crossing(region.outline) is None for region in coarse)


def test_half_a_pixel_changes_nothing():
    found = review.regions(MAPS["scene"])
    assert review.simplified(found, (128, 128), 0.49)[1].min() == 1


# labelme


def read_by_outlines(content, nothing):
    """Paint a file of labelme's by asking, for the centre of each pixel, whether it lies in the polygon."""
    size = (content["imageHeight"], content["imageWidth"])
    label = np.full(size, nothing, np.uint8)
    y, x = np.indices(size) + 0.5
    values = {name: value for value, name in enumerate(COLOURS.names)} | {"void": IGNORE}
    for shape in content["shapes"]:
        inside = Outline(shape["points"], closed=False).contains_points(np.stack([x.ravel(), y.ravel()], axis=1))
        label[inside.reshape(size)] = values[shape["label"]]
    return label


def fitting(classes):
    """The maps, with values of these classes."""
    for name, label in MAPS.items():
        yield name, np.where((label >= classes.num_classes) & (label != IGNORE), 1, label).astype(np.uint8)


def store(path, content):
    files.write_json(path, content)
    return path


@both_kinds
def test_labelme_gives_the_same_pixels(classes, tmp_path):
    for name, label in fitting(classes):
        content, drawn, iou = review.labelme(label, classes, "one.png")
        assert np.array_equal(drawn, label), name
        assert (iou == 1).all(), name
        path = store(tmp_path / "one.json", content)
        assert np.array_equal(review.read_labelme(path, classes, label.shape), label), name
        if classes is COLOURS:
            assert np.array_equal(read_by_outlines(files.read_json(path), 0), label), name


def test_a_labelme_file_has_what_labelme_asks_for(tmp_path):
    content = files.read_json(store(tmp_path / "one.json", review.labelme(RING, COLOURS, "one.png")[0]))
    keys = {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"}
    assert content.keys() == keys
    assert (content["imagePath"], content["imageData"], content["imageHeight"]) == ("one.png", None, 7)
    # The background has a shape in the hole alone; the rest of it is what no shape covers.
    names = [shape["label"] for shape in content["shapes"]]
    assert names[:2] == ["red", "background"]
    assert sorted(names[2:]) == ["blue", "blue", "green", "void"]
    for shape in content["shapes"]:
        assert shape["shape_type"] == "polygon"
        assert all(len(point) == 2 and isinstance(point[0], int | float) for point in shape["points"])


def test_simplified_polygons_say_what_comes_back(tmp_path):
    label = storybook.draw(1003).label
    classes = class_files.read(storybook.CLASS_FILE)
    content, drawn, iou = review.labelme(label, classes, "one.png", simplify=1.0)
    assert 0 < (drawn != label).sum() < 0.01 * label.size
    assert review.LEAST_IOU <= iou.min() < 1
    assert np.array_equal(review.read_labelme(store(tmp_path / "a.json", content), classes, label.shape), drawn)


def shape(name, points, kind="polygon", **more):
    return {"label": name, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def labelme_file(path, shapes, size=(4, 6)):
    return store(path, {"version": "4.5.6", "shapes": shapes, "imageHeight": size[0], "imageWidth": size[1]})


def test_a_later_shape_covers_an_earlier_one(tmp_path):
    red, green = shape("red", [[0, 0], [4, 0], [4, 4], [0, 4]]), shape("Green ", [[3, 1], [6, 3]], "rectangle")
    path = labelme_file(tmp_path / "a.json", [red, green])
    assert review.read_labelme(path, COLOURS, (4, 6)).tolist() == [
        [1, 1, 1, 1, 0, 0], [1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0],
    ]  # fmt: skip
    labelme_file(path, [green, red])
    assert review.read_labelme(path, COLOURS, (4, 6))[1].tolist() == [1, 1, 1, 1, 2, 2]


def encoded(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_a_shape_may_be_a_mask(tmp_path):
    part = encoded(np.array([[255, 0], [255, 255]], np.uint8))
    path = labelme_file(tmp_path / "a.json", [shape("blue", [[3, 1], [5, 3]], "mask", mask=part)])
    assert review.read_labelme(path, COLOURS, (4, 6)).tolist()[1:3] == [[0, 0, 0, 3, 0, 0], [0, 0, 0, 3, 3, 0]]


BAD_SHAPES = {
    "no class": (
        shape("gren", [[0, 0], [4, 0], [4, 4]]),
        "shape 1 is called 'gren', which is no class; did you mean 'green'",
    ),
    "no text": (shape(7, [[0, 0], [4, 0], [4, 4]]), "has 7 for a name"),
    "two corners": (shape("red", [[0, 0], [4, 0], [0, 0]]), "2 different corners, not three or more"),
    "no corners": (shape("red", []), "has no corners"),
    "no numbers": (shape("red", [[0, 0], [4, 0], [4, "a"]]), "not pairs of numbers"),
    "triples": (shape("red", [[0, 0, 1], [4, 0, 1]]), "not pairs of numbers"),
    "outside": (shape("red", [[0, 0], [9.5, 0], [4, 4]]), r"corner at 9.5, 0, outside the image of 6 x 4"),
    "nan": (shape("red", [[0, 0], [None, 0], [4, 4]]), "outside the image"),
    "crosses itself": (shape("red", [[0, 0], [4, 4], [4, 0], [0, 4]]), "crosses itself near"),
    "thin": (shape("red", [[0.1, 0.1], [0.2, 0.1], [0.2, 0.2]]), "covers the centre of no pixel"),
    "a line": (shape("red", [[0, 0], [4, 0]], "line"), "is a line, and not a polygon"),
    "three of a rectangle": (shape("red", [[0, 0], [4, 0], [4, 4]], "rectangle"), "other than two corners"),
    "a broken mask": (shape("red", [[0, 0], [1, 1]], "mask", mask="!"), "mask that cannot be read"),
    "no mask": (shape("red", [[0, 0], [1, 1]], "mask"), "mask that cannot be read"),
    "a mask outside": (
        shape("red", [[5, 0], [7, 2]], "mask", mask=encoded(np.full((2, 2), 255, np.uint8))),
        "mask that reaches over the image's border",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "says"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_a_bad_shape_is_told_with_its_file(bad, says, tmp_path):
    path = labelme_file(tmp_path / "a.json", [bad])
    with pytest.raises(ValueError, match=says) as error:
        review.read_labelme(path, COLOURS, (4, 6))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"shapes": 3}', '{"shapes": [3], "imageHeight": 4, "imageWidth": 6}', "{"])
def test_what_is_no_labelme_file_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is (no file of labelme's|not readable JSON).*save it again"):
        review.read_labelme(tmp_path / "a.json", COLOURS, (4, 6))


# COCO


@both_kinds
def test_coco_opens_with_pycocotools_and_holds_each_region_once(classes, tmp_path):
    labels = {f"{name}.png": label for name, label in fitting(classes) if label.size < 2000}
    opened = COCO(store(tmp_path / "coco.json", review.coco_json(labels, classes)))
    nothing = IGNORE if classes.background is None else 0
    names = {name: value for value, name in enumerate(classes.names)} | {"void": IGNORE}
    assert [image["file_name"] for image in opened.dataset["images"]] == list(labels)
    for image in opened.dataset["images"]:
        label = labels[image["file_name"]]
        drawn, count = np.full(label.shape, nothing, np.uint8), np.zeros(label.shape, int)
        annotations = opened.loadAnns(opened.getAnnIds(imgIds=[image["id"]]))
        for annotation in annotations:
            mask = opened.annToMask(annotation).astype(bool)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (annotation["area"], annotation["bbox"]) == (mask.sum(), box)
            value = names[opened.loadCats([annotation["category_id"]])[0]["name"]]
            assert annotation["iscrowd"] == (value == IGNORE)
            drawn[mask] = value
            count += mask
        assert np.array_equal(drawn, label)
        assert np.array_equal(count, label != nothing)
        assert len(annotations) == len(set(parts(label)[label != nothing].tolist()))


def test_categories_count_from_one():
    names = {
        COLOURS: [(1, "red"), (2, "green"), (3, "blue"), (4, "void")],
        THINGS: [(1, "sky"), (2, "road"), (3, "void")],
    }
    for classes, expected in names.items():
        content = review.coco_json({"a.png": np.zeros((2, 2), np.uint8)}, classes)
        assert [(category["id"], category["name"]) for category in content["categories"]] == expected


def test_void_takes_another_name_where_it_is_a_class():
    classes = Classes(("background", "void"), ((), ("void",)), ((0, 0, 0), (1, 1, 1)))
    assert review.void_name(classes) == "ignore"
    content = review.labelme(np.array([[1, IGNORE]], np.uint8), classes, "a.png")[0]
    assert [shape["label"] for shape in content["shapes"]] == ["void", "ignore"]


# PNG


def save_png(path, array, mode=None, palette=None):
    image = Image.fromarray(array, mode) if mode is None else Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path)
    return path


def test_a_png_is_read_by_its_colours_if_a_program_has_changed_the_palette(tmp_path):
    label = noise(3)
    files.write_label(tmp_path / "a.png", label, COLOURS.colours)
    ours = np.array(Image.open(tmp_path / "a.png").getpalette()).reshape(256, 3)
    assert np.array_equal(review.read_png(tmp_path / "a.png", COLOURS, label.shape), label)
    save_png(tmp_path / "b.png", ours[label].astype(np.uint8))  # as RGB
    save_png(tmp_path / "c.png", label)  # grey
    used, packed = np.unique(label, return_inverse=True)  # only the colours that occur, as a program may save it
    save_png(tmp_path / "d.png", (len(used) - 1 - packed).reshape(label.shape).astype(np.uint8), None, ours[used][::-1])
    alpha = np.dstack([ours[label].astype(np.uint8), np.full(label.shape, 255, np.uint8)])
    save_png(tmp_path / "e.png", alpha)
    for name in "bcde":
        assert np.array_equal(review.read_png(tmp_path / f"{name}.png", COLOURS, label.shape), label), name


def test_a_png_that_tells_no_classes_is_refused(tmp_path):
    label = noise(3)
    smooth = np.array(COLOURS.colours + ((7, 7, 7),), np.uint8)[np.minimum(label, 3)]
    smooth[2, 5] = (7, 8, 9)
    clear = np.dstack([smooth, np.zeros(label.shape, np.uint8)])
    cases = {
        r"1 pixels of a colour that is no class's, e.g. \(7, 8, 9\) at 5, 2": save_png(tmp_path / "a.png", smooth),
        "transparent": save_png(tmp_path / "b.png", clear),
        r"values \[9\], not classes 0 to 3 or 255": save_png(tmp_path / "c.png", np.full((9, 12), 9, np.uint8)),
        r"d.png is \(3, 3\), the photo \(9, 12\)": save_png(tmp_path / "d.png", np.zeros((3, 3), np.uint8)),
        "is PNG with mode I;16": save_png(tmp_path / "e.png", label.astype(np.uint16)),
        "f.png is missing": tmp_path / "f.png",
    }
    Image.fromarray(smooth).save(tmp_path / "g.jpg")
    cases["is JPEG"] = tmp_path / "g.jpg"
    (tmp_path / "h.png").write_bytes(b"")
    cases["not a readable PNG"] = tmp_path / "h.png"
    for says, path in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            review.read_png(path, COLOURS, label.shape)


# The folder


def make_samples(count=3):
    drawn = {f"squares_{number}": colour_squares(number) for number in range(count)}
    samples = [Sample(id, lambda image=each.image: image) for id, each in drawn.items()]
    labels = {id: each.truth.copy() for id, each in drawn.items()}
    for label in labels.values():
        label[3:6, 2:9] = IGNORE
        label[8, 8] = 0
    return samples, labels


@pytest.fixture
def written(tmp_path):
    """A folder that was written, its labels and the index."""
    samples, labels = make_samples()
    trusts = {sample.id: {"trust": 0.1 * k, "agreement": 0.1 * k} for k, sample in enumerate(samples)}
    index = review.write(tmp_path / "out", samples, lambda s: labels[s.id], COLOURS, trusts=trusts, source="run/labels")
    return tmp_path / "out", labels, index


def test_what_is_written_comes_back_untouched(written):
    folder, labels, index = written
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    each = [f"{kind}/squares_{k}.{suffix}" for kind, suffix in
            (("images", "json"), ("images", "png"), ("labels", "png")) for k in range(3)]  # fmt: skip
    assert names == sorted([*each, "classes.yaml", "coco.json", "index.csv", "index.json", "names.txt"])
    for forms in (None, ["png"], ["coco"], ["labelme"]):
        reviewed, classes = review.read(folder, forms=forms)
        assert classes == COLOURS
        assert [(each.id, each.changed, each.trust) for each in reviewed] == [
            (entry["id"], (), entry["trust"]) for entry in index["images"]
        ]
        assert all(np.array_equal(each.label, labels[each.id]) for each in reviewed)
    table = pd.read_csv(folder / "index.csv")
    assert table["id"].tolist() == [entry["id"] for entry in index["images"]]
    assert table["sha256_coco"].tolist() == [entry["sha256"]["coco"] for entry in index["images"]]
    assert table["sha256_coco"].tolist() == table["sha256_labelme"].tolist()  # outlines are exact
    assert len(set(table["sha256_coco"])) == 3
    assert (folder / "names.txt").read_text().split() == [*COLOURS.names, "void"]


def change_png(folder, id, new):
    files.write_label(folder / "labels" / f"{id}.png", new, COLOURS.colours)


def change_labelme(folder, id, new):
    files.write_json(folder / "images" / f"{id}.json", review.labelme(new, COLOURS, f"{id}.png")[0])


def change_coco(folder, id, new):
    """As a tool does it: other numbers, another order, polygons or plain run lengths for text."""
    content = files.read_json(folder / "coco.json")
    image = next(image for image in content["images"] if id in image["file_name"])
    other = review.coco_json({image["file_name"]: new}, COLOURS)
    kept = [annotation for annotation in content["annotations"] if annotation["image_id"] != image["id"]]
    names = {category["id"]: category["name"] for category in other["categories"]}
    content["categories"] = [{"id": 70 + k, "name": name} for k, name in enumerate(reversed(names.values()))]
    numbers = {category["name"]: category["id"] for category in content["categories"]}
    added = [
        annotation | {"image_id": image["id"], "id": 900 + annotation["id"]} for annotation in other["annotations"]
    ]
    content["annotations"] = [
        annotation | {"category_id": numbers[names[annotation["category_id"]]]} for annotation in (added + kept)[::-1]
    ]
    (folder / "coco.json").write_text(json.dumps(content))


CHANGE = {"png": change_png, "coco": change_coco, "labelme": change_labelme}


@pytest.mark.parametrize("form", CHANGE)
def test_a_change_in_any_form_is_found_and_comes_back(form, written):
    folder, labels, _ = written
    new = np.roll(labels["squares_1"], 3, axis=1)
    CHANGE[form](folder, "squares_1", new)
    reviewed, _ = review.read(folder)
    assert [each.changed for each in reviewed] == [(), (form,), ()]
    assert np.array_equal(reviewed[1].label, new)
    assert np.array_equal(reviewed[2].label, labels["squares_2"])


@pytest.mark.parametrize("form", CHANGE)
def test_saved_again_is_not_changed(form, written):
    folder, labels, _ = written
    CHANGE[form](folder, "squares_1", labels["squares_1"])
    assert [each.changed for each in review.read(folder)[0]] == [(), (), ()]


def test_changed_twice_must_be_the_same(written):
    folder, labels, _ = written
    new = np.roll(labels["squares_1"], 3, axis=1)
    change_png(folder, "squares_1", new)
    change_labelme(folder, "squares_1", new)
    assert review.read(folder)[0][1].changed == ("png", "labelme")
    change_coco(folder, "squares_1", np.roll(new, 1))
    with pytest.raises(ValueError, match="squares_1 was changed as png and as coco and as labelme.*--form png"):
        review.read(folder)
    assert np.array_equal(review.read(folder, forms=["coco"])[0][1].label, np.roll(new, 1))


def test_coco_may_come_back_with_polygons_and_plain_run_lengths(written):
    folder, labels, _ = written
    content = files.read_json(folder / "coco.json")
    first = content["annotations"][0]
    mask = Masks((first["segmentation"],), (16, 24), np.zeros(1), np.zeros(1))
    first["segmentation"] = {"size": [16, 24], "counts": mask.runs[0].tolist()}
    red = content["categories"][0]["id"]
    new = {"id": 99, "image_id": 2, "category_id": red, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], "iscrowd": 0}
    content["annotations"].append(new | {"area": 4, "bbox": [0, 0, 2, 2]})
    files.write_json(folder / "coco.json", content)
    reviewed, _ = review.read(folder)
    assert [each.changed for each in reviewed] == [(), ("coco",), ()]
    expected = labels["squares_1"].copy()
    expected[:2, :2] = 1
    assert np.array_equal(reviewed[1].label, expected)


def edit(path, change):
    content = files.read_json(path)
    change(content)
    path.write_text(json.dumps(content))


def damage_coco(change):
    return lambda folder: edit(folder / "coco.json", change)


def put(annotation=0, **values):
    return lambda content: content["annotations"][annotation].update(values)


DAMAGE = {
    "no index": (lambda f: (f / "index.json").unlink(), "no index.json: give the folder"),
    "bad index": (lambda f: (f / "index.json").write_text("{}"), "not as it was written"),
    "no photo": (lambda f: (f / "images/squares_1.png").unlink(), "squares_1.png is missing: put the photo back"),
    "broken photo": (lambda f: (f / "images/squares_1.png").write_bytes(b"x"), "not a readable image"),
    "photo of another size": (
        lambda f: files.write_image(f / "images/squares_1.png", np.zeros((3, 4, 3), np.uint8)),
        r"squares_1.png is \(3, 4\).*written as \(16, 24\)",
    ),
    "no png": (lambda f: (f / "labels/squares_2.png").unlink(), "squares_2.png is missing: put it back"),
    "empty png": (lambda f: (f / "labels/squares_2.png").write_bytes(b""), "squares_2.png is not a readable PNG"),
    "no labelme": (lambda f: (f / "images/squares_0.json").unlink(), "squares_0.json is missing: save the image"),
    "empty labelme": (lambda f: (f / "images/squares_0.json").write_text(""), "squares_0.json is not readable JSON"),
    "labelme of another size": (
        lambda f: edit(f / "images/squares_0.json", lambda c: c.update(imageHeight=99)),
        r"squares_0.json is of an image of \(99, 24\), the photo is \(16, 24\)",
    ),
    "labelme of another image": (
        lambda f: shutil.copy(f / "images/squares_0.json", f / "images/other.json"),
        "other.json is of an image that was not",
    ),
    "no coco": (lambda f: (f / "coco.json").unlink(), "coco.json is missing"),
    "empty coco": (lambda f: (f / "coco.json").write_text(""), "coco.json is not readable JSON"),
    "no coco's form": (lambda f: (f / "coco.json").write_text("{}"), "not COCO's json of instances"),
    "an image less": (damage_coco(lambda c: c["images"].pop()), "annotations of images that it does not list"),
    "an empty image less": (
        damage_coco(lambda c: c.update(images=c["images"][:2], annotations=[])), "coco.json lists squares_2 no more"
    ),
    "an image twice": (
        damage_coco(lambda c: c["images"].append(c["images"][0] | {"id": 9})),
        "squares_0 more than once",
    ),
    "an image more": (
        damage_coco(lambda c: c["images"].append(c["images"][0] | {"id": 9, "file_name": "x.png"})), "lists 'x', which"
    ),
    "coco of another size": (damage_coco(lambda c: c["images"][0].update(height=9)), r"squares_0 the size \(9, 24\)"),
    "run lengths damaged": (
        damage_coco(lambda c: c["annotations"][0]["segmentation"].update(counts="abc")), "annotation 1.*run length"
    ),
    "run lengths cut off": (
        damage_coco(lambda c: c["annotations"][0]["segmentation"].update(
            counts=c["annotations"][0]["segmentation"]["counts"][:-1])), "annotation 1: run lengths"
    ),
    "run lengths of another size": (
        damage_coco(lambda c: c["annotations"][0]["segmentation"].update(size=[24, 16])),
        r"run lengths of size \(24, 16\)",
    ),
    "coco, two corners": (damage_coco(put(segmentation=[[0, 0, 1, 1]])), "2 different corners"),
    "coco, odd numbers": (damage_coco(put(segmentation=[[0, 0, 1, 1, 2, 2, 3]])), "no list of x, y"),
    "coco, no polygon": (damage_coco(put(segmentation=[])), "annotation 1: it has no polygon"),
    "coco, outside": (
        damage_coco(put(segmentation=[[0, 0, 30, 0, 30, 9]])),
        "corner at 30, 0, outside the image of 24 x 16",
    ),
    "coco, crosses": (damage_coco(put(segmentation=[[0, 0, 4, 4, 4, 0, 0, 4]])), "annotation 1 crosses itself"),
    "coco, category unknown": (damage_coco(put(category_id=77)), "its category 77 stands for no class"),
    "coco, category no number": (damage_coco(put(category_id=[1])), "annotation 1"),
    "coco, category of no class": (
        damage_coco(lambda c: [category.update(name="rad") for category in c["categories"]]),
        "is called 'rad', which is no class; did you mean 'red'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_named_before_anything_is_written(damage, says, written, tmp_path, capsys):
    folder, labels, _ = written
    change_png(folder, "squares_1", np.roll(labels["squares_1"], 3, axis=1))
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        review.read(folder)
    assert review.main(["--read", str(folder), "--to", str(tmp_path / "labels")]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()


def test_all_that_is_to_mend_is_told_at_once(written):
    folder, _, _ = written
    (folder / "labels/squares_0.png").unlink()
    (folder / "images/squares_1.json").write_text("")
    with pytest.raises(
        ValueError, match=r"(?s)2 things to mend, and nothing was written.*squares_0\.png.*squares_1\.json"
    ):
        review.read(folder)
    assert len(review.read(folder, forms=["coco"])[0]) == 3


def test_a_persons_work_is_not_overwritten(written, tmp_path):
    folder, labels, _ = written
    samples, _ = make_samples()
    with pytest.raises(FileExistsError, match="may hold a person's work: name a new one"):
        review.write(folder, samples, lambda s: labels[s.id], COLOURS)
    reviewed, classes = review.read(folder)
    review.save(tmp_path / "labels", reviewed, classes)
    review.save(tmp_path / "labels", reviewed, classes)  # the same again does no harm
    files.write_label(tmp_path / "labels" / "squares_1.png", np.ones((16, 24), np.uint8))
    with pytest.raises(FileExistsError, match="other label maps of 1 of these images, e.g. squares_1.png"):
        review.save(tmp_path / "labels", reviewed, classes)
    review.save(tmp_path / "labels", reviewed, classes, replace=True)
    assert np.array_equal(files.read_label(tmp_path / "labels" / "squares_1.png"), labels["squares_1"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"forms": ["voc"]}, "no form 'voc': right are png, coco, labelme"),
        ({"forms": []}, "right are png, coco, labelme"),
        ({"simplify": -1}, "simplify=-1 is a tolerance"),
        ({"samples": []}, "no image to write"),
        ({"label_of": lambda s: np.zeros((3, 3), np.uint8)}, r"squares_0 is \(3, 3\), the photo \(16, 24\)"),
        ({"label_of": lambda s: np.full((16, 24), 9, np.uint8)}, r"values \[9\], not classes 0 to 3"),
    ],
)
def test_what_cannot_be_written_is_refused(change, says, tmp_path):
    samples, labels = make_samples()
    given = {"samples": samples, "label_of": lambda s: labels[s.id]} | change
    with pytest.raises(ValueError, match=says):
        review.write(tmp_path / "out", classes=COLOURS, **given)
    assert not (tmp_path / "out" / "index.json").exists()


def test_photos_are_written_upright_and_else_copied(tmp_path):
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 255, (10, 20, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[files.ORIENTATION] = 6
    (tmp_path / "photos").mkdir()
    pixels.save(tmp_path / "photos" / "straight.JPG", "JPEG")
    pixels.save(tmp_path / "photos" / "turned.jpg", exif=turned)
    pixels.save(tmp_path / "photos" / "other.bmp")
    data = datasets.load("folder", root=tmp_path / "photos", classes=["cat"])
    labels = {s.id: np.zeros(s.image().shape[:2], np.uint8) for s in data.unlabelled}
    review.write(tmp_path / "out", data.unlabelled, lambda s: labels[s.id], data.classes)
    straight = tmp_path / "out" / "images" / "straight.JPG"
    assert straight.read_bytes() == (tmp_path / "photos" / "straight.JPG").read_bytes()
    assert np.array_equal(files.read_image(tmp_path / "out" / "images" / "other.png"), np.array(pixels))
    upright = tmp_path / "out" / "images" / "turned.png"
    assert np.array_equal(files.read_image(upright), files.read_image(tmp_path / "photos" / "turned.jpg"))
    assert Image.open(upright).size == (10, 20)
    assert len(review.read(tmp_path / "out")[0]) == 3


# From a run and back into one


@pytest.fixture(params=["squares", "storybook"])
def run(request, tmp_path, monkeypatch, tiny_root, world):
    """A run on a folder of photos, with labels of three labellers: those of the first image disagree."""
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    if request.param == "squares":
        root, classes = tiny_root, ["red", "green", "blue"]
    else:
        root, classes = world / "images", str(storybook.CLASS_FILE)
    options = {"root": str(root), "classes": classes}
    data = datasets.load("folder", **options)
    folder = tmp_path / "results" / "mine"
    truths = {}
    for number, sample in enumerate(data.unlabelled):
        if request.param == "squares":
            truths[sample.id] = colour_squares(number).truth
        else:
            truths[sample.id] = files.read_label(world / "labels" / f"{sample.id}.png")
        wrong = np.roll(truths[sample.id], len(data.unlabelled) - number, axis=1)
        for name in ("labels_zero_shot", "labels_boxes"):
            label = wrong if name == "labels_zero_shot" else truths[sample.id]
            files.write_label(folder / name / f"{sample.id}.png", label, data.classes.colours)
    for name in ("labels_zero_shot", "labels_boxes"):
        files.write_json(folder / name / "manifest.json", {"state": "done"})
    defaults = 'dataset = "storybook"\ndataset_options = {}\nlabelled = 0\nseed = 0\nencoder = "clip"\n'
    injected = f'dataset = "folder"\ndataset_options = {options!r}'
    cells = [
        {"cell_type": "code", "metadata": {"tags": [tag]}, "source": source}
        for tag, source in (("parameters", defaults), ("injected-parameters", injected))
    ]
    files.write_json(folder / "notebooks" / "02_zero_shot_labels.ipynb", {"cells": cells})
    return folder, data, truths, options


def test_corrected_labels_become_labelled_images(run, tmp_path, capsys):
    folder, data, truths, options = run
    target, back = tmp_path / "review", tmp_path / "corrected"
    assert review.main(["mine", "--least", "3", "--to", str(target)]) == 0
    said = capsys.readouterr().out
    assert f"3 of {len(data.unlabelled)} images with their labels_zero_shot" in said
    assert f"labelme {target}/images" in said
    reviewed, classes = review.read(target)
    assert classes == data.classes
    agreed = []
    for sample in data.unlabelled:
        maps = [files.read_label(folder / name / f"{sample.id}.png") for name in ("labels_zero_shot", "labels_boxes")]
        agreed.append(trust.agreement(maps, classes.num_classes)[0, 1])
    least = [data.unlabelled[k].id for k in np.argsort(agreed, kind="stable")[:3]]
    assert [each.id for each in reviewed] == least
    assert [each.trust["trust"] for each in reviewed] == sorted(agreed)[:3]

    assert review.main(["--read", str(target), "--to", str(back)]) == 1  # nobody has looked yet
    assert "nobody has changed a label" in capsys.readouterr().err

    names = {form: id for form, id in zip(CHANGE, least, strict=True)}
    for form, id in names.items():
        if form == "png":
            files.write_label(target / "labels" / f"{id}.png", truths[id], classes.colours)
        if form == "labelme":
            content = review.labelme(truths[id], classes, f"{id}.png")[0]
            files.write_json(target / "images" / f"{id}.json", content)
    assert review.main(["--read", str(target), "--to", str(back)]) == 0
    said = capsys.readouterr().out
    assert "3 images, 2 changed (png 1, labelme 1), 1 untouched" in said
    assert f"-p dataset_options '{{labels: {back}}}'" in said
    given = options | {"classes": str(target / "classes.yaml")}
    learnt = datasets.load("folder", **given, labels=str(back), labelled=2)
    assert learnt.classes == data.classes
    assert {sample.id for sample in learnt.labelled} == {names["png"], names["labelme"]}
    assert all(np.array_equal(sample.truth(), truths[sample.id]) for sample in learnt.labelled)
    assert len(learnt.unlabelled) == len(data.unlabelled) - 2

    assert review.main(["--read", str(target), "--to", str(back), "--untouched"]) == 0
    assert len(datasets.load("folder", **given, labels=str(back)).labelled) == 3


def test_the_json_is_read_by_the_data_set_as_it_is_read_here(run, tmp_path):
    folder, data, _, options = run
    labels = {s.id: files.read_label(folder / "labels_zero_shot" / f"{s.id}.png") for s in data.unlabelled}
    for label in labels.values():
        label[5:9, 2:12] = IGNORE
    review.write(tmp_path / "out", data.unlabelled, lambda s: labels[s.id], data.classes, forms=["coco"])
    with pytest.warns(UserWarning, match="void"):  # it counts void as no class, and paints it all the same
        again = datasets.load("folder", **options, labels=str(tmp_path / "out" / "coco.json"))
    assert len(again.labelled) == len(labels)
    assert all(np.array_equal(sample.truth(), labels[sample.id]) for sample in again.labelled)


def test_signals_without_another_labeller(tmp_path):
    """Stability and margin by hand: the second image's only mask is less stable, its margin smaller."""
    classes = Classes(("background", "red", "green"), ((), ("red",), ("green",)), COLOURS.colours[:3])
    samples = [Sample("a", lambda: None), Sample("b", lambda: None)]
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2] = True
    for sample, stability, embedding in zip(samples, (0.9, 0.5), ([1.0, 0.0], [1.0, 0.8]), strict=True):
        files.write_masks(tmp_path / "masks" / f"{sample.id}.json", Masks.from_dense(mask, [1.0], [stability]))
        files.write_embeddings(tmp_path / "segments" / f"{sample.id}.safetensors", torch.tensor([embedding]))
        files.write_label(tmp_path / "labels_zero_shot" / f"{sample.id}.png", mask[0].astype(np.uint8))

    class Encoder:
        def class_embeddings(self, classes):
            return torch.eye(2), torch.tensor([1, 2])

    found = review.signals(tmp_path, "labels_zero_shot", samples, classes, Encoder)
    assert found["mask stability"] == pytest.approx([0.9, 0.5])
    assert found["CLIP margin"] == pytest.approx([1.0, 0.2 / np.hypot(1, 0.8)])
    chosen, trusts = review.least_trusted(tmp_path, "labels_zero_shot", samples, classes, 1, Encoder)
    assert [sample.id for sample in chosen] == ["b"]
    assert trusts["b"]["trust"] == 0
    # Enhanced labels are a witness as soon as there are some.
    for sample, value in zip(samples, (2, 1), strict=True):
        label = (value * mask[0]).astype(np.uint8)
        files.write_label(tmp_path / "labels_enhanced" / f"{sample.id}.png", label)
    files.write_json(tmp_path / "labels_enhanced" / "manifest.json", {})
    assert review.signals(tmp_path, "labels_zero_shot", samples, classes) == {"agreement": [1 / 3, 1.0]}


def test_parameters_of_a_run_are_those_of_its_executed_notebook(run, tmp_path):
    folder, _, _, options = run
    values = review.parameters(folder, {"labelled": "5", "dataset_options": "{val: 2}"})
    assert values == {
        "dataset": "folder", "dataset_options": options | {"val": 2}, "labelled": 5, "seed": 0, "encoder": "clip"
    }  # fmt: skip
    assert review.parameters(tmp_path, {})["dataset"] == "storybook"  # never executed by run.py: the notebook's own
    with pytest.raises(ValueError, match="no parameter 'sed'; did you mean 'seed'"):
        review.parameters(folder, {"sed": "1"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody"], "there is no .*nobody: run notebooks/run.py nobody first"),
        (["mine", "--labels", "labels_enhanced"], "the run has labels_boxes, labels_zero_shot"),
        (["mine", "--least", "0"], "0 images are to be written"),
        (["mine", "-p", "seed", "[1"], "not readable YAML"),
        (["mine", "-p", "dataset", "foldr"], "no data set 'foldr'"),
    ],
)
@pytest.mark.parametrize("run", ["squares"], indirect=True)
def test_the_command_says_what_is_wrong(run, arguments, says, tmp_path, capsys):
    assert review.main([*arguments, "--to", str(tmp_path / "out")]) == 1
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["mine", "--read", "x"],
        ["--read", "x", "--least", "3"],
        ["--read", "x", "-p", "a", "b"],
        ["mine", "--replace"],
    ],
)
def test_the_command_is_asked_for_one_thing(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        review.main([*arguments, "--to", "y"])
    assert stopped.value.code == 2
    assert "error" in capsys.readouterr().err
