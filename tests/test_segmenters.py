from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import reference_training
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from plg_utils import checkpoints, segmenters
from plg_utils.segmenters import deeplabv3plus, smp

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
        context = torch.from_numpy(reference_training.bilinear(context[0].numpy(), 10, 13)).float()[None]
        fused = torch.cat([block(c1, head.reduce), context], 1)
        fused = block(block(fused, head.fuse[0], padding=1), head.fuse[1], padding=1)
        small = F.conv2d(fused, head.classifier.weight, head.classifier.bias)[0]
        expected = reference_training.bilinear(small.numpy(), 37, 50)
        np.testing.assert_allclose(network(images)[0].numpy(), expected, atol=1e-5)


# Weights of encoders


@pytest.mark.parametrize("name", FILES)
def test_without_pretraining_there_is_no_checkpoint(name):
    module = import_module(f"plg_utils.segmenters.{name}")
    assert module.checkpoint(**module.SMOKE) is None
    assert module.checkpoint() is None


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


def test_weights_of_a_timm_encoder_come_through_checkpoints(tmp_path, monkeypatch):
    import timm

    options = {"encoder": "test_resnet", "width": 8, "skip": 4, "rates": (1, 2, 3)}
    state = randomised(timm.create_model("test_resnet"))
    assert "fc.weight" in state  # as the hub has it, for the classes of ImageNet
    name = deeplabv3plus.checkpoint(**options, pretrained=True)
    assert name == "hub:timm/test_resnet.r160_in1k"
    assert name == deeplabv3plus.checkpoint(encoder="test_resnet.r160_in1k", pretrained=True)
    put_there(monkeypatch, tmp_path, name, state)
    path = checkpoints.locate_weights(name)
    for pretrained in (True, name, path, str(path)):
        network = segmenters.build("deeplabv3plus", 3, **options, pretrained=pretrained)
        loaded = network.encoder.network.state_dict()
        assert loaded and all(torch.equal(loaded[key], state[key]) for key in loaded)
    save_file(state | {"fc.bias": state["fc.bias"] + 1}, path)
    with pytest.raises(ValueError, match="model.safetensors is not the file that was first used"):
        segmenters.build("deeplabv3plus", 3, **options, pretrained=True)


def test_weights_of_an_smp_encoder_come_through_checkpoints(tmp_path, monkeypatch):
    state = randomised(segmenters.build("smp", 3, **smp.SMOKE).encoder)
    name = smp.checkpoint(encoder="mobilenet_v2", pretrained=True)
    assert name == smp.checkpoint(encoder="mobilenet_v2", pretrained="imagenet", architecture="FPN")
    settings = smp.listed["mobilenet_v2"]["pretrained_settings"]["imagenet"]
    assert name == f"hub:{settings['repo_id']}@{settings['revision']}"
    put_there(monkeypatch, tmp_path, name, state)
    loaded = segmenters.build("smp", 3, **smp.SMOKE, pretrained=True).encoder.state_dict()
    assert loaded and all(torch.equal(loaded[key], state[key]) for key in loaded)


def test_every_weight_that_smp_lists_has_a_commit():
    for encoder, entry in smp.listed.items():
        for weights in entry["pretrained_settings"]:
            name = smp.checkpoint(encoder=encoder, pretrained=weights)
            assert checkpoints.known(name).revision


def test_weights_that_nobody_pins_are_refused():
    with pytest.raises(ValueError, match="timm lists no model.safetensors on the hub for resnetx"):
        segmenters.build("deeplabv3plus", 3, encoder="resnetx", pretrained=True)
    for pretrained in (True, False):
        with pytest.raises(ValueError, match="hf-hub:timm/resnet10t.c3_in1k"):
            segmenters.build("deeplabv3plus", 3, encoder="hf-hub:timm/resnet10t.c3_in1k", pretrained=pretrained)
    with pytest.raises(ValueError, match="no weights 'imagenet' for tu-resnet18, only none"):
        segmenters.build("smp", 3, encoder="tu-resnet18", pretrained=True)
    with pytest.raises(ValueError, match="no weights 'coco' for mobilenet_v2, only imagenet"):
        segmenters.build("smp", 3, encoder="mobilenet_v2", pretrained="coco")
    with pytest.raises(FileNotFoundError, match="neither a file nor a checkpoint"):
        segmenters.build("deeplabv3plus", 3, encoder="resnet10t", pretrained="lost.pth")
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


def test_what_differs_from_unimatch_s_xception_is_as_the_docstring_says():
    with torch.device("meta"):
        encoder = segmenters.build("deeplabv3plus", 2, encoder="xception65.tf_in1k").encoder
    last = [module for module in encoder.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert [module.dilation for module in last[-4:]] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert encoder.network.feature_info.module_name(0).endswith("act3") and encoder.channels[0] == 256
    norms = {(module.eps, module.momentum) for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms == {(1e-3, 0.1)}
    assert deeplabv3plus.checkpoint(encoder="xception65.tf_in1k", pretrained=True) == "hub:timm/xception65.tf_in1k"
