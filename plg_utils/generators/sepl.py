"""Paper B's labels, SEPL: a coarse class map is the cue by which SAM's masks get their classes.

"Segment Anything Model (SAM) Enhanced Pseudo Labels for Weakly Supervised Semantic Segmentation", arXiv 2305.05803.
`merge` works on the arrays of one image; what `build` returns takes samples and fetches cue maps and masks itself.

Words used here: the region of a class is where the cue map says so; a mask is accepted for at most one class.

    rule (a)    more than half of the mask is in the region
    rule (b)    the mask covers at least 0.85 of the region
"""

from collections.abc import Sequence

import numpy as np

from plg_utils import cams as cue_sources
from plg_utils import choices
from plg_utils import masks as mask_models
from plg_utils.generators import Generate, with_images
from plg_utils.records import IGNORE, Classes, PseudoLabel, Sample, images_of

MODES = ("official", "paper")
INSIDE = 0.5  # rule (a), strict
COVERS = 0.85  # rule (b), inclusive

SMOKE = {
    "cams": "classifier",
    "cams_options": {"weights": None, "tags": "all", "scales": (1.0,)},
    "masks_options": {"checkpoint": None, "points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
}


def build(
    classes: Classes,
    *,
    cams: str | cue_sources.Cue = "folder",
    cams_options: dict | None = None,
    masks: str | mask_models.Generate = "sam",
    masks_options: dict | None = None,
    mode: str = "official",
) -> Generate:
    """Load the source of the cue maps and the mask model.

    cams, masks: the name of a file in cams/ or masks/, or what it has built already; mode: see `merge`
    """
    if classes.background != 0:
        raise ValueError(f"SEPL leaves 0 where it finds no class, so classes.background is 0, not {classes.background}")
    cue = cue_sources.build(cams, classes, **(cams_options or {})) if isinstance(cams, str) else cams
    segment = mask_models.build(masks, **(masks_options or {})) if isinstance(masks, str) else masks

    def generate(samples: Sequence[Sample | np.ndarray]) -> list[PseudoLabel]:
        """Label samples; the confidence is 1, and 0 where the label is IGNORE: the method has no score of its own."""
        images = images_of(samples)
        pairs = zip(cue(with_images(samples, images)), segment(images), strict=True)
        labels = [merge(label, of_image.dense(), classes.num_classes, mode) for label, of_image in pairs]
        return [PseudoLabel(label, (label != IGNORE).astype(np.float32)) for label in labels]

    return generate


def merge(label: np.ndarray, masks: np.ndarray, num_classes: int, mode: str = "official") -> np.ndarray:
    """Choose masks for the classes of a cue map and make the new label map of them.

    label: (H, W) uint8, masks: (N, H, W) bool in any order, perhaps none
    mode: "official" does what the authors' code does (merge/ of github.com/cskyl/SAM_WSSS, its default, max_iou_imp2).
        The lowest class that accepts a mask gets it, and the highest class wins where accepted masks overlap. A cue
        pixel stays if only masks of lower classes, or none, are on it; its class then counts like that of a mask. All
        else is 0, and so is what the cue has of 255 or other values from num_classes on.
        "paper" gives each mask to the class that it overlaps most, the lower of equal ones, if a rule accepts it there.
        Where accepted masks overlap, the one with the larger part inside its region wins, of equal ones the lower
        class. A cue pixel stays only if no mask is on it, and 255 stays if no accepted mask is.
    returns: (H, W) uint8
    """
    label, masks = np.asarray(label), np.asarray(masks)
    choices.one_of(mode, MODES, "mode")
    if label.dtype != np.uint8 or masks.dtype != bool or masks.ndim != 3 or label.shape != masks.shape[1:]:
        given = f"the cue map is {label.dtype} {label.shape}, the masks are {masks.dtype} {masks.shape}"
        raise ValueError(f"{given}. Give uint8 (H, W) and bool (N, H, W) of the image's size")
    if mode == "paper" and (unknown := [int(k) for k in np.unique(label) if num_classes <= k != IGNORE]):
        raise ValueError(f"the cue map holds {unknown}, not classes 0 to {num_classes - 1} or {IGNORE} (void)")

    # Masks decoded from run lengths lie column by column in memory: the pixels are counted in the masks' own order.
    by_columns = not masks.flags.c_contiguous and masks.swapaxes(1, 2).flags.c_contiguous
    if by_columns:
        label, masks = label.T, masks.swapaxes(1, 2)
    cue = label.ravel()
    packed = _pack(masks.reshape(len(masks), cue.size))
    areas = np.bitwise_count(packed).sum(axis=1, dtype=np.uint32)  # (N,)
    sizes = np.bincount(cue, minlength=num_classes)  # pixels of each value
    classes = 1 + np.flatnonzero(sizes[1:num_classes])  # (C,) the foreground classes of this cue map
    overlaps = _overlaps(cue, packed, classes)  # (N, C) pixels
    parts = overlaps / areas.clip(min=1)[:, None]  # (N, C) of the mask
    accepted = (parts > INSIDE) | (overlaps / sizes[classes] >= COVERS)
    if mode == "official":
        merged = _official(cue, packed, classes, accepted, num_classes)
    else:
        merged = _paper(cue, packed, classes, accepted, overlaps, parts)
    return np.ascontiguousarray(merged.reshape(label.shape).T) if by_columns else merged.reshape(label.shape)


def _official(
    cue: np.ndarray, packed: np.ndarray, classes: np.ndarray, accepted: np.ndarray, num_classes: int
) -> np.ndarray:
    """Merge as the loop over rising classes does, in which a mask is gone once a class accepted it.

    A cue pixel of class c stays unless a mask still on offer to c covers it: one that no class accepted, or that c or a
    later class will. The latter paint the pixel c or higher anyway, so only masks that no class accepts remove pixels.

    cue: (HW,), packed: (N, words), classes: (C,) rising, accepted: (N, C)
    """
    owners = np.zeros(len(packed), dtype=np.uint8)  # class of each mask, 0 for none
    for column in reversed(range(len(classes))):
        owners[accepted[:, column]] = classes[column]
    rejected = _union(packed[owners == 0], cue.size)
    return np.maximum(_painted(packed, owners, cue.size), np.where(cue < num_classes, cue, 0) * (1 - rejected))


def _paper(
    cue: np.ndarray,
    packed: np.ndarray,
    classes: np.ndarray,
    accepted: np.ndarray,
    overlaps: np.ndarray,
    parts: np.ndarray,
) -> np.ndarray:
    """Merge with each mask in its best class, the masks that lie best in their regions on top.

    cue: (HW,), packed: (N, words), classes: (C,) rising, accepted, overlaps, parts: (N, C)
    """
    covered = _union(packed, cue.size)
    kept = np.where(cue == IGNORE, cue, cue * (1 - covered))
    if not len(classes):
        return kept
    every, best = np.arange(len(packed)), overlaps.argmax(axis=1)  # the first, so the lowest class, of equal ones
    owners, part = classes[best].astype(np.uint8), parts[every, best]  # (N,)
    chosen = np.flatnonzero(accepted[every, best])
    won = np.zeros_like(packed)  # (N, words) the pixels that each mask wins
    free = np.full(packed.shape[1], 2**64 - 1, dtype=np.uint64)
    for index in chosen[np.lexsort((owners[chosen], -part[chosen]))]:
        won[index] = packed[index] & free
        free &= ~packed[index]
    painted = _painted(won, owners, cue.size)
    return np.where(painted > 0, painted, kept)


# Sets of pixels as bits, 64 to a word: what is done to a word is done to 64 pixels at once


def _pack(pixels: np.ndarray) -> np.ndarray:
    """Pack M sets: (M, HW) bool to (M, words) uint64, padded with 0."""
    packed = np.zeros((len(pixels), -(-pixels.shape[1] // 64) * 8), dtype=np.uint8)
    packed[:, : -(-pixels.shape[1] // 8)] = np.packbits(pixels, axis=1)
    return packed.view(np.uint64)


def _union(packed: np.ndarray, pixels: int) -> np.ndarray:
    """Unite M sets, perhaps none, and unpack them: (M, words) to (pixels,) uint8 of 0 and 1."""
    return np.unpackbits(np.bitwise_or.reduce(packed, axis=0).view(np.uint8), count=pixels)


def _overlaps(cue: np.ndarray, packed: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Count the pixels of each class in each mask; only words in which the class occurs are looked at.

    cue: (HW,), packed: (N, words), classes: (C,)
    returns: (N, C) int64
    """
    by_word = np.ascontiguousarray(packed.T)  # (words, N): numpy takes and sums rows faster than columns
    overlaps = np.zeros((len(packed), len(classes)), dtype=np.int64)
    for column, index in enumerate(classes):
        region = _pack((cue == index)[None])[0]  # (words,)
        occurs = np.flatnonzero(region)
        overlaps[:, column] = np.bitwise_count(by_word[occurs] & region[occurs, None]).sum(axis=0, dtype=np.uint32)
    return overlaps


def _painted(packed: np.ndarray, owners: np.ndarray, pixels: int) -> np.ndarray:
    """Paint each mask with its class, higher classes over lower ones.

    packed: (N, words), owners: (N,) uint8 classes, 0 for masks that are not painted
    returns: (pixels,) uint8, 0 where nothing was painted
    """
    painted = np.zeros(pixels, dtype=np.uint8)
    for index in np.unique(owners[owners > 0]):
        np.maximum(painted, index * _union(packed[owners == index], pixels), out=painted)
    return painted
