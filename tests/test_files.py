"""Files: whole or not at all, read as they were written, and errors that say what came."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from plg_utils import class_files, datasets, figures, files, run_lengths
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


def test_others_may_read_what_a_library_kept_to_itself(tmp_path):
    path = tmp_path / "weights"
    with files.atomic(path) as partial:
        partial.touch(0o600)
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_shrunk_picture_looks_the_same():
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 200)[None, :, None] * np.linspace(0.2, 1, 150)[:, None, None] * [1, 0.8, 0.5]
    picture = (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
    large = io.BytesIO()
    Image.fromarray(picture).save(large, "PNG")
    small = figures.shrink_png(large.getvalue())
    assert len(small) < 0.7 * len(large.getvalue())
    assert small == figures.shrink_png(large.getvalue()) == figures.shrink_png(small)
    seen = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int)
    assert np.abs(seen - picture).mean() < 8


def test_a_shrunk_picture_keeps_the_colours_of_areas():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)  # every colour there is, to be merged
    patches = rng.integers(0, 256, (20, 3), dtype=np.uint8)
    for index, patch in enumerate(patches):
        picture[140:, 10 * index : 10 * index + 8] = patch  # 80 pixels, as in a legend
    large = io.BytesIO()
    Image.fromarray(picture).save(large, "PNG")
    shrunk = Image.open(io.BytesIO(figures.shrink_png(large.getvalue())))
    assert shrunk.mode == "P"
    seen = np.asarray(shrunk.convert("RGB"))
    for index, patch in enumerate(patches):
        assert (seen[140:, 10 * index : 10 * index + 8] == patch).all()


def test_roots_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("PLG_DATA", raising=False)
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    assert files.data_root() == files.ROOT / "data"
    assert files.results_root() == tmp_path
    assert (files.ROOT / "plg_utils" / "files.py").is_file()


def test_images_come_as_rgb_and_upright(tmp_path, squares):
    files.write_image(tmp_path / "a.png", squares.image)
    np.testing.assert_array_equal(files.read_image(tmp_path / "a.png"), squares.image)
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(files.read_image(tmp_path / "grey.png"), grey[..., None].repeat(3, axis=2))
    Image.fromarray(grey.astype(np.uint16) * 256 + 200).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(files.read_image(tmp_path / "deep.png"), grey[..., None].repeat(3, axis=2))

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(squares.image).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = files.read_image(tmp_path / "turned.jpg")
    assert upright.shape[:2] == squares.image.shape[1::-1] == files.image_size(tmp_path / "turned.jpg")
    assert np.abs(upright - np.rot90(squares.image, -1).astype(int)).mean() < 40  # JPEG blurs the edges of squares
    assert files.image_size(tmp_path / "a.png") == squares.image.shape[:2]


def test_broken_images_are_named(tmp_path, squares):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, format="JPEG")
    for name, content in {"cut.jpg": whole.getvalue()[:900], "text.jpg": b"not an image", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not a readable image .*export it again"):
            files.read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        files.read_image(tmp_path / "absent.jpg")
    with pytest.raises(ValueError, match=r"uint8 \(2, 3\), not a uint8 \(H, W, 3\) image"):
        files.write_image(tmp_path / "grey.png", LABEL)


def test_label_maps_keep_values_and_colours(tmp_path):
    path = tmp_path / "a.png"
    files.write_label(path, LABEL, colours=[(1, 1, 1), (2, 2, 2)])
    np.testing.assert_array_equal(files.read_label(path, num_classes=3), LABEL)
    with Image.open(path) as image:
        assert image.mode == "P"
        shown = np.asarray(image.convert("RGB"))
    assert shown[0].tolist() == [[1, 1, 1], [2, 2, 2], [0, 128, 0]]  # the third has VOC's colour
    assert shown[1, 2].tolist() == [224, 224, 192]  # void
    Image.fromarray(LABEL).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(files.read_label(tmp_path / "grey.png"), LABEL)


def test_label_errors_say_what_came(tmp_path, squares):
    files.write_image(tmp_path / "road.png", squares.image)
    with pytest.raises(ValueError, match=r"road.png holds uint8 \(16, 24, 3\), not a uint8 \(H, W\) label map"):
        files.read_label(tmp_path / "road.png")
    files.write_label(tmp_path / "b.png", np.array([[0, 7, 200, IGNORE]], dtype=np.uint8))
    with pytest.raises(ValueError, match=r"values \[7, 200\], not classes 0 to 6 or 255"):
        files.read_label(tmp_path / "b.png", num_classes=7)
    Image.fromarray(LABEL).save(tmp_path / "c.jpg")
    with pytest.raises(ValueError, match="JPEG file, not a PNG"):
        files.read_label(tmp_path / "c.jpg")
    with pytest.raises(ValueError, match=r"int64 \(2, 3\)"):
        files.write_label(tmp_path / "d.png", LABEL.astype(np.int64))


def test_voc_palette_is_that_of_the_development_kit():
    palette = files.voc_palette().tolist()
    assert palette[1] == [128, 0, 0]  # aeroplane
    assert palette[15] == [192, 128, 128]  # person
    assert palette[20] == [0, 64, 128]  # tv monitor
    assert palette[255] == [224, 224, 192]


def test_masks_are_read_as_written(tmp_path):
    rng = np.random.default_rng(0)
    for number, density in enumerate([0, 0.02, 0.5, 1]):
        dense = rng.random((number, 17, 40)) < density
        written = Masks.from_dense(dense, predicted_iou=rng.random(number))
        files.write_masks(tmp_path / "a.json", written)
        read = files.read_masks(tmp_path / "a.json", (17, 40))
        assert files.read_masks(tmp_path / "a.json").rles == read.rles
        np.testing.assert_array_equal(read.dense(), dense)
        np.testing.assert_array_equal(read.predicted_iou, written.predicted_iou)
        assert np.isnan(read.stability).all()
    assert json.loads((tmp_path / "a.json").read_text())["masks"][0]["area"] == 17 * 40


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


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ("", "add up to 0"),
        ("5", "add up to 5"),
        ("7", "add up to 7"),
        ("0O7", "negative, or zero"),  # 0, -1, 7
        ("1005", "negative, or zero"),  # 1, 0, 0, 5
        ("P", "ends within"),
        ("PPPPPPPPP1", "has no end"),
        ("é", "does not occur"),
        ("~", "does not occur"),
    ],
)
def test_malformed_run_lengths_never_reach_pycocotools(tmp_path, counts, complaint):
    broken, sound = ({"counts": text, "predicted_iou": None, "stability": None} for text in (counts, "6"))
    for index in (0, 2):
        files.write_json(tmp_path / "a.json", {"size": [2, 3], "masks": [sound] * index + [broken, sound]})
        with pytest.raises(ValueError, match=rf"a.json, mask {index}: .*{complaint}"):
            files.read_masks(tmp_path / "a.json", (2, 3))


def test_masks_of_another_image_are_refused(tmp_path):
    files.write_masks(tmp_path / "a.json", Masks.from_dense(np.ones((1, 2, 3), dtype=bool)))
    with pytest.raises(ValueError, match=r"size \(2, 3\), the image has \(3, 2\)"):
        files.read_masks(tmp_path / "a.json", (3, 2))
    files.write_json(tmp_path / "b.json", {"size": [2, 3], "masks": [{"counts": "6"}]})
    with pytest.raises(ValueError, match="b.json is not a file of masks"):
        files.read_masks(tmp_path / "b.json", (2, 3))


def test_embeddings_are_read_as_written(tmp_path):
    embeddings = torch.arange(6.0).reshape(3, 2).T  # not contiguous
    files.write_embeddings(tmp_path / "a.safetensors", embeddings)
    assert torch.equal(files.read_embeddings(tmp_path / "a.safetensors"), embeddings)
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="b.safetensors is not a file of embeddings"):
        files.read_embeddings(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"\(6,\), not \(N, D\)"):
        files.write_embeddings(tmp_path / "c.safetensors", torch.arange(6))


def test_json_is_plain_and_sorted(tmp_path):
    content = {"b": np.float64("nan"), "a": [np.int64(1), (2, np.array([3.5]))], "c": "ä"}
    files.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert text.index('"a"') < text.index('"b": null') < text.index('"c": "ä"')
    assert files.read_json(tmp_path / "a.json") == {"a": [1, [2, [3.5]]], "b": None, "c": "ä"}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", [float("inf")])
    assert files.read_json(tmp_path / "a.json")["a"]  # the earlier file is still there
    for broken in ("{", "[NaN]"):
        (tmp_path / "b.json").write_text(broken)
        with pytest.raises(ValueError, match="b.json is not readable JSON"):
            files.read_json(tmp_path / "b.json")


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
    for classes in [*ours, class_files.parse({"classes": [{"name": "no", "words": ["Bär: 1"]}]})]:
        class_files.write(tmp_path / "a.yaml", classes)
        assert class_files.read(tmp_path / "a.yaml") == classes
    with pytest.raises(ValueError, match="do not fit a class file, so .*a.yaml was not written"):
        class_files.write(tmp_path / "a.yaml", dataclasses.replace(ours[0], background=1))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("classes: [{name: cat, color: [1, 2, 3]}]", "no key color, only colour, name, words"),
        ("classes: [{name: cat}]\nbackgrounds: []", "no key backgrounds"),
        ("templates: [a photo]", "needs the key classes"),
        ("classes: []", "at least one"),
        ("classes: [{name: cat}, {name: cat}]", "more than once: cat"),
        ("classes: [{name: background}]\nbackground: [wall]", "more than once: background"),
        ("classes: [{name: no}]", "False, which is no text; put it in quotes"),
        ("classes: [{name: cat, words: cat}]", "words of cat must be a list"),
        ("classes: [{name: cat, colour: [1, 2, 256]}]", r"colour of cat is \[1, 2, 256\]"),
        ("classes: [{name: cat}]\ntemplates: [a photo]", "needs one {}"),
        ("classes: [{name: cat}]\nversion: 2", "version 2 "),
        ("- cat", "is a mapping"),
        ("classes: [", "not readable YAML"),
        (f"classes: [{', '.join(f'{{name: c{k}}}' for k in range(256))}]", "256 classes do not fit"),
    ],
)
def test_class_file_errors_say_what_is_wrong(tmp_path, text, complaint):
    (tmp_path / "pets.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"pets.yaml.*{complaint}"):
        class_files.read(tmp_path / "pets.yaml")


@pytest.mark.parametrize("stem", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "manifest"])
def test_unsafe_ids_are_refused(stem):
    with pytest.raises(ValueError, match="cannot"):
        files.check_stem(stem)
    assert files.check_stem("Foto 1.Ä") == "Foto 1.Ä"
