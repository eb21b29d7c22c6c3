"""encoders/open_clip: OpenAI's weights give what encoders/clip gives, all else is held against the package itself.

Tiny networks of the very classes, with random weights: nothing is downloaded, and no connection is made.
"""

import json
import re
import shutil
import socket

import numpy as np
import open_clip as package
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from test_corr import halves
from test_encoders import package_clip
from test_masks import random_images
from timm.models import VisionTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from plg_utils import cams, checkpoints, encoders, files, labels, tags
from plg_utils.cams import clip_text
from plg_utils.encoders import open_clip
from plg_utils.records import Classes

WORDS = ["</s>", "<unk>", "a", "red", "house", "of", "photo"]  # the last token of a padded text is </s>, as SigLIP's
LENGTH = 8
SIZES = {"image_size": 16, "layers": 3, "width": 64, "patch_size": 4}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
STANDARD = {"embed_dim": 6, "quick_gelu": True, "vision_cfg": SIZES, "text_cfg": TEXT}
SIGLIP = {
    "embed_dim": 16,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 16, "timm_model_name": "tiny_siglip", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {"context_length": LENGTH, "vocab_size": len(WORDS), "width": 16, "heads": 2, "layers": 1}
    | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    | {"hf_tokenizer_name": "timm/tiny", "tokenizer_kwargs": {"clean": "canonicalize"}},
}
GREY = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear"}


def tiny_siglip(num_classes=0, global_pool="map", dynamic_img_size=False, **_):
    """timm's vision transformer as SigLIP has it: no class token, pooled by attention."""
    parts = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "class_token": False}
    how = {"num_classes": num_classes, "global_pool": global_pool, "dynamic_img_size": dynamic_img_size}
    return VisionTransformer(**parts, **how)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """open_clip lists two tiny networks, the weights of one are on no hub; whoever connects fails."""

    def refuse(*_):
        raise OSError("a test connects")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "tiny_siglip", tiny_siglip)
    for name, config, listed in (
        ("tiny-quickgelu", STANDARD, {"quick_gelu": True}),
        ("tiny", STANDARD | {"quick_gelu": False}, {"quick_gelu": True}),
        ("tiny-SigLIP2", SIGLIP, {}),
    ):
        monkeypatch.setitem(package.factory._MODEL_CONFIGS, name, config)
        tag = {"hf_hub": f"timm/{name}/", **GREY, **listed}
        monkeypatch.setitem(package.pretrained._PRETRAINED, name, {"tag": tag})


def scatter(model, std=0.3):
    """Give a network random weights, norms and biases too, the same in each call."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model.eval()


def tokenizer(folder):
    """Write the files of a small tokenizer of transformers, which ends each text with </s>, and pads with it."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[1]))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    special = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)


@pytest.fixture
def openai(tmp_path):
    """A small CLIP of OpenAI's class, and the file of its weights."""
    model = scatter(package_clip())
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    return model, tmp_path / "clip.pt"


@pytest.fixture
def siglip(tmp_path):
    """A small SigLIP of open_clip's class, and the file of its weights, laid out as on the hub."""
    config = {**SIGLIP, "vision_cfg": {**SIGLIP["vision_cfg"], "timm_model_pretrained": False}}
    model = scatter(package.CustomTextCLIP(**{key: config[key] for key in config if key != "custom_text"}))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIGLIP, "preprocess_cfg": GREY}))
    tokenizer(tmp_path)
    return model, tmp_path / "open_clip_model.safetensors"


# The standard vision transformer


