"""Boxes without a detector's weights: around each connected region where CLIP's dense features say the class.

In each cell of the encoder's grid the classes to look for compete with the background words. A region of a class is
where its probability reaches a part of the highest that it has in this image, as is usual with class activation maps:
how sure CLIP is at all differs from image to image.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from plg_utils import encoders
from plg_utils import tags as tagging
from plg_utils.detectors import Boxes, Detect, check_tags
from plg_utils.encoders import clip
from plg_utils.records import Classes
from plg_utils.regions import components

SMOKE = {"encoder_options": clip.SMOKE}


def build(
    classes: Classes,
    *,
    encoder: str | object = "clip",
    encoder_options: dict | None = None,
    threshold: float = 0.25,
    upsample: int = 4,
    min_area: float = 1.0,
    temperature: float | None = None,
) -> Detect:
    """Load CLIP and embed the words of the classes once.

    encoder: the name of a file in encoders/, or what it has built already
    threshold: part of the highest probability of the class in the image, from which on a cell belongs to a region;
        0.15 to 0.3 give the twelve labelled images of storybook the same label mIoU within 0.01
    upsample: the maps are refined so many times, bilinearly, before they are cut: boxes get finer sides than the cells
    min_area: of a region, in cells of the encoder; the best region of a class stays even if it is smaller
    temperature: of the softmax; None: the network's own
    """
    if not 0 < threshold <= 1 or upsample < 1:
        raise ValueError(f"threshold={threshold} must be a part, above 0 to 1, and upsample={upsample} at least 1")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0, such as 0.01")
    encode = encoders.build(encoder, **(encoder_options or {})) if isinstance(encoder, str) else encoder
    temperature = tagging.own_temperature(encode) if temperature is None else temperature
    texts = encode.class_embeddings(classes)
    cut = {"threshold": threshold, "upsample": upsample, "min_area": min_area}

    def detect(images: Sequence[np.ndarray], tags: Sequence[Sequence[int]]) -> list[Boxes]:
        """Find the regions of the classes `tags` in images, each (H, W, 3) uint8 RGB."""
        found = []
        wanted = check_tags(tags, classes, len(images))
        for image, features, of_image in zip(images, encode.images(images), wanted, strict=True):
            maps = class_maps(features, *texts, of_image, background=classes.background, temperature=temperature)
            found.append(boxes_of_maps(maps, of_image, image.shape[:2], **cut))
        return found

    return detect


def class_maps(
    features: torch.Tensor,
    text_embeddings: torch.Tensor,
    owner: torch.Tensor,
    chosen: Sequence[int],
    *,
    background: int | None,
    temperature: float,
) -> torch.Tensor:
    """Probability of each chosen class in each cell, by the softmax over them and the background words.

    Without any background word all other classes take part, because a class alone would win everywhere.

    features: (D, h, w), text_embeddings: (K', D), owner: (K',) the class of each word, chosen: C classes
    returns: (C, h, w)
    """
    cosines, others = tagging.class_cosines(features.flatten(1).T, text_embeddings, owner, background=background)
    foreground = [index for index in owner.unique().tolist() if index != background]
    columns = [foreground.index(index) for index in chosen]
    if not others.shape[1]:
        others = cosines[:, [column for column in range(len(foreground)) if column not in columns]]
    probabilities = (torch.cat([cosines[:, columns], others], dim=1) / temperature).softmax(dim=1)
    return probabilities[:, : len(columns)].T.unflatten(1, features.shape[1:])


def boxes_of_maps(
    maps: torch.Tensor,
    chosen: Sequence[int],
    size: tuple[int, int],
    *,
    threshold: float,
    upsample: int = 4,
    min_area: float = 1.0,
) -> Boxes:
    """Box the connected regions of each class.

    maps: (C, h, w) in [0, 1], chosen: the C classes, size: (H, W) of the image
    returns: class by class, in each the regions from the top down; the score is the highest value in the region
    """
    if not len(maps):
        return Boxes.of([], [], [])
    fine = F.interpolate(maps[None].float(), scale_factor=upsample, mode="bilinear")[0]  # (C, h', w')
    cells = (fine >= threshold * fine.amax(dim=(1, 2), keepdim=True)).cpu().numpy()
    scale = np.array([size[1] / fine.shape[2], size[0] / fine.shape[1]] * 2)  # pixels of a fine cell: x, y, x, y
    xyxy, classes, scores = [], [], []
    for index, region, values in zip(chosen, map(components, cells), fine.cpu().numpy(), strict=True):
        best = region.flat[values.argmax()]
        for number in np.unique(region[region > 0]):
            inside = region == number
            if number != best and inside.sum() < min_area * upsample**2:
                continue
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            xyxy.append(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * scale)
            classes.append(index)
            scores.append(values[inside].max())
    return Boxes.of(xyxy, classes, scores)
