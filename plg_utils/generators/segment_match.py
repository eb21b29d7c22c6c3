"""Paper A's zero-shot labels: each of SAM's segments is matched with the class names by CLIP.

"Zero-Shot Pseudo Labels Generation Using SAM and CLIP for Semi-Supervised Semantic Segmentation", arXiv 2505.19846.
The steps can be taken one by one, with files in between, or all at once by what `build` returns.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from plg_utils import encoders, labels, metrics
from plg_utils import masks as mask_models
from plg_utils.encoders import clip
from plg_utils.generators import Generate
from plg_utils.masks import sam
from plg_utils.records import IGNORE, Classes, Masks, PseudoLabel, Sample, images_of

GRID = np.arange(0.0, 0.71, 0.02)  # thresholds that are tried, as cosine
SMOKE = {"masks_options": sam.SMOKE, "encoder_options": clip.SMOKE, "threshold": 0.2}


def build(
    classes: Classes,
    *,
    threshold: float | None,
    masks: str | mask_models.Generate = "sam",
    masks_options: dict | None = None,
    encoder: str | object = "clip",
    encoder_options: dict | None = None,
    **how,
) -> Generate:
    """Load the mask model and the encoder, and embed the words of the classes once.

    masks, encoder: the name of a file in masks/ or encoders/, or what it has built already
    threshold, how: rule and temperature of `labels.assign`, overlap of `labels.paint`
    """
    encode, segments_of = embedder(masks, masks_options, encoder, encoder_options)
    texts = encode.class_embeddings(classes)
    how |= {"threshold": threshold, "background": classes.background}
    return lambda samples: [*labels_from_embeddings(*segments_of(samples), *texts, **how)] if samples else []


def embedder(
    masks: str | mask_models.Generate,
    masks_options: dict | None,
    encoder: str | object,
    encoder_options: dict | None,
) -> tuple[object, Callable]:
    """Load an encoder, and make the function from samples to their masks and embeddings (N, D); see `build`."""
    segment = mask_models.build(masks, **(masks_options or {})) if isinstance(masks, str) else masks
    encode = encoders.build(encoder, **(encoder_options or {})) if isinstance(encoder, str) else encoder

    def segments_of(samples: Sequence[Sample | np.ndarray]) -> tuple[Sequence[Masks], list[torch.Tensor]]:
        images = images_of(samples)
        segments = segment(images)
        return segments, segment_embeddings(encode, images, segments)

    return encode, segments_of


def segment_embeddings(
    encoder: object, images: Sequence[np.ndarray], masks: Sequence[Masks], *, normalise_patches: bool = False
) -> list[torch.Tensor]:
    """Embed the segments of images: the encoder's features pooled in each mask.

    normalise_patches: bring the feature of each patch to length 1 before pooling, so that all count the same
    returns: (N, D) for each image, in the order of its masks
    """
    embeddings, more = [], {"masks": masks} if getattr(encoder, "features", None) == "corr" else {}
    for features, of_image in zip(encoder.images(images, **more), masks, strict=True):
        if normalise_patches:
            features = F.normalize(features, dim=0)
        embeddings.append(labels.pool(features, of_image, of_image.size))
    return embeddings


def label_from_embeddings(
    masks: Masks, segment_embeddings: torch.Tensor, text_embeddings: torch.Tensor, owner: torch.Tensor, **how
) -> PseudoLabel:
    """Label one image from what was stored of its segments, (N, D); else as `labels_from_embeddings`."""
    return next(labels_from_embeddings([masks], [segment_embeddings], text_embeddings, owner, **how))


def labels_from_embeddings(
    masks: Sequence[Masks],
    segment_embeddings: Sequence[torch.Tensor],
    text_embeddings: torch.Tensor,
    owner: torch.Tensor,
    *,
    background: int | None,
    overlap: str = "score",
    **how,
) -> Iterator[PseudoLabel]:
    """Label images from what was stored of their segments; each is painted when it is asked for.

    segment_embeddings: (N, D) for each image, text_embeddings: (K', D), owner: (K',)
    overlap: see `labels.paint`; how: threshold, rule and temperature of `labels.assign`
    """
    texts = {"text_embeddings": text_embeddings, "owner": owner}
    name = partial(labels.assign, **texts, background=background, **how)
    return painted(masks, segment_embeddings, name, background=background, overlap=overlap)


def painted(
    masks: Sequence[Masks],
    segment_embeddings: Sequence[torch.Tensor],
    name: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    *,
    background: int | None,
    overlap: str,
) -> Iterator[PseudoLabel]:
    """Name the segments of images, (N, D) for each, all at once; an image is painted when it is asked for.

    name: from embeddings (M, D) to classes (M,) and scores (M,)
    """
    assigned, scores = name(torch.cat([*segment_embeddings]))
    counts = [len(embeddings) for embeddings in segment_embeddings]
    named = zip(assigned.split(counts), scores.split(counts), strict=True)
    return (paint(*pair, background, overlap) for pair in zip(masks, named, strict=True))


def spoiled(
    embeddings: torch.Tensor, named: tuple[torch.Tensor, torch.Tensor], share: float, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Names of which a share is wrong on purpose: a test bed for what notices it.

    Each name (N,) is replaced, with this probability, by one of the other classes, all equally likely; its score stays,
    so that no threshold finds it. The draw follows from the segment's embedding (N, D): it is the same in each run.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"spoiled is {share!r}; give a share of the names, from 0 to 1")
    classes, scores = named
    rows = embeddings.cpu().float().numpy()
    drawn = torch.tensor([zlib.crc32(row.tobytes()) / 2**32 for row in rows], dtype=torch.float64)
    steps = 1 + (drawn / max(share, 1e-9) * (num_classes - 1)).long().clamp(max=num_classes - 2)
    other = (classes.cpu() + steps) % num_classes
    return torch.where(drawn < share, other, classes.cpu()), scores.cpu()


def paint(masks: Masks, named: tuple, background: int | None, overlap: str) -> PseudoLabel:
    """Paint an image's segments; named: the class and the score of each."""
    iou = masks.predicted_iou
    return labels.paint(masks, *named, background=background, overlap=overlap, predicted_iou=iou)


