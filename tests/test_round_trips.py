"""Other tools themselves read what review writes, and write what the data set folder reads.

They live in an environment of their own (torch is not needed), and these tests are skipped without it:

    python -m venv tools
    tools/bin/pip install labelme label-studio-sdk supervision datumaro     # the group tools of pyproject.toml
    PLG_TOOLS=tools/bin/python .venv/bin/pytest -q -s tests/test_round_trips.py

-s prints the versions. labelme imports Qt, which needs no display here. tests/round_trips.py is what they run.
"""

import json
import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_review import MAPS

from conftest import COLOURS
from plg_utils import datasets, files, review
from plg_utils.datasets import _formats, storybook
from plg_utils.records import IGNORE, Classes, Sample

TOOLS = os.environ.get("PLG_TOOLS", "")
SCRIPT = Path(__file__).with_name("round_trips.py")
NAMES = ("ball", "box", "a & cup")
CLASSES = Classes(("background", *NAMES), ((), *((name,) for name in NAMES)), COLOURS.colours[:4])
EXACT = {
    "labelme": "by_labelme",
    "label_studio": "by_label_studio/tasks.json",
    "datumaro_voc": "by_datumaro_voc",
    "datumaro_coco": "by_datumaro_coco/annotations/instances_default.json",
}
POLYGONS = {"yolo": "by_yolo", "coco": "by_coco/supervision.json", "coco, Label Studio": "by_coco/tasks.json"}


def of_classes(label):
    return np.where((label > 3) & (label != IGNORE), label % 4, label).astype(np.uint8)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder of review in all forms, which the tools have read, and beside which they have written."""
    if not TOOLS or subprocess.run([TOOLS, "-c", "import labelme, label_studio_sdk, supervision, datumaro"]).returncode:
        pytest.skip("PLG_TOOLS is no Python with labelme, label-studio-sdk, supervision and datumaro")
    folder = tmp_path_factory.mktemp("été 1") / "out"
    maps = {"scène 1": of_classes(storybook.draw(1003).label), "noise": of_classes(MAPS["noise 1"])}
    maps["large photo"] = np.kron(of_classes(storybook.draw(1004).label), np.ones((8, 8), np.uint8))  # 1024 x 1024
    maps["scène 1"][:9, 5:30] = IGNORE
    samples = [Sample(id, lambda size=label.shape: np.full((*size, 3), 99, np.uint8)) for id, label in maps.items()]
    every = tuple(_formats.FORMS)
    review.write(folder, samples, lambda sample: maps[sample.id], CLASSES, forms=every)
    np.savez(folder / "truth.npz", **maps)
    files.write_json(folder / "names.json", dict(enumerate(NAMES, start=1)) | {IGNORE: "void"})
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run([TOOLS, SCRIPT, folder], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    print(json.loads(done.stdout.splitlines()[-1]))
    return folder


@pytest.mark.parametrize(
    "tool", ["labelme", "pycocotools", "label_studio", "supervision_yolo", "datumaro_coco", "datumaro_voc"]
)
def test_tools_read_each_pixel_that_review_writes(tool, out):
    truth, found = np.load(out / "truth.npz"), np.load(out / f"read_{tool}.npz")
    assert sorted(truth) == sorted(found)
    for id in truth:
        np.testing.assert_array_equal(found[id], truth[id], err_msg=id)


def loaded(out, place, monkeypatch):
    monkeypatch.setenv("PLG_DATA", str(out / "data"))
    with warnings.catch_warnings(action="ignore"):
        classes = str(out / "classes.yaml")
        data = datasets.load("folder", root=out / "images", labels=str(out / place), classes=classes)
    return {sample.id: sample.truth() for sample in data.labelled}


@pytest.mark.parametrize("tool", EXACT)
def test_each_pixel_that_tools_write_is_read(tool, out, monkeypatch):
    truth, found = np.load(out / "truth.npz"), loaded(out, EXACT[tool], monkeypatch)
    assert found.keys() == set(truth)
    for id in truth:
        np.testing.assert_array_equal(found[id], truth[id], err_msg=id)


@pytest.mark.parametrize("tool", POLYGONS)
def test_polygons_that_tools_write_keep_their_regions(tool, out, monkeypatch):
    """YOLO's are exact. In COCO's form OpenCV's contours lose half a pixel at each side, as pycocotools reads them."""
    truth, found = np.load(out / "truth.npz"), loaded(out, POLYGONS[tool], monkeypatch)
    assert found.keys() == {"scène 1", "large photo"}  # supervision makes boxes of single pixels
    if tool == "yolo":
        assert all((found[id] == truth[id]).all() for id in found)
    large, ious = found["large photo"], []
    for value, region in review.regions(truth["large photo"], CLASSES):
        drawn = (large == value) & ~((truth["large photo"] == value) & ~region)  # without other regions of this class
        if region.sum() >= 5000:
            ious.append((drawn & region).sum() / (drawn | region).sum())
    print(f"{tool}: {len(ious)} regions, IoU {min(ious):.3f} to {max(ious):.3f}")
    assert min(ious) >= 0.98
