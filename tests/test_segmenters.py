from copy import deepcopy
from importlib import import_module
from pathlib import Path

import allowed
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from plg_utils import checkpoints, segmenters
from plg_utils.segmenters import deeplabv3plus, dpt, smp

FILES = sorted(path.stem for path in Path(segmenters.__file__).parent.glob("[!_]*.py"))


@pytest.fixture(scope="module", params=FILES)
def segmenter(request):
    smoke = import_module(f"plg_utils.segmenters.{request.param}").SMOKE
    torch.manual_seed(0)
    return segmenters.build(request.param, 5, **smoke)


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_any_size_gives_logits_of_that_size(segmenter, size):
    images = torch.randn(2, 3, *size)
    segmenter.eval()
    with torch.no_grad():
        features = segmenter.encode(images)
        logits = segmenter.decode(features, size)
        assert isinstance(features, list) and len(features) >= 2
        assert logits.shape == (2, 5, *size) and logits.dtype == torch.float32
        assert torch.equal(logits, segmenter(images))
        # the seam: features disturbed in between change the logits, and decode leaves its input alone
        assert not torch.equal(segmenter.decode([maps * 0.5 for maps in features], size), logits)
        assert torch.equal(segmenter.decode(features, size), logits)


def test_encoder_and_the_rest_learn(segmenter):
    segmenter.train()
    segmenter(torch.randn(2, 3, 33, 47)).square().mean().backward()
    encoder = {id(parameter) for parameter in segmenter.encoder.parameters()}
    rest = [parameter for parameter in segmenter.parameters() if id(parameter) not in encoder]
    for group in (segmenter.encoder.parameters(), rest):
        gradients = [parameter.grad for parameter in group if parameter.grad is not None]
        assert gradients and any(gradient.abs().sum() > 0 for gradient in gradients)


