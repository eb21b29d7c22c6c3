"""The miniature encoder: a slim ResNet in the place of ImageNet weights; miniatures/encoder.py trains it."""

from pathlib import Path

import timm
from torch import nn

from plg_utils import files

WEIGHTS = Path(__file__).with_name("encoder.safetensors")
CHANNELS = (24, 48, 96, 128)  # of c1 to c4


def build(output_stride: int = 8) -> nn.Module:
    """Build a ResNet with one block a stage: images (B, 3, H, W) -> [c1, c2, c3, c4], with `.channels`.

    output_stride: of c4, 8, 16 or 32; c1 has stride 4. The weights fit each of them.
    """
    features = timm.create_model(
        "resnet10t",
        features_only=True,
        out_indices=(1, 2, 3, 4),
        output_stride=output_stride,
        channels=CHANNELS,
        stem_width=CHANNELS[0] // 2,
        avg_down=False,
    )
    features.channels = tuple(features.feature_info.channels())
    return features


def load(path: str | Path | None = WEIGHTS, *, output_stride: int = 8) -> nn.Module:
    """The encoder with the weights of a file, float32, for evaluation; None: random weights, for training."""
    features = build(output_stride)
    if path is None:
        return features
    files.read_weights(path, features)
    return features.eval()
