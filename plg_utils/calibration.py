"""Which names of segments may be believed: a filter that the few labelled images calibrate.

A name is right if at least half of the pixels that its segment wins in the label map have this class in the truth.
`calibrate` learns from the labelled images how likely that is: a logistic regression on the signals (the words' score,
what SAM thinks of its mask, its area, what the examples say) and on the class, with a ridge penalty, so that a class
with many examples gets a height of its own and one with few shares that of all. The threshold on this probability is
the lowest that promises a precision with a stated confidence: "Learn then Test" (Angelopoulos et al., arXiv 2110.01052)
with binomial tails, the exact ones of Clopper and Pearson. ConformalSAM (arXiv 2507.15803) calibrates pixels; those of
one image depend on each other, so segments are counted here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plg_utils import labels
from plg_utils.generators import few_shot
from plg_utils.records import IGNORE, Classes, Masks

PENALTY = 1.0  # of the logistic regression, on signals of unit variance; 0.3 and 3 kept and promised the same
LEVELS = 20  # thresholds that are tried: those that keep 5/20, 6/20, ... of the names
FIRST = 5  # of the levels


@dataclass(frozen=True, eq=False)
class Filter:
    """Leaves out of label maps the names that are not believed; made by `learn`."""

    calibrated: "Calibrated"
    opinions: Callable[[torch.Tensor], torch.Tensor]  # embeddings (N, D) -> what the examples say, (N, K)
    how: dict  # background and overlap of `labels.winners`

    def label(self, masks: Masks, embeddings: torch.Tensor, named: tuple) -> np.ndarray:
        """Label map (H, W) uint8 of an image's segments (N, D), IGNORE where the name is not believed.

        named: classes (N,) and scores (N,)
        """
        classes, won, seen = _facts(masks, named, self.opinions(embeddings), self.how)
        believed = self.calibrated.keeps(self.calibrated.probability(seen, classes))
        return np.append(np.where(believed, classes, IGNORE), IGNORE)[won].astype(np.uint8)  # won is -1 in no mask


def learn(
    labelled: few_shot.Labelled,
    named: Sequence[tuple],
    classes: Classes,
    *,
    others: Iterable[torch.Tensor] = (),
    overlap: str = "score",
    **promise: float,
) -> Filter:
    """Learn from labelled images which names to believe; no other truth is read.

    named: classes (N,) and scores (N,) of the segments of each labelled image. Names that were given without its truth,
        as the few-shot names are, look as good here as on an unlabelled image. The zero-shot names may look a little
        better: the same labelled images have chosen their threshold
    others: embeddings (N, D) of further images, see `few_shot.opinions`
    promise: precision and confidence of `calibrate`
    """
    said, opinions = few_shot.opinions(labelled, classes.num_classes, others=others)
    how = {"background": classes.background, "overlap": overlap}
    facts = [_facts(*each, how) for each in zip(labelled.masks, named, said, strict=True)]
    right = [rightness(*each[:2], truth) for each, truth in zip(facts, labelled.truths, strict=True)]
    image = np.repeat(np.arange(len(right)), [len(each) for each in right])
    names, _, seen = zip(*facts, strict=True)
    columns = map(np.concatenate, (seen, names, right))
    return Filter(calibrate(*columns, image, classes.num_classes, **promise), opinions, how)


def _facts(masks: Masks, named: tuple, opinion: torch.Tensor, how: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes (N,) of an image's segments, the segment that wins each pixel (H, W), the signals (N, S)."""
    classes, scores = (part.cpu().numpy() for part in named)
    won = labels.winners(masks, classes, scores, predicted_iou=masks.predicted_iou, **how)
    return classes, won, signals(masks, classes, scores, opinion.numpy(), won)


def signals(masks: Masks, classes: np.ndarray, scores: np.ndarray, opinion: np.ndarray, won: np.ndarray) -> np.ndarray:
    """What may tell whether the names of an image's segments are right: (N, 6) float64, of any units.

    classes, scores: (N,) the names; opinion: (N, K) what the examples say, see `few_shot.opinions`
    won: (H, W) the segment that wins each pixel, see `labels.winners`
    """
    every = np.arange(len(masks))
    area = np.bincount(won[won >= 0], minlength=len(masks)) / won.size
    own, rivals = opinion[every, classes], opinion.copy()
    rivals[every, classes] = -np.inf
    lead = own - rivals.max(axis=1, initial=own.min(initial=0))
    return np.column_stack([scores, masks.predicted_iou, masks.stability, np.log(area + 1e-6), own, lead])


