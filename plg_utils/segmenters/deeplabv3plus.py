"""DeepLabV3+ as UniMatch trains it (github.com/LiheYoung/UniMatch, model/semseg/deeplabv3plus.py).

The head is UniMatch's: ASPP on the last feature map c4, a skip of 48 channels from the first one, c1 at stride 4, two
3x3 convolutions, a classifier; all resizing is bilinear with align_corners=True. The encoder is timm's, or the
miniature of the storybook. UniMatch's ResNet-101 begins with three 3x3 convolutions: timm calls it resnet101s.

UniMatch's Xception-65, for COCO, is not in timm. The nearest is xception65.tf_in1k (the tag names TensorFlow's weights;
without it timm takes its own training, ra3_in1k). It differs in three points: at output stride 16 the last three
convolutions are dilated by 2 (UniMatch: 1); c1 is taken after the ReLU (before it); batch normalisation has eps 1e-3
and momentum 0.1 (1e-5 and 0.0003). So a COCO number from it is not one of UniMatch's network.
"""

from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from plg_utils import checkpoints
from plg_utils.miniature import DEFAULTS
from plg_utils.segmenters import Segmenter, locate, of_timm

UNIMATCH = {"output_stride": 16, "width": 256, "rates": (6, 12, 18)}
SMOKE = {"encoder": "resnet10t", "width": 8, "skip": 4, "rates": (1, 2, 3)}


def build(
    num_classes: int,
    *,
    encoder: str = "resnet101",
    pretrained: bool | str | Path = False,
    output_stride: int | None = None,
    width: int | None = None,
    skip: int = 48,
    rates: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Build the network.

    encoder: a network of timm ("resnet101", or with the tag of its weights, "resnet101.a1h_in1k"), or "miniature"
    pretrained: its weights; True: those that timm lists, or the miniature's committed file; or a name of `checkpoints`
        or the path of a weight file
    output_stride: pixels per cell of c4; width: channels of the head; skip: channels of the skip from c1
    rates: dilation of the ASPP branches
    A None is the value in UNIMATCH, or in `miniature.DEFAULTS`.
    """
    defaults = DEFAULTS["miniature_encoder"] if encoder == "miniature" else UNIMATCH
    output_stride = output_stride or defaults["output_stride"]
    weights = locate(checkpoint(encoder=encoder, pretrained=pretrained))
    if encoder == "miniature":
        from plg_utils.miniature import encoder as miniature  # it needs timm, which takes seconds to import

        features = miniature.load(weights, output_stride=output_stride)
    else:
        features = TimmFeatures(encoder, weights, output_stride)
    head = Head(
        low=features.channels[0],
        high=features.channels[-1],
        num_classes=num_classes,
        width=width or defaults["width"],
        skip=skip,
        rates=rates or defaults["rates"],
    )
    return DeepLabV3Plus(encoder=features, head=head)


def checkpoint(*, encoder: str = "resnet101", pretrained: bool | str | Path = False, **options) -> str | Path | None:
    """Name or path, for `checkpoints`, of the weights with which `build` starts, given its options; None: random."""
    if pretrained is not True:
        return pretrained or None
    if encoder == "miniature":
        return "miniature_encoder"
    import timm

    listed = None
    with suppress(RuntimeError):  # a tag that it does not know
        listed = timm.get_pretrained_cfg(encoder)
    if listed is None or not listed.hf_hub_id or listed.hf_hub_filename not in (None, checkpoints.WEIGHTS):
        raise ValueError(
            f"timm lists no {checkpoints.WEIGHTS} on the hub for {encoder}: choose another network or tag, see "
            "timm.list_pretrained(), or give the path of a weight file as pretrained"
        )
    return f"hub:{listed.hf_hub_id}"


class DeepLabV3Plus(Segmenter):
    """An encoder that gives feature maps [c1, ..., c4], and the head that reads the first and the last of them."""

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return [c1, c4] of images (B, 3, H, W)."""
        features = self.encoder(images)
        return [features[0], features[-1]]

    def decode(self, features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Logits (B, K, H, W) float32 of [c1, c4] and size (H, W)."""
        return resize(self.head(*features).float(), size)


class TimmFeatures(nn.Module):
    """Feature maps [c1, c2, c3, c4] of a timm network; strides 4, 8, ... up to `output_stride`, then dilation."""

    def __init__(self, name: str, weights: Path | None, output_stride: int):
        super().__init__()
        import timm  # it takes seconds

        options = {"features_only": True, "output_stride": output_stride, "out_indices": (1, 2, 3, 4)}

        def make(**pretrained) -> nn.Module:
            try:
                return timm.create_model(name, **options, **pretrained)
            except (TypeError, IndexError, AssertionError) as error:  # a transformer, or a network of four stages
                raise ValueError(
                    f"{name} has no feature maps at strides 4 to {output_stride} ({type(error).__name__}: {error}), "
                    "which DeepLabV3+ needs: choose a network such as resnet101, or the segmenter dpt"
                ) from error

        self.network = of_timm(name, weights, make)
        self.channels = self.network.feature_info.channels()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (B, C, h, w) of images (B, 3, H, W), finest first."""
        return self.network(images)


class Head(nn.Module):
    """Logits at the size of c1, from c1 (B, low, h, w) and c4 (B, high, h', w')."""

    def __init__(self, *, low: int, high: int, num_classes: int, width: int, skip: int, rates: tuple[int, ...]):
        super().__init__()
        self.aspp = ASPP(high, width, rates)
        self.reduce = convolution(low, skip, 1)
        self.fuse = nn.Sequential(convolution(width + skip, width, 3), convolution(width, width, 3))
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, c1: torch.Tensor, c4: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, h, w)."""
        context = resize(self.aspp(c4), c1.shape[-2:])
        return self.classifier(self.fuse(torch.cat([self.reduce(c1), context], dim=1)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, dilated 3x3 and a global branch, joined by a 1x1 convolution."""

    def __init__(self, channels: int, width: int, rates: tuple[int, ...]):
        super().__init__()
        dilated = [convolution(channels, width, 3, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList([convolution(channels, width, 1), *dilated])
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), convolution(channels, width, 1))
        self.project = convolution(width * (len(rates) + 2), width, 1)

    def forward(self, c4: torch.Tensor) -> torch.Tensor:
        """Context (B, width, h, w) of c4 (B, channels, h, w)."""
        pooled = self.pooled(c4).expand(-1, -1, *c4.shape[-2:])  # what resizing a single cell gives
        return self.project(torch.cat([*(branch(c4) for branch in self.branches), pooled], dim=1))


def convolution(channels: int, width: int, kernel: int, *, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps height and width, batch normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize maps (B, C, h, w) to (B, C, *size)."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