def test_deeplab_equals_its_formula():
    torch.manual_seed(1)
    network = segmenters.build("deeplabv3plus", 3, encoder="resnet10t", width=4, skip=3, rates=(1, 2, 3)).eval()
    head = network.head
    for module in head.modules():  # batch statistics that matter
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)

    def block(maps, layers, **options):
        maps = F.conv2d(maps, layers[0].weight, **options)
        norm = layers[1]
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        return ((maps - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).relu()

    images = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        c1, c4 = network.encode(images)
        assert c1.shape[-2:] == (10, 13) and c4.shape[-2:] == (3, 4)  # strides 4 and 16
        branches = [block(c4, head.aspp.branches[0])]
        branches += [block(c4, head.aspp.branches[i], padding=i, dilation=i) for i in (1, 2, 3)]
        branches += [block(c4.mean((2, 3), keepdim=True), head.aspp.pooled[1]).expand_as(branches[0])]
        context = block(torch.cat(branches, 1), head.aspp.project)
        context = F.interpolate(context, (10, 13), mode="bilinear", align_corners=True)
        fused = torch.cat([block(c1, head.reduce), context], 1)
        fused = block(block(fused, head.fuse[0], padding=1), head.fuse[1], padding=1)
        small = F.conv2d(fused, head.classifier.weight, head.classifier.bias)
        expected = F.interpolate(small, (37, 50), mode="bilinear", align_corners=True)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


def test_dpt_equals_its_formula():
    """UniMatch V2's network written out once more, on a grid of patches that the encoder was not trained with."""
    torch.manual_seed(2)
    network = segmenters.build("dpt", 3, **dpt.SMOKE, img_size=56, init_values=0.7).eval()
    vit, head = network.encoder.network, network.head
    nn.init.normal_(vit.pos_embed)
    nn.init.normal_(vit.cls_token)
    nn.init.normal_(vit.norm.weight)
    images = torch.randn(2, 3, 42, 70)  # 3 x 5 patches; 4 x 4 in training

    def residual(maps, unit):
        inner = F.conv2d(maps.relu(), unit.first.weight, unit.first.bias, padding=1).relu()
        return maps + F.conv2d(inner, unit.second.weight, unit.second.bias, padding=1)

    def fuse(maps, unit, size, skip=None):
        maps = maps if skip is None else maps + residual(skip, unit.skip)
        maps = F.interpolate(residual(maps, unit.refine), size=size, mode="bilinear", align_corners=True)
        return F.conv2d(maps, unit.mix.weight, unit.mix.bias)

    with torch.no_grad():
        cells = vit.pos_embed[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
        cells = F.interpolate(cells, scale_factor=(3.1 / 4, 5.1 / 4), mode="bicubic").flatten(2).transpose(1, 2)
        patches = F.conv2d(images, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=14)
        tokens = torch.cat([vit.cls_token.expand(2, 1, 24), patches.flatten(2).transpose(1, 2)], 1)
        tokens = tokens + torch.cat([vit.pos_embed[:, :1], cells], 1)
        levels = []
        for index, block in enumerate(vit.blocks):
            tokens = block(tokens)
            maps = F.layer_norm(tokens, (24,), vit.norm.weight, vit.norm.bias, 1e-6)[:, 1:]
            maps = maps.transpose(1, 2).reshape(2, 24, 3, 5)
            maps = F.conv2d(maps, head.project[index].weight, head.project[index].bias)
            scale = head.scale[index]
            if index < 2:
                maps = F.conv_transpose2d(maps, scale.weight, scale.bias, stride=(4, 2)[index])
            elif index == 3:
                maps = F.conv2d(maps, scale.weight, scale.bias, stride=2, padding=1)
            levels.append(F.conv2d(maps, head.narrow[index].weight, None, padding=1))
        assert [level.shape[-2:] for level in levels] == [(12, 20), (6, 10), (3, 5), (2, 3)]
        joined = fuse(levels[3], head.fuse[3], (3, 5))
        joined = fuse(joined, head.fuse[2], (6, 10), levels[2])
        joined = fuse(joined, head.fuse[1], (12, 20), levels[1])
        joined = fuse(joined, head.fuse[0], (24, 40), levels[0])
        hidden = F.conv2d(joined, head.output[0].weight, head.output[0].bias, padding=1).relu()
        expected = F.conv2d(hidden, head.output[2].weight, head.output[2].bias)
        expected = F.interpolate(expected, size=(42, 70), mode="bilinear", align_corners=True)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)
        twin = deepcopy(network)  # it has embeddings of its own
        twin.encoder.network.pos_embed.zero_()
        assert not torch.equal(twin(images), network(images))

        # on the grid of the training timm's own way is the same; a photo of another size is resized to whole patches
        square = torch.randn(1, 3, 56, 56)
        own = vit.forward_intermediates(square, indices=[0, 1, 2, 3], norm=True, intermediates_only=True)
        del vit._pos_embed
        timms = vit.forward_intermediates(square, indices=[0, 1, 2, 3], norm=True, intermediates_only=True)
        assert all(map(torch.equal, own, timms))
        odd = torch.randn(1, 3, 50, 61)  # 3.57 and 4.36 patches
        assert [tuple(maps.shape[-2:]) for maps in network.encode(odd)] == [(4, 4)] * 4


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "vit_small_patch14_reg4_dinov2"},
        {"encoder": "vit_small_patch16_dinov3"},
        {"encoder": "convnext_tiny", "depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)},
    ],
    ids=lambda options: options["encoder"],
)
def test_dpt_reads_dinov2_with_registers_dinov3_and_convnexts(options):
    of_transformer = ("embed_dim", "depth", "num_heads", "layers") if "dims" in options else ()
    smoke = {key: value for key, value in dpt.SMOKE.items() if key not in of_transformer}
    network = segmenters.build("dpt", 3, **smoke | options)
    side = 2 * network.multiple if network.multiple > 1 else 64
    network(torch.randn(2, 3, side, 2 * side)).square().mean().backward()
    assert all(value.grad is not None for name, value in network.head.named_parameters())
    with torch.no_grad():
        maps = network.eval().encode(torch.randn(1, 3, side, 2 * side))
        assert len(maps) == 4 and network(torch.randn(1, 3, 37, 50)).shape == (1, 3, 37, 50)
    sizes = [(2, 4)] * 4 if network.multiple > 1 else [(16, 32), (8, 16), (4, 8), (2, 4)]
    assert [tuple(each.shape[-2:]) for each in maps] == sizes


