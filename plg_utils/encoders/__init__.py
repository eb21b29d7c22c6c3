"""Encoders: from images to dense features, and from words to embeddings of the same space. One file is one encoder.

What `build` returns has

    images(images)              list of (H, W, 3) uint8 -> list of (D, h, w) float32, not of length 1; if its attribute
                                `features` is "corr": images(images, masks=...), the masks of each image
    texts(phrases)              K sentences -> (K, D) of length 1
    class_embeddings(classes)   -> (K', D) of length 1, a row for each word, and (K',) the class of each row

Each encoder takes the options tile and tile_overlap, by which `images` sees a large image in parts: see `tiles`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from plg_utils import choices, tiles
from plg_utils.records import Classes


def build(name: str, *, tile: int | None = None, tile_overlap: int | None = None, **options):
    """Build the encoder in the file `name`.py; tile, tile_overlap: pixels, see `tiles`."""
    cut = tiles.check(tile, tile_overlap)
    encoder = choices.choice(__name__, name, "encoder").build(**options)
    return tiles.Tiled(encoder, *cut) if cut else encoder


def class_embeddings(
    texts: Callable[[Sequence[str]], torch.Tensor], classes: Classes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed every word of every class: the mean over the templates of unit embeddings, of length 1 again.

    The mean of an ensemble of sentences is CLIP's own recipe (Prompt_Engineering_for_ImageNet.ipynb of openai/CLIP).

    texts: from M sentences to (M, D) of length 1
    returns: (K', D), a row for each word; (K',) int64, the class that owns the row, the background's for its words
    """
    nameless = [classes.names[index] for index in classes.foreground if not classes.words[index]]
    if nameless:
        raise ValueError(f"these classes have no words to ask an encoder for: {', '.join(nameless)}")
    words = [(index, word) for index, of_class in enumerate(classes.words) for word in of_class]
    sentences = [template.format(word) for _, word in words for template in classes.templates]
    of_sentences = texts(sentences).unflatten(0, (len(words), len(classes.templates)))  # (K', templates, D)
    owner = torch.tensor([index for index, _ in words], device=of_sentences.device)
    return F.normalize(of_sentences.mean(dim=1), dim=1), owner


def by_size(sizes: Sequence[tuple], batch_size: int, network: Callable[[list[int]], Iterable]) -> list[Any]:
    """What a network makes of each image; images of one size, at most batch_size, go through it together.

    network: from the indices of such images to what it makes of each
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; give a whole number from 1 on")
    made = {}
    for size in dict.fromkeys(sizes):
        same = [index for index, other in enumerate(sizes) if other == size]
        for start in range(0, len(same), batch_size):
            together = same[start : start + batch_size]
            made |= zip(together, network(together), strict=True)
    return [made[index] for index in range(len(sizes))]
