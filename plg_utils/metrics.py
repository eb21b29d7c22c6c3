"""How good a label map is: mean IoU from one integer confusion matrix per data set.

`confusion` counts one image (or a stack of them); matrices are added up over the data set, so that no set is too large
for the memory; `scores` and `precision_recall` derive everything else. `diagnosis` says why a label map is wrong,
`statistics` whether a difference means something. Both build on `compared`, `margins`, `shares` and `known_mean`.
"""

from collections.abc import Iterable
from numbers import Integral

import numpy as np

from plg_utils.records import IGNORE, Scores


def confusion(truth: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each true class that were given each label.

    truth, label: the same shape, integers in 0..num_classes-1 or IGNORE
    returns: (K, K+1) int64, rows are true classes, the last column is for label IGNORE; void truth is not counted
    """
    return compared(truth, label, num_classes)[2]


def compared(truth: np.ndarray, label: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check two maps before they are counted, and count them.

    truth, label, num_classes: as in `confusion`
    returns: truth and label as uint8 of the same shape, and their confusion matrix (K, K+1) int64
    """
    if not isinstance(num_classes, Integral) or not 1 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes is {num_classes!r}; a uint8 label map holds 1 to {IGNORE} classes")
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
    uncovered: pixels labelled IGNORE count as the class `background`, or as a "miss" of their true class
    background: `classes.background` of the data set; None: it has no such class, so uncovered pixels are misses
    returns: iou is nan for a class without a truth pixel; the mean leaves it out, even if it was predicted
    """
    matrix = np.asarray(matrix)
    hit, true, given = margins(matrix, uncovered, background)
    iou = shares(hit, true + given - hit, where=true > 0)
    total = int(matrix.sum())
    return Scores(
        iou=iou,
        mean_iou=known_mean(iou),
        coverage=float(matrix[:, :-1].sum() / total) if total else float("nan"),
        confusion=matrix,
    )


def precision_recall(
    matrix: np.ndarray, *, uncovered: str = "background", background: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the pixels given a class that are of it (precision), and of its pixels that were given it (recall).

    matrix, uncovered, background: as in `scores`
    returns: two of (K,); precision is nan for a class never given, recall for one without a truth pixel
    """
    hit, true, given = margins(np.asarray(matrix), uncovered, background)
    return shares(hit, given), shares(hit, true)


def margins(matrix: np.ndarray, uncovered: str, background: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each class that are right, true, and given: what every score divides.

    matrix: (..., K, K+1), one confusion matrix or a stack of them
    uncovered, background: as in `scores`
    returns: three of (..., K) integers; the right ones are both true and given
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] + 1 or not np.issubdtype(matrix.dtype, np.integer):
        raise ValueError(f"a {matrix.dtype} array {matrix.shape} is not the (K, K+1) integer matrix of confusion()")
    if uncovered not in ("background", "miss") or not 0 <= (background or 0) < matrix.shape[-2]:
        right = f'"background" or "miss", and 0..{matrix.shape[-2] - 1}, or None for no such class'
        raise ValueError(f'uncovered is "{uncovered}" and background {background}; right are {right}')
    hit = matrix.diagonal(axis1=-2, axis2=-1).copy()
    given = matrix[..., :-1].sum(axis=-2)
    if uncovered == "background" and background is not None:
        hit[..., background] += matrix[..., background, -1]
        given[..., background] += matrix[..., -1].sum(axis=-1)
    return hit, matrix.sum(axis=-1), given


def shares(part: np.ndarray, whole: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Divide where there is something to divide by.

    part, whole: the same shape, where: the same, bool; by default where the whole is above 0
    returns: part / whole as float64, nan elsewhere
    """
    where = whole > 0 if where is None else where
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=where)


def mean_iou(
    truths: Iterable[np.ndarray], labels: Iterable[np.ndarray], num_classes: int, *, background: int | None
) -> float:
    """Mean IoU of label maps (H, W), counted once over all of them; background: as in `scores`."""
    pairs = zip(truths, labels, strict=True)
    return scores(sum(confusion(*pair, num_classes) for pair in pairs), background=background).mean_iou


def known_mean(values: np.ndarray) -> float:
    """Mean of the values that are not nan, such as the IoU of the classes that occur; nan if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