@pytest.mark.parametrize(
    ("name", "encoder", "said"),
    [
        ("deeplabv3plus", "vit_small_patch14_dinov2", "no feature maps at strides 4 to 16 .*segmenter dpt"),
        ("deeplabv3plus", "convnext_atto", "no feature maps at strides 4 to 16 .*the segmenter dpt"),
        ("smp", "tu-vit_tiny_patch16_224", "Unet with the encoder tu-vit_tiny_.* the segmenter dpt"),
        ("dpt", "test_vit", "no transformer of 6 blocks: give layers"),
        ("dpt", "convnext_atto", "no head for the 320 channels of convnext_atto: give out_channels"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(name, encoder, said):
    with pytest.raises(ValueError, match=said):
        segmenters.build(name, 3, encoder=encoder)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dpt", {"encoder": "swin_tiny_patch4_window7_224"}, r"cannot label .* 128 x 129 pixels \(Input height"),
        ("dpt", dpt.SMOKE | {"layers": (0, 1, 2)}, "maps of the encoder are 3: give four layers"),
        ("dpt", dpt.SMOKE | {"out_channels": (4, 8, 12)}, "out_channels are 3: give .* four out_channels"),
        ("dpt", dpt.SMOKE | {"embd_dim": 24}, "unexpected keyword argument 'embd_dim'"),
        ("dpt", {"encoder": "vit_base_patch14_dinov2.lvd142"}, "near are vit_base_patch14_dinov2.lvd142m"),
        ("deeplabv3plus", {"encoder": "ResNet101"}, "'ResNet101' is not the name of a network .* near are resnet101"),
        ("smp", {"encoder": "resnet35"}, "no encoder of segmentation-models-pytorch 'resnet35'; did you mean 'resnet"),
        ("smp", {"architecture": "Unett"}, "did you mean 'unet'"),
        ("smp", smp.SMOKE | {"decodr_channels": 3}, "no option of FPN 'decodr_channels'"),  # was passed over
        ("smp", smp.SMOKE | {"activation": "softmax"}, "the losses here take logits"),  # was a second softmax
        ("smp", {"architecture": "DPT", "encoder": "tu-vit_tiny_patch16_224"}, "cannot label an image"),
    ],
)
def test_a_network_that_can_label_no_image_is_refused_before_any_work(name, options, said):
    """It failed in the first step of a training, after hours; two options were passed over."""
    with pytest.raises(ValueError, match=said):
        segmenters.build(name, 3, **options)
    with pytest.raises(ValueError, match=f"segmenter_options: .*{said}"):
        allowed.check_options(
            {"segmenter": name, "segmenter_options": options}, {"segmenter": "", "segmenter_options": {}}
        )


def test_networks_that_can_be_built_pass_before_any_work_without_their_weights():
    known = {"segmenter": "", "segmenter_options": {}}
    for name, options in (
        ("dpt", {"encoder": "vit_base_patch14_dinov2.lvd142m", "pretrained": True}),
        ("deeplabv3plus", {"encoder": "miniature", "pretrained": True}),
        ("smp", {"architecture": "Segformer", "encoder": "mit_b0"}),  # looks into its numbers when it is built
    ):
        allowed.check_options({"segmenter": name, "segmenter_options": options}, known)


@pytest.mark.parametrize("encoder", ["vit_base_patch16_siglip_224", "flexivit_small", "eva02_tiny_patch14_224"])
def test_a_transformer_with_other_positions_is_seen_as_timm_has_it(encoder):
    """Without a class token, or with positions without it, they stopped with an error in the first step."""
    small = {"embed_dim": 24, "depth": 4, "num_heads": 2}
    network = segmenters.build("dpt", 3, **dpt.SMOKE | {"encoder": encoder} | small).eval()
    own = timm.create_model(encoder, num_classes=0, dynamic_img_size=True, **small).eval()
    own.load_state_dict(network.encoder.network.state_dict())
    images = torch.randn(1, 3, 4 * network.multiple, 6 * network.multiple)
    with torch.no_grad():
        expected = own.forward_intermediates(images, indices=[0, 1, 2, 3], norm=True, intermediates_only=True)
        for found, wanted in zip(network.encode(images), expected, strict=True):
            assert torch.equal(found, wanted)


# Weights of encoders

FIRST = "conv1.0.weight"


def put_there(monkeypatch, folder, name, state):
    """Lay weights where those of a repository are looked for."""
    monkeypatch.setenv("PLG_CHECKPOINTS", str(folder))
    place = folder / name.replace("hub:", "hub/")
    place.mkdir(parents=True)
    save_file(state, place / "model.safetensors")


def randomised(network):
    """State dict with values that no initialisation gives, whatever the layer."""
    rng = torch.Generator().manual_seed(7)
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    for value in state.values():
        if value.is_floating_point():
            value.uniform_(0.5, 1, generator=rng)
    return state


def assert_loaded(network, state):
    loaded = network.state_dict()
    assert loaded and all(torch.equal(loaded[key], state[key]) for key in loaded)


def test_weights_of_timm_come_through_checkpoints(tmp_path, monkeypatch):
    options = {"encoder": "test_resnet", "width": 8, "skip": 4, "rates": (1, 2, 3)}
    state = randomised(timm.create_model("test_resnet"))
    assert "fc.weight" in state  # as the hub has it, for the classes of ImageNet
    name = deeplabv3plus.checkpoint(**options, pretrained=True)
    assert name == "hub:timm/test_resnet.r160_in1k" == smp.checkpoint(encoder="tu-test_resnet", pretrained=True)
    assert name == deeplabv3plus.checkpoint(encoder="test_resnet.r160_in1k", pretrained=True)
    put_there(monkeypatch, tmp_path, name, state)
    path = checkpoints.locate_weights(name)
    for pretrained in (True, name, path, str(path)):
        network = segmenters.build("deeplabv3plus", 3, **options, pretrained=pretrained)
        assert_loaded(network.encoder.network, state)
    network = segmenters.build("smp", 3, architecture="FPN", encoder="tu-test_resnet", pretrained=True)
    assert_loaded(network.encoder.model, state)
    save_file(state | {"fc.bias": state["fc.bias"] + 1}, path)
    with pytest.raises(ValueError, match="model.safetensors is not the file that was first used"):
        segmenters.build("deeplabv3plus", 3, **options, pretrained=True)


def test_weights_of_smp_and_dpt_come_through_checkpoints(tmp_path, monkeypatch):
    state = randomised(segmenters.build("smp", 3, **smp.SMOKE).encoder)
    name = smp.checkpoint(encoder="mobilenet_v2", pretrained=True)
    assert name == smp.checkpoint(encoder="mobilenet_v2", pretrained="imagenet", architecture="FPN")
    settings = smp.listed["mobilenet_v2"]["pretrained_settings"]["imagenet"]
    assert name == f"hub:{settings['repo_id']}@{settings['revision']}"
    put_there(monkeypatch, tmp_path, name, state)
    assert_loaded(segmenters.build("smp", 3, **smp.SMOKE, pretrained=True).encoder, state)

    assert dpt.checkpoint(pretrained=True) == "hub:timm/vit_base_patch14_dinov2.lvd142m"
    assert dpt.checkpoint(encoder="vit_small_patch16_dinov3", pretrained=True).endswith("_dinov3.lvd1689m")
    state = randomised(timm.create_model("vit_small_patch14_dinov2", num_classes=0, embed_dim=24, depth=4, num_heads=2))
    save_file(state, tmp_path / "small.safetensors")
    network = segmenters.build("dpt", 3, **dpt.SMOKE, pretrained=tmp_path / "small.safetensors").encoder.network
    assert network.state_dict().keys() == state.keys()
    assert_loaded(network, state)


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("smp", lambda state: {f"backbone.{key}": each for key, each in state.items()}, "none for .*conv1.0.weight"),
        ("smp", lambda state: {key: each for key, each in state.items() if "layer4" not in key}, "none for .*layer4"),
        ("deeplabv3plus", lambda state: state | {FIRST: state[FIRST] * np.nan}, "conv1.0.weight is nan or inf"),
        ("deeplabv3plus", lambda state: state | {FIRST: state[FIRST][:4]}, "size mismatch for .*conv1.0.weight"),
    ],
)
def test_weights_that_would_leave_the_encoder_random_are_refused(name, changed, says, tmp_path):
    """With a prefix or of another network timm went on with random numbers; nan came out at the first step."""
    options = {"encoder": "test_resnet", "width": 8, "skip": 4}
    options = options if name == "deeplabv3plus" else {"encoder": "tu-test_resnet", "architecture": "FPN"}
    state, path = randomised(timm.create_model("test_resnet")), tmp_path / "own.safetensors"
    save_file({key: value.contiguous() for key, value in changed(state).items()}, path)
    with pytest.raises(ValueError, match=f"own.safetensors is not the weights of test_resnet .*{says}") as caught:
        segmenters.build(name, 3, **options, pretrained=str(path))
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    save_file(state, path)
    heads = []
    for pretrained in (False, str(path)):  # what is random does not depend on the weights
        torch.manual_seed(3)
        network = segmenters.build(name, 3, **options, pretrained=pretrained)
        heads.append({key: value for key, value in network.state_dict().items() if not key.startswith("encoder.")})
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


