"""Labels for annotation tools and back: to the pixel, or with an error that names the file and writes nothing."""

import base64
import dataclasses
import io
import re
import shlex
import shutil
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools.coco import COCO

from conftest import COLOURS, colour_squares
from plg_utils import class_files, datasets, files, review, store, trust
from plg_utils.datasets import _formats, _instances, storybook
from plg_utils.generators import few_shot
from plg_utils.records import IGNORE, SPLITS, Classes, Dataset, Masks, Sample

THINGS = Classes(("sky", "road"), (("the sky",), ("a road",)), ((10, 20, 30), (200, 100, 0)), None)  # no background
RING = np.zeros((7, 7), np.uint8)  # with a region in a hole, and regions that touch at corners only
RING[1:6, 1:6], RING[2:5, 2:5], RING[3, 3], RING[6, 0] = 1, 0, 2, IGNORE
RING[[5, 6], [6, 5]] = 3


def noise(seed, size=(9, 12)):
    return np.random.default_rng(seed).choice([0, 1, 2, IGNORE], size, p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)


MAPS = {
    "ring": RING,
    **{f"noise {seed}": noise(seed) for seed in range(4)},
    "a pixel": np.array([[1]], np.uint8),
    "a column": np.array([[1], [0], [1]], np.uint8),
    "all void": np.full((3, 4), IGNORE, np.uint8),
    "checks": (np.indices((6, 7)).sum(axis=0) % 2).astype(np.uint8),
    "scene": storybook.draw(1003).label % 4,
}


@pytest.fixture(params=[COLOURS, THINGS], ids=["background", "no background"])
def kind(request):
    """Classes, the value of pixels without annotation, the values of the names, and maps with values of these."""
    classes = request.param
    names = {name: value for value, name in enumerate(classes.names)} | {"void": IGNORE}
    maps = {
        name: np.where((label >= classes.num_classes) & (label != IGNORE), 1, label).astype(np.uint8)
        for name, label in MAPS.items()
    }
    return classes, IGNORE if classes.background is None else 0, names, maps


def test_labelme_gives_the_same_pixels(kind, tmp_path):
    """By labelme's own rule (utils/shape.py, shapes_to_label): the second point of a mask is its last pixel."""
    classes, nothing, names, maps = kind
    for name, label in maps.items():
        files.write_json(tmp_path / "one.json", review.labelme_json(label, classes, "one.png"))
        painted = np.full(label.shape, nothing, np.uint8)
        for shape in files.read_json(tmp_path / "one.json")["shapes"]:
            (x1, y1), (x2, y2) = shape["points"]
            mask = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
            assert mask.shape == (y2 + 1 - y1, x2 + 1 - x1)
            painted[y1 : y2 + 1, x1 : x2 + 1][mask] = names[shape["label"]]
        assert np.array_equal(painted, label), name


def test_coco_opens_with_pycocotools_and_holds_each_region_once(kind, tmp_path):
    classes, nothing, names, maps = kind
    files.write_json(tmp_path / "coco.json", review.coco_json(maps, classes))
    opened = COCO(tmp_path / "coco.json")
    assert [image["file_name"] for image in opened.dataset["images"]] == list(maps)
    assert [row["id"] for row in opened.dataset["categories"]] == list(range(1, len(classes.foreground) + 2))
    for image, label in zip(opened.dataset["images"], maps.values(), strict=True):
        drawn, count = np.full(label.shape, nothing, np.uint8), np.zeros(label.shape, int)
        for annotation in opened.loadAnns(opened.getAnnIds(imgIds=[image["id"]])):
            mask = opened.annToMask(annotation).astype(bool)
            value = names[opened.loadCats([annotation["category_id"]])[0]["name"]]
            assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), value == IGNORE)
            drawn[mask] = value
            count += mask
        assert np.array_equal(drawn, label) and np.array_equal(count, label != nothing)


# What people draw


