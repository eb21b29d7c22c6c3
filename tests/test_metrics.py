"""Scores, kinds of error, borders, calibration and comparisons: by hand, and against plain loops."""

import math
import warnings

import numpy as np
import pytest
import reference_metrics
import reference_training

from plg_utils import metrics
from plg_utils.records import IGNORE


def test_confusion_and_scores_equal_the_plain_loops():
    rng = np.random.default_rng(0)
    for num_classes in (1, 2, 3, 6):
        for shape in ((1, 1), (4, 5), (2, 3, 3)):
            for void, uncovered_part in ((0, 0), (0.3, 0), (0, 0.3), (0.3, 0.5)):
                # one class fewer than there are: the last is absent in the truth, but may be predicted
                truth = rng.integers(0, max(1, num_classes - 1), shape).astype(np.uint8)
                label = rng.integers(0, num_classes, shape).astype(np.uint8)
                truth[rng.random(shape) < void] = IGNORE
                label[rng.random(shape) < uncovered_part] = IGNORE
                matrix = metrics.confusion(truth, label, num_classes)
                assert matrix.dtype == np.int64
                assert matrix.tolist() == reference_training.confusion(truth, label, num_classes)
                for background in (0, num_classes - 1):
                    for uncovered, stands_for in (("background", background), ("miss", IGNORE)):
                        got = metrics.scores(matrix, uncovered=uncovered, background=background)
                        iou, mean, coverage = reference_training.iou(truth, label, num_classes, stands_for)
                        np.testing.assert_allclose(got.iou, iou, rtol=1e-12)
                        np.testing.assert_allclose([got.mean_iou, got.coverage], [mean, coverage], rtol=1e-12)


def test_a_set_counted_by_hand():
    truth = np.array([[0, 0, 1, 1], [1, 255, 0, 0]], np.uint8)
    label = np.array([[0, 1, 1, 255], [1, 0, 255, 2]], np.uint8)
    matrix = metrics.confusion(truth, label, 3)
    assert matrix.tolist() == [[1, 1, 1, 1], [0, 2, 0, 1], [0, 0, 0, 0]]
    default = metrics.scores(matrix)  # the two uncovered pixels become background: one hit, one false alarm
    assert default.iou[:2].tolist() == [2 / 5, 2 / 4]
    assert np.isnan(default.iou[2])  # predicted once, but nowhere true: it does not count
    assert default.mean_iou == pytest.approx((2 / 5 + 2 / 4) / 2)
    missed = metrics.scores(matrix, uncovered="miss")
    assert missed.iou[:2].tolist() == [1 / 4, 2 / 4]
    assert default.coverage == missed.coverage == 5 / 7
    assert metrics.scores(matrix, background=None).iou[0] == 1 / 4  # no background class: uncovered is a miss
    assert default.confusion.tolist() == matrix.tolist()


def test_matrices_add_up():
    rng = np.random.default_rng(1)
    truth, label = rng.integers(0, 3, (2, 4, 4, 4))
    parts = sum(metrics.confusion(one, other, 3) for one, other in zip(truth, label, strict=True))
    assert parts.tolist() == metrics.confusion(truth, label, 3).tolist()


def test_nothing_to_score_is_nan():
    got = metrics.scores(metrics.confusion(np.full((2, 2), 255), np.zeros((2, 2), int), 2))
    assert np.isnan([got.mean_iou, got.coverage, *got.iou]).all()


@pytest.mark.parametrize(
    ("truth", "label", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"truth has shape \(2, 2\) and label \(2, 3\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "truth holds float64"),
        (np.zeros((2, 2), int), np.zeros((2, 2), bool), "label holds bool"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "truth holds the value 3; right are 0..2"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "label holds the value -1"),
        (np.full((2, 2), 254, np.uint8), np.zeros((2, 2), int), "254"),
        (np.zeros((2, 2), int), np.full((2, 2), 256), "label holds the value 256"),
        (np.zeros((2, 2), int), np.full((2, 2), 511), "label holds the value 511"),  # 255 if cut to a byte
        (np.full((2, 2), IGNORE), np.full((2, 2), 7), "label holds the value 7"),  # where the truth is void, too
    ],
)
def test_wrong_input_is_refused(truth, label, message):
    with pytest.raises((TypeError, ValueError), match=message):
        metrics.confusion(truth, label, 3)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="num_classes is 0"):
        metrics.confusion(np.zeros(1, int), np.zeros(1, int), 0)
    with pytest.raises(ValueError, match="integer matrix"):
        metrics.scores(np.zeros((3, 3), int))
    with pytest.raises(ValueError, match="hit"):
        metrics.scores(np.zeros((3, 4), int), uncovered="hit")


