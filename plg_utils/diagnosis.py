"""Why a label map is wrong: its kinds of error, its borders, and the calibration of its confidence.

`error_types`, `boundaries` and `calibration` count one image, as `metrics.confusion` does. Add their counts up over the
data set, and give the sums to `boundary_scores` and `reliability`.
"""

import math
from dataclasses import dataclass

import numpy as np

from plg_utils.metrics import compared, known_mean, shares
from plg_utils.records import IGNORE

OUTCOMES = ("boundary", "background bleed", "missed object", "wrong class", "right")  # of a pixel; see error_types


# Kinds of error


def default_band(size: tuple[int, int]) -> int:
    """Width in pixels of the boundary band of an image (H, W): 3 if the longer side has 128 pixels, 5 if it has 500."""
    return max(1, round(3 + (max(size) - 128) * (5 - 3) / (500 - 128)))


def error_types(
    truth: np.ndarray, label: np.ndarray, num_classes: int, *, background: int | None = 0, band: int | None = None
) -> np.ndarray:
    """Count the pixels of each true class by their outcome: a kind of error, or right.

    Each pixel with a truth has exactly one of OUTCOMES, the first that fits:
        boundary            wrong, and the truth holds another value (void included: VOC draws it around each thing)
                            at most `band` pixels away, from centre to centre (Euclid); the image's edge is no boundary
        background bleed    truth is background, label is an object
        missed object       truth is an object, label is background or none
        wrong class         truth is an object, label is another one
    An uncovered pixel (label IGNORE) counts as background, or as missed if there is no such class (None).

    truth, label: (H, W), integers in 0..num_classes-1 or IGNORE
    band: by default `default_band` of the image; give it if the images of a set differ in size
    returns: (K, 5) int64 in the order of OUTCOMES, to be added up over images; the sum is all pixels with a truth
    """
    truth, label, _ = compared(truth, label, num_classes)
    band = default_band(truth.shape) if band is None else band
    empty = IGNORE if background is None else background
    given = np.where(label == IGNORE, np.uint8(empty), label)
    wrong = given != truth
    outcome = np.full(truth.shape, OUTCOMES.index("right"), np.uint8)
    outcome[wrong] = OUTCOMES.index("wrong class")
    outcome[wrong & (given == empty)] = OUTCOMES.index("missed object")
    outcome[wrong & (truth == empty)] = OUTCOMES.index("background bleed")  # void, where empty is IGNORE: not counted
    near = _disc(truth, band, np.maximum) != _disc(truth, band, np.minimum)
    outcome[wrong & near] = OUTCOMES.index("boundary")
    cells = truth.astype(np.uint16) * len(OUTCOMES) + outcome
    return np.bincount(cells.ravel(), minlength=256 * len(OUTCOMES)).reshape(256, len(OUTCOMES))[:num_classes]


def _disc(values: np.ndarray, radius: int, extreme: np.ufunc) -> np.ndarray:
    """Largest (np.maximum) or smallest (np.minimum) value (H, W) in the disc around each pixel, within the image."""
    row, reach, result = values.copy(), 0, values.copy()  # row: extreme over the pixels up to `reach` left and right
    for down in range(radius, -1, -1):
        wide = math.isqrt(radius**2 - down**2)
        for across in range(reach + 1, wide + 1):
            row[:, across:] = extreme(row[:, across:], values[:, :-across])
            row[:, :-across] = extreme(row[:, :-across], values[:, across:])
        reach = wide
        if down:
            result[down:] = extreme(result[down:], row[:-down])
            result[:-down] = extreme(result[:-down], row[down:])
    return extreme(result, row)


# Borders


@dataclass(frozen=True, eq=False)
class BoundaryScores:
    """How close the borders of the classes are to the true ones."""

    precision: np.ndarray  # (K,) share of the given border that is near a true one; nan if none is given
    recall: np.ndarray  # (K,) share of the true border that is near a given one; nan if there is none
    f_score: np.ndarray  # (K,) harmonic mean of the two; 0 if nothing was given, nan without a true border
    mean_f: float  # over the classes that have a true border


def boundaries(
    truth: np.ndarray, label: np.ndarray, num_classes: int, *, background: int | None = 0, tolerance: int | None = None
) -> np.ndarray:
    """Count the border pixels of each class that are near a border of the same class in the other map.

    A border pixel of a class has another value above, below, left or right. Void truth is another value too, since VOC
    draws it around each thing. A given border inside void cannot be wrong, so it counts only if it is near a true one.
    Uncovered pixels count as background, as in `error_types`.

    truth, label: (H, W), integers in 0..num_classes-1 or IGNORE
    tolerance: pixels, from centre to centre (Euclid); by default 0.75 % of the image's diagonal, at least 1
        (Csurka et al., BMVC 2013, who score each image by itself; here the counts are added up over the set)
    returns: (K, 4) int64: border pixels given, of them near a true one, true ones, of them near a given one
    """
    truth, label, _ = compared(truth, label, num_classes)
    if tolerance is None:
        tolerance = max(1, round(0.0075 * math.hypot(*truth.shape)))
    if background is not None:
        label = np.where(label == IGNORE, np.uint8(background), label)
    true_border, given_border = borders(truth), borders(label)
    counts = np.zeros((num_classes, 4), np.int64)
    for index in np.setdiff1d(np.union1d(truth[true_border], label[given_border]), IGNORE):
        true, given = true_border & (truth == index), given_border & (label == index)
        near = _disc(true, tolerance, np.logical_or)
        found = true & _disc(given, tolerance, np.logical_or)
        counts[index] = [kind.sum() for kind in (given & (near | (truth != IGNORE)), given & near, true, found)]
    return counts


def borders(values: np.ndarray, inner: bool = False) -> np.ndarray:
    """Where a pixel has another value above, below, left or right: (H, W) bool; inner: only below or to the right."""
    border = np.zeros(values.shape, bool)
    down, across = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    border[:-1] |= down
    border[:, :-1] |= across
    if not inner:
        border[1:] |= down
        border[:, 1:] |= across
    return border


def boundary_scores(counts: np.ndarray) -> BoundaryScores:
    """Precision, recall and F-score of the borders, from counts (K, 4) of `boundaries` summed over the data set."""
    given, given_near, true, true_near = np.asarray(counts).T
    precision, recall = shares(given_near, given), shares(true_near, true)
    both = np.nan_to_num(precision) + np.nan_to_num(recall)
    f_score = np.where(true > 0, 0.0, np.nan)
    np.divide(2 * precision * recall, both, out=f_score, where=both > 0)
    return BoundaryScores(precision, recall, f_score, known_mean(f_score))


# Confidence


@dataclass(frozen=True, eq=False)
class Reliability:
    """How well a confidence agrees with the accuracy, and how right the most confident pixels are."""

    edges: np.ndarray  # (bins + 1,) of the confidence, 0 to 1
    pixels: np.ndarray  # (bins,) int64
    confidence: np.ndarray  # (bins,) mean in each bin, nan where it is empty
    accuracy: np.ndarray  # (bins,) share of right pixels, nan where the bin is empty
    ece: float  # mean over the pixels of |accuracy - confidence| of their bin (Guo et al., ICML 2017)
    coverage: np.ndarray  # (T,) share of pixels kept, from the most confident bin down to each non-empty one; ends at 1
    kept_accuracy: np.ndarray  # (T,) share of right pixels among those kept


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> np.ndarray:
    """Count pixels, and how many of them are right, by their confidence.

    Leave out pixels without a truth: `known = truth != IGNORE`, then `calibration(confidence[known], (label ==
    truth)[known])`. Uncovered pixels have confidence 0.

    confidence: any shape, in [0, 1], correct: the same shape, bool
    bins: of equal width; one reaches from its lower edge to below the upper one, the last includes 1
    returns: (bins, 3) float64: pixels, right ones, sum of their confidence; to be added up over images
    """
    confidence, correct = np.asarray(confidence, np.float64).ravel(), np.asarray(correct).ravel()
    if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1):  # so written, nan is refused too
        raise ValueError(f"confidence is {confidence.min():.3g} to {confidence.max():.3g}, not within 0 and 1")
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    return np.stack([np.bincount(which, weights, bins) for weights in (None, correct, confidence)], axis=1)


def reliability(counts: np.ndarray, bins: int | None = None) -> Reliability:
    """Turn counts (bins', 3) of `calibration`, summed over the data set, into curves and the calibration error.

    bins: number after merging, a divisor of bins'; the curve of accuracy against coverage keeps the fine bins.
        Most pixels have a confidence near 1, so a smooth curve needs about 300 fine bins.
    """
    counts = np.asarray(counts, np.float64)
    bins = len(counts) if bins is None else bins
    pixels, right, summed = counts.reshape(bins, -1, 3).sum(axis=1).T
    total, gaps = pixels.sum(), np.abs(right - summed)  # = pixels * |accuracy - confidence|
    kept = counts[::-1].cumsum(axis=0)[counts[::-1, 0] > 0]  # (T, 3), empty bins left out
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        pixels=pixels.astype(np.int64),
        confidence=shares(summed, pixels),
        accuracy=shares(right, pixels),
        ece=float(gaps.sum() / total) if total else float("nan"),
        coverage=kept[:, 0] / total,
        kept_accuracy=kept[:, 1] / kept[:, 0],
    )
