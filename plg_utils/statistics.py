"""How certain a number is: over other images (`bootstrap`), and over seeds (`summarise`, `paired`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plg_utils.metrics import margins, shares


@dataclass(frozen=True)
class Interval:
    """A number, and the range in which it would be with other images."""

    value: float
    low: float
    high: float
    level: float = 0.95  # share of the resamples between low and high


def bootstrap(
    matrices: np.ndarray,
    other: np.ndarray | None = None,
    *,
    background: int | None = 0,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval (95 %) of the mean IoU over images, or of its difference from another method's.

    The images are resampled with replacement, and both methods get the same resamples. The interval shows what other
    images would change. It does not show what another seed of the training would change.

    matrices, other: (M, K, K+1), `metrics.confusion` of each image, of the same M images in the same order
    returns: mean IoU of matrices, minus that of other if given
    """
    pair = [np.asarray(each) for each in (matrices, other) if each is not None]
    if len(pair[0]) < 2:
        raise ValueError(f"matrices are {pair[0].shape}. Give (M, K, K+1) of at least two images")
    if pair[0].shape != pair[-1].shape or (pair[0].sum(axis=2) != pair[-1].sum(axis=2)).any():
        raise ValueError("the two methods have different truths. Count both on the same images in the same order")
    if not pair[0].any():
        raise ValueError("no image has a pixel with a truth, so there is no mean IoU. Give images with a truth")
    images = len(pair[0])
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    weights = np.concatenate([np.ones((1, images)), draws])  # (1 + resamples, M) how often each image counts
    means = []
    for each in pair:
        # Counts stay exact in float64, which numpy multiplies fast, up to 2**53 pixels.
        hit, true, given = (weights @ margin.astype(np.float64) for margin in margins(each, "background", background))
        iou = np.nan_to_num(shares(hit, true + given - hit, where=true > 0))
        means.append(shares(iou.sum(axis=1), (true > 0).sum(axis=1)))  # (1 + resamples,)
    value, *drawn = means[0] - means[1] if other is not None else means[0]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


@dataclass(frozen=True)
class Summary:
    """Repetitions of one measurement."""

    values: tuple[float, ...]
    mean: float
    std: float  # of a sample (divided by n - 1); nan of a single value

    @property
    def signs(self) -> str:
        """Sign of each value, such as "++-"; 0 has the sign "0"."""
        return "".join("-0+"[int(np.sign(value)) + 1] for value in self.values)


def summarise(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation, of the seeds for example."""
    values = tuple(float(value) for value in values)
    return Summary(values, float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"))


def paired(a: Mapping, b: Mapping) -> Summary:
    """Differences a - b of two methods, seed by seed in the order of a; a, b: seed -> score, of the same seeds."""
    if a.keys() != b.keys():
        raise ValueError(f"the seeds differ: {[*a]} and {[*b]}. Compare runs of equal seeds")
    return summarise([a[seed] - b[seed] for seed in a])


def compared(value: float, record: dict[str, float] | None = None) -> str:
    """A mean IoU in percent, or, where one is recorded, whether it is within the recorded spread.

    So the text is the same on every machine.

    record: {"miou": the recorded number, "tolerance": the spread}, like `value` as fractions
    """
    if record is None:
        return f"{100 * value:.1f} %"
    answer = "yes" if abs(value - record["miou"]) <= record["tolerance"] else f"no, {100 * value:.1f} %"
    return f"within {100 * record['tolerance']:.1f} of the recorded {100 * record['miou']:.1f} %: {answer}"
