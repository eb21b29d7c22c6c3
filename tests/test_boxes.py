"""Paper C's labels: SAM in boxes against its package, the steps against plain loops, and a toy that is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import reference_boxes
from segment_anything import SamPredictor
from test_masks import random_images, toy_sam

from plg_utils import generators
from plg_utils.detectors import Boxes
from plg_utils.generators import boxes as box_labels
from plg_utils.masks import _encoder, sam
from plg_utils.records import IGNORE, Sample, TruthHidden
from plg_utils.tags import Tags


def random_boxes(rng, count, size=(12, 15), classes=5):
    """Boxes of whole and half pixels within an image, with scores of which some are equal."""
    corners = rng.integers(0, 2 * np.array(size[::-1]) + 1, (count, 2, 2)) / 2
    xyxy = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Boxes.of(xyxy, rng.integers(1, classes, count), rng.integers(0, 6, count) / 5)


# SAM in boxes


@pytest.fixture
def toy(monkeypatch):
    """A model that `sam.build_box_prompter` loads in place of any checkpoint; its masks are of all sizes."""
    model = toy_sam()
    monkeypatch.setattr(sam, "load", lambda checkpoint, model_name=None: model)
    return model


def test_masks_in_boxes_are_those_of_the_package(toy, monkeypatch):
    images = random_images((20, 30), (30, 20))
    boxes = [np.array([[2, 3, 17, 12], [0, 0, 30, 20], [8.5, 1, 12, 19]]), np.array([[1.0, 2, 9, 29]])]
    monkeypatch.setattr(_encoder, "ON_CPU", 1)  # so that our encoder takes its own way
    encoded, attend = [], _encoder.attend
    monkeypatch.setattr(_encoder, "attend", lambda *given: encoded.append(given) or attend(*given))
    found = sam.build_box_prompter()(images, boxes)
    predictor, ours = SamPredictor(toy_sam()), len(encoded)
    for image, of_image, (masks, predicted_iou) in zip(images, boxes, found, strict=True):
        assert (masks.dtype, masks.shape) == (bool, (len(of_image), *image.shape[:2]))
        assert (predicted_iou.dtype, predicted_iou.shape) == (np.float32, (len(of_image),))
        predictor.set_image(image)
        for box, mask, iou in zip(of_image, masks, predicted_iou, strict=True):
            (official,), (quality,), _ = predictor.predict(box=box, multimask_output=False)
            assert (mask != official).sum() <= 1
            assert iou == pytest.approx(quality, rel=1e-5)
    assert any(0 < mask.mean() < 1 for masks, _ in found for mask in masks)
    assert len(encoded) == ours == 2  # the package's class is as it was


def test_no_box_is_no_mask_and_boxes_are_checked(toy):
    image = random_images((20, 30))[0]
    prompt = sam.build_box_prompter()
    ((masks, predicted_iou),) = prompt([image], [np.zeros((0, 4))])
    assert (masks.shape, masks.dtype, predicted_iou.shape) == ((0, 20, 30), bool, (0,))
    with pytest.raises(ValueError, match=r"boxes are \(N, 4\) finite numbers"):
        prompt([image], [np.zeros(4)])


# The steps


def test_masks_stay_inside_their_boxes():
    rng = np.random.default_rng(0)
    for dilation in (0.0, 0.05, 0.3):
        boxes = random_boxes(rng, 25)
        masks = rng.random((25, 12, 15)) < 0.8
        expected = reference_boxes.inside_box(masks, boxes.xyxy.tolist(), dilation)
        np.testing.assert_array_equal(box_labels.inside_box(masks, boxes.xyxy, dilation), expected)
    assert box_labels.inside_box(np.zeros((0, 3, 4), bool), np.zeros((0, 4))).shape == (0, 3, 4)
    full = np.ones((1, 40, 60), dtype=bool)
    rows, columns = np.nonzero(box_labels.inside_box(full, np.array([[20, 10, 40, 30]]))[0])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (19, 40, 9, 30)  # 5 % of 20 pixels on each side


def test_the_merge_is_that_of_plain_loops():
    rng = np.random.default_rng(1)
    for count in (0, 1, 4, 9, 9, 9):
        boxes = random_boxes(rng, count)
        masks = rng.random((count, 12, 15)) < 0.4
        label, confidence = reference_boxes.merge(masks, boxes.classes.tolist(), boxes.scores.tolist(), 0)
        merged = box_labels.merge(masks, boxes)
        np.testing.assert_array_equal(merged.label, label)
        np.testing.assert_array_equal(merged.confidence, confidence.astype(np.float32))
        assert (merged.label.dtype, merged.confidence.dtype) == (np.uint8, np.float32)


def test_what_no_mask_covers_is_background_or_open():
    boxes, masks = Boxes.of([[0, 0, 1, 1]], [2], [0.25]), np.array([[[True, False]]])
    merged = box_labels.merge(masks, boxes)
    assert (merged.label.tolist(), merged.confidence.tolist()) == ([[2, 0]], [[0.25, 1]])
    merged = box_labels.merge(masks, boxes, background=None)
    assert (merged.label.tolist(), merged.confidence.tolist()) == ([[2, IGNORE]], [[0.25, 0]])
    with pytest.raises(ValueError, match="one for each of 1 boxes"):
        box_labels.merge(masks[:0], boxes)


# All of it


@pytest.fixture
def toys(squares):
    """A tagger, a detector and a prompter that know the squares; green is said to be there and never found."""
    state = SimpleNamespace(asked=[], missing=2)

    def tag(samples):
        return [Tags(np.array([1, 2, 3]), np.ones(3, dtype=np.float32)) for _ in samples]

    def detect(images, tags):
        state.asked.append([list(of_image) for of_image in tags])
        return [around(*pair) for pair in zip(images, tags, strict=True)]

    def around(image, wanted):
        wanted, found = [index for index in wanted if index != state.missing], []
        for index in wanted:
            rows, columns = np.nonzero((image == squares.classes.colours[index]).all(axis=2))
            found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        return Boxes.of(found, wanted, np.full(len(found), 0.5))

    def prompt(images, boxes):
        sizes = [(len(of_image), *image.shape[:2]) for image, of_image in zip(images, boxes, strict=True)]
        return [(np.ones(size, bool), np.ones(size[0], np.float32)) for size in sizes]

    def labeller(**changed):
        options = {"tags": tag, "detector": detect, "masks": prompt, "dilation": 0.0}
        return generators.build("boxes", squares.classes, **options | changed)

    state.labeller = labeller
    return state


def test_the_squares_are_found_and_a_tag_without_a_box_is_dropped(squares, toys):
    samples = [Sample(str(k), lambda: squares.image) for k in range(2)]
    expected = np.where(squares.truth == 2, 0, squares.truth)
    for each in toys.labeller()(samples):
        np.testing.assert_array_equal(each.label, expected)
        np.testing.assert_array_equal(each.confidence, np.where(expected > 0, 0.5, 1))
    assert toys.asked == [[[1, 2, 3]] * 2]
    toys.missing = None
    (found,) = toys.labeller()([squares.image])
    np.testing.assert_array_equal(found.label, squares.truth)


def test_masks_are_cut_to_the_box_unless_told_otherwise(squares, toys):
    grown, whole = (toys.labeller(dilation=each)([squares.image])[0].label for each in (0.125, None))
    assert (whole > 0).all()
    assert (squares.truth % 2 > 0).sum() < (grown > 0).sum() < whole.size


def test_tags_come_from_a_file_or_from_samples_that_are_open(squares, toys, tmp_path):
    path = tmp_path / "tags.json"
    path.write_text(json.dumps({"0": ["red"], "1": []}), encoding="utf-8")
    red, nothing = toys.labeller(tags=path)([Sample(str(k), lambda: squares.image) for k in range(2)])
    np.testing.assert_array_equal(red.label, squares.truth == 1)
    assert not nothing.label.any()  # an image without a tag is background
    generate = toys.labeller(tags="sample")
    (label,) = generate([Sample("a", lambda: squares.image, read_tags=lambda: (3,))])
    np.testing.assert_array_equal(label.label, 3 * (squares.truth == 3))
    with pytest.raises(TruthHidden, match="tags of a"):
        generate([Sample("a", lambda: squares.image)])


def test_an_image_is_read_once_though_its_tagger_reads_it_too(squares, toys):
    reads = []

    def tag(samples):
        return [Tags(np.array([1]), sample.image()[0, 0, :1] / 255) for sample in samples]

    toys.labeller(tags=tag)([Sample("a", lambda: reads.append(1) or squares.image)])
    assert reads == [1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tags": "ram"}, "tags is 'ram'; right are"),
        ({"tags": "sample", "tags_options": {"threshold": 0.5}}, "takes none: threshold"),
        ({"detector": "yolo"}, "no detector 'yolo'"),
    ],
)
def test_options_that_mean_nothing_are_refused(toys, options, says):
    with pytest.raises(ValueError, match=says):
        toys.labeller(**options)
