"""Cue maps: from samples to coarse class maps by a weakly supervised method, such as CAMs. One file is one source.

A file `name.py` here has

    build(classes, **options)   -> a function from a list of samples to a list of (H, W) uint8 maps of the same order,
                                each of its image's exact size, with values of `classes` or IGNORE
    SMOKE                       options with which `build` takes about a second

The maps are hard, one class for each pixel, as SEPL (`generators/sepl.py`) takes them. A source that has scores builds
a `ScoredCue`, so that other thresholds can be tried without running a network again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plg_utils import choices, detectors, labels, metrics
from plg_utils.records import Classes, Sample

Cue = Callable[[Sequence[Sample]], list[np.ndarray]]
TagSource = Callable[[Sequence[Sample]], Sequence[Sequence[int]]]  # from samples to the classes that are in each image

GRID = np.arange(0.05, 0.96, 0.05)  # background thresholds that are tried
TOGETHER = 256  # images whose scores are held in memory at once


def build(name: str, classes: Classes, **options) -> Cue:
    """Build the source in the file `name`.py for these classes."""
    return choices.choice(__name__, name, "source of cue maps").build(classes, **options)


@dataclass(frozen=True, eq=False)
class Cams:
    """How much each class that is in an image is seen at each pixel."""

    tags: tuple[int, ...]  # C classes, rising
    maps: np.ndarray  # (C, H, W) float32 in [0, 1]


@dataclass(eq=False)
class ScoredCue:
    """A cue made of scores and a threshold in [0, 1]; threshold, background: see `label_from_cams`."""

    scores: Callable[[Sequence[Sample]], list[Cams]]
    threshold: float
    background: int | None

    def __post_init__(self):
        if self.background is None:
            raise ValueError("a pixel below the threshold is background, but these classes have none")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold of the CAMs is {self.threshold}; give a number from 0 to 1, such as 0.4")

    def __call__(self, samples: Sequence[Sample | np.ndarray]) -> list[np.ndarray]:
        """Label samples, or images (H, W, 3) uint8 RGB if the tags need no sample: (H, W) uint8 each."""
        how = {"threshold": self.threshold, "background": self.background}
        parts = (samples[start : start + TOGETHER] for start in range(0, len(samples), TOGETHER))
        return [label_from_cams(cams.maps, cams.tags, **how) for part in parts for cams in self.scores(part)]


def label_from_cams(maps: np.ndarray, tags: Sequence[int], threshold: float, *, background: int = 0) -> np.ndarray:
    """Give each pixel the class of its highest score, or the background where none is above the threshold.

    maps: (C, H, W), tags: the C classes; of equal scores the first counts
    returns: (H, W) uint8
    """
    if not len(tags):
        return np.full(maps.shape[1:], background, dtype=np.uint8)
    named = np.asarray(tags, dtype=np.uint8)[maps.argmax(axis=0)]
    return np.where(maps.max(axis=0) > threshold, named, np.uint8(background))


def choose_threshold(
    cams: Sequence[Cams],
    truths: Sequence[np.ndarray],
    grid: Sequence[float] = GRID,
    *,
    num_classes: int,
    background: int = 0,
) -> labels.ThresholdChoice:
    """Choose the threshold whose labels fit these truths best, the middle one where several do.

    truths: (H, W) of each image; the caller decides which may be read; grid: thresholds to try, rising
    """

    def score(threshold: float) -> float:
        found = [label_from_cams(each.maps, each.tags, threshold, background=background) for each in cams]
        return metrics.mean_iou(truths, found, num_classes, background=background)

    return labels.choose_threshold(grid, score, smooth=False)


def tagger(tags: str | TagSource, classes: Classes) -> Callable[[Sequence[Sample | np.ndarray]], list[tuple[int, ...]]]:
    """Make the function that gives the classes of each image, rising.

    tags: "given" reads the samples' image-level labels; "all" asks for every foreground class, so it needs no label;
        or a function from samples to class indices
    """
    if tags not in ("given", "all") and not callable(tags):
        raise ValueError(f'tags is {tags!r}; right are "given", "all" and a function from samples to class indices')

    def ask(samples: Sequence[Sample | np.ndarray]) -> list[tuple[int, ...]]:
        if tags == "all":
            return [classes.foreground] * len(samples)
        answers = [sample.tags() for sample in samples] if tags == "given" else tags(samples)
        return [tuple(sorted(set(answer))) for answer in detectors.check_tags(answers, classes, len(samples))]

    return ask
