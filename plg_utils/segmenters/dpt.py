"""DPT on a vision transformer, as UniMatch V2 trains it (github.com/LiheYoung/UniMatch-V2, model/semseg/dpt.py).

Encoders are timm's. The weights that `pretrained: true` takes, from the hub:

    vit_{small,base,large}_patch14_dinov2.lvd142m, vit_..._patch14_reg4_dinov2.lvd142m    Apache-2.0
    vit_{small,base,large}_patch16_dinov3.lvd1689m, convnext_{tiny,...}.dinov3_lvd1689m   Meta's DINOv3 licence

UniMatch V2 uses the first, without registers. All four feature maps of a transformer go through its last normalisation.
For images of another size than DINOv2 was trained with, its position embeddings are resized by DINOv2's own rule
(bicubic, 0.1 cells added), which timm's differs from by some percent; with registers, timm's is DINOv2's rule.
"""

from functools import partial
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn

from plg_utils.segmenters import Segmenter, deeplabv3plus, locate, of_timm
from plg_utils.segmenters.deeplabv3plus import resize

LAYERS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}  # number of blocks: those that are read, from 0
WIDTHS = {  # channels of the encoder: those of the four maps, and of the fusion
    384: ((48, 96, 192, 384), 64),
    768: ((96, 192, 384, 768), 128),
    1024: ((256, 512, 1024, 1024), 256),
    1536: ((1536, 1536, 1536, 1536), 384),
}
OFFSET = 0.1  # cells, of DINOv2's rule for position embeddings
SMOKE = {"encoder": "vit_small_patch14_dinov2", "embed_dim": 24, "depth": 4, "num_heads": 2, "layers": (0, 1, 2, 3)}
SMOKE |= {"out_channels": (4, 8, 12, 16), "features": 8}


def build(
    num_classes: int,
    *,
    encoder: str = "vit_base_patch14_dinov2.lvd142m",
    pretrained: bool | str | Path = False,
    layers: tuple[int, int, int, int] | None = None,
    out_channels: tuple[int, int, int, int] | None = None,
    features: int | None = None,
    **options,
) -> nn.Module:
    """Build the network.

    encoder: a vision transformer of timm, or a convolutional network with four stages, such as a ConvNeXt
    pretrained: its weights; True: those that timm lists; or a name of `checkpoints` or the path of a weight file
    layers: blocks that are read, counted from 0; out_channels: of the four maps, finest first; features: channels of
        the fusion. None: UniMatch V2's, see LAYERS and WIDTHS
    options: further arguments of timm.create_model
    """
    import timm  # it takes seconds

    def make(**pretrained) -> nn.Module:
        create = partial(timm.create_model, encoder, **options, **pretrained)
        if timm.models.is_model_in_modules(encoder.split(".")[0], ["vision_transformer", "eva"]):
            return Transformer(create(num_classes=0, dynamic_img_size=True), layers)
        return Pyramid(create(features_only=True))

    backbone = of_timm(encoder, locate(checkpoint(encoder=encoder, pretrained=pretrained)), make)
    if out_channels is None or features is None:
        last = backbone.channels[-1]
        if last not in WIDTHS:
            raise ValueError(
                f"UniMatch V2 has no head for the {last} channels of {encoder}: give out_channels, features"
            )
        out_channels, features = out_channels or WIDTHS[last][0], features or WIDTHS[last][1]
    for what, four in (("maps of the encoder", backbone.channels), ("out_channels", out_channels)):
        if len(four) != 4:
            raise ValueError(f"DPT joins four maps; {what} are {len(four)}: give four layers, and four out_channels")
    head = Head(backbone.channels, num_classes, out_channels, features, is_pyramid=isinstance(backbone, Pyramid))
    return DPT(encoder=backbone, head=head)


def checkpoint(*, encoder: str = "", pretrained: bool | str | Path = False, **options) -> str | Path | None:
    """Name or path, for `checkpoints`, of the weights with which `build` starts, given its options; None: random."""
    return deeplabv3plus.checkpoint(encoder=encoder or build.__kwdefaults__["encoder"], pretrained=pretrained)


class DPT(Segmenter):
    """An encoder that gives four feature maps, and the head that joins them."""

    @property
    def multiple(self) -> int:
        """Sides of training crops must be multiples of this, in pixels."""
        return self.encoder.patch

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Four feature maps of images (B, 3, H, W), which are resized to whole patches if they do not have them."""
        sides = [max(1, int(side / self.multiple + 0.5)) * self.multiple for side in images.shape[-2:]]
        return self.encoder(images if sides == [*images.shape[-2:]] else resize(images, sides))

    def decode(self, features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Logits (B, K, H, W) float32 of the four maps and size (H, W)."""
        logits = self.head(features).float()
        if self.multiple > 1:  # first to the size of the patches, then to that of the image, as UniMatch V2 does
            logits = resize(logits, [side * self.multiple for side in features[0].shape[-2:]])
        return resize(logits, size)


