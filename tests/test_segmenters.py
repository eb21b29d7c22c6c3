from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import reference_training
import torch
import torch.nn.functional as F

from plg_utils import segmenters

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
        if isinstance(module, torch.nn.BatchNorm2d):
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


def test_the_full_size_is_that_of_unimatch():
    with torch.device("meta"):  # shapes without memory
        network = segmenters.build("deeplabv3plus", 21, encoder="resnet101s")
    million = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert round(million, 1) == 59.5  # as its training logs say
    assert network.head.reduce[0].out_channels == 48
    assert [branch[0].dilation[0] for branch in network.head.aspp.branches] == [1, 6, 12, 18]
