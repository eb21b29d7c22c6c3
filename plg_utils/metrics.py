"""mIoU from one integer confusion matrix per data set.

`confusion` counts one image (or a stack of them); matrices are added up over the set; `scores` derives everything else.
"""

import numpy as np

from plg_utils.records import IGNORE, Scores


def confusion(truth: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each true class that were given each label.

    truth, label: the same shape, integers in 0..num_classes-1 or IGNORE
    returns: (K, K+1) int64, rows are true classes, the last column is for label IGNORE; void truth is not counted
    """
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
        strange = values[((values < 0) | (values >= num_classes)) & (values != IGNORE)]
        if strange.size:
            raise ValueError(
                f"{name} holds the value {strange[0]}; right are 0..{num_classes - 1}, and {IGNORE} for no class"
            )
    valid = truth != IGNORE
    rows = truth[valid].astype(np.int64)
    columns = np.where(label[valid] == IGNORE, num_classes, label[valid]).astype(np.int64)
    cells = np.bincount(rows * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1))
    return cells.reshape(num_classes, num_classes + 1).astype(np.int64)


def scores(matrix: np.ndarray, *, uncovered: str = "background", background: int | None = 0) -> Scores:
    """IoU of each class, their mean, and the share of pixels that have a label at all.

    matrix: (K, K+1) counts of `confusion`, summed over the data set
    uncovered: pixels labelled IGNORE count as the class `background`, or as a "miss" of their true class; where a
        data set has no background class (None) they are misses
    returns: iou is nan for a class without a truth pixel; the mean leaves it out, even if it was predicted
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[1] != matrix.shape[0] + 1 or not np.issubdtype(matrix.dtype, np.integer):
        raise ValueError(f"a {matrix.dtype} array {matrix.shape} is not the (K, K+1) integer matrix of confusion()")
    if uncovered not in ("background", "miss"):
        raise ValueError(f'uncovered is "{uncovered}"; right are "background" and "miss"')
    num_classes = len(matrix)
    counted = matrix.copy()
    if uncovered == "background" and background is not None:
        counted[:, background] += counted[:, num_classes]
        counted[:, num_classes] = 0
    hit = counted.diagonal()  # (K,)
    true = counted.sum(axis=1)
    predicted = counted[:, :num_classes].sum(axis=0)
    iou = np.full(num_classes, np.nan)
    occurs = true > 0
    iou[occurs] = hit[occurs] / (true + predicted - hit)[occurs]
    total = int(matrix.sum())
    return Scores(
        iou=iou,
        mean_iou=float(iou[occurs].mean()) if occurs.any() else float("nan"),
        coverage=float(matrix[:, :num_classes].sum() / total) if total else float("nan"),
        confusion=matrix,
    )
