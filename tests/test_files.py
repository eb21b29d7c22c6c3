"""Files: whole or not at all, read as they were written, and errors that say what came."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from plg_utils import choices, class_files, datasets, figures, files, run_lengths
from plg_utils.records import IGNORE, Masks

LABEL = np.array([[0, 1, 2], [1, 2, IGNORE]], dtype=np.uint8)


def test_atomic_leaves_nothing_of_what_failed(tmp_path):
    path = tmp_path / "new" / "table.json"
    with pytest.raises(RuntimeError), files.atomic(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with files.atomic(path) as partial:
        partial.write_text("whole")
        assert partial.parent == path.parent  # a move between disks would not be atomic
        assert partial.suffix != path.suffix  # what a killed run leaves behind is not taken for a result
        assert not path.exists()
    assert [item.name for item in path.parent.iterdir()] == ["table.json"]
    assert path.read_text() == "whole"
    with files.atomic(path) as partial:
        partial.touch(0o600)  # some libraries write files that no one else may read
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_shrunk_picture_looks_the_same_and_keeps_the_colours_of_areas():
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 200)[None, :, None] * np.linspace(0.2, 1, 150)[:, None, None] * [1, 0.8, 0.5]
    picture = (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
    patches = rng.integers(0, 256, (20, 3), dtype=np.uint8)
    for index, patch in enumerate(patches):
        picture[140:, 10 * index : 10 * index + 8] = patch  # 80 pixels, as in a legend
    large = io.BytesIO()
    Image.fromarray(picture).save(large, "PNG")
    small = figures.shrink_png(large.getvalue())
    assert len(small) < 0.7 * len(large.getvalue())
    assert small == figures.shrink_png(large.getvalue()) == figures.shrink_png(small)
    seen = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int)
    assert np.abs(seen - picture).mean() < 8
    for index, patch in enumerate(patches):
        assert (seen[140:, 10 * index : 10 * index + 8] == patch).all()


def test_images_come_as_rgb_and_upright(tmp_path, squares):
    files.write_image(tmp_path / "a.png", squares.image)
    np.testing.assert_array_equal(files.read_image(tmp_path / "a.png"), squares.image)
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(files.read_image(tmp_path / "grey.png"), grey[..., None].repeat(3, axis=2))
    grey = (40 * np.arange(6, dtype=np.uint8)).reshape(2, 3)
    Image.fromarray(grey.astype(np.uint16) * 256 + 200).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(files.read_image(tmp_path / "deep.png"), grey[..., None].repeat(3, axis=2))

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(squares.image).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = files.read_image(tmp_path / "turned.jpg")
    assert upright.shape[:2] == squares.image.shape[1::-1] == files.image_size(tmp_path / "turned.jpg")
    assert np.abs(upright - np.rot90(squares.image, -1).astype(int)).mean() < 40  # JPEG blurs the edges of squares
    assert files.image_size(tmp_path / "a.png") == squares.image.shape[:2]


def test_counts_decode_as_coco_encodes_them():
    rng, texts, right = np.random.default_rng(1), [], []
    for size in [(1, 1), (3, 5), (90, 70)]:
        for density in (0, 0.01, 0.3, 1):
            mask = np.asfortranarray(rng.random(size) < density, dtype=np.uint8)
            flat = mask.ravel(order="F").astype(int)
            runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])).tolist()
            counts = coco.encode(mask)["counts"].decode()
            texts.append(counts)
            right.append(([0] if flat[0] else []) + runs)
            assert [found.tolist() for found in run_lengths.decode([counts])] == right[-1:]
    assert [found.tolist() for found in run_lengths.decode(texts)] == right
    texts[5:5] = ["", ""]
    right[5:5] = [[], []]
    assert [found.tolist() for found in run_lengths.decode(texts)] == right
    assert run_lengths.decode([]) == []
    with pytest.raises(run_lengths.BrokenRunLengths, match="does not occur") as error:
        run_lengths.decode(["6", "11", "\ud800", "6"])
    assert error.value.index == 2


def test_embeddings_and_grey_label_maps_are_read_as_written(tmp_path):
    palette = files.voc_palette().tolist()  # that of the development kit: aeroplane, person, tv monitor, void
    assert [palette[k] for k in (1, 15, 20, 255)] == [[128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]
    embeddings = torch.arange(6.0).reshape(3, 2).T  # not contiguous
    files.write_embeddings(tmp_path / "a.safetensors", embeddings)
    assert torch.equal(files.read_embeddings(tmp_path / "a.safetensors"), embeddings)
    Image.fromarray(LABEL).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(files.read_label(tmp_path / "grey.png", num_classes=3), LABEL)


def test_json_is_plain_and_sorted(tmp_path):
    content = {"b": np.float64("nan"), "a": [np.int64(1), (2, np.array([3.5]))], "c": "ä"}
    files.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert text.index('"a"') < text.index('"b": null') < text.index('"c": "ä"')
    assert files.read_json(tmp_path / "a.json") == {"a": [1, [2, [3.5]]], "b": None, "c": "ä"}
    files.write_masks(tmp_path / "a.json", Masks.from_dense(np.ones((1, 2, 3), bool), [0.1]))
    assert files.read_json(tmp_path / "a.json")["masks"][0]["predicted_iou"] == 0.1  # not 0.10000000149


def test_a_class_file_by_hand(tmp_path):
    path = tmp_path / "pets.yaml"
    path.write_text(
        "background: [grass]\nclasses:\n- {name: cat}\n- {name: dog, words: [dog, puppy], colour: [1, 2, 3]}"
    )
    classes = class_files.read(path)
    assert classes.names == ("background", "cat", "dog")
    assert classes.words == (("grass",), ("cat",), ("dog", "puppy"))
    assert classes.colours == ((0, 0, 0), (128, 0, 0), (1, 2, 3))
    assert (classes.background, classes.templates) == (0, ("a photo of a {}.",))
    commented = tmp_path / "commented.yaml"
    commented.write_text("# our pets\n" + path.read_text().replace("grass", "'grass'"))
    assert class_files.sha256(class_files.read(commented)) == class_files.sha256(classes)
    path.write_text("classes: [{name: cat}]")
    classes = class_files.read(path)
    assert (classes.names, classes.background, classes.colours) == (("cat",), None, ((0, 0, 0),))
    assert class_files.parse({"background": [], "classes": [{"name": "cat"}]}).words == ((), ("cat",))


def test_a_written_class_file_gives_equal_classes(tmp_path):
    ours = [class_files.read(path) for path in datasets.CLASS_FILES.glob("*.yaml")]
    assert len(ours) > 3
    for classes in [*ours, class_files.parse({"classes": [{"name": "no", "words": ["Bär: 1"]}]})]:
        class_files.write(tmp_path / "a.yaml", classes)
        assert class_files.read(tmp_path / "a.yaml") == classes
    with pytest.raises(ValueError, match="do not fit a class file, so .*a.yaml was not written"):
        class_files.write(tmp_path / "a.yaml", dataclasses.replace(ours[0], background=1))


def test_a_long_list_of_names_does_not_hide_the_hint():
    names = [f"name_{index}" for index in range(choices.MANY + 1)]
    for name, says in (("nam_3", "there is no run 'nam_3'; did you mean 'name_3'"), ("x", "only name_0, .*name_20$")):
        with pytest.raises(ValueError, match=says):
            choices.one_of(name, names, "run")
