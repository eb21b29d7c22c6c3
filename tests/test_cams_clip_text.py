"""CAMs of CLIP asked by words: against a transcription by hooks and plain loops, and on images of all sizes."""

import numpy as np
import pytest
import reference_cams as reference
import torch
from clip.model import VisionTransformer
from test_masks import random_images
from torch import nn

from plg_utils import cams
from plg_utils.cams import clip_text
from plg_utils.encoders import clip
from plg_utils.records import Classes, Sample, TruthHidden

OWNER = torch.tensor([1, 2, 2, 3, 0, 0])  # class 2 has two words, 0 is the background


@pytest.fixture(scope="module")
def visual():
    """A vision transformer with two heads, three layers, and biases and norms that are not trivial."""
    torch.manual_seed(1)
    network = VisionTransformer(input_resolution=16, patch_size=4, width=8, layers=3, heads=2, output_dim=5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    for norm in (network.transformer.resblocks[-1].ln_1, network.ln_post):
        nn.init.normal_(norm.bias, std=0.1)  # with a larger one a map is often 0 everywhere
    return network.eval()


def words():
    return nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(2)), dim=1)


def images(count, size=(16, 16)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


# Grad-CAM


@pytest.mark.parametrize(("layer", "scale"), [("ln_1", 1.0), ("ln_1", 8.0), ("ln_post", 8.0)])
@pytest.mark.parametrize("tags", [[(1,), (2, 3), ()], [(2,), (), (1, 2, 3)], [(), (), ()]])
def test_grad_cam_equals_hooks_on_clips_own_module(visual, tags, scale, layer):
    pictures, text = images(3), words()
    options = {"background": 0, "scale": scale, "layer": layer, "layers": 2}
    maps, attention = clip_text.grad_cam(visual, pictures, tags, text, OWNER, **options)
    shown = 0
    for image, of_image, each, similar in zip(pictures, tags, maps, attention, strict=True):
        assert each.shape == (len(of_image), 4, 4)
        for name, one in zip(of_image, each, strict=True):
            expected = reference.grad_cam(visual, layer, image, name, of_image, text, OWNER, 0, scale)
            shown += expected.max() > 0.99
            np.testing.assert_allclose(one.numpy(), expected, atol=1e-4)
        np.testing.assert_allclose(similar.numpy(), reference.attention(visual, image, 2), atol=1e-5)
    assert shown or not any(tags), "all maps are 0 everywhere"


def test_without_refinement_no_attention_is_made_and_no_gradient_stays(visual):
    visual.zero_grad()
    asked = [(1,), (3,)], words(), OWNER
    maps, attention = clip_text.grad_cam(visual, images(2, (8, 12)), *asked, background=0, scale=1.0)
    assert attention == [None, None]
    assert [(tuple(each.shape), each.requires_grad) for each in maps] == [((1, 2, 3), False)] * 2
    assert all(parameter.grad is None for parameter in visual.parameters())


# Refinement


def test_refinement_equals_the_loop():
    rng = np.random.default_rng(0)
    for height, width, count in ((3, 4, 1), (4, 4, 3), (5, 2, 2)):
        maps = rng.random((count, height, width)) ** 3
        similar = rng.random((height * width, height * width))
        made = clip_text.refined(torch.tensor(maps), torch.tensor(similar)).numpy()
        np.testing.assert_allclose(made, reference.refined(maps, similar), atol=1e-6)


def test_a_box_limits_where_a_class_comes_from():
    maps = torch.tensor([[[1.0, 0.0, 0.3]]])
    alike = torch.tensor([[0.5, 0.5, 0.01], [0.5, 0.5, 0.01], [0.01, 0.01, 0.98]])
    (made,) = clip_text.refined(maps, alike)
    assert made[0, 1] > 0.95 and made[0, 2] == 0  # like the first, and like nothing that is in the box


def test_boxes_equal_the_walk():
    rng = np.random.default_rng(1)
    for part in (0.05, 0.15, 0.3, 0.6):
        for _ in range(20):
            regions = rng.random((2, 7, 9)) < part
            made = clip_text.boxes(torch.tensor(regions)).numpy()
            np.testing.assert_array_equal(made, [reference.boxes(region) for region in regions])


# The source


@pytest.fixture(scope="module")
def encoder():
    """The miniature with random weights."""
    return clip.build(checkpoint=None, batch_size=2, resize="keep", image_size=32)


def test_images_of_all_sizes_come_back_in_their_order(squares, encoder):
    pictures = random_images((20, 30), (30, 20), (20, 30), (25, 25), (20, 30))
    tags = [(1,), (2, 3), (), (1, 2), (3,)]
    cue = cams.build("clip_text", squares.classes, encoder=encoder, tags=lambda items: tags)
    text, owner = encoder.class_embeddings(squares.classes)
    scale = encoder.model.logit_scale.exp().item()
    made = cue.scores(pictures)
    for picture, of_image, each in zip(pictures, tags, made, strict=True):
        assert each.tags == of_image and each.maps.shape == (len(of_image), *picture.shape[:2])
        assert each.maps.dtype == np.float32
        if not of_image:
            continue
        inputs = encoder.preprocess(picture, encoder.network_size(picture.shape[:2]))[None]
        how = {"background": 0, "scale": scale, "layer": "ln_post", "layers": 3}  # 2/3 of four
        (small,), (similar,) = clip_text.grad_cam(encoder.model.visual, inputs, [of_image], text, owner, **how)
        small = clip_text.refined(small, similar)
        expected = [reference.upsampled(one[None].numpy(), picture.shape[:2])[0] for one in small]
        np.testing.assert_allclose(each.maps, expected, atol=2e-3)
    for each, label in zip(made, cue(pictures), strict=True):
        np.testing.assert_array_equal(label, reference.label(each.maps, each.tags, clip_text.THRESHOLD))


def test_tags_are_asked_for_first_and_stay_closed(squares, encoder):
    samples = [Sample("closed", lambda: squares.image, lambda: squares.truth)]
    cue = cams.build("clip_text", squares.classes, encoder=encoder)
    with pytest.raises(TruthHidden, match="the tags of closed do not exist"):
        cue(samples)
    (each,) = cams.build("clip_text", squares.classes, encoder=encoder, tags="all").scores(samples)
    assert each.tags == (1, 2, 3)


@pytest.mark.parametrize("background", [0, None])
def test_a_class_file_without_words_of_the_background_is_refused(background):
    classes = Classes(("a", "b"), ((), ("a b",)), ((0, 0, 0), (1, 1, 1)), background=background)
    with pytest.raises(ValueError, match="no words of the background, and clip_text needs some"):
        cams.build("clip_text", classes)
