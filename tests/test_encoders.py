"""Encoders: the contract of every file, GEM against plain loops, and the classes of CLIP's package."""

import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import allowed
import clip as openai_clip
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from clip.model import CLIP, VisionTransformer
from PIL import Image
from safetensors.torch import save_file
from test_masks import random_images
from torch import nn

from plg_utils import checkpoints, encoders
from plg_utils.encoders import clip
from plg_utils.records import Classes

NAMES = sorted(path.stem for path in Path(encoders.__file__).parent.glob("[a-z]*.py"))
OPTIONS = {"features": "plain", "depth": 1, "image_size": 16}
OPTIONS |= {"resize": "squash", "precision": "fp32", "batch_size": 2}


def package_clip():
    """A CLIP of the package's class that encodes 16 x 16 pixels in 4 x 4 patches, with random weights."""
    torch.manual_seed(0)
    text = {"context_length": 12, "vocab_size": 49408, "transformer_width": 64, "transformer_heads": 1}
    vision = {"image_resolution": 16, "vision_layers": 3, "vision_width": 64, "vision_patch_size": 4}
    model = CLIP(embed_dim=6, **vision, **text, transformer_layers=1)
    for parameter in model.visual.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


small_clip = pytest.fixture(scope="module")(package_clip)


# Every encoder


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    smoke = import_module(f"plg_utils.encoders.{name}").SMOKE
    encoder = encoders.build(name, **smoke)
    images = random_images((40, 64), (64, 40), (40, 64))
    features = encoder.images(images)
    texts = encoder.texts(["a photo of a house.", "a tree"])
    assert len(features) == 3
    assert all(each.ndim == 3 and each.dtype == torch.float32 for each in features)
    assert texts.shape == (2, features[0].shape[0])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encoder.images(images[1:2])[0], features[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoders.build(name, **smoke).images(images[:1])[0], features[0], atol=1e-4, rtol=1e-4)


# GEM


@pytest.mark.parametrize(("depth", "iterations"), [(1, 1), (2, 3), (7, 1), (12, 2), (13, 1)])
def test_gem_of_twelve_layers_on_a_rectangular_image_equals_plain_loops(depth, iterations):
    torch.manual_seed(depth)
    visual = VisionTransformer(input_resolution=8, patch_size=4, width=8, layers=12, heads=2, output_dim=5).eval()
    for parameter in visual.parameters():
        nn.init.normal_(parameter, std=0.3)
    images, how = torch.randn(2, 3, 8, 12), {"depth": depth, "iterations": iterations}
    how["temperature"] = 1.5 if depth % 2 else None
    with torch.no_grad():
        features = clip.dense_features(visual, images, **how)
        position = clip.position_embedding(visual, (2, 3))  # tested by itself; the network's own grid is 2 x 2
    state = {name: weight.double().numpy() for name, weight in visual.state_dict().items()}
    state["positional_embedding"] = position.double().numpy()
    for image, found in zip(images, features, strict=True):
        expected = reference.gem_features(state, image.double().numpy(), heads=2, **how)
        assert expected.shape == (5, 2, 3)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_depth_must_fit_the_network(small_clip):
    for depth in (0, 5):
        with pytest.raises(ValueError, match="right are 1 \\(plain\\) to 4"):
            clip.Encoder(small_clip, **OPTIONS | {"features": "gem", "depth": depth})
    plain, gem, gem_of_depth_1 = (
        clip.Encoder(small_clip, **OPTIONS | {"features": features, "depth": depth}).images(random_images((16, 16)))[0]
        for features, depth in (("plain", 4), ("gem", 4), ("gem", 1))
    )
    torch.testing.assert_close(plain, gem_of_depth_1)
    assert (plain - gem).abs().max() > 0.1


# Images


def test_position_embedding_is_resized_for_another_grid(small_vision):
    embedding = small_vision.positional_embedding
    assert clip.position_embedding(small_vision, (2, 2)) is embedding
    resized = clip.position_embedding(small_vision, (3, 4))
    assert resized.shape == (1 + 3 * 4, 8)
    torch.testing.assert_close(resized[0], embedding[0])
    flat = nn.Parameter(embedding.detach().clone())
    flat.data[1:] = torch.tensor([[1.0], [1.0], [2.0], [2.0]])  # rows differ, columns do not
    visual = type("Visual", (), {"positional_embedding": flat})
    rows = clip.position_embedding(visual, (4, 3))[1:].unflatten(0, (4, 3))
    torch.testing.assert_close(rows, rows[:, :1, :1].expand_as(rows))
    assert (rows[1:, 0, 0] > rows[:-1, 0, 0]).all()
    visual.positional_embedding = torch.tensor([0.0, *[1.0, -1.0] * 3 * 6])[:, None]  # columns of 6 x 6 alternate
    assert clip.position_embedding(visual, (2, 2))[1:].abs().max() < 0.5  # antialiased: not a sample of single columns