def shape(name, points, kind="polygon", **more):
    return {"label": name, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def painted(path, *shapes, size=(4, 6)):
    photo = path.with_suffix(".png").name
    files.write_json(path, {"shapes": shapes, "imageHeight": size[0], "imageWidth": size[1], "imagePath": photo})
    return review._painted(_formats.read_labelme(path), path.stem, COLOURS, size)


def test_shapes_that_a_person_drew(tmp_path):
    red, green = shape("red", [[0, 0], [4, 0], [4, 4], [0, 4]]), shape("Green ", [[6, 3], [3, 1]], "rectangle")
    assert painted(tmp_path / "a.json", red, green).tolist() == [
        [1, 1, 1, 1, 0, 0], [1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0],
    ]  # fmt: skip
    assert painted(tmp_path / "a.json", green, red)[1].tolist() == [1, 1, 1, 1, 2, 2]
    circle = shape("blue", [[3, 2], [3, 3.6]], "circle")
    assert painted(tmp_path / "a.json", circle).tolist() == [
        [0, 0, 3, 3, 0, 0], [0, 3, 3, 3, 3, 0], [0, 3, 3, 3, 3, 0], [0, 0, 3, 3, 0, 0],
    ]  # fmt: skip
    corners = [[2.2, 1.1], [20.7, 3.3], [12.4, 17.8], [9.6, 8.2], [4.1, 15.9]]
    centres = np.indices((20, 24)).reshape(2, -1).T[:, ::-1] + 0.5
    drawn = painted(tmp_path / "a.json", shape("red", corners), size=(20, 24)) == 1
    differ = drawn.ravel() != Outline(corners).contains_points(centres)
    assert differ.sum() <= 4  # pycocotools rounds corners to a fifth of a pixel


WHITE = review.labelme_json(np.ones((2, 2), np.uint8), COLOURS, "a.png")["shapes"][0]["mask"]
BAD_SHAPES = {
    "no class": (shape("gren", [[0, 0], [4, 0], [4, 4]]), "'gren', which is no class: use background, red, green"),
    "two corners": (shape("red", [[0, 0], [4, 0]]), "three corners or more"),
    "outside": (shape("red", [[0, 0], [9.5, 0], [4, 4]]), "a corner is outside the image of 6 x 4"),
    "thin": (shape("red", [[0.1, 0.1], [0.2, 0.1], [0.2, 0.2]]), "shape 1 covers the centre of no pixel: remove it"),
    "a line": (shape("red", [[0, 0], [4, 0]], "line"), "a line has no area; right are polygons"),
    "a broken mask": (shape("red", [[0, 0], [1, 1]], "mask", mask="!"), "annotation 1: .*remove it"),
    "a mask outside": (shape("red", [[5, 0], [6, 1]], "mask", mask=WHITE), "a mask crosses the border"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "says"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_a_bad_shape_is_named_with_its_file(bad, says, tmp_path):
    with pytest.raises(ValueError, match=says) as error:
        painted(tmp_path / "a.json", bad)
    assert f"{tmp_path / 'a.json'}, " in str(error.value)


def test_a_png_with_another_palette_is_refused_and_grey_is_read(tmp_path):
    label = noise(3)
    files.write_label(tmp_path / "a.png", label, COLOURS.colours)
    Image.fromarray(label).save(tmp_path / "grey.png")
    for name in ("a", "grey"):
        assert np.array_equal(_formats.read_png(tmp_path / f"{name}.png", COLOURS, label.shape), label)
    palette = np.array(Image.open(tmp_path / "a.png").getpalette(), np.uint8).reshape(256, 3)
    used, packed = np.unique(label, return_inverse=True)  # only the colours that occur, as a program may save it
    image = Image.fromarray(packed.reshape(label.shape).astype(np.uint8))
    image.putpalette(palette[used[::-1]].tobytes())
    image.save(tmp_path / "packed.png")
    with pytest.raises(ValueError, match=r"packed\.png .*another palette .* save it with the palette unchanged"):
        _formats.read_png(tmp_path / "packed.png", COLOURS, label.shape)


# The folder


def make_samples(count=3):
    drawn = {f"squares_{number}": colour_squares(number) for number in range(count)}
    samples = [Sample(id, lambda image=one.image: image) for id, one in drawn.items()]
    labels = {id: one.truth.copy() for id, one in drawn.items()}
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


def change(folder, form, **new):
    """Write the form again with these labels by id."""
    stems = [entry["id"] for entry in files.read_json(folder / "index.json")["images"]]
    samples = [Sample(id, colour_squares(0).image.copy) for id in stems[::-1]]
    labels = {id: files.read_label(folder / "labels" / f"{id}.png") for id in stems} | new
    with tempfile.TemporaryDirectory() as other:
        review.write(other, samples, lambda sample: labels[sample.id], COLOURS, forms=[form])
        if form == "coco":  # as a tool does it: other ids of the categories, another order
            content = files.read_json(f"{other}/coco.json")
            for key, rows in (("category_id", content["annotations"]), ("id", content["categories"])):
                for row in rows:
                    row[key] += 69
            files.write_json(f"{other}/coco.json", content)
        for name in ("index.json", "index.csv"):
            (Path(other) / name).unlink()
        shutil.copytree(other, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("form", _formats.FORMS)
def test_a_change_in_any_form_comes_back_and_saving_again_is_none(form, tmp_path):
    samples, labels = make_samples()
    trusts = {sample.id: {"trust": 0.1 * k} for k, sample in enumerate(samples)}
    forms = {"png": None, form: None}
    review.write(tmp_path / "out", samples, lambda s: labels[s.id], COLOURS, trusts=trusts, forms=[*forms])
    change(tmp_path / "out", form)
    reviewed, classes = review.read(tmp_path / "out")
    assert classes == COLOURS and [(image.id, image.trust) for image in reviewed] == [*trusts.items()]
    assert [image.changed for image in reviewed] == [(), (), ()]
    assert pd.read_csv(tmp_path / "out" / "index.csv")["id"].tolist() == list(labels)
    assert (tmp_path / "out" / "names.txt").read_text().split() == [*COLOURS.names, "void"]
    new = np.roll(labels["squares_1"], 3, axis=1)
    change(tmp_path / "out", form, squares_1=new)
    reviewed, _ = review.read(tmp_path / "out")
    assert [image.changed for image in reviewed] == [(), (form,), ()]
    for image, label in zip(reviewed, (labels["squares_0"], new, labels["squares_2"]), strict=True):
        np.testing.assert_array_equal(image.label, label)


def test_changes_in_two_forms_must_agree(written):
    folder, labels, _ = written
    new = np.roll(labels["squares_1"], 3, axis=1)
    for form in ("labelme", "png"):
        change(folder, form, squares_1=new)
    assert review.read(folder)[0][1].changed == ("png", "labelme")
    change(folder, "coco", squares_1=np.roll(new, 1))
    with pytest.raises(ValueError, match="squares_1 was changed in png and in coco and in labelme, and they differ"):
        review.read(folder)
    assert np.array_equal(review.read(folder, forms=["coco"])[0][1].label, np.roll(new, 1))


def edit(name, change):
    def damage(folder):
        content = files.read_json(folder / name)
        change(content)
        files.write_json(folder / name, content)

    return damage


def outside(content):
    content["annotations"][0]["segmentation"] = [[0, 0, 99, 0, 99, 9]]


def move(**image):
    return edit("coco.json", lambda content: content["images"].append(content["images"][0] | {"id": 9} | image))


JSON, PNG = "images/squares_0.json", "labels/squares_2.png"
DAMAGE = {
    "no index": (lambda f: (f / "index.json").unlink(), "index.json does not exist.*give a folder"),
    "bad index": (lambda f: (f / "index.json").write_text("{}"), "index.json is not the index that.*restore it"),
    "broken png": (lambda f: (f / PNG).write_bytes(b""), "squares_2.png is not a readable"),
    "png of another size": (lambda f: files.write_label(f / PNG, 0 * RING), r"squares_2.png is of size .7, 7., not"),
    "a copy of a png": (
        lambda f: (f / "labels/squares_0 copy.png").write_bytes(b""),
        "squares_0 copy is not in index.json",
    ),
    "a png of two names": (
        lambda f: (f / "labels/squares_2.PNG").write_bytes((f / PNG).read_bytes()),
        "labels holds two files squares_2, whose names end in other letters: keep one",
    ),
    "no folder of png": (lambda f: (f / "labels").rename(f / "away"), "labels lacks all .png: restore it"),
    "a folder for a json": (lambda f: (f / JSON).unlink() or (f / JSON).mkdir(), "0.json is a folder, not readable"),
    "coco, a list": (edit("coco.json", lambda c: c["annotations"][0].update(category_id=[1])), "1: its category_id is"),
    "no labelme": (lambda f: (f / JSON).unlink(), "images lacks squares_0: restore it"),
    "no labelme's form": (lambda f: (f / JSON).write_text('{"shapes": [3]}'), "0.json is not a file of labelme"),
    "labelme of another size": (
        edit(JSON, lambda c: c.update(imageHeight=9)),
        r"squares_0.json, squares_0: it is.* not as \(16, 24\)",
    ),
    "labelme of another image": (edit(JSON, lambda c: c.update(imagePath="x.png")), "photo x.png: give .* same name"),
    "jsons of other images": (
        lambda f: [(f / f"images/{name}.json").write_bytes((f / JSON).read_bytes()) for name in "zyxwv"],
        "5 problems (?s:.*v is not in index.json.*w is not .*x is not .*y is not .*z is not )",
    ),
    "an image less": (edit("coco.json", lambda c: c["images"].pop()), "annotations of images that it does not list"),
    "an image twice": (move(), "squares_0: it is listed more than once"),
    "an image more": (move(file_name="x.png"), "coco.json, x is not in index.json"),
    "coco of another size": (edit("coco.json", lambda c: c["images"][0].update(height=9)), r"not as \(16, 24\)"),
    "coco, outside": (edit("coco.json", outside), "annotation 1.*not a number in or near the image"),
    "four files": (
        lambda f: [
            (f / f"labels/squares_{k}.png").unlink() or (f / f"images/squares_{k}.json").write_text("") for k in (0, 2)
        ],
        r"4 problems in (?s:.*labels lacks squares_0: restore it.*lacks squares_2.*squares_0\.json.*squares_2\.json)",
    ),
    "coco, no class": (edit("coco.json", lambda c: c["categories"][0].update(name="rad")), "'rad'.*no class"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_named_before_anything_is_written(damage, says, written, tmp_path, capsys):
    folder, labels, _ = written
    change(folder, "png", squares_1=np.roll(labels["squares_1"], 3, axis=1))
    damage(folder)
    assert review.main(["--read", str(folder), "--to", str(tmp_path / "labels")]) == 1
    assert re.search(f"error: (?s:.*){says}", capsys.readouterr().err)
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("other", ["A1", "a\N{COMBINING GRAVE ACCENT}1"])
def test_names_that_are_the_same_on_some_systems_are_refused_before_anything_is_written(other, tmp_path):
    one = "a1" if other == "A1" else "\N{LATIN SMALL LETTER A WITH GRAVE}1"
    samples = [Sample(id, colour_squares(0).image.copy) for id in ("b", one, other)]
    with pytest.raises(ValueError, match=f"{one} and {other} differ only in case or .*: rename a photo, or write one"):
        review.write(tmp_path / "out", samples, lambda sample: colour_squares(0).truth, COLOURS)
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_of_a_form_is_told_and_rectangles_of_labelme_are_not(written, recwarn):
    folder, labels, _ = written
    click = {"id": 99, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": []}
    edit("coco.json", lambda content: content["annotations"].append(click))(folder)
    rectangle = {"label": "red", "points": [[0, 0], [4, 4]], "shape_type": "rectangle"}
    edit(JSON, lambda content: content.update(shapes=[rectangle]))(folder)
    assert review.read(folder)[0][0].changed == ("labelme",)
    said = [str(one.message) for one in recwarn if one.category is UserWarning]
    assert said == [f"{folder / 'coco.json'}: 1 annotations without outline and area are left out"]


def test_maps_of_one_image_alone_are_held_beside_those_that_are_returned(written, monkeypatch):
    hashed, held, sha256 = [], [], review._sha256

    def watched(label):
        hashed.append(weakref.ref(label))
        held.append(sum(one() is not None for one in hashed))
        return sha256(label)

    monkeypatch.setattr(review, "_sha256", watched)
    review.read(written[0])
    assert len(held) == 9 and max(held) <= 2 + 3  # two images are done, the third one has three forms


def test_a_persons_work_is_not_overwritten(written, tmp_path):
    folder, labels, _ = written
    samples, _ = make_samples()
    all_void = Classes(_instances.VOID, (("a",),) * 4, ((0, 0, 0),) * 4)
    for place, given, label, classes, says in (
        (folder, samples, labels, COLOURS, "may hold a person's work: name a new one"),
        (tmp_path / "a", [], labels, COLOURS, "no image to write"),
        (tmp_path / "b", samples, {"squares_0": RING}, COLOURS, r"squares_0 are \(7, 7\), its photo \(16, 24\)"),
        (tmp_path / "c", samples, labels, all_void, "Rename one"),
    ):
        with pytest.raises((FileExistsError, ValueError), match=says):
            review.write(place, given, lambda s, label=label: label[s.id], classes)
    reviewed, classes = review.read(folder)
    review.save(tmp_path / "labels", reviewed, classes)
    review.save(tmp_path / "labels", reviewed, classes)  # the same labels again
    files.write_label(tmp_path / "labels" / "squares_1.png", np.ones((16, 24), np.uint8))
    with pytest.raises(FileExistsError, match="squares_1.png holds other labels: name a new folder"):
        review.save(tmp_path / "labels", reviewed, classes)
    class_files.write_beside(tmp_path / "others", class_files.parse(["green", "red", "blue"]))
    with pytest.raises(FileExistsError, match="classes.yaml has other classes than background, red, green, blue: name"):
        review.save(tmp_path / "others", reviewed, classes)


# From a run and back into one


def make_stage(run, name, data, labels, finish=True):
    """A stage of a run that holds these label maps, id -> (H, W) uint8."""
    stage = store.stage(run / name, parameters={"name": name}, dataset=data)
    samples = [sample for split in SPLITS for sample in getattr(data, split) if sample.id in labels]
    for sample in stage.todo(samples, [".png"]):
        files.write_label(stage.path(sample.id, ".png"), labels[sample.id], data.classes.colours)
    if finish:
        stage.finish()


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_root):
    """A run on a folder of photos, with labels of two labellers, which disagree most on the first images."""
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    options = {"root": str(tiny_root), "classes": ["red", "green", "blue"]}
    data = datasets.load("folder", **options)
    truths = {sample.id: colour_squares(number).truth for number, sample in enumerate(data.unlabelled)}
    wrong = {id: np.roll(truth, len(truths) - k, axis=1) for k, (id, truth) in enumerate(truths.items())}
    folder = tmp_path / "results" / "mine"
    make_stage(folder, "labels_zero_shot", data, wrong)
    make_stage(folder, "labels_boxes", data, truths)
    parameters = {"dataset": "folder", "dataset_options": options, "labelled": 0, "seed": 0, "device": "cpu"}
    parameters |= {"encoder": "clip", "encoder_options": {}}
    files.write_json(folder / "run.json", {"run": "mine", "parameters": parameters})
    return folder, data, truths, options


def test_corrected_labels_become_labelled_images(run, tmp_path, capsys):
    folder, data, truths, options = run
    target, back = tmp_path / "review", tmp_path / "corrected"
    assert review.main(["mine", "--least", "3", "--to", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "3 of 8 images with their labels_zero_shot" in printed
    assert f"labelme {shlex.quote(str(target / 'images'))}" in printed
    reviewed, classes = review.read(target)
    agreed = []
    for sample in data.unlabelled:
        maps = [files.read_label(folder / name / f"{sample.id}.png") for name in ("labels_zero_shot", "labels_boxes")]
        agreed.append(trust.agreement(maps, classes.num_classes)[0, 1])
    least = [data.unlabelled[k].id for k in np.argsort(agreed, kind="stable")[:3]]
    assert [image.id for image in reviewed] == least
    assert [image.trust["trust"] for image in reviewed] == sorted(agreed)[:3]

    assert review.main(["--read", str(target), "--to", str(back)]) == 1  # no one has corrected anything
    assert "no label" in capsys.readouterr().err
    files.write_label(target / "labels" / f"{least[0]}.png", truths[least[0]], classes.colours)
    content = review.labelme_json(truths[least[2]], classes, f"{least[2]}.png")
    files.write_json(target / "images" / f"{least[2]}.json", content)
    assert review.main(["--read", str(target), "--to", str(back)]) == 0
    printed = capsys.readouterr().out
    assert "3 images, 2 changed, 1 untouched" in printed
    quoted = back if shlex.quote(str(back)) == str(back) else f'"{back}"'
    assert f"-p dataset_options '{{labels: {quoted}}}'" in printed
    given = options | {"classes": str(target / "classes.yaml"), "labels": str(back)}
    learnt = datasets.load("folder", **given, labelled=2)
    assert learnt.classes == data.classes
    assert {sample.id for sample in learnt.labelled} == {least[0], least[2]}
    assert all(np.array_equal(sample.truth(), truths[sample.id]) for sample in learnt.labelled)

    assert review.main(["--read", str(target), "--to", str(back), "--untouched"]) == 0
    assert len(datasets.load("folder", **given).labelled) == 3
    assert review.main(["mine", "--ids", "03", "01", "--to", str(tmp_path / "two")]) == 0
    assert {image.id for image in review.read(tmp_path / "two")[0]} == {"01", "03"}


def test_images_that_show_no_class_after_a_review_are_told(written, tmp_path):
    folder, labels, _ = written
    id, label = [*labels.items()][0]
    files.write_label(folder / "labels" / f"{id}.png", np.zeros_like(label), COLOURS.colours)
    with pytest.warns(UserWarning, match=f"1 changed images show no class now, e.g. {id}: if that is a mistake"):
        assert review.main(["--read", str(folder), "--to", str(tmp_path / "back")]) == 0


@pytest.mark.parametrize("stray", ["labels/{}.jpg", "annotations/instances_default.json", "project-1.json", "a.zip"])
def test_labels_that_a_tool_saved_at_another_place_are_told(written, stray):
    folder, labels, _ = written
    place = folder / stray.format([*labels][0])
    files.write_text(place, "")
    (folder / "labels" / "p0.xcf").touch()  # a project of GIMP beside its export
    with pytest.warns(UserWarning, match=rf"1 files in .* are not read, e.g. .*{place.name}: if corrected labels"):
        review.read(folder)


def test_trust_without_another_labeller(tmp_path):
    """Stability and margin by hand: the second image's only mask is less stable, its margin smaller."""
    classes = Classes(("background", "red", "green"), ((), ("red",), ("green",)), COLOURS.colours[:3])
    samples = tuple(Sample(id, lambda: np.zeros((4, 4, 3), np.uint8)) for id in "ab")
    data = Dataset("two", classes, labelled=(), unlabelled=samples)
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2] = True
    for sample, stability, embedding in zip(data.unlabelled, (0.9, 0.5), ([1.0, 0.0], [1.0, 0.8]), strict=True):
        files.write_masks(tmp_path / "masks" / f"{sample.id}.json", Masks.from_dense(mask, [1.0], [stability]))
        files.write_embeddings(tmp_path / "segments" / f"{sample.id}.safetensors", torch.tensor([embedding]))
    make_stage(tmp_path, "labels_zero_shot", data, dict.fromkeys("ab", mask[0].astype(np.uint8)))
    encoder = SimpleNamespace(class_embeddings=lambda classes: (torch.eye(2), torch.tensor([1, 2])))
    ranked, trusts = review.least_trusted(tmp_path, "labels_zero_shot", data, lambda: encoder)
    assert [sample.id for sample in ranked] == ["b", "a"]
    assert trusts["a"] == pytest.approx({"trust": 1, "mask stability": 0.9, "CLIP margin": 1})
    assert trusts["b"] == pytest.approx({"trust": 0, "mask stability": 0.5, "CLIP margin": 0.2 / np.hypot(1, 0.8)})
    # Enhanced labels are compared as soon as there are some.
    enhanced = {id: (value * mask[0]).astype(np.uint8) for value, id in ((2, "a"), (1, "b"))}
    make_stage(tmp_path, "labels_enhanced", data, enhanced)
    _, trusts = review.least_trusted(tmp_path, "labels_zero_shot", data)
    assert trusts == {"a": {"trust": 1 / 3, "agreement": 1 / 3}, "b": {"trust": 1, "agreement": 1}}


def test_only_finished_stages_of_this_run_are_compared(run, capsys):
    folder, data, truths, _ = run
    _, with_boxes = review.least_trusted(folder, "labels_zero_shot", data)
    make_stage(folder, "labels_sepl", data, {id: np.zeros_like(truth) for id, truth in truths.items()}, finish=False)
    assert review.least_trusted(folder, "labels_zero_shot", data)[1] == with_boxes
    assert "labels_sepl is left out of the comparison: it is not finished" in capsys.readouterr().err
    other = dataclasses.replace(data, unlabelled=data.unlabelled[1:])
    for name, given, says in (("sepl", data, "it is not finished"), ("boxes", other, "it was made for another")):
        with pytest.raises(ValueError, match=f"labels_{name} cannot be used: {says}.*Run notebooks/run.py mine"):
            review.least_trusted(folder, f"labels_{name}", given)
    with pytest.raises(ValueError, match="it was made for another .*Run plg label again"):
        review.least_trusted(folder.rename(folder.with_name("run")), "labels_boxes", other)


@pytest.fixture
def rounds(run, monkeypatch):
    """The run with masks and segments, red ones more like green from image to image, and these two words swapped."""
    folder, data, truths, _ = run
    stage = store.stage(folder / "segments", parameters={"encoder": "clip"}, dataset=data)
    for k, sample in enumerate(stage.todo(data.unlabelled, [".safetensors"])):
        files.write_masks(folder / "masks" / f"{sample.id}.json", Masks.from_dense(colour_squares(k).masks))
        embeddings = torch.eye(5)[:4] + 0.1 * torch.tensor(np.random.default_rng(k).normal(size=(4, 5))).float()
        embeddings[1, 2] += 0.15 * k
        files.write_embeddings(stage.path(sample.id, ".safetensors"), embeddings)
    stage.finish()
    path = folder / "labels_zero_shot" / "manifest.json"
    files.write_json(path, files.read_json(path) | {"parameters": {"overlap": "score"}})
    words = SimpleNamespace(class_embeddings=lambda classes: (torch.eye(5)[[0, 2, 1, 3]], torch.arange(4)))
    monkeypatch.setattr(review.encoders, "build", lambda *given, **options: words)
    return folder, data, truths, words


def test_a_round_learns_from_the_corrected_images_and_asks_where_names_are_unsure(rounds, tmp_path, capsys):
    folder, data, truths, words = rounds
    ids = [sample.id for sample in data.unlabelled]
    corrected = [review.Reviewed(id, truths[id], ("png",), {}) for id in ids[:2]]
    ranked, trusts, label_of = review.least_sure(folder, data, lambda: words, corrected)
    masks = {id: files.read_masks(folder / "masks" / f"{id}.json") for id in ids}
    embeddings = {id: files.read_embeddings(folder / "segments" / f"{id}.safetensors") for id in ids}
    labelled = few_shot.Labelled(*([of[id] for id in ids[:2]] for of in (masks, embeddings, truths)))
    texts = words.class_embeddings(data.classes)
    namer = few_shot.learn(labelled, data.classes, *texts, others=iter(embeddings.values()))
    expected = {id: float(trust.few_shot_margins(namer, embeddings[id]).mean()) for id in ids[2:]}
    assert {id: row["trust"] for id, row in trusts.items()} == pytest.approx(expected)
    assert [sample.id for sample in ranked] == sorted(expected, key=expected.get)
    right = [np.array_equal(label_of(sample), truths[sample.id]) for sample in data.unlabelled[2:]]
    assert sum(right[:3]) == 3  # the words alone call all red ones green

    for number, sources in enumerate(([], ["round0"], ["round0", "round1"])):
        given = [str(tmp_path / source) for source in sources]
        target = tmp_path / f"round{number}"
        status = review.main(["mine", "--corrected", *given, "--least", "2", "--to", str(target)])
        out, err = capsys.readouterr()
        if not number:  # the run has no labelled image
            assert status == 1 and "there are none" in err
            review.write(target, data.unlabelled[:2], lambda s: np.zeros_like(truths[s.id]), data.classes)
        else:
            assert status == 0 and f"--corrected {shlex.join([*given, str(target)])} --to DIR" in out
        index = files.read_json(target / "index.json")["images"]
        if number == 1:
            assert [entry["id"] for entry in index] == [sample.id for sample in ranked[:2]]
        assert not number or not {entry["id"] for entry in index} & {image.id for image in corrected}
        for entry in index:
            path = target / "labels" / f"{entry['id']}.png"
            files.write_label(path, truths[entry["id"]], data.classes.colours)


def test_segments_of_another_encoder_than_run_json_names_are_refused(rounds, tmp_path, capsys):
    path = rounds[0] / "run.json"
    content = files.read_json(path)
    content["parameters"]["encoder_options"] = {"checkpoint": "ViT-B/16"}
    files.write_json(path, content)
    assert review.main(["mine", "--corrected", "--to", str(tmp_path / "a")]) == 1
    told = capsys.readouterr().err
    assert "segments was made by {'encoder': 'clip'}, and run.json names clip with {'checkpoint': 'ViT-B/16'}" in told


def test_untouched_images_are_asked_again_unless_they_are_right(rounds, tmp_path):
    _, data, truths, _ = rounds
    review.write(tmp_path / "a", data.unlabelled[:3], lambda s: truths[s.id], data.classes)
    id = data.unlabelled[0].id
    files.write_label(tmp_path / "a" / "labels" / f"{id}.png", np.roll(truths[id], 1))
    for more, count in (([], 7), (["--untouched"], 5)):
        given = ["mine", "--corrected", str(tmp_path / "a"), *more, "--to", str(tmp_path / f"b{count}")]
        assert review.main(given) == 0
        assert len(files.read_json(tmp_path / f"b{count}" / "index.json")["images"]) == count


def test_a_round_of_another_run_is_refused(rounds, tmp_path, capsys):
    folder, data, truths, words = rounds
    with pytest.raises(ValueError, match="x are no unlabelled images of mine"):
        review.least_sure(folder, data, lambda: words, [review.Reviewed("x", RING, (), {})])
    other = dataclasses.replace(data.classes, names=("background", "red", "green", "ink"))
    review.write(tmp_path / "a", data.unlabelled[:1], lambda s: truths[s.id], other)
    assert review.main(["mine", "--corrected", str(tmp_path / "a"), "--to", str(tmp_path / "b")]) == 1
    assert "has the classes background, red, green, ink, not those of mine" in capsys.readouterr().err
    path = folder / "segments" / "manifest.json"
    files.write_json(path, files.read_json(path) | {"state": "running"})
    with pytest.raises(ValueError, match="segments cannot be used: it is not finished. Run notebooks/run.py mine"):
        review.least_sure(folder, data, lambda: words)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine", "--labels", "labels_enhanced"], "it has labels_boxes, labels_zero_shot: run notebooks/run.py mine"),
        (["mine", "--ids", "03", "x"], "--ids names x: these are no unlabelled images of mine"),
        (["bare"], "bare/run.json is not the record of a run.*run notebooks/run.py bare again"),
    ],
)
def test_the_command_says_what_is_wrong(run, arguments, says, tmp_path, capsys):
    files.write_json(run[0].parent / "bare" / "run.json", {"parameters": {"dataset": "folder"}})
    assert review.main([*arguments, "--to", str(tmp_path / "out")]) == 1
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_the_command_is_asked_for_one_thing(capsys):
    for arguments, says in (
        ("", "one of the arguments OUT --read is required"),
        ("a --read b", "not allowed with argument"),
        ("run --all --least 3", "not allowed with argument --all"),
        ("run --all --ids a", "not allowed with argument --all"),
        ("run --corrected a --labels b", "not allowed with argument --corrected"),
        ("--read b --ids 3", "give either OUT"),
        ("--read b --corrected", "give either OUT"),
        ("a --untouched", "give either OUT"),
        ("run --form yolo,cocoa", "plg export: error: --form cocoa is not known, only png, coco, labelme, yolo"),
    ):
        with pytest.raises(SystemExit, match="2"):
            review.main([*arguments.split(), "--to", "y"])
        assert says in capsys.readouterr().err, arguments
