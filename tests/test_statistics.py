"""Intervals, means and paired differences: by hand, and against scoring each resample."""

import math
import warnings

import numpy as np
import pytest

from plg_utils import metrics, statistics
from plg_utils.records import IGNORE


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

    def scored(matrices):
        return metrics.scores(matrices, background=background).mean_iou

    resampled = [[scored(np.tensordot(draw, each, 1)) for draw in draws] for each in (one, other)]
    options = {"resamples": 50, "seed": 3, "background": background}
    found = statistics.bootstrap(one, **options)
    assert found.value == pytest.approx(scored(one.sum(axis=0)))
    assert [found.low, found.high] == pytest.approx(np.percentile(resampled[0], [2.5, 97.5]).tolist())
    found = statistics.bootstrap(one, other, **options)
    difference = np.subtract(*resampled)
    assert [found.low, found.high] == pytest.approx(np.percentile(difference, [2.5, 97.5]).tolist())
    assert found.value == pytest.approx(scored(one.sum(axis=0)) - scored(other.sum(axis=0)))


def test_a_resample_without_truth_is_left_out():
    one = np.zeros((2, 2, 3), int)
    one[0, 0, 0] = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statistics.bootstrap(one, resamples=20) == statistics.Interval(1, 1, 1)


def test_a_bootstrap_of_what_does_not_fit_is_refused():
    one = image_matrices(0)
    for wrong, message in (
        ({"matrices": one[:1]}, "at least two images"),
        ({"matrices": one, "other": one[::-1]}, "same images"),
        ({"matrices": 0 * one}, "no image has a pixel"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.bootstrap(**wrong)


def test_seeds_are_summarised_and_paired():
    found = statistics.summarise([0.5, 0.6, 0.7])
    assert (found.mean, found.std) == (pytest.approx(0.6), pytest.approx(0.1))
    alone = statistics.summarise([0.5])
    assert alone.mean == 0.5 and math.isnan(alone.std)
    found = statistics.paired({0: 0.6, 1: 0.5, 2: 0.7}, {2: 0.5, 0: 0.5, 1: 0.5})
    assert found.values == pytest.approx((0.1, 0, 0.2)) and found.signs == "+0+"
    assert statistics.paired({0: 0.1}, {0: 0.3}).signs == "-"
    with pytest.raises(ValueError, match="seeds differ"):
        statistics.paired({0: 0.6}, {1: 0.5})