def only_sure(
    label: np.ndarray,
    masks: Masks,
    segment_embeddings: torch.Tensor,
    text_embeddings: torch.Tensor,
    owner: torch.Tensor,
    sure_from: float,
    background: int | None,
    overlap: str = "score",
) -> np.ndarray:
    """Leave out the pixels of a zero-shot label whose class has a probability below sure_from: SemiVL's filter.

    The probability is SemiVL's (forward_maskclip in model/vlm.py of google-research/semivl): a class scores by its best
    word, the background too, and the softmax over the classes is that of 100 x cosine. SemiVL asks each pixel, which
    here has the probability of its segment.

    label: (H, W) uint8, made from these segments
    returns: (H, W) uint8, IGNORE also where the likeliest class is another one
    """
    likeliest = labels.assign(segment_embeddings, text_embeddings, owner=owner, background=None, rule="softmax")
    likely = paint(masks, likeliest, background, overlap)
    sure = (likely.label == label) & (likely.confidence >= sure_from)
    return np.where(sure, label, np.uint8(IGNORE))


def choose_threshold(
    segment_embeddings: Sequence[torch.Tensor],
    masks: Sequence[Masks],
    truths: Sequence[np.ndarray],
    text_embeddings: torch.Tensor,
    owner: torch.Tensor,
    grid: Sequence[float] = GRID,
    *,
    num_classes: int,
    background: int = 0,
    overlap: str = "score",
    **how,
) -> labels.ThresholdChoice:
    """Choose the threshold that labels the labelled images best; no other truth is read.

    segment_embeddings: (N, D), masks and truths (H, W) of each labelled image; grid: thresholds to try, rising
    overlap: see `labels.paint`; how: rule and temperature of `labels.assign`
    Pixels in no mask count as background.
    """
    painted: list[tuple[bytes, np.ndarray]] = [(b"", truth) for truth in truths]
    named = {"owner": owner, "background": background, **how}

    def score(threshold: float) -> float:
        for image, (embeddings, of_image) in enumerate(zip(segment_embeddings, masks, strict=True)):
            assigned = labels.assign(embeddings, text_embeddings, threshold=threshold, **named)
            key = b"classes" + assigned[0].cpu().numpy().tobytes()
            if painted[image][0] != key:  # most steps change the class of few segments
                label = paint(of_image, assigned, background, overlap).label
                painted[image] = key, np.where(label == IGNORE, np.uint8(background), label)
        return metrics.mean_iou(truths, [label for _, label in painted], num_classes, background=background)

    return labels.choose_threshold(grid, score, smooth=True)
