"""CAMs of CLIP asked by words, as in CLIP-ES (github.com/linyq2117/CLIP-ES): no training at all.

The mean of an image's patch tokens is compared with the words of the classes that are in it and of the background. How
much a place speaks for a class is the Grad-CAM of the class's probability at the first norm of the last block; the
words of the background compete, so that a road is not taken for a car. The attention of the last layers then carries
each class to similar places nearby. As in their code, one size and no mirror image.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from clip.model import VisionTransformer

from plg_utils import encoders
from plg_utils.cams import Cams, ScoredCue, TagSource, tagger
from plg_utils.encoders import by_size, clip
from plg_utils.records import Classes, Sample, images_of
from plg_utils.regions import components

SMOKE = {"encoder_options": clip.SMOKE, "tags": "all"}

THRESHOLD = 0.5  # what the background score 1 - max(CAM) of eval_cam_with_crf.py comes to
LAYERS = 2 / 3  # part of all whose attention refines: 8 of 12
BOX = 0.4  # part of the greatest score from which on a place is in a box


def build(
    classes: Classes,
    *,
    encoder: str | object = "clip",
    encoder_options: dict | None = None,
    tags: str | TagSource = "given",
    threshold: float = THRESHOLD,
) -> ScoredCue:
    """Load CLIP and embed the words of the classes once.

    encoder: "clip", or an encoder that it has built; its image_size and resize hold, its dense features are not used
    tags: which classes are asked for, see `cams.tagger`
    threshold: of the background, in [0, 1]
    """
    if classes.background is None or not classes.words[classes.background]:
        raise ValueError("the class file has no words of the background, and clip_text needs some: add them")
    encode = encoders.build(encoder, **(encoder_options or {})) if isinstance(encoder, str) else encoder
    if not hasattr(encode.model.visual, "transformer"):
        raise ValueError(
            "clip_text asks CLIP's class token, which this encoder lacks: take ViT-B/16, or cam_sources: []"
        )
    texts = encode.class_embeddings(classes)
    how = {"background": classes.background, "scale": encode.model.logit_scale.exp().item()}
    how |= {"layer": encode.cam_layer, "layers": round(LAYERS * len(encode.model.visual.transformer.resblocks))}
    tags_of = tagger(tags, classes)

    def scores(samples: Sequence[Sample | np.ndarray]) -> list[Cams]:
        images, found = images_of(samples), tags_of(samples)
        sizes = [encode.network_size(image.shape[:2]) for image in images]

        def ask(together: list[int]) -> zip:
            batch = torch.stack([encode.preprocess(images[index], sizes[index]) for index in together])
            asked = [found[index] for index in together]
            return zip(*grad_cam(encode.model.visual, batch, asked, *texts, **how), strict=True)

        made = []
        for tags, image, (maps, attention) in zip(found, images, by_size(sizes, encode.batch_size, ask), strict=True):
            large = torch.zeros(1, 0, *image.shape[:2])
            if tags:
                large = F.interpolate(refined(maps, attention)[None], image.shape[:2], mode="bilinear")
            made.append(Cams(tags, large[0].cpu().numpy()))
        return made

    return ScoredCue(scores, threshold=threshold, background=classes.background)


@torch.enable_grad()
def grad_cam(
    visual: VisionTransformer,
    images: torch.Tensor,
    tags: Sequence[Sequence[int]],
    text_embeddings: torch.Tensor,
    owner: torch.Tensor,
    *,
    background: int,
    scale: float,
    layer: str = "ln_1",
    layers: int = 0,
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Grad-CAM of each class that is in an image, and the image's mean attention in the last layers.

    A class's probability is that of its words together, in the softmax over all words of the classes in the image and
    of the background. A channel's weight is its mean gradient over all patches; the weighted channels are summed, cut
    off at 0 and brought to [0, 1].

    images: (B, 3, H, W) normalised, sides multiples of the patch; tags: the classes asked for in each
    text_embeddings: (K', D) of length 1, owner: (K',) the class of each word; scale: of the cosine, CLIP's logit_scale
    layer: where the gradient is taken, "ln_1" of the last block (CLIP-ES) or "ln_post", after which comes the pooling
    layers: how many; with 0 the attention is None
    returns: (C, h, w) and (h * w, h * w) for each image, C classes in the order of its tags
    """
    blocks = list(visual.transformer.resblocks)
    with torch.no_grad():
        tokens, grid = clip.embed_patches(visual, images)  # (L, B, C), L = 1 + h * w
        attention = tokens.new_zeros(len(images), len(tokens), len(tokens)) if layers else None
        for number, block in enumerate(blocks):
            if attention is not None and number >= len(blocks) - layers:
                normed = block.ln_1(tokens)
                attention += block.attn(normed, normed, normed, need_weights=True)[1] / min(layers, len(blocks))
            if block is not blocks[-1]:
                tokens = block(tokens)

    pairs = [(index, name) for index, of_image in enumerate(tags) for name in of_image]
    maps = []
    for start in range(0, len(pairs), len(images)):
        part = pairs[start : start + len(images)]
        of_image = torch.tensor([index for index, _ in part], device=tokens.device)
        own = torch.stack([owner == name for _, name in part])  # (M, K') the words of the class
        asked = torch.stack([torch.isin(owner, owner.new_tensor([*tags[index], background])) for index, _ in part])
        tokens_in = tokens[:, of_image].detach()  # (L, M, C)
        activations = blocks[-1].ln_1(tokens_in).detach().requires_grad_()
        tokens_out = tokens_in + blocks[-1].attention(activations)
        tokens_out = tokens_out + blocks[-1].mlp(blocks[-1].ln_2(tokens_out))
        final = visual.ln_post(tokens_out)
        if layer == "ln_post":
            activations = final = final.detach().requires_grad_()
        embedding = F.normalize(final[1:].mean(dim=0) @ visual.proj, dim=1)  # (M, D)
        logits = (scale * embedding @ text_embeddings.T).masked_fill(~asked, float("-inf"))  # (M, K')
        probability = (logits.softmax(dim=1) * own).sum()  # of all pairs together, because they do not touch each other
        (gradient,) = torch.autograd.grad(probability, activations)
        weights = gradient[1:].mean(dim=0)  # (M, C)
        seen = (activations[1:].detach() * weights).sum(dim=2).T.relu()  # (M, h * w)
        maps += list(_to_unit(seen).unflatten(1, grid))
    of_images = [[each for each, (index, _) in zip(maps, pairs, strict=True) if index == b] for b in range(len(images))]
    stacked = [torch.stack(each) if each else tokens.new_zeros(0, *grid) for each in of_images]
    return stacked, [None] * len(images) if attention is None else list(attention[:, 1:, 1:])