class Transformer(nn.Module):
    """Four feature maps (B, C, h, w) of a vision transformer, each through its last normalisation."""

    def __init__(self, network: nn.Module, layers: tuple[int, ...] | None):
        super().__init__()
        blocks = len(network.blocks)
        if layers is None and blocks not in LAYERS:
            raise ValueError(f"UniMatch V2 has no transformer of {blocks} blocks: give layers, the four to read")
        self.layers = list(layers or LAYERS[blocks])
        self.network = network
        self.channels = [network.embed_dim] * len(self.layers)
        self.patch = network.patch_embed.patch_size[0]
        if has_positions_of_dinov2(network):
            network._pos_embed = MethodType(_with_positions, network)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of images (B, 3, H, W), in the order of the layers."""
        return self.network.forward_intermediates(images, indices=self.layers, norm=True, intermediates_only=True)


def has_positions_of_dinov2(network: nn.Module) -> bool:
    """Whether a network of timm has one class token and an embedding for each position, the class token's in front."""
    if type(network).__name__ != "VisionTransformer" or network.pos_embed is None or network.num_reg_tokens:
        return False
    return network.cls_token is not None and network.pos_embed.shape[1] == 1 + network.patch_embed.num_patches


def _with_positions(network: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Tokens (B, 1 + h*w, C) of patches (B, h, w, C): the class token in front, position embeddings added.

    In the place of timm's method; the embeddings of another grid come by the rule of dinov2 (interpolate_pos_encoding
    in models/vision_transformer.py): bicubic, without antialiasing, scaled by (cells + 0.1) / cells of the training.
    """
    size, grid = patches.shape[1:3], network.patch_embed.grid_size
    first, cells = network.pos_embed[:, :1], network.pos_embed[:, 1:]
    if tuple(size) != tuple(grid):
        cells = cells.unflatten(1, grid).permute(0, 3, 1, 2).float()
        factors = [(side + OFFSET) / cell for side, cell in zip(size, grid, strict=True)]
        cells = F.interpolate(cells, scale_factor=factors, mode="bicubic").flatten(2).transpose(1, 2).to(first.dtype)
    tokens = torch.cat([network.cls_token.expand(len(patches), -1, -1), patches.flatten(1, 2)], dim=1)
    return network.pos_drop(tokens + torch.cat([first, cells], dim=1))


class Pyramid(nn.Module):
    """The last four feature maps of a convolutional network, at strides 4, 8, 16 and 32."""

    patch = 1

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.channels = network.feature_info.channels()[-4:]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (B, C, h, w) of images (B, 3, H, W), finest first."""
        return self.network(images)[-4:]


class Head(nn.Module):
    """Logits at twice the size of the finest level, from four maps."""

    def __init__(
        self, channels: list[int], num_classes: int, out_channels: tuple[int, ...], features: int, *, is_pyramid: bool
    ):
        super().__init__()
        pairs = list(zip(channels, out_channels, strict=True))
        self.project = nn.ModuleList([nn.Conv2d(*pair, 1) for pair in pairs])
        scale = [nn.Identity() for _ in pairs]
        if not is_pyramid:  # maps of a transformer all have the size of the patches
            a, b, _, d = out_channels
            scale[0], scale[1] = nn.ConvTranspose2d(a, a, 4, stride=4), nn.ConvTranspose2d(b, b, 2, stride=2)
            scale[3] = nn.Conv2d(d, d, 3, stride=2, padding=1)
        self.scale = nn.ModuleList(scale)
        self.narrow = nn.ModuleList([nn.Conv2d(own, features, 3, padding=1, bias=False) for own in out_channels])
        self.fuse = nn.ModuleList([Fusion(features, has_skip=level < 3) for level in range(4)])
        last = nn.Conv2d(features, features, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(features, num_classes, 1)
        self.output = nn.Sequential(*last)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Logits (B, K, 2h, 2w), h and w of the finest level."""
        levels = [
            narrow(scale(project(each)))
            for each, project, scale, narrow in zip(maps, self.project, self.scale, self.narrow, strict=True)
        ]
        sizes = [[2 * side for side in levels[0].shape[-2:]], *(level.shape[-2:] for level in levels[:-1])]
        joined = self.fuse[3](levels[3], None, sizes[3])
        for level in (2, 1, 0):
            joined = self.fuse[level](joined, levels[level], sizes[level])
        return self.output(joined)


class Fusion(nn.Module):
    """One step of the fusion: add the finer level, refine, resize."""

    def __init__(self, features: int, *, has_skip: bool):
        super().__init__()
        self.skip = Residual(features) if has_skip else None
        self.refine = Residual(features)
        self.mix = nn.Conv2d(features, features, 1)

    def forward(self, maps: torch.Tensor, finer: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        """Maps (B, C, *size) of the coarser maps (B, C, h, w) and the level of their size, if there is one."""
        if finer is not None:
            maps = maps + self.skip(finer)
        return self.mix(resize(self.refine(maps), size))


class Residual(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, added to what came in."""

    def __init__(self, features: int):
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps of the same shape."""
        return maps + self.second(F.relu(self.first(F.relu(maps))))
