"""Cue maps: what a folder of them must hold."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plg_utils import cams, files
from plg_utils.records import IGNORE, Sample

FILES = sorted(path.stem for path in Path(cams.__file__).parent.glob("[a-z]*.py"))


def cue_maps(root, squares, ids):
    """Write the truth of the squares as cue map of each id; return the samples."""
    for id in ids:
        files.write_label(root / f"{id}.png", squares.truth)
    return [Sample(id, lambda: squares.image) for id in ids]


@pytest.fixture
def folder(tmp_path, squares):
    """A folder of three maps, and its samples."""
    root = tmp_path / "maps"
    return root, cue_maps(root, squares, ["a", "b", "c"])


@pytest.mark.parametrize("name", FILES)
def test_contract(name, folder, squares):
    root, samples = folder
    smoke = import_module(f"plg_utils.cams.{name}").SMOKE
    options = smoke | ({"root": root} if name == "folder" else {})
    labels = cams.build(name, squares.classes, **options)(samples)
    assert len(labels) == len(samples)
    for label in labels:
        assert label.dtype == np.uint8
        assert label.shape == squares.image.shape[:2]
        assert set(np.unique(label)) <= {0, 1, 2, 3, IGNORE}


def test_maps_are_found_by_id_in_the_order_of_the_samples(folder, squares):
    root, samples = folder
    flipped = squares.truth[:, ::-1].copy()
    flipped[0] = IGNORE
    files.write_label(root / "b.png", flipped)
    files.write_label(root / "nobodys.png", squares.truth[:3])
    read = cams.build("folder", squares.classes, root=str(root))
    first, second = read([samples[1], samples[0]])
    np.testing.assert_array_equal(first, flipped)
    np.testing.assert_array_equal(second, squares.truth)
    assert read([]) == []


def test_grey_maps_are_read_as_palette_maps_are(folder, squares):
    root, samples = folder
    Image.fromarray(squares.truth).save(root / "a.png")
    assert Image.open(root / "a.png").mode == "L"
    assert Image.open(root / "b.png").mode == "P"
    grey, palette, _ = cams.build("folder", squares.classes, root=root)(samples)
    np.testing.assert_array_equal(grey, palette)


def test_a_folder_that_is_none_is_refused(tmp_path, squares):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: root must be"):
        cams.build("folder", squares.classes, root=tmp_path / "nowhere")


def test_missing_maps_are_counted_and_named_before_any_is_read(folder, squares):
    root, samples = folder
    (root / "a.png").write_bytes(b"broken, and not looked at")
    others = [Sample(id, lambda: squares.image) for id in ("d", "e", "f", "g")]
    read = cams.build("folder", squares.classes, root=root)
    with pytest.raises(FileNotFoundError, match=r"lacks the cue map of 1 of 4 images: d\.png$"):
        read([*samples, others[0]])
    with pytest.raises(FileNotFoundError, match=r"lacks the cue map of 3 of 6 images: d\.png, e\.png, f\.png$"):
        read([*samples, *others[:3]])
    with pytest.raises(FileNotFoundError, match=r"of 4 of 7 images: d\.png, e\.png, f\.png, \.\.\.$"):
        read([*samples, *others])


def test_a_map_of_another_size_is_refused(folder, squares):
    root, samples = folder
    files.write_label(root / "b.png", np.ascontiguousarray(squares.truth.T))
    with pytest.raises(ValueError, match=r"b\.png is \(24, 16\), its image \(16, 24\): a cue map has the exact size"):
        cams.build("folder", squares.classes, root=root)(samples)


def test_values_that_are_no_class_are_refused(folder, squares):
    root, samples = folder
    strange = squares.truth.copy()
    strange[0, :2] = 4, 77
    files.write_label(root / "c.png", strange)
    with pytest.raises(ValueError, match=r"c\.png holds the values \[4, 77\], not classes 0 to 3 or 255 \(void\)"):
        cams.build("folder", squares.classes, root=root)(samples)


def test_coloured_maps_are_refused(folder, squares):
    root, samples = folder
    files.write_image(root / "a.png", squares.image)
    with pytest.raises(ValueError, match=r"a\.png holds uint8 \(16, 24, 3\), not a uint8 \(H, W\) label map"):
        cams.build("folder", squares.classes, root=root)(samples)


def test_an_image_without_id_is_refused(folder, squares):
    root, samples = folder
    with pytest.raises(TypeError, match="by the id of a Sample, which a ndarray lacks"):
        cams.build("folder", squares.classes, root=root)([samples[0], squares.image])