def rightness(classes: np.ndarray, won: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether each name (N,) is right, 1 or 0; nan where its segment wins no pixel of known truth; (H, W) others."""
    known = (won >= 0) & (truth != IGNORE)
    won, truth = won[known], truth[known]
    total = np.bincount(won, minlength=len(classes))
    hits = np.bincount(won[truth == classes[won]], minlength=len(classes))
    return np.where(total > 0, hits >= total / 2, np.nan)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """How likely a name is right, and from which probability on it may be kept."""

    probability: Callable[[np.ndarray, np.ndarray], np.ndarray]  # signals (N, S), classes (N,) -> (N,) in [0, 1]
    threshold: float | None  # None: nothing can be promised, no name is kept
    likely: np.ndarray  # (M,) probability of the names that it learnt from, each by the other labelled images
    right: np.ndarray  # (M,) bool

    def keeps(self, likely: np.ndarray) -> np.ndarray:
        """Which names of this probability (N,) are kept: (N,) bool."""
        return likely >= (np.inf if self.threshold is None else self.threshold)


def calibrate(
    signals: np.ndarray,
    classes: np.ndarray,
    right: np.ndarray,
    image: np.ndarray,
    num_classes: int,
    *,
    precision: float = 0.8,
    confidence: float = 0.9,
) -> Calibrated:
    """Learn from the names on labelled images which names may be kept.

    signals: (M, S), of segments on labelled images; classes, right, image: (M,) the name of each, whether it is right
        (1 or 0; nan is left out), and the number of its image
    precision: share of right ones that the kept names have, with this confidence
    """
    for name, value in (("precision", precision), ("confidence", confidence)):
        if not (isinstance(value, int | float) and 0 < value < 1):
            raise ValueError(f"{name} of the filter is {value!r}; give a share between 0 and 1, such as 0.8")
    known = np.isfinite(right)
    signals, classes, right, image = signals[known], classes[known], right[known] == 1, image[known]
    if not len(right):
        raise ValueError(
            "the filter has nothing to learn from: no mask of a labelled image lies on pixels with a known class. "
            "Label an image that SAM cuts into masks, or do without the filter"
        )
    mean, scale = signals.mean(axis=0), signals.std(axis=0)
    scale = np.where(scale > 0, scale, 1)  # equal signals say nothing

    def inputs(signals: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(signals)), (signals - mean) / scale, np.eye(num_classes)[classes]])

    rows = inputs(signals, classes)
    weights, likely = _logistic_regression(rows, right), np.zeros(len(right))
    for judged in (image == one for one in np.unique(image)):
        likely[judged] = _logistic(rows[judged], _logistic_regression(rows[~judged], right[~judged]))
    threshold = _threshold(likely, right, precision, confidence)
    return Calibrated(lambda *names: _logistic(inputs(*names), weights), threshold, likely, right)


def _threshold(likely: np.ndarray, right: np.ndarray, precision: float, confidence: float) -> float | None:
    """The lowest probability from which on names may be kept; None where nothing can be promised.

    A set of names passes if, were only the share `precision` of such names right, as many right ones as it has would
    be seen with a probability of at most 1 - confidence. The sets grow, from the surest quarter on, until one fails:
    in this order, fixed beforehand, the chance that any of them passes wrongly stays that of a single test.
    """
    falling, chosen = np.sort(likely)[::-1], None
    for level in range(FIRST, LEVELS + 1):
        cut = float(falling[math.ceil(len(falling) * level / LEVELS) - 1])
        kept = likely >= cut
        if precision ** kept.sum() > 1 - confidence:
            continue  # too few to pass, were all of them right
        if tail(int(kept.sum()), int(right[kept].sum()), precision) > 1 - confidence:
            break
        chosen = cut
    return chosen


def tail(count: int, hits: int, share: float) -> float:
    """Probability of at least this many hits in `count` draws that hit with probability `share`, between 0 and 1."""
    yes, no, everything = math.log(share), math.log1p(-share), math.lgamma(count + 1)
    # Logarithms, because a binomial coefficient of more than about a thousand draws is no float.
    ways = (everything - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(hits, count + 1))
    return math.fsum(math.exp(way + k * yes + (count - k) * no) for k, way in enumerate(ways, hits))


def _logistic(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(inputs @ weights).clip(-50, 50)))


def _logistic_regression(inputs: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weights (I,) by Newton's method; the first input is a constant, and hardly penalised."""
    penalty = np.diag([1e-3] + [PENALTY] * (inputs.shape[1] - 1))
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        likely = _logistic(inputs, weights)
        slope = inputs.T @ (likely - right) + penalty @ weights
        step = np.linalg.solve((inputs.T * (likely * (1 - likely))) @ inputs + penalty, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights
