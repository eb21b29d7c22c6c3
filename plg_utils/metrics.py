"""How good a label map is: mean IoU from one integer confusion matrix per data set, and what tells why.

`confusion` counts one image (or a stack of them); matrices are added up over the set; `scores` derives everything else.
The same holds for the kinds of error (`error_types`), the borders (`boundaries`) and the confidence (`calibration`):
a function counts one image, counts are added up, so that no set is too large for the memory.

As a program it scores any folder of label maps, from any tool (--help tells the options):

    python -m plg_utils.metrics PREDICTIONS TRUTH --classes voc

It imports no torch, so that it starts at once.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

from plg_utils import datasets, files
from plg_utils.records import IGNORE, Classes, Scores

OUTCOMES = ("boundary", "background bleed", "missed object", "wrong class", "right")  # of a pixel; see error_types


# Counting pixels


def confusion(truth: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each true class that were given each label.

    truth, label: the same shape, integers in 0..num_classes-1 or IGNORE
    returns: (K, K+1) int64, rows are true classes, the last column is for label IGNORE; void truth is not counted
    """
    return _compared(truth, label, num_classes)[2]


def _compared(truth: np.ndarray, label: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both maps as uint8, checked, and their confusion matrix (K, K+1) int64."""
    if not 1 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes is {num_classes}; a uint8 label map holds 1 to {IGNORE} classes")
    truth, label = np.asarray(truth), np.asarray(label)
    if truth.shape != label.shape:
        raise ValueError(
            f"truth has shape {truth.shape} and label {label.shape}: score labels at the truth's exact size"
        )
    for name, values in (("truth", truth), ("label", label)):
        if not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"{name} holds {values.dtype}, not integer class indices")
        if values.dtype != np.uint8 and values.size and not 0 <= values.min() <= values.max() <= IGNORE:
            _refuse(name, values[(values < 0) | (values > IGNORE)][0], num_classes)
    truth, label = truth.astype(np.uint8, copy=False), label.astype(np.uint8, copy=False)
    pairs = truth.ravel().astype(np.uint16)
    pairs <<= 8
    pairs |= label.ravel()
    # Counting all 65,536 pairs of bytes and checking the table costs half of checking and selecting the pixels.
    table = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    for name, counts in (("truth", table[num_classes:IGNORE]), ("label", table[:, num_classes:IGNORE].T)):
        if counts.any():
            _refuse(name, num_classes + int(np.flatnonzero(counts.any(axis=1))[0]), num_classes)
    return truth, label, np.concatenate([table[:num_classes, :num_classes], table[:num_classes, IGNORE:]], axis=1)


def _refuse(name: str, value: int, num_classes: int) -> None:
    raise ValueError(f"{name} holds the value {value}; right are 0..{num_classes - 1}, and {IGNORE} for no class")


def scores(matrix: np.ndarray, *, uncovered: str = "background", background: int | None = 0) -> Scores:
    """IoU of each class, their mean, and the share of pixels that have a label at all.

    matrix: (K, K+1) counts of `confusion`, summed over the data set
    uncovered: pixels labelled IGNORE count as the class `background`, or as a "miss" of their true class; where a
        data set has no background class (None) they are misses
    returns: iou is nan for a class without a truth pixel; the mean leaves it out, even if it was predicted
    """
    matrix = np.asarray(matrix)
    hit, true, given = _margins(matrix, uncovered, background)
    iou = _shares(hit, true + given - hit, where=true > 0)
    total = int(matrix.sum())
    return Scores(
        iou=iou,
        mean_iou=_mean(iou),
        coverage=float(matrix[:, :-1].sum() / total) if total else float("nan"),
        confusion=matrix,
    )


def precision_recall(
    matrix: np.ndarray, *, uncovered: str = "background", background: int | None = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the pixels given a class that are of it (precision), and of its pixels that were given it (recall).

    matrix, uncovered, background: as in `scores`
    returns: two of (K,); precision is nan for a class never given, recall for one without a truth pixel
    """
    hit, true, given = _margins(np.asarray(matrix), uncovered, background)
    return _shares(hit, given), _shares(hit, true)


def _margins(matrix: np.ndarray, uncovered: str, background: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each class that are right, true, and given: (..., K) each, of matrices (..., K, K+1)."""
    is_matrix = matrix.ndim >= 2 and matrix.shape[-1] == matrix.shape[-2] + 1
    if not is_matrix or not np.issubdtype(matrix.dtype, np.integer):
        raise ValueError(f"a {matrix.dtype} array {matrix.shape} is not the (K, K+1) integer matrix of confusion()")
    if uncovered not in ("background", "miss"):
        raise ValueError(f'uncovered is "{uncovered}"; right are "background" and "miss"')
    hit = matrix.diagonal(axis1=-2, axis2=-1).copy()
    given = matrix[..., :-1].sum(axis=-2)
    if uncovered == "background" and background is not None:
        hit[..., background] += matrix[..., background, -1]
        given[..., background] += matrix[..., -1].sum(axis=-1)
    return hit, matrix.sum(axis=-1), given


def _shares(part: np.ndarray, whole: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Part of the whole as float64, nan where the whole is 0 (or where it is not wanted)."""
    where = whole > 0 if where is None else where
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=where)


def _mean(values: np.ndarray) -> float:
    """Mean of those that are not nan; nan if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


# Kinds of error


def default_band(size: tuple[int, int]) -> int:
    """Width in pixels of the boundary band of an image of this size (H, W).

    3 where the longer side has 128 pixels (storybook), 5 where it has 500 (VOC), on a straight line between and beyond
    them, at least 1.
    """
    return max(1, round(3 + (max(size) - 128) * (5 - 3) / (500 - 128)))


def error_types(
    truth: np.ndarray, label: np.ndarray, num_classes: int, *, background: int | None = 0, band: int | None = None
) -> np.ndarray:
    """Count the pixels of each true class by what happened to them: the kinds of error, or right.

    Each pixel with a truth falls under exactly one of OUTCOMES, the first that fits:
        boundary            wrong, and the truth holds another value (void included: VOC draws it around each thing)
                            at most `band` pixels away, from centre to centre (Euclid); the image's edge is no boundary
        background bleed    truth is background, label is an object
        missed object       truth is an object, label is background or none
        wrong class         truth is an object, label is another one
    An uncovered pixel (label IGNORE) counts as background; where there is no such class (None), as missed.

    truth, label: (H, W), integers in 0..num_classes-1 or IGNORE
    band: by default `default_band` of the image; give it where the images of a set differ in size
    returns: (K, 5) int64 in the order of OUTCOMES, to be added up over images; the sum is all pixels with a truth
    """
    truth, label, _ = _compared(truth, label, num_classes)
    band = default_band(_size(truth)) if band is None else band
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
    table = np.bincount(cells.ravel(), minlength=256 * len(OUTCOMES)).reshape(256, len(OUTCOMES))
    return table[:num_classes]


def _size(truth: np.ndarray) -> tuple[int, int]:
    if truth.ndim != 2:
        raise ValueError(f"a label map is (H, W), not {truth.shape}: count images one by one and add up")
    return truth.shape


def _disc(values: np.ndarray, radius: int, extreme: np.ufunc) -> np.ndarray:
    """Largest (np.maximum) or smallest (np.minimum) value (H, W) in the disc around each pixel, within the image."""
    if radius != int(radius) or radius < 0:
        raise ValueError(f"a distance of {radius} pixels is not 0, 1, 2, ...")
    row, reach = values.copy(), 0  # row: extreme over the pixels up to `reach` to the left and right
    result = values.copy()
    for down in range(int(radius), -1, -1):
        wide = math.isqrt(int(radius) ** 2 - down**2)
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
    """How well the borders of the classes lie."""

    precision: np.ndarray  # (K,) share of the given border that lies near a true one; nan if none is given
    recall: np.ndarray  # (K,) share of the true border that lies near a given one; nan if there is none
    f_score: np.ndarray  # (K,) harmonic mean of the two; 0 if nothing was given, nan without a true border
    mean_f: float  # over the classes that have a true border


def boundaries(
    truth: np.ndarray, label: np.ndarray, num_classes: int, *, background: int | None = 0, tolerance: int | None = None
) -> np.ndarray:
    """Count the border pixels of each class that lie near a border of the same class in the other map.

    A border pixel of a class is one with a pixel of another value above, below, left or right. Void truth is another
    value too (VOC draws it around each thing), and a border given inside of it counts only if it lies near a true one:
    it cannot be wrong. Uncovered pixels count as background, as in `error_types`.

    truth, label: (H, W), integers in 0..num_classes-1 or IGNORE
    tolerance: pixels, from centre to centre (Euclid); by default 0.75 % of the image's diagonal, at least 1
        (Csurka et al., BMVC 2013, who score each image by itself; here the counts are added up over the set)
    returns: (K, 4) int64: border pixels given, of them near a true one, true ones, of them near a given one
    """
    truth, label, _ = _compared(truth, label, num_classes)
    if tolerance is None:
        tolerance = max(1, round(0.0075 * math.hypot(*_size(truth))))
    if background is not None:
        label = np.where(label == IGNORE, np.uint8(background), label)
    true_border, given_border = _borders(truth), _borders(label)
    counts = np.zeros((num_classes, 4), np.int64)
    for index in np.union1d(truth[true_border], label[given_border]):
        if index == IGNORE:
            continue
        true, given = true_border & (truth == index), given_border & (label == index)
        near = _disc(true, tolerance, np.logical_or)
        counts[index] = (
            (given & (near | (truth != IGNORE))).sum(),
            (given & near).sum(),
            true.sum(),
            (true & _disc(given, tolerance, np.logical_or)).sum(),
        )
    return counts


def _borders(values: np.ndarray) -> np.ndarray:
    """Where a pixel has another value above, below, left or right: (H, W) bool."""
    border = np.zeros(values.shape, bool)
    down, across = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    return border


def boundary_scores(counts: np.ndarray) -> BoundaryScores:
    """Precision, recall and F-score of the borders, from counts (K, 4) of `boundaries` summed over the data set."""
    given, given_near, true, true_near = np.asarray(counts).T
    precision, recall = _shares(given_near, given), _shares(true_near, true)
    both = np.nan_to_num(precision) + np.nan_to_num(recall)
    f_score = np.where(true > 0, 0.0, np.nan)
    np.divide(2 * precision * recall, both, out=f_score, where=both > 0)
    return BoundaryScores(precision, recall, f_score, _mean(f_score))


# Confidence


@dataclass(frozen=True, eq=False)
class Reliability:
    """Whether a confidence may be believed, and how right the surest pixels are."""

    edges: np.ndarray  # (bins + 1,) of the confidence, 0 to 1
    pixels: np.ndarray  # (bins,) int64
    confidence: np.ndarray  # (bins,) mean in each bin, nan where it is empty
    accuracy: np.ndarray  # (bins,) share of right pixels, nan where the bin is empty
    ece: float  # mean over the pixels of |accuracy - confidence| of their bin (Guo et al., ICML 2017)
    coverage: np.ndarray  # (T,) share of pixels kept, from the surest bin down to each that is not empty; ends at 1
    kept_accuracy: np.ndarray  # (T,) share of right pixels among those kept


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> np.ndarray:
    """Count pixels, and how many of them are right, by the confidence they were given.

    Leave out what is not to be judged: `known = truth != IGNORE`, then `calibration(confidence[known], (label ==
    truth)[known])`. Uncovered pixels have confidence 0.

    confidence: any shape, in [0, 1], correct: the same shape, bool
    bins: of equal width; one reaches from its lower edge to below the upper one, the last includes 1
    returns: (bins, 3) float64: pixels, right ones, sum of their confidence; to be added up over images
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct)
    if confidence.shape != correct.shape or correct.dtype != bool:
        raise ValueError(
            f"correct is {correct.dtype} {correct.shape}: it must be bool, {confidence.shape} as confidence is"
        )
    if bins < 1:
        raise ValueError(f"bins is {bins}; 15 are usual, and one is the least")
    if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1):  # so written, nan is refused too
        raise ValueError(f"confidence is {confidence.min():.3g} to {confidence.max():.3g}, not within 0 and 1")
    confidence, correct = confidence.ravel(), correct.ravel()
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    return np.stack([np.bincount(which, weights, bins) for weights in (None, correct, confidence)], axis=1)