def test_images_of_mixed_sizes_come_back_in_order(small_clip):
    images = random_images((16, 16), (9, 30), (30, 9), (16, 16), (32, 32), (16, 16))
    encoder = clip.Encoder(small_clip, **OPTIONS | {"resize": "keep"})
    together = encoder.images(images)
    grids = ((4, 4), (4, 13), (13, 4), *[(4, 4)] * 3)
    assert [tuple(each.shape) for each in together] == [(6, *grid) for grid in grids]
    for image, features in zip(images, together, strict=True):
        torch.testing.assert_close(encoder.images([image])[0], features, atol=1e-4, rtol=1e-4)
    squashed = clip.Encoder(small_clip, **OPTIONS).images(images)
    assert {tuple(each.shape) for each in squashed} == {(6, 4, 4)}
    assert encoder.images([]) == []


def test_class_tokens_are_the_package_s_of_squares(small_clip):
    images = random_images((20, 30), (16, 16), (9, 40))
    encoder = clip.Encoder(small_clip, **OPTIONS | {"resize": "keep"})
    with torch.no_grad():
        expected = small_clip.visual(torch.stack([encoder.preprocess(image, (16, 16)) for image in images]))
    torch.testing.assert_close(torch.stack(encoder.class_tokens(images)), expected, atol=1e-5, rtol=1e-5)


def test_preprocessing_is_that_of_the_package(small_clip, monkeypatch):
    """A photo is squashed to the square by PIL, and for the miniature by torch."""
    encoder, transform = clip.Encoder(small_clip, **OPTIONS), openai_clip.clip._transform(16)
    for side in (40, 16, 7):
        image = random_images((side, side))[0]
        assert torch.equal(encoder.preprocess(image, (16, 16)), transform(Image.fromarray(image)))
    with pytest.raises(ValueError, match="uint8 \\(H, W, 3\\)"):
        encoder.preprocess(image[..., 0], (16, 16))
    with pytest.raises(ValueError, match="multiple of the patch of 4"):
        clip.Encoder(small_clip, **OPTIONS | {"image_size": 18})
    (image,) = random_images((9, 40))
    expected = transform(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
    monkeypatch.setattr(clip, "load", lambda checkpoint: small_clip)
    for checkpoint, by in (("ViT-B/16", "pil"), ("file.pt", "pil"), ("miniature_clip", "torch"), (None, "torch")):
        encoder = encoders.build("clip", checkpoint=checkpoint, image_size=16)
        difference = (encoder.preprocess(image, (16, 16)) - expected).abs().max() * min(clip.STD)
        assert (difference == 0) == (by == "pil")


def test_half_precision_is_near_full_precision(small_clip):
    images = random_images((16, 16))
    both = (clip.Encoder(small_clip, **OPTIONS | {"precision": each}) for each in ("fp32", "bf16"))
    full, half = (encoder.images(images)[0] for encoder in both)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.05 * full.abs().max()


def test_no_image_at_once_is_refused(small_clip):
    with pytest.raises(ValueError, match="batch_size is 0; give a whole number from 1 on"):
        clip.Encoder(small_clip, **OPTIONS | {"batch_size": 0}).images(random_images((8, 8)))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("noisy_words", {"word_nois": 1.0}, "did you mean 'word_noise'"),
        ("noisy_words", {"of": "open_clip", "modle": "ViT"}, "did you mean 'model'"),
        ("noisy_words", {"of": "open_clip", "model": "ViT", "features": "gem", "tile": 64}, ""),
    ],
)
def test_options_of_the_encoder_behind_noisy_words(name, options, says):
    check = partial(allowed.check_options, known={"encoder": "clip", "encoder_options": {}})
    if not says:
        return check({"encoder": name, "encoder_options": options})
    with pytest.raises(ValueError, match=says):
        check({"encoder": name, "encoder_options": options})
    return None