def refined(maps: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Carry each map to the places that attend to each other, starting from the boxes around its high scores.

    Rows and columns of the attention are brought to the sum 1 in turn, three times; it is averaged with its transpose,
    and squared. Their boxes end one cell before the last row and column of the map; ours do not.

    maps: (C, h, w) in [0, 1], at least one; attention: (h * w, h * w), not negative
    returns: (C, h, w) in [0, 1]
    """
    for _ in range(3):
        attention = attention / attention.sum(dim=0, keepdim=True)
        attention = attention / attention.sum(dim=1, keepdim=True)
    attention = (attention + attention.T) / 2
    attention = attention @ attention
    kept = maps * boxes(maps > BOX * maps.amax(dim=(1, 2), keepdim=True))
    return _to_unit(kept.flatten(1) @ attention.T).view_as(maps)


def boxes(regions: torch.Tensor) -> torch.Tensor:
    """Fill the smallest box around each connected part, corners touching.

    regions: (C, h, w) bool, at least one
    returns: the same shape, bool
    """
    filled = torch.zeros_like(regions)
    for of_class, region in zip(filled, regions.cpu().numpy(), strict=True):
        parts = components(region)
        for number in np.unique(parts[region]):
            rows, columns = np.nonzero(parts == number)
            of_class[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return filled


def _to_unit(maps: torch.Tensor) -> torch.Tensor:
    """Bring each row (M, places) from its least to its greatest value to [0, 1]."""
    maps = maps - maps.amin(dim=1, keepdim=True)
    return maps / (maps.amax(dim=1, keepdim=True) + 1e-7)  # of pytorch_grad_cam's scale_cam_image