def reliability(counts: np.ndarray, bins: int | None = None) -> Reliability:
    """Turn counts (bins', 3) of `calibration`, summed over the data set, into curves and the calibration error.

    bins: merge into so many, which must divide bins'; the curve of accuracy against coverage keeps the fine ones.
        Most pixels are given a confidence near 1, so count in 300 bins for a smooth one.
    """
    counts = np.asarray(counts, np.float64)
    bins = len(counts) if bins is None else bins
    if counts.ndim != 2 or counts.shape[1] != 3 or bins < 1 or len(counts) % bins:
        raise ValueError(f"counts {counts.shape} of calibration() are (bins, 3), and do not merge into {bins} bins")
    pixels, right, summed = counts.reshape(bins, -1, 3).sum(axis=1).T
    confidence, accuracy = _shares(summed, pixels), _shares(right, pixels)
    total = pixels.sum()
    gaps = np.abs(right - summed)  # = pixels * |accuracy - confidence|
    kept = counts[::-1].cumsum(axis=0)[counts[::-1, 0] > 0]  # (T, 3), an empty bin keeps nothing more
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        pixels=pixels.astype(np.int64),
        confidence=confidence,
        accuracy=accuracy,
        ece=float(gaps.sum() / total) if total else float("nan"),
        coverage=kept[:, 0] / total,
        kept_accuracy=kept[:, 1] / kept[:, 0],
    )