# Texts


def test_texts_are_those_of_the_package_at_its_context_length(small_clip, monkeypatch):
    monkeypatch.setattr(clip, "SENTENCES", 2)
    phrases = ["a red house", "a tree", "two boats."]
    with torch.no_grad():
        expected = F.normalize(small_clip.encode_text(openai_clip.tokenize(phrases, context_length=12)), dim=1)
    torch.testing.assert_close(clip.Encoder(small_clip, **OPTIONS).texts(phrases), expected)
    with pytest.raises(ValueError, match="too long: CLIP reads 12 tokens.*Shorten it in the class file"):
        clip.Encoder(small_clip, **OPTIONS).texts(["word " * 20])


def test_class_embeddings_are_one_row_for_each_word_and_a_mean_over_templates():
    angles = {"a cat": 0, "the cat": 90, "a dog": 180, "the dog": 180, "a pup": 0, "the pup": 0}
    angles |= {"a sky": 270, "the sky": 270}

    def texts(phrases):
        return torch.tensor([[np.cos(np.radians(angles[p])), np.sin(np.radians(angles[p]))] for p in phrases])

    black = (0, 0, 0)
    classes = Classes(("bg", "cat", "dog"), (("sky",), ("cat",), ("dog", "pup")), (black,) * 3, 0, ("a {}", "the {}"))
    embeddings, owner = encoders.class_embeddings(texts, classes)
    assert owner.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(embeddings, [[0, -1], [0.5**0.5, 0.5**0.5], [-1, 0], [1, 0]], atol=1e-6)
    wordless = Classes(("bg", "cat", "dog"), ((), ("cat",), ()), (black,) * 3, 0)
    with pytest.raises(ValueError, match="no words to ask an encoder for: dog"):
        encoders.class_embeddings(texts, wordless)


def test_unseen_words_are_told_once(small_clip):
    encoder = clip.Encoder(small_clip, **OPTIONS)
    encoder.unseen_words = lambda phrases: [phrase for phrase in phrases if "zebra" in phrase]
    with pytest.warns(UserWarning, match="never saw these words: zebra"):
        encoder.texts(["zebra", "house"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.texts(["zebra"])


# Weights


def test_a_file_of_weights_is_loaded_in_full_precision(small_clip, tmp_path):
    state = {name: weight.contiguous() for name, weight in small_clip.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    torch.save(state | dict.fromkeys(checkpoints.CLIP_SETTINGS, torch.tensor(16)), tmp_path / "clip.pt")
    images = random_images((16, 16))
    expected = clip.Encoder(small_clip, **OPTIONS).images(images)[0]
    for name in ("clip.safetensors", "clip.pt"):
        encoder = encoders.build("clip", checkpoint=str(tmp_path / name), features="plain", image_size=16)
        torch.testing.assert_close(encoder.images(images)[0], expected)
    assert encoders.build("clip", checkpoint=str(tmp_path / "clip.pt")).depth == 4  # GEM over all three blocks
    save_file({"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match="without vision transformer"):
        clip.load(str(tmp_path / "resnet.safetensors"))


def test_a_large_image_is_resized_colour_by_colour(monkeypatch):
    encoder, image = clip.build(), np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    whole, seen = encoder.preprocess(image, (96, 96)), []
    resized = clip.Encoder._resized
    monkeypatch.setattr(clip.Encoder, "_resized", staticmethod(lambda p, size: seen.append(len(p)) or resized(p, size)))
    monkeypatch.setattr(clip, "LARGE", image.size - 1)
    torch.testing.assert_close(encoder.preprocess(image, (96, 96)), whole, atol=1e-5, rtol=1e-5)
    assert seen == [1, 1, 1]


def test_strips_are_seen_squeezed_where_the_size_is_kept():
    encoder = clip.build(resize="keep")
    for size, grid in (((3, 900), (12, 96)), ((1, 500), (12, 96)), ((900, 3), (96, 12))):
        with pytest.warns(UserWarning, match=f"an image of {size[0]} x {size[1]} pixels squeezed.* 8 times as long"):
            (features,) = encoder.images([np.zeros((*size, 3), np.uint8)])
        assert features.shape == (128, *grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encoder.network_size((100, 800)) == (96, 768)  # as long as can be
