"""Records: masks survive their encoding, and what a stage may not see stays shut."""

import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco

from plg_utils import files, run_lengths
from plg_utils.records import Classes, Masks

THREE_MASKS = np.array([[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 0]]], dtype=bool)


def test_masks_by_hand():
    masks = Masks.from_dense(THREE_MASKS, predicted_iou=[0.9, 0.8, 0.7])
    assert (len(masks), masks.size) == (3, (2, 3))
    assert masks.areas().tolist() == [2, 2, 0]
    assert masks.boxes()[:2].tolist() == [[0, 0, 2, 1], [1, 1, 2, 1]]  # left, top, width, height
    assert masks.predicted_iou.dtype == np.float32
    assert np.isnan(masks.stability).all()
    for chosen, indices in (([0, 1, 2], [0, 1, 2]), ([2, 0], [2, 0]), (masks.areas() > 0, [0, 1])):
        taken = masks.take(chosen)
        np.testing.assert_array_equal(taken.dense(), THREE_MASKS[indices])
        np.testing.assert_allclose(taken.predicted_iou, np.array([0.9, 0.8, 0.7])[indices])
    assert masks.dense().dtype == bool
    for none in (masks.take([]), Masks.from_dense(THREE_MASKS[:0])):
        assert (none.dense().shape, none.areas().shape, none.boxes().shape) == ((0, 2, 3), (0,), (0, 4))


def test_classes_know_their_background():
    with_background = Classes(("background", "cat"), ((), ("cat",)), ((0, 0, 0), (9, 9, 9)))
    assert (with_background.num_classes, with_background.foreground) == (2, (1,))
    without = dataclasses.replace(with_background, background=None)
    assert without.foreground == (0, 1)
    with pytest.raises(ValueError, match="2 names, 1 lists of words"):
        dataclasses.replace(with_background, words=((),))


def test_more_masks_than_pycocotools_counts(tmp_path):
    """`coco.area` raises OverflowError for 256 masks or more: it puts their number into a uint8."""
    dense = np.random.default_rng(0).random((300, 5, 7)) < 0.4
    masks = Masks.from_dense(dense)
    assert masks.areas().dtype == np.int64
    np.testing.assert_array_equal(masks.areas(), dense.sum(axis=(1, 2)))
    few = masks.take(np.arange(255))
    np.testing.assert_array_equal(few.areas(), coco.area(list(few.rles)))
    files.write_masks(tmp_path / "a.json", masks)
    np.testing.assert_array_equal(files.read_masks(tmp_path / "a.json").dense(), dense)


def test_parts_of_masks_and_masks_as_parts_by_plain_slices():
    rng = np.random.default_rng(0)
    for _ in range(400):
        size = tuple(rng.integers(1, 9, 2).tolist())
        dense = rng.random((2, *size)) < rng.choice([0, 0.1, 0.5, 0.9, 1], (2, 1, 1))  # empty and full ones too
        masks = Masks.from_dense(dense)
        (left, right), (top, bottom) = (np.sort(rng.integers(0, length + 1, 2)).tolist() for length in size[::-1])
        np.testing.assert_array_equal(masks.inside((left, top, right, bottom)), dense[:, top:bottom, left:right])
        assert masks.coverage() == pytest.approx(dense.any(axis=0).mean())
        for mask, (left, top, right, bottom) in zip(dense, masks.corners(), strict=True):
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0)
            assert (left, top, right, bottom) == box
        room = rng.integers(0, 4, 2)
        corner = tuple(rng.integers(0, room + 1).tolist())  # top, left
        whole = np.zeros((2, *(size + room)), dtype=bool)
        whole[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = dense
        placed = [run_lengths.place(runs, size, corner[::-1], whole.shape[1:]) for runs in masks.runs]
        run_lengths.check(placed, whole.shape[1:])
        texts = [run_lengths.encode(runs, whole.shape[1:]) for runs in placed]
        assert texts == [rle["counts"] for rle in Masks.from_dense(whole).rles]