# Comparing methods


@dataclass(frozen=True)
class Interval:
    """A number and how far chance in the choice of images may move it."""

    value: float
    low: float
    high: float
    level: float  # share of the resamples between low and high


def bootstrap(
    matrices: np.ndarray,
    other: np.ndarray | None = None,
    *,
    uncovered: str = "background",
    background: int | None = 0,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean IoU over images, or of its difference to another method's.

    Images are drawn again, with replacement, as many as there are; both methods get the same draws. It tells what
    other images would change, not what another seed of the training would.

    matrices, other: (M, K, K+1), `confusion` of each image, of the same M images in the same order
    returns: mean IoU of matrices, minus that of other if given
    """
    pair = [np.asarray(each) for each in (matrices, other) if each is not None]
    if pair[0].ndim != 3 or len(pair[0]) < 2:
        raise ValueError(f"matrices {pair[0].shape} are not (M, K, K+1) of at least two images")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, and resamples={resamples} be at least 1")
    if pair[0].shape != pair[-1].shape or (pair[0].sum(axis=2) != pair[-1].sum(axis=2)).any():
        raise ValueError("the two methods were not counted on the same images in the same order: their truths differ")
    if not pair[0].any():
        raise ValueError("no image has a pixel with truth: there is no mean IoU")
    images = len(pair[0])
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    weights = np.concatenate([np.ones((1, images)), draws])  # (1 + resamples, M) how often each image counts
    means = []
    for each in pair:
        # Counts stay exact in float64, which numpy multiplies fast, up to 2**53 pixels.
        hit, true, given = (weights @ margin.astype(np.float64) for margin in _margins(each, uncovered, background))
        iou = np.nan_to_num(_shares(hit, true + given - hit, where=true > 0))
        means.append(_shares(iou.sum(axis=1), (true > 0).sum(axis=1)))  # (1 + resamples,)
    value, *drawn = means[0] - means[1] if other is not None else means[0]
    low, high = np.nanpercentile(drawn, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(value), float(low), float(high), level)


@dataclass(frozen=True)
class Summary:
    """Repetitions of one measurement."""

    values: tuple[float, ...]
    mean: float
    std: float  # of a sample (divided by n - 1); nan of a single value

    @property
    def signs(self) -> str:
        """Sign of each value, such as "++-"; 0 stands for none."""
        return "".join("+" if value > 0 else "-" if value < 0 else "0" for value in self.values)


def summarise(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation, of the seeds for example."""
    values = tuple(float(value) for value in values)
    if not values:
        raise ValueError("there is no value to summarise")
    return Summary(values, float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"))


def paired(a: Mapping, b: Mapping) -> Summary:
    """Differences a - b of two methods, seed by seed.

    a, b: seed -> score, of the same seeds
    returns: the differences in the order of a's seeds
    """
    if a.keys() != b.keys():
        raise ValueError(f"the seeds differ: {sorted(map(str, a))} and {sorted(map(str, b))}")
    return summarise([a[seed] - b[seed] for seed in a])


# The scorer: a folder of label maps against a folder of truths


def pair_up(
    predictions: str | Path, truths: str | Path, *, ids: Sequence[str] | None = None, allow_missing: bool = False
) -> tuple[dict[str, tuple[Path | None, Path]], list[str]]:
    """Pair the PNG label maps of two folders by their names without suffix.

    ids: only these truths
    returns: id -> (prediction, truth), the prediction None where it is missing and that is allowed; and the ids of
        predictions that have no truth, or none among ids
    """
    given, true = _maps_in(Path(predictions)), _maps_in(Path(truths))
    wanted = sorted(true) if ids is None else list(ids)
    unknown = [id for id in wanted if id not in true]
    if unknown:
        raise ValueError(f"{truths} holds no PNG for {_some(unknown)} of the list of ids: mend the list, or the folder")
    missing = [id for id in wanted if id not in given]
    if len(missing) == len(wanted):
        raise ValueError(
            f"{predictions} holds {_some(given)}, but wanted are {_some(wanted)} of {truths}: give both the same names"
        )
    if missing and not allow_missing:
        raise ValueError(
            f"{predictions} holds no PNG for {_some(missing)} of {truths}: add them, name the images to score by "
            "--ids, or count the missing ones as uncovered by --allow-missing"
        )
    return {id: (given.get(id), true[id]) for id in wanted}, sorted(given.keys() - set(wanted))


def _maps_in(folder: Path) -> dict[str, Path]:
    """PNG files of a folder by their names without suffix."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one that holds label maps as PNG")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".png" and not path.name.startswith(".") and path.is_file():
            if path.stem in found:
                raise ValueError(f"{folder} holds both {found[path.stem].name} and {path.name}: remove one")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{folder} holds no PNG: label maps lie directly in it, as ID.png")
    return found


def _some(names: Sequence[str]) -> str:
    """Three of the names, and how many there are."""
    names = list(names)
    return f"{', '.join(names[:3])}{f', ... ({len(names)} in all)' if len(names) > 3 else ''}"


def score_pair(prediction: Path | None, truth: Path, num_classes: int) -> np.ndarray:
    """Confusion matrix (K, K+1) of two label maps on disk; an image without prediction (None) is uncovered."""
    true = _read(truth)
    given = np.full_like(true, IGNORE) if prediction is None else _read(prediction)
    try:
        return confusion(true, given, num_classes)
    except ValueError as error:
        hint = "; are these the classes of the maps?" if "holds the value" in str(error) else ""
        raise ValueError(f"{prediction} (label) against {truth} (truth): {error}{hint}") from error


def _read(path: Path) -> np.ndarray:
    try:
        return files.read_label(path)  # values are checked when they are counted
    except ValueError as error:
        remedy = "" if ";" in str(error) else "; save the numbers of the classes, not colours, as 8-bit grey or palette"
        raise ValueError(f"{error}{remedy}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a folder of label maps, as the command line says; returns the exit status."""
    options = _parsed(arguments)
    try:
        _score(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m plg_utils.metrics",
        description="Score a folder of PNG label maps: mean IoU over the whole set, from one confusion matrix. Values "
        "are class indices, 255 is void in a truth and 'no label' in a prediction.",
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", help="folder of label maps, grey or palette PNG")
    parser.add_argument("truth", metavar="TRUTH", help="folder of annotated label maps of the same names and sizes")
    listed = ", ".join(sorted(path.stem for path in datasets.CLASS_FILES.glob("*.yaml")))
    parser.add_argument("--classes", required=True, help=f"{listed}, or a class file of your own (YAML)")
    parser.add_argument("--ids", metavar="FILE", help="score only these images: one name without .png in each line")
    parser.add_argument("--allow-missing", action="store_true", help="a truth without prediction counts as uncovered")
    parser.add_argument("--json", metavar="FILE", help="write the scores here")
    row = parser.add_argument_group("a row of a run's table")
    row.add_argument("--add-to", metavar="RUN", help="name of a run, to whose summary.json a row is added; it needs:")
    row.add_argument("--stage", choices=("zero_shot", "enhanced", "segmenter"))
    row.add_argument("--method", help="what made the label maps, such as unimatch or the name of your tool")
    row.add_argument("--labels", help="pseudo labels that the method learnt from; the method itself if it labels")
    row.add_argument("--split", help="by default val for a segmenter, else unlabelled")
    row.add_argument("--split-name", help="name of the list of labelled images, if it has one")
    row.add_argument("--labelled", type=int, help="how many labelled images were used")
    row.add_argument("--seed", type=int)
    row.add_argument("--checkpoint", choices=("last", "best_val"), default="last")
    row.add_argument("--options", default="{}", help="changed parameters, such as '{refine_target: zero_shot}'")
    row.add_argument("--name", help="how figures call it; by default the method")
    options = parser.parse_args(arguments)
    if options.add_to and not (options.stage and options.method):
        parser.error("--add-to needs --stage and --method")
    for name in ("stage", "method", "labels", "split", "split_name", "labelled", "seed", "name"):
        if not options.add_to and getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} describes a row, and --add-to RUN is missing")
    return options


def _score(options: argparse.Namespace) -> None:
    """Read, count, print, write."""
    classes = files.read_classes(_class_file(options.classes))
    summary = _Summary(options, classes) if options.add_to else None  # refuses before the work, not after it
    ids = _listed(Path(options.ids)) if options.ids else None
    pairs, others = pair_up(options.predictions, options.truth, ids=ids, allow_missing=options.allow_missing)
    if others:
        reason = f"not in {options.ids}" if options.ids else "for want of a truth to compare with"
        print(f"left out, {reason}: {_some(others)}", file=sys.stderr)
    missing = [id for id, (prediction, _) in pairs.items() if prediction is None]
    if missing:
        print(f"counted as uncovered, since there is no prediction: {_some(missing)}", file=sys.stderr)
    hidden = os.environ.get("PLG_PROGRESS", "1") == "0"  # as in runs.progress, whose module imports torch
    bar = tqdm(pairs.values(), desc="label maps", mininterval=1.0, delay=1.0, ascii=True, disable=hidden)
    matrix = sum(score_pair(*pair, classes.num_classes) for pair in bar)
    found = scores(matrix, background=classes.background)
    missed = scores(matrix, uncovered="miss")
    precision, recall = precision_recall(matrix, background=classes.background)
    if np.isnan(found.mean_iou):
        raise ValueError(f"no truth in {options.truth} has a pixel that is not void: there is nothing to score")
    print(_table(classes, found, missed, precision, recall, len(pairs)))
    named = {"miou": found.mean_iou, "iou": dict(zip(classes.names, found.iou.tolist(), strict=True))}
    named |= {"coverage": found.coverage, "miou_uncovered_missed": missed.mean_iou, "images": len(pairs)}
    if options.json:
        more = {"predictions": options.predictions, "truth": options.truth, "classes": options.classes}
        more |= {"missing": missing, "left_out": others, "confusion": matrix}
        more |= {"precision": dict(zip(classes.names, precision.tolist(), strict=True))}
        more |= {"recall": dict(zip(classes.names, recall.tolist(), strict=True))}
        files.write_json(options.json, named | more)
    if summary:
        summary.add(named)
        print(f"added to {summary.path}")


def _class_file(name: str) -> Path:
    """Path of a class file: one of ours by its name, else the path itself."""
    ours = datasets.CLASS_FILES / f"{name}.yaml"
    if ours.is_file():
        return ours
    if not Path(name).is_file():
        listed = ", ".join(sorted(path.stem for path in datasets.CLASS_FILES.glob("*.yaml")))
        raise ValueError(f"--classes {name}: neither one of {listed} nor a file; give the path of a class file (YAML)")
    return Path(name)


def _listed(path: Path) -> list[str]:
    """Ids of a text file, one in each line."""
    try:
        ids = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable list of ids ({error}); give a text file, one id in each line"
        ) from error
    repeated = [id for id in dict.fromkeys(ids) if ids.count(id) > 1]
    if repeated or not ids:
        problem = f"lists {_some(repeated)} more than once" if repeated else "is empty"
        raise ValueError(f"{path} {problem}: give each image one line")
    return ids


def _table(
    classes: Classes, found: Scores, missed: Scores, precision: np.ndarray, recall: np.ndarray, images: int
) -> str:
    """Text of the scores, in percent."""

    def percent(value: float) -> str:
        return f"{'-' if np.isnan(value) else f'{100 * value:.2f}':>10}"

    width = max(12, *map(len, classes.names))
    lines = [f"{'class':{width}}{'IoU %':>10}{'precision':>10}{'recall':>10}{'pixels':>12}"]
    for name, *values, pixels in zip(
        classes.names, found.iou, precision, recall, found.confusion.sum(axis=1), strict=True
    ):
        lines.append(f"{name:{width}}{''.join(map(percent, values))}{pixels:>12,}")
    lines.append(f"{'mean IoU':{width}}{percent(found.mean_iou)}  uncovered pixels as background (the default number)")
    lines.append(f"{'':{width}}{percent(missed.mean_iou)}  uncovered pixels as a miss")
    lines.append(f"{'coverage':{width}}{percent(found.coverage)}")
    return "\n".join([*lines, f"{'images':{width}}{images:>10,}"])


class _Summary:
    """The summary.json of a run, and the row that the command line asks to add."""

    def __init__(self, options: argparse.Namespace, classes: Classes):
        self.path = files.results_root() / files.check_stem(options.add_to) / "summary.json"
        try:
            changed = yaml.safe_load(options.options)
        except yaml.YAMLError:
            changed = None
        if not isinstance(changed, dict):
            raise ValueError(f"--options {options.options!r} is no mapping; write it as '{{refine_target: zero_shot}}'")
        is_network = options.stage == "segmenter"
        self._key = {
            "stage": options.stage,
            "method": options.method,
            "labels": options.labels if options.labels or is_network else options.method,
            "labelled": options.labelled,
            "split_name": options.split_name,
            "seed": options.seed,
            "split": options.split or ("val" if is_network else "unlabelled"),
            "checkpoint": options.checkpoint,
            "options": changed,
        }
        self._name = options.name or options.method
        self._classes = classes
        self._read()

    def _read(self) -> dict:
        """Read the summary as it is now; refuse it if the row does not fit."""
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not there: run notebooks/05_evaluation.ipynb of this run first")
        content = files.read_json(self.path)
        rows = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{self.path} has no list of rows: run notebooks/05_evaluation.ipynb of this run again")
        if any({key: row.get(key) for key in self._key} == files.plain(self._key) for row in rows):
            told = ", ".join(f"{key}={value}" for key, value in self._key.items() if value not in (None, {}))
            raise ValueError(f"{self.path} has this row already ({told}): remove it there, or tell them apart")
        for row in rows:
            if set(row.get("iou") or self._classes.names) != set(self._classes.names):
                raise ValueError(f"{self.path} scores other classes ({_some(row['iou'])}): give --classes of this run")
        return content

    def add(self, found: dict) -> None:
        """Write the summary with the row at its end."""
        content = self._read()  # once more: the scoring took a while
        row = self._key | {"name": self._name, "seconds": None} | found
        files.write_json(self.path, content | {"rows": [*content["rows"], row]})


if __name__ == "__main__":
    sys.exit(main())
