"""Paper C's labels, made without any human label: CLIP tags the image, a detector boxes the tags, SAM cuts them out.

"Enhancing Weakly Supervised Semantic Segmentation with Multi-modal Foundation Models: An End-to-End Approach",
arXiv 2405.06586. What it leaves open (when CLIP's word is a tag, how SAM is asked) is an option.

A pixel in no mask is background, because the tags name everything that the image shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plg_utils import choices, detectors
from plg_utils import tags as tagging
from plg_utils.detectors import Boxes
from plg_utils.encoders import clip
from plg_utils.generators import Generate, with_images
from plg_utils.masks import sam
from plg_utils.records import IGNORE, Classes, PseudoLabel, Sample, images_of
from plg_utils.tags import Tags

SMOKE = {
    "tags_options": {"encoder_options": clip.SMOKE},
    "detector_options": {"encoder_options": clip.SMOKE},
    "masks_options": {"checkpoint": None},
}


@dataclass(frozen=True, eq=False)
class BoxLabel(PseudoLabel):
    """A pseudo label, and what it was made of."""

    tags: Tags
    boxes: Boxes


def build(
    classes: Classes,
    *,
    tags: str | Path | tagging.Tag = "clip",
    tags_options: dict | None = None,
    detector: str | detectors.Detect = "clip_boxes",
    detector_options: dict | None = None,
    masks: str | sam.Prompt = "sam",
    masks_options: dict | None = None,
    dilation: float | None = 0.05,
) -> Generate:
    """Load what tags, boxes and cuts out.

    tags: "clip", see `tags.by_clip`; "sample", the tags that a person gave, see `tags.of_samples`; a YAML or JSON file,
        see `tags.read`; or a function from samples to `Tags`
    detector: the name of a file in detectors/, or what it has built already
    masks: "sam", see `masks.sam.build_box_prompter`, or what that has built already
    tags_options, detector_options, masks_options: of what is built here
    dilation: see `inside_box`; None keeps what SAM says outside of the box
    """
    if tags != "clip" and tags_options:
        raise ValueError(f'tags_options are of "clip", and {tags!r} takes none: {", ".join(tags_options)}')
    if tags == "clip":
        tags = tagging.by_clip(classes, **(tags_options or {}))
    elif tags == "sample":
        tags = tagging.of_samples
    elif isinstance(tags, str | Path):
        if Path(tags).suffix not in (".yaml", ".yml", ".json"):
            raise ValueError(f'tags is {str(tags)!r}; right are "clip", "sample", and a .yaml or .json file')
        tags = tagging.read(tags, classes)
    if isinstance(detector, str):
        detector = detectors.build(detector, classes, **(detector_options or {}))
    if isinstance(masks, str):
        masks = choices.choice("plg_utils.masks", masks, "mask model").build_box_prompter(**(masks_options or {}))

    def generate(samples: Sequence[Sample | np.ndarray]) -> list[BoxLabel]:
        """Label samples, or images (H, W, 3) uint8 RGB if the tags do not come by an id."""
        images = images_of(samples)
        tagged = tags(with_images(samples, images))
        found = detector(images, [of_image.classes.tolist() for of_image in tagged])
        prompted, labels = masks(images, [boxes.xyxy for boxes in found]), []
        for of_image, boxes, (of_boxes, _) in zip(tagged, found, prompted, strict=True):
            if dilation is not None:
                of_boxes = inside_box(of_boxes, boxes.xyxy, dilation)
            merged = merge(of_boxes, boxes, background=classes.background)
            labels.append(BoxLabel(merged.label, merged.confidence, of_image, boxes))
        return labels

    return generate


def inside_box(masks: np.ndarray, boxes_xyxy: np.ndarray, dilation: float = 0.05) -> np.ndarray:
    """Empty each mask outside of its box, each side of which is first moved outwards.

    masks: (N, H, W) bool, boxes_xyxy: (N, 4) pixels; a pixel is inside if its centre is
    dilation: part of the box's width for the left and right side, of its height for top and bottom
    returns: (N, H, W) bool
    """
    left, top, right, bottom = np.asarray(boxes_xyxy, dtype=np.float64).T[:, :, None]  # (N, 1) each
    wider, higher = dilation * (right - left), dilation * (bottom - top)
    x, y = np.arange(masks.shape[2]) + 0.5, np.arange(masks.shape[1]) + 0.5
    columns = (left - wider <= x) & (x <= right + wider)  # (N, W)
    rows = (top - higher <= y) & (y <= bottom + higher)  # (N, H)
    return masks & rows[:, :, None] & columns[:, None, :]


def merge(masks: np.ndarray, boxes: Boxes, *, background: int | None = 0) -> PseudoLabel:
    """Paint the masks of the boxes into one label map; that of the highest score is on top, of equal ones the later.

    masks: (N, H, W) bool
    returns: a pixel in no mask is background with confidence 1, for the tags leave no other class; IGNORE with 0 if
        there is no background class. Else the confidence is the score of the box on top
    """
    if masks.ndim != 3 or len(masks) != len(boxes):
        raise ValueError(f"masks {masks.shape} are not (N, H, W) with one for each of {len(boxes)} boxes")
    label = np.full(masks.shape[1:], IGNORE if background is None else background, dtype=np.uint8)
    confidence = np.full(masks.shape[1:], 0 if background is None else 1, dtype=np.float32)
    for index in np.argsort(boxes.scores, kind="stable"):
        label[masks[index]] = boxes.classes[index]
        confidence[masks[index]] = boxes.scores[index].clip(0, 1)
    return PseudoLabel(label, confidence)
