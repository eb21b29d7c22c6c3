"""Kinds of error, borders and calibration: by hand, and against plain loops."""

import math

import numpy as np
import pytest
import reference_metrics

from plg_utils import diagnosis
from plg_utils.records import IGNORE

# Kinds of error


def random_maps(seed, shape, num_classes, cell=3):
    """Two label maps of coarse squares, void and uncovered pixels strewn in."""
    rng = np.random.default_rng(seed)
    grid = (2, -(-shape[0] // cell), -(-shape[1] // cell))
    maps = rng.integers(0, num_classes, grid).repeat(cell, axis=1).repeat(cell, axis=2)[:, : shape[0], : shape[1]]
    maps[rng.random(maps.shape) < 0.04] = IGNORE
    return maps.astype(np.uint8)


def test_kinds_of_error_counted_by_hand():
    truth = np.zeros((1, 12), np.uint8)
    truth[0, 6:9], truth[0, 9], truth[0, 10:] = 1, IGNORE, 2
    #                  0 0 0 0 0 0  1 1 1  v  2 2
    label = np.array([[1, 0, 255, 2, 1, 0, 255, 0, 2, 0, 2, 1]], np.uint8)
    kinds = diagnosis.error_types(truth, label, 3, band=0)
    assert kinds.tolist() == [[0, 3, 0, 0, 3], [0, 0, 2, 1, 0], [0, 0, 0, 1, 1]]
    # one pixel from another value: columns 5 and 6, 8 and 10, the last two beside the void; 4 and 7 are two away
    kinds = diagnosis.error_types(truth, label, 3, band=1)
    assert kinds.tolist() == [[0, 3, 0, 0, 3], [2, 0, 1, 0, 0], [0, 0, 0, 1, 1]]
    kinds = diagnosis.error_types(truth, label, 3, band=2)
    assert kinds.tolist() == [[1, 2, 0, 0, 3], [3, 0, 0, 0, 0], [1, 0, 0, 0, 1]]
    assert diagnosis.error_types(truth, label, 3, band=99)[:, 1:4].sum() == 0
    # without a background class nothing can bleed, and only what has no label is missed
    kinds = diagnosis.error_types(truth, label, 3, background=None, band=0)
    assert kinds.tolist() == [[0, 0, 1, 3, 2], [0, 0, 1, 2, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (10, 14)])
@pytest.mark.parametrize("background", [0, 2, None])
def test_kinds_of_error_and_borders_equal_the_plain_loops(shape, background):
    for radius in (0, 1, 2, 3, 5):
        truth, label = random_maps(radius, shape, 4)
        got = diagnosis.error_types(truth, label, 4, background=background, band=radius)
        assert got.tolist() == reference_metrics.error_types(truth, label, 4, background, radius)
        assert got.sum() == (truth != IGNORE).sum()
        counts = diagnosis.boundaries(truth, label, 4, background=background, tolerance=radius)
        assert counts.tolist() == reference_metrics.boundaries(truth, label, 4, background, radius)
        wanted = [reference_metrics.f_score(*row) for row in counts.tolist()]
        np.testing.assert_allclose(diagnosis.boundary_scores(counts).f_score, wanted)


def test_the_default_band_follows_the_size():
    sizes = ((128, 128), 3), ((375, 500), 5), ((500, 333), 5), ((4, 4), 2)
    assert all(diagnosis.default_band(size) == band for size, band in sizes)


# Borders


def test_borders_counted_by_hand():
    truth = np.zeros((5, 9), np.uint8)
    truth[:, 3:] = 1
    label = np.zeros((5, 9), np.uint8)
    label[:, 5:] = 1  # the border is two pixels off
    assert diagnosis.boundaries(truth, label, 3, tolerance=1).tolist() == [[5, 0, 5, 0], [5, 0, 5, 0], [0] * 4]
    assert diagnosis.boundaries(truth, label, 3, tolerance=2).tolist() == [[5, 5, 5, 5], [5, 5, 5, 5], [0] * 4]
    off = diagnosis.boundary_scores(diagnosis.boundaries(truth, label, 3, tolerance=1))
    assert off.f_score[:2].tolist() == [0, 0] and np.isnan(off.f_score[2]) and off.mean_f == 0
    label[0, 0] = 1  # a false thing: its border is three pixels off, that of the background around it only two
    counts = diagnosis.boundaries(truth, label, 3, tolerance=2)
    assert counts.tolist() == [[7, 7, 5, 5], [6, 5, 5, 5], [0] * 4]
    found = diagnosis.boundary_scores(counts)
    assert found.precision[:2].tolist() == [1, 5 / 6] and found.recall[:2].tolist() == [1, 1]
    assert found.mean_f == pytest.approx((1 + 10 / 11) / 2)


def test_a_border_inside_of_void_may_be_right_and_cannot_be_wrong():
    truth = np.zeros((4, 14), np.uint8)
    truth[:, 4:12], truth[:, 12:] = IGNORE, 1
    label = np.zeros((4, 14), np.uint8)
    label[:, 11:] = 1  # for class 1 near the true border; for the background far from it, but nobody knows
    assert diagnosis.boundaries(truth, label, 2, tolerance=1).tolist() == [[0, 0, 4, 0], [4, 4, 4, 4]]
    assert diagnosis.boundary_scores(diagnosis.boundaries(truth, label, 2, tolerance=1)).f_score.tolist() == [0, 1]


def test_the_default_tolerance_follows_the_diagonal():
    truth, label = random_maps(3, (375, 500), 3, cell=40)
    default, five, four = (diagnosis.boundaries(truth, label, 3, tolerance=t).tolist() for t in (None, 5, 4))
    assert default == five != four


# Confidence


def test_calibration_counted_by_hand():
    confidence = np.array([[0.0, 0.1, 0.5, 0.74], [0.75, 0.8, 1.0, 1.0]], np.float32)
    correct = np.array([[0, 1, 0, 1], [1, 1, 1, 0]], bool)
    counts = diagnosis.calibration(confidence, correct, bins=4)
    np.testing.assert_allclose(counts, [[2, 1, 0.1], [0, 0, 0], [2, 1, 1.24], [4, 3, 3.55]], rtol=1e-6)
    found = diagnosis.reliability(counts)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1] and found.pixels.tolist() == [2, 0, 2, 4]
    np.testing.assert_allclose(found.accuracy, [0.5, np.nan, 0.5, 0.75])
    np.testing.assert_allclose(found.confidence, [0.05, np.nan, 0.62, 3.55 / 4], rtol=1e-6)
    assert found.ece == pytest.approx((2 * 0.45 + 2 * 0.12 + 4 * (3.55 / 4 - 0.75)) / 8)
    assert found.coverage.tolist() == [0.5, 0.75, 1] and found.kept_accuracy.tolist() == [3 / 4, 4 / 6, 5 / 8]


def test_calibration_equals_the_plain_loops_and_adds_up():
    rng = np.random.default_rng(4)
    for bins in (1, 2, 15, 100):
        confidence = rng.random((2, 20, 30)) ** 0.2
        confidence[0, 0] = rng.integers(0, bins + 1, 30) / bins  # on the edges, 0 and 1 among them
        correct = rng.random(confidence.shape) < confidence
        counts = diagnosis.calibration(confidence, correct, bins)
        wanted = reference_metrics.calibration(confidence, correct, bins)
        np.testing.assert_allclose(counts, wanted, rtol=1e-12)
        parts = sum(diagnosis.calibration(*part, bins) for part in zip(confidence, correct, strict=True))
        np.testing.assert_allclose(parts, counts, rtol=1e-12)
        found = diagnosis.reliability(counts)
        assert found.ece == pytest.approx(reference_metrics.ece(wanted))
        pairs = zip(found.coverage, found.kept_accuracy, strict=True)
        np.testing.assert_allclose(list(pairs), reference_metrics.accuracy_coverage(wanted))


def test_fine_bins_merge_into_coarse_ones():
    rng = np.random.default_rng(5)
    confidence = rng.random(5000)
    correct = rng.random(5000) < 0.7
    merged = diagnosis.reliability(diagnosis.calibration(confidence, correct, 60), bins=15)
    coarse = diagnosis.reliability(diagnosis.calibration(confidence, correct))
    np.testing.assert_allclose(merged.accuracy, coarse.accuracy)
    assert merged.ece == pytest.approx(coarse.ece) and len(merged.edges) == 16
    assert len(merged.coverage) == 60 and len(coarse.coverage) == 15


def test_no_pixel_and_wrong_confidence():
    found = diagnosis.reliability(diagnosis.calibration(np.zeros(0), np.zeros(0, bool)))
    assert math.isnan(found.ece) and not len(found.coverage)
    for confidence in ([0.5, 1.1], [0.5, np.nan]):
        with pytest.raises(ValueError, match="not within 0 and 1"):
            diagnosis.calibration(np.array(confidence), np.zeros(2, bool))