@pytest.mark.parametrize("features", ["plain", "gem", "corr"])
def test_weights_of_openai_give_what_encoders_clip_gives(openai, features):
    _, path = openai
    images = random_images((16, 16), (40, 64), (64, 40))
    more = {"masks": halves(*(image.shape[:2] for image in images))} if features == "corr" else {}
    how = {"checkpoint": str(path), "features": features, "image_size": 16, "resize": "keep"}
    ours = encoders.build("clip", **how)
    others = encoders.build("open_clip", **how, model={"model_cfg": STANDARD})
    phrases = ["A red house", "a tree", "two boats."]
    batch = torch.stack([ours.preprocess(image, (16, 16)) for image in images[:2]])
    asked = {"tags": [[1], [1, 2]], "text_embeddings": ours.texts(phrases), "owner": torch.tensor([0, 1, 2])}
    asked |= {"background": 0, "scale": 10.0, "layers": 2}
    found, expected = (
        [
            *encoder.images(images, **more),
            *encoder.class_tokens(images),
            encoder.texts(phrases),
            *clip_text.grad_cam(encoder.model.visual, batch, **asked),
        ]
        for encoder in (others, ours)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_network_is_that_of_the_package_with_its_own_activation_and_preprocessing(tmp_path):
    config = STANDARD | {"quick_gelu": False}
    model = scatter(package.CLIP(**config))
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "weights.pt")
    how = {"checkpoint": str(tmp_path / "weights.pt"), "model": {"model_cfg": config, "preprocess_cfg": GREY}}
    encoder = encoders.build("open_clip", **how, features="plain", image_size=16)
    (image,) = random_images((23, 40))
    transform = image_transform_v2(PreprocessCfg(16, **GREY, resize_mode="squash"), is_train=False)
    pixels = transform(Image.fromarray(image))[None]
    assert torch.equal(encoder.preprocess(image, (16, 16)), pixels[0])
    with torch.no_grad():
        last = model.visual.forward_intermediates(pixels, [2], normalize_intermediates=True)["image_intermediates"][0]
        dense = torch.einsum("bchw,cd->bdhw", last, model.visual.proj)
        whole, texts = model.encode_image(pixels), model.encode_text(package.tokenize(["a red house"], 12), True)
    found = [*encoder.images([image]), *encoder.class_tokens([image]), encoder.texts(["a red house"])]
    torch.testing.assert_close(found, [dense[0], whole[0], texts], atol=1e-5, rtol=0)


# SigLIP


def test_a_segment_of_siglip_is_the_attention_pooled_evenly_inside_it(siglip):
    """TextRegion's rule; the package's own pooling does it if its keys are 0 and its MLP is left out."""
    model, path = siglip
    encoder, (image,) = encoders.build("open_clip", checkpoint=str(path)), random_images((20, 16))
    pixels = encoder.preprocess(image, (16, 16))[None]
    (features,) = encoder.images([image])
    assert features.shape == (16, 4, 4)
    with torch.no_grad():
        assert torch.equal(encoder.class_tokens([image])[0], model.encode_image(pixels)[0])
        trunk, pool = model.visual.trunk, model.visual.trunk.attn_pool
        tokens = trunk.forward_features(pixels)
        keys = len(pool.kv.weight) // 2
        pool.kv.weight[:keys], pool.kv.bias[:keys], pool.mlp = 0, 0, None
        expected = torch.stack([pool(tokens[:, [0, 1, 4, 5]])[0], pool(tokens)[0]])
    even = torch.zeros(2, 4, 4, dtype=torch.bool)
    even[0, :2, :2], even[1] = True, True
    torch.testing.assert_close(labels.pool(features, even, (4, 4)), expected, atol=1e-5, rtol=0)


def test_siglip_sees_other_sizes_as_timm_does(siglip):
    model, path = siglip
    encoder, (image,) = encoders.build("open_clip", checkpoint=str(path), resize="keep"), random_images((20, 33))
    pixels = encoder.preprocess(image, (16, 28))[None]
    trunk = tiny_siglip(dynamic_img_size=True).eval()
    trunk.load_state_dict(model.visual.trunk.state_dict())
    with torch.no_grad():
        tokens = trunk.forward_intermediates(pixels, 1, norm=True, intermediates_only=True, output_fmt="NLC")[0]
        expected = trunk.attn_pool.proj(trunk.attn_pool.kv(tokens)[..., 16:])
    torch.testing.assert_close(encoder.images([image])[0].flatten(1).T, expected[0], atol=1e-5, rtol=0)