def test_a_wide_type_counts_as_a_byte_does():
    rng = np.random.default_rng(2)
    truth, label = rng.choice([0, 1, 254, IGNORE], (2, 9, 9))
    for kind in (np.uint8, np.uint16, np.int32, np.int64):
        matrix = metrics.confusion(truth.astype(kind), label.astype(kind), 255)
        assert matrix.tolist() == reference_training.confusion(truth, label, 255)
    assert metrics.confusion(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), 2).tolist() == [[0] * 3] * 2


def test_precision_and_recall_counted_by_hand():
    matrix = np.array([[6, 1, 0, 1], [2, 3, 0, 0], [0, 0, 0, 0]])  # two classes that occur, one that is never given
    precision, recall = metrics.precision_recall(matrix)
    np.testing.assert_allclose(precision, [7 / 9, 3 / 4, np.nan])  # the uncovered pixel is a given background
    np.testing.assert_allclose(recall, [7 / 8, 3 / 5, np.nan])
    precision, recall = metrics.precision_recall(matrix, uncovered="miss")
    np.testing.assert_allclose(precision, [6 / 8, 3 / 4, np.nan])
    np.testing.assert_allclose(recall, [6 / 8, 3 / 5, np.nan])
    np.testing.assert_allclose(metrics.precision_recall(matrix, background=None)[0], precision)


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
    kinds = metrics.error_types(truth, label, 3, band=0)
    assert kinds.tolist() == [[0, 3, 0, 0, 3], [0, 0, 2, 1, 0], [0, 0, 0, 1, 1]]
    # one pixel from another value: columns 5 and 6, 8 and 10, the last two beside the void; 4 and 7 are two away
    assert metrics.error_types(truth, label, 3, band=1).tolist() == [[0, 3, 0, 0, 3], [2, 0, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert metrics.error_types(truth, label, 3, band=2).tolist() == [[1, 2, 0, 0, 3], [3, 0, 0, 0, 0], [1, 0, 0, 0, 1]]
    assert metrics.error_types(truth, label, 3, band=99)[:, 1:4].sum() == 0
    # without a background class nothing can bleed, and only what has no label is missed
    kinds = metrics.error_types(truth, label, 3, background=None, band=0)
    assert kinds.tolist() == [[0, 0, 1, 3, 2], [0, 0, 1, 2, 0], [0, 0, 0, 1, 1]]


def test_the_band_is_a_disc():
    truth = np.zeros((15, 15), np.uint8)
    truth[7, 7] = 1
    wrong = metrics.error_types(truth, np.ones_like(truth), 2, band=5)
    assert wrong[0, 0] == 80  # of the 81 lattice points in a disc of radius 5, all but the centre
    assert wrong[0, 1] == 15 * 15 - 81 and wrong[1, 4] == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (10, 14)])
@pytest.mark.parametrize("background", [0, 2, None])
def test_kinds_of_error_and_borders_equal_the_plain_loops(shape, background):
    for radius in (0, 1, 2, 3, 5):
        truth, label = random_maps(radius, shape, 4)
        got = metrics.error_types(truth, label, 4, background=background, band=radius)
        assert got.tolist() == reference_metrics.error_types(truth, label, 4, background, radius)
        assert got.sum() == (truth != IGNORE).sum()
        counts = metrics.boundaries(truth, label, 4, background=background, tolerance=radius)
        assert counts.tolist() == reference_metrics.boundaries(truth, label, 4, background, radius)
        wanted = [reference_metrics.f_score(*row) for row in counts.tolist()]
        np.testing.assert_allclose(metrics.boundary_scores(counts).f_score, wanted)


def test_kinds_of_error_agree_with_the_confusion_matrix():
    truth, label = random_maps(0, (40, 50), 5)
    matrix = metrics.confusion(truth, label, 5)
    kinds = metrics.error_types(truth, label, 5)
    assert kinds.sum(axis=1).tolist() == matrix.sum(axis=1).tolist()
    matrix[:, 0] += matrix[:, -1]
    assert kinds[:, 4].tolist() == matrix.diagonal().tolist()


def test_the_default_band_follows_the_size():
    assert metrics.default_band((128, 128)) == 3
    assert metrics.default_band((375, 500)) == metrics.default_band((500, 333)) == 5
    assert metrics.default_band((4, 4)) >= 1
    truth, label = random_maps(1, (128, 100), 3, cell=25)
    assert (metrics.error_types(truth, label, 3) == metrics.error_types(truth, label, 3, band=3)).all()


def test_a_band_that_is_no_distance_and_a_stack_are_refused():
    with pytest.raises(ValueError, match="-1 pixels"):
        metrics.error_types(np.zeros((2, 2), int), np.zeros((2, 2), int), 2, band=-1)
    with pytest.raises(ValueError, match="2.5 pixels"):
        metrics.error_types(np.zeros((2, 2), int), np.zeros((2, 2), int), 2, band=2.5)
    for count in (metrics.error_types, metrics.boundaries):
        with pytest.raises(ValueError, match="one by one"):
            count(np.zeros((3, 2, 2), int), np.zeros((3, 2, 2), int), 2)


