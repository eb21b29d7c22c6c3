"""Networks that learn from label maps: one file for each family.

A file holds `build(num_classes, **options)`, which makes a `Segmenter`, and `SMOKE`, options that build a tiny one
without weights. Where a network may start from trained weights, `checkpoint(**options)` names them.
"""

from pathlib import Path

import torch
from torch import nn

from plg_utils import checkpoints, choices


class Segmenter(nn.Module):
    """A network that shows its seams, so that a method can disturb the features between them.

    encoder                 the pretrained part, which `training.fit` teaches at a lower rate than the rest
    encode(images)          (B, 3, H, W) normalised, any H and W -> list of feature maps (B, C, h, w)
    decode(features, size)  those maps and size = (H, W) of the images -> logits (B, K, H, W) float32
    """

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of images (B, 3, H, W)."""
        return self.decode(self.encode(images), images.shape[-2:])


def build(name: str, num_classes: int, **options) -> nn.Module:
    """Build the segmenter in the file `name`.py for num_classes classes."""
    return choices.choice(__name__, name, "segmenter").build(num_classes, **options)


def checkpoint(name: str, **options) -> str | Path | None:
    """Name or path, as `checkpoints` knows it, of the weights with which `build` would start; None: random ones."""
    module = choices.choice(__name__, name, "segmenter")
    return module.checkpoint(**options) if hasattr(module, "checkpoint") else None


def locate(name: str | Path | None) -> Path | None:
    """The weight file of what `checkpoint` names."""
    return None if name is None else checkpoints.locate_weights(name)


def timm_weights(path: Path | None) -> dict:
    """Arguments with which `timm.create_model` reads a weight file; None: random weights."""
    return {} if path is None else {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