def test_texts_of_siglip_are_small_letters_padded_to_its_length(siglip):
    model, path = siglip
    encoder = encoders.build("open_clip", checkpoint=str(path))
    assert encoder.tokenize(["A RED_house!"]).tolist() == [[2, 3, 4, 0, 0, 0, 0, 0]]
    with torch.no_grad():
        expected = model.encode_text(torch.tensor([[2, 3, 4, 0, 0, 0, 0, 0]]), normalize=True)
    torch.testing.assert_close(encoder.texts(["A RED_house!"]), expected, atol=1e-6, rtol=0)
    assert encoder.tokenize(["a " * 7]).tolist() == [[2] * 7 + [0]]
    library = package.tokenizer.HFTokenizer(str(path.parent), LENGTH, "canonicalize", local_files_only=True)
    phrases = ["A photo of a RED house.", "", "boats"]
    assert torch.equal(encoder.tokenize(phrases), library(phrases))
    # transformers 5 forgets what a file says if its class is Gemma's: its normaliser, and on which side it pads.
    said = json.loads((path.parent / "tokenizer_config.json").read_text())
    (path.parent / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": "GemmaTokenizer"}))
    assert torch.equal(encoders.build("open_clip", checkpoint=str(path)).tokenize(phrases), library(phrases))


def test_clip_text_needs_a_class_token_which_siglip_lacks(siglip):
    classes = Classes(("background", "house"), (("sky",), ("house",)), ((0, 0, 0),) * 2)
    encoder = encoders.build("open_clip", checkpoint=str(siglip[1]))
    with pytest.raises(ValueError, match="asks CLIP's class token, which this encoder lacks: take ViT-B/16"):
        cams.build("clip_text", classes, encoder=encoder)


def test_tags_of_siglip_come_from_crops(siglip):
    """Its bias is that of whole images: `tags` asks the patches of a network that has one, which is the miniature."""
    encoder, (image,) = encoders.build("open_clip", checkpoint=str(siglip[1])), random_images((20, 33))
    classes = Classes(("background", "house", "photo"), ((), ("house",), ("photo",)), ((0, 0, 0),) * 3, 0)
    (found,) = tags.by_clip(classes, encoder=encoder, threshold=0.0)([image])
    how = {"background": 0, "temperature": tags.own_temperature(encoder)}
    views = tags.embed_crops(encoder, [image])[0]
    expected = tags.score(views, *encoder.class_embeddings(classes), **how)
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)


# Names


