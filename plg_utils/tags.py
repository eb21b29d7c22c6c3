"""Tags: which classes an image shows, according to CLIP, which needs no label, or a file, or the data set.

Paper C (arXiv 2405.06586) asks CLIP in the place of a person; how exactly is not public. Here CLIP compares several
views of an image with the words of all classes, and the best view of a class decides. The views:

    crops   the image and nine overlapping crops, each embedded by CLIP's class token; for OpenAI's networks
    dense   each patch of the image; for a network whose patches learned from captions, such as the miniature, whose
            class token knows little
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from plg_utils import encoders, files
from plg_utils.labels import class_cosines
from plg_utils.records import Classes, Sample, images_of

CROPS = 3  # along each side
PART = 0.5  # of the side; neighbours overlap by half, so that a thing cut by one crop is whole in the next


@dataclass(frozen=True, eq=False)
class Tags:
    """The classes that an image is said to show."""

    classes: np.ndarray  # (M,) int64, foreground, rising
    scores: np.ndarray  # (M,) float32 in [0, 1]; 1 where a person or a file said so


Tag = Callable[[Sequence[Sample | np.ndarray]], list[Tags]]


def by_clip(
    classes: Classes, *, encoder: str | object = "clip", encoder_options: dict | None = None, threshold: float = 0.5
) -> Tag:
    """Load CLIP and embed the words of the classes once.

    A network with a `logit_bias` was taught to answer yes or no for each patch: its views are dense, its scores by the
    sigmoid. Others get crops and the softmax, see `score`.

    encoder: the name of a file in encoders/, or what it has built already
    threshold: score from which on a class is a tag; the best class always is one. 0.5 is not tuned on labels: a view
        is more of the class than of all else (softmax), or the answer is rather yes than no (sigmoid)
    """
    encode = encoders.build(encoder, **(encoder_options or {})) if isinstance(encoder, str) else encoder
    bias = getattr(getattr(encode, "model", None), "logit_bias", None)
    how = {"background": classes.background, "temperature": own_temperature(encode)}
    how["bias"] = None if bias is None else float(bias.detach())
    texts = encode.class_embeddings(classes)

    @torch.no_grad()
    def tag(samples: Sequence[Sample | np.ndarray]) -> list[Tags]:
        images = images_of(samples)
        dense = bias is not None
        views = [each.flatten(1).T for each in encode.images(images)] if dense else embed_crops(encode, images)
        return [choose(score(of_image, *texts, **how), classes.foreground, threshold) for of_image in views]

    return tag


def of_samples(samples: Sequence[Sample]) -> list[Tags]:
    """The tags that a person gave: `Sample.tags`, which the loader opens for a stage that may see them."""
    return [_given(sample.tags()) for sample in samples]


def _given(classes: Iterable[int]) -> Tags:
    classes = np.array(sorted(classes), dtype=np.int64)
    return Tags(classes, np.ones(len(classes), dtype=np.float32))


def read(path: str | Path, classes: Classes) -> Tag:
    """Read the tags that any tagger wrote: a YAML or JSON file {id: [names of classes]}, one id for each image."""
    content = files.read_yaml(path)  # JSON is YAML too
    if not isinstance(content, dict) or not all(isinstance(names, list) for names in content.values()):
        raise ValueError(f"{path} must hold {{id: [names of classes]}} for each image, [] for an image without any")
    number = {classes.names[index]: index for index in classes.foreground}
    unknown = sorted({str(name) for names in content.values() for name in names if str(name) not in number})
    if unknown:
        raise ValueError(f"{path} has unknown names: {', '.join(unknown[:5])}; the classes are {', '.join(number)}")
    tags = {str(id): _given({number[name] for name in names}) for id, names in content.items()}

    def tag(samples: Sequence[Sample]) -> list[Tags]:
        if missing := [sample.id for sample in samples if sample.id not in tags]:
            raise ValueError(f"{path} lacks the tags of: {', '.join(missing[:5])}")
        return [tags[sample.id] for sample in samples]

    return tag


def own_temperature(encoder: object) -> float:
    """Temperature that an encoder's CLIP was trained with, 1 / logit scale; 0.01, that of OpenAI's, if it has none."""
    scale = getattr(getattr(encoder, "model", None), "logit_scale", None)
    return 0.01 if scale is None else 1 / float(scale.detach().exp())


def score(
    views: torch.Tensor,
    text_embeddings: torch.Tensor,
    owner: torch.Tensor,
    *,
    background: int | None = 0,
    temperature: float = 0.01,
    bias: float | None = None,
) -> torch.Tensor:
    """Score the foreground classes of one image by its views.

    views: (V, D) embeddings of any length, text_embeddings: (K', D), owner: (K',) the class of each word
    bias: None: in each view the softmax of cosine / temperature over the classes and the background words; the class
        takes the best view. Of a network that has one: the sigmoid of the logarithm of the mean over the views of
        exp(cosine / temperature + bias), near the best view too; background words are not read
    returns: (F,) in [0, 1], the foreground classes in rising order
    """
    classes, others = class_cosines(views, text_embeddings, owner, background=background)
    if bias is not None:
        logits = classes / temperature + bias
        return (logits.logsumexp(dim=0) - np.log(len(logits))).sigmoid()
    return (torch.cat([classes, others], dim=1) / temperature).softmax(dim=1)[:, : classes.shape[1]].amax(dim=0)


def choose(scores: torch.Tensor, foreground: Sequence[int], threshold: float) -> Tags:
    """Keep the classes that score at least the threshold, and the best one in any case.

    scores: (F,), foreground: (F,) the class of each score, rising
    """
    scores = scores.detach().cpu().numpy().astype(np.float32)
    kept = scores >= threshold
    kept[scores.argmax()] = True
    return Tags(np.asarray(foreground, dtype=np.int64)[kept], scores[kept])


def crop_slices(size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Where the views of an image lie: all of it, then CROPS x CROPS crops of PART of its sides, evenly spread.

    size: (H, W); returns: rows and columns of each view, the whole image first
    """
    parts = []  # of the rows, of the columns
    for side in size:
        length = max(1, round(side * PART))
        starts = np.linspace(0, side - length, CROPS).round().astype(int)
        parts.append([slice(start, start + length) for start in starts])
    return [(slice(0, size[0]), slice(0, size[1])), *product(*parts)]


def embed_crops(encoder: object, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Embed the views of `crop_slices` by the class token of a CLIP: (10, D) for each image.

    encoder: what encoders/clip.py builds; images: (H, W, 3) uint8 RGB
    """
    views = [image[part] for image in images for part in crop_slices(image.shape[:2])]
    embedded = encoder.class_tokens(views)  # of all images in common batches
    return list(torch.stack(embedded).unflatten(0, (len(images), -1))) if embedded else []
