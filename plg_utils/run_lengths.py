"""COCO's run lengths, of all masks of an image at once.

A mask is read column by column; its runs are lengths of pixels outside it, inside it, outside it, and so on. Files and
pycocotools hold them as a text. pycocotools trusts what it gets: malformed run lengths crash the process.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco


class BrokenRunLengths(ValueError):
    """Run lengths that are those of no mask; `index` says which of several."""

    def __init__(self, index: int, reason: str):
        super().__init__(reason)
        self.index = index


def decode(texts: Sequence[str]) -> list[np.ndarray]:
    """Decode COCO's text form of run lengths, of several masks at once: (R,) int64 each.

    Each number is a row of characters from "0" (48) on: five bits each, lowest first, the sixth says that more
    follow, and the highest bit of the last is the sign. From the third run on the text holds the difference to the
    run before the previous one. (rleToString in maskApi.c of github.com/cocodataset/cocoapi)
    """
    characters = "".join(texts)
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)  # of the texts, in characters

    def refuse(where: np.ndarray, reason: str) -> None:
        if len(where):
            raise BrokenRunLengths(int(ends.searchsorted(where[0], "right")), reason)

    codes = np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64) - 48
    strange = np.flatnonzero((codes < 0) | (codes >= 64))
    refuse(strange, f"the character {characters[strange[0]]!r} does not occur in run lengths" if len(strange) else "")
    ended = codes & 32 == 0
    ended[ends[ends > 0] - 1] = True  # where the text stops, so that no number reaches into the next
    last = np.flatnonzero(ended)  # character of each number
    first = np.concatenate([[0], last + 1])[:-1]
    length = last + 1 - first
    refuse(first[length > 7], "a run length has no end")  # 35 bits: more than any image has pixels
    refuse(last[codes[last] & 32 > 0], "the text ends within a run length")
    place = np.arange(len(codes)) - first.repeat(length)
    runs = np.add.reduceat((codes & 31) << 5 * place, first) if len(first) else codes
    runs -= np.where(codes[last] & 16, 1 << 5 * length, 0)
    found = np.split(runs, last.searchsorted(ends[:-1])) if len(texts) else []
    for of_mask in found:
        for parity in (1, 2):
            of_mask[parity::2] = of_mask[parity::2].cumsum()
    return found


def check(masks: Sequence[np.ndarray], size: tuple[int, int]) -> None:
    """Refuse runs (R,) that are not those of masks of an image of this size, with a `BrokenRunLengths`."""
    pixels = size[0] * size[1]
    for index, runs in enumerate(masks):
        if (runs < 0).any() or not runs[1:].all():
            raise BrokenRunLengths(index, "a run length is negative, or zero where it may not be")
        if runs.sum() != pixels:
            raise BrokenRunLengths(index, f"its run lengths add up to {runs.sum()}, the image has {pixels} pixels")


def dense(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Draw masks from their runs, (R,) each: (N, H, W) bool, column by column in memory."""
    if not len(masks):
        return np.zeros((0, *size), dtype=bool)
    inside = np.concatenate([np.arange(len(runs)) % 2 == 1 for runs in masks])
    columns = np.repeat(inside, np.concatenate(masks))
    return columns.reshape(len(masks), size[1], size[0]).transpose(0, 2, 1)


def crop(runs: np.ndarray, size: tuple[int, int], box: Sequence[int]) -> np.ndarray:
    """Draw a mask of an image of this size (H, W) inside a box alone, column by column in memory: (h, w) bool.

    box: left, top, right, bottom in pixels, the last two not included
    """
    left, top, right, bottom = box
    column, first, end = _pieces(runs, size[0])
    first, end = np.maximum(first, top), np.minimum(end, bottom)
    there = (column >= left) & (column < right) & (first < end)
    shift = (column[there] - left) * (bottom - top) - top
    lengths = _lengths(first[there] + shift, end[there] + shift, (right - left) * (bottom - top))
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(right - left, bottom - top).T


def place(runs: np.ndarray, size: tuple[int, int], corner: tuple[int, int], whole: tuple[int, int]) -> np.ndarray:
    """Runs of a mask of an image of this size in a larger image, size `whole`, that holds it at corner (left, top)."""
    column, first, end = _pieces(runs, size[0])
    shift = (column + corner[0]) * whole[0] + corner[1]
    first, end = first + shift, end + shift
    parted = first[1:] != end[:-1]  # pieces that touch, from one full column to the next, are one run
    first, end = first[np.append(True, parted)[: len(first)]], end[np.append(parted, True)[: len(end)]]
    placed = _lengths(first, end, whole[0] * whole[1])
    return placed if placed[-1] or len(placed) == 1 else placed[:-1]


def _pieces(runs: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column, first row and last row + 1 of each run inside a mask, in pieces where it goes on in the next column."""
    edges = runs.cumsum()
    first, end = edges[: len(edges) // 2 * 2].reshape(-1, 2).T
    column = first // height
    counts = (end - 1) // height - column + 1
    column = column.repeat(counts) + np.arange(counts.sum()) - (counts.cumsum() - counts).repeat(counts)
    start = column * height
    return column, np.maximum(first.repeat(counts) - start, 0), np.minimum(end.repeat(counts) - start, height)


def _lengths(first: np.ndarray, end: np.ndarray, pixels: int) -> np.ndarray:
    """Lengths of the runs of so many pixels, of which those from each first to each end are inside."""
    return np.diff(np.stack([first, end], axis=1).ravel(), prepend=0, append=pixels)


def encode(runs: np.ndarray, size: tuple[int, int]) -> str:
    """COCO's text form of runs (R,): the other way round of `decode`, for one mask."""
    return coco.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)["counts"].decode("ascii")
