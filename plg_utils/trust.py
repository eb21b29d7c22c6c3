"""Which label maps are probably right, without a truth: agreement of labellers, stable masks, clear CLIP scores.

Each signal is a number for an image, the larger the better. `combine` averages the ranks of an image over the signals,
so units do not matter and nothing is tuned. Notebook 06 measures whether the score works.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from plg_utils import metrics
from plg_utils.generators import few_shot
from plg_utils.records import IGNORE, Masks, PseudoLabel


def agreement(labels: Sequence[np.ndarray], num_classes: int, *, background: int = 0) -> np.ndarray:
    """Mean IoU of each pair of label maps of one image, over the classes in at least one of the two.

    labels: L maps (H, W) uint8; IGNORE counts as background
    returns: (L, L) float64, symmetric, 1 on the diagonal
    """
    maps = _filled(labels, background)
    found = np.eye(len(maps))
    for one, other in combinations(range(len(maps)), 2):
        both, first, second = metrics.margins(metrics.confusion(maps[one], maps[other], num_classes), "miss", None)
        found[one, other] = found[other, one] = metrics.known_mean(metrics.shares(both, first + second - both))
    return found


def support(pairs: np.ndarray) -> np.ndarray:
    """Mean agreement of each labeller with the others, (L,), of pairs (L, L) as `agreement` gives them."""
    return (pairs.sum(axis=1) - pairs.diagonal()) / (len(pairs) - 1)


def vote(
    labels: Sequence[np.ndarray], weights: Sequence[float], num_classes: int, *, background: int = 0
) -> PseudoLabel:
    """Give each pixel the class with the largest sum of weights; if sums are equal, the lower class.

    labels: L maps (H, W) uint8; IGNORE counts as background; weights: L, not negative, e.g. their `support`
    returns: no pixel is IGNORE; confidence is the share of the weights that voted for the class
    """
    maps, weights = _filled(labels, background), np.asarray(weights, dtype=np.float64)
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(maps), 1 / len(maps))
    best = np.full(maps[0].shape, -1.0)
    label = np.zeros(maps[0].shape, np.uint8)
    for index in np.unique(maps):
        votes = np.tensordot(weights, maps == index, axes=1)  # (H, W)
        better = votes > best + 1e-12  # sums of the same weights in another order are equal
        label[better], best[better] = index, votes[better]
    return PseudoLabel(label, best.astype(np.float32))


def margins(
    segment_embeddings: torch.Tensor, text_embeddings: torch.Tensor, owner: torch.Tensor, *, background: int | None = 0
) -> np.ndarray:
    """How much closer each segment is to its best foreground class than to all other classes and background words.

    segment_embeddings: (N, D), text_embeddings: (K', D), owner: (K',) class of each text, see `labels.assign`
    returns: (N,) float32, cosine of the best class minus that of the best other class or background word
    """
    cosine = F.normalize(segment_embeddings.float(), dim=1) @ F.normalize(text_embeddings.float(), dim=1).T
    groups = owner.unique()  # the background's words are one group
    of_groups = torch.stack([cosine[:, owner == group].amax(dim=1) for group in groups], dim=1)
    foreground = groups != (-1 if background is None else background)
    if len(groups) < 2 or not foreground.any():
        raise ValueError("a margin compares two classes. Give a foreground class and another class or background word")
    best, index = of_groups[:, foreground].max(dim=1)
    index = foreground.nonzero()[:, 0][index]
    others = of_groups.scatter(1, index[:, None], -torch.inf)
    return (best - others.amax(dim=1)).cpu().numpy()


def few_shot_margins(namer: few_shot.Namer, segment_embeddings: torch.Tensor) -> np.ndarray:
    """How sure few-shot labels are of each segment (N, D): score of its best class minus that of the second, (N,)."""
    of_words, features = namer.seen(segment_embeddings)
    scores = namer.slope * of_words + namer.offset + features @ namer.weights  # (N, K), see generators/few_shot.py
    if scores.shape[1] < 2:
        raise ValueError("a margin compares two classes, and there is one: all segments have the same name")
    best, second = scores.topk(2, dim=1).values.T
    return (best - second).numpy()


def mean_over_things(values: np.ndarray, masks: Masks, label: np.ndarray, *, background: int = 0) -> float:
    """Mean of a value of each mask over the pixels that a label map gives to an object; 0 if there are none.

    values: (N,), nan is left out; label: (H, W) uint8. The weight of a mask is the number of its object pixels
    """
    thing = (label != background) & (label != IGNORE)
    drawn = (masks.take([k]).dense()[0] for k in range(len(masks)))  # one at a time: photos may be large
    weights = np.array([(mask & thing).sum() for mask in drawn], dtype=np.int64) * ~np.isnan(values)
    return float((weights * np.nan_to_num(values)).sum() / weights.sum()) if weights.any() else 0.0


def combine(signals: dict[str, Sequence[float]]) -> np.ndarray:
    """Mean rank of each image over the signals, in [0, 1]; signals: M values each, the larger the better."""
    return np.mean([ranks(values) / max(1, len(values) - 1) for values in signals.values()], axis=0)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation of two series of M values; nan if one of them is constant."""
    return float(pd.Series(ranks(one)).corr(pd.Series(ranks(other))))


def ranks(values: Sequence[float]) -> np.ndarray:
    """Rank of each of M values from 0, equal ones share the mean of theirs: (M,) float64."""
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {len(values)} values are nan and have no rank. Leave them out")
    return pd.Series(values).rank().to_numpy() - 1


def _filled(labels: Sequence[np.ndarray], background: int) -> np.ndarray:
    """Stack label maps of one image, IGNORE turned to background: (L, H, W) int64."""
    maps = np.stack(labels).astype(np.int64)
    return np.where(maps == IGNORE, background, maps)