def test_every_weight_that_smp_lists_has_a_commit():
    for encoder, entry in smp.listed.items():
        for weights in entry["pretrained_settings"]:
            name = smp.checkpoint(encoder=encoder, pretrained=weights)
            assert checkpoints.known(name).revision


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        ("deeplabv3plus", {"encoder": "resnetx"}, ValueError, "timm lists no model.safetensors on the hub for resnetx"),
        ("deeplabv3plus", {"encoder": "hf-hub:timm/a", "pretrained": False}, ValueError, "hf-hub:timm/a"),
        ("deeplabv3plus", {"pretrained": "lost.pth"}, FileNotFoundError, "neither a file nor a checkpoint"),
        ("smp", {"encoder": "mobilenet_v2", "pretrained": "coco"}, ValueError, "no weights 'coco' .*, only imagenet"),
    ],
)
def test_weights_that_nobody_pins_are_refused(name, options, error, says):
    with pytest.raises(error, match=says):
        segmenters.build(name, 3, **{"pretrained": True} | options)


@pytest.mark.parametrize("name", FILES)
def test_without_pretraining_there_is_no_checkpoint(name):
    module = import_module(f"plg_utils.segmenters.{name}")
    assert module.checkpoint(**module.SMOKE) is None and module.checkpoint() is None
    assert deeplabv3plus.checkpoint(encoder="miniature", pretrained=True) == "miniature_encoder"


