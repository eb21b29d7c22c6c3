"""Connected regions of a map, such as a mask or a label map."""

import numpy as np


def connected(values: np.ndarray, *, corners: bool = False) -> np.ndarray:
    """First pixel, counted row by row, of the region of one value that each pixel of a map is in.

    values: (H, W); corners: whether pixels that touch at a corner are connected; returns: (H, W) int64
    """
    if not values.size:
        return np.zeros(values.shape, dtype=np.int64)
    flat, width = values.ravel(), values.shape[1]
    begins = np.append(True, flat[1:] != flat[:-1])
    begins[::width] = True
    starts, run = np.flatnonzero(begins), (np.cumsum(begins) - 1).reshape(values.shape)  # runs of a value in a row
    touching = []  # pairs of runs of one value: in a row, and in the row above
    for shift in (-1, 0, 1) if corners else (0,):
        below = np.s_[1:, max(0, -shift) : width - max(0, shift)]
        above = np.s_[:-1, max(0, shift) : width - max(0, -shift)]
        same = values[below] == values[above]
        pairs = np.stack([run[below][same], run[above][same]])  # each many times in a row
        touching.append(pairs[:, np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0))[: pairs.shape[1]]])
    one, other = np.concatenate(touching, axis=1)
    root = np.arange(len(starts))  # for each run: a run of its region; in the end the first one
    while (root[one] != root[other]).any():
        smaller = np.minimum(root[one], root[other])
        np.minimum.at(root, root[one], smaller)
        np.minimum.at(root, root[other], smaller)
        root = root[root]
    return starts[root][run]


def components(mask: np.ndarray) -> np.ndarray:
    """Number the regions of a mask; cells that touch at a corner are connected.

    mask: (h, w) bool; returns: (h, w) int64, 0 outside, and in a region the number of its first cell plus 1
    """
    return np.where(mask, connected(mask, corners=True) + 1, 0)
