"""Paper A's core on arrays: pool features in each mask, give each segment a class, paint the label map.

    pool     (D, h, w) features and (N, H, W) masks  -> (N, D) segment embeddings
    assign   segment embeddings and text embeddings  -> (N,) classes and scores
    paint    masks, classes and scores               -> PseudoLabel

Zero-shot annotation of "Zero-Shot Pseudo Labels Generation Using SAM and CLIP for Semi-Supervised Semantic
Segmentation" (arXiv 2505.19846). What the paper leaves open (threshold, overlaps, pixels in no mask) is an option here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from plg_utils import run_lengths
from plg_utils.choices import one_of
from plg_utils.records import IGNORE, Masks, PseudoLabel

OVERLAPS = ("score", "small_on_top", "predicted_iou", "vote")
CHUNK = 2**20  # mask pixels that are turned to float at once: a stack of large masks never is, and caches hold it


# Pool


def pool(features: torch.Tensor, masks: np.ndarray | torch.Tensor | Masks, size: tuple[int, int]) -> torch.Tensor:
    """Mean inside each mask of the features bilinearly upsampled to the image.

    features: (D, h, w) of the encoder's grid, masks: (N, H, W) bool, or a record, which takes less memory
    size: (H, W) of the image
    returns: (N, D) float32 on the features' device, not of length 1; zeros for an empty mask
    """
    features = torch.as_tensor(features).float()
    runs = masks.runs if isinstance(masks, Masks) else None
    shape = (len(masks), *masks.size) if isinstance(masks, Masks) else tuple(masks.shape)
    if features.ndim != 3 or len(shape) != 3 or shape[1:] != tuple(size):
        shapes = f"features {tuple(features.shape)} and masks {shape}"
        raise ValueError(f"{shapes} are not (D, h, w) and (N, H, W) with (H, W) = {tuple(size)}")
    # Upsampling is linear: with a row of weights for each pixel, Uy (H, h) and Ux (W, w), the mean over the mask S of
    # the upsampled features is the sum of the features weighted by Uy^T S Ux / |S|. So no (H, W, D) tensor is built.
    height, width = size
    rows, columns = (
        bilinear_weights(*sides).to(features.device) for sides in zip(size, features.shape[1:], strict=True)
    )
    if runs is not None and height * width > CHUNK:
        return _pool_in_boxes(features, masks, rows, columns)
    weights = features.new_zeros((len(masks), *features.shape[1:]))  # (N, h, w)
    step = max(1, CHUNK // max(1, height * width))
    for start in range(0, len(masks), step):
        chosen = slice(start, start + step)
        part = masks[chosen] if runs is None else run_lengths.dense(runs[chosen], size)
        part = torch.as_tensor(part, device=features.device).float()
        area = part.sum(dim=(1, 2)).clamp(min=1)  # an empty mask keeps its zeros
        weights[chosen] = rows.T @ (part @ columns) / area[:, None, None]
    return weights.flatten(1) @ features.flatten(1).T


def _pool_in_boxes(features: torch.Tensor, masks: Masks, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Pool as above on a large image: only the pixels and the cells of a mask's box are looked at, a strip at a time.

    rows: (H, h), columns: (W, w), the weights of the cells in each pixel
    """
    pooled = features.new_zeros((len(masks), len(features)))
    for index, (runs, (left, top, right, bottom)) in enumerate(zip(masks.runs, masks.corners(), strict=True)):
        high, low = _cells(top, bottom, rows)
        strip = max(1, CHUNK // max(1, bottom - top))  # columns of the image
        for start in range(left, right, strip):
            end = min(start + strip, right)
            first, last = _cells(start, end, columns)
            part = torch.as_tensor(run_lengths.crop(runs, masks.size, (start, top, end, bottom)), device=rows.device)
            in_columns = part.float() @ columns[start:end, first:last]
            weights = rows[top:bottom, high:low].T @ in_columns  # (h, w) of the strip
            pooled[index] += features[:, high:low, first:last].flatten(1) @ weights.flatten()
    areas = torch.as_tensor(masks.areas(), device=pooled.device).clamp(min=1)
    return pooled / areas[:, None]


def _cells(first: int, end: int, weights: torch.Tensor) -> tuple[int, int]:
    """First and last + 1 of the cells that pixels first to end - 1 of a side are made of; weights: (pixels, cells)."""
    pixels, cells = weights.shape
    low, high = (math.floor((pixel + 0.5) * cells / pixels - 0.5) for pixel in (first, end - 1))
    return max(0, low), min(cells, high + 2)


def bilinear_weights(pixels: int, cells: int) -> torch.Tensor:
    """How each pixel mixes the cells of one axis when they are upsampled bilinearly with align_corners=False.

    returns: (pixels, cells) float32, each row has at most two entries and sums to 1
    """
    centre = (torch.arange(pixels, dtype=torch.float64) + 0.5) * cells / pixels - 0.5  # in cells, as interpolate has it
    centre = centre.clamp(0, cells - 1)  # beyond the outermost centres the outermost cells are repeated
    distance = (centre[:, None] - torch.arange(cells, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0).float()


# The threshold


@dataclass(frozen=True, eq=False)
class ThresholdChoice:
    """A threshold, and how well each value of a grid did on the labelled images."""

    threshold: float
    grid: np.ndarray  # (M,) thresholds, rising
    mean_iou: np.ndarray  # (M,) as measured
    smoothed: np.ndarray  # (M,) mean of each and its neighbours, weighted 1-2-1; or as measured


def choose_threshold(grid: Sequence[float], score: Callable[[float], float], *, smooth: bool) -> ThresholdChoice:
    """Choose the threshold with the best score, the middle one where several are best.

    grid: thresholds to try, rising; score: mean IoU at a threshold
    smooth: choose on the curve smoothed 1-2-1: a dozen images make it rough
    """
    grid = np.asarray(grid, dtype=np.float64)
    curve = np.array([score(float(threshold)) for threshold in grid])
    padded = np.pad(curve, 1, mode="edge")
    smoothed = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4 if smooth else curve
    best = np.flatnonzero(smoothed >= smoothed.max() - 1e-12)
    return ThresholdChoice(float(grid[best[len(best) // 2]]), grid, curve, smoothed)


# Assign


def assign(
    segment_embeddings: torch.Tensor,
    text_embeddings: torch.Tensor,
    *,
    owner: torch.Tensor | list[int] | None = None,
    background: int | None = 0,
    threshold: float | None = None,
    rule: str = "cosine",
    temperature: float = 0.01,  # CLIP was trained to logits of 100 x cosine
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give each segment the class whose words are nearest, or the background if no class is near enough.

    The score of a class is that of its best word. A segment becomes background if the best foreground class scores
    less than the threshold, or less than any background word. Without a background class (None) every segment gets
    its best class, and the threshold is not read.

    segment_embeddings: (N, D), text_embeddings: (K', D), of any length; they are compared by their cosine
    owner: (K',) class of each text; the background's index, or -1, for background words; None: text k is class k
    rule: "cosine" scores by the cosine in [-1, 1]; "softmax" by the softmax of cosine / temperature over the classes
        and the background words, a probability. The threshold is of the same kind
    returns: classes (N,) int64; scores (N,) float32, for a foreground class its score, for the background 1 minus the
        score of the best foreground class; of equal scores the lower class wins, and foreground before background
    """
    segment_embeddings, text_embeddings = torch.as_tensor(segment_embeddings), torch.as_tensor(text_embeddings)
    text_embeddings = text_embeddings.to(segment_embeddings.device)
    owner = torch.as_tensor(range(len(text_embeddings)) if owner is None else owner, device=text_embeddings.device)
    shapes = [tuple(embeddings.shape) for embeddings in (segment_embeddings, text_embeddings)]
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1] or len(owner) != shapes[1][0]:
        raise ValueError(
            f"segments {shapes[0]}, texts {shapes[1]} and owners ({len(owner)},) are not (N, D), (K', D) and (K',) of "
            "one encoder: make the segments again with the encoder that embeds the words"
        )
    if not (segment_embeddings.isfinite().all() and text_embeddings.isfinite().all()):
        raise ValueError("some embeddings are not finite numbers: make them again, with a sound checkpoint")
    if threshold is not None and not (isinstance(threshold, int | float) and math.isfinite(threshold)):
        raise ValueError(f"threshold is {threshold!r}; give a number of the kind that the rule scores by, or None")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0, such as 0.01")
    one_of(rule, ("cosine", "softmax"), "rule")
    is_background = (owner < 0) | (owner == (-1 if background is None else background))  # (K',)
    if background is None and is_background.any():
        raise ValueError("some text embeddings are background words, but there is no background class")
    foreground = owner[~is_background].unique()  # classes in rising order
    if not len(foreground):
        raise ValueError("no text embedding belongs to a foreground class")

    scores = torch.cat(class_cosines(segment_embeddings, text_embeddings, owner, background=background), dim=1)
    if rule == "softmax":
        scores = (scores / temperature).softmax(dim=1)
    best, index = scores[:, : len(foreground)].max(dim=1)  # the first, so the lowest class, of equal ones
    classes = foreground[index].long()
    if background is None:
        return classes, best
    rejected = (scores[:, len(foreground) :] > best[:, None]).any(dim=1)
    if threshold is not None:
        rejected |= best < threshold
    return classes.masked_fill(rejected, background), torch.where(rejected, 1 - best, best)


def class_cosines(
    embeddings: torch.Tensor, text_embeddings: torch.Tensor, owner: torch.Tensor, *, background: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare embeddings with all words; the cosine of a class is that of its best word.

    embeddings: (N, D) of any length, text_embeddings: (K', D), owner: (K',) the class of each word, see `assign`
    returns: cosines with the foreground classes in rising order (N, F) and with each background word (N, M)
    """
    cosine = F.normalize(embeddings.float(), dim=1) @ F.normalize(text_embeddings.float(), dim=1).T  # (N, K')
    is_background = (owner < 0) | (owner == (-1 if background is None else background))
    classes, place = owner[~is_background].unique(return_inverse=True)
    best = cosine.new_full((len(cosine), len(classes)), -torch.inf)
    best = best.scatter_reduce(1, place.expand(len(cosine), -1), cosine[:, ~is_background], "amax")
    return best, cosine[:, is_background]


# Paint


def paint(
    masks: np.ndarray | torch.Tensor | Masks,
    classes: np.ndarray | torch.Tensor,
    scores: np.ndarray | torch.Tensor,
    *,
    background: int | None = 0,
    overlap: str = "score",
    predicted_iou: np.ndarray | None = None,
) -> PseudoLabel:
    """Paint the segments into one label map; where foreground masks overlap, one of them wins each pixel.

    A background mask never covers a foreground mask: it wins only pixels that no foreground mask has. The order of
    the masks does not matter: ties go to the higher score, then to the lower class.

    masks: (N, H, W) bool, or a record, which takes less memory; classes: (N,) in 0..254, scores: (N,)
    overlap: who wins: "score" the highest score, "small_on_top" the smallest mask, "predicted_iou" the highest
        predicted_iou (N,), "vote" the class with the largest sum of scores over the masks that cover the pixel
    returns: label IGNORE with confidence 0 where no mask is. Confidence is the score of the winning mask, cut to
        [0, 1] (a cosine is one: compare it only with others of the same encoder); with "vote" the sum of the winning
        class divided by the number of foreground masks on the pixel
    """
    masks, classes, scores = _checked(masks, classes, scores, overlap, predicted_iou)
    rank, best_first = _on_top(masks, classes, scores, background, overlap, predicted_iou)
    worst_first, scores = best_first[::-1], scores.clip(0, 1)
    label = np.append(IGNORE, classes[worst_first]).astype(np.uint8).take(rank, mode="clip")
    confidence = np.append(np.float32(0), scores[worst_first]).take(rank, mode="clip")
    named = [index for index in best_first if classes[index] != background] if overlap == "vote" else []
    # A vote counts for each class in each pixel. So it is held strip by strip.
    height, width = label.shape
    boxes, strip = _boxes(masks), max(1, CHUNK // max(1, height))
    for left in range(0, width, strip) if named else ():
        right = min(left + strip, width)
        voters = [index for index in named if boxes[index][0] < right and left < boxes[index][2]]
        drawn = {index: _inside(masks, index, (left, 0, right, height)) for index in voters}
        if voters:
            _vote(label[:, left:right], confidence[:, left:right], drawn, classes, scores)
    return PseudoLabel(label, confidence)


def winners(
    masks: np.ndarray | torch.Tensor | Masks,
    classes: np.ndarray | torch.Tensor,
    scores: np.ndarray | torch.Tensor,
    *,
    background: int | None = 0,
    overlap: str = "score",
    predicted_iou: np.ndarray | None = None,
) -> np.ndarray:
    """Number of the mask that wins each pixel in `paint`, whose arguments these are: (H, W) int64, -1 where none is.

    With "vote" no single mask wins, so it is refused.
    """
    masks, classes, scores = _checked(masks, classes, scores, overlap, predicted_iou)
    if overlap == "vote":
        raise ValueError('with overlap "vote" a pixel belongs to no single mask; give another overlap, such as "score"')
    rank, best_first = _on_top(masks, classes, scores, background, overlap, predicted_iou)
    return np.append(-1, best_first[::-1]).take(rank, mode="clip")


def _checked(masks, classes, scores, overlap: str, predicted_iou: np.ndarray | None) -> tuple:
    """Masks, classes and scores of `paint` as a record and arrays, or an error that says what does not fit."""
    masks = masks if isinstance(masks, Masks) else _array(masks).astype(bool, copy=False)
    shape = (len(masks), *masks.size) if isinstance(masks, Masks) else masks.shape
    classes, scores = _array(classes).astype(np.int64), _array(scores).astype(np.float32)
    counts = [len(values) for values in (classes, scores, predicted_iou) if values is not None]
    if len(shape) != 3 or set(counts) != {len(masks)}:
        raise ValueError(f"masks {shape} need as many classes, scores and predicted_iou, not {counts}")
    if len(classes) and not 0 <= classes.min() <= classes.max() < IGNORE:
        raise ValueError(f"classes are {classes.min()} to {classes.max()}, right are 0 to {IGNORE - 1}")
    if not np.isfinite(scores).all():
        raise ValueError("some scores are not finite numbers")
    one_of(overlap, OVERLAPS, "overlap")
    if overlap == "predicted_iou" and predicted_iou is None:
        raise ValueError('overlap "predicted_iou" needs the predicted_iou of each mask')
    return masks, classes, scores


def _on_top(masks, classes, scores, background, overlap: str, predicted_iou) -> tuple[np.ndarray, np.ndarray]:
    """Rank (H, W) of the mask on top in each pixel, the worst has 1, 0: none; and the masks' order (N,), best first."""
    first = -scores  # what decides before score and class, the lowest first
    if overlap == "small_on_top":
        first = masks.areas() if isinstance(masks, Masks) else masks.sum(axis=(1, 2))
    elif overlap == "predicted_iou":
        first = -np.asarray(predicted_iou)
    best_first = np.lexsort((classes, -scores, first, classes == background))
    kind = np.min_scalar_type(len(masks))
    size = masks.size if isinstance(masks, Masks) else masks.shape[1:]
    rank = np.zeros(size[::-1], dtype=kind).T  # in memory column by column, as decoded masks are
    boxes = _boxes(masks)
    for number, index in enumerate(best_first[::-1], start=1):
        left, top, right, bottom = boxes[index]
        in_box = rank[top:bottom, left:right]
        np.maximum(in_box, _inside(masks, index, boxes[index]) * kind.type(number), out=in_box)
    return np.ascontiguousarray(rank), best_first


def _boxes(masks: np.ndarray | Masks) -> Sequence:
    """Left, top, right and bottom of each mask of a record, or of the image."""
    return masks.corners() if isinstance(masks, Masks) else [(0, 0, *masks.shape[:0:-1])] * len(masks)


def _inside(masks: np.ndarray | Masks, index: int, box: Sequence[int]) -> np.ndarray:
    """What of a mask lies in a box: (h, w) bool."""
    left, top, right, bottom = box
    if isinstance(masks, Masks):
        return run_lengths.crop(masks.runs[index], masks.size, box)
    return masks[index, top:bottom, left:right]


def _vote(label: np.ndarray, confidence: np.ndarray, masks: dict[int, np.ndarray], classes, scores) -> None:
    """Let masks vote on each pixel; overwrites label and confidence (H, W) there.

    masks: (H, W) bool by number, sorted by their score, because a sum of floats depends on the order; not empty
    """
    candidates = np.unique(classes[[*masks]])  # rising, so that the lower class wins a tie
    votes = np.full((len(candidates), *label.shape), -1.0)  # -1: less than a vote of score 0
    voters = np.zeros(label.shape)
    for index, mask in masks.items():
        of_class = votes[np.searchsorted(candidates, classes[index])]
        of_class[mask] = of_class[mask].clip(min=0) + scores[index]
        voters[mask] += 1
    voted = voters > 0
    label[voted] = candidates[votes.argmax(axis=0)[voted]]
    confidence[voted] = votes.max(axis=0)[voted] / voters[voted]


def _array(values: np.ndarray | torch.Tensor | list) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