@pytest.mark.parametrize(
    ("encoder", "classes", "millions"), [("resnet101s", 21, 59.5), ("xception65.tf_in1k", 81, 54.7)]
)
def test_the_large_networks_are_as_large_as_unimatch_s(encoder, classes, millions):
    """The sizes that UniMatch's training logs print, for VOC and for COCO."""
    with torch.device("meta"):  # no memory is touched
        network = segmenters.build("deeplabv3plus", classes, encoder=encoder)
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == millions
    assert network.head.reduce[0].out_channels == 48
    assert [branch[0].dilation[0] for branch in network.head.aspp.branches] == [1, 6, 12, 18]


@pytest.mark.parametrize(("size", "encoder", "head"), [("small", 22.1, 2.7), ("base", 86.6, 10.9)])
def test_dpt_is_as_large_as_unimatch_v2_s(size, encoder, head):
    """The sizes that UniMatch V2's training logs print; its head has a unit that it never calls, and ours lacks."""
    with torch.device("meta"):
        network = segmenters.build("dpt", 21, encoder=f"vit_{size}_patch14_dinov2.lvd142m")
        unused = dpt.Residual({"small": 64, "base": 128}[size])
    counts = {name: sum(weight.numel() for weight in module.parameters()) for name, module in network.named_children()}
    assert round(counts["encoder"] / 1e6, 1) == encoder
    assert round((counts["head"] + sum(weight.numel() for weight in unused.parameters())) / 1e6, 1) == head


def test_what_differs_from_unimatch_s_xception_is_as_the_docstring_says():
    with torch.device("meta"):
        encoder = segmenters.build("deeplabv3plus", 2, encoder="xception65.tf_in1k").encoder
    last = [module for module in encoder.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert [module.dilation for module in last[-4:]] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert encoder.network.feature_info.module_name(0).endswith("act3") and encoder.channels[0] == 256
    norms = {(module.eps, module.momentum) for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms == {(1e-3, 0.1)}
    assert deeplabv3plus.checkpoint(encoder="xception65.tf_in1k", pretrained=True) == "hub:timm/xception65.tf_in1k"