# Borders


def test_borders_counted_by_hand():
    truth = np.zeros((5, 9), np.uint8)
    truth[:, 3:] = 1
    label = np.zeros((5, 9), np.uint8)
    label[:, 5:] = 1  # the border is two pixels off
    assert metrics.boundaries(truth, label, 3, tolerance=1).tolist() == [[5, 0, 5, 0], [5, 0, 5, 0], [0] * 4]
    assert metrics.boundaries(truth, label, 3, tolerance=2).tolist() == [[5, 5, 5, 5], [5, 5, 5, 5], [0] * 4]
    off = metrics.boundary_scores(metrics.boundaries(truth, label, 3, tolerance=1))
    assert off.f_score[:2].tolist() == [0, 0] and np.isnan(off.f_score[2]) and off.mean_f == 0
    label[0, 0] = 1  # a false thing: its border is three pixels off, that of the background around it only two
    counts = metrics.boundaries(truth, label, 3, tolerance=2)
    assert counts.tolist() == [[7, 7, 5, 5], [6, 5, 5, 5], [0] * 4]
    found = metrics.boundary_scores(counts)
    assert found.precision[:2].tolist() == [1, 5 / 6] and found.recall[:2].tolist() == [1, 1]
    assert found.mean_f == pytest.approx((1 + 10 / 11) / 2)


def test_a_border_inside_of_void_may_be_right_and_cannot_be_wrong():
    truth = np.zeros((4, 14), np.uint8)
    truth[:, 4:12], truth[:, 12:] = IGNORE, 1
    label = np.zeros((4, 14), np.uint8)
    label[:, 11:] = 1  # for class 1 near the true border; for the background far from it, but nobody knows
    assert metrics.boundaries(truth, label, 2, tolerance=1).tolist() == [[0, 0, 4, 0], [4, 4, 4, 4]]
    assert metrics.boundary_scores(metrics.boundaries(truth, label, 2, tolerance=1)).f_score.tolist() == [0, 1]


def test_nothing_given_and_nothing_true():
    truth, label = np.zeros((2, 6, 6), np.uint8)
    truth[2:4, 2:4] = 1
    found = metrics.boundary_scores(metrics.boundaries(truth, label, 2))
    assert np.isnan(found.precision).all() and found.recall.tolist() == [0, 0] and found.mean_f == 0
    found = metrics.boundary_scores(metrics.boundaries(label, truth, 2))
    assert found.precision.tolist() == [0, 0] and np.isnan([*found.recall, *found.f_score, found.mean_f]).all()


def test_the_default_tolerance_follows_the_diagonal():
    truth, label = random_maps(3, (375, 500), 3, cell=40)
    default, five, four = (metrics.boundaries(truth, label, 3, tolerance=t).tolist() for t in (None, 5, 4))
    assert default == five != four


# Confidence


def test_calibration_counted_by_hand():
    confidence = np.array([[0.0, 0.1, 0.5, 0.74], [0.75, 0.8, 1.0, 1.0]], np.float32)
    correct = np.array([[0, 1, 0, 1], [1, 1, 1, 0]], bool)
    counts = metrics.calibration(confidence, correct, bins=4)
    np.testing.assert_allclose(counts, [[2, 1, 0.1], [0, 0, 0], [2, 1, 1.24], [4, 3, 3.55]], rtol=1e-6)
    found = metrics.reliability(counts)
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
        counts = metrics.calibration(confidence, correct, bins)
        wanted = reference_metrics.calibration(confidence, correct, bins)
        np.testing.assert_allclose(counts, wanted, rtol=1e-12)
        parts = sum(metrics.calibration(*part, bins) for part in zip(confidence, correct, strict=True))
        np.testing.assert_allclose(parts, counts, rtol=1e-12)
        found = metrics.reliability(counts)
        assert found.ece == pytest.approx(reference_metrics.ece(wanted))
        pairs = zip(found.coverage, found.kept_accuracy, strict=True)
        np.testing.assert_allclose(list(pairs), reference_metrics.accuracy_coverage(wanted))


def test_fine_bins_merge_into_coarse_ones():
    rng = np.random.default_rng(5)
    confidence = rng.random(5000)
    correct = rng.random(5000) < 0.7
    merged = metrics.reliability(metrics.calibration(confidence, correct, 60), bins=15)
    coarse = metrics.reliability(metrics.calibration(confidence, correct))
    np.testing.assert_allclose(merged.accuracy, coarse.accuracy)
    assert merged.ece == pytest.approx(coarse.ece) and len(merged.edges) == 16
    assert len(merged.coverage) == 60 and len(coarse.coverage) == 15
    with pytest.raises(ValueError, match="into 7 bins"):
        metrics.reliability(metrics.calibration(confidence, correct), bins=7)


