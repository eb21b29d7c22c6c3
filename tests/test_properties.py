"""What holds for any input: formats are read as they were written, and draws are parts of larger draws.

Hypothesis draws the inputs, the same ones in each run, and shrinks one that breaks a law to the smallest that does.
"""

import contextlib
import tempfile

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco

from plg_utils import class_files, datasets, files, run_lengths
from plg_utils.datasets import voc
from plg_utils.records import Masks

STORE = tempfile.TemporaryDirectory(prefix="plg-hypothesis-")
set_hypothesis_home_dir(STORE.name)  # else what it remembers lies in the repository
SIGNS = "aZ09äß漢😀 _-.:,;'\"`/\\|!?*&%#@$<>=+~^()[]{}\t\n\r\0\x7f\u2028\ufeff"  # those that formats mean something by


def law(examples: int):
    """Check a law on so many inputs."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],  # files are written over in one folder
    )


sizes = array_shapes(min_dims=2, max_dims=2, max_side=7)
dense_masks = st.tuples(st.integers(0, 5), sizes).flatmap(lambda drawn: arrays(bool, (drawn[0], *drawn[1])))


# Formats


@law(200)
@given(st.text("".join(map(chr, range(40, 115))), max_size=8), st.integers(1, 6), st.integers(1, 6))
def test_any_text_is_run_lengths_or_refused(text, height, width):
    """What is not refused, COCO decodes to the same mask."""
    try:
        runs = run_lengths.decode([text])
        run_lengths.check(runs, (height, width))
    except run_lengths.BrokenRunLengths:
        return
    dense = run_lengths.dense(runs, (height, width))
    assert dense.shape == (1, height, width)
    assert coco.decode({"size": [height, width], "counts": text}).astype(bool).tolist() == dense[0].tolist()


@law(30)
@given(arrays(np.uint8, sizes), st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=256))
def test_label_maps_are_read_as_written(tmp_path, label, colours):
    files.write_label(tmp_path / "a.png", label, colours)
    np.testing.assert_array_equal(files.read_label(tmp_path / "a.png"), label)
    assert files.image_size(tmp_path / "a.png") == label.shape
    palette = files.voc_palette().copy()
    palette[: len(colours)] = np.array(colours, np.uint8).reshape(-1, 3)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette[label])


@law(30)
@given(st.data())
def test_masks_are_read_as_written(tmp_path, data):
    dense = data.draw(dense_masks)
    score = st.one_of(st.just(float("nan")), st.floats(-(2.0**99), 2.0**99, width=32))
    iou, stable = (data.draw(arrays(np.float32, len(dense), elements=score)) for _ in range(2))
    written = Masks.from_dense(dense, iou, stable)
    files.write_masks(tmp_path / "a.json", written)
    read = files.read_masks(tmp_path / "a.json", dense.shape[1:])
    assert read.rles == written.rles
    np.testing.assert_array_equal(read.dense(), dense)
    for name in ("predicted_iou", "stability"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(SIGNS)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(SIGNS), inner, max_size=3)),
    max_leaves=8,
)


@law(50)
@given(plain)
def test_tables_are_read_as_written(tmp_path, content):
    files.write_json(tmp_path / "a.json", content)
    assert files.read_json(tmp_path / "a.json") == content
    before = (tmp_path / "a.json").read_bytes()
    files.write_json(tmp_path / "a.json", files.read_json(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == before


@law(60)
@given(st.text(SIGNS, max_size=30))
def test_any_text_is_a_file_or_refused_by_name(tmp_path, text):
    """Class files, tables and lists: an answer, or a ValueError that names the file."""
    path = tmp_path / "a.file"
    path.write_text(text, encoding="utf-8")
    for read in (class_files.read, files.read_json, files.read_lines, files.read_masks, voc._read_list):
        try:
            read(path)
        except ValueError as error:
            assert "a.file" in str(error)


words = st.text("aZ09äß漢😀_-.:'\"!*&#[]{}", min_size=1, max_size=8)


@law(40)
@given(st.lists(st.tuples(words, st.lists(words, max_size=3)), min_size=1, max_size=5, unique_by=lambda row: row[0]))
def test_class_files_are_read_as_written(tmp_path, rows):
    owners = [{word.casefold() for word in words or [name]} for name, words in rows]
    assume(len(set().union(*owners)) == sum(map(len, owners)))  # a word belongs to one class
    content = {"classes": [{"name": name, "words": words or [name]} for name, words in rows]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    classes = class_files.read(tmp_path / "a.yaml")
    assert classes.names == tuple(name for name, _ in rows)
    assert classes.words == tuple(tuple(words or [name]) for name, words in rows)
    class_files.write(tmp_path / "b.yaml", classes)
    assert class_files.sha256(class_files.read(tmp_path / "b.yaml")) == class_files.sha256(classes)


@law(100)
@given(st.text(SIGNS, max_size=12))
def test_an_id_is_refused_or_names_a_file_in_its_folder(tmp_path, stem):
    with contextlib.suppress(ValueError):
        path = tmp_path / "stage" / f"{files.check_stem(stem)}.json"
        files.write_json(path, 1)
        assert path.resolve().parent == tmp_path / "stage"
        assert path.name in [each.name for each in path.parent.iterdir()]


# Which images


@law(50)
@given(st.integers(0, 40), st.data())
def test_a_draw_keeps_the_order_and_a_small_one_is_part_of_a_large_one(pool, data):
    few, more = sorted(data.draw(st.tuples(*[st.integers(0, pool)] * 2)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    items = list(range(100, 100 + pool))
    small, rest = datasets.draw(items, few, seed)
    assert (len(small), sorted(small + rest)) == (few, items)
    assert small == sorted(small) and rest == sorted(rest)  # noqa: PT018
    assert set(small) <= set(datasets.draw(items, more, seed)[0])


@law(50)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 20_000))
def test_a_part_of_the_images_is_rounded_up(part, whole, pool):
    text = f"{part}/{whole}"
    if part > whole or part * pool < whole:
        with pytest.raises(ValueError, match=text):
            datasets.count(text, pool)
    else:
        assert datasets.count(text, pool) == -(-part * pool // whole)