def test_a_name_is_a_repository_of_the_hub_with_its_tokenizer(siglip, tmp_path, monkeypatch):
    """Files that lie where the download puts them are used without any connection, and verified ever after."""
    _, path = siglip
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    place = tmp_path / "checkpoints" / "hub" / "timm" / "tiny-SigLIP2"
    place.mkdir(parents=True)
    for name in (path.name, *checkpoints.TOKENIZER):
        (path.parent / name).rename(place / name)
    encoder = encoders.build("open_clip", checkpoint="tiny-SigLIP2:tag")
    assert encoder.tokenize(["a photo of a red house"]).tolist() == [[2, 6, 5, 2, 3, 4, 0, 0]]
    assert (encoder.mean, encoder.std, encoder.interpolation) == tuple(GREY.values())
    assert checkpoints.sha256_of("tiny-SigLIP2:tag") == files.sha256(place / path.name)
    (place / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not the file that was first used"):
        encoders.build("open_clip", checkpoint="tiny-SigLIP2:tag")


def test_a_repository_of_the_hub_says_which_network_it_holds(openai, tmp_path, monkeypatch):
    """As open_clip itself takes it: hf-hub:owner/name, with open_clip_config.json beside the weights."""
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    place = tmp_path / "checkpoints" / "hf-hub" / "owner" / "leaves"
    place.mkdir(parents=True)
    shutil.copyfile(openai[1], place / "open_clip_pytorch_model.bin")
    files.write_json(place / "open_clip_config.json", {"model_cfg": STANDARD, "preprocess_cfg": GREY})
    found = encoders.build("open_clip", checkpoint="hf-hub:owner/leaves", image_size=16)
    own = encoders.build("open_clip", checkpoint=str(openai[1]), model={"model_cfg": STANDARD}, image_size=16)
    assert found.texts(["a leaf"]).equal(own.texts(["a leaf"]))
    assert (tuple(found.mean), tuple(found.std), found.interpolation) == tuple(GREY.values())
    assert checkpoints.sha256_of("hf-hub:owner/leaves") == files.sha256(place / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="not hub:owner/name"):
        checkpoints.known("hf-hub:leaves")
    siglip = "open_clip_config.json", "open_clip_model.safetensors", *checkpoints.TOKENIZER
    assert checkpoints.known("hf-hub:timm/ViT-B-16-SigLIP2").files == siglip  # timm's repositories have no .bin


def test_the_names_in_the_head_of_the_file_are_real():
    names = re.findall(r"^    (ViT-\S+:\S+) .* ([\d.]+) ([MG])$", open_clip.__doc__, re.MULTILINE)
    assert len(names) == 13
    for name, count, unit in names:
        known, model = checkpoints.known(name), name.split(":")[0]
        assert known.hub and known.weights in ("open_clip_model.safetensors", checkpoints.OPEN_CLIP_WEIGHTS)
        assert (set(checkpoints.TOKENIZER) <= set(known.files)) == ("SigLIP" in name)
        config = package.get_model_config(model)
        with torch.device("meta"):
            made = (package.CustomTextCLIP if config.pop("custom_text", False) else package.CLIP)(**config)
        millions = sum(parameter.numel() for parameter in made.parameters()) / 1e6
        assert float(count) * (1000 if unit == "G" else 1) == pytest.approx(millions, rel=0.005)
        assert open_clip._is_siglip(made.visual) if "SigLIP" in name else open_clip._is_plain(made.visual)


def refusals(path, other):
    """What is refused: options, and what the error says."""
    file = {"checkpoint": str(path)}
    standard = {"checkpoint": None, "model": {"model_cfg": STANDARD}, "image_size": 16}
    pooled = {**STANDARD, "vision_cfg": {**SIZES, "attentional_pool": True, "attn_pooler_heads": 2}}
    scaled = {**STANDARD, "vision_cfg": {**SIZES, "ls_init_value": 0.1}}
    far = {**STANDARD, "text_cfg": {**TEXT, "hf_model_name": "roberta-base"}}
    return {
        "unknown": ({"checkpoint": "ViT-B-61:openai"}, "no checkpoint of open_clip 'ViT-B-61:openai'.*did you mean"),
        "activation": ({"checkpoint": "tiny:tag"}, "tiny:tag: .* QuickGELU, so take tiny-quickgelu:tag"),
        "no model": ({"checkpoint": str(other)}, "does not say which of open_clip's networks.* give model"),
        "random": ({"checkpoint": None}, "random weights, and needs model"),
        "no tokenizer": ({"checkpoint": None, "model": "tiny-SigLIP2:tag"}, "no tokenizer: fetch tokenizer.json"),
        "gem": (file | {"features": "gem"}, "features: gem needs a class token, which SigLIP lacks: take plain"),
        "size": (file | {"image_size": 18}, "image_size is 18, not a multiple of the patch of 4"),
        "other weights": (file | {"model": "tiny-quickgelu:tag"}, "does not hold the weights of open_clip's tiny"),
        "pooling": (standard | {"model": {"model_cfg": pooled}}, "the patches of the network are not in the space"),
        "scales": (standard | {"model": {"model_cfg": scaled}}, "the patches of the network are not in the space"),
        "texts": (standard | {"model": {"model_cfg": far}}, "a text encoder that is not open_clip's own"),
    }


@pytest.mark.parametrize("case", refusals("", ""))
def test_what_cannot_be_is_refused_in_one_line(siglip, tmp_path, case):
    (tmp_path / "other").mkdir()
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "other" / "w.safetensors")
    options, message = refusals(siglip[1], tmp_path / "other" / "w.safetensors")[case]
    with pytest.raises(ValueError, match=message) as refused:
        encoders.build("open_clip", **options)
    assert "\n" not in str(refused.value)


def test_words_beyond_the_length_are_refused(siglip, openai):
    small = {"checkpoint": str(openai[1]), "model": {"model_cfg": STANDARD}, "image_size": 16}
    for options, limit, fits, own in (({"checkpoint": str(siglip[1])}, LENGTH, 7, "plain"), (small, 12, 10, "gem")):
        encoder = encoders.build("open_clip", **options)
        assert encoder.features == own
        assert encoder.texts(["a photo", "house " * fits]).shape[0] == 2
        message = f"'house house.* has {limit + 1} tokens, over the {limit} that the network reads: shorten it"
        with pytest.raises(ValueError, match=message):
            encoder.texts(["a photo", "house " * (fits + 1)])
