"""Features "corr": CorrCLIP's last block against plain loops, the map of regions, and who hands it the masks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_masks import random_images

from plg_utils import encoders
from plg_utils.encoders import clip
from plg_utils.generators import segment_match
from plg_utils.records import Masks


def by_loops(visual, tokens, regions):
    """CorrCLIP's last block of one image, patch by patch: tokens (h * w, C) that enter it, regions of h * w numbers."""
    block, patches = visual.transformer.resblocks[-1], range(len(regions))
    query, key, value = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, 1)
    cosine = [[F.cosine_similarity((query + key)[i], (query + key)[j], dim=0).item() for j in patches] for i in patches]
    mean = np.mean(cosine)
    made = []
    for i in patches:
        weights = []
        for j in patches:
            alike = cosine[i][j] > mean if -1 in (regions[i], regions[j]) else regions[i] == regions[j]
            weights.append(math.exp(4 * cosine[i][j]) if alike or i == j else 0.0)
        mixed = sum(weight * value[j] for j, weight in enumerate(weights)) / sum(weights)
        made.append(visual.ln_post(block.attn.out_proj(mixed)) @ visual.proj)
    return torch.stack(made)


def test_features_equal_plain_loops(small_vision):
    torch.manual_seed(2)
    images = torch.randn(3, 3, 8, 12)  # 2 x 3 patches
    regions = torch.tensor([[[0, 0, 1], [0, 1, 1]], [[-1, 0, 3], [3, -1, -1]], [[-1] * 3] * 2])
    with torch.no_grad():
        found = clip.corr_features(small_vision, images, regions)
        hidden, _ = clip.embed_patches(small_vision, images)
        for block in small_vision.transformer.resblocks[:-1]:
            hidden = block(hidden)
        for image in range(3):
            expected = by_loops(small_vision, hidden[1:, image], regions[image].flatten().tolist())
            torch.testing.assert_close(found[image].flatten(1).T, expected, atol=1e-5, rtol=0)
        one = clip.corr_features(small_vision, torch.zeros(1, 3, 4, 4), torch.tensor([[[-1]]]))
    assert one.isfinite().all()  # a patch that is like all others, which are none


def test_a_region_map_has_the_largest_mask_at_the_centre_of_each_patch():
    boxes = ((2, 20, 3, 20), (0, 20, 10, 40), (15, 29, 25, 45), (5, 25, 6, 14), (0, 0, 0, 0))  # they overlap
    dense = np.zeros((5, 30, 47), bool)
    for mask, (top, low, left, right) in zip(dense, boxes, strict=True):
        mask[top:low, left:right] = True
    found = clip.region_map(Masks.from_dense(dense), (7, 9)).numpy()
    expected = np.full((7, 9), -1)
    for row in range(7):
        for column in range(9):
            inside = dense[:, int((row + 0.5) * 30 / 7), int((column + 0.5) * 47 / 9)]
            if inside.any():
                expected[row, column] = max(np.flatnonzero(inside), key=lambda index: dense[index].sum())
    np.testing.assert_array_equal(found, expected)
    assert set(np.unique(found)) == {-1, 0, 1, 2, 3}
    nothing = Masks.from_dense(np.zeros((0, 30, 47), bool))
    assert (clip.region_map(nothing, (2, 2)) == clip.UNSEGMENTED).all()


def halves(*sizes):
    """Masks of images of these sizes: the left half and the right half."""
    left = [np.broadcast_to(np.arange(width) < width // 2, (height, width)) for height, width in sizes]
    return [Masks.from_dense(np.stack([half, ~half])) for half in left]


def test_segments_are_embedded_with_their_own_masks():
    images, masks = random_images((40, 64), (64, 40), (40, 64)), halves((40, 64), (64, 40), (40, 64))
    masks[2] = masks[2].take([1])  # so that the first half is in no mask
    encoder = encoders.build("clip", features="corr", resize="keep")
    together = segment_match.segment_embeddings(encoder, images, masks)
    assert [tuple(each.shape) for each in together] == [(2, 128), (2, 128), (1, 128)]
    for image, of_image, found in zip(images, masks, together, strict=True):
        (alone,) = segment_match.segment_embeddings(encoder, [image], [of_image])
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
    whole = Masks.from_dense(np.ones((1, 40, 64), bool))
    others = encoder.images([images[0]], masks=[whole])[0] - encoder.images([images[0]], masks=masks[:1])[0]
    assert others.abs().max() > 0.01
    old = SimpleNamespace(images=lambda images: [torch.ones(3, 2, 2) for _ in images])  # knows nothing of masks
    assert segment_match.segment_embeddings(old, images[:1], masks[:1])[0].shape == (2, 3)


def test_a_tile_gets_its_part_of_the_masks():
    seen = []

    def look(images, masks):
        seen.extend(masks)
        return [torch.ones(1, 4, 4) for _ in images]

    tiled = encoders.tiles.Tiled(SimpleNamespace(images=look, features="corr"), 16, 8)
    (image,), (masks,) = random_images((16, 40)), halves((16, 40))
    segment_match.segment_embeddings(tiled, [image, image[:, :16]], [masks, halves((16, 16))[0]])
    assert seen[0].size == (16, 16) and len(seen[0]) == 2  # the small image, which is seen whole
    parts = [part.dense() for part in seen[2:]]  # seen[1] is the first tile, by which the cells are counted
    starts = encoders.tiles.starts(40, 16, 8)
    assert len(parts) == len(starts) == 4
    for part, start in zip(parts, starts, strict=True):
        expected = masks.dense()[:, :, start : start + 16]
        np.testing.assert_array_equal(part, expected[expected.any(axis=(1, 2))])


def test_without_masks_there_are_no_such_features():
    encoder = encoders.build("clip", checkpoint=None, features="corr")
    with pytest.raises(ValueError, match="features: corr needs the masks of each image.* take gem"):
        encoder.images(random_images((16, 16)))
    assert encoder.class_tokens(random_images((16, 16)))  # of whole images, which have no regions