def test_no_pixel_and_wrong_confidence():
    found = metrics.reliability(metrics.calibration(np.zeros(0), np.zeros(0, bool)))
    assert math.isnan(found.ece) and not len(found.coverage)
    with pytest.raises(ValueError, match="must be bool"):
        metrics.calibration(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="must be bool"):
        metrics.calibration(np.zeros(3), np.zeros(4, bool))
    for value in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="not within 0 and 1"):
            metrics.calibration(np.array([0.5, value]), np.zeros(2, bool))
    with pytest.raises(ValueError, match="bins is 0"):
        metrics.calibration(np.zeros(3), np.zeros(3, bool), 0)


# Comparisons


def image_matrices(seed, images=12, right=0.7, num_classes=4):
    """Confusion matrices (M, K, K+1) of random images; class 3 occurs in the first image alone."""
    truth = np.random.default_rng(9).integers(0, num_classes - 1, (images, 8, 8))
    truth[0, 0] = num_classes - 1
    rng = np.random.default_rng(seed)
    label = np.where(rng.random(truth.shape) < right, truth, rng.choice([0, 1, 2, IGNORE], truth.shape))
    return np.stack([metrics.confusion(*pair, num_classes) for pair in zip(truth, label, strict=True)])


@pytest.mark.parametrize("background", [0, None])
def test_the_bootstrap_equals_scoring_each_resample(background):
    one, other = image_matrices(0), image_matrices(1, right=0.5)
    draws = np.random.default_rng(3).multinomial(12, [1 / 12] * 12, size=50)
    resampled = [
        [reference_metrics.mean_iou(np.tensordot(draw, each, 1), background) for draw in draws] for each in (one, other)
    ]
    options = {"resamples": 50, "seed": 3, "background": background, "level": 0.8}
    found = metrics.bootstrap(one, **options)
    assert found.value == pytest.approx(metrics.scores(one.sum(axis=0), background=background).mean_iou)
    assert [found.low, found.high] == pytest.approx(np.percentile(resampled[0], [10, 90]).tolist())
    found = metrics.bootstrap(one, other, **options)
    difference = np.subtract(*resampled)
    assert [found.low, found.high] == pytest.approx(np.percentile(difference, [10, 90]).tolist())
    whole = [metrics.scores(each.sum(axis=0), background=background).mean_iou for each in (one, other)]
    assert found.value == pytest.approx(whole[0] - whole[1])


def test_the_bootstrap_is_seeded_paired_and_wider_with_fewer_images():
    one = image_matrices(0)
    assert metrics.bootstrap(one) == metrics.bootstrap(one) != metrics.bootstrap(one, seed=1)
    same = metrics.bootstrap(one, one)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    many, few = image_matrices(0, images=80), image_matrices(0, images=80)[1:8]
    wide, narrow = (metrics.bootstrap(each) for each in (few, many[1:]))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_resample_without_truth_is_left_out():
    one = np.zeros((2, 2, 3), int)
    one[0, 0, 0] = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.bootstrap(one, resamples=20) == metrics.Interval(1, 1, 1, 0.95)


def test_a_bootstrap_of_what_does_not_fit_is_refused():
    one = image_matrices(0)
    for wrong, message in (
        ({"matrices": one[0]}, "at least two images"),
        ({"matrices": one[:1]}, "at least two images"),
        ({"matrices": one, "other": one[:5]}, "same images"),
        ({"matrices": one, "other": one[::-1]}, "same images"),
        ({"matrices": 0 * one}, "no image has a pixel"),
        ({"matrices": one, "level": 95}, "between 0 and 1"),
        ({"matrices": one, "resamples": 0}, "at least 1"),
        ({"matrices": one.astype(float)}, "integer matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.bootstrap(**wrong)


def test_seeds_are_summarised_and_paired():
    found = metrics.summarise([0.5, 0.6, 0.7])
    assert (found.mean, found.std) == (pytest.approx(0.6), pytest.approx(0.1))
    alone = metrics.summarise([0.5])
    assert alone.mean == 0.5 and math.isnan(alone.std)
    found = metrics.paired({0: 0.6, 1: 0.5, 2: 0.7}, {2: 0.5, 0: 0.5, 1: 0.5})
    assert found.values == pytest.approx((0.1, 0, 0.2)) and found.signs == "+0+"
    assert metrics.paired({0: 0.1}, {0: 0.3}).signs == "-"
    with pytest.raises(ValueError, match="seeds differ"):
        metrics.paired({0: 0.6}, {1: 0.5})
    with pytest.raises(ValueError, match="no value"):
        metrics.summarise([])
